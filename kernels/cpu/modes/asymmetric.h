// Mode `asymmetric`, see kernels/modes/asymmetric.py.

namespace {

struct Asymmetric {
  template <class F> static INLINE void encode(const Groups<F>& g) {
    if constexpr (std::is_same_v<typename F::S, pair8>) {
      const Pair pair = asymmetric_pair(g);
      pair_codes<F, F::LANES>(g.x, pair.scale, pair.steps, g.codes);
      store_pairs(g.params, pair.scale, pair.steps);
    } else {
      encode_asymmetric(g, g.low);
    }
  }
};

}  // namespace
