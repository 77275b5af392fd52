// What a program's sections read of the forward pass, and the operands of its products, made again.
#pragma once
#include "../cells/run_program-inl.h"
#include "tape-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Loads for step t of one direction; rows of blocks are those of the batch.
template <class A>
struct TapeSource {
  using V = Vec<A>;
  static constexpr int W = V::W;

  const Tape<A>& tape;
  int64_t t = 0;
  bool masked = false;  // h as the inner product's operand sees it
  A* row = nullptr;     // where an operand goes
  const LayerCall& call = tape.call;
  const Program& program = *call.cell->program;
  const int64_t d = tape.d, H = tape.H, Hp = padded<A>(H);

  int lanes(int64_t q) const { return lanes_of<A>(H, q); }
  V mask(int64_t b, int64_t q) const {
    return call.h_mask ? coefficients<A>(call.h_mask, 0, d, b, q * W, lanes(q)) : V(A(1));
  }

  // The new state as the cell itself made it.
  StoredRows<A> rows_of_new(int k) const {
    return call.zone[0] ? tape.rows_of_plane(t, program.zoned_plane(k)) : tape.rows_of_state_after(k, t);
  }

  void load(Machine<A>& machine, const Instruction& each, const Run& run) {
    const int k = each.index;
    switch (each.op) {
      case Op::v:
        return machine.bind(each, {tape.vectors.data() + k * Hp, 0, W}, run);
      case Op::x:
        return machine.bind(each, given_rows<A>(call, k, d, t, 0), run);
      case Op::u:
        return machine.bind(each, extra_rows<A>(call, k, d, t, 0), run);
      case Op::k:
        return machine.bind(each, tape.rows_of_plane(t, k), run);
      case Op::n:
        return machine.bind(each, rows_of_new(k), run);
      case Op::s:
        if (tape.states_lie_in_rows(t) && !(masked && k == 0 && call.h_mask))
          return machine.bind(each, tape.rows_of_state_after(k, tape.before(t)), run);
        return machine.fill(each, run, [&](int64_t b, int64_t q) {
          const V v = tape.state_before(k, t, b, q * W, lanes(q));
          return masked && k == 0 && call.h_mask ? v * mask(b, q) : v;
        });
      default:  // a, r, i: not in a section that is run again, see `again_there`
        __builtin_trap();
    }
  }
  void put(const PutOrder& order, const typename Machine<A>::Value& value, const Run& run) {
    value.each(run, [&](V v, int64_t b, int64_t q) {
      v = order.kind == Put::operand ? v * mask(b, q) : v;
      first_of(v, lanes(q)).store(row + q * W);
    });
  }
};

// The operand of a product of row b in step t, as the section that made it makes it again.
template <class A>
void again(const Section& section, bool masked, const Tape<A>& tape, Machine<A>* machine, int64_t t, int64_t b, A* to) {
  TapeSource<A> source{tape, t, masked, to};
  machine->run(section, b, b + 1, 0, source.Hp / Vec<A>::W, false, source);
}
template <class A>
void program_operand_again(const Tape<A>& tape, Machine<A>* machine, int64_t t, int64_t b, A* to) {
  again(tape.call.cell->program->operand, false, tape, machine, t, b, to);
}
template <class A>
void program_second_again(const Tape<A>& tape, Machine<A>* machine, int64_t t, int64_t b, A* to) {
  again(tape.call.cell->program->again, true, tape, machine, t, b, to);
}
template <class A>
void program_output_again(const Tape<A>& tape, Machine<A>* machine, int64_t t, int64_t b, A* to) {
  again(tape.call.cell->program->output_again, false, tape, machine, t, b, to);
}
}  // namespace
}  // namespace RNNKERNELS_SET
