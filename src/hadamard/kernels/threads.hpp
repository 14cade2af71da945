// Sharing a loop among threads.
#pragma once

#include <stdint.h>

#include <system_error>
#include <thread>
#include <vector>

// Calls f(begin, end) on up to `threads` threads, which share 0..count in equal parts. Threads that the system does
// not give are done without.
template <class F> void parallel(int64_t count, int64_t threads, const F& f) {
  if (threads > count) threads = count;
  std::vector<std::thread> others;
  int64_t mine = threads < 2 ? count : count / threads;
  for (int64_t t = 1; t < threads; ++t) {
    const int64_t begin = t * count / threads, end = (t + 1) * count / threads;
    try {
      others.emplace_back([&f, begin, end] { f(begin, end); });
    } catch (const std::system_error&) {
      f(begin, end);
    }
  }
  f(0, mine);
  for (std::thread& t : others) t.join();
}
