// Threads that work on one problem in step. Knows neither torch nor OpenMP: ops.cpp provides parallel_for.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>

// Calls body(lo, hi) for ranges that cover 0..n, on several threads if there are any. Defined in ops.cpp.
void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& body);
int64_t thread_count();

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits for a condition: spins for a bounded time, then lets other threads of the machine run.
template <class Condition>
inline void wait_until(Condition condition) {
  for (int spin = 0; spin < 4000; ++spin) {
    if (condition()) return;
    pause_briefly();
  }
  while (!condition()) std::this_thread::yield();
}

// A team has as many members as threads really came: parallel_for may run nested on one thread, be granted fewer
// threads than asked, or have some of them late. The first to come waits for the others for a bounded time, then closes
// the team; who comes later goes away again. So every member is a running thread, and a barrier among them cannot hang.
class Team {
 public:
  // body(member, size, team): called by every member at the same time.
  template <class Body>
  static void run(int64_t wanted, std::chrono::microseconds patience, const Body& body) {
    Team team;
    if (wanted <= 1) {
      team.size_.store(1);
      return body(0, 1, team);
    }
    parallel_for(wanted, [&](int64_t lo, int64_t hi) {
      int64_t member = team.came_.fetch_add(1);
      if (member >= kClosed) return;
      team.covered_.fetch_add(hi - lo);
      if (member == 0) {
        auto end = std::chrono::steady_clock::now() + patience;
        while (team.covered_.load() < wanted && std::chrono::steady_clock::now() < end) pause_briefly();
        team.size_.store(team.came_.fetch_add(kClosed));
      } else {
        wait_until([&] { return team.size_.load() != 0; });
      }
      body(member, team.size_.load(), team);
    });
  }

  // Returns when all members have called it.
  void barrier() {
    int64_t size = size_.load(std::memory_order_relaxed);
    if (size == 1) return;
    int64_t round = round_.load(std::memory_order_acquire);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      waiting_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    } else {
      wait_until([&] { return round_.load(std::memory_order_acquire) != round; });
    }
  }

 private:
  static constexpr int64_t kClosed = int64_t(1) << 32;
  alignas(64) std::atomic<int64_t> came_{0};
  std::atomic<int64_t> covered_{0}, size_{0};
  alignas(64) std::atomic<int64_t> waiting_{0};
  alignas(64) std::atomic<int64_t> round_{0};
};
