// Mode `symmetric`, see kernels/modes/symmetric.py.

namespace {

struct Symmetric {
  template <class F> static INLINE void encode(const Groups<F>& g) {
    VF scale = g.largest / (float)(HALF<F> - 1);
    affine_codes<F, false, F::LANES, true>(g.x, scale, VF{}, 1 - HALF<F>, HALF<F> - 1, HALF<F> - 1, HALF<F>, g.codes);
    store_params(g, scale, VF{});
  }
};

}  // namespace
