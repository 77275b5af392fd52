// The gradients that flow back from step to step through the states of one direction: the part that reaches a state of
// the step before directly, and not through W_hh.
#pragma once
#include "tape-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct StateGradients {
  using V = Vec<A>;
  static constexpr int W = V::W;
  const Tape<A>& tape;
  const LayerCall& call = tape.call;
  const int64_t d = tape.d, B = call.B, H = call.H, P = call.P, Hp = padded<A>(H), Pp = padded<A>(P);
  const int states = int(call.cell->states);
  Scratch<A> of[Program::kStates];      // [B][Pp], the others [B][Hp]
  Scratch<A> dreset[Program::kStates];  // the same for the states that resets put there, summed over all steps

  A* h_of(int64_t b) const { return of[0].data() + b * Pp; }
  A* c_of(int64_t b, int k = 1) const { return of[k].data() + b * Hp; }

  void start() {
    for (int k = 0; k < states; ++k) {
      const int64_t n = k ? H : P, row = k ? Hp : Pp;
      of[k].allocate(B * row, true);
      if (call.dreset_states[k]) dreset[k].allocate(B * row, true);
      for (int64_t b = 0; call.dlast[k] && b < B; ++b)
        tape.stored(call.dlast[k]).get_row((d * B + b) * n, of[k].data() + b * row, n);
    }
  }

  // Gradient that reaches h after step t from the next one: sums of W_hh, and directly. Where the state was reset
  // there, that is the reset state's and none of it this one's.
  INLINE V arriving(int64_t t, int64_t b, int64_t j, V sums) {
    if (call.h_mask) sums = sums * coefficients<A>(call.h_mask, 0, d, b, j, int(std::min<int64_t>(W, P - j)));
    const V dh = sums + load(h_of(b) + j);
    return tape.reset_after(t, b) ? move(dh, dreset[0], b * Pp + j) : dh;
  }
  // The same for c or another state, in place.
  INLINE void arriving_c(int64_t t, int64_t b, int64_t j, int k = 1) {
    if (tape.reset_after(t, b)) move(load(c_of(b, k) + j), dreset[k], b * Hp + j).store(c_of(b, k) + j);
  }

  // With h complete: the gradients of initial and of reset states.
  void finish(int64_t t) {
    for (int k = 1; k < states; ++k)
      for (int64_t b = 0; b < B; ++b)
        for (int64_t j = 0; j < Hp; j += W) arriving_c(t, b, j, k);
    for (int k = 0; k < states; ++k) {
      put(call.dstates[k], k, of[k]);
      put(call.dreset_states[k], k, dreset[k]);
    }
  }

 private:
  static INLINE V move(V v, Scratch<A>& sum, int64_t at) {
    if (A* to = sum.data()) (load(to + at) + v).store(to + at);
    return V(A(0));
  }
  void put(void* to, int k, const Scratch<A>& rows) const {
    const int64_t n = k ? H : P;
    for (int64_t b = 0; to && b < B; ++b) tape.stored(to).put_row(rows.data() + b * (k ? Hp : Pp), (d * B + b) * n, n);
  }
};

// Gradients that come and go within a step, by row of the batch: of the new states as the cell made them (of h, before
// that, what arrives through W_hh), and of the operand of a product within the step, [B][row]; of the values that cross
// from the first product to the second one, [B][value][Hp].
template <class A>
struct StepGradients {
  int64_t row;
  Scratch<A> of_state[Program::kStates], of_operand, crossing;

  explicit StepGradients(const LayerCall& call) : row(std::max(padded<A>(call.H), padded<A>(call.P))) {}
  void allocate(const LayerCall& call) {
    const Program* const program = call.cell->program.get();
    of_state[0].allocate(call.B * row);
    for (int64_t k = 1; program && k < call.cell->states; ++k) of_state[k].allocate(call.B * row);
    if (call.cell->phases > 1 || (program && program->has_operand)) of_operand.allocate(call.B * row);
    if (program) crossing.allocate(call.B * row * program->crossing, true);
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
