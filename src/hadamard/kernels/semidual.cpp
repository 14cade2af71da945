// One evaluation of the semi-dual of transport with squares on columns of at most k entries: values and row sums.
//
// The scores of a column, alpha - c_j, are projected on the simplex of its radius. One sweep over c_j gathers the few
// that lie above a level from which the column's threshold is expected not to have fallen; the rest is done on those.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HADAMARD_SEMIDUAL_AVX2 __attribute__((target("avx2")))
#include <immintrin.h>
#endif

#include "threads.hpp"

namespace {

// A thread is worth starting for this many scores.
constexpr int64_t grain = 131072;

// Of `problems` problems: alpha (problems, n), C (problems, m, n), radius, level (problems, m), values (problems) and
// rows (problems, n), all contiguous.
template <typename T>
struct SemiDual {
  const T *alpha, *C, *radius;
  T *level, *values, *rows;
  int64_t problems, m, n, k;
};

// Scores that were gathered, by rising index; room for one more than a column has.
template <typename T>
struct Gathered {
  explicit Gathered(int64_t n) : score(n + 1), spare(n + 1), index(n + 1) {}
  std::vector<T> score, spare;
  std::vector<int64_t> index;
  int64_t count = 0;
};

// Adds the scores from index i on that lie above a level to the `count` that were gathered.
template <typename T>
void gather_rest(const T *alpha, const T *c, int64_t i, int64_t n, T level, Gathered<T> &found, int64_t count) {
  T *score = found.score.data();
  int64_t *index = found.index.data();
  for (; i < n; ++i) {
    const T s = alpha[i] - c[i];
    score[count] = s;
    index[count] = i;
    count += s > level;
  }
  found.count = count;
}

template <typename T>
struct Portable {
  static void gather(const T *alpha, const T *c, int64_t n, T level, Gathered<T> &found) {
    gather_rest(alpha, c, 0, n, level, found, 0);
  }
};

#ifdef HADAMARD_SEMIDUAL_AVX2
template <typename T>
struct Avx2 {
  HADAMARD_SEMIDUAL_AVX2 static unsigned mask(const double *alpha, const double *c, __m256d level) {
    const __m256d s = _mm256_sub_pd(_mm256_loadu_pd(alpha), _mm256_loadu_pd(c));
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(s, level, _CMP_GT_OQ)));
  }
  HADAMARD_SEMIDUAL_AVX2 static unsigned mask(const float *alpha, const float *c, __m256 level) {
    const __m256 s = _mm256_sub_ps(_mm256_loadu_ps(alpha), _mm256_loadu_ps(c));
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(s, level, _CMP_GT_OQ)));
  }
  HADAMARD_SEMIDUAL_AVX2 static __m256d fill(double level) { return _mm256_set1_pd(level); }
  HADAMARD_SEMIDUAL_AVX2 static __m256 fill(float level) { return _mm256_set1_ps(level); }

  HADAMARD_SEMIDUAL_AVX2 static void gather(const T *alpha, const T *c, int64_t n, T level, Gathered<T> &found) {
    constexpr int64_t lanes = 32 / sizeof(T);
    const auto bound = fill(level);
    T *score = found.score.data();
    int64_t *index = found.index.data(), i = 0, count = 0;
    for (; i + 4 * lanes <= n; i += 4 * lanes) {
      unsigned bits = 0;
      for (int64_t v = 0; v < 4; ++v) bits |= mask(alpha + i + v * lanes, c + i + v * lanes, bound) << (v * lanes);
      for (; bits != 0; bits &= bits - 1) {
        const int64_t j = i + __builtin_ctz(bits);
        score[count] = alpha[j] - c[j];
        index[count++] = j;
      }
    }
    gather_rest(alpha, c, i, n, level, found, count);
  }
};
#else
template <typename T>
using Avx2 = Portable<T>;
#endif

// A little lower, so that rounding loses no score above it.
template <typename T>
T lowered(T level) {
  return level - 4 * std::numeric_limits<T>::epsilon() * std::abs(level);
}

// What of the gathered scores exceeds a threshold, and the number of those that do; four sums side by side.
template <typename T>
T excess(const Gathered<T> &found, T threshold, int64_t &above) {
  const T *score = found.score.data();
  T sums[4] = {};
  int64_t counts[4] = {}, i = 0;
  const auto add = [&](int64_t i, int64_t lane) {
    const T t = score[i] - threshold;
    sums[lane] += t > 0 ? t : 0;
    counts[lane] += t > 0;
  };
  for (; i + 4 <= found.count; i += 4) {
    for (int64_t lane = 0; lane < 4; ++lane) add(i + lane, lane);
  }
  for (; i < found.count; ++i) add(i, 0);
  above = (counts[0] + counts[1]) + (counts[2] + counts[3]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Leaves the k largest of the gathered scores, of equal ones those of the lowest index.
template <typename T>
void keep_largest(Gathered<T> &found, int64_t k) {
  const auto begin = found.spare.begin(), end = begin + found.count, last = begin + (k - 1);
  std::copy_n(found.score.begin(), found.count, begin);
  std::nth_element(begin, last, end, std::greater<T>());
  const T least = *last;
  int64_t equals = std::count(begin, last + 1, least), kept = 0;
  for (int64_t i = 0; i < found.count; ++i) {
    const T s = found.score[i];
    if (s < least || (s == least && --equals < 0)) continue;
    found.score[kept] = s;
    found.index[kept++] = found.index[i];
  }
  found.count = kept;
}

// Projects one column: adds the projection t to `rows` and returns <s, t> - |t|^2 / 2. It looks for scores above
// `level` first, and replaces that by the level for the next time.
template <typename T, typename Scan>
T column(const SemiDual<T> &job, const T *alpha, const T *c, T radius, T &level, T *rows, Gathered<T> &found) {
  if (radius == 0) return 0;
  T top, threshold, sum;  // the threshold, and the scores from here on, are relative to the largest score
  int64_t above;
  for (bool again = false;; again = true) {
    Scan::gather(alpha, c, job.n, level, found);
    if (found.count == 0) {
      top = -std::numeric_limits<T>::infinity();
      for (int64_t i = 0; i < job.n; ++i) top = std::max(top, alpha[i] - c[i]);
      level = lowered(top - radius);
      Scan::gather(alpha, c, job.n, level, found);
    } else {
      top = *std::max_element(found.score.begin(), found.score.begin() + found.count);
    }
    if (found.count == 0 || !std::isfinite(top)) return std::numeric_limits<T>::quiet_NaN();
    for (int64_t i = 0; i < found.count; ++i) found.score[i] -= top;
    threshold = std::max(level - top, -radius);
    sum = excess(found, threshold, above);
    if (again || sum >= radius) break;
    // The threshold fell below the level. Newton's method leads from anywhere to the left of it: once more from there.
    level = lowered(top + threshold + (sum - radius) / above);
  }
  for (int64_t before = -1; above != before;) {  // thresholds cut out nested sets: two that are as large are the same
    before = above;
    threshold += (sum - radius) / above;
    sum = excess(found, threshold, above);
  }
  threshold += (sum - radius) / above;  // what rounding left
  level = lowered(top + threshold - radius / above);
  if (above > job.k) {  // all of the k largest stay above the threshold, which falls
    keep_largest(found, job.k);
    threshold = (std::accumulate(found.score.begin(), found.score.begin() + job.k, T{0}) - radius) / job.k;
  }
  T squares = 0;
  for (int64_t i = 0; i < found.count; ++i) {
    const T t = std::max(found.score[i] - threshold, T{0});
    squares += t * t;
    rows[found.index[i]] += t;
  }
  return squares / 2 + (top + threshold) * radius;
}

// Columns begin..end of one problem: returns the sum of their values; that of their projections goes to `rows`.
template <typename T, typename Scan>
T columns(const SemiDual<T> &job, int64_t problem, int64_t begin, int64_t end, T *rows, Gathered<T> &found) {
  const T *alpha = job.alpha + problem * job.n;
  T value = std::any_of(alpha, alpha + job.n, [](T x) { return std::isnan(x); }) ? NAN : 0;
  std::fill_n(rows, job.n, T{0});
  for (int64_t j = problem * job.m + begin; j < problem * job.m + end && !std::isnan(value); ++j) {
    value += column<T, Scan>(job, alpha, job.C + j * job.n, job.radius[j], job.level[j], rows, found);
  }
  if (std::isnan(value)) std::fill_n(rows, job.n, value);
  return value;
}

template <typename T, typename Scan>
void run(const SemiDual<T> &job, int64_t threads) {
  threads = std::min(threads, job.problems * job.m * job.n / grain + 1);
  if (job.problems >= threads) {
    parallel(job.problems, threads, [&](int64_t begin, int64_t end) {
      Gathered<T> found(job.n);
      for (int64_t p = begin; p < end; ++p) {
        job.values[p] = columns<T, Scan>(job, p, 0, job.m, job.rows + p * job.n, found);
      }
    });
    return;
  }
  for (int64_t p = 0; p < job.problems; ++p) {  // large ones: each thread sums its part of the columns
    std::vector<T> values(threads), rows(threads * job.n);
    parallel(threads, threads, [&](int64_t begin, int64_t end) {
      Gathered<T> found(job.n);
      for (int64_t t = begin; t < end; ++t) {
        values[t] = columns<T, Scan>(job, p, t * job.m / threads, (t + 1) * job.m / threads, &rows[t * job.n], found);
      }
    });
    job.values[p] = std::accumulate(values.begin(), values.end(), T{0});
    std::fill_n(job.rows + p * job.n, job.n, T{0});
    for (size_t i = 0; i < rows.size(); ++i) job.rows[p * job.n + static_cast<int64_t>(i) % job.n] += rows[i];
  }
}

template <typename T>
void dispatch(const void *alpha, const void *C, const void *radius, void *level, void *values, void *rows,
              int64_t problems, int64_t m, int64_t n, int64_t k, int64_t threads, int avx2) {
  const SemiDual<T> job{static_cast<const T *>(alpha), static_cast<const T *>(C), static_cast<const T *>(radius),
                        static_cast<T *>(level), static_cast<T *>(values), static_cast<T *>(rows),
                        problems, m, n, k};
  avx2 ? run<T, Avx2<T>>(job, threads) : run<T, Portable<T>>(job, threads);
}

}  // namespace

extern "C" void hadamard_semi_dual(int is_double, const void *alpha, const void *C, const void *radius, void *level,
                                   void *values, void *rows, int64_t problems, int64_t m, int64_t n, int64_t k,
                                   int64_t threads, int avx2) {
  (is_double ? dispatch<double> : dispatch<float>)(alpha, C, radius, level, values, rows, problems, m, n, k, threads,
                                                   avx2);
}
