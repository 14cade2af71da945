// Softmax for x86 processors with AVX2, FMA and F16C: this file alone is compiled for them.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define HADAMARD_AVX2
#include "softmax_kernels.hpp"

const SoftmaxKernels softmax_avx2 = kernels<Avx2>();

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
