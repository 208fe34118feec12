// The arguments of decode attention, and how masks apply to scores.

namespace {

struct DecodeArgs {
  const void* query;  // [B, H * G, N, D]
  void* out;          // [B, H * G, N, Dv], contiguous
  Cache key, value;
  const void* mask;           // [B, H * G, N, mask_length], any strides
  const float* sink_logits;   // [B, H * G, N] or null
  int64_t mask_kind;          // 0 none, 1 bool, 2 float32, 3 bfloat16, 4 float16
  int64_t mask_length, mask_stride[4];
  int64_t batch, heads, group, count, query_stride[4];
  int64_t causal, threads;
  int64_t dropped;  // added to the places of tokens in masks; those whose place is negative are not visible
  double scale, softcap;
  const void* value_query;  // [B, H * G, N, Dv] or null: its products with the values are added to the scores
  int64_t value_query_stride[4];
  int64_t value_first, value_heads;  // keys of head h meet values of head value_first + h % value_heads
  float* sums;                       // [B, H * G, N] or null: the logarithms of the sums of exponentials, a result

  int64_t values_of(int64_t i) const {  // the values that sequence-head i reads
    return i - i % heads + value_first + i % heads % value_heads;
  }
};

INLINE float mask_at(const DecodeArgs& a, int64_t offset) {  // what a mask element adds to a score
  switch (a.mask_kind) {
    case 1: return ((const uint8_t*)a.mask)[offset] ? 0.f : -INF;
    case 2: return ((const float*)a.mask)[offset];
    case 3: return to_f32(((const bf16*)a.mask)[offset]);
    default: return to_f32(((const f16*)a.mask)[offset]);
  }
}
INLINE VF mask_vector(const DecodeArgs& a, int64_t offset) {
  switch (a.mask_kind) {
    case 1: {
      const VI seen = __builtin_convertvector(load_as<VB>((const int8_t*)a.mask + offset), VI);
      return seen != 0 ? splat(0.f) : splat(-INF);
    }
    case 2: return load((const float*)a.mask + offset);
    case 3: return load((const bf16*)a.mask + offset);
    default: return load((const f16*)a.mask + offset);
  }
}

// Soft-cap and mask the scores of one row and chunk. Returns their maximum, without NaN. Pads to whole vectors.
inline float mask_scores(const DecodeArgs& a, float* s, int64_t n, int64_t seen, int64_t mask_row, int64_t position) {
  VF most = splat(-INF);
  VI lane;
  UNROLL for (int i = 0; i < VL; ++i) lane[i] = i;
  const float cap = (float)a.softcap;
  for (int64_t i = 0; i < n; i += VL) {
    VF v = load(s + i);
    if (cap != 0) v = tanh(v / cap) * cap;
    if (a.mask_kind) {
      VF m;
      if (a.mask_stride[3] == 1 && position + i + VL <= a.mask_length) {
        m = mask_vector(a, mask_row + position + i);
      } else {
        float lanes[VL];
        for (int j = 0; j < VL; ++j) {
          const int64_t at = position + i + j < a.mask_length ? position + i + j : a.mask_length - 1;
          lanes[j] = mask_at(a, mask_row + at * a.mask_stride[3]);
        }
        m = load(lanes);
      }
      v = m == -INF ? m : v + m;  // the score of a hidden token may be NaN
    }
    if (i + VL > seen) v = lane < (int32_t)(seen - i > 0 ? seen - i : 0) ? v : splat(-INF);
    store(s + i, v);
    most = v > most ? v : most;
  }
  return largest(most);
}

}  // namespace
