// Mode `anchored`, see kernels/modes/anchored.py.

namespace {

struct Anchored {
  template <class F> static INLINE void encode(const Groups<F>& g) {
    if constexpr (std::is_same_v<typename F::S, pair8>) {
      const Pair pair = asymmetric_pair<F, true>(g);
      pair_codes<F, F::LANES>(g.x, pair.scale, pair.steps, g.codes);
      store_pairs(g.params, pair.scale, pair.steps);
    } else {
      const VF held = stored_scale<F>(asymmetric_scale(g), ASYMMETRIC_REACH<F>);
      const VI empty = ~(VI)(magnitude(held) >= 1.17549435e-38f);
      const VF past = past_code<F>(load(g.anchor), g.low, 1.f / (empty ? splat(1.f) : held));
      const VF zero = exact_fma(empty ? splat(0.f) : past, held, g.low);
      const VF most = LIMIT<typename F::S> - held * (float)LEVELS<F>;  // the largest code decodes to a finite number
      encode_asymmetric(g, zero > most ? most : zero);
    }
  }
};

}  // namespace
