// append_: append new tokens to a cache, with the results of kernels/reference/caches.py.

namespace {

template <class T> INLINE void copy_row(T* to, const T* from, int64_t stride, int64_t count) {
  if (stride == 1) std::memcpy(to, from, count * sizeof(T));
  else for (int64_t c = 0; c < count; ++c) to[c] = from[c * stride];
}

struct AppendSide {
  Cache cache;
  const void* rows;   // [B, H, N, D]
  int64_t stride[4];  // of rows, in elements
};
struct AppendArgs {
  int64_t batch, heads, count, threads;
  int64_t drop;  // how many more tokens at the front are hidden from now on
  AppendSide side[2];
};

// Returns false if the cache has no room for a block; nothing more of that head is appended then.
template <class F> bool append_head(const AppendArgs& a, const AppendSide& s, int64_t b, int64_t h) {
  using T = typename F::T;
  const Cache& cache = s.cache;
  const int64_t i = b * a.heads + h, ring = cache.ring<F>();
  int32_t* state = cache.state + i * STATE_SIZE;
  T* window = cache.rows<F>(i);
  const T* rows = (const T*)s.rows + b * s.stride[0] + h * s.stride[1];
  for (int64_t n = 0; n < a.count; ++n) {
    const int64_t length = state[LENGTH];
    const int64_t slot = length < cache.sink ? length : cache.sink + (length - cache.sink) % ring;
    copy_row(window + slot * F::D, rows + n * s.stride[2], s.stride[3], F::D);
    state[LENGTH] = (int32_t)(length + 1);
    if constexpr (F::ROLLS) continue;  // nothing is quantized, ever: the peak stays zero
    const int64_t before = cache.blocks<F>(i);
    if (state[PEAK] < state[LENGTH]) state[PEAK] = state[LENGTH];
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
  state[HIDDEN] += (int32_t)a.drop;
  return true;
}

template <class F> int append_side(const AppendArgs& a, const AppendSide& s) {
  const int64_t total = a.batch * a.heads;
  // a token is the copy of a row, and rarely a block: too little work for more than one thread
  const int threads = total > 1 && a.count * total * F::D > 32768 ? (int)a.threads : 1;
  int failed = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) reduction(| : failed)
  for (int64_t i = 0; i < total; ++i) failed |= !append_head<F>(a, s, i / a.heads, i % a.heads);
  return failed;
}

template <class K, class V> int append_pair(const AppendArgs* a) {
  return append_side<K>(*a, a->side[0]) | append_side<V>(*a, a->side[1]);
}

}  // namespace
