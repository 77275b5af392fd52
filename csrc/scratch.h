// Working memory of a call, and loops that may be spread over threads.
#pragma once
#include <cstdlib>
#include <cstring>
#include <new>

#include "team.h"

// An aligned buffer that keeps its memory when it is asked for again.
template <class A>
class Scratch {
 public:
  Scratch() = default;
  Scratch(Scratch&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  void allocate(int64_t n, bool zero = false) {
    if (n > size_) {
      std::free(data_);
      size_t bytes = (size_t(n) * sizeof(A) + 63) / 64 * 64;
      data_ = static_cast<A*>(std::aligned_alloc(64, bytes));
      if (!data_) throw std::bad_alloc();
      size_ = n;
    }
    if (zero && n > 0) std::memset(static_cast<void*>(data_), 0, size_t(n) * sizeof(A));
  }
  A* data() const { return data_; }

 private:
  A* data_ = nullptr;
  int64_t size_ = 0;
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

// body(i) for i in 0..n, on several threads if `parallel`.
template <class Body>
inline void spread(bool parallel, int64_t n, const Body& body) {
  auto range = [&](int64_t lo, int64_t hi) {
    for (int64_t i = lo; i < hi; ++i) body(i);
  };
  if (parallel && n > 1) parallel_for(n, range);
  else range(0, n);
}
