// Softmax for any processor.
#include "softmax_kernels.hpp"

const SoftmaxKernels softmax_portable = kernels<Portable>();
