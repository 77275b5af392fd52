// The built-in cells in the forward loop: their arithmetic (cells/built_in-inl.h) over the vectors of a block, from
// sums that lie there to new states, output, and what training keeps. F: the functions of a call, see
// activations-inl.h.
#pragma once
#include "../cells/built_in-inl.h"
#include "loop-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Gates of the first product -> operand of the second; what the gates have by then crosses to `built_in_last`.
template <class A, class Cell, class F>
void built_in_first(const Forward<A>& loop, const Block<A>& of) {
  using V = Vec<A>;
  constexpr int W = V::W, G = Cell::G;
  const LayerCall& call = loop.call;
  const Strip<A>& strip = of.strip;
  const F functions = F::of(call);
  const int64_t H = loop.H, Hp = loop.Hp, Pp = loop.Pp;
  const Place<A> bias = loop.weights.bias_of_both(strip.d, 0);
  for (int64_t q = of.q0; q < of.q1; ++q)
    for (int64_t m = of.r; m < of.r + of.n; ++m) {
      const int64_t j = q * W;
      const A *x = of.x.at + m * of.x.row + q * G * W, *sums = of.state.at + m * of.state.row + q * (G - 1) * W;
      V s[G], h = load(strip.h.data() + strip.at(of.slot, m) * Pp + j);
      for (int g = 0; g < G; ++g) {
        s[g] = load(x + g * W) + load(bias.at + q * bias.unit + g * W);
        if (g < G - 1) s[g] = s[g] + load(sums + g * W);
      }
      const int lanes = int(std::min<int64_t>(W, H - j));
      if (call.h_mask) h = h * coefficients<A>(call.h_mask, 0, strip.d, strip.b0 + m, j, lanes);
      const V product = first_of(Cell::first(functions, s, h), lanes);
      for (int g = 0; g < G; ++g) s[g].store(strip.crossing.data() + (m * G + g) * Hp + j);
      product.store(strip.second.data() + m * Pp + j);
      if (strip.second_split) strip.second_split.put(product, m, j, loop.overflow);
    }
}

// The cell, from the sums of the input and of the state; with two products, from what crossed and the sums of the
// second one. Rows inside, for there are more of them: constants stay in registers.
template <class A, class Cell, class F>
void built_in_last(const Forward<A>& loop, const Block<A>& of) {
  using V = Vec<A>;
  using Row = typename Forward<A>::Row;
  constexpr int W = V::W, G = Cell::G, SPLIT = Cell::SPLIT, K = Cell::KEPT, LATE = Cell::LATE;
  constexpr int UNITS = G == 1 ? 4 : 1;              // vectors of a row at once: one gate is little to do for it
  constexpr int ROWS = 3 * G, HH = G, BOTH = 2 * G;  // of biases, see Weights
  // So many rows are finished after the first part of all of them: tanh of the new c is at the end of a chain of
  // operations of which each waits for the one before, and the other rows' fill the time. With tables the chain is
  // short, and in a GRU it is not worth what passes through memory.
  constexpr int64_t TOGETHER = Cell::STATES > 1 && kRegisters < 32 ? 16 : 1;
  const LayerCall& call = loop.call;
  const Strip<A>& strip = of.strip;
  const F functions = F::of(call);
  const int64_t H = loop.H, Hp = loop.Hp, end = of.r + of.n;
  // A norm of c wants its whole row: until then, the output gate is what is left.
  const bool norm_of_c = F::STAGED && Cell::STATES > 1 && call.layer_norm, to_cell_out = norm_of_c || call.project;
  const bool keeps = K > 0 && loop.gates, far = loop.far;
  A* const planes = keeps && loop.gates.direct() ? loop.gates.at(0) : nullptr;
  A* const cells = Cell::STATES > 1 ? static_cast<A*>(call.cells) : nullptr;

  auto lives = [&](int64_t m) { return !call.lengths || of.t < call.length(strip.d, strip.b0 + m); };
  auto lanes_of = [&](int64_t j) { return int(std::min<int64_t>(W, H - j)); };
  // What training keeps of a vector, as far as it is there before, or after, the cell is finished.
  auto keep = [&](const V* kept, bool late, const Row& row, int64_t j, bool alive) __attribute__((always_inline)) {
    const int64_t first = row.kept * K * H + j;
    auto each = [&](auto&& store) __attribute__((always_inline)) {
      for (int k = 0; k < K; ++k)
        if (Cell::is_late(k) == late) store(alive ? kept[k] : V(A(0)), first + k * H);
    };
    if (!planes || lanes_of(j) < W) each([&](V v, int64_t i) { loop.gates.put(v, i, lanes_of(j)); });
    else if (__builtin_expect(far, 0)) each([&](V v, int64_t i) { store_past_caches(v, planes + i); });
    else each([&](V v, int64_t i) { v.store(planes + i); });
  };
  auto put = [&](V out, const Row& row, int64_t m, int64_t j, bool alive) __attribute__((always_inline)) {
    if (to_cell_out) out.store(strip.cell_out.data() + m * Hp + j);
    else loop.template put<F::STAGED>(of, row, j, lanes_of(j), alive, out);
  };
  auto finish = [&](const V* late, V* kept, const Row& row, int64_t m, int64_t j) __attribute__((always_inline)) {
    if constexpr (LATE > 0) {
      const bool alive = lives(m);
      const V out = Cell::finish(functions, late, kept);
      if (keeps) keep(kept, true, row, j, alive);
      put(out, row, m, j, alive);
    }
  };

  for (int64_t q = of.q0; q < of.q1; q += UNITS) {
    Row row(loop, of), late_row = row;
    const A* const biases = loop.weights.bias_ih(strip.d, 0).at + q * ROWS * W;
    const A* x_sums = of.x.at + of.r * of.x.row + q * G * W;
    const A* sums = of.state.at + of.r * of.state.row + q * G * W;
    alignas(kBytes) A lates[TOGETHER > 1 ? TOGETHER * LATE * W : 1];
    for (int64_t m0 = of.r; m0 < end; m0 += TOGETHER) {
      const int64_t m1 = TOGETHER > 1 ? std::min(m0 + TOGETHER, end) : m0 + 1;
      A* at_late = lates;
      for (int64_t m = m0; m < m1; ++m, x_sums += of.x.row, sums += of.state.row, row.next()) {
        const bool alive = lives(m);
#pragma GCC unroll 4
        for (int v = 0; v < UNITS; ++v) {
          if (v > 0 && q + v >= of.q1) break;
          const int64_t j = (q + v) * W;
          const int lanes = lanes_of(j);
          V s[G], x[SPLIT + 1], kept[K + 1], late[LATE + 1], c(A(0)), out(A(0));
          for (int g = 0; g < G; ++g) {
            const int at = (v * G + g) * W;
            const A* const bias = biases + (v * ROWS + g) * W;
            if constexpr (Cell::PHASES > 1) {
              s[g] = load(strip.crossing.data() + (m * G + g) * Hp + j);
              if (g == G - 1) s[g] = s[g] + of.second.get(m, q);
            } else if (g < G - SPLIT) {
              s[g] = load(sums + at) + load(bias + BOTH * W);
              s[g] = s[g] + load(x_sums + at);
            } else {
              s[g] = load(sums + at) + load(bias + HH * W);
              x[g - G + SPLIT] = load(x_sums + at) + load(bias);
            }
          }
          if constexpr (Cell::MIXES) out = load(row.h_old + j);
          if constexpr (Cell::STATES > 1) c = load(row.c + j);
          V c_new = c;
          Cell::forward(functions, s, x, out, c_new, kept, late);
          if constexpr (Cell::STATES > 1) {
            if (norm_of_c) c_new.store(strip.cell_c.data() + m * Hp + j), out = kept[Cell::OUTPUT];
            if (F::STAGED && loop.zoned) c_new = zoneout(loop.zone(1, of, row, j, lanes), c, c_new);
            if (!alive) c_new = c;
            c_new.store(row.c + j);
            if (cells) store_first(c_new, cells + row.kept * H + j, lanes);
          }
          if (keeps) keep(kept, false, row, j, alive);
          if (LATE == 0 || norm_of_c) {
            put(out, row, m, j, alive);
          } else if (TOGETHER == 1) {
            finish(late, kept, row, m, j);
          } else {
            for (int k = 0; k < LATE; ++k, at_late += W) late[k].store(at_late);
          }
        }
      }
      if (TOGETHER == 1 || norm_of_c) continue;
      at_late = lates;
      for (int64_t m = m0; m < m1; ++m, late_row.next()) {
        V late[LATE + 1], kept[K + 1];
        for (int k = 0; k < LATE; ++k, at_late += W) late[k] = load(at_late);
        finish(late, kept, late_row, m, q * W);
      }
    }
  }
}

// The output of whole rows, from the output gate, which is there, and from the norm of c.
template <class A, class Cell, class F>
void output_of_norm(const Forward<A>& loop, const Block<A>& of) {
  using V = Vec<A>;
  const LayerCall& call = loop.call;
  const F functions = F::of(call);
  const A *gain = loop.norms.of(of.strip.d, 2), *bias = loop.norms.of(of.strip.d, 3);
  typename Forward<A>::Row row(loop, of);
  for (int64_t m = of.r; m < of.r + of.n; ++m, row.next()) {
    A* const out = of.strip.cell_out.data() + m * loop.Hp;
    auto get = [&](int, int64_t j, int) { return load(of.strip.cell_c.data() + m * loop.Hp + j); };
    const auto norm = normal<A>(0, 1, loop.H, call.eps, get);
    for_row<A>(0, 1, loop.H, [&](int, int64_t j, int lanes) {
      V kept[Cell::KEPT];
      kept[Cell::OUTPUT] = load(out + j);
      const V c = norm.at(0, j, lanes) * load(gain + j) + load(bias + j);
      const V h = Cell::output(functions, kept, c);
      if (call.project) h.store(out + j);
      else loop.template put<true>(of, row, j, lanes, of.t < call.length(of.strip.d, of.strip.b0 + m), h);
    });
  }
}

template <class A, class Cell, class F>
constexpr ForwardCell<A> built_in_forward() {
  ForwardCell<A> cell{};
  cell.last = built_in_last<A, Cell, F>;
  if constexpr (Cell::PHASES > 1) cell.first = built_in_first<A, Cell, F>;
  if constexpr (Cell::STATES > 1 && F::STAGED) cell.output = output_of_norm<A, Cell, F>;
  return cell;
}
template <class A, class Cell, class F>
constexpr ForwardCell<A> kBuiltInForward = built_in_forward<A, Cell, F>();
}  // namespace
}  // namespace RNNKERNELS_SET
