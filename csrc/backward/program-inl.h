// A cell that is a program in the backward loop: gradients of the states arrive, and its sections make those of
// pre-activations, states, vectors and inputs from them.
#pragma once
#include "loop-inl.h"
#include "program_tape-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct BackwardSource {
  using V = Vec<A>;
  static constexpr int W = V::W;

  Backward<A>& loop;
  const int64_t slot, t;
  TapeSource<A> tape;
  const Program& program = tape.program;
  const int64_t Hp = loop.Hp, row = loop.gradients.row;

  BackwardSource(Backward<A>& of, const BackwardBlock<A>& block, bool masked)
      : loop(of), slot(block.slot), t(block.t), tape{of.tape, block.t, masked} {}

  bool all_alive(const Run& run) const { return tape.call.all_alive(tape.d, t, run.m, run.rows); }
  Place<A> place(const Scratch<A>& rows) const { return {rows.data(), row, W}; }
  void load(Machine<A>& machine, const Instruction& each, const Run& run) {
    const auto& from = loop.gradients;
    switch (each.op) {
      case Op::g:
        return machine.bind(each, place(from.of_state[each.index]), run);
      case Op::gi:
      case Op::go:
        return machine.bind(each, place(from.of_operand), run);
      case Op::dcross:
        return machine.bind(each, {from.crossing.data() + each.index * Hp, program.crossing * Hp, W}, run);
      case Op::gy:
        return machine.bind(each, StoredRows<A>{loop.dy, loop.tape.dy_at(t, 0), tape.call.dy_stride_B}, run);
      default:
        return tape.load(machine, each, run);
    }
  }

  // The gradient of a gate that is x itself.
  void put_dx(int gate, const typename Machine<A>::Value& value, const Run& run) {
    if (!loop.dx) return;
    const int64_t first = loop.dx_at(t, 0) + gate * tape.H;
    if (loop.dx.direct() && !loop.adds && all_alive(run))
      return value.store_units(run, loop.dx.at(first), loop.I, tape.H, loop.far);
    value.each(run, [&](V v, int64_t b, int64_t q) __attribute__((always_inline)) {
      const int n = tape.lanes(q);
      const int64_t at = first + b * loop.I + q * W;
      v = loop.tape.alive(t, b) ? v : V(A(0));
      loop.dx.put(loop.adds ? loop.dx.get(at, n) + v : v, at, n);
    });
  }

  void put(const PutOrder& order, const typename Machine<A>::Value& value, const Run& run) {
    if (loop.straight && order.x_gate >= 0) return put_dx(order.x_gate, value, run);
    const bool to_state = order.kind == Put::ds, crosses = order.kind == Put::dcross, add = to_state || order.add;
    // A gate's gradient may have two places, one for each side; the first one is split where products want it so.
    const bool of_gate = order.x_gate >= 0 || order.r_gate >= 0, normed = tape.call.layer_norm;
    const int plane = order.x_gate >= 0       ? loop.at.x[size_t(order.x_gate)]
                      : order.r_gate >= 0     ? loop.at.r[size_t(order.r_gate)]
                      : order.kind == Put::dv ? loop.at.vector[order.index]
                      : order.kind == Put::du ? loop.at.extra[order.index]
                                              : 0;
    const int other = normed && order.x_gate >= 0 && order.r_gate >= 0 ? loop.at.r[size_t(order.r_gate)] : -1;
    const bool split = loop.step_parts && of_gate && !normed;
    const bool masked = to_state && order.index == 0 && tape.masked && tape.call.h_mask;
    A* const to = to_state  ? loop.carried.of[order.index].data()
                  : crosses ? loop.gradients.crossing.data() + order.index * Hp
                            : loop.dz_of(slot, 0) + plane * Hp;
    const int64_t to_row = to_state ? Hp : (crosses ? program.crossing : loop.planes) * Hp;
    auto split_up = [&](V v, int64_t b, int64_t q) __attribute__((always_inline)) {
      loop.dz_split.put(v, slot * loop.B + b, plane * loop.Hk + q * W, loop.overflow);
    };
    if (other < 0 && !masked && all_alive(run)) {  // by far the most of all, without a branch in their loops
      auto at = [=](int64_t b, int64_t q) __attribute__((always_inline)) { return to + b * to_row + q * W; };
      if (add)
        value.each(run, [&, H = tape.H](V v, int64_t b, int64_t q) __attribute__((always_inline)) {
          (RNNKERNELS_SET::load(at(b, q)) + first_of(v, lanes_of<A>(H, q))).store(at(b, q));
        });
      else value.store_padded(run, to, to_row, tape.H);
      if (split)
        value.each(run, [&](V, int64_t b, int64_t q)
                            __attribute__((always_inline)) { split_up(RNNKERNELS_SET::load(at(b, q)), b, q); });
      return;
    }
    value.each(run, [&](V v, int64_t b, int64_t q) __attribute__((always_inline)) {
      A* const at = to + b * to_row + q * W;
      v = first_of(loop.tape.alive(t, b) ? v : V(A(0)), tape.lanes(q));
      if (masked) v = v * tape.mask(b, q);
      (add ? RNNKERNELS_SET::load(at) + v : v).store(at);
      if (other >= 0) v.store(loop.dz_of(slot, b) + other * Hp + q * W);
      if (split) split_up(v, b, q);
    });
  }
};

// The gradients of the states after step t, for rows r..r+n and vectors q0..q1 of units: those of the new states go to
// the cell, and what zoneout or the end of a sequence lets pass stays with the old ones. That of state 0 through the
// recurrent product is there; with a projection, all of it. States apart from y may have gradients of every step.
template <class A>
void arrive(Backward<A>& loop, const BackwardBlock<A>& of) {
  using V = Vec<A>;
  const LayerCall& call = loop.call;
  const int64_t t = of.t, row = loop.gradients.row;
  const bool zoned = bool(call.zone[0]), y_is_h = !call.cell->program->has_y;
  const bool plain = !zoned && !call.reset && !call.h_mask, whole = loop.H % V::W == 0;
  for (int k = call.project; k < int(call.cell->states); ++k) {
    const int64_t history = call.cell->program->history(k);
    const A* const dcells =
        history < 0 || !loop.dcells ? nullptr : loop.dcells + history * call.D * loop.T * loop.B * loop.H;
    for (int64_t b = of.r; b < of.r + of.n; ++b) {
      const int64_t at = loop.tape.cells_at(t, b), y = loop.tape.dy_at(t, b);
      A *const to = loop.gradients.of_state[k].data() + b * row, *const carried = loop.carried.c_of(b, k);
      const bool alive = loop.tape.alive(t, b);
      if (plain && alive) {
        auto put = [&, H = loop.H, q0 = of.q0, q1 = of.q1](auto&& f) __attribute__((always_inline)) {
          for (int64_t j = q0 * V::W; j < q1 * V::W; j += V::W) f(j, int(std::min<int64_t>(V::W, H - j))).store(to + j);
        };
        if (k == 0)
          put([&](int64_t j, int) __attribute__((always_inline)) { return load(to + j) + load(carried + j); });
        else put([&](int64_t j, int) __attribute__((always_inline)) { return load(carried + j); });
        if (k == 0 && y_is_h && whole && loop.dy.direct())
          put([&, from = loop.dy.at(y)](int64_t j, int)
                  __attribute__((always_inline)) { return load(to + j) + load(from + j); });
        else if (k == 0 && y_is_h) put([&](int64_t j, int n) { return load(to + j) + loop.dy.get(y + j, n); });
        if (dcells) put([&](int64_t j, int n) { return load(to + j) + load_first(dcells + at + j, n); });
        std::fill(carried + of.q0 * V::W, carried + of.q1 * V::W, A(0));
        continue;
      }
      for (int64_t j = of.q0 * V::W; j < of.q1 * V::W; j += V::W) {
        const int lanes = int(std::min<int64_t>(V::W, loop.H - j));
        V d, old(A(0));
        if (k == 0) d = loop.carried.arriving(t, b, j, load(to + j));
        else loop.carried.arriving_c(t, b, j, k), d = load(carried + j);
        if (dcells) d = d + load_first(dcells + at + j, lanes);
        if (!alive) {
          old = d;
        } else {
          if (k == 0 && y_is_h) d = d + loop.dy.get(y + j, lanes);
          if (zoned) old = coefficients<A>(call.zone[k], t, loop.d, b, j, lanes) * d, d = d - old;
        }
        old.store(carried + j), d.store(to + j);
      }
    }
  }
}

template <class A>
void run_section_back(const Section& section, Backward<A>& loop, const BackwardBlock<A>& of, bool masked = false) {
  BackwardSource<A> source(loop, of, masked);
  of.machine->run(section, of.r, of.r + of.n, of.q0, of.q1, false, source);
}
template <class A>
void program_last_back(Backward<A>& loop, const BackwardBlock<A>& of) {
  arrive(loop, of);
  run_section_back(loop.program->backward, loop, of);
}
template <class A>
void program_first_back(Backward<A>& loop, const BackwardBlock<A>& of) {
  run_section_back(loop.program->backward_first, loop, of, true);
}
template <class A>
void program_operand_back(Backward<A>& loop, const BackwardBlock<A>& of) {
  const LayerCall& call = loop.call;
  constexpr int W = Vec<A>::W;
  for (int64_t b = of.r; call.h_mask && b < of.r + of.n; ++b)
    for (int64_t j = of.q0 * W; j < of.q1 * W; j += W) {
      A* const at = loop.gradients.of_operand.data() + b * loop.gradients.row + j;
      (load(at) * coefficients<A>(call.h_mask, 0, loop.d, b, j, int(std::min<int64_t>(W, loop.H - j)))).store(at);
    }
  run_section_back(loop.program->backward_operand, loop, of);
}

template <class A>
constexpr BackwardCell<A> program_backward(bool has_operand, bool inner) {
  BackwardCell<A> cell{};
  cell.last = program_last_back<A>;
  if (inner) cell.first = program_first_back<A>, cell.second_again = program_second_again<A>;
  if (has_operand) cell.operand = program_operand_back<A>, cell.operand_again = program_operand_again<A>;
  if (!has_operand && !inner) cell.output_again = program_output_again<A>;
  return cell;
}
template <class A>
constexpr BackwardCell<A> kProgramBackward[2][2] = {
    {program_backward<A>(false, false), program_backward<A>(false, true)},
    {program_backward<A>(true, false), program_backward<A>(true, true)}};
}  // namespace
}  // namespace RNNKERNELS_SET
