// Mode `signed`, see kernels/modes/signed.py.

namespace {

struct Signed {
  template <class F> static INLINE void encode(const Groups<F>& g) {
    VF scale = signed_scale(g);
    affine_codes<F, false, F::LANES>(g.x, scale, VF{}, -HALF<F>, HALF<F> - 1, HALF<F>, HALF<F>, g.codes);
    store_params(g, scale, VF{});
  }
};

}  // namespace
