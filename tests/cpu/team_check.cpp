// Checks csrc/threads/team.h: who stays in a team whose members are late at barriers.
#include "team.h"

#include "check.h"

#include <exception>
#include <new>
#include <vector>

using std::chrono::milliseconds;

int64_t thread_count() { return 8; }
void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  std::vector<std::thread> others;
  std::exception_ptr failed;
  for (int64_t i = 0; i < n; ++i)
    others.emplace_back([&, i] {
      try {
        body(i, i + 1);
      } catch (...) {
        failed = std::current_exception();
      }
    });
  for (auto& other : others) other.join();
  if (failed) std::rethrow_exception(failed);
}

constexpr int kSteps = 40, kBusy = 77;
constexpr int64_t kFine = 1 << 20;  // things to share, so many that a share tells how large the team is

// How many members did each of the steps, of a team of so many; member 1 rests before the barriers of steps for which
// late(step) milliseconds are more than 0, the others work for 1 ms a step.
// (On a busy machine all of them may not come, or one that was not meant to be late is: then once more, ten times at
// most.)
template <class Late>
static std::vector<int> run(int64_t members, const Late& late, int tries = 10) {
  if (tries == 0) {
    std::printf("other programs kept the threads of this test from running\n");
    std::exit(kBusy);
  }
  std::vector<std::atomic<int>> did(kSteps);
  std::atomic<bool> whole = true, disturbed = false;
  Team::run(members, [&](Team::Member& member) {
    const auto [lo, hi] = member.share(kFine);
    if (hi - lo > kFine / members + 1) {
      whole = false;
      return;
    }
    for (int step = 0; step < kSteps; ++step) {
      ++did[step];
      const int ms = member.index() == 1 ? late(step) : 0;
      const auto start = Clock::now();
      std::this_thread::sleep_for(milliseconds(1 + ms));
      if (Clock::now() - start > milliseconds(1 + ms) + milliseconds(2)) disturbed = true;
      if (!member.barrier()) return;
    }
  });
  return whole && !disturbed ? std::vector<int>{did.begin(), did.end()} : run(members, late, tries - 1);
}

// Where a member throws, the others leave at their next barrier, and its exception comes out.
static bool throws() {
  try {
    Team::run(3, [&](Team::Member& member) {
      for (int step = 0; step < kSteps; ++step) {
        if (step == 3 && member.index() == 0) throw std::bad_alloc();
        if (!member.barrier()) return;
      }
    });
  } catch (const std::bad_alloc&) {
    return true;
  }
  return false;
}

int main() {
  CHECK(throws());
  for (int64_t members : {2, 3}) {
    // A member that is late now and then, for a few milliseconds each time, stays.
    for (int n : run(members, [](int step) { return step % 20 == 10 ? 4 : 0; })) CHECK(n == members);
    // One that others spend nearly all of their time waiting for is left behind, and one member does the rest.
    const std::vector<int> did = run(members, [&](int step) { return step < 20 ? 12 * int(members) : 0; });
    CHECK(did.front() == members && did.back() == 1);
  }
  // One that is waited for at the first barrier already, for long.
  const std::vector<int> did = run(2, [](int step) { return step ? 0 : 60; });
  CHECK(did[0] == 2 && did[1] == 1 && did.back() == 1);
  std::printf("ok\n");
}
