// A cell as the backward loop calls it.
#pragma once
#include "../cells/run_program-inl.h"
#include "tape-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct Backward;

// Rows r..r+n of the batch and vectors q0..q1 of hidden units, where a cell's functions are run for step t, whose
// gradients of pre-activations go to `slot`.
template <class A>
struct BackwardBlock {
  Machine<A>* machine;  // of a program
  A* part;              // with layer norms: where gradients of gains and biases are added up
  int64_t slot, t, r, n, q0, q1;
};

// Null: the cell has none.
template <class A>
struct BackwardCell {
  using Function = void (*)(Backward<A>&, const BackwardBlock<A>&);
  using Again = void (*)(const Tape<A>&, Machine<A>*, int64_t t, int64_t b, A* to);
  // The last gates whose sums with the input and with the state stay apart: so do their gradients.
  int split = 0;
  Function last = nullptr;     // gradients of new states and output -> those of pre-activations and old states
  Function first = nullptr;    // gradient of the second product's operand -> the same for the first product's gates
  Function operand = nullptr;  // that of the first product's operand, which is not h -> of old states
  // Rows that the products multiplied, from what the forward pass left: of the first product, where that is not h; of
  // the second one; before a projection.
  Again operand_again = nullptr, second_again = nullptr, output_again = nullptr;
};

// The operands of products, for one thread.
template <class A>
class OperandsAgain {
 public:
  OperandsAgain(const Tape<A>& tape, const BackwardCell<A>& cell) : tape_(tape), cell_(cell) {
    if (tape.call.cell->program) machine_.emplace(tape.call);
  }
  void first(int64_t t, int64_t b, A* to) {
    if (cell_.operand_again) run(cell_.operand_again, t, b, to);
    else tape_.get_h_before(t, b, to);
  }
  void second(int64_t t, int64_t b, A* to) { run(cell_.second_again, t, b, to); }
  void output(int64_t t, int64_t b, A* to) { run(cell_.output_again, t, b, to); }

 private:
  void run(typename BackwardCell<A>::Again again, int64_t t, int64_t b, A* to) {
    again(tape_, machine_ ? &*machine_ : nullptr, t, b, to);
  }
  const Tape<A>& tape_;
  const BackwardCell<A>& cell_;
  std::optional<Machine<A>> machine_;
};
}  // namespace
}  // namespace RNNKERNELS_SET
