// Mode `paper_hybrid`, see kernels/modes/paper_hybrid.py.

namespace {

struct PaperHybrid {
  template <class F> static INLINE void encode(const Groups<F>& g) {
    using S = typename F::S;
    constexpr int top = HALF<F> - 1, reach = ROOMY<F> ? HALF<F> : 2 * HALF<F>;
    int32_t other[F::GS * VL];
    VF scale = g.largest / (float)top, wide = (g.high - g.low) / (float)top;
    affine_codes<F, false, F::LANES, true>(g.x, scale, VF{}, -top, top, reach, HALF<F>, g.codes);
    const VF zero = round_to<S>(scale * (float)-HALF<F>), low = stored_zero<F>(g.low);
    affine_codes<F, true, VL, true>(g.x, wide, low, 0, top, ROOMY<F> ? 1 : top, 0, other);
    const VF error = group_error<F, F::LANES, true>(g.x, g.codes, scale, zero);
    // as published, a tie is asymmetric
    const VI take = ~(VI)(group_error<F, VL, true>(g.x, other, wide, low) <= error);
    keep_better<F>(take, g.codes, other);
    store_params(g, take ? scale : wide, take ? zero : low);
  }
};

}  // namespace
