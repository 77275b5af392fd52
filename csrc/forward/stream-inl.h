// A layer that is run a few steps at a time and keeps its weights and its state in between: Forward's parts under a
// schedule that does not depend on how many steps come, so that every cut of a sequence gives the same bits.
#pragma once
#include "choose_cell-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Few rows read weights of 16 bits as they are; more would widen them more than once.
inline Schedule stream_schedule(const LayerCall& call) {
  const bool narrow = call.B <= 4 && (call.storage == Storage::bfloat16 || call.storage == Storage::float16);
  const Layout layout = narrow ? Layout::narrow : Layout::panels;
  return {Engine::vectors, layout, layout, Layout::panels, 0, false, false, 1, 1};
}

template <class A>
class StreamOf final : public Stream {
 public:
  StreamOf(const LayerCall& given, int64_t members)
      : call_(endless(given)), loop_(call_, stream_schedule(call_), forward_cell<A>(call_)), job_{0, 0, call_.B} {
    works_.reserve(size_t(members));
    for (int64_t i = 0; i < members; ++i) works_.emplace_back(call_);
    loop_.weights.pack(false);
    loop_.start(job_);
    for (auto& work : works_) work.x.rows.allocate(call_.B * call_.I);
  }

  void read(const void* x, int64_t stride_T, int64_t stride_B) override {
    call_.x = x, loop_.operands.x = loop_.stored(x), call_.x_stride_T = stride_T, call_.x_stride_B = stride_B;
  }
  void read_extra(size_t k, const void* data, int64_t stride_T, int64_t stride_B) override {
    Extra& extra = call_.extras[k];
    extra.data = data, extra.stride_T = stride_T, extra.stride_B = stride_B;
  }
  void write(void* y, int64_t stride_T, int64_t stride_B) override {
    loop_.y = loop_.stored(y), loop_.y_stride_T = stride_T, loop_.y_stride_B = stride_B;
  }

  bool step(int64_t t, Team::Member& member) override {
    Tiles tiles;
    return loop_.step(job_, works_[member.index()], tiles, member, t, now_ + t, nullptr);
  }
  void advance(int64_t steps) override { now_ = (now_ + steps) & 1; }

  void reset(int64_t row) override {
    std::fill_n(h(row), loop_.Pp, A(0));
    for (int k = 1; k < loop_.states; ++k) std::fill_n(state(k, row), loop_.Hp, A(0));
  }
  void get_state(int k, void* to) const override {
    for (int64_t r = 0; r < call_.B; ++r) std::copy_n(state(k, r), width(k), static_cast<A*>(to) + r * width(k));
  }
  void set_state(int k, const void* from) override {
    for (int64_t r = 0; r < call_.B; ++r)
      std::copy_n(static_cast<const A*>(from) + r * width(k), width(k), state(k, r));
  }

 private:
  static LayerCall endless(LayerCall call) {
    call.T = INT64_MAX;
    return call;
  }

  A* h(int64_t row) const { return job_.h.data() + job_.at(now_, row) * loop_.Pp; }
  A* state(int k, int64_t row) const { return k ? loop_.state_of(job_, k, row) : h(row); }
  int64_t width(int k) const { return k ? call_.H : call_.P; }

  LayerCall call_;
  Forward<A> loop_;
  Strip<A> job_;
  std::vector<Work<A>> works_;  // of each member
  int64_t now_ = 0;             // the slot of h that holds the state
};

inline std::unique_ptr<Stream> stream(const LayerCall& call, int64_t members) {
  if (call.storage == Storage::float64) return std::make_unique<StreamOf<double>>(call, members);
  return std::make_unique<StreamOf<float>>(call, members);
}
}  // namespace
}  // namespace RNNKERNELS_SET
