// Quantizes a block, with the results of kernels/reference/groups.py, bit for bit.
//
// A block is a tile [ROWS][LANES]. Attention contracts its rows: rows are channels and lanes are tokens for keys, the
// other way round for values. A group is GS rows of one lane, for both.

namespace {

// The first of GS rows whose norm is within the factor CLEARLY of the least. A norm of NaN counts as infinite.
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

// tile [ROWS][LANES] -> words and params. `codes` is room for ROWS * LANES, `profile` is of Cache::profile.
template <class F>
void encode(const float* tile, const int8_t* profile, int32_t* codes, int32_t* words, typename F::S* params) {
  for (int g = 0; g < F::ROWS / F::GS; ++g) {
    const int least = F::USES_ANCHOR ? least_row<F>(tile + g * F::GS * F::LANES) : 0;
    for (int lane = 0; lane < F::LANES; lane += VL) {
      const float* x = tile + g * F::GS * F::LANES + lane;
      VF low = splat(INF), high = splat(-INF), largest = splat(-INF);
      for (int e = 0; e < F::GS; ++e) {
        const VF v = clamp(load(x + e * F::LANES), -LIMIT<float>, LIMIT<float>), a = magnitude(v);
        const VI nan = (VI)(v != v);
        low = (VI)(v < low) | nan ? v : low;
        high = (VI)(v > high) | nan ? v : high;
        largest = (VI)(a > largest) | nan ? a : largest;
      }
      F::Mode::template encode<F>({x, x + least * F::LANES, F::USES_QUERIES ? profile + g * F::GS : nullptr,
                                   low, high, largest, codes + g * F::GS * F::LANES + lane,
                                   params + g * F::LANES + lane, F::GROUPS});
    }
  }
  pack<F>(codes, words);
}

// Store token `i` of a block, with channels `row`, in a tile.
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
  encode<F>(tile, cache.profile<F>(i), (int32_t*)(memory + encode_bytes<F>() / 2), cache.words<F>(i, block),
            cache.params<F>(i, block));
}

}  // namespace
