// Groups whose scale and zero point share a word (kernels/scale_types.py): kernels/modes/paired.py.

namespace {

// pair_scale of kernels/scale_types.py: rounded, or larger where the zero point `low` requires it.
template <class F> INLINE VF pair_scale(VF scale, VF low) {
  constexpr float limit = LIMIT<pair8>, reach = MOST_STEPS * F::ZERO_STEP;
  const VF needed = magnitude(low) * (float)(1. / ((double)MOST_STEPS * F::ZERO_STEP));
  const VF stored = round_short<pair8, (F::BITS > NEAREST_BITS)>(needed > scale ? needed : scale, limit);
  VF larger = stored + short_quantum<pair8>(stored);
  larger = larger > limit ? splat(limit) : larger;
  return magnitude(low) > stored * reach ? larger : stored;
}

// The scale, or 1 where it is 0: a divisor for groups whose elements all round to code 0.
INLINE VF pair_unit(VF scale) { return scale == 0.f ? splat(1.f) : scale; }

// Codes of VL groups for a rounded scale and a zero point in steps. Returns their squared errors.
template <class F, int STRIDE> INLINE VF pair_codes(const float* x, VF scale, VF steps, int32_t* codes) {
  const VF unit = pair_unit(scale), inverse = 1.f / unit, offset = steps * -F::ZERO_STEP;
  VF error = {};
  for (int e = 0; e < F::GS; ++e) {
    const VF ratio = exact_fma(clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>), inverse, offset);
    VF code = round_even(clamp(ratio, 0.f, (float)((1 << F::BITS) - 1)));
    code = code != code ? splat(0.f) : code;
    store(codes + e * STRIDE, __builtin_convertvector(code, VI));
    error = error + (ratio - code) * (ratio - code);
  }
  return error * (unit * unit);
}

INLINE void store_pairs(pair8* words, VF scale, VF steps) {
  float scales[VL], offsets[VL];
  store(scales, scale);
  store(offsets, steps);
  for (int i = 0; i < VL; ++i) {
    const int offset = scales[i] != scales[i] ? 0 : (int)offsets[i];
    const int word = scales[i] != scales[i] ? PAIR_SCALE : from_f32<f16>(scales[i]).bits & PAIR_SCALE;
    words[i] = {(uint16_t)(word | (offset < 0 ? PAIR_SIGN - offset : offset))};
  }
}

// Rounded scales, and zero points in steps.
struct Pair { VF scale, steps; };

// Codes from the smallest element of a group to its largest. ANCHOR: the anchor is to lie exactly on a code.
template <class F, bool ANCHOR = false> INLINE Pair asymmetric_pair(const Groups<F>& g) {
  constexpr int half = 1 << (F::BITS - 1), levels = (1 << F::BITS) - 1;
  const VF scale = pair_scale<F>((g.high * 0.5f - g.low * 0.5f) * (float)(2. / levels), g.low);
  const VF inverse = 1.f / pair_unit(scale);
  VF zero = g.low * inverse;  // in scales
  if constexpr (ANCHOR) zero = exact_fma(g.low, inverse, past_code<F>(load(g.anchor), g.low, inverse));
  VF steps = round_even(clamp(zero * (1 / F::ZERO_STEP), -(float)MOST_STEPS, (float)MOST_STEPS));
  // where even the largest scale is too small for both ends of a group, zero stays in the middle of the codes
  constexpr float whole = half / F::ZERO_STEP;
  steps = (scale >= LIMIT<pair8>) & (g.high > 0.f) & (steps < -whole) ? splat(-whole) : steps;
  return {scale, steps};
}

// Signed, with a positive scale. The additional level is on the side of the largest magnitude.
template <class F> INLINE Pair signed_pair(const Groups<F>& g) {
  constexpr int half = 1 << (F::BITS - 1);
  constexpr float whole = half / F::ZERO_STEP, less = (half - 1) / F::ZERO_STEP;
  const VI positive = g.high > -g.low;
  const VF largest = positive ? g.high : -g.low;
  const VF scale = round_short<pair8, (F::BITS > NEAREST_BITS)>(largest / (float)half, LIMIT<pair8>);
  const VF steps = positive ? -round_even(splat(less)) : splat(-whole);
  return {scale, scale == 0.f ? splat(0.f) : steps};
}

}  // namespace
