// The fast Walsh-Hadamard transform of contiguous rows, in place.
#include <cstdint>

#include "threads.hpp"

namespace {

// Rows are cut into blocks of this many bytes, which are finished while they lie in the first cache.
constexpr int64_t block_bytes = 16384;

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HADAMARD_WALSH_AVX2 __attribute__((target("avx2,fma")))
#else
#define HADAMARD_WALSH_AVX2
#endif

// Eight butterflies' worth of levels in one sweep: x[j + i * h], i = 0 .. 7, for begin <= j < end.
#define HADAMARD_RADIX8(T)                                                                         \
  for (int64_t j = begin; j < end; ++j) {                                                          \
    T *p = x + j;                                                                                  \
    const T a0 = p[0] + p[h], a1 = p[0] - p[h], a2 = p[2 * h] + p[3 * h], a3 = p[2 * h] - p[3 * h]; \
    const T a4 = p[4 * h] + p[5 * h], a5 = p[4 * h] - p[5 * h];                                    \
    const T a6 = p[6 * h] + p[7 * h], a7 = p[6 * h] - p[7 * h];                                    \
    const T b0 = a0 + a2, b1 = a1 + a3, b2 = a0 - a2, b3 = a1 - a3;                                \
    const T b4 = a4 + a6, b5 = a5 + a7, b6 = a4 - a6, b7 = a5 - a7;                                \
    p[0] = b0 + b4, p[h] = b1 + b5, p[2 * h] = b2 + b6, p[3 * h] = b3 + b7;                        \
    p[4 * h] = b0 - b4, p[5 * h] = b1 - b5, p[6 * h] = b2 - b6, p[7 * h] = b3 - b7;                \
  }

#define HADAMARD_RADIX2(T)                    \
  for (int64_t j = begin; j < end; ++j) {     \
    T *p = x + j;                             \
    const T a = p[0], b = p[h];               \
    p[0] = a + b, p[h] = a - b;               \
  }

template <typename T>
struct Portable {
  static void radix8(T *x, int64_t h, int64_t begin, int64_t end) { HADAMARD_RADIX8(T) }
  static void radix2(T *x, int64_t h, int64_t begin, int64_t end) { HADAMARD_RADIX2(T) }
};

template <typename T>
struct Avx2 {
  HADAMARD_WALSH_AVX2 static void radix8(T *x, int64_t h, int64_t begin, int64_t end) {
#pragma GCC ivdep
    HADAMARD_RADIX8(T)
  }
  HADAMARD_WALSH_AVX2 static void radix2(T *x, int64_t h, int64_t begin, int64_t end) {
#pragma GCC ivdep
    HADAMARD_RADIX2(T)
  }
};

// The transform of one block: three levels a sweep, the odd levels first.
template <typename T, typename Step>
void block(T *x, int64_t n) {
  int64_t h = 1;
  int levels = 0;
  while ((int64_t{1} << levels) < n) ++levels;
  for (; levels % 3 != 0; --levels, h *= 2) {
    for (int64_t i = 0; i < n; i += 2 * h) Step::radix2(x + i, h, 0, h);
  }
  for (; h < n; h *= 8) {
    for (int64_t i = 0; i < n; i += 8 * h) Step::radix8(x + i, h, 0, h);
  }
}

// The transform of a row: the outermost levels sweep through memory, eight parts at a time, then each part follows.
template <typename T, typename Step>
void row(T *x, int64_t n, int64_t threads) {
  if (n * int64_t{sizeof(T)} <= block_bytes) return block<T, Step>(x, n);
  const int64_t parts = n >= 8 * 1024 ? 8 : 2, h = n / parts;
  parallel(h, threads, [&](int64_t begin, int64_t end) {
    parts == 8 ? Step::radix8(x, h, begin, end) : Step::radix2(x, h, begin, end);
  });
  parallel(parts, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row<T, Step>(x + i * h, h, 1);
  });
}

template <typename T, typename Step>
void rows(T *x, int64_t count, int64_t n, int64_t threads) {
  if (count < threads && n >= 32768) {
    for (int64_t i = 0; i < count; ++i) row<T, Step>(x + i * n, n, threads);
    return;
  }
  parallel(count, count * n >= 32768 ? threads : 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row<T, Step>(x + i * n, n, 1);
  });
}

}  // namespace

extern "C" void hadamard_fwht(void *x, int is_double, int64_t count, int64_t n, int64_t threads, int avx2) {
  if (is_double) {
    avx2 ? rows<double, Avx2<double>>(static_cast<double *>(x), count, n, threads)
         : rows<double, Portable<double>>(static_cast<double *>(x), count, n, threads);
  } else {
    avx2 ? rows<float, Avx2<float>>(static_cast<float *>(x), count, n, threads)
         : rows<float, Portable<float>>(static_cast<float *>(x), count, n, threads);
  }
}
