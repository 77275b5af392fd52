// Checks csrc/threads/handover.h: everything is done once, by threads of any number and speed, and no thread waits for
// ever.
#include "handover.h"

#include "check.h"

#include <chrono>
#include <stdexcept>
#include <thread>

static int64_t threads = 2;
static thread_local int64_t here = 0;  // which thread this is

int64_t thread_count() { return threads; }
void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  std::vector<std::thread> others;
  for (int64_t i = 0; i < n; ++i)
    others.emplace_back([&, i] {
      here = i;
      try {
        body(i, i + 1);
      } catch (const std::runtime_error&) {
      }
    });
  for (auto& other : others) other.join();
}

struct Range {
  int64_t first, last;
};
constexpr int64_t kAll = 240;
static std::atomic<int> done[kAll];
static std::atomic<int> by[8], given;

// Everything in so many first shares; thread 0 takes `slow` microseconds for each, the others `fast`.
static void run(int64_t shares, bool parallel, int slow, int fast, int64_t broken = -1) {
  for (auto& each : done) each = 0;
  for (auto& each : by) each = 0;
  given = 0;
  std::vector<Range> first;
  for (int64_t i = 0; i < shares; ++i) first.push_back({kAll * i / shares, kAll * (i + 1) / shares});
  Handover<Range> work(std::move(first));
  work.run(parallel, [&](Range& range) {
    for (; range.first < range.last; ++range.first) {
      if (work.wanted() && range.last - range.first > 1) {
        const int64_t half = (range.first + range.last) / 2;
        work.give({half, range.last}), range.last = half, ++given;
      }
      if (range.first == broken) throw std::runtime_error("broken");
      std::this_thread::sleep_for(std::chrono::microseconds(here ? fast : slow));
      ++done[range.first], ++by[here];
    }
  });
}
static bool all_once() {
  for (auto& each : done)
    if (each != 1) return false;
  return true;
}

int main() {
  // One thread divides nothing.
  run(2, false, 0, 0), CHECK(all_once() && given == 0);
  run(1, true, 0, 0), CHECK(all_once() && given == 0);
  for (threads = 2; threads <= 8; ++threads)
    for (int64_t shares : {2, 3, 7, 16})
      for (int n = 0; n < 20; ++n) run(shares, true, 0, 0), CHECK(all_once());

  // A slow thread keeps less than a third of its half, which a fast one would otherwise wait for.
  threads = 2, run(2, true, 2000, 50);
  CHECK(all_once() && by[0] < kAll / 6 && given > 0);

  // What fails ends the share it is in, and nobody waits for it.
  threads = 4, run(4, true, 100, 100, 100);
  CHECK(done[99] == 1 && done[100] == 0);
  std::printf("ok\n");
}
