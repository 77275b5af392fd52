// A cell that is a program in the forward loop: what its sections read and put, and how they are run over a block.
#pragma once
#include "loop-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct ForwardSource {
  using V = Vec<A>;
  static constexpr int W = V::W;

  const Forward<A>& loop;
  const Block<A>& of;
  const bool masked;  // h as the inner product's operand sees it
  const Strip<A>& strip = of.strip;
  const int64_t t = of.t, slot = of.slot;
  const LayerCall& call = loop.call;
  const Program& program = *call.cell->program;
  const int64_t d = strip.d, H = loop.H, Hp = loop.Hp, Pp = loop.Pp;
  const int64_t kept_row = (d * loop.T + t) * loop.B + strip.b0, planes = call.planes();

  // The sums of a gate in panels.
  Place<A> gate(const Place<A>& sums, int g) const { return {sums.at + g * W, sums.row, sums.unit}; }
  Place<A> state(int k) const {
    if (k == 0) return {strip.h.data() + strip.at(slot, 0) * Pp, Pp, W};
    return {loop.state_of(strip, k, 0), Hp, W};
  }

  void load(Machine<A>& machine, const Instruction& each, const Run& run) {
    const int k = each.index;
    switch (each.op) {
      case Op::a:
        if (!program.given)
          return machine.sum(each, run, gate(of.state, each.other), loop.weights.bias_of_both(d, k), gate(of.x, k));
        return machine.sum_of(
            each, run,
            [&, rows = given(k), r = gate(of.state, each.other), b = loop.weights.bias_hh(d, each.other)](
                int64_t m, int64_t q) { return rows.get(m, q, H) + (r.get(m, q) + b.get(m, q)); });
      case Op::x:
        if (!program.given) return machine.sum(each, run, gate(of.x, k), loop.weights.bias_ih(d, k));
        return machine.bind(each, given(k), run);
      case Op::r:
        return machine.sum(each, run, gate(of.state, k), loop.weights.bias_hh(d, k));
      case Op::i:
        return machine.sum(each, run, of.second, loop.weights.bias_hh(d, loop.weights.gates_first));
      case Op::v:
        return machine.bind(each, loop.weights.vector(d, k), run);
      case Op::cross:
        return machine.bind(each, {strip.crossing.data() + k * Hp, program.crossing * Hp, W}, run);
      case Op::u:
        return machine.bind(each, extra_rows<A>(call, k, d, t, strip.b0), run);
      default:
        break;
    }
    const Place<A> from = state(k);
    if (masked && k == 0 && call.h_mask)
      machine.fill(each, run, [&](int64_t m, int64_t q) {
        return from.get(m, q) * coefficients<A>(call.h_mask, 0, d, strip.b0 + m, q * W, lanes(q));
      });
    else if (each.copied) machine.copy(each, from, run);
    else machine.bind(each, from, run);
  }
  StoredRows<A> given(int gate) const { return given_rows<A>(call, gate, d, t, strip.b0); }

  using Value = typename Machine<A>::Value;
  int lanes(int64_t q) const { return lanes_of<A>(H, q); }
  bool alive(int64_t m) const { return !call.lengths || t < call.length(d, strip.b0 + m); }
  bool all_alive(const Run& run) const { return call.all_alive(d, t, strip.b0 + run.m, run.rows); }

  // A plane of what training keeps.
  void keep(int k, const Value& value, const Run& run) const {
    if (!loop.gates) return;
    const int64_t first = (kept_row * planes + k) * H, row = planes * H;
    if (loop.gates.direct() && all_alive(run)) return value.store_units(run, loop.gates.at(first), row, H, loop.far);
    value.each(run, [&](V v, int64_t m, int64_t q) { keep(k, m, q, v); });
  }
  void keep(int k, int64_t m, int64_t q, V v) const {
    const V what = alive(m) ? v : V(A(0));
    const int64_t at = ((kept_row + m) * planes + k) * H + q * W;
    if (loop.far) store_past_caches(what, loop.gates.at(at));
    else loop.gates.put(what, at, lanes(q));
  }

  void put(const PutOrder& order, const Value& value, const Run& run) {
    switch (order.kind) {
      case Put::operand:
      case Put::inner: {
        A* const to = (order.kind == Put::inner ? strip.second : strip.operand).data();
        const SplitRows* const split = order.kind == Put::inner && strip.second_split ? &strip.second_split : nullptr;
        if (!split && all_alive(run)) return value.store_padded(run, to, Pp, H);
        return value.each(run, [&](V v, int64_t m, int64_t q) {
          v = alive(m) ? first_of(v, lanes(q)) : V(A(0));  // no NaN of an input past its end
          v.store(to + m * Pp + q * W);
          if (split) split->put(v, m, q * W, loop.overflow);
        });
      }
      case Put::cross:
        return value.store_rows(run, strip.crossing.data() + order.index * Hp, program.crossing * Hp);
      case Put::keep:
        return keep(order.index, value, run);
      case Put::y:
        return put_y(value, run);
      default:
        put_state(order.index, value, run);
    }
  }

  void put_y(const Value& value, const Run& run) const {
    const int64_t first = t * loop.y_stride_T + strip.b0 * loop.y_stride_B + d * H, row = loop.y_stride_B;
    if (loop.y.direct() && all_alive(run)) {
      A* const to = loop.y.at(first);
      if (!loop.y_far) prefetch_next<true>(run, to, row);  // else each line is waited for as it is written to
      return value.store_units(run, to, row, H, loop.y_far);
    }
    value.each(run, [&](V v, int64_t m, int64_t q) { put_y(m, q, alive(m) ? v : V(A(0))); });
  }
  INLINE void put_y(int64_t m, int64_t q, V v) const {
    const int64_t at = t * loop.y_stride_T + (strip.b0 + m) * loop.y_stride_B + d * H + q * W;
    if (loop.y_far) store_past_caches(v, loop.y.at(at));
    else loop.y.put(v, at, lanes(q));
  }

  void put_state(int k, const Value& value, const Run& run) {
    if (k == 0 && call.project) return value.store_rows(run, strip.cell_out.data(), Hp);
    const Place<A> old = state(k);
    A* const to = k ? loop.state_of(strip, k, 0) : strip.h.data() + strip.at(slot + 1, 0) * Pp;
    const int64_t history = program.history(k), row = k ? Hp : Pp;
    A* const cells = history < 0 || !call.cells
                         ? nullptr
                         : static_cast<A*>(call.cells) + (history * call.D * loop.T * loop.B + kept_row) * H;
    const int plane = loop.zoned && loop.gates ? program.zoned_plane(k) : -1;
    const bool split = k == 0 && strip.h_split, gives_y = k == 0 && !program.has_y;
    if (!loop.zoned && all_alive(run)) {
      value.store_padded(run, to, row, H);
      if (split)
        value.each(run, [&](V v, int64_t m, int64_t q) __attribute__((always_inline)) {
          strip.h_split.put(first_of(v, lanes(q)), strip.at(slot + 1, m), q * W, loop.overflow);
        });
      if (cells) value.store_units(run, cells, H, H);
      if (gives_y) put_y(value, run);
      return;
    }
    value.each(run, [&](V v, int64_t m, int64_t q) __attribute__((always_inline)) {
      const int n = lanes(q);
      const bool living = alive(m);
      v = first_of(v, n);
      if (loop.zoned || !living) {
        const V before = RNNKERNELS_SET::load(old.at + m * row + q * W);
        if (plane >= 0) keep(plane, m, q, v);
        if (loop.zoned) v = zoneout(coefficients<A>(call.zone[k], t, d, strip.b0 + m, q * W, n), before, v);
        if (!living) v = before;
        v = first_of(v, n);
      }
      v.store(to + m * row + q * W);
      if (split) strip.h_split.put(v, strip.at(slot + 1, m), q * W, loop.overflow);
      if (cells) store_first(v, cells + m * H + q * W, n);
      if (gives_y) put_y(m, q, living ? v : V(A(0)));
    });
  }
};

template <class A>
void run_section(const Section& section, const Forward<A>& loop, const Block<A>& of, bool panels, bool masked = false) {
  ForwardSource<A> source{loop, of, masked};
  of.work.machine->run(section, of.r, of.r + of.n, of.q0, of.q1, panels, source);
}
template <class A>
void program_operand(const Forward<A>& loop, const Block<A>& of) {
  run_section(loop.call.cell->program->operand, loop, of, false);
}
template <class A>
void program_first(const Forward<A>& loop, const Block<A>& of) {
  run_section(loop.call.cell->program->first, loop, of, true, true);
}
template <class A>
void program_last(const Forward<A>& loop, const Block<A>& of) {
  run_section(loop.call.cell->program->forward, loop, of, !loop.whole_rows && !loop.streams);
}

template <class A>
constexpr ForwardCell<A> program_forward(bool has_operand, bool inner) {
  ForwardCell<A> cell{};
  cell.last = program_last<A>;
  if (inner) cell.first = program_first<A>;
  if (has_operand) cell.operand = program_operand<A>;
  return cell;
}
template <class A>
constexpr ForwardCell<A> kProgramForward[2][2] = {{program_forward<A>(false, false), program_forward<A>(false, true)},
                                                  {program_forward<A>(true, false), program_forward<A>(true, true)}};
}  // namespace
}  // namespace RNNKERNELS_SET
