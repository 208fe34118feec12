// The arguments of the encoders of modes. The class of a mode has
//
//   template <class F> static INLINE void encode(const Groups<F>& g)
//
// with the results of the mode's reference encoder (kernels/modes), bit for bit.

namespace {

// VL groups side by side, one per lane.
template <class F> struct Groups {
  const float* x;             // element e of the groups: x + e * F::LANES
  const float* anchor;        // the elements that are to be exact, in modes that use an anchor
  const int8_t* profile;      // the query profile of the group's channels, in modes that use it
  VF low, high, largest;      // extremes, and the largest magnitude; NaN if the group has NaN
  int32_t* codes;             // output, with the layout of x
  typename F::S* params;      // output: scales; separate zero points are `zeros` elements behind them
  int zeros;

  VF at(int e) const { return clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>); }
};

// Distance of the elements `x` from the nearest code, in scales, with `low` as the zero point.
template <class F> INLINE VF past_code(VF x, VF low, VF inverse) {
  const VF off = clamp(exact_fma(clamp(x, -LIMIT<float>, LIMIT<float>), inverse, -(low * inverse)), 0.f,
                       (float)((1 << F::BITS) - 1));
  return off - round_even(off);
}

// Replace groups of `codes` by those of `other` where `take` is false.
template <class F> INLINE void keep_better(VI take, int32_t* codes, const int32_t* other) {
  for (int e = 0; e < F::GS; ++e)
    store(codes + e * F::LANES, take ? load_as<VI>(codes + e * F::LANES) : load_as<VI>(other + e * VL));
}

}  // namespace
