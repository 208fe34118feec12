// Writing a cache: quantization of a block, append_ and prefill. kernels/reference.py says what is computed, and these
// give the same bits.
//
// A block is worked on as a tile [ROWS][LANES] whose rows are contracted by attention and whose lanes are not: rows are
// channels and lanes tokens for keys, the other way round for values. A group is GS rows of one lane, for both. The
// generated structs (kernels/cpu/codegen.py) hold the constants of one side of a cache:
//
//   T, S                       element and scale dtype
//   KEY, QUANTIZED, HAS_ZERO   flags; MODE as in formats.MODES
//   D, BLOCK, ROWS, LANES, GS, BITS, WORDS
//   BASE, *_STRIDE, RUNS       where the codes of a word belong, for pack
//   unpack(words, tile)        all codes of a block as floats
//
//   STEERING                   steps by which mode STEERED moves a zero point
//
//   PRODUCT_SHIFT              of short_scales.product_shift
//
// NEAREST_BITS, MOST_SIGNED_BITS, TO_PARTS and CLEARLY are those of kernels/short_scales.py, QUERY_ROWS that of
// kernels/formats.py, defined with VL.

namespace {

enum Mode { SYMMETRIC, SIGNED, ASYMMETRIC, ANCHORED, STEERED, HYBRID, PAPER_HYBRID, NONE };

// What a thread keeps between calls, so that a decode step allocates nothing.
struct Scratch {
  char* data = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(data); }
  char* get(size_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + 4095) / 4096 * 4096;
      data = (char*)std::aligned_alloc(64, size);
      if (!data) size = 0;
    }
    return data;
  }
};
inline char* scratch(size_t bytes) {
  static thread_local Scratch own;
  return own.get(bytes);
}
constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Part of a code that lies in one half-word: (code >> code_bit & mask) << half_bit.
struct Run { int half, half_bit, code_bit; uint32_t mask; };
struct FieldRun { int field; Run run; };

struct Cache {  // one side
  void* codes;
  void* scales;
  void* window;
  int32_t* state;  // [B, H, 4]: start, length, peak, 0
  int64_t capacity, sink, recent;
  template <class F> int64_t ring() const { return recent + F::BLOCK; }
  // Blocks of sequence-head i that are quantized.
  template <class F> int64_t blocks(int64_t i) const {
    const int64_t past = state[i * 4 + 2] - sink - recent;
    return past < F::BLOCK ? 0 : past / F::BLOCK;
  }
  template <class F> typename F::T* rows(int64_t i) const {
    return (typename F::T*)window + i * (sink + ring<F>() + (F::MODE == STEERED ? QUERY_ROWS : 0)) * F::D;
  }
  // What mode STEERED knows of the queries, the bytes of reference.query_rows: means, then weights, of D channels each.
  template <class F> const int8_t* queries(int64_t i) const { return (int8_t*)(rows<F>(i) + (sink + ring<F>()) * F::D); }
  template <class F> int32_t* words(int64_t i, int64_t block) const {
    return (int32_t*)codes + (i * capacity + block) * F::WORDS;
  }
  template <class F> typename F::T* elements(int64_t i, int64_t block) const {
    return (typename F::T*)codes + (i * capacity + block) * F::BLOCK * F::D;
  }
  template <class F> typename F::S* params(int64_t i, int64_t block) const {
    return (typename F::S*)scales + (i * capacity + block) * F::PARAMS;
  }
};

template <class F> void pack(const int32_t* codes, int32_t* words) {
  for (int hi = 0; hi < F::HI; ++hi)
    for (int pair = 0; pair < F::PAIRS; ++pair)
      for (int col = 0; col < F::COLS; ++col) {
        const int32_t* from = codes + hi * F::HI_STRIDE + pair * F::PAIR_STRIDE + col * F::COL_STRIDE;
        uint32_t word[F::BITS] = {};
        for (int lane = 0; lane < 2; ++lane)
          for (const auto& [field, run] : F::RUNS)
            word[run.half] |= (((uint32_t)from[F::BASE[lane][field]] >> run.code_bit) & run.mask)
                              << (run.half_bit + 16 * lane);
        for (int i = 0; i < F::BITS; ++i)
          words[(((hi * F::BITS + i) * (F::COLS / F::RUN) + col / F::RUN) * F::PAIRS + pair) * F::RUN + col % F::RUN] =
              (int32_t)word[i];
      }
}

// A scale as it is stored, limited so that `reach` of it is finite.
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

// How far the elements `x` lie past the nearest code of groups that begin at `low`, in scales.
template <class F> INLINE VF past_code(VF x, VF low, VF inverse) {
  const VF off = clamp(exact_fma(clamp(x, -LIMIT<float>, LIMIT<float>), inverse, -(low * inverse)), 0.f,
                       (float)((1 << F::BITS) - 1));
  return off - round_even(off);
}

// Codes of VL groups whose rows are x[0], x[LANES], ..., for x ~ code * scale + zero. `scale` becomes what is stored,
// limited so that `reach` of it is finite; `add` is added to the codes, which have rows of STRIDE lanes.
template <class F, bool ZERO, int STRIDE>
INLINE void affine_codes(const float* x, VF& scale, VF zero, int low, int high, int reach, int add, int32_t* codes) {
  scale = stored_scale<F>(scale, reach);
  const VI empty = magnitude(scale) < 1.17549435e-38f;
  const VF divisor = empty ? splat(1.f) : scale, inverse = 1.f / divisor;
  for (int e = 0; e < F::GS; ++e) {
    VF v = clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>);
    if (ZERO) v = v - zero;
    // clamping before rounding gives the same: the limits are whole numbers
    const VF ratio = F::MODE == SYMMETRIC || F::MODE == PAPER_HYBRID ? v / divisor : v * inverse;
    const VF rounded = round_even(clamp(ratio, (float)low, (float)high));
    const VI bad = empty | (VI)(rounded != rounded);
    store(codes + e * STRIDE, (bad ? VI{} : __builtin_convertvector(rounded, VI)) + add);
  }
  scale = empty ? splat(0.f) : scale;
}

// Sum of the squared errors of a group, or of the absolute ones.
template <class F, int STRIDE> INLINE VF group_error(const float* x, const int32_t* codes, VF scale, VF zero) {
  VF total = {};
  for (int e = 0; e < F::GS; ++e) {
    const VF code = __builtin_convertvector(load_as<VI>(codes + e * STRIDE), VF);
    const VF d = (code * scale + zero) - clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>);
    total = total + (F::MODE == PAPER_HYBRID ? magnitude(d) : d * d);
  }
  return total;
}

// Scale and zero point in one word (kernels/short_scales.py).
template <class F> constexpr float ZERO_STEP = F::BITS < 6 ? 1.f / (1 << (6 - F::BITS)) : (float)(1 << (F::BITS - 6));

// The scale of a pair: rounded, and so large that the zero point `low` can be reached.
template <class F> INLINE VF pair_scale(VF scale, VF low) {
  constexpr float limit = LIMIT<pair8>, reach = 127 * ZERO_STEP<F>;
  const VF needed = magnitude(low) * (float)(1. / (127. * ZERO_STEP<F>));
  const VF stored = round_short<pair8, (F::BITS > NEAREST_BITS)>(needed > scale ? needed : scale, limit);
  VF larger = stored + short_quantum<pair8>(stored);
  larger = larger > limit ? splat(limit) : larger;
  return magnitude(low) > stored * reach ? larger : stored;
}

// 1 in place of a scale of 0, to which all of a group is nearer than half.
INLINE VF pair_unit(VF scale) { return scale == 0.f ? splat(1.f) : scale; }

// Codes of VL groups for a scale and a zero point as they are stored. Returns their squared errors.
template <class F, int STRIDE> INLINE VF pair_codes(const float* x, VF scale, VF steps, int32_t* codes) {
  const VF unit = pair_unit(scale), inverse = 1.f / unit, offset = steps * -ZERO_STEP<F>;
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

// Elements behind a zero point in 256ths of a scale, as reference._in_parts has them.
template <class F> INLINE VI in_parts(VF x, VF inverse, VF steps) {
  return bitcast<VI>(exact_fma(x, inverse, TO_PARTS - steps * ZERO_STEP<F>)) - bitcast<VI>(splat(TO_PARTS));
}

// A mean as reference.query_rows holds it.
INLINE int known_mean(int8_t byte) { return byte < 0 ? -1 - (byte & 0x7f) : byte; }

// The zero point near `steps` whose errors cost least, as reference._steer has it. `mean` points to the bytes of the
// group's first channel, and the weights of the channels lie F::D bytes behind.
template <class F> INLINE VF steer(const float* x, const int8_t* mean, VF low, VF high, VF inverse, VF steps) {
  constexpr int shift = F::PRODUCT_SHIFT, levels = (1 << F::BITS) - 1, candidates = sizeof F::STEERING / sizeof(int);
  const uint8_t* weight = (const uint8_t*)mean + F::D;
  int total = 0;
  VI product[candidates] = {}, rest[candidates] = {};
  for (int e = 0; e < F::GS; ++e) {
    const VI at = in_parts<F>(clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>), inverse, steps);
    total += weight[e];
    const int of_mean = known_mean(mean[e]);
    for (int i = 0; i < candidates; ++i) {
      const int moved = (int)(F::STEERING[i] * ZERO_STEP<F> * 256);
      const VI error = ((at - moved) << 24) >> 24, size = error ^ (error >> 31);
      product[i] = product[i] + error * of_mean;
      rest[i] = rest[i] + (size < 64 ? size : 3 * size - 127) * weight[e];
    }
  }
  const VI above = in_parts<F>(high, inverse, steps) - (levels * 256 + 128), below = -128 - in_parts<F>(low, inverse, steps);
  VF chosen = steps;
  VI least = {};
  for (int i = 0; i < candidates; ++i) {
    const int moved = (int)(F::STEERING[i] * ZERO_STEP<F> * 256);
    VI beyond = above - moved > below + moved ? above - moved : below + moved;
    beyond = beyond < 0 ? VI{} : (beyond > 255 ? VI{} + 255 : beyond);
    const VI p = product[i] >> shift;
    const VI cost = p * p + ((rest[i] - rest[0] + beyond * total * 8 / F::GS) >> (2 * shift - 6));
    const VF trial = steps + (float)F::STEERING[i];
    const VI take = i == 0 ? ~VI{} : (cost < least) & (VI)(magnitude(trial) <= 127.f);
    chosen = take ? trial : chosen;
    least = take ? cost : least;
  }
  return (high >= LIMIT<float>) | (low <= -LIMIT<float>) ? steps : chosen;  // infinite elements have no error to speak of
}

// What the errors of codes cost, as reference._steered compares them with those of a signed group.
template <class F> INLINE VF steered_cost(const float* x, const int8_t* mean, VF scale, VF steps) {
  const uint8_t* weight = (const uint8_t*)mean + F::D;
  const VF unit = pair_unit(scale), inverse = 1.f / unit, offset = steps * -ZERO_STEP<F>;
  VF product = {}, rest = {};
  for (int e = 0; e < F::GS; ++e) {
    const VF ratio = exact_fma(clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>), inverse, offset);
    const VF error = ratio - round_even(clamp(ratio, 0.f, (float)((1 << F::BITS) - 1)));
    product = product + error * (float)known_mean(mean[e]);
    rest = rest + error * error * (float)weight[e];
  }
  return (product * product + rest) * (unit * unit);
}

// Codes of mode STEERED, as reference._codes_within has them; scale and steps become those of the group.
template <class F>
INLINE void steered_codes(const float* x, const int8_t* mean, VF low, VF high, VF signed_scale, VF signed_steps, VF& scale,
                          VF& steps, int32_t* codes) {
  constexpr float levels = (1 << F::BITS) - 1, share = (float)(1. / levels);
  steps = steer<F>(x, mean, low, high, 1.f / pair_unit(scale), steps);
  if constexpr (F::BITS <= MOST_SIGNED_BITS) {
    const VF cost = steered_cost<F>(x, mean, signed_scale, signed_steps);
    const VI less = cost * CLEARLY < steered_cost<F>(x, mean, scale, steps);
    scale = less ? signed_scale : scale;
    steps = less ? signed_steps : steps;
  }
  const VF inverse = 1.f / pair_unit(scale) * share, offset = steps * ZERO_STEP<F> * share;
  for (int e = 0; e < F::GS; ++e) {
    const VF v = clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>);
    VF within = clamp(exact_fma(v, inverse, -offset), 0.f, 1.f);
    within = within != within ? splat(0.f) : within;
    store(codes + e * F::LANES, bitcast<VI>(exact_fma(within, splat(levels), splat(8388608.f))) & 0xff);
  }
}

INLINE void store_pairs(pair8* words, VF scale, VF steps) {
  float scales[VL], offsets[VL];
  store(scales, scale);
  store(offsets, steps);
  for (int i = 0; i < VL; ++i) {
    const int offset = scales[i] != scales[i] ? 0 : (int)offsets[i];
    const int word = scales[i] != scales[i] ? 0x7f80 : from_f32<f16>(scales[i]).bits & 0x7f80;
    words[i] = {(uint16_t)(word | (offset < 0 ? 0x8000 - offset : offset))};
  }
}

// Groups of `codes` become those of `other` where `take` is not set.
template <class F> INLINE void keep_better(VI take, int32_t* codes, const int32_t* other) {
  for (int e = 0; e < F::GS; ++e)
    store(codes + e * F::LANES, take ? load_as<VI>(codes + e * F::LANES) : load_as<VI>(other + e * VL));
}

// VL groups with extremes low and high -> codes and params, scale and zero point in one word. `anchor` is the row of x
// that is to lie on a code, in mode ANCHORED; `query` the bytes of the queries, in mode STEERED.
template <class F>
INLINE void encode_pairs(const float* x, const float* anchor, const int8_t* query, VF low, VF high, int32_t* codes,
                         pair8* params) {
  constexpr int half = 1 << (F::BITS - 1), levels = (1 << F::BITS) - 1;
  VF scale = pair_scale<F>((high * 0.5f - low * 0.5f) * (float)(2. / levels), low);
  const VF inverse = 1.f / pair_unit(scale);
  VF zero = low * inverse;  // in scales
  if constexpr (F::MODE == ANCHORED) zero = exact_fma(low, inverse, past_code<F>(load(anchor), low, inverse));
  VF steps = round_even(clamp(zero * (1 / ZERO_STEP<F>), -127.f, 127.f));
  // the largest scale may be too small for both ends: then there are codes on both sides of zero
  constexpr float whole = half / ZERO_STEP<F>, less = (half - 1) / ZERO_STEP<F>;
  steps = (scale >= LIMIT<pair8>) & (high > 0.f) & (steps < -whole) ? splat(-whole) : steps;
  // signed: the level without a counterpart lies on the side of the extreme value
  const VI positive = high > -low;
  const VF largest = positive ? high : -low;
  const VF signed_scale = round_short<pair8, (F::BITS > NEAREST_BITS)>(largest / (float)half, LIMIT<pair8>);
  VF signed_steps = positive ? -round_even(splat(less)) : splat(-whole);
  signed_steps = signed_scale == 0.f ? splat(0.f) : signed_steps;
  if constexpr (F::MODE == STEERED) {
    steered_codes<F>(x, query, low, high, signed_scale, signed_steps, scale, steps, codes);
    store_pairs(params, scale, steps);
  } else if constexpr (F::MODE != HYBRID) {
    pair_codes<F, F::LANES>(x, scale, steps, codes);
    store_pairs(params, scale, steps);
  } else {
    int32_t other[F::GS * VL];
    const VF error = pair_codes<F, VL>(x, scale, steps, other);
    const VI take = pair_codes<F, F::LANES>(x, signed_scale, signed_steps, codes) <= error * CLEARLY;
    keep_better<F>(take, codes, other);
    store_pairs(params, take ? signed_scale : scale, take ? signed_steps : steps);
  }
}

// The same with scales and zero points of their own, `groups` apart; `largest` is the largest magnitude.
template <class F>
INLINE void encode_scales(const float* x, const float* anchor, VF low, VF high, VF largest, int32_t* codes,
                          typename F::S* params, int groups) {
  using S = typename F::S;
  constexpr int half = 1 << (F::BITS - 1), levels = (1 << F::BITS) - 1;
  // with a zero point, code * scale alone is up to twice what the group holds; float16 numbers leave room for that
  constexpr bool roomy = std::is_same_v<S, f16>;
  constexpr int sym_reach = F::MODE == HYBRID && !roomy ? 2 * half : half, asym_reach = roomy ? 1 : levels;
  VF scale = {}, zero = {};
  if constexpr (F::MODE == SYMMETRIC) {
    scale = largest / (float)(half - 1);
    affine_codes<F, false, F::LANES>(x, scale, zero, 1 - half, half - 1, half - 1, half, codes);
  }
  if constexpr (F::MODE == PAPER_HYBRID) {
    scale = largest / (float)(half - 1);
    affine_codes<F, false, F::LANES>(x, scale, zero, 1 - half, half - 1, roomy ? half : 2 * half, half, codes);
  }
  if constexpr (F::MODE == SIGNED || F::MODE == HYBRID) {
    scale = (high > -low ? -high : -low) / (float)half;
    affine_codes<F, false, F::LANES>(x, scale, zero, -half, half - 1, sym_reach, half, codes);
  }
  if constexpr (F::MODE == ASYMMETRIC || F::MODE == ANCHORED) {
    scale = high / (float)levels - low / (float)levels;
    zero = low;
    if constexpr (F::MODE == ANCHORED) {
      const VF held = stored_scale<F>(scale, asym_reach);
      const VI empty = ~(VI)(magnitude(held) >= 1.17549435e-38f);
      const VF past = past_code<F>(load(anchor), low, 1.f / (empty ? splat(1.f) : held));
      zero = exact_fma(empty ? splat(0.f) : past, held, low);
      const VF most = LIMIT<S> - held * (float)levels;  // the largest code decodes to a finite number, too
      zero = zero > most ? most : zero;
    }
    zero = round_to<S>(clamp(zero, -LIMIT<S>, LIMIT<S>));
    affine_codes<F, true, F::LANES>(x, scale, zero, 0, levels, asym_reach, 0, codes);
  }
  if constexpr (F::MODE == HYBRID || F::MODE == PAPER_HYBRID) {
    constexpr bool paper = F::MODE == PAPER_HYBRID;
    constexpr int top = paper ? half - 1 : levels;
    zero = round_to<S>(scale * (float)-half);
    VF other_zero = round_to<S>(clamp(low, -LIMIT<S>, LIMIT<S>));
    VF other_scale = paper ? (high - low) / (float)top : high / (float)top - low / (float)top;
    int32_t other[F::GS * VL];
    affine_codes<F, true, VL>(x, other_scale, other_zero, 0, top, roomy ? 1 : top, 0, other);
    const VF error = group_error<F, F::LANES>(x, codes, scale, zero);
    const VF other_error = group_error<F, VL>(x, other, other_scale, other_zero);
    // as published, a tie is asymmetric
    const VI take = paper ? ~(VI)(other_error <= error) : (VI)(error <= other_error);
    keep_better<F>(take, codes, other);
    scale = take ? scale : other_scale;
    zero = take ? zero : other_zero;
  }
  store_as<S>(params, scale);
  if constexpr (F::HAS_ZERO) store_as<S>(params + groups, zero);
}

// The first row whose norm is clearly as small as the least, of rows [LANES]. A norm of NaN is infinite.
template <class F> INLINE int least_row(const float* rows) {
  float norms[F::GS], least = INF;
  for (int e = 0; e < F::GS; ++e) {
    VF total = {};
    for (int lane = 0; lane < F::LANES; lane += VL) {
      const VF v = load(rows + e * F::LANES + lane);
      total = total + v * v;
    }
    float sum = 0;
    for (int i = 0; i < VL; ++i) sum += total[i];
    norms[e] = sum != sum ? INF : sum;
    if (norms[e] < least) least = norms[e];
  }
  int row = 0;
  while (norms[row] > least * CLEARLY) ++row;
  return row;
}

// tile [ROWS][LANES] -> words and params. `codes` is room for ROWS * LANES, `query` is of Cache::queries.
template <class F>
void encode(const float* tile, const int8_t* query, int32_t* codes, int32_t* words, typename F::S* params) {
  for (int g = 0; g < F::ROWS / F::GS; ++g) {
    const int least = F::MODE == ANCHORED ? least_row<F>(tile + g * F::GS * F::LANES) : 0;
    for (int lane = 0; lane < F::LANES; lane += VL) {
      const float* x = tile + g * F::GS * F::LANES + lane;
      int32_t* out = codes + g * F::GS * F::LANES + lane;
      // extremes, NaN where the group has one
      VF low = splat(INF), high = splat(-INF), largest = splat(-INF);
      for (int e = 0; e < F::GS; ++e) {
        const VF v = clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>), a = magnitude(v);
        const VI nan = (VI)(v != v);
        low = (VI)(v < low) | nan ? v : low;
        high = (VI)(v > high) | nan ? v : high;
        largest = (VI)(a > largest) | nan ? a : largest;
      }
      if constexpr (std::is_same_v<typename F::S, pair8>)
        encode_pairs<F>(x, x + least * F::LANES, query + g * F::GS, low, high, out, params + g * F::LANES + lane);
      else
        encode_scales<F>(x, x + least * F::LANES, low, high, largest, out, params + g * F::LANES + lane,
                         F::ROWS / F::GS * F::LANES);
    }
  }
  pack<F>(codes, words);
}

// Row `i` of the tokens of a block, as it lies in a tile.
template <class F> INLINE void put_token(float* tile, int i, const typename F::T* row) {
  if constexpr (F::KEY) {
    for (int c = 0; c < F::D; ++c) tile[c * F::LANES + i] = to_f32(row[c]);
  } else {
    for (int c = 0; c < F::D; c += VL) store(tile + i * F::LANES + c, load(row + c));
  }
}

template <class F> constexpr int64_t encode_bytes() { return 2 * aligned(4 * (int64_t)F::ROWS * F::LANES); }

template <class F> INLINE void write_block(const Cache& cache, int64_t i, int64_t block, char* memory) {
  float* tile = (float*)memory;
  encode<F>(tile, cache.queries<F>(i), (int32_t*)(memory + encode_bytes<F>() / 2), cache.words<F>(i, block),
            cache.params<F>(i, block));
}

template <class T> INLINE void copy_row(T* to, const T* from, int64_t stride, int64_t count) {
  if (stride == 1) std::memcpy(to, from, count * sizeof(T));
  else for (int64_t c = 0; c < count; ++c) to[c] = from[c * stride];
}

// --- append_ ---------------------------------------------------------------------------------------------------

struct AppendSide {
  Cache cache;
  const void* rows;   // [B, H, N, D]
  int64_t stride[4];  // of rows, in elements
};
struct AppendArgs {
  int64_t batch, heads, count, threads;
  AppendSide side[2];
};

// Returns false if a block has no room; nothing of that head is quantized then.
template <class F> bool append_head(const AppendArgs& a, const AppendSide& s, int64_t b, int64_t h) {
  using T = typename F::T;
  const Cache& cache = s.cache;
  const int64_t i = b * a.heads + h, ring = cache.ring<F>();
  int32_t* state = cache.state + i * 4;
  T* window = cache.rows<F>(i);
  const T* rows = (const T*)s.rows + b * s.stride[0] + h * s.stride[1];
  for (int64_t n = 0; n < a.count; ++n) {
    const int64_t length = state[1];
    const int64_t slot = length < cache.sink ? length : cache.sink + (length - cache.sink) % ring;
    copy_row(window + slot * F::D, rows + n * s.stride[2], s.stride[3], F::D);
    const int64_t before = cache.blocks<F>(i);
    state[1] = (int32_t)(length + 1);
    if (state[2] < state[1]) state[2] = state[1];
    if (cache.blocks<F>(i) == before) continue;
    if (before >= cache.capacity) return false;
    char* memory = F::QUANTIZED ? scratch(encode_bytes<F>()) : nullptr;
    for (int64_t j = 0; j < F::BLOCK; ++j) {
      const T* row = window + (cache.sink + (before * F::BLOCK + j) % ring) * F::D;
      if constexpr (F::QUANTIZED) put_token<F>((float*)memory, (int)j, row);
      else std::memcpy(cache.elements<F>(i, before) + j * F::D, row, F::D * sizeof(T));
    }
    if constexpr (F::QUANTIZED) write_block<F>(cache, i, before, memory);
  }
  return true;
}

template <class F> int append_side(const AppendArgs& a, const AppendSide& s) {
  const int64_t total = a.batch * a.heads;
  // one token is a copy of a row, and a block once in a while: not worth waking threads up
  const int threads = total > 1 && a.count * total * F::D > 32768 ? (int)a.threads : 1;
  int failed = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) reduction(| : failed)
  for (int64_t i = 0; i < total; ++i) failed |= !append_head<F>(a, s, i / a.heads, i % a.heads);
  return failed;
}

template <class K, class V> int append_pair(const AppendArgs* a) {
  return append_side<K>(*a, a->side[0]) | append_side<V>(*a, a->side[1]);
}

// --- prefill ---------------------------------------------------------------------------------------------------

struct PrefillArgs {
  int64_t batch, heads, tokens, threads;
  Cache cache;  // codes, scales and window are zero, state is not filled yet
  const void* rows;  // [B, H, tokens, D]
  int64_t stride[4];
  const int32_t* start;  // [B]
  const float* mean;     // [B, H, D] or null
  const float* norm;
};

// Token `token` of a sequence as the cache holds it: (x - mean) * (1 / norm), rounded to T.
template <class F> INLINE void prefill_row(const PrefillArgs& a, int64_t i, int64_t token, typename F::T* to) {
  using T = typename F::T;
  const int64_t b = i / a.heads, h = i % a.heads;
  copy_row(to, (const T*)a.rows + b * a.stride[0] + h * a.stride[1] + (token + a.start[b]) * a.stride[2],
           a.stride[3], F::D);
  if (!a.mean && !a.norm) return;
  for (int c = 0; c < F::D; c += VL) {
    VF v = load(to + c);
    if (a.mean) v = v - load(a.mean + i * F::D + c);
    if (a.norm) v = v * (1.f / load(a.norm + i * F::D + c));
    store_as<T>(to + c, v);
  }
}

template <class F> int prefill(const PrefillArgs* args) {
  using T = typename F::T;
  const PrefillArgs& a = *args;
  const Cache& cache = a.cache;
  const int64_t total = a.batch * a.heads, ring = cache.ring<F>();
  int64_t most = 0;
  for (int64_t i = 0; i < total; ++i) {
    int32_t* state = cache.state + i * 4;
    const int64_t length = a.tokens > a.start[i / a.heads] ? a.tokens - a.start[i / a.heads] : 0;
    state[0] = a.start[i / a.heads];
    state[1] = state[2] = (int32_t)length;
    state[3] = 0;
    if (cache.blocks<F>(i) > most) most = cache.blocks<F>(i);
  }
  if (most > cache.capacity) return 1;
  // one item a block, and one a head for its windows
#pragma omp parallel for num_threads((int)a.threads) if (total * a.tokens * F::D > 32768)
  for (int64_t item = 0; item < total * (most + 1); ++item) {
    const int64_t i = item / (most + 1), block = item % (most + 1), blocks = cache.blocks<F>(i);
    const int64_t length = cache.state[i * 4 + 1];
    T row[F::D];
    if (block < blocks) {
      char* memory = F::QUANTIZED ? scratch(encode_bytes<F>()) : nullptr;
      for (int64_t j = 0; j < F::BLOCK; ++j) {
        prefill_row<F>(a, i, cache.sink + block * F::BLOCK + j, row);
        if constexpr (F::QUANTIZED) put_token<F>((float*)memory, (int)j, row);
        else std::memcpy(cache.elements<F>(i, block) + j * F::D, row, sizeof row);
      }
      if constexpr (F::QUANTIZED) write_block<F>(cache, i, block, memory);
    }
    if (block < most) continue;
    T* window = cache.rows<F>(i);
    for (int64_t t = 0; t < cache.sink && t < length; ++t) prefill_row<F>(a, i, t, window + t * F::D);
    for (int64_t t = cache.sink + blocks * F::BLOCK; t < length; ++t)
      prefill_row<F>(a, i, t, window + (cache.sink + (t - cache.sink) % ring) * F::D);
  }
  return 0;
}

}  // namespace
