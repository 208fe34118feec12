// Vectors of VL floats, element types, and the few functions on them that the kernels need.
//
// Inductor disables GCC's loop vectorizer, so everything that takes time is written with vector extensions (of GCC and
// Clang), and with intrinsics where those do not suffice: fused multiply-add, half conversion, horizontal sums.
// Elements may be NaN; comparisons are written so that NaN is treated as the comments say.
//
// VL (lanes of a vector, from the vector ISA that Inductor picked) is defined by the generated prologue, and so are the
// constants of kernels/layout.py and kernels/scale_types.py (codegen.py).

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

// Lanes of two vectors by constant indices; __builtin_shufflevector came to GCC with version 12.
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VU{__VA_ARGS__})
#endif

namespace {  // a process may load several of these libraries

typedef float VF __attribute__((vector_size(VL * 4)));
typedef int32_t VI __attribute__((vector_size(VL * 4)));
typedef uint32_t VU __attribute__((vector_size(VL * 4)));
typedef uint16_t VH __attribute__((vector_size(VL * 2)));
typedef int8_t VB __attribute__((vector_size(VL)));
typedef uint8_t VC __attribute__((vector_size(VL)));

constexpr float INF = __builtin_inff();

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };
struct e5m2 { uint8_t bits; };    // these two hold scales only, see kernels/scale_types.py
struct pair8 { uint16_t bits; };

template <class V, class T> INLINE V load_as(const T* p) { V v; std::memcpy(&v, p, sizeof v); return v; }
template <class A, class B> INLINE A bitcast(B b) {
  static_assert(sizeof(A) == sizeof(B));
  A a;
  std::memcpy(&a, &b, sizeof a);
  return a;
}
INLINE VU load_words(const int32_t* p) { return load_as<VU>(p); }
INLINE void store(float* p, VF v) { std::memcpy(p, &v, sizeof v); }
INLINE void store(int32_t* p, VI v) { std::memcpy(p, &v, sizeof v); }
INLINE VF splat(float x) { return VF{} + x; }
INLINE VF to_float(VU codes) { return __builtin_convertvector((VI)codes, VF); }

// Keeps a loaded vector in a register: the compiler would otherwise load it again for each use.
INLINE VF held(VF v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX__) && VL <= 8
  asm("" : "+x"(v));
#endif
  return v;
}

// a * b + c, rounded once where the machine has a fused multiply-add.
INLINE VF fma(VF a, VF b, VF c) {
#if VL == 16 && defined(__AVX512F__)
  return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VL == 8 && defined(__FMA__)
  return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif VL == 4 && defined(__aarch64__)
  return (VF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// a * b + c, rounded once on all machines (by way of double: but for the rounding to double).
INLINE VF exact_fma(VF a, VF b, VF c) {
#if (VL == 16 && defined(__AVX512F__)) || (VL == 8 && defined(__FMA__)) || (VL == 4 && defined(__aarch64__))
  return fma(a, b, c);
#else
  typedef double VD __attribute__((vector_size(VL * 8)));
  const VD exact = __builtin_convertvector(a, VD) * __builtin_convertvector(b, VD) + __builtin_convertvector(c, VD);
  return __builtin_convertvector(exact, VF);
#endif
}

INLINE float sum(VF v) {
#if VL == 16 && defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float lanes[VL];
  store(lanes, v);
  UNROLL for (int width = VL / 2; width; width /= 2)
    UNROLL for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}

// Maximum of the lanes that are not NaN; -inf if all are.
INLINE float largest(VF v) {
  float lanes[VL], m = -INF;
  store(lanes, v);
  UNROLL for (int i = 0; i < VL; ++i) m = lanes[i] > m ? lanes[i] : m;
  return m;
}

// --- element types ---------------------------------------------------------------------------------------------

INLINE float to_f32(float x) { return x; }
INLINE float to_f32(bf16 x) { return bitcast<float>((uint32_t)x.bits << 16); }
INLINE float to_f32(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t magnitude = (uint32_t)(x.bits & 0x7fff) << 13, sign = (uint32_t)(x.bits & 0x8000) << 16;
  float value = bitcast<float>(magnitude) * 0x1p112f;  // exact, subnormals too
  if (magnitude >= 0x7c00u << 13) value = bitcast<float>(magnitude | 0x7f800000u);
  return bitcast<float>(bitcast<uint32_t>(value) | sign);
#endif
}

template <class T> T from_f32(float x);  // round to nearest, ties to even, as torch does
template <> INLINE float from_f32<float>(float x) { return x; }
template <> INLINE bf16 from_f32<bf16>(float x) {
  if (x != x) return {0x7fc0};
  const uint32_t u = bitcast<uint32_t>(x);
  return {(uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
template <> INLINE f16 from_f32<f16>(float x) {
#if defined(__F16C__)
  return {(uint16_t)_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)};
#else
  const uint32_t u = bitcast<uint32_t>(x), magnitude = u & 0x7fffffff;
  const uint16_t sign = (uint16_t)((u >> 16) & 0x8000);
  if (magnitude > 0x7f800000) return {(uint16_t)(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {(uint16_t)(sign | 0x7c00)};  // rounds to 65536 or more
  if (magnitude < 0x38800000)  // subnormal in half: the sum leaves its 10 bits at the bottom, rounded
    return {(uint16_t)(sign | (bitcast<uint32_t>(bitcast<float>(magnitude) + 0.5f) - 0x3f000000u))};
  return {(uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
#endif
}

template <> INLINE e5m2 from_f32<e5m2>(float x) {  // x has to be exactly representable
  if (x != x) return {0x7f};
  return {(uint8_t)(from_f32<f16>(x).bits >> 8)};
}

// The largest finite number of an element or scale type.
template <class T> constexpr float LIMIT = 0;
template <> constexpr float LIMIT<float> = FLOAT32_LARGEST;
template <> constexpr float LIMIT<bf16> = BFLOAT16_LARGEST;
template <> constexpr float LIMIT<f16> = FLOAT16_LARGEST;
template <> constexpr float LIMIT<e5m2> = FLOAT8_LARGEST;
template <> constexpr float LIMIT<pair8> = PAIR_LARGEST;

INLINE VF load(const float* p) { return load_as<VF>(p); }
INLINE VF load(const bf16* p) { return bitcast<VF>(__builtin_convertvector(load_as<VH>(p), VU) << 16); }
INLINE VF from_half(VH bits) {
#if VL == 16 && defined(__AVX512F__)
  return (VF)_mm512_cvtph_ps((__m256i)bits);
#elif VL == 8 && defined(__F16C__)
  return (VF)_mm256_cvtph_ps((__m128i)bits);
#else
  const VU h = __builtin_convertvector(bits, VU);
  const VU magnitude = (h & 0x7fffu) << 13;
  const VU value = bitcast<VU>(bitcast<VF>(magnitude) * 0x1p112f);
  const VU special = (VU)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;
  return bitcast<VF>(value | special | ((h & 0x8000u) << 16));
#endif
}
INLINE VF load(const f16* p) { return from_half(load_as<VH>(p)); }
INLINE VF load(const e5m2* p) { return from_half(__builtin_convertvector(load_as<VC>(p), VH) << 8); }
template <class T> INLINE VF round_to(VF v) {  // through T and back
  float lanes[VL];
  store(lanes, v);
  for (int i = 0; i < VL; ++i) lanes[i] = to_f32(from_f32<T>(lanes[i]));
  return load(lanes);
}
template <> INLINE VF round_to<float>(VF v) { return v; }
template <class T> INLINE void store_as(T* p, VF v) {
  float lanes[VL];
  store(lanes, v);
  for (int i = 0; i < VL; ++i) p[i] = from_f32<T>(lanes[i]);
}

// --- functions -------------------------------------------------------------------------------------------------

// NaN stays NaN in both.
INLINE VF clamp(VF x, float low, float high) {
  x = x < low ? splat(low) : x;
  return x > high ? splat(high) : x;
}
INLINE VF magnitude(VF x) { return bitcast<VF>(bitcast<VU>(x) & 0x7fffffffu); }

// Half to even, for |x| < 2^22. NaN stays.
INLINE VF round_even(VF x) { return (x + 12582912.f) - 12582912.f; }

// Distance from a scale x >= 0 to the next larger one of a short type, and x rounded to such a scale: quantum and
// round_scale of kernels/scale_types.py.
template <class S> INLINE VF short_quantum(VF x) {
  const VF power = bitcast<VF>(bitcast<VU>(x) & 0x7f800000u);
  return (power < SMALLEST_NORMAL ? splat(SMALLEST_NORMAL) : power) * (std::is_same_v<S, e5m2> ? FLOAT8_QUANTUM : PAIR_QUANTUM);
}
template <class S, bool UP> INLINE VF round_short(VF x, float limit) {
  x = x > limit ? splat(limit) : x;
  const VF step = short_quantum<S>(x), shift = step * 12582912.f;
  const VF rounded = (x + shift) - shift;
  if (!UP) return rounded;
  return rounded < x ? rounded + step : rounded;
}

// exp(x) for x <= 0 (and NaN), within 2 ulp; zero where the result would be subnormal. Cephes' polynomial.
INLINE VF exp_negative(VF x) {
  const VF shifted = fma(x, splat(1.44269504f), splat(12582912.f));  // its low bits: round(x / log 2)
  const VF n = shifted - 12582912.f;
  VF r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  VF p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.f);
  const VF result = p * bitcast<VF>((bitcast<VU>(shifted) << 23) + 0x3f800000u);
  const VF kept = x < -87.3f ? splat(0.f) : result;
  return x != x ? x : kept;
}
INLINE float exp_negative(float x) {
  float lanes[VL];
  store(lanes, exp_negative(splat(x)));
  return lanes[0];
}

INLINE VF tanh(VF x) {
  const VF a = magnitude(x), x2 = x * x;
  const VF e = exp_negative(a * -2.f);
  const VF far = bitcast<VF>(bitcast<VU>((1.f - e) / (1.f + e)) | (bitcast<VU>(x) & 0x80000000u));
  VF p = splat(62.f / 2835);
  p = fma(p, x2, splat(-17.f / 315));
  p = fma(p, x2, splat(2.f / 15));
  p = fma(p, x2, splat(-1.f / 3));
  const VF near = fma(p * x2, x, x);
  return a < 0.3f ? near : far;
}

}  // namespace
