// The choice between several threads and one for a call: measured, never guessed. Knows neither torch nor OpenMP.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

// Functions of the core that the Python binding, a library of its own, calls.
#define CORE __attribute__((visibility("default")))

using Clock = std::chrono::steady_clock;

// Around one call. Other programs may hold a processor for milliseconds, and the cores of a virtual machine are uneven:
// then threads are waited for. Where that was a quarter of the time of two calls of a kind, one after the other, the
// next one is done by its thread alone, and timed. If it was faster than shared calls are of late, single ones of which
// are slow on any machine, calls of that kind stay alone for 20 ms, then one is shared again, and either stays so or
// goes alone for twice as long as before, up to 200 ms. A call that is done alone is cut into the same parts, so its
// results are the same bits.
class Sharing {
 public:
  // A wait that a machine of our own does not know: longer than it takes to wake a thread, shorter than its turn.
  static constexpr std::chrono::microseconds kPatience{1000};

  // `kind`: what is the same of calls that take the same time a step.
  Sharing(uint64_t kind, int64_t steps)
      : record_(find(kind)), steps_(std::max<int64_t>(steps, 1)), lost_(all_lost_.load(relaxed)), outer_(current_) {
    current_ = this;
    start_ = now();
    alone_ = record_.trial.load(relaxed) || start_ < record_.until.load(relaxed);
  }
  ~Sharing() {
    current_ = outer_;
    if (!asked_) return;
    const int64_t end = now(), took = std::max<int64_t>((end - start_) / steps_, 1);
    const auto waited = waited_ + std::chrono::nanoseconds(all_lost_.load(relaxed) - lost_);
    if (alone_) learn_alone(end, took);
    else learn_shared(end, took, waited > kPatience && 4 * waited > std::chrono::nanoseconds(end - start_));
  }
  Sharing(const Sharing&) = delete;
  Sharing& operator=(const Sharing&) = delete;

  // True if this thread's call, which could be shared now, is to be done by this thread alone.
  static bool alone() {
    if (current_) current_->asked_ = true;
    return current_ && current_->alone_;
  }
  // This thread is done with its part of a call, and waited so long for the others.
  static void waited(Clock::duration time) {
    if (current_) current_->waited_ += time;
  }
  // At a barrier, a thread was waited for so long: longer than kPatience.
  static void late(Clock::duration time) {
    all_lost_.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count(), relaxed);
  }

 private:
  static constexpr auto relaxed = std::memory_order_relaxed;
  static constexpr int64_t kLeast = 20'000'000, kMost = 200'000'000, kFresh = 2'000'000'000;  // nanoseconds
  static int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
  }

  // Measurements of a kind: nanoseconds a step. Threads may write at once: then one of them has learnt in vain.
  struct Record {
    std::atomic<uint64_t> kind{0};
    std::atomic<int64_t> shared{0};                // moving average of shared calls, which falls faster than it rises
    std::atomic<int64_t> single{0}, single_at{0};  // the latest one alone, and when that was
    std::atomic<int64_t> until{0}, pause{kLeast};  // alone until then, for that long
    std::atomic<int64_t> next_trial{0};
    std::atomic<int> lates{0};  // one after the other
    std::atomic<bool> trial{false};
    void reset(uint64_t of) {
      kind.store(of, relaxed);
      for (auto* each : {&shared, &single, &single_at, &until, &next_trial}) each->store(0, relaxed);
      pause.store(kLeast, relaxed), lates.store(0, relaxed), trial.store(false, relaxed);
    }
  };
  static Record& find(uint64_t kind) {
    static Record table[512];
    Record& record = table[(kind ^ kind >> 32) % 512];
    if (record.kind.load(relaxed) != kind) record.reset(kind);
    return record;
  }

  void learn_alone(int64_t end, int64_t took) {
    Record& r = record_;
    r.single.store(took, relaxed), r.single_at.store(end, relaxed);
    if (!r.trial.exchange(false, relaxed)) return;
    if (took < r.shared.load(relaxed)) stay_alone(end, kLeast);
    else r.next_trial.store(end + kMost, relaxed), r.lates.store(0, relaxed);
  }

  void learn_shared(int64_t end, int64_t took, bool late) {
    Record& r = record_;
    const int64_t earlier = r.shared.load(relaxed), weight = took < earlier ? 1 : 3,
                  shared = earlier ? (weight * earlier + took) / (weight + 1) : took;
    r.shared.store(shared, relaxed);
    if (!late) return r.lates.store(0, relaxed), r.pause.store(kLeast, relaxed);
    const bool known = end - r.single_at.load(relaxed) < kFresh && r.lates.load(relaxed) > 0;
    if (known && r.single.load(relaxed) < shared) stay_alone(end, std::min(2 * r.pause.load(relaxed), kMost));
    else if (r.lates.fetch_add(1, relaxed) > 0 && end > r.next_trial.load(relaxed)) r.trial.store(true, relaxed);
  }

  void stay_alone(int64_t end, int64_t pause) {
    record_.pause.store(pause, relaxed), record_.until.store(end + pause, relaxed);
  }

  Record& record_;
  const int64_t steps_, lost_;
  int64_t start_;
  Clock::duration waited_{0};
  Sharing* const outer_;
  bool alone_, asked_ = false;
  static inline thread_local Sharing* current_ = nullptr;
  static inline std::atomic<int64_t> all_lost_{0};  // nanoseconds, of all calls
};
