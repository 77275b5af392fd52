// Working memory of a call, and loops that may be spread over threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "../machine/pages.h"
#include "team.h"

// Memory that a thread has worked with and will again: the system takes long to hand out fresh pages. A block is used
// for what fills at least half of it; what does not fit in goes back to the system, the oldest first.
class Pool {
 public:
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
  };
  static Block take(size_t bytes) {
    auto& blocks = kept().blocks;
    size_t best = blocks.size();
    for (size_t i = 0; i < blocks.size(); ++i)
      if (blocks[i].bytes >= bytes && blocks[i].bytes / 2 <= bytes &&
          (best == blocks.size() || blocks[i].bytes < blocks[best].bytes))
        best = i;
    if (best < blocks.size()) {
      const Block block = blocks[best];
      blocks.erase(blocks.begin() + int64_t(best));
      kept().bytes -= block.bytes;
      return block;
    }
    bytes = (bytes + 63) / 64 * 64;
    void* data = std::aligned_alloc(64, bytes);
    if (!data) throw std::bad_alloc();
    prefer_large_pages(data, bytes);
    return {data, bytes};
  }
  static void give_back(Block block) {
    Kept& kept = Pool::kept();
    if (!block.data) return;
    if (block.bytes > kMost) return std::free(block.data);
    kept.blocks.push_back(block);
    kept.bytes += block.bytes;
    while (kept.bytes > kMost || kept.blocks.size() > 32) {
      kept.bytes -= kept.blocks.front().bytes;
      std::free(kept.blocks.front().data);
      kept.blocks.erase(kept.blocks.begin());
    }
  }

 private:
  static constexpr size_t kMost = size_t(8) << 20;  // of a thread
  struct Kept {
    std::vector<Block> blocks;
    size_t bytes = 0;
    ~Kept() {
      for (const Block& block : blocks) std::free(block.data);
    }
  };
  static Kept& kept() {
    thread_local Kept kept;
    return kept;
  }
};

// An aligned buffer that keeps its memory when it is asked for again.
template <class A>
class Scratch {
 public:
  Scratch() = default;
  Scratch(Scratch&& other) noexcept { *this = std::move(other); }
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Scratch() { Pool::give_back(block_); }

  void allocate(int64_t n, bool zero = false) {
    const size_t bytes = size_t(n) * sizeof(A);
    if (bytes > block_.bytes) {
      Pool::give_back(block_);
      block_ = {};
      block_ = Pool::take(bytes);
    }
    if (zero && n > 0) std::memset(block_.data, 0, bytes);
  }
  A* data() const { return static_cast<A*>(block_.data); }

 private:
  Pool::Block block_;
};

// Something that any thread may find to be so.
class Flag {
 public:
  void operator|=(bool found) {
    if (__builtin_expect(found, 0)) set_.store(true, std::memory_order_relaxed);
  }
  explicit operator bool() const { return set_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> set_{false};
};

// body(i) for i in 0..n, on several threads if `parallel`: each takes the next one when it is done with one, so that a
// slow core takes fewer.
template <class Body>
inline void spread(bool parallel, int64_t n, const Body& body) {
  std::atomic<int64_t> next{0};
  auto take = [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) body(i);
  };
  if (parallel && n > 1) parallel_for(std::min(n, thread_count()), take);
  else take(0, n);
}
