// A step of the forward loop for a cell that is a program: the products of some panels and rows, then the program's
// sections on their sums. Few rows take several panels at a time, so that instructions go over enough vectors.
#pragma once
#include "loop-inl.h"

namespace RNNKERNELS_SET {
namespace {
// What the sections read and put, for rows of a strip in step t.
template <class A>
struct ForwardSource {
  using V = Vec<A>;
  using Loop = Forward<A, Programmed, 1>;
  static constexpr int W = V::W;

  const Loop& loop;
  const Strip<A>& strip;
  const int64_t t, slot;
  bool masked;  // h as the inner product's operand sees it
  const LayerCall& call = loop.call;
  const Program& program = *call.cell->program;
  const int64_t d = strip.d, H = loop.H, Hp = loop.Hp, Pp = loop.Pp;
  const int64_t kept_row = (d * loop.T + t) * loop.B + strip.b0, planes = call.planes();
  Place<A> x{}, r{}, inner{};  // sums of gate 0

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
          return machine.sum(each, run, gate(r, each.other), loop.weights.bias_of_both(d, k), gate(x, k));
        return machine.sum_of(each, run,
                              [&, rows = given(k), r = gate(r, each.other), b = loop.weights.bias_hh(d, each.other)](
                                  int64_t m, int64_t q) { return rows.get(m, q, H) + (r.get(m, q) + b.get(m, q)); });
      case Op::x:
        if (!program.given) return machine.sum(each, run, gate(x, k), loop.weights.bias_ih(d, k));
        return machine.fill(each, run,
                            [&, rows = given(k)](int64_t, int64_t m, int64_t q) { return rows.get(m, q, H); });
      case Op::r:
        return machine.sum(each, run, gate(r, k), loop.weights.bias_hh(d, k));
      case Op::i:
        return machine.sum(each, run, inner, loop.weights.bias_hh(d, loop.weights.gates_first));
      case Op::v:
        return machine.bind(each, loop.weights.vector(d, k), run);
      case Op::cross:
        return machine.bind(each, {strip.crossing.data() + k * Hp, program.crossing * Hp, W}, run);
      case Op::u: {
        const auto rows = extra_rows<A>(call, k, d, t, strip.b0);
        return machine.fill(each, run, [&](int64_t, int64_t m, int64_t q) { return rows.get(m, q, H); });
      }
      default:
        break;
    }
    const Place<A> from = state(k);
    if (masked && k == 0 && call.h_mask)
      machine.fill(each, run, [&](int64_t, int64_t m, int64_t q) {
        return from.get(m, q) * coefficients<A>(call.h_mask, 0, d, strip.b0 + m, q * W, lanes(q));
      });
    else if (each.copied) machine.copy(each, from, run);
    else machine.bind(each, from, run);
  }
  // Pre-activations of a gate that are x itself.
  StoredRows<A> given(int gate) const {
    const int64_t first = call.group(d) * call.x_stride_X + t * call.x_stride_T + strip.b0 * call.x_stride_B;
    return {loop.stored(call.x), first + gate * H, call.x_stride_B};
  }

  int lanes(int64_t q) const { return int(std::min<int64_t>(W, H - q * W)); }
  bool alive(int64_t m) const { return !call.lengths || t < call.length(d, strip.b0 + m); }
  void keep(int k, int64_t m, int64_t q, V v) const {
    if (loop.gates) loop.gates.put(alive(m) ? v : V(A(0)), ((kept_row + m) * planes + k) * H + q * W, lanes(q));
  }

  void put(const PutOrder& order, const typename Machine<A>::Value& value, const Run& run) {
    switch (order.kind) {
      case Put::operand:
      case Put::inner: {
        A* const to = (order.kind == Put::inner ? strip.second : strip.operand).data();
        const SplitRows* const split = order.kind == Put::inner && strip.second_split ? &strip.second_split : nullptr;
        return run.each([&](int64_t i, int64_t m, int64_t q) {
          const V v = alive(m) ? first_of(value[i], lanes(q)) : V(A(0));  // no NaN of an input past its end
          v.store(to + m * Pp + q * W);
          if (split) split->put(v, m, q * W, loop.overflow);
        });
      }
      case Put::cross:
        return run.each([&](int64_t i, int64_t m, int64_t q) {
          value[i].store(strip.crossing.data() + (m * program.crossing + order.index) * Hp + q * W);
        });
      case Put::keep:
        return run.each([&](int64_t i, int64_t m, int64_t q) { keep(order.index, m, q, value[i]); });
      case Put::y:
        return run.each([&](int64_t i, int64_t m, int64_t q) { put_y(m, q, alive(m) ? value[i] : V(A(0))); });
      default:
        put_state(order.index, value, run);
    }
  }
  INLINE void put_y(int64_t m, int64_t q, V v) const {
    loop.y.put(v, t * loop.y_stride_T + (strip.b0 + m) * loop.y_stride_B + d * H + q * W, lanes(q));
  }

  void put_state(int k, const typename Machine<A>::Value& value, const Run& run) {
    const Place<A> old = state(k);
    A* const to = k ? loop.state_of(strip, k, 0) : strip.h.data() + strip.at(slot + 1, 0) * Pp;
    const int64_t history = program.history(k), row = k ? Hp : Pp;
    A* const cells = history < 0 || !call.cells
                         ? nullptr
                         : static_cast<A*>(call.cells) + (history * call.D * loop.T * loop.B + kept_row) * H;
    const int plane = loop.zoned ? program.zoned_plane(k) : -1;
    const bool split = k == 0 && strip.h_split, gives_y = k == 0 && !program.has_y;
    if (!loop.zoned && !call.lengths && H % W == 0) {  // every vector is of live units, and new
      return run.each([&](int64_t i, int64_t m, int64_t q) __attribute__((always_inline)) {
        const V v = value[i];
        v.store(to + m * row + q * W);
        if (split) strip.h_split.put(v, strip.at(slot + 1, m), q * W, loop.overflow);
        if (cells) v.store(cells + m * H + q * W);
        if (gives_y) put_y(m, q, v);
      });
    }
    run.each([&](int64_t i, int64_t m, int64_t q) __attribute__((always_inline)) {
      const int n = lanes(q);
      const bool living = alive(m);
      V v = first_of(value[i], n);
      if (__builtin_expect(loop.zoned || !living, 0)) {
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

// Layer norms of rows of sums in panels of so many gates, with gain k (0: of the input, 1: of the state) from gate g0
// on.
template <class A>
void normalize_rows_of_program(const Forward<A, Programmed, 1>& loop, int64_t d, A* sums, int64_t rows, int gates,
                               int k, int g0) {
  constexpr int W = Vec<A>::W;
  for (int64_t r = 0; r < rows && gates > 0; ++r, sums += loop.panels * gates * loop.WIDTH) {
    auto at = [&](int g, int64_t j) { return sums + j * gates + g * W; };
    auto get = [&](int g, int64_t j, int) { return load(at(g, j)); };
    const auto norm = normal<A>(0, gates, loop.H, loop.call.eps, get);
    for_row<A>(0, gates, loop.H, [&](int g, int64_t j, int lanes) {
      (norm.at(g, j, lanes) * load(loop.norms.of(d, k, g0 + g) + j)).store(at(g, j));
    });
  }
}

// One member's part of step t, as Forward::step.
template <class A>
bool step_of_program(const Forward<A, Programmed, 1>& loop, const Strip<A>& strip,
                     typename Forward<A, Programmed, 1>::Work& work, Tiles& tiles, Team::Member& member, int64_t t,
                     int64_t slot, const A* pre) {
  constexpr int W = Vec<A>::W;
  constexpr int64_t MOST = Forward<A, Programmed, 1>::BLOCK * Program::kGates * W;
  const Program& program = *loop.call.cell->program;
  const auto& weights = loop.weights;
  const int64_t panels = weights.panels, vectors = padded<A>(loop.H) / W, NV = weights.NV;
  Machine<A>& machine = work.machine;
  ForwardSource<A> source{loop, strip, t, slot, false};
  if (program.has_operand) {
    const auto [q0, q1] = member.share(vectors);
    machine.run(program.operand, 0, strip.rows, q0, q1, source);
    if (!member.barrier()) return false;
  }
  const bool inner = program.inner, input = weights.gates_ih > 0 && !pre;
  const RowsView<A> x = input ? loop.operands.rows_of_x(strip, work.x, t, 1) : RowsView<A>{},
                    h = weights.gates_first > 0 ? loop.operands.rows_of_h(strip, work.h, slot) : RowsView<A>{};
  alignas(64) A x_block[MOST], r_block[MOST];
  // f(panels u0..u1, rows r..r+n): this member's share.
  auto for_blocks = [&](auto&& f) {
    const auto [lo, hi] = member.share(panels);
    const int64_t group = std::max<int64_t>(1, 32 / (std::min(loop.block, strip.rows) * NV));
    for (int64_t i = lo; i < hi; i += group) {
      const int64_t n = std::min(group, hi - i), u0 = slot & 1 ? lo + hi - i - n : i;
      for_even_blocks(0, strip.rows, loop.block, [&](int64_t r, int64_t rows) { f(u0, u0 + n, r, rows); });
    }
  };
  // Sums of gates in panels, from row r and panel u0 on, as the vectors of a block.
  auto place = [&](const A* at, int64_t row, int gates, int64_t r, int64_t u0) {
    return Place<A>{at - r * row - u0 * NV * gates * W, row, gates * W};
  };
  auto run = [&](const Section& section, int64_t u0, int64_t u1, int64_t r, int64_t n) {
    machine.run(section, r, r + n, u0 * NV, std::min(u1 * NV, vectors), source);
  };
  source.masked = inner;
  if (pre) source.x = place(pre, panels * loop.X_SUMS, weights.gates_ih, 0, 0);
  if (loop.call.layer_norm) {  // of all units of a row
    A* const sums = strip.normed.data();
    const int64_t row = panels * loop.SUMS;
    for (int64_t u = 0; u < panels && weights.gates_first > 0; ++u)
      weights.multiply_state(tiles, strip.d, u, strip.rows, h, sums + u * loop.SUMS, row);
    normalize_rows_of_program(loop, strip.d, sums, strip.rows, weights.gates_first, 1, 0);
    source.r = place(sums, row, weights.gates_first, 0, 0);
    run(inner ? program.first : program.forward, 0, panels, 0, strip.rows);
    if (!inner) return true;
    source.masked = false;
    const RowsView<A> second = loop.operands.rows_of_second(strip, work.second);
    for (int64_t u = 0; u < panels; ++u)
      weights.multiply_second(tiles, strip.d, u, strip.rows, second, sums + u * loop.WIDTH, panels * loop.WIDTH);
    normalize_rows_of_program(loop, strip.d, sums, strip.rows, 1, 1, weights.gates_first);
    source.inner = place(sums, panels * loop.WIDTH, 1, 0, 0);
    run(program.forward, 0, panels, 0, strip.rows);
    return true;
  }
  for_blocks([&](int64_t u0, int64_t u1, int64_t r, int64_t n) {
    const int64_t x_row = (u1 - u0) * loop.X_SUMS, r_row = (u1 - u0) * loop.SUMS;
    for (int64_t u = u0; u < u1; ++u) {
      if (input) weights.multiply_input(tiles, strip.d, u, n, x.from(r), x_block + (u - u0) * loop.X_SUMS, x_row);
      if (weights.gates_first > 0)
        weights.multiply_state(tiles, strip.d, u, n, h.from(r), r_block + (u - u0) * loop.SUMS, r_row);
    }
    source.r = place(r_block, r_row, weights.gates_first, r, u0);
    if (input) source.x = place(x_block, x_row, weights.gates_ih, r, u0);
    run(inner ? program.first : program.forward, u0, u1, r, n);
  });
  if (!member.barrier()) return false;
  if (!inner) return true;
  source.masked = false;
  const RowsView<A> second = loop.operands.rows_of_second(strip, work.second);
  for_blocks([&](int64_t u0, int64_t u1, int64_t r, int64_t n) {
    const int64_t row = (u1 - u0) * loop.WIDTH;
    for (int64_t u = u0; u < u1; ++u)
      weights.multiply_second(tiles, strip.d, u, n, second.from(r), r_block + (u - u0) * loop.WIDTH, row);
    source.inner = place(r_block, row, 1, r, u0);
    run(program.forward, u0, u1, r, n);
  });
  return member.barrier();
}
}  // namespace
}  // namespace RNNKERNELS_SET
