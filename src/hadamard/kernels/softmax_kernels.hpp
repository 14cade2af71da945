// Softmax: rows, columns and the table of kernels of one instruction set.
#pragma once

#include "softmax_passes.hpp"

namespace {

// The textbook way, for rows that hold NaN, infinities or very large numbers: subtract the maximum. Same values as
// PyTorch, element by element, also where y is x.
template <class T, class S> void by_maximum(const S* x, S* y, int64_t n, int64_t step, int kind) {
  T top = -__builtin_inf();
  for (int64_t i = 0; i < n; ++i) {
    const T v = widen(x[i * step]);
    if (v > top || v != v) top = v;
    if (v != v) break;
  }
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += __builtin_exp(double(widen(x[i * step])) - top);
  if (kind == LOGSUMEXP) {
    narrow(T(top - top == 0 ? top + __builtin_log(sum) : top), y);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const double d = double(widen(x[i * step])) - top;
    narrow(T(kind == LOG_SOFTMAX ? d - __builtin_log(sum) : __builtin_exp(d) / sum), y + i * step);
  }
}

template <class L, class S> void row(const S* x, S* y, int64_t n, int kind, bool stream) {
  constexpr bool wide = sizeof(S) == sizeof(typename L::T);  // else y cannot hold what RELOAD stores
  if (kind == RECOMPUTE || kind == RELOAD) return three_passes<L>(x, y, n, kind == RELOAD && wide, stream);
  const Sum sum = sum_of_exp<L>(x, n);
  if (!ordinary<typename L::T>(sum)) by_maximum<typename L::T>(x, y, n, 1, kind);
  else if (kind == LOGSUMEXP) narrow(typename L::T(log_of(sum)), y);
  else write_part<L>(x, y, n, sum, kind, stream);
}

// Up to `strip` neighbouring columns at once, each lane a sum of its own: rows are read one after the other.
template <class L, class S>
void columns(const S* x, S* y, int64_t n, int64_t inner, int64_t width, int kind, bool stream) {
  using T = typename L::T;
  using V = typename L::V;
  constexpr int lanes = L::lanes, tile = 4;
  const int64_t whole = width / lanes, rest = width % lanes, vectors = whole + (rest > 0);
  Sum sum[strip];
  for (Sum& s : sum) s = nothing;
  for (int64_t start = 0; start < n; start += strip) {
    const int64_t stop = start + strip < n ? start + strip : n;
    for (int64_t v = 0; v < vectors; ++v) {
      const S* at = x + v * lanes;
      Sums<L> sums;
      int64_t i = start;
      if (v < whole) {
        for (; i + tile <= stop; i += tile) sums.template add<tile>(at + i * inner, inner);
        for (; i < stop; ++i) sums.template add<1>(at + i * inner, 0);
      } else {
        T lane[lanes];
        for (; i < stop; ++i) {
          L::store(lane, load_some<L>(at + i * inner, int(rest), 0));
          sums.template add<1>(lane, 0);
        }
      }
      sums.merge_into(sum + v * lanes, 1);
    }
  }
  bool all = true;
  for (int64_t c = 0; c < width; ++c) all = all && ordinary<T>(sum[c]);
  if (!all) {
    for (int64_t c = 0; c < width; ++c) by_maximum<T>(x + c, y + c, n, inner, kind);
    return;
  }
  if (kind == LOGSUMEXP) {
    for (int64_t c = 0; c < width; ++c) narrow(T(log_of(sum[c])), y + c);
    return;
  }
  T sum_m[strip], sum_n[strip];
  for (int64_t c = 0; c < vectors * lanes; ++c) {
    sum_m[c] = T(kind == LOG_SOFTMAX ? __builtin_log(sum[c].m) : sum[c].m);
    sum_n[c] = T(sum[c].n);
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = i * inner + v * lanes;
      const V value = v < whole ? L::load(x + at) : load_some<L>(x + at, int(rest), 0);
      const V m = L::load(sum_m + v * lanes), e = L::load(sum_n + v * lanes);
      const V result = kind == LOG_SOFTMAX ? log_ratio<L>(value, m, e) : ratio<L>(value, m, e);
      if (v == whole) store_some<L>(y + at, int(rest), result);
      else if (stream) L::stream(y + at, result);
      else L::store(y + at, result);
    }
  }
  L::fence();
}

// ---- from the job to the types ----

template <class L, class S> struct Typed {
  static void rows(const Softmax& job, int64_t begin, int64_t end) {
    const int64_t out = job.kind == LOGSUMEXP ? 1 : job.n;
    for (int64_t r = begin; r < end; ++r)
      row<L>((const S*)job.x + r * job.n, (S*)job.y + r * out, job.n, job.kind, job.stream);
  }
  static Sum sum(const Softmax& job, int64_t r, int64_t begin, int64_t end) {
    return sum_of_exp<L>((const S*)job.x + r * job.n + begin, end - begin);
  }
  static void write(const Softmax& job, int64_t r, int64_t begin, int64_t end, Sum sum) {
    if (job.kind == LOGSUMEXP) return narrow(typename L::T(log_of(sum)), (S*)job.y + r);
    const int64_t at = r * job.n + begin;
    write_part<L>((const S*)job.x + at, (S*)job.y + at, end - begin, sum, job.kind, job.stream);
  }
  static void strips(const Softmax& job, int64_t begin, int64_t end) {
    const int64_t across = (job.inner + strip - 1) / strip;
    const bool stream = job.stream && job.inner * sizeof(S) % 64 == 0 && uintptr_t(job.y) % 64 == 0;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t o = s / across, c = s % across * strip, width = job.inner - c < strip ? job.inner - c : strip;
      S* y = (S*)job.y + (job.kind == LOGSUMEXP ? o * job.inner : o * job.n * job.inner) + c;
      columns<L>((const S*)job.x + o * job.n * job.inner + c, y, job.n, job.inner, width, job.kind, stream);
    }
  }
};

template <template <class> class L, class Call> auto typed(const Softmax& job, Call call) {
  switch (job.type) {
    case FLOAT64: return call(Typed<L<double>, double>());
    case FLOAT16: return call(Typed<L<float>, Half>());
    case BFLOAT16: return call(Typed<L<float>, BFloat16>());
    default: return call(Typed<L<float>, float>());
  }
}

template <template <class> class L> constexpr SoftmaxKernels kernels() {
  return {
      [](const Softmax& job, int64_t begin, int64_t end) {
        typed<L>(job, [&](auto t) { t.rows(job, begin, end); });
      },
      [](const Softmax& job, int64_t row, int64_t begin, int64_t end) {
        return typed<L>(job, [&](auto t) { return t.sum(job, row, begin, end); });
      },
      [](const Softmax& job, int64_t row, int64_t begin, int64_t end, Sum sum) {
        typed<L>(job, [&](auto t) { t.write(job, row, begin, end, sum); });
      },
      [](const Sum* sums, int64_t count) {
        Sum all = sums[0];
        for (int64_t i = 1; i < count; ++i) merge(all, sums[i].m, sums[i].n);
        return all;
      },
      [](const Softmax& job, Sum sum) {
        return job.type == FLOAT64 ? ordinary<double>(sum) : ordinary<float>(sum);
      },
      [](const Softmax& job, int64_t begin, int64_t end) {
        typed<L>(job, [&](auto t) { t.strips(job, begin, end); });
      },
  };
}

}  // namespace
