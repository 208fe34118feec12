// The tensors of one side of a cache, and the packing of codes into words.
//
// The generated structs (kernels/cpu/codegen.py) hold the constants of one side:
//
//   T, S                       element and scale dtype
//   Mode                       how groups are encoded, a class of modes/*.h
//   KEY, QUANTIZED, ROLLS, HAS_ZERO, USES_ANCHOR, USES_QUERIES   flags
//   D, BLOCK, ROWS, LANES, GS, BITS, WORDS, PARAMS
//   OFFSET, GROUPS             the offset of codes without a zero point; groups of a block
//   ZERO_STEP                  one step of the zero point of a pair8 group, in scales
//   BASE, *_STRIDE, RUNS, *_WORDS   positions of the codes of a word and of the words of a block, for pack
//   unpack(words, tile)        all codes of a block as floats
//
// and the constants that the class of the mode needs.

namespace {

// Scratch memory that a thread keeps between calls, so that a decode step does not allocate.
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

// The part of a code that is in one half-word: (code >> code_bit & mask) << half_bit.
struct Run { int half, half_bit, code_bit; uint32_t mask; };
struct FieldRun { int field; Run run; };

struct Cache {  // one side
  void* codes;
  void* scales;
  void* window;
  int32_t* state;  // [B, H, 4]: start, length, peak, hidden
  const int8_t* query_profile;  // [B, H, 2, D]: means, then squared deviations; in modes that use it
  int64_t capacity, sink, recent;
  template <class F> int64_t ring() const { return recent + F::BLOCK; }
  // Number of quantized blocks of sequence and head i.
  template <class F> int64_t blocks(int64_t i) const {
    const int64_t past = state[i * STATE_SIZE + PEAK] - sink - recent;
    return past < F::BLOCK ? 0 : past / F::BLOCK;
  }
  // The first token behind the quantized blocks. (A state of more blocks than there is room for is not believed.)
  template <class F> int64_t blocks_end(int64_t i) const {
    const int64_t held = blocks<F>(i);
    return sink + (held < capacity ? held : capacity) * F::BLOCK;
  }
  template <class F> typename F::T* rows(int64_t i) const {
    return (typename F::T*)window + i * (sink + ring<F>()) * F::D;
  }
  template <class F> const int8_t* profile(int64_t i) const {
    return F::USES_QUERIES ? query_profile + i * 2 * F::D : nullptr;
  }
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
        int32_t* to = words + hi * (F::BITS * F::PLANE_WORDS) + pair * F::RUN;
        to += col / F::RUN * F::RUN_WORDS + col % F::RUN;
        for (int i = 0; i < F::BITS; ++i) to[i * F::PLANE_WORDS] = (int32_t)word[i];
      }
}

}  // namespace
