// Vectors of lanes: the dozen operations that the kernels are written in.
//
// Portable<T> uses the compiler's vector extension and runs on any processor. Avx2<T> uses AVX2, FMA and F16C; it
// exists only where HADAMARD_AVX2 is defined, that is in the one file that is compiled for these instructions.
// A kernel is a template over one of the two, so it is written once.
//
// T is the type of the arithmetic (float or double). S is the type in memory: T itself or, for float, Half or
// BFloat16, which are widened when they are loaded and rounded to nearest-even when they are stored.
//
// No function of the standard library is called here: the linker could otherwise keep a copy that was compiled for
// AVX2 and run it on a processor without.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(HADAMARD_AVX2)
#include <immintrin.h>
#endif

namespace {

struct Half { uint16_t bits; };
struct BFloat16 { uint16_t bits; };

template <class To, class From> inline To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// ---- one element: memory type to arithmetic type and back ----

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bits_of<float>(uint32_t(x.bits) << 16); }
inline float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  // 2^112 moves the exponent's bias from 15 to 127 and makes denormals right; infinity and NaN keep all ones.
  const float moved = bits_of<float>(rest << 13) * 0x1p112f;
  return bits_of<float>(sign | (rest >= 0x7c00 ? 0x7f800000u | (rest & 0x3ff) << 13 : bits_of<uint32_t>(moved)));
}

inline void narrow(float x, float* p) { *p = x; }
inline void narrow(double x, double* p) { *p = x; }
inline void narrow(float x, BFloat16* p) {
  const uint32_t b = bits_of<uint32_t>(x);
  p->bits = x != x ? uint16_t(b >> 16 | 0x40) : uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
inline void narrow(float x, Half* p) {
  const uint32_t b = bits_of<uint32_t>(x), sign = b >> 16 & 0x8000, magnitude = b & 0x7fffffff;
  uint32_t h;
  if (magnitude > 0x7f800000) h = 0x7e00;
  else if (magnitude >= 0x477ff000) h = 0x7c00;  // rounds to 2^16 or more
  else if (magnitude < 0x38800000)               // denormal: adding 2^-1 rounds at bit 2^-24
    h = bits_of<uint32_t>(bits_of<float>(magnitude) + 0.5f) - bits_of<uint32_t>(0.5f);
  else h = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  p->bits = uint16_t(sign | h);
}

// ---- constants of the floating-point formats ----

template <class T> struct Format;
template <> struct Format<float> {
  using Integer = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float integers = 0x1p23f;          // from here to its double the floats are the integers
  static constexpr float magic = 0x1.8p23f + 127.0f;  // added to n, leaves the exponent of 2^n in the low bits
};
template <> struct Format<double> {
  using Integer = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double integers = 0x1p52;
  static constexpr double magic = 0x1.8p52 + 1023.0;
};

// ---- any processor ----

template <class Scalar> struct Portable {
  using T = Scalar;
  using Integer = typename Format<T>::Integer;
  static constexpr int lanes = 16 / int(sizeof(T));
  typedef T V __attribute__((vector_size(16)));
  typedef Integer I __attribute__((vector_size(16)));

  static V set(T x) {
    V v;
    for (int i = 0; i < lanes; ++i) v[i] = x;
    return v;
  }
  static V load(const T* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  template <class S> static V load(const S* p) {
    V v;
    for (int i = 0; i < lanes; ++i) v[i] = widen(p[i]);
    return v;
  }
  static void store(T* p, V v) { memcpy(p, &v, sizeof v); }
  template <class S> static void store(S* p, V v) {
    for (int i = 0; i < lanes; ++i) narrow(v[i], p + i);
  }
  template <class S> static void stream(S* p, V v) { store(p, v); }
  static void fence() {}

  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V mul_add(V a, V b, V c) { return a * b + c; }
  static V max(V a, V b) { return a > b ? a : b; }  // b where either is NaN, as on x86
  // x - n high - n low, the products not rounded.
  static V reduce(V x, V n, T high, T low) {
    if constexpr (sizeof(T) == 4) {  // 24 + 24 bits fit a double
      typedef double D __attribute__((vector_size(32)));
      const double whole = double(high) + double(low);
      return __builtin_convertvector(__builtin_convertvector(x, D) - __builtin_convertvector(n, D) * whole, V);
    } else {
      V t;
      for (int i = 0; i < lanes; ++i) t[i] = __builtin_fma(-n[i], low, __builtin_fma(-n[i], high, x[i]));
      return t;
    }
  }
  // 2^d from d + magic, for -bias <= d (at -bias: 0).
  static V to_exponent(V biased) { return (V)((I)biased << Format<T>::mantissa); }
};

// ---- AVX2, FMA, F16C ----

#if defined(HADAMARD_AVX2)
template <class Scalar> struct Avx2;

template <> struct Avx2<float> {
  using T = float;
  using V = __m256;
  static constexpr int lanes = 8;

  static V set(float x) { return _mm256_set1_ps(x); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static V load(const BFloat16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
  }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static void store(Half* p, V v) { _mm_storeu_si128((__m128i*)p, half(v)); }
  static void store(BFloat16* p, V v) { _mm_storeu_si128((__m128i*)p, bfloat16(v)); }
  static void stream(float* p, V v) { _mm256_stream_ps(p, v); }
  static void stream(Half* p, V v) { _mm_stream_si128((__m128i*)p, half(v)); }
  static void stream(BFloat16* p, V v) { _mm_stream_si128((__m128i*)p, bfloat16(v)); }
  static void fence() { _mm_sfence(); }

  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V mul_add(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V reduce(V x, V n, float high, float low) {
    return _mm256_fnmadd_ps(n, set(low), _mm256_fnmadd_ps(n, set(high), x));
  }
  static V to_exponent(V biased) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(biased), 23)); }

 private:
  static __m128i half(V v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static __m128i bfloat16(V v) {
    const __m256i b = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x400000));
    const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    const __m256i kept = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
    const __m256i shifted = _mm256_srli_epi32(kept, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1));
  }
};

template <> struct Avx2<double> {
  using T = double;
  using V = __m256d;
  static constexpr int lanes = 4;

  static V set(double x) { return _mm256_set1_pd(x); }
  static V load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, V v) { _mm256_storeu_pd(p, v); }
  static void stream(double* p, V v) { _mm256_stream_pd(p, v); }
  static void fence() { _mm_sfence(); }

  static V add(V a, V b) { return _mm256_add_pd(a, b); }
  static V sub(V a, V b) { return _mm256_sub_pd(a, b); }
  static V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  static V div(V a, V b) { return _mm256_div_pd(a, b); }
  static V mul_add(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  static V max(V a, V b) { return _mm256_max_pd(a, b); }
  static V reduce(V x, V n, double high, double low) {
    return _mm256_fnmadd_pd(n, set(low), _mm256_fnmadd_pd(n, set(high), x));
  }
  static V to_exponent(V biased) { return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(biased), 52)); }
};
#endif

// ---- parts of a vector, at the ends of rows ----

template <class L, class S> inline typename L::V load_some(const S* p, int count, typename L::T fill) {
  typename L::T lane[L::lanes];
  for (int i = 0; i < L::lanes; ++i) lane[i] = i < count ? widen(p[i]) : fill;
  return L::load(lane);
}

template <class L, class S> inline void store_some(S* p, int count, typename L::V v) {
  typename L::T lane[L::lanes];
  L::store(lane, v);
  for (int i = 0; i < count; ++i) narrow(lane[i], p + i);
}

}  // namespace
