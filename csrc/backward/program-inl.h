// A step of the backward loop for a cell that is a program: gradients of the states arrive, its sections make those of
// pre-activations, states, vectors and inputs from them, and the products between the sections those of operands.
#pragma once
#include "loop-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Gradients that a direction's sections read, [row][Hp] each: of the new states as the cell made them; of the operand
// of a product; of the values of `first`, [row][value][Hp].
template <class A>
struct ProgramGradients {
  Scratch<A> of_state[Program::kStates], of_operand, crossing;
  void allocate(const LayerCall& call) {
    const Program& program = *call.cell->program;
    const int64_t size = call.B * padded<A>(call.H);
    for (int64_t k = 0; k < call.cell->states; ++k) of_state[k].allocate(size);
    if (program.inner || program.has_operand) of_operand.allocate(size);
    crossing.allocate(size * program.crossing, true);
  }
};

template <class A>
struct BackwardSource {
  using V = Vec<A>;
  static constexpr int W = V::W;

  Backward<A, Programmed>& loop;
  const int64_t slot, t;
  TapeSource<A> tape{loop.tape, t};
  const Program& program = tape.program;
  const int64_t Hp = loop.Hp;
  const bool whole = !tape.call.lengths && tape.H % W == 0;  // every vector is of live units

  Place<A> place(const Scratch<A>& rows, int64_t row) const { return {rows.data(), row, W}; }
  void load(Machine<A>& machine, const Instruction& each, const Run& run) {
    const auto& from = loop.gradients;
    switch (each.op) {
      case Op::g:
        return machine.bind(each, place(from.of_state[each.index], Hp), run);
      case Op::gi:
      case Op::go:
        return machine.bind(each, place(from.of_operand, Hp), run);
      case Op::dcross: {
        Place<A> at = place(from.crossing, program.crossing * Hp);
        at.at += each.index * Hp;
        return machine.bind(each, at, run);
      }
      case Op::gy:
        return machine.fill(each, run, [&](int64_t, int64_t b, int64_t q) {
          return loop.dy.get(loop.tape.y_at(t, b) + q * W, tape.lanes(q));
        });
      default:
        return tape.load(machine, each, run);
    }
  }

  void put(const PutOrder& order, const typename Machine<A>::Value& value, const Run& run) {
    const bool to_state = order.kind == Put::ds, crosses = order.kind == Put::dcross;
    // A gate's gradient may have two places, one for each side; the first one is split where products want it so.
    const bool of_gate = order.x_gate >= 0 || order.r_gate >= 0, normed = tape.call.layer_norm;
    const int plane = order.x_gate >= 0       ? loop.at->x[size_t(order.x_gate)]
                      : order.r_gate >= 0     ? loop.at->r[size_t(order.r_gate)]
                      : order.kind == Put::dv ? loop.at->vector[order.index]
                      : order.kind == Put::du ? loop.at->extra[order.index]
                                              : 0;
    const int other = normed && order.x_gate >= 0 && order.r_gate >= 0 ? loop.at->r[size_t(order.r_gate)] : -1;
    const bool split = loop.step_parts && of_gate && !normed;
    const bool masked = to_state && order.index == 0 && tape.masked && tape.call.h_mask;
    if (whole && of_gate && other < 0 && !order.add) {  // by far the most of all, without a branch but one
      A* const to = loop.dz_of(slot, 0) + plane * Hp;
      const int64_t row = loop.planes * Hp;
      if (!split) {
        return run.each([&](int64_t i, int64_t b, int64_t q)
                            __attribute__((always_inline)) { value[i].store(to + b * row + q * W); });
      }
      return run.each([&](int64_t i, int64_t b, int64_t q) __attribute__((always_inline)) {
        const V v = value[i];
        v.store(to + b * row + q * W);
        loop.dz_split.put(v, slot * loop.B + b, plane * loop.Hk + q * W, loop.overflow);
      });
    }
    run.each([&](int64_t i, int64_t b, int64_t q) __attribute__((always_inline)) {
      const int n = tape.lanes(q);
      V v = first_of(loop.tape.alive(t, b) ? value[i] : V(A(0)), n);
      if (masked) v = v * tape.mask(b, q);
      A* const to = (to_state  ? loop.carried.of[order.index].data() + b * Hp
                     : crosses ? loop.gradients.crossing.data() + (b * program.crossing + order.index) * Hp
                               : loop.dz_of(slot, b) + plane * Hp) +
                    q * W;
      (to_state || order.add ? RNNKERNELS_SET::load(to) + v : v).store(to);
      if (other >= 0) v.store(loop.dz_of(slot, b) + other * Hp + q * W);
      if (split) loop.dz_split.put(v, slot * loop.B + b, plane * loop.Hk + q * W, loop.overflow);
    });
  }
};

// The gradients of the states after step t, for rows r..r+n and vectors q0..q1 of units: those of the new states go to
// the cell, and what zoneout or the end of a sequence lets pass stays with the old ones. That of state 0 through the
// recurrent product is there.
template <class A>
void arrive(Backward<A, Programmed>& loop, int64_t t, int64_t r, int64_t n, int64_t q0, int64_t q1) {
  using V = Vec<A>;
  const LayerCall& call = loop.call;
  const bool zoned = bool(call.zone[0]), y_is_h = !call.cell->program->has_y;
  const bool plain = !zoned && !call.lengths && !call.reset && !call.h_mask;
  for (int k = 0; k < int(call.cell->states); ++k)
    for (int64_t b = r; b < r + n; ++b) {
      if (plain) {
        A *to = loop.gradients.of_state[k].data() + b * loop.Hp, *carried = loop.carried.c_of(b, k);
        const int64_t y = k == 0 && y_is_h ? loop.tape.y_at(t, b) : -1;
        for (int64_t j = q0 * V::W; j < q1 * V::W; j += V::W) {
          V d = load(carried + j);
          if (k == 0) d = load(to + j) + d;
          if (y >= 0) d = d + loop.dy.get(y + j, int(std::min<int64_t>(V::W, loop.H - j)));
          d.store(to + j), V(A(0)).store(carried + j);
        }
        continue;
      }
      const bool alive = loop.tape.alive(t, b);
      A *to = loop.gradients.of_state[k].data() + b * loop.Hp, *carried = loop.carried.c_of(b, k);
      for (int64_t j = q0 * V::W; j < q1 * V::W; j += V::W) {
        const int lanes = int(std::min<int64_t>(V::W, loop.H - j));
        V d, old(A(0));
        if (k == 0) d = loop.carried.arriving(t, b, j, load(to + j));
        else loop.carried.arriving_c(t, b, j, k), d = load(carried + j);
        if (!alive) {
          old = d;
        } else {
          if (k == 0 && y_is_h) d = d + loop.dy.get(loop.tape.y_at(t, b) + j, lanes);
          if (zoned) old = coefficients<A>(call.zone[k], t, loop.d, b, j, lanes) * d, d = d - old;
        }
        old.store(carried + j), d.store(to + j);
      }
    }
}

// One member's part of step t, whose gradients of pre-activations go to `slot`, for rows b0..b1. False: it has left the
// team.
template <class A>
bool step_of_program(Backward<A, Programmed>& loop, Machine<A>& machine, Tiles& tiles, Team::Member& member, int64_t b0,
                     int64_t b1, int64_t slot, bool begun, int64_t t, A* part) {
  const Program& program = *loop.call.cell->program;
  const int W = loop.W, first_gates = program.gates_of_first();
  const int64_t WIDTH = loop.WIDTH, Hp = loop.Hp;
  BackwardSource<A> source{loop, slot, t};
  auto for_blocks = [&](auto&& f) {
    const auto [u0, u1] = member.share(loop.out_panels);
    const int64_t q0 = u0 * WIDTH / W, q1 = std::min(u1 * WIDTH, Hp) / W;
    for_even_blocks(b0, b1, loop.block, [&, u0 = u0, u1 = u1](int64_t r, int64_t n) { f(r, n, u0, u1, q0, q1); });
  };
  // What reaches an operand through gates g0..g1 of W_hh from the step in slot `from`, or zeros.
  auto product = [&](int64_t from, A* to, int64_t r, int64_t n, int64_t u0, int64_t u1, int g0, int g1) {
    loop.recurrent(tiles, from, r, n, u0, u1, to + r * Hp + u0 * WIDTH, g0, g1, WIDTH, Hp);
  };
  // With layer norms, gradients of the norms become those of the products, when all of a row are there.
  auto norm_rows = [&](int64_t r, int64_t n, bool first) {
    for (int64_t b = r; loop.call.layer_norm && b < r + n; ++b) {
      for (const int plane : loop.at->empty)
        if (first || plane == loop.at->r.back()) std::fill_n(loop.dz_of(slot, b) + plane * Hp, Hp, A(0));
      loop.norm_gates(slot, b, (slot - 1) * loop.B + b, loop.tape.alive(t, b), first, part);
    }
  };
  for_blocks([&](int64_t r, int64_t n, int64_t u0, int64_t u1, int64_t q0, int64_t q1) {
    const bool arrives = begun && !program.has_operand && first_gates > 0;
    product(arrives ? slot - 1 : -1, loop.gradients.of_state[0].data(), r, n, u0, u1, 0, first_gates);
    arrive(loop, t, r, n, q0, q1);
    machine.run(program.backward, r, r + n, q0, q1, source);
    norm_rows(r, n, !program.inner);
  });
  if (!member.barrier()) return false;
  A* const operand = loop.gradients.of_operand.data();
  if (program.inner) {
    source.tape.masked = true;
    for_blocks([&](int64_t r, int64_t n, int64_t u0, int64_t u1, int64_t q0, int64_t q1) {
      product(slot, operand, r, n, u0, u1, first_gates, first_gates + 1);
      machine.run(program.backward_first, r, r + n, q0, q1, source);
      norm_rows(r, n, true);
    });
    source.tape.masked = false;
    if (!member.barrier()) return false;
  }
  if (!program.has_operand) return true;
  for_blocks([&](int64_t r, int64_t n, int64_t u0, int64_t u1, int64_t q0, int64_t q1) {
    product(first_gates > 0 ? slot : -1, operand, r, n, u0, u1, 0, first_gates);
    for (int64_t b = r; loop.call.h_mask && b < r + n; ++b)
      for (int64_t q = q0; q < q1; ++q) {
        A* const at = operand + b * Hp + q * W;
        (load(at) * source.tape.mask(b, q)).store(at);
      }
    machine.run(program.backward_operand, r, r + n, q0, q1, source);
  });
  return true;
}

// The gradients of inputs besides x, from their planes, added to what other directions of the group have left there.
// Those of steps: rows lo..hi of a chunk that begins after `done` steps.
template <class A>
void step_inputs(const Backward<A, Programmed>& loop, int64_t done, int64_t lo, int64_t hi) {
  using V = Vec<A>;
  const LayerCall& call = loop.call;
  const Program& program = *call.cell->program;
  const bool add = loop.d % int64_t(call.reverse.size()) != 0;
  for (int k = 0; k < program.steps && !call.dextras.empty(); ++k) {
    const Stored<A> to = loop.stored(call.dextras[size_t(k)]);
    const int plane = loop.at->extra[size_t(k)];
    for (int64_t r = lo; r < hi; ++r) {
      const int64_t row = (call.group(loop.d) * call.T + loop.tape.time(done + r / call.B)) * call.B + r % call.B;
      const A* const from = loop.dz_of(1, r) + plane * loop.Hp;
      auto put = [&](int64_t at, int n, V v) { to.put(add ? to.get(at, n) + v : v, at, n); };
      V sum(A(0));
      for (int64_t j = 0; j < loop.H; j += V::W) {
        const V v = plane < 0 ? V(A(0)) : load(from + j);
        if (program.narrow[size_t(k)]) sum = sum + v;
        else put(row * loop.H + j, int(std::min<int64_t>(V::W, loop.H - j)), v);
      }
      if (program.narrow[size_t(k)]) put(row, 1, V(total(sum)));
    }
  }
}
// Those of sequences, which are summed up for all steps: rows lo..hi of the batch, and at the end to where they go.
template <class A>
void sequence_inputs(const Backward<A, Programmed>& loop, int64_t steps, int64_t lo, int64_t hi, A* sums, bool end) {
  using V = Vec<A>;
  const LayerCall& call = loop.call;
  const Program& program = *call.cell->program;
  const bool add = loop.d % int64_t(call.reverse.size()) != 0;
  for (int k = program.steps; k < int(program.extras.size()) && !call.dextras.empty(); ++k, sums += call.B * loop.Hp) {
    const Stored<A> to = loop.stored(call.dextras[size_t(k)]);
    const int plane = loop.at->extra[size_t(k)];
    for (int64_t b = lo; b < hi; ++b)
      for (int64_t j = 0; j < loop.H; j += V::W) {
        A* const sum = sums + b * loop.Hp + j;
        for (int64_t s = 0; s < steps && plane >= 0; ++s)
          (load(sum) + load(loop.dz_of(1, s * call.B + b) + plane * loop.Hp + j)).store(sum);
        const int n = int(std::min<int64_t>(V::W, loop.H - j));
        const int64_t at = (call.group(loop.d) * call.B + b) * loop.H + j;
        if (end) to.put(add ? to.get(at, n) + load(sum) : load(sum), at, n);
      }
  }
}
}  // namespace
}  // namespace RNNKERNELS_SET
