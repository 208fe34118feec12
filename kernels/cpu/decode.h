// Attention of a few query rows to a quantized cache, in one pass over the tokens.
//
// The visible tokens of every KV head are cut into chunks of about CHUNK tokens; threads take equal, contiguous shares
// of all chunks of all heads. A chunk goes through three steps, each for R = G * n query rows of the KV head at once:
//   1. scores [R][n] from the keys: a block is unpacked to a tile [channel][token] in L1 and contracted with q; in
//      latent attention also from the values, with the other part of the query;
//   2. soft cap, masks, running maximum, exponentials in place (the scale is in q);
//   3. acc [R][Dv] from the values: a block is unpacked to a tile [token][channel] and contracted with the weights.
// Steps 1 and 3 are the same `contract` (contract.h).
// Only real tokens that the program has not dropped are visited; other slots and blocks are never read. Many query
// tokens take several passes of n tokens each, so that the memory for rows is bounded, whatever N and the context are,
// and stays in a core's cache.

namespace {

constexpr int64_t PASS_ROWS = 128;           // query rows of a KV head in one pass

// The tokens of a sequence that a call attends to, [first, length), and the chunks into which they are cut. Chunks of
// quantized keys begin at block boundaries, so that the first one may begin before the first visible token. If it
// includes sinks, it is longer by `extra`: the others, and the blocks in them, begin at multiples of CHUNK after these.
struct Span {
  int64_t shift;  // token t is at t + shift in the tensor that the program attends to, and in masks
  int64_t first, length, begin, extra;
  template <class K> static Span of(const DecodeArgs& a, int64_t i) {
    const int32_t* state = a.key.state + i / a.heads * a.heads * STATE_SIZE;
    const int64_t shift = state[START] - (int64_t)state[HIDDEN] + a.dropped, sink = a.key.sink;
    const int64_t first = shift < 0 ? -shift : 0;
    int64_t begin = first;
    if (K::QUANTIZED && first > sink && first < a.key.blocks_end<K>(i)) begin -= (first - sink) % K::BLOCK;
    return {shift, first, state[LENGTH], begin, begin < sink ? (sink - begin) % CHUNK : 0};
  }
  int64_t count() const {
    if (first >= length) return 0;
    const int64_t rest = length - begin - extra;
    return rest <= CHUNK ? 1 : (rest + CHUNK - 1) / CHUNK;
  }
  int64_t at(int64_t c) const {  // where chunk c begins and chunk c - 1 ends
    const int64_t t = c ? begin + extra + c * CHUNK : begin;
    return t < length ? t : length;
  }
};

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
  // scratch memory of this thread
  float *q, *q_sums, *p_sums, *scores, *part, *tile, *other, *scaled;
  int32_t* spare;

  static constexpr int64_t KG = K::QUANTIZED ? K::ROWS / K::GS : 1, VG = V::QUANTIZED ? V::ROWS / V::GS : 1;
  static constexpr int64_t TILE = (K::QUANTIZED ? K::ROWS * K::LANES : 0) > (V::QUANTIZED ? V::ROWS * V::LANES : 0)
                                      ? K::ROWS * K::LANES : V::QUANTIZED ? V::ROWS * V::LANES : VL;
  static constexpr int64_t WORDS = (K::WORDS > V::WORDS ? K::WORDS : V::WORDS) + VL;

  static int64_t bytes(int64_t R, bool value_query) {
    return aligned(R * K::D * 4) + aligned(R * KG * 4) + aligned(R * VG * 4) + aligned(R * SCORES * 4) +
           aligned(R * V::BLOCK * 4) + aligned(TILE * 4) + aligned(WORDS * 4) +
           (value_query ? aligned(R * V::D * 4) + aligned(ROW_TILE * V::D * 4) : 0);
  }
  void place(char* memory) {
    auto next = [&](int64_t floats) {
      float* p = (float*)memory;
      memory += aligned(floats * 4);
      return p;
    };
    q = next(R * K::D), q_sums = next(R * KG), p_sums = next(R * VG), scores = next(R * SCORES);
    part = next(R * V::BLOCK), tile = next(TILE), spare = (int32_t*)next(WORDS);
    other = scaled = nullptr;
    if (a.value_query) other = next(R * V::D), scaled = next(ROW_TILE * V::D);
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

  template <class T> void load_value_query(const T* query, int64_t i) {
    const int64_t b = i / a.heads, h = i % a.heads;
    for (int64_t r = 0; r < R; ++r) {
      const T* row = query + b * a.value_query_stride[0] + (h * a.group + pass.head(r)) * a.value_query_stride[1] +
                     pass.token(r) * a.value_query_stride[2];
      for (int c = 0; c < V::D; ++c) other[r * V::D + c] = to_f32(row[c * a.value_query_stride[3]]) * (float)a.scale;
    }
  }

  // Add the products of the other part of the query with the values of tokens [first, end) to scores from `begin` on.
  void add_value_scores(int64_t i, int64_t begin, int64_t first, int64_t end) {
    const int64_t v = a.values_of(i);
    walk<V>(
        a.value, v, first, end,
        [&](int64_t block, int64_t offset, int64_t t, int64_t count) {
          if constexpr (V::QUANTIZED) {
            V::unpack(readable<V>(a.value, a.batch * a.heads, v, block, spare), tile);
            row_tiles(R, [&](int64_t r, auto rows) {
              add_tile_scores<V, decltype(rows)::value>(tile, offset, count, other + r * V::D, scaled,
                                                        a.value.params<V>(v, block), scores + r * SCORES + t - begin);
            });
          }
        },
        [&](const typename V::T* rows, int64_t t, int64_t count) {
          row_tiles(R, [&](int64_t r, auto tile_rows) {
            dot_rows<V, decltype(tile_rows)::value, true>(rows, count, other + r * V::D,
                                                          scores + r * SCORES + t - begin);
          });
        });
  }

  // Tokens [begin, end) of sequence-head i into m, l, acc. What is in front of the first visible one gets scores that
  // nothing reads, and its values are not multiplied by zero, which NaN would survive.
  void chunk(int64_t i, int64_t begin, int64_t end, const Span& span, float* m, float* l, float* acc) {
    const int64_t b = i / a.heads, h = i % a.heads, total = a.batch * a.heads, v = a.values_of(i);
    const int64_t first = begin > span.first ? begin : span.first, n = end - first;
    walk<K>(
        a.key, i, begin, end,
        [&](int64_t block, int64_t, int64_t t, int64_t) {  // chunks begin and end at block boundaries of keys
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
    if (a.value_query) add_value_scores(i, begin, first, end);
    for (int64_t r = 0; r < R; ++r) {
      float* s = scores + r * SCORES + first - begin;
      const int64_t query = pass.token(r), last = a.causal ? span.length - a.count + 1 + query : span.length;
      const int64_t seen = last - first < n ? last - first : n;
      const int64_t mask_row =
          b * a.mask_stride[0] + (h * a.group + pass.head(r)) * a.mask_stride[1] + query * a.mask_stride[2];
      const float most = mask_scores(a, s, n, seen, mask_row, first + span.shift);
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
        a.value, v, first, end,
        [&](int64_t block, int64_t offset, int64_t t, int64_t count) {
          if constexpr (V::QUANTIZED) {
            const float* p = scores + t - begin;
            int64_t stride = SCORES;
            if (count < V::BLOCK) {  // the rest of the block is in another chunk
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
            V::unpack(readable<V>(a.value, total, v, block, spare), tile);
            row_tiles(R, [&](int64_t r, auto tile_rows) {
              contract_rows<V, decltype(tile_rows)::value>(tile, p + r * stride, stride, p_sums + r * VG, VG,
                                                           a.value.params<V>(v, block), acc + r * V::D, V::D, true);
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

// The partial results of all heads of a call. Slot i + t belongs to head i and thread t alone, since threads take
// contiguous shares in order.
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
    const int64_t row = (i * a.group + pass.head(r)) * a.count + pass.token(r);
    const float* logit = a.sink_logits ? a.sink_logits + row : nullptr;
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
    if (a.sums) a.sums[row] = total == 0 ? -INF : shift + std::log(total);
    const float inverse = total == 0 ? 0.f : 1 / total;
    T* out = (T*)a.out + row * V::D;
    for (int c = 0; c < V::D / VL; ++c) store_as<T>(out + c * VL, acc[c] * inverse);
  }
}

template <class K, class V, class T> int decode_pass(const DecodeArgs& a, const Pass& pass) {
  const int64_t heads = a.batch * a.heads, R = pass.R;
  int64_t chunks = 0, tokens = 0;
  for (int64_t i = 0; i < heads; ++i) {
    const Span span = Span::of<K>(a, i);
    if (!span.count()) continue;
    chunks += span.count();
    tokens += span.length - span.first;
  }
  // with less work than this per thread, starting the thread costs more than it saves
  const int64_t useful = tokens * (K::D + V::D) * (R + 4) / (1 << 18) + 1;
  int64_t threads = a.threads < useful ? a.threads : useful;
  threads = threads > chunks ? (chunks ? chunks : 1) : threads;
  const Partials sizes{nullptr, aligned(2 * R * 4) + aligned(R * V::D * 4), R, V::D};
  const int64_t own = Worker<K, V>::bytes(R, a.value_query);
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
    int64_t first = 0;  // index among all chunks of the first chunk of head i
    for (int64_t i = 0; i < heads && first < end; ++i) {
      const Span span = Span::of<K>(a, i);
      const int64_t count = span.count();
      const int64_t from = begin > first ? begin - first : 0, to = end - first < count ? end - first : count;
      first += count;
      if (from >= to) continue;
      float *m = partials.m(i + thread), *l = partials.l(i + thread), *acc = partials.acc(i + thread);
      for (int64_t r = 0; r < R; ++r) m[r] = -INF, l[r] = 0;
      std::memset(acc, 0, R * V::D * 4);
      worker.load_query((const T*)a.query, i);
      if (a.value_query) worker.load_value_query((const T*)a.value_query, i);
      for (int64_t c = from; c < to; ++c) worker.chunk(i, span.at(c), span.at(c + 1), span, m, l, acc);
    }
#pragma omp barrier
    first = 0;
    for (int64_t i = 0; i < heads; ++i) {
      const int64_t count = Span::of<K>(a, i).count();
      if (i % running == thread) {
        int64_t from = 0, to = -1;  // the threads that had chunks of head i
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
