// Attention of a few query rows to a quantized cache, in one pass over the tokens.
//
// The tokens of every KV head are cut into chunks of about CHUNK tokens; threads take equal, contiguous shares of all
// chunks of all heads. A chunk goes through three steps, each for R = G * n query rows of the KV head at once:
//   1. scores [R][n] from the keys: a block is unpacked to a tile [channel][token] in L1 and contracted with q;
//   2. soft cap, masks, running maximum, exponentials in place (the scale is in q);
//   3. acc [R][Dv] from the values: a block is unpacked to a tile [token][channel] and contracted with the weights.
// Steps 1 and 3 are the same `contract`: groups run along the contracted rows, so that a group's scale multiplies one
// partial sum a lane instead of every element (that is what inner grouping is for), and the offset of the codes or the
// zero point is a rank-one correction, (sum of coefficients of the group) * offset.
// Only real tokens are visited; slots and blocks behind the end are never read. Many query tokens take several passes of
// n tokens each, so that the memory for rows is bounded, whatever N and the context are, and stays in a core's cache.

namespace {

constexpr int CHUNK = 256;          // a multiple of every block
constexpr int SCORES = 2 * CHUNK;   // row stride of scores: the first chunk holds up to CHUNK - 1 sinks more
constexpr int ROW_TILE = VL >= 16 ? 4 : 2;   // query rows that share a register block
constexpr int LANE_TILE = 4;                 // vectors that share a register block
constexpr int64_t PASS_ROWS = 128;           // query rows of a KV head in one pass

struct DecodeArgs {
  const void* query;  // [B, H * G, N, D]
  void* out;          // [B, H * G, N, Dv], contiguous
  Cache key, value;
  const void* mask;           // [B, H * G, N, mask_length], any strides
  const float* sink_logits;   // [H * G] or null
  int64_t mask_kind;          // 0 none, 1 bool, 2 float32, 3 bfloat16, 4 float16
  int64_t mask_length, mask_stride[4];
  int64_t batch, heads, group, count, query_stride[4];
  int64_t causal, threads;
  double scale, softcap;
};

template <class F> INLINE void load_pairs(const pair8* words, VF& scale, VF& zero) {
  const VH bits = load_as<VH>(words);
  const VU wide = __builtin_convertvector(bits, VU);
  scale = from_half(bits & 0x7f80);
  const VF steps = bitcast<VF>(bitcast<VU>(to_float(wide & 0x7fu)) | ((wide & 0x8000u) << 16));
  zero = steps * ZERO_STEP<F> * scale;
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
          acc[p][r][l] = splat(p || F::HAS_ZERO ? 0.f : -(float)(1 << (F::BITS - 1)) * sums[r * sums_stride + g]);
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
      if constexpr (std::is_same_v<typename F::S, pair8>) {
        load_pairs<F>(params + g * F::LANES + l * VL, scale, zero);
      } else {
        scale = load(params + g * F::LANES + l * VL);
        if constexpr (F::HAS_ZERO) zero = load(params + groups * F::LANES + g * F::LANES + l * VL);
      }
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

// A function of its own, so that its loops are compiled once for keys and values alike in every caller.
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

// Words of a block that may be read VL words past their end.
template <class F> INLINE const int32_t* readable(const Cache& cache, int64_t heads, int64_t i, int64_t block,
                                                  int32_t* spare) {
  const int32_t* words = cache.words<F>(i, block);
  const int32_t* end = (const int32_t*)cache.codes + heads * cache.capacity * F::WORDS;
  if (end - words >= F::WORDS + VL) return words;
  std::memcpy(spare, words, F::WORDS * 4);
  return spare;
}

// scores[r][t] = q[r] . row[t] for tokens in full precision.
template <class F, int RT>
__attribute__((noinline)) void dot_rows(const typename F::T* row, int64_t count, const float* q, float* out) {
  for (int64_t t = 0; t < count; ++t, row += F::D) {
    VF acc[RT];
    UNROLL for (int r = 0; r < RT; ++r) acc[r] = VF{};
    for (int c = 0; c < F::D; c += VL) {
      const VF k = load(row + c);
      UNROLL for (int r = 0; r < RT; ++r) acc[r] = fma(k, load(q + r * F::D + c), acc[r]);
    }
    UNROLL for (int r = 0; r < RT; ++r) out[r * SCORES + t] = sum(acc[r]);
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

// Where tokens [t, end) of one side lie: calls whole(block) / part(block, offset, count) for the quantized region and
// rows(pointer, count) for runs of full precision.
template <class F, class Block, class Rows>
INLINE void walk(const Cache& cache, int64_t i, int64_t begin, int64_t end, Block block, Rows rows) {
  const int64_t ring = cache.ring<F>(), sink = cache.sink;
  const int64_t held = cache.blocks<F>(i);
  const int64_t q_end = sink + (held < cache.capacity ? held : cache.capacity) * F::BLOCK;
  for (int64_t t = begin; t < end;) {
    int64_t count;
    if (t < sink) {
      count = (end < sink ? end : sink) - t;
      rows(cache.rows<F>(i) + t * F::D, t, count);
    } else if (t < q_end) {
      if constexpr (F::QUANTIZED) {
        const int64_t offset = (t - sink) % F::BLOCK;
        count = F::BLOCK - offset < end - t ? F::BLOCK - offset : end - t;
        block((t - sink) / F::BLOCK, offset, t, count);
      } else {
        count = (end < q_end ? end : q_end) - t;
        rows(cache.elements<F>(i, 0) + (t - sink) * F::D, t, count);
      }
    } else {
      const int64_t slot = (t - sink) % ring;
      count = end - t < ring - slot ? end - t : ring - slot;
      rows(cache.rows<F>(i) + (sink + slot) * F::D, t, count);
    }
    t += count;
  }
}

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

// Scores of one row and chunk, soft-capped and masked, and their maximum (NaN left out). Pads to whole vectors.
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
      v = m == -INF ? m : v + m;  // what is hidden may be NaN
    }
    if (i + VL > seen) v = lane < (int32_t)(seen - i > 0 ? seen - i : 0) ? v : splat(-INF);
    store(s + i, v);
    most = v > most ? v : most;
  }
  return largest(most);
}

// The query tokens of one pass; row r of a KV head is query head head(r) of the group, and query token token(r).
struct Pass {
  int64_t first, count, R;
  Pass(const DecodeArgs& a, int64_t first, int64_t count) : first(first), count(count), R(a.group * count) {}
  int64_t head(int64_t r) const { return r / count; }
  int64_t token(int64_t r) const { return first + r % count; }
};

template <class K, class V> struct Worker {
  const DecodeArgs& a;
  const Pass& pass;
  const int64_t R = pass.R;
  // of this thread
  float *q, *q_sums, *p_sums, *scores, *part, *tile;
  int32_t* spare;

  static constexpr int64_t KG = K::QUANTIZED ? K::ROWS / K::GS : 1, VG = V::QUANTIZED ? V::ROWS / V::GS : 1;
  static constexpr int64_t TILE = (K::QUANTIZED ? K::ROWS * K::LANES : 0) > (V::QUANTIZED ? V::ROWS * V::LANES : 0)
                                      ? K::ROWS * K::LANES : V::QUANTIZED ? V::ROWS * V::LANES : VL;
  static constexpr int64_t WORDS = (K::WORDS > V::WORDS ? K::WORDS : V::WORDS) + VL;

  static int64_t bytes(int64_t R) {
    return aligned(R * K::D * 4) + aligned(R * KG * 4) + aligned(R * VG * 4) + aligned(R * SCORES * 4) +
           aligned(R * V::BLOCK * 4) + aligned(TILE * 4) + aligned(WORDS * 4);
  }
  void place(char* memory) {
    auto next = [&](int64_t floats) {
      float* p = (float*)memory;
      memory += aligned(floats * 4);
      return p;
    };
    q = next(R * K::D), q_sums = next(R * KG), p_sums = next(R * VG), scores = next(R * SCORES);
    part = next(R * V::BLOCK), tile = next(TILE), spare = (int32_t*)next(WORDS);
  }

  template <class T> void load_query(const T* query, int64_t i) {
    const int64_t b = i / a.heads, h = i % a.heads;
    const float scale = (float)a.scale;
    for (int64_t r = 0; r < R; ++r) {
      const T* row = query + b * a.query_stride[0] + (h * a.group + pass.head(r)) * a.query_stride[1] +
                     pass.token(r) * a.query_stride[2];
      for (int c = 0; c < K::D; ++c) q[r * K::D + c] = to_f32(row[c * a.query_stride[3]]) * scale;
      if constexpr (K::QUANTIZED)
        for (int g = 0; g < KG; ++g) {
          VF total = {};
          for (int c = g * K::GS; c < (g + 1) * K::GS; c += VL) total = total + load(q + r * K::D + c);
          q_sums[r * KG + g] = sum(total);
        }
    }
  }

  // Tokens [begin, end) of sequence-head i into m, l, acc.
  void chunk(int64_t i, int64_t begin, int64_t end, int64_t length, float* m, float* l, float* acc) {
    const int64_t n = end - begin, b = i / a.heads, h = i % a.heads, total = a.batch * a.heads;
    walk<K>(
        a.key, i, begin, end,
        [&](int64_t block, int64_t, int64_t t, int64_t) {  // chunks begin and end with blocks of keys
          if constexpr (K::QUANTIZED) {
            K::unpack(readable<K>(a.key, total, i, block, spare), tile);
            row_tiles(R, [&](int64_t r, auto count) {
              contract_rows<K, decltype(count)::value>(tile, q + r * K::D, K::D, q_sums + r * KG, KG,
                                                       a.key.params<K>(i, block), scores + r * SCORES + t - begin,
                                                       SCORES, false);
            });
          }
        },
        [&](const typename K::T* rows, int64_t t, int64_t count) {
          row_tiles(R, [&](int64_t r, auto tile_rows) {
            dot_rows<K, decltype(tile_rows)::value>(rows, count, q + r * K::D, scores + r * SCORES + t - begin);
          });
        });
    for (int64_t r = 0; r < R; ++r) {
      float* s = scores + r * SCORES;
      const int64_t query = pass.token(r), last = a.causal ? length - a.count + 1 + query : length;
      const int64_t seen = last - begin < n ? last - begin : n;
      const int64_t mask_row =
          b * a.mask_stride[0] + (h * a.group + pass.head(r)) * a.mask_stride[1] + query * a.mask_stride[2];
      const float most = mask_scores(a, s, n, seen, mask_row, begin + a.key.state[b * a.heads * 4]);
      if (most > m[r]) {
        if (m[r] > -INF) {
          const float factor = exp_negative(m[r] - most);
          l[r] *= factor;
          for (int c = 0; c < V::D; c += VL) store(acc + r * V::D + c, load(acc + r * V::D + c) * factor);
        }
        m[r] = most;
      }
      const float shift = m[r] == -INF ? 0.f : m[r];  // nothing seen yet: -inf - 0, not -inf - -inf
      VF weights = {};
      for (int64_t t = 0; t < n; t += VL) {
        const VF w = exp_negative(load(s + t) - shift);
        weights = weights + w;
        store(s + t, w);
      }
      l[r] += sum(weights);
    }
    walk<V>(
        a.value, i, begin, end,
        [&](int64_t block, int64_t offset, int64_t t, int64_t count) {
          if constexpr (V::QUANTIZED) {
            const float* p = scores + t - begin;
            int64_t stride = SCORES;
            if (count < V::BLOCK) {  // the rest of the block belongs to another chunk
              std::memset(part, 0, R * V::BLOCK * 4);
              for (int64_t r = 0; r < R; ++r)
                std::memcpy(part + r * V::BLOCK + offset, p + r * SCORES, count * 4);
              p = part, stride = V::BLOCK;
            }
            for (int64_t r = 0; r < R; ++r)
              for (int g = 0; g < VG; ++g) {
                VF sums = {};
                for (int e = 0; e < V::GS; e += VL) sums = sums + load(p + r * stride + g * V::GS + e);
                p_sums[r * VG + g] = sum(sums);
              }
            V::unpack(readable<V>(a.value, total, i, block, spare), tile);
            row_tiles(R, [&](int64_t r, auto tile_rows) {
              contract_rows<V, decltype(tile_rows)::value>(tile, p + r * stride, stride, p_sums + r * VG, VG,
                                                           a.value.params<V>(i, block), acc + r * V::D, V::D, true);
            });
          }
        },
        [&](const typename V::T* rows, int64_t t, int64_t count) {
          row_tiles(R, [&](int64_t r, auto tile_rows) {
            add_rows<V, decltype(tile_rows)::value>(rows, count, scores + r * SCORES + t - begin, acc + r * V::D);
          });
        });
  }
};

// Chunk c of a sequence is [chunk_begin(c), chunk_begin(c + 1)), cut off at its length. The first one takes the sinks
// in, so that the others, and the blocks of keys in them, begin at multiples of CHUNK behind the sinks.
INLINE int64_t chunk_begin(int64_t c, int64_t sink) { return c ? sink % CHUNK + c * CHUNK : 0; }
INLINE int64_t chunk_count(int64_t length, int64_t sink) {
  if (length <= 0) return 0;
  const int64_t rest = length - sink % CHUNK;
  return rest <= CHUNK ? 1 : (rest + CHUNK - 1) / CHUNK;
}

// The partial results of all heads of a call: head i and thread t share slot i + t, which no other pair does, since
// threads take contiguous shares in order.
struct Partials {
  char* memory;
  int64_t slot_bytes, R, D;
  float* m(int64_t slot) const { return (float*)(memory + slot * slot_bytes); }
  float* l(int64_t slot) const { return m(slot) + R; }
  float* acc(int64_t slot) const { return (float*)(memory + slot * slot_bytes + aligned(2 * R * 4)); }
};

template <class V, class T>
void merge(const DecodeArgs& a, const Pass& pass, const Partials& partials, int64_t i, int64_t first, int64_t last) {
  const int64_t R = partials.R;
  for (int64_t r = 0; r < R; ++r) {
    const float* logit = a.sink_logits ? a.sink_logits + i % a.heads * a.group + pass.head(r) : nullptr;
    float most = logit ? *logit : -INF;
    for (int64_t s = first; s <= last; ++s) most = partials.m(s)[r] > most ? partials.m(s)[r] : most;
    const float shift = most == -INF ? 0.f : most;
    float total = logit ? exp_negative(*logit - shift) : 0.f;
    VF acc[V::D / VL];
    for (int c = 0; c < V::D / VL; ++c) acc[c] = VF{};
    for (int64_t s = first; s <= last; ++s) {
      const float factor = exp_negative(partials.m(s)[r] - shift);
      total += factor * partials.l(s)[r];
      for (int c = 0; c < V::D / VL; ++c)
        acc[c] = fma(load(partials.acc(s) + r * V::D + c * VL), splat(factor), acc[c]);
    }
    const float inverse = total == 0 ? 0.f : 1 / total;
    T* out = (T*)a.out + ((i * a.group + pass.head(r)) * a.count + pass.token(r)) * V::D;
    for (int c = 0; c < V::D / VL; ++c) store_as<T>(out + c * VL, acc[c] * inverse);
  }
}

template <class K, class V, class T> int decode_pass(const DecodeArgs& a, const Pass& pass) {
  const int64_t heads = a.batch * a.heads, R = pass.R;
  int64_t chunks = 0, tokens = 0;
  auto length = [&](int64_t i) { return (int64_t)a.key.state[i / a.heads * a.heads * 4 + 1]; };
  for (int64_t i = 0; i < heads; ++i) {
    chunks += chunk_count(length(i), a.key.sink);
    tokens += length(i);
  }
  // below this much work a thread costs more than it does
  const int64_t useful = tokens * (K::D + V::D) * (R + 4) / (1 << 18) + 1;
  int64_t threads = a.threads < useful ? a.threads : useful;
  threads = threads > chunks ? (chunks ? chunks : 1) : threads;
  const Partials sizes{nullptr, aligned(2 * R * 4) + aligned(R * V::D * 4), R, V::D};
  const int64_t own = Worker<K, V>::bytes(R);
  char* memory = scratch(own * threads + sizes.slot_bytes * (heads + threads));
  if (!memory) return 1;
  const Partials partials{memory + own * threads, sizes.slot_bytes, R, V::D};
#pragma omp parallel num_threads((int)threads) if (threads > 1)
  {
    const int64_t thread = omp_get_thread_num(), running = omp_get_num_threads();
    auto share = [&](int64_t t) { return chunks * t / running; };
    const int64_t begin = share(thread), end = share(thread + 1);
    Worker<K, V> worker{a, pass};
    worker.place(memory + own * thread);
    int64_t first = 0;  // chunk of all chunks at which head i begins
    for (int64_t i = 0; i < heads && first < end; ++i) {
      const int64_t count = chunk_count(length(i), a.key.sink);
      const int64_t from = begin > first ? begin - first : 0, to = end - first < count ? end - first : count;
      first += count;
      if (from >= to) continue;
      float *m = partials.m(i + thread), *l = partials.l(i + thread), *acc = partials.acc(i + thread);
      for (int64_t r = 0; r < R; ++r) m[r] = -INF, l[r] = 0;
      std::memset(acc, 0, R * V::D * 4);
      worker.load_query((const T*)a.query, i);
      for (int64_t c = from; c < to; ++c) {
        const int64_t t = chunk_begin(c, a.key.sink), next = chunk_begin(c + 1, a.key.sink);
        worker.chunk(i, t, next < length(i) ? next : length(i), length(i), m, l, acc);
      }
    }
#pragma omp barrier
    first = 0;
    for (int64_t i = 0; i < heads; ++i) {
      const int64_t count = chunk_count(length(i), a.key.sink);
      if (i % running == thread) {
        int64_t from = 0, to = -1;  // threads that had a part of head i
        if (count) {
          while (share(from + 1) <= first) ++from;
          to = from;
          while (share(to + 1) < first + count) ++to;
        }
        merge<V, T>(a, pass, partials, i, i + from, i + to);
      }
      first += count;
    }
  }
  return 0;
}

template <class K, class V, class T> int decode(const DecodeArgs* args) {
  const DecodeArgs& a = *args;
  const int64_t step = PASS_ROWS > a.group ? PASS_ROWS / a.group : 1;
  int failed = 0;
  for (int64_t first = 0; first < a.count && !failed; first += step)
    failed = decode_pass<K, V, T>(a, Pass(a, first, a.count - first < step ? a.count - first : step));
  return failed;
}

}  // namespace
