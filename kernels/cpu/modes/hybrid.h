// Mode `hybrid`, see kernels/modes/hybrid.py.

namespace {

struct Hybrid {
  template <class F> static INLINE void encode(const Groups<F>& g) {
    int32_t other[F::GS * VL];
    if constexpr (std::is_same_v<typename F::S, pair8>) {
      const Pair wide = asymmetric_pair(g), narrow = signed_pair(g);
      const VF error = pair_codes<F, VL>(g.x, wide.scale, wide.steps, other);
      const VI take = pair_codes<F, F::LANES>(g.x, narrow.scale, narrow.steps, g.codes) <= error * CLEARLY;
      keep_better<F>(take, g.codes, other);
      store_pairs(g.params, take ? narrow.scale : wide.scale, take ? narrow.steps : wide.steps);
    } else {
      using S = typename F::S;
      VF scale = signed_scale(g), wide = asymmetric_scale(g);
      constexpr int reach = ROOMY<F> ? HALF<F> : 2 * HALF<F>;
      affine_codes<F, false, F::LANES>(g.x, scale, VF{}, -HALF<F>, HALF<F> - 1, reach, HALF<F>, g.codes);
      const VF zero = round_to<S>(scale * (float)-HALF<F>), low = stored_zero<F>(g.low);
      affine_codes<F, true, VL>(g.x, wide, low, 0, LEVELS<F>, ASYMMETRIC_REACH<F>, 0, other);
      const VI take = group_error<F, F::LANES>(g.x, g.codes, scale, zero) <= group_error<F, VL>(g.x, other, wide, low);
      keep_better<F>(take, g.codes, other);
      store_params(g, take ? scale : wide, take ? zero : low);
    }
  }
};

}  // namespace
