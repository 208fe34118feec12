// Groups whose scale, and zero point if any, are separate elements: kernels/modes/affine.py.

namespace {

// The stored scale, limited so that reach * scale is finite.
template <class F> INLINE VF stored_scale(VF scale, int reach) {
  using S = typename F::S;
  const float limit = (float)((double)LIMIT<S> / reach);
  if constexpr (std::is_same_v<S, e5m2>) {
    const VF size = round_short<S, (F::BITS > NEAREST_BITS)>(magnitude(scale), limit);
    return bitcast<VF>(bitcast<VU>(size) | (bitcast<VU>(scale) & 0x80000000u));
  } else {
    return round_to<S>(clamp(scale, -limit, limit));
  }
}

// Codes of VL groups whose rows are x[0], x[LANES], ..., with x ~ code * scale + zero. `scale` is replaced by the
// stored scale, limited so that reach * scale is finite. `add` is added to the codes, which have rows of STRIDE lanes.
// DIVIDE: divide by the scale instead of multiplying with its inverse.
template <class F, bool ZERO, int STRIDE, bool DIVIDE = false>
INLINE void affine_codes(const float* x, VF& scale, VF zero, int low, int high, int reach, int add, int32_t* codes) {
  scale = stored_scale<F>(scale, reach);
  const VI empty = magnitude(scale) < 1.17549435e-38f;
  const VF divisor = empty ? splat(1.f) : scale, inverse = 1.f / divisor;
  for (int e = 0; e < F::GS; ++e) {
    VF v = clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>);
    if (ZERO) v = v - zero;
    // clamping before rounding gives the same: the limits are whole numbers
    const VF ratio = DIVIDE ? v / divisor : v * inverse;
    const VF rounded = round_even(clamp(ratio, (float)low, (float)high));
    const VI bad = empty | (VI)(rounded != rounded);
    store(codes + e * STRIDE, (bad ? VI{} : __builtin_convertvector(rounded, VI)) + add);
  }
  scale = empty ? splat(0.f) : scale;
}

// Sum of the squared errors of a group, or of the absolute ones.
template <class F, int STRIDE, bool ABSOLUTE = false>
INLINE VF group_error(const float* x, const int32_t* codes, VF scale, VF zero) {
  VF total = {};
  for (int e = 0; e < F::GS; ++e) {
    const VF code = __builtin_convertvector(load_as<VI>(codes + e * STRIDE), VF);
    const VF d = (code * scale + zero) - clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>);
    total = total + (ABSOLUTE ? magnitude(d) : d * d);
  }
  return total;
}

// With a zero point, code * scale may be twice the largest element; with float16 scales that is finite in float32.
template <class F> constexpr bool ROOMY = std::is_same_v<typename F::S, f16>;
template <class F> constexpr int HALF = 1 << (F::BITS - 1);
template <class F> constexpr int LEVELS = (1 << F::BITS) - 1;
template <class F> constexpr int ASYMMETRIC_REACH = ROOMY<F> ? 1 : LEVELS<F>;

// Signed groups: the sign of the scale is such that the element of largest magnitude has the code -HALF.
template <class F> INLINE VF signed_scale(const Groups<F>& g) {
  return (g.high > -g.low ? -g.high : -g.low) / (float)HALF<F>;
}
template <class F> INLINE VF asymmetric_scale(const Groups<F>& g) {
  return g.high / (float)LEVELS<F> - g.low / (float)LEVELS<F>;
}
template <class F> INLINE VF stored_zero(VF zero) {
  using S = typename F::S;
  return round_to<S>(clamp(zero, -LIMIT<S>, LIMIT<S>));
}
template <class F> INLINE void store_params(const Groups<F>& g, VF scale, VF zero) {
  store_as<typename F::S>(g.params, scale);
  if constexpr (F::HAS_ZERO) store_as<typename F::S>(g.params + g.zeros, zero);
}
// Asymmetric groups with the zero point `zero`.
template <class F> INLINE void encode_asymmetric(const Groups<F>& g, VF zero) {
  VF scale = asymmetric_scale(g);
  zero = stored_zero<F>(zero);
  affine_codes<F, true, F::LANES>(g.x, scale, zero, 0, LEVELS<F>, ASYMMETRIC_REACH<F>, 0, g.codes);
  store_params(g, scale, zero);
}

}  // namespace
