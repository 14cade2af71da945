// Softmax: the job, and the kernels that every instruction set provides for it.
#pragma once

#include <stdint.h>

enum Type { FLOAT32, FLOAT64, FLOAT16, BFLOAT16 };
enum Kind { TWO_PASS, RECOMPUTE, RELOAD, LOG_SOFTMAX, LOGSUMEXP };

// x is contiguous, of shape (outer, n, inner), and reduced over n. y has the same shape, for LOGSUMEXP (outer, inner).
struct Softmax {
  int type, kind;
  const void* x;
  void* y;
  int64_t outer, n, inner;
  bool stream;  // write past the caches
};

// The sum m 2^n.
struct Sum {
  double m, n;
};

struct SoftmaxKernels {
  // Whole rows, for inner = 1.
  void (*rows)(const Softmax&, int64_t begin, int64_t end);
  // Elements begin..end of one row, for inner = 1: their sum; and their results, given the sum of the row.
  Sum (*sum)(const Softmax&, int64_t row, int64_t begin, int64_t end);
  void (*write)(const Softmax&, int64_t row, int64_t begin, int64_t end, Sum);
  Sum (*total)(const Sum*, int64_t count);
  bool (*ordinary)(const Softmax&, Sum);  // else rows() has to do it
  // Strips of `strip` neighbouring columns, counted through all of outer, for inner > 1.
  void (*strips)(const Softmax&, int64_t begin, int64_t end);
};

constexpr int64_t strip = 256;

extern const SoftmaxKernels softmax_portable;
#if defined(__x86_64__)
extern const SoftmaxKernels softmax_avx2;
#endif
