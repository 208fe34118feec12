// Iteration over the tokens of one side of a cache.

namespace {

// The words of a block, readable up to VL words past their end: where they are the last ones of the tensor, a copy.
template <class F> INLINE const int32_t* readable(const Cache& cache, int64_t heads, int64_t i, int64_t block,
                                                  int32_t* spare) {
  const int32_t* words = cache.words<F>(i, block);
  const int32_t* end = (const int32_t*)cache.codes + heads * cache.capacity * F::WORDS;
  if (end - words >= F::WORDS + VL) return words;
  std::memcpy(spare, words, F::WORDS * 4);
  return spare;
}

// Visit tokens [begin, end) of one side in order: calls block(block, offset, first token, count) for tokens of
// quantized blocks, and rows(pointer, first token, count) for runs of tokens in full precision.
template <class F, class Block, class Rows>
INLINE void walk(const Cache& cache, int64_t i, int64_t begin, int64_t end, Block block, Rows rows) {
  const int64_t ring = cache.ring<F>(), sink = cache.sink;
  const int64_t q_end = cache.blocks_end<F>(i);
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

}  // namespace
