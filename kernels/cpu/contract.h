// Products of a few query rows with the tokens of one side of a cache, quantized or not.
//
// Groups run along the contracted rows, so that a group's scale multiplies one partial sum per lane instead of every
// element (this is the purpose of inner grouping), and the offset of codes or the zero point is a rank-one correction,
// (sum of the group's coefficients) * offset.

namespace {

constexpr int CHUNK = 256;          // a multiple of every block
constexpr int SCORES = 2 * CHUNK;   // row stride of scores: the first chunk holds up to CHUNK - 1 sinks more
constexpr int ROW_TILE = VL >= 16 ? 4 : 2;   // query rows that share a register block
constexpr int LANE_TILE = 4;                 // vectors that share a register block

template <class F> INLINE void load_pairs(const pair8* words, VF& scale, VF& zero) {
  const VH bits = load_as<VH>(words);
  const VU wide = __builtin_convertvector(bits, VU);
  scale = from_half(bits & (uint16_t)PAIR_SCALE);
  const VF steps = bitcast<VF>(bitcast<VU>(to_float(wide & (uint32_t)PAIR_STEPS)) | ((wide & (uint32_t)PAIR_SIGN) << 16));
  zero = steps * F::ZERO_STEP * scale;
}

// Scale and zero point of the groups whose first word is `at` of a block's parameters.
template <class F> INLINE void load_scales(const typename F::S* params, int64_t at, VF& scale, VF& zero) {
  if constexpr (std::is_same_v<typename F::S, pair8>) {
    load_pairs<F>(params + at, scale, zero);
  } else {
    scale = load(params + at);
    if constexpr (F::HAS_ZERO) zero = load(params + F::GROUPS + at);
  }
}

// out[r][lane] (+)= sum over rows of coef[r][row] * element[row][lane], RT query rows and LV vectors at once.
template <class F, int RT, int LV>
INLINE void contract(const float* tile, const float* coef, int64_t coef_stride, const float* sums, int64_t sums_stride,
                     const typename F::S* params, float* out, int64_t out_stride, bool accumulate) {
  constexpr int parts = RT * LV >= 8 ? 1 : RT * LV >= 4 ? 2 : 4;  // enough independent sums to hide latency
  constexpr int groups = F::ROWS / F::GS;
  for (int g = 0; g < groups; ++g) {
    VF acc[parts][RT][LV];
    UNROLL for (int p = 0; p < parts; ++p)
      UNROLL for (int r = 0; r < RT; ++r)
        UNROLL for (int l = 0; l < LV; ++l)
          acc[p][r][l] = splat(p || F::HAS_ZERO ? 0.f : -(float)F::OFFSET * sums[r * sums_stride + g]);
    const float* x = tile + g * F::GS * F::LANES;
    const float* c = coef + g * F::GS;
    for (int e = 0; e < F::GS; e += parts)
      UNROLL for (int p = 0; p < parts; ++p) {
        VF v[LV];
        UNROLL for (int l = 0; l < LV; ++l) v[l] = held(load(x + (e + p) * F::LANES + l * VL));
        UNROLL for (int r = 0; r < RT; ++r) {
          const VF k = splat(c[r * coef_stride + e + p]);
          UNROLL for (int l = 0; l < LV; ++l) acc[p][r][l] = fma(k, v[l], acc[p][r][l]);
        }
      }
    UNROLL for (int l = 0; l < LV; ++l) {
      VF scale, zero = {};
      load_scales<F>(params, g * F::LANES + l * VL, scale, zero);
      UNROLL for (int r = 0; r < RT; ++r) {
        float* o = out + r * out_stride + l * VL;
        VF total = acc[0][r][l];
        UNROLL for (int p = 1; p < parts; ++p) total = total + acc[p][r][l];
        VF sum = g || accumulate ? load(o) : VF{};
        if constexpr (F::HAS_ZERO) sum = fma(zero, splat(sums[r * sums_stride + g]), sum);
        store(o, fma(scale, total, sum));
      }
    }
  }
}

// Call f(first row, constant number of rows) for all R rows.
template <class Fn> INLINE void row_tiles(int64_t rows, Fn f) {
  int64_t r = 0;
  for (; r + ROW_TILE <= rows; r += ROW_TILE) f(r, std::integral_constant<int, ROW_TILE>());
  if constexpr (ROW_TILE > 3)
    if (rows - r == 3) f(r, std::integral_constant<int, 3>());
  if constexpr (ROW_TILE > 2)
    if (rows - r == 2) f(r, std::integral_constant<int, 2>());
  if (rows - r == 1) f(r, std::integral_constant<int, 1>());
}

// Not inlined, so that its loops are compiled once per side, and not in each caller.
template <class F, int RT>
__attribute__((noinline)) void contract_rows(const float* tile, const float* coef, int64_t coef_stride,
                                             const float* sums, int64_t sums_stride, const typename F::S* params,
                                             float* out, int64_t out_stride, bool accumulate) {
  constexpr int vectors = F::LANES / VL, full = vectors / LANE_TILE, rest = vectors % LANE_TILE;
  for (int i = 0; i < full; ++i)
    contract<F, RT, LANE_TILE>(tile + i * LANE_TILE * VL, coef, coef_stride, sums, sums_stride,
                               params + i * LANE_TILE * VL, out + i * LANE_TILE * VL, out_stride, accumulate);
  if constexpr (rest > 0) {
    constexpr int at = full * LANE_TILE * VL;
    contract<F, RT, rest>(tile + at, coef, coef_stride, sums, sums_stride, params + at, out + at, out_stride,
                          accumulate);
  }
}

// out[r][t] (+)= q[r] . row[t] for tokens in full precision.
template <class F, int RT, bool ADD = false>
__attribute__((noinline)) void dot_rows(const typename F::T* row, int64_t count, const float* q, float* out) {
  for (int64_t t = 0; t < count; ++t, row += F::D) {
    VF acc[RT];
    UNROLL for (int r = 0; r < RT; ++r) acc[r] = VF{};
    for (int c = 0; c < F::D; c += VL) {
      const VF k = load(row + c);
      UNROLL for (int r = 0; r < RT; ++r) acc[r] = fma(k, load(q + r * F::D + c), acc[r]);
    }
    UNROLL for (int r = 0; r < RT; ++r) out[r * SCORES + t] = sum(acc[r]) + (ADD ? out[r * SCORES + t] : 0.f);
  }
}

// out[r][e] += q[r] . element[offset + e] for `count` tokens of a block of values, unpacked to a tile [token][channel].
// Groups run along tokens, so that their scales are put on the query, once a group. `scaled` has room for RT rows.
template <class F, int RT>
__attribute__((noinline)) void add_tile_scores(const float* tile, int64_t offset, int64_t count, const float* q,
                                               float* scaled, const typename F::S* params, float* out) {
  for (int64_t e = offset, end; e < offset + count; e = end) {
    const int64_t g = e / F::GS;
    end = (g + 1) * F::GS < offset + count ? (g + 1) * F::GS : offset + count;
    float constant[RT];
    UNROLL for (int r = 0; r < RT; ++r) {
      VF total = {};
      for (int c = 0; c < F::D; c += VL) {
        VF scale, zero = {};
        load_scales<F>(params, g * F::LANES + c, scale, zero);
        const VF x = load(q + r * F::D + c);
        store(scaled + r * F::D + c, x * scale);
        total = F::HAS_ZERO ? fma(x, zero, total) : fma(x, scale * -(float)F::OFFSET, total);
      }
      constant[r] = sum(total);
    }
    for (int64_t t = e; t < end; ++t) {
      VF acc[RT];
      UNROLL for (int r = 0; r < RT; ++r) acc[r] = VF{};
      for (int c = 0; c < F::D; c += VL) {
        const VF v = load(tile + t * F::LANES + c);
        UNROLL for (int r = 0; r < RT; ++r) acc[r] = fma(v, load(scaled + r * F::D + c), acc[r]);
      }
      UNROLL for (int r = 0; r < RT; ++r) out[r * SCORES + t - offset] += constant[r] + sum(acc[r]);
    }
  }
}

// acc[r] += sum over tokens of p[r][t] * row[t] for tokens in full precision.
template <class F, int RT, int LV>
INLINE void add_lanes(const typename F::T* row, int64_t count, const float* p, float* acc) {
  VF sums[RT][LV];
  UNROLL for (int r = 0; r < RT; ++r)
    UNROLL for (int l = 0; l < LV; ++l) sums[r][l] = load(acc + r * F::D + l * VL);
  for (int64_t t = 0; t < count; ++t, row += F::D) {
    VF v[LV];
    UNROLL for (int l = 0; l < LV; ++l) v[l] = load(row + l * VL);
    UNROLL for (int r = 0; r < RT; ++r) {
      const VF k = splat(p[r * SCORES + t]);
      UNROLL for (int l = 0; l < LV; ++l) sums[r][l] = fma(k, v[l], sums[r][l]);
    }
  }
  UNROLL for (int r = 0; r < RT; ++r)
    UNROLL for (int l = 0; l < LV; ++l) store(acc + r * F::D + l * VL, sums[r][l]);
}
template <class F, int RT>
__attribute__((noinline)) void add_rows(const typename F::T* row, int64_t count, const float* p, float* acc) {
  constexpr int vectors = F::D / VL, full = vectors / LANE_TILE, rest = vectors % LANE_TILE;
  for (int i = 0; i < full; ++i)
    add_lanes<F, RT, LANE_TILE>(row + i * LANE_TILE * VL, count, p, acc + i * LANE_TILE * VL);
  if constexpr (rest > 0) {
    constexpr int at = full * LANE_TILE * VL;
    add_lanes<F, RT, rest>(row + at, count, p, acc + at);
  }
}

}  // namespace
