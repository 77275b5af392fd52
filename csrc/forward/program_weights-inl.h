// The weights of a program's forward pass: as those of a cell in weights-inl.h, but numbers of gates are not known at
// compile time, differ between input and state, and may be zero. More gates than four are multiplied in groups.
#pragma once
#include "../cells/run_program-inl.h"
#include "weights-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct PanelSizes<A, Programmed, 1> {
  static constexpr int W = Vec<A>::W;
  const int gates_ih, gates_hh, gates_first;  // of W_ih, of W_hh, and of the first product with it
  const int STATES;
  // Vectors of a gate in a panel: a single gate has several, so that tiles are filled.
  const int NV;
  const int WIDTH = NV * W, X_SUMS = gates_ih * WIDTH, SUMS = gates_first * WIDTH;

  explicit PanelSizes(const LayerCall& call)
      : gates_ih(int(call.cell->ih_gates)),
        gates_hh(int(call.cell->hh_gates)),
        gates_first(call.cell->program->gates_of_first()),
        STATES(int(call.cell->states)),
        NV(call.cell->gates > 1     ? 1
           : wide_panels<A>(call.H) ? 4
                                    : 2) {}
};

template <class A>
struct Weights<A, Programmed, 1> : PanelSizes<A, Programmed, 1> {
  using Of = PanelSizes<A, Programmed, 1>;
  using Of::gates_first;
  using Of::gates_hh;
  using Of::gates_ih;
  using Of::NV;
  using Of::WIDTH;
  static constexpr int W = Vec<A>::W;

  const LayerCall& call;
  const Schedule schedule;
  const Program& program = *call.cell->program;
  const int64_t I = call.I, H = call.H, P = call.P, D = call.D;
  const int64_t panels = (H + WIDTH - 1) / WIDTH, out_panels = panels, Hp = panels * WIDTH;
  PackedMatrix<A> w_ih, w_hh;  // panel after panel, direction after direction
  PackedMatrix<A> w_second;    // the last gate of W_hh, where it has a product of its own
  // [D] rows of Hp: b_ih by gate of the input, b_hh by recurrent gate, and the sums of both by gate of the input; and
  // the learned vectors.
  Scratch<A> rows;
  const int inputs = int(program.inputs.size()), row_count = 2 * inputs + gates_hh + int(program.vectors.size());
  mutable Flag overflow;  // a number that has no bf16 parts came

  Weights(const LayerCall& c, const Schedule& s) : Of(c), call(c), schedule(s) {
    rows.allocate(D * row_count * Hp, true);
    allocate(w_ih, schedule.ih, I, gates_ih);
    allocate(w_hh, schedule.hh, P, gates_first);
    allocate(w_second, schedule.hh, P, gates_hh - gates_first);
  }

  void allocate(PackedMatrix<A>& w, Layout layout, int64_t K, int gates) const {
    if (gates > 0 && kept(layout))
      w.allocate(D * panels * gates * WIDTH, K, layout == Layout::pairs ? schedule.parts : 0);
  }
  bool kept(Layout layout) const { return layout != Layout::in_place && !passing(layout); }
  bool passing(Layout layout) const { return schedule.passing && layout != Layout::in_place; }
  Stored<A> stored(const void* data) const { return {data, call.storage}; }
  A* row(int64_t d, int64_t k) const { return rows.data() + (d * row_count + k) * Hp; }
  // As the vectors of a block.
  Place<A> bias_ih(int64_t d, int g) const { return {row(d, g), 0, W}; }
  Place<A> bias_hh(int64_t d, int g) const { return {row(d, inputs + g), 0, W}; }
  Place<A> bias_of_both(int64_t d, int g) const { return {row(d, inputs + gates_hh + g), 0, W}; }
  Place<A> vector(int64_t d, int k) const { return {row(d, 2 * inputs + gates_hh + k), 0, W}; }

  bool pack(bool parallel) {
    for (int64_t d = 0; d < D; ++d) pack_rows(d);
    spread(parallel, D * panels, [&](int64_t i) { pack_panel(i / panels, i % panels); });
    return !overflow;
  }

  void pack_rows(int64_t d) {
    for (int g = 0; call.bias && g < gates_ih; ++g) stored(call.weight(d, call.bias_ih())).get_row(g * H, row(d, g), H);
    for (int g = 0; call.bias && g < gates_hh; ++g)
      stored(call.weight(d, call.bias_hh())).get_row(g * H, row(d, inputs + g), H);
    for (int g = 0; g < inputs; ++g) {
      const auto& recurrent = program.recurrent;
      const auto same = std::find(recurrent.begin(), recurrent.end(), program.inputs[size_t(g)]);
      if (same == recurrent.end()) continue;
      const A *x = row(d, g), *r = row(d, inputs + (same - recurrent.begin()));
      A* const to = row(d, inputs + gates_hh + g);
      for (int64_t j = 0; j < H; ++j) to[j] = x[j] + r[j];
    }
    for (int k = 0; k < int(program.vectors.size()); ++k)
      stored(call.weight(d, call.vector(k))).get_row(0, row(d, 2 * inputs + gates_hh + k), H);
  }

  // f(integral_constant<vectors>, first gate, gates) for groups of up to four vectors, nearly equal ones.
  template <class F>
  void for_groups(int gates, const F& f) const {
    const int count = (gates * NV + 3) / 4;
    for (int i = 0; i < count; ++i) {
      const int g0 = gates * i / count, n = gates * (i + 1) / count - g0;
      switch (n * NV) {
        case 1:
          f(std::integral_constant<int, 1>{}, g0, n);
          break;
        case 2:
          f(std::integral_constant<int, 2>{}, g0, n);
          break;
        case 3:
          f(std::integral_constant<int, 3>{}, g0, n);
          break;
        case 4:
          f(std::integral_constant<int, 4>{}, g0, n);
          break;
      }
    }
  }
  int64_t column(int64_t d, int64_t u, int gates, int g) const { return ((d * panels + u) * gates + g) * WIDTH; }

  void pack_panel(int64_t d, int64_t u) {
    auto pack = [&](PackedMatrix<A>& w, Layout layout, int k, int64_t K, int first, int gates) {
      for_groups(kept(layout) ? gates : 0, [&](auto vectors, int g0, int) {
        pack_group<decltype(vectors)::value>(w, k, K, first + g0, d, u, column(d, u, gates, g0));
      });
    };
    pack(w_ih, schedule.ih, 0, I, 0, gates_ih);
    pack(w_hh, schedule.hh, call.hh(), P, 0, gates_first);
    pack(w_second, schedule.hh, call.hh(), P, gates_first, gates_hh - gates_first);
  }
  template <int N>
  void pack_group(PackedMatrix<A>& w, int k, int64_t K, int g0, int64_t d, int64_t u, int64_t c) const {
    for (int v = 0; v < N; ++v) {
      const int64_t j = u * WIDTH + v % NV * W;
      const int n = int(std::clamp<int64_t>(H - j, 0, W));
      w.pack_columns(stored(call.weight(d, k)), ((g0 + v / NV) * H + j) * K, K, n, K, c, N, v, overflow);
    }
  }

  // sums = left times W_ih, or times what the first product (or the second one) of a step takes of W_hh, for n rows of
  // panel u.
  void multiply_input(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply(w_ih, schedule.ih, 0, I, 0, gates_ih, tiles, d, u, n, left, sums, sums_row);
  }
  void multiply_state(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply(w_hh, schedule.hh, call.hh(), P, 0, gates_first, tiles, d, u, n, left, sums, sums_row);
  }
  void multiply_second(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                       int64_t sums_row) const {
    multiply(w_second, schedule.hh, call.hh(), P, gates_first, gates_hh - gates_first, tiles, d, u, n, left, sums,
             sums_row);
  }
  void multiply(const PackedMatrix<A>& w, Layout layout, int k, int64_t K, int first, int gates, Tiles& tiles,
                int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums, int64_t sums_row) const {
    for_groups(gates, [&](auto vectors, int g0, int count) {
      constexpr int N = decltype(vectors)::value;
      A* const to = sums + g0 * WIDTH;
      if (passing(layout)) {
        PackedMatrix<A> panel;
        panel.allocate(N * W, K, layout == Layout::pairs ? schedule.parts : 0);
        pack_group<N>(panel, k, K, first + g0, d, u, 0);
        return panel.template multiply<N>(tiles, schedule.engine, n, left, 0, K, 0, to, sums_row, Sum::put);
      }
      if (layout != Layout::in_place)
        return w.template multiply<N>(tiles, schedule.engine, n, left, 0, K, column(d, u, gates, g0), to, sums_row,
                                      Sum::put);
      for (int g = 0; g < count; ++g) {
        const int64_t row = (first + g0 + g) * H + u * WIDTH, columns = std::min<int64_t>(WIDTH, H - u * WIDTH);
        for (int64_t m = 0; columns < WIDTH && m < n; ++m)  // what pads a panel is read too
          std::fill_n(to + m * sums_row + g * WIDTH + columns, WIDTH - columns, A(0));
        dot_product(n, left.a, left.row, stored(call.weight(d, k)), row * K, columns, K, to + g * WIDTH, sums_row);
      }
    });
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
