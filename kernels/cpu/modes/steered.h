// Mode `steered`, see kernels/modes/steered.py.

namespace {

// (x - zero) / scale in parts of a scale.
template <class F> INLINE VI in_parts(VF x, VF inverse, VF steps) {
  return bitcast<VI>(exact_fma(x, inverse, F::TO_PARTS - steps * F::ZERO_STEP)) - bitcast<VI>(splat(F::TO_PARTS));
}

// The zero point near `steps` of least cost: `_steer` of the reference. `mean` points to the bytes of the
// group's first channel in the query profile, and the weights of the channels lie F::D bytes behind.
template <class F> INLINE VF steer(const float* x, const int8_t* mean, VF low, VF high, VF inverse, VF steps) {
  constexpr int shift = F::PRODUCT_SHIFT, levels = (1 << F::BITS) - 1, candidates = sizeof F::STEERING / sizeof(int);
  const int8_t* weight = mean + F::D;
  int total = 0;
  VI product[candidates] = {}, rest[candidates] = {};
  for (int e = 0; e < F::GS; ++e) {
    const VI at = in_parts<F>(clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>), inverse, steps);
    total += weight[e];
    for (int i = 0; i < candidates; ++i) {
      const int moved = (int)(F::STEERING[i] * F::ZERO_STEP * F::PARTS);
      const VI error = ((at - moved) << 24) >> 24, size = error ^ (error >> 31);
      product[i] = product[i] + error * mean[e];
      rest[i] = rest[i] + (size < F::PARTS / 4 ? size : 3 * size - (F::PARTS / 2 - 1)) * weight[e];
    }
  }
  const VI above = in_parts<F>(high, inverse, steps) - (levels * F::PARTS + F::PARTS / 2);
  const VI below = -(F::PARTS / 2) - in_parts<F>(low, inverse, steps);
  VF chosen = steps;
  VI least = {};
  for (int i = 0; i < candidates; ++i) {
    const int moved = (int)(F::STEERING[i] * F::ZERO_STEP * F::PARTS);
    VI beyond = above - moved > below + moved ? above - moved : below + moved;
    beyond = beyond < 0 ? VI{} : (beyond > F::PARTS - 1 ? VI{} + (F::PARTS - 1) : beyond);
    const VI p = product[i] >> shift;
    const VI cost = p * p + ((rest[i] - rest[0] + beyond * total * 8 / F::GS) >> (2 * shift - 6));
    const VF trial = steps + (float)F::STEERING[i];
    const VI take = i == 0 ? ~VI{} : (cost < least) & (VI)(magnitude(trial) <= (float)MOST_STEPS);
    chosen = take ? trial : chosen;
    least = take ? cost : least;
  }
  return (high >= LIMIT<float>) | (low <= -LIMIT<float>) ? steps : chosen;  // saturated: its error is not meaningful
}

// The cost of the errors of groups, for comparison with signed groups.
template <class F> INLINE VF steered_cost(const float* x, const int8_t* mean, VF scale, VF steps) {
  const int8_t* weight = mean + F::D;
  const VF unit = pair_unit(scale), inverse = 1.f / unit, offset = steps * -F::ZERO_STEP;
  VF product = {}, rest = {};
  for (int e = 0; e < F::GS; ++e) {
    const VF ratio = exact_fma(clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>), inverse, offset);
    const VF error = ratio - round_even(clamp(ratio, 0.f, (float)((1 << F::BITS) - 1)));
    product = product + error * (float)mean[e];
    rest = rest + error * error * (float)weight[e];
  }
  return (product * product + rest) * (unit * unit);
}

struct Steered {
  template <class F> static INLINE void encode(const Groups<F>& g) {
    constexpr float levels = (1 << F::BITS) - 1, share = (float)(1. / levels);
    Pair pair = asymmetric_pair(g);
    pair.steps = steer<F>(g.x, g.profile, g.low, g.high, 1.f / pair_unit(pair.scale), pair.steps);
    if constexpr (F::BITS <= F::MOST_SIGNED_BITS) {
      const Pair narrow = signed_pair(g);
      const VF cost = steered_cost<F>(g.x, g.profile, narrow.scale, narrow.steps);
      const VI less = cost * CLEARLY < steered_cost<F>(g.x, g.profile, pair.scale, pair.steps);
      pair = {less ? narrow.scale : pair.scale, less ? narrow.steps : pair.steps};
    }
    // codes are rounded from fractions of the largest code, as on a GPU
    const VF inverse = 1.f / pair_unit(pair.scale) * share, offset = pair.steps * F::ZERO_STEP * share;
    for (int e = 0; e < F::GS; ++e) {
      VF within = clamp(exact_fma(g.at(e), inverse, -offset), 0.f, 1.f);
      within = within != within ? splat(0.f) : within;
      store(g.codes + e * F::LANES, bitcast<VI>(exact_fma(within, splat(levels), splat(8388608.f))) & 0xff);
    }
    store_pairs(g.params, pair.scale, pair.steps);
  }
};

}  // namespace
