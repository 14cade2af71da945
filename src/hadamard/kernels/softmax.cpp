// Softmax: choosing the instruction set and sharing the work among threads. The one function that Python calls.
#include "softmax.hpp"

#include "threads.hpp"

namespace {

// A thread is worth starting for this many elements.
constexpr int64_t grain = 32768;

// One long row after the other, each shared out among all threads: their sums are merged, then each writes its part.
void split_rows(const Softmax& job, const SoftmaxKernels& kernels, int64_t threads) {
  std::vector<Sum> sums(threads);
  const auto part = [&](int64_t t) { return t * job.n / threads; };
  for (int64_t row = 0; row < job.outer; ++row) {
    parallel(threads, threads, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) sums[t] = kernels.sum(job, row, part(t), part(t + 1));
    });
    const Sum sum = kernels.total(sums.data(), threads);
    if (!kernels.ordinary(job, sum)) {
      kernels.rows(job, row, row + 1);
    } else if (job.kind == LOGSUMEXP) {
      kernels.write(job, row, 0, 0, sum);
    } else {
      parallel(threads, threads, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) kernels.write(job, row, part(t), part(t + 1), sum);
      });
    }
  }
}

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

const SoftmaxKernels& kernels_for(bool avx2) {
#if defined(__x86_64__)
  if (avx2) return softmax_avx2;
#endif
  (void)avx2;
  return softmax_portable;
}

}  // namespace

extern "C" {

int hadamard_has_avx2() { return has_avx2(); }

void hadamard_softmax(int type, int kind, const void* x, void* y, int64_t outer, int64_t n, int64_t inner, int stream,
                      int64_t threads, int avx2) {
  const Softmax job{type, kind, x, y, outer, n, inner, stream != 0};
  const SoftmaxKernels& kernels = kernels_for(avx2 && has_avx2());
  const int64_t worth = outer * n * inner / grain + 1;
  if (threads > worth) threads = worth;
  if (inner > 1) {
    const int64_t strips = outer * ((inner + strip - 1) / strip);
    parallel(strips, threads, [&](int64_t begin, int64_t end) { kernels.strips(job, begin, end); });
  } else if (outer < threads && kind != RECOMPUTE && kind != RELOAD) {
    split_rows(job, kernels, threads);
  } else {
    parallel(outer, threads, [&](int64_t begin, int64_t end) { kernels.rows(job, begin, end); });
  }
}
}
