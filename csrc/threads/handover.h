// Work that is divided while it is done. Knows neither torch nor OpenMP.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "team.h"

// Cores of a virtual machine are uneven, and differently so from second to second: equal shares wait for the slow one.
// So a thread that has nothing left to do says so, and who sees that hands over half of the share it is at.
template <class Share>
class Handover {
 public:
  explicit Handover(std::vector<Share> first) : shares_(std::move(first)) {}

  // body(share) for all of the first shares, and for those given by `body`: on as many threads as there are first
  // shares if `parallel`, else on this one.
  template <class Body>
  void run(bool parallel, const Body& body) {
    auto work = [&](int64_t, int64_t) {
      while (std::optional<Share> share = take()) {
        Done done{this};
        body(*share);
      }
    };
    const int64_t threads = parallel ? std::min(int64_t(shares_.size()), thread_count()) : 1;
    if (threads > 1) parallel_for(threads, work);
    else work(0, 1);
  }

  // True if a thread waits for a share that nobody has given yet: one load, cheap enough for every step.
  bool wanted() const { return wanted_.load(std::memory_order_relaxed) > 0; }
  void give(Share share) {
    std::lock_guard lock(mutex_);
    shares_.push_back(std::move(share));
    update();
  }

 private:
  struct Done {
    Handover* of;
    ~Done() {
      std::lock_guard lock(of->mutex_);
      --of->busy_;
      of->update();
    }
  };

  // The next share; none when all are done, until when a thread waits.
  std::optional<Share> take() {
    for (bool first = true;; first = false) {
      {
        std::lock_guard lock(mutex_);
        waiting_ -= !first;
        std::optional<Share> share;
        if (!shares_.empty()) {
          share = std::move(shares_.back());
          shares_.pop_back();
          ++busy_;
        } else if (busy_ > 0) {
          ++waiting_;
        }
        update();
        if (share || busy_ == 0) return share;
      }
      const auto idle = Clock::now();
      wait_until([&] { return changed_.load(std::memory_order_acquire); });
      Sharing::waited(Clock::now() - idle);  // for a thread that another program has stopped, it may be long
    }
  }

  // After every change, with the mutex held.
  void update() {
    wanted_.store(waiting_ - int64_t(shares_.size()), std::memory_order_relaxed);
    changed_.store(!shares_.empty() || busy_ == 0, std::memory_order_release);
  }

  std::mutex mutex_;
  std::vector<Share> shares_;        // that nobody has taken
  int64_t busy_ = 0, waiting_ = 0;   // threads with a share, and without
  std::atomic<int64_t> wanted_{0};   // more shares than there are
  std::atomic<bool> changed_{true};  // a share is there, or all are done
};
