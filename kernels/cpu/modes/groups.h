// What the classes of the modes encode: a class has
//
//   template <class F> static INLINE void encode(const Groups<F>& g)
//
// which gives the bits of the mode's reference (kernels/modes).

namespace {

// VL groups side by side, one a lane.
template <class F> struct Groups {
  const float* x;             // element e of the groups: x + e * F::LANES
  const float* anchor;        // the elements that are to lie on a code, in modes that use an anchor
  const int8_t* profile;      // the query profile of the group's channels, in modes that use it
  VF low, high, largest;      // extremes, and the largest magnitude; NaN where a group has one
  int32_t* codes;             // to be written, as x
  typename F::S* params;      // to be written: scales, and zero points `zeros` behind them unless one word holds both
  int zeros;

  VF at(int e) const { return clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>); }
};

// How far the elements `x` lie past the nearest code of groups that begin at `low`, in scales.
template <class F> INLINE VF past_code(VF x, VF low, VF inverse) {
  const VF off = clamp(exact_fma(clamp(x, -LIMIT<float>, LIMIT<float>), inverse, -(low * inverse)), 0.f,
                       (float)((1 << F::BITS) - 1));
  return off - round_even(off);
}

// Groups of `codes` become those of `other` where `take` is not set.
template <class F> INLINE void keep_better(VI take, int32_t* codes, const int32_t* other) {
  for (int e = 0; e < F::GS; ++e)
    store(codes + e * F::LANES, take ? load_as<VI>(codes + e * F::LANES) : load_as<VI>(other + e * VL));
}

}  // namespace
