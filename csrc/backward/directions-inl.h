// The backward pass of all directions of a layer: at once where these share out few rows better, each with a thread of
// its own, or one after the other.
#pragma once
#include "choose_cell-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Results that the directions of a group have in common. Of two directions of few rows the second one has its own,
// which are added at the end: always, so that the number of threads changes no bit. (Heads may be more directions,
// which would take that memory each.)
template <class A>
class OwnResults {
 public:
  LayerCall call;  // that writes into them

  explicit OwnResults(const LayerCall& of) : call(of) {
    const int64_t X = call.D / int64_t(call.reverse.size()), steps = X * call.T * call.B;
    take(call.dx, steps * call.I);
    for (size_t k = 0; k < call.dextras.size(); ++k) {
      const bool of_steps = int64_t(k) < call.cell->program->steps;
      take(call.dextras[k], (of_steps ? steps : X * call.B) * (call.extras[k].narrow ? 1 : call.H));
    }
  }
  void add() const {
    constexpr int64_t W = Vec<A>::W;
    for (const Result& each : results_) {
      const Stored<A> to(each.to, call.storage), own(each.own.data(), call.storage);
      for (int64_t i = 0; i < each.size; i += W) {
        const int n = int(std::min(W, each.size - i));
        to.put(to.get(i, n) + own.get(i, n), i, n);
      }
    }
  }

 private:
  struct Result {
    void* to;
    int64_t size;
    Scratch<A> own;
  };
  void take(void*& result, int64_t size) {
    if (!result) return;
    results_.push_back({result, size, {}});
    results_.back().own.allocate(size);
    result = results_.back().own.data();
  }
  std::vector<Result> results_;
};

// False if a number came that has no bf16 parts: then the results are void.
template <class A>
bool run_directions(const LayerCall& call, Schedule s) {
  const int64_t R = int64_t(call.reverse.size()), threads = thread_count();
  s.unit_threads = std::min(s.unit_threads, (call.H + Backward<A>::WIDTH - 1) / Backward<A>::WIDTH);  // panels
  const bool few = call.B <= kFewForRows && R <= 2, shared = s.threaded && s.unit_threads == 1;
  if (shared) s.row_jobs = std::clamp<int64_t>(call.B / 6, 1, threads);
  const bool at_once = call.D > 1 && shared && few && (s.row_jobs == 1 || call.D >= threads);
  if (at_once) s.row_jobs = 1;
  std::optional<OwnResults<A>> second;
  if (few && R == 2) second.emplace(call);
  std::atomic<bool> fine{true};
  spread(at_once, call.D, [&](int64_t d) {
    if (!fine) return;
    const bool later = d % R > 0, adds = later && !second;
    if (!Backward<A>(later && second ? second->call : call, s, backward_cell<A>(call), d, adds).run()) fine = false;
  });
  if (fine && second) second->add();
  return fine;
}
}  // namespace
}  // namespace RNNKERNELS_SET
