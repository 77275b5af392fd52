// A cell as the forward loop calls it.
#pragma once
#include "../cells/run_program-inl.h"
#include "operands-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct Forward;

// Buffers of a single thread.
template <class A>
struct Work {
  typename Operands<A>::Copy x, h, second;
  std::optional<Machine<A>> machine;  // of a program
  explicit Work(const LayerCall& call) {
    if (call.cell->program) machine.emplace(call);
  }
};

// Rows r..r+n of a strip and vectors q0..q1 of hidden units, where a cell's functions are run for step t, whose old h
// is in `slot`; and the sums of gates in panels: with the input, with the state, and those of the second product.
template <class A>
struct Block {
  const Strip<A>& strip;
  Work<A>& work;
  int64_t t, slot, r, n, q0, q1;
  Place<A> x{}, state{}, second{};
};

// Null: the cell has none.
template <class A>
struct ForwardCell {
  using Function = void (*)(const Forward<A>&, const Block<A>&);
  Function operand = nullptr;  // old states -> what the first product multiplies, where that is not h
  Function first = nullptr;    // sums of the first product -> what the second one multiplies
  Function last = nullptr;     // all sums -> new states and output
  Function output = nullptr;   // new c, all units of it -> the norm of c -> output
};
}  // namespace
}  // namespace RNNKERNELS_SET
