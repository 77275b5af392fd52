// Threads that work on one problem in step. Knows neither torch nor OpenMP: ops.cpp provides parallel_for.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <utility>

#include "sharing.h"

// Calls body(lo, hi) for ranges that cover 0..n, on several threads if there are any, or on this one alone where that
// was seen to be faster. Defined in ops.cpp.
CORE void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& body);
CORE int64_t thread_count();

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until condition() is true, or for `limit`, and returns whether it is: spins for a bounded time, then lets other
// threads of the machine run.
template <class Condition>
bool wait_until(Condition condition, Clock::duration limit = Clock::duration::max()) {
  for (int spin = 0; spin < 4000; ++spin) {
    if (condition()) return true;
    pause_briefly();
  }
  for (const auto start = Clock::now(); Clock::now() - start < limit; std::this_thread::yield())
    if (condition()) return true;
  return false;
}

// A team has as many members as threads really came: parallel_for may run nested on one thread, be granted fewer
// threads than asked, or have some of them late. The first to come waits for the others for a bounded time, then closes
// the team; who comes later goes away again. So every member is a running thread, and a barrier among them cannot hang.
// A member that is waited for so long at barriers that one alone would have been faster is left behind: who waited goes
// on alone from there. A thread that is late once, as happens every few hundredths of a second, is not. Where one
// throws, the others leave at their next barrier, and parallel_for throws it again.
class Team {
 public:
  // One thread's place in the team: `index` of `size`.
  class Member {
   public:
    int64_t index() const { return index_; }
    // This member's share of n: first and last + 1.
    std::pair<int64_t, int64_t> share(int64_t n) const { return {n * index_ / size_, n * (index_ + 1) / size_}; }
    // Returns when all members have called it: true to go on, false to leave the team.
    bool barrier() { return size_ == 1 || team_->arrive(*this); }

   private:
    friend Team;
    Member(Team* team, int64_t index, int64_t size) : team_(team), index_(index), size_(size) {}
    Team* team_;
    int64_t index_, size_;
    Clock::time_point start_ = Clock::now();
    Clock::duration lost_{0};  // at barriers, where others were late
  };

  // body(member): called by every member at the same time.
  template <class Body>
  static void run(int64_t wanted, const Body& body) {
    Team team;
    if (wanted <= 1) {
      Member alone(&team, 0, 1);
      return body(alone);
    }
    parallel_for(wanted, [&](int64_t lo, int64_t hi) {
      int64_t index = team.came_.fetch_add(1);
      if (index >= kClosed) return;
      team.covered_.fetch_add(hi - lo);
      if (index == 0) {
        const auto end = Clock::now() + Sharing::kPatience;
        while (team.covered_.load() < wanted && Clock::now() < end) pause_briefly();
        team.size_.store(team.came_.fetch_add(kClosed));
      } else {
        wait_until([&] { return team.size_.load() != 0; });
      }
      Member member(&team, index, team.size_.load());
      try {
        body(member);
      } catch (...) {
        team.failed_.store(true);
        throw;
      }
    });
  }

 private:
  bool arrive(Member& member) {
    const int64_t round = round_.load(std::memory_order_acquire);
    auto over = [&] { return round_.load(std::memory_order_acquire) != round || failed_.load(); };
    const int64_t before = waiting_.fetch_add(1, std::memory_order_acq_rel);
    if (before + 1 == member.size_) {
      waiting_.store(0, std::memory_order_relaxed);
      alone_.store(impatient_.load(std::memory_order_acquire), std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    } else if (const auto came = Clock::now(); !wait_until(over, Sharing::kPatience)) {
      if (!wait_until(over, patience(member, came))) {
        int64_t none = -1;
        impatient_.compare_exchange_strong(none, member.index_, std::memory_order_acq_rel);
        wait_until(over);
      }
      const auto late = Clock::now() - came;
      member.lost_ += late;
      if (before == 0) Sharing::late(late);
    }
    if (failed_.load()) return false;
    const int64_t alone = alone_.load(std::memory_order_relaxed);
    if (alone < 0) return true;
    if (alone != member.index_) return false;
    member.index_ = 0, member.size_ = 1;
    return true;
  }

  // How long a member that came to a barrier then waits there before it would rather have been alone: n members of whom
  // one is always waited for have lost all they gained once (n - 1) / n of their time was waiting.
  static Clock::duration patience(const Member& member, Clock::time_point came) {
    const auto worked = came - member.start_ - member.lost_;
    return std::max<Clock::duration>(kLeast, (member.size_ - 1) * worked) - member.lost_;
  }

  static constexpr std::chrono::milliseconds kLeast{10};  // two turns of another program
  static constexpr int64_t kClosed = int64_t(1) << 32;
  alignas(64) std::atomic<int64_t> came_{0};
  std::atomic<int64_t> covered_{0}, size_{0}, impatient_{-1}, alone_{-1};
  std::atomic<bool> failed_{false};
  alignas(64) std::atomic<int64_t> waiting_{0};
  alignas(64) std::atomic<int64_t> round_{0};
};
