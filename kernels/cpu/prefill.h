// prefill: make a cache side from a whole prompt, with the results of kernels/reference/caches.py.

namespace {

struct PrefillArgs {
  int64_t batch, heads, tokens, threads;
  Cache cache;  // codes, scales and window are zeros; state is uninitialized
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
    int32_t* state = cache.state + i * STATE_SIZE;
    const int64_t length = a.tokens > a.start[i / a.heads] ? a.tokens - a.start[i / a.heads] : 0;
    for (int field = 0; field < STATE_SIZE; ++field) state[field] = 0;
    state[START] = a.start[i / a.heads];
    state[LENGTH] = (int32_t)length;
    state[PEAK] = F::ROLLS ? 0 : (int32_t)length;
    if (cache.blocks<F>(i) > most) most = cache.blocks<F>(i);
  }
  if (most > cache.capacity) return 1;
  // one item per block, and one per head for its windows
#pragma omp parallel for num_threads((int)a.threads) if (total * a.tokens * F::D > 32768)
  for (int64_t item = 0; item < total * (most + 1); ++item) {
    const int64_t i = item / (most + 1), block = item % (most + 1), blocks = cache.blocks<F>(i);
    const int64_t length = cache.state[i * STATE_SIZE + LENGTH];
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
    int64_t recent = cache.sink + blocks * F::BLOCK;
    if (F::ROLLS && recent < length - ring) recent = length - ring;  // those before have no place
    for (int64_t t = recent; t < length; ++t)
      prefill_row<F>(a, i, t, window + (cache.sink + (t - cache.sink) % ring) * F::D);
  }
  return 0;
}

}  // namespace
