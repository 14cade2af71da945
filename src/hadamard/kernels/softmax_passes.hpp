// Softmax: the passes over memory, written once for every instruction set.
//
// Two passes. A real is kept as a pair (m, n) that means m 2^n, with n an integer held in a floating-point number of
// practically unbounded range. e^x in this form, m = e^(x - n ln 2) with n = round(x / ln 2), neither overflows nor
// underflows, so a sum needs no maximum to be subtracted: adding pairs rescales the one with the smaller n. The first
// pass reads x and sums; the second reads x again and writes m / M 2^(n - E). The usual scheme reads x three times.
//
// The sum is closed every 4096 elements and the blocks are merged in double, so its error does not grow with the
// length of the row. Sums merge in any order: that is how one long row is shared out among threads.
#pragma once

#include "softmax.hpp"
#include "vectors.hpp"

namespace {

// Constants of the exponential. Exponents n are kept as n + Format::magic, whose low bits are those of a floating-point
// exponent; that is exact up to |n| = 2^22 (float). So x is clamped at `lowest`, and a row whose sum has an exponent
// beyond `limit` (|x| above 1.4 million in float, infinite or NaN) is left to `by_maximum`.
template <class T> struct Exp;
template <> struct Exp<float> {
  static constexpr float log2e = 0x1.715476p+0f, ln2_high = 0x1.62E430p-1f, ln2_low = -0x1.05C610p-29f;
  static constexpr float lowest = -0x1p21f, limit = 0x1p21f, vanishes = -88.0296919f;
  static constexpr int degree = 5;  // minimax on [-ln 2 / 2, ln 2 / 2], highest power first
  static constexpr float coefficients[] = {0x1.0F9F9Cp-7f, 0x1.573A1Ap-5f, 0x1.555A80p-3f,
                                           0x1.FFFDC6p-2f, 0x1.FFFFF6p-1f, 1.0f};
};
template <> struct Exp<double> {
  static constexpr double log2e = 0x1.71547652b82fep+0, ln2_high = 0x1.62e42fefa39efp-1;
  static constexpr double ln2_low = 0x1.abc9e3b39803fp-56;
  static constexpr double lowest = -0x1p50, limit = 0x1p50, vanishes = -709.08956571282405;
  static constexpr int degree = 13;  // Taylor: the remainder is 4e-18 on [-ln 2 / 2, ln 2 / 2]
  static constexpr double coefficients[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                            1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                            1.0 / 120,        1.0 / 24,        1.0 / 6,        0.5,
                                            1.0,              1.0};
};

// e^x = m 2^n for every x that is not too large, with n in biased form. (A NaN comes through the clamp because it is
// the second operand.)
template <class L> inline void extended_exp(typename L::V x, typename L::V& m, typename L::V& biased) {
  using C = Exp<typename L::T>;
  const typename L::V magic = L::set(Format<typename L::T>::magic);
  x = L::max(L::set(C::lowest), x);
  biased = L::mul_add(x, L::set(C::log2e), magic);
  const typename L::V t = L::reduce(x, L::sub(biased, magic), C::ln2_high, C::ln2_low);
  m = L::set(C::coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i <= C::degree; ++i) m = L::mul_add(m, t, L::set(C::coefficients[i]));
}

// 2^(n - top) for n <= top, and 0 where that is below the smallest normal number; `biased` is n + magic.
template <class L> inline typename L::V power(typename L::V biased, typename L::V top) {
  using F = Format<typename L::T>;
  return L::to_exponent(L::max(L::set(F::magic - F::bias), L::sub(biased, top)));
}

// e^d for d <= 0, as the three-pass algorithms need it: the same steps, but a number.
template <class L> inline typename L::V decay(typename L::V d) {
  typename L::V m, biased;
  extended_exp<L>(L::max(L::set(Exp<typename L::T>::vanishes), d), m, biased);
  return L::mul(m, L::to_exponent(biased));
}

// ---- sums of extended numbers ----

inline double power_of_two(double d) {  // d <= 0
  return d >= -1022 ? bits_of<double>((int64_t(d) + 1023) << 52) : 0.0;
}

inline void merge(Sum& sum, double m, double n) {
  if (n > sum.n) {
    sum.m = sum.m * power_of_two(sum.n - n) + m;
    sum.n = n;
  } else {
    sum.m += m * power_of_two(n - sum.n);
  }
}

template <class T> inline bool ordinary(Sum s) { return s.n < Exp<T>::limit && s.n > -Exp<T>::limit && s.m == s.m; }

constexpr Sum nothing{0, -1e300};
constexpr int64_t block = 4096;

// A sum in every lane.
template <class L> struct Sums {
  using T = typename L::T;
  using V = typename L::V;
  V m, biased;

  Sums() : m(L::set(0)), biased(L::set(Format<T>::integers)) {}  // an exponent below all others

  // Adds `vectors` vectors, `step` elements apart; the sum so far is rescaled once for all of them.
  template <int vectors, class S> void add(const S* x, int64_t step) {
    V each_m[vectors], each_biased[vectors], top = biased;
#pragma GCC unroll 8
    for (int u = 0; u < vectors; ++u) {
      extended_exp<L>(L::load(x + u * step), each_m[u], each_biased[u]);
      top = L::max(top, each_biased[u]);
    }
    const V top_n = L::sub(top, L::set(Format<T>::magic));
    m = L::mul(m, power<L>(biased, top_n));
#pragma GCC unroll 8
    for (int u = 0; u < vectors; ++u) m = L::mul_add(each_m[u], power<L>(each_biased[u], top_n), m);
    biased = top;
  }

  // Merges lane l into sums[l * step].
  void merge_into(Sum* sums, int step) const {
    T lane_m[L::lanes], lane_biased[L::lanes];
    L::store(lane_m, m);
    L::store(lane_biased, biased);
    for (int l = 0; l < L::lanes; ++l) merge(sums[l * step], lane_m[l], lane_biased[l] - Format<T>::magic);
  }
};

template <class L, class S> inline Sum sum_of_exp(const S* x, int64_t count) {
  using T = typename L::T;
  constexpr int lanes = L::lanes, tile = 4;
  Sum sum = nothing;
  for (int64_t start = 0; start < count; start += block) {
    const int64_t stop = start + block < count ? start + block : count;
    Sums<L> even, odd;
    int64_t i = start;
    for (; i + 2 * tile * lanes <= stop; i += 2 * tile * lanes) {
      even.template add<tile>(x + i, lanes);
      odd.template add<tile>(x + i + tile * lanes, lanes);
    }
    for (; i + lanes <= stop; i += lanes) even.template add<1>(x + i, lanes);
    if (i < stop) {
      T lane[lanes];
      L::store(lane, load_some<L>(x + i, int(stop - i), Exp<T>::lowest));
      odd.template add<1>(lane, lanes);
    }
    even.merge_into(&sum, 0);
    odd.merge_into(&sum, 0);
  }
  return sum;
}

// ---- writing passes ----

// y[i] = f(x[i]); with streaming stores, y goes past the caches to memory.
template <class L, class S, class F> inline void map(const S* x, S* y, int64_t count, bool stream, F f) {
  constexpr int lanes = L::lanes;
  int64_t i = 0;
  if (stream) {
    const int64_t aligned = int64_t(-uintptr_t(y) % 64 / sizeof(S)), head = aligned < count ? aligned : count;
    for (; i < head; i += lanes) {
      const int some = head - i < lanes ? int(head - i) : lanes;
      store_some<L>(y + i, some, f(load_some<L>(x + i, some, 0)));
    }
    for (i = head; i + lanes <= count; i += lanes) L::stream(y + i, f(L::load(x + i)));
    L::fence();
  } else {
    for (; i + lanes <= count; i += lanes) L::store(y + i, f(L::load(x + i)));
  }
  if (i < count) store_some<L>(y + i, int(count - i), f(load_some<L>(x + i, int(count - i), 0)));
}

// m 2^n / sum and x - log(sum). The logarithm is taken off in two parts, which is exact where x is large, and rounding
// may not lift the result above 0.
template <class L> inline typename L::V ratio(typename L::V x, typename L::V sum_m, typename L::V sum_n) {
  typename L::V m, biased;
  extended_exp<L>(x, m, biased);
  return L::mul(L::div(m, sum_m), power<L>(biased, sum_n));  // divided, so that a single element gives exactly 1
}
template <class L> inline typename L::V log_ratio(typename L::V x, typename L::V log_m, typename L::V sum_n) {
  using C = Exp<typename L::T>;
  const typename L::V zero = L::set(0);
  return L::sub(zero, L::max(zero, L::sub(log_m, L::reduce(x, sum_n, C::ln2_high, C::ln2_low))));
}

template <class L, class S>
inline void write_part(const S* x, S* y, int64_t count, Sum sum, int kind, bool stream) {
  using V = typename L::V;
  using T = typename L::T;
  const V n = L::set(T(sum.n));
  if (kind == LOG_SOFTMAX) {
    const V log_m = L::set(T(__builtin_log(sum.m)));
    map<L>(x, y, count, stream, [=](V v) { return log_ratio<L>(v, log_m, n); });
  } else {
    const V m = L::set(T(sum.m));
    map<L>(x, y, count, stream, [=](V v) { return ratio<L>(v, m, n); });
  }
}

inline double log_of(Sum sum) { return __builtin_log(sum.m) + sum.n * Exp<double>::ln2_high; }

// ---- the three-pass algorithms, for rows that stay in a cache ----

template <class L, class S> inline typename L::T maximum(const S* x, int64_t count) {
  using T = typename L::T;
  constexpr int lanes = L::lanes;
  const T least = -__builtin_inf();
  typename L::V top[4];
  for (auto& t : top) t = L::set(least);
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) top[u] = L::max(top[u], L::load(x + i + u * lanes));
  }
  for (; i < count; i += lanes)
    top[0] = L::max(top[0], load_some<L>(x + i, count - i < lanes ? int(count - i) : lanes, least));
  T lane[lanes], best = least;
  L::store(lane, L::max(L::max(top[0], top[1]), L::max(top[2], top[3])));
  for (T v : lane) best = v > best ? v : best;
  return best;  // a NaN may be lost here; it is met again in the sum
}

template <class L, class S>
inline void three_passes(const S* x, S* y, int64_t count, bool reload, bool stream) {
  using V = typename L::V;
  using T = typename L::T;
  constexpr int lanes = L::lanes;
  const V top = L::set(maximum<L>(x, count));
  double sum = 0;
  for (int64_t start = 0; start < count; start += block) {
    const int64_t stop = start + block < count ? start + block : count;
    V part[4] = {L::set(0), L::set(0), L::set(0), L::set(0)};
    int64_t i = start;
    for (; i + 4 * lanes <= stop; i += 4 * lanes) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const V e = decay<L>(L::sub(L::load(x + i + u * lanes), top));
        part[u] = L::add(part[u], e);
        if (reload) L::store(y + i + u * lanes, e);
      }
    }
    for (; i < stop; i += lanes) {
      const int some = stop - i < lanes ? int(stop - i) : lanes;
      const V e = decay<L>(L::sub(load_some<L>(x + i, some, -__builtin_inf()), top));
      part[0] = L::add(part[0], e);
      if (reload) store_some<L>(y + i, some, e);
    }
    T lane[lanes];
    for (V& p : part) {
      L::store(lane, p);
      for (T v : lane) sum += v;
    }
  }
  const V scale = L::set(T(1 / sum));
  if (reload) map<L>(y, y, count, false, [=](V e) { return L::mul(e, scale); });
  else map<L>(x, y, count, stream, [=](V v) { return L::mul(decay<L>(L::sub(v, top)), scale); });
}

}  // namespace
