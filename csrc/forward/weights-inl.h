// The weights of a layer's forward pass in the form that its schedule says, and their products with rows of x and of h.
// A panel is WIDTH hidden units (outputs of a projection) with all their gates. A is the type computed in, NV the
// vectors that a gate has in a panel.
#pragma once
#include "../products/dot-inl.h"
#include "../products/packed_matrix-inl.h"

namespace RNNKERNELS_SET {
namespace {
// The sizes that loops go by, known at compile time: hidden units of a panel, their sums for one row (with the input,
// with the state), and states.
template <class A, class Cell, int NV>
struct PanelSizes {
  static constexpr int WIDTH = NV * Vec<A>::W, X_SUMS = Cell::G * WIDTH, SUMS = X_SUMS, STATES = Cell::STATES;
  explicit PanelSizes(const LayerCall&) {}
};

template <class A, class Cell, int NV>
struct Weights {
  static constexpr int W = Vec<A>::W, G = Cell::G, SPLIT = Cell::SPLIT, NB = G * NV;
  static constexpr int WIDTH = NV * W, SUMS = NB * W;       // hidden units of a panel; their sums for one row
  static constexpr int SECOND = Cell::PHASES > 1 ? NV : 0;  // vectors of W_hh that wait for the second product
  static constexpr int BIAS = (G + SPLIT) * WIDTH;          // and what is added to these

  const LayerCall& call;
  const Schedule schedule;
  const int64_t I = call.I, H = call.H, P = call.P, D = call.D;
  const int64_t panels = (H + WIDTH - 1) / WIDTH, out_panels = (P + WIDTH - 1) / WIDTH;
  PackedMatrix<A> w_ih, w_hh, w_hr;  // panel after panel, direction after direction
  PackedMatrix<A> w_second;          // the last gate of W_hh, where it has a product of its own
  Scratch<A> bias;                   // [D][panel][BIAS]
  mutable Flag overflow;             // a number that has no bf16 parts came

  Weights(const LayerCall& c, const Schedule& s) : call(c), schedule(s) {
    bias.allocate(D * panels * BIAS);
    allocate(w_ih, schedule.ih, I, NB);
    allocate(w_hh, schedule.hh, P, NB - SECOND);
    if (SECOND > 0) allocate(w_second, schedule.hh, P, SECOND);
    if (call.project) w_hr.allocate(D * out_panels * WIDTH, H, 0);
  }

  // Panels of n vectors.
  void allocate(PackedMatrix<A>& w, Layout layout, int64_t K, int n) const {
    const int64_t columns = D * panels * n * W;
    if (layout == Layout::quads) w.allocate_quads(columns, K);
    else if (layout == Layout::narrow) w.allocate_narrow(columns, K, call.storage);
    else if (kept(layout)) w.allocate(columns, K, layout == Layout::pairs ? schedule.parts : 0);
  }
  // True if a matrix is packed as a whole before the loop.
  bool kept(Layout layout) const { return layout != Layout::in_place && !passing(layout); }
  // True if it is packed a panel at a time, whenever one is used.
  bool passing(Layout layout) const {
    return schedule.passing && (layout == Layout::pairs || layout == Layout::panels);
  }
  Stored<A> stored(const void* data) const { return {data, call.storage}; }
  template <class T>
  const T* weight(int64_t d, int k) const {
    return static_cast<const T*>(call.weight(d, k));
  }
  int64_t column(int64_t d, int64_t u, int n) const { return (d * panels + u) * n * W; }
  A* bias_of(int64_t d, int64_t u) const { return bias.data() + (d * panels + u) * BIAS; }

  // All of them; false if a number came that the form cannot take.
  bool pack(bool parallel) {
    spread(parallel, D * panels, [&](int64_t i) { pack_panel(i / panels, i % panels); });
    if (call.project)
      spread(parallel, D * out_panels, [&](int64_t i) { pack_projection(i / out_panels, i % out_panels); });
    return !overflow;
  }

  // Biases added to the sums: b_ih + b_hh; but a split gate's recurrent sum has its b_hh, and its b_ih comes last.
  void pack_bias(int64_t d, int64_t u) {
    A* to = bias_of(d, u);
    std::fill_n(to, BIAS, A(0));
    if (!call.bias) return;
    for (int side = 0; side < 2; ++side)
      for (int g = 0; g < G; ++g) {
        alignas(64) A row[WIDTH];
        int64_t n = std::min<int64_t>(WIDTH, H - u * WIDTH);
        stored(call.weight(d, 2 + side)).get_row(g * H + u * WIDTH, row, n);
        A* at = to + (side == 0 && g >= G - SPLIT ? g + SPLIT : g) * WIDTH;
        for (int64_t j = 0; j < n; ++j) at[j] += row[j];
      }
  }

  void pack_panel(int64_t d, int64_t u) {
    pack_bias(d, u);
    if (kept(schedule.ih)) pack_matrix<NB>(w_ih, schedule.ih, 0, I, 0, d, u, column(d, u, NB));
    if (!kept(schedule.hh)) return;
    pack_matrix<NB - SECOND>(w_hh, schedule.hh, 1, P, 0, d, u, column(d, u, NB - SECOND));
    if constexpr (SECOND > 0) pack_matrix<SECOND>(w_second, schedule.hh, 1, P, G - 1, d, u, column(d, u, SECOND));
  }

  // Panel u of weights k of K columns, gates g0.. that are N vectors, to column c of w.
  template <int N>
  void pack_matrix(PackedMatrix<A>& w, Layout layout, int k, int64_t K, int g0, int64_t d, int64_t u, int64_t c) const {
    for (int v = 0; v < N; ++v) {
      const int64_t j = u * WIDTH + v % NV * W, first = (g0 + v / NV) * H + j, at = first * K;
      const int n = int(std::clamp<int64_t>(H - j, 0, W));
      if (layout == Layout::quads) w.pack_quads(weight<int8_t>(d, k) + at, call.scale(d, k) + first, n, K, c, N, v);
      else if (layout == Layout::narrow) w.pack_narrow(weight<Bits>(d, k) + at, n, K, c, N, v);
      else w.pack_columns(stored(call.weight(d, k)), at, K, n, K, c, N, v, overflow);
    }
  }

  void pack_projection(int64_t d, int64_t u) {
    for (int v = 0; v < NV; ++v) {
      int64_t p = u * WIDTH + v * W;
      int n = int(std::clamp<int64_t>(P - p, 0, W));
      w_hr.pack_columns(stored(call.weight(d, call.projection())), p * H, H, n, H, (d * out_panels + u) * WIDTH, NV, v,
                        overflow);
    }
  }

  // sums = left times W_ih, or times what the first product (or the second one) of a step takes of W_hh, for n rows of
  // panel u.
  void multiply_input(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply<NB>(w_ih, schedule.ih, 0, I, 0, tiles, d, u, n, left, sums, sums_row);
  }
  void multiply_state(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply<NB - SECOND>(w_hh, schedule.hh, 1, P, 0, tiles, d, u, n, left, sums, sums_row);
  }
  void multiply_second(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                       int64_t sums_row) const {
    multiply<SECOND>(w_second, schedule.hh, 1, P, G - 1, tiles, d, u, n, left, sums, sums_row);
  }

  // The same with weights k of K columns, gates g0.. that are N vectors in a panel.
  template <int N>
  void multiply(const PackedMatrix<A>& w, Layout layout, int k, int64_t K, int g0, Tiles& tiles, int64_t d, int64_t u,
                int64_t n, const RowsView<A>& left, A* sums, int64_t sums_row) const {
    if (passing(layout)) {  // it stays close, and takes no memory of its own
      PackedMatrix<A> panel;
      panel.allocate(N * W, K, layout == Layout::pairs ? schedule.parts : 0);
      pack_matrix<N>(panel, layout, k, K, g0, d, u, 0);
      return panel.template multiply<N>(tiles, schedule.engine, n, left, 0, K, 0, sums, sums_row, Sum::put);
    }
    if (layout != Layout::in_place)
      return w.template multiply<N>(tiles, schedule.engine, n, left, 0, K, column(d, u, N), sums, sums_row, Sum::put);
    for (int g = 0; g < N / NV; ++g) {
      const int64_t first = (g0 + g) * H + u * WIDTH, count = std::min<int64_t>(WIDTH, H - u * WIDTH);
      for (int64_t m = 0; count < WIDTH && m < n; ++m)  // what pads a panel may become a factor
        std::fill_n(sums + m * sums_row + g * WIDTH + count, WIDTH - count, A(0));
      if (!call.quantized()) {
        dot_product(n, left.a, left.row, stored(call.weight(d, k)), first * K, count, K, sums + g * WIDTH, sums_row);
      } else if constexpr (sizeof(A) == 4) {
        dot_quads(n, left.split, left.split_row, weight<int8_t>(d, k) + first * K, call.scale(d, k) + first, count, K,
                  sums + g * WIDTH, sums_row);
      }
    }
  }

  // sums = left times W_hr, for n rows of panel u of the outputs.
  void project(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums) const {
    w_hr.template multiply<NV>(tiles, schedule.engine, n, left, 0, H, (d * out_panels + u) * WIDTH, sums, WIDTH,
                               Sum::put);
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
