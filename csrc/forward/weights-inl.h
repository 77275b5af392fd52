// The weights of a layer's forward pass in the form that its schedule says, and their products with rows of x and of h.
// A panel is WIDTH hidden units (outputs of a projection) with all their gates. A is the type computed in.
#pragma once
#include "../cells/run_program-inl.h"
#include "../products/dot-inl.h"
#include "../products/packed_matrix-inl.h"

namespace RNNKERNELS_SET {
namespace {
// The sizes that loops go by. In a row of sums the vector of gate g and of units from j on lies at j * gates + g * W,
// because panels of several gates are one vector wide.
template <class A>
struct PanelSizes {
  static constexpr int W = Vec<A>::W;
  const int gates_ih, gates_hh, gates_first;  // of W_ih, of W_hh, and of the first product with it
  const int states;
  // Vectors of a gate in a panel: a single gate has several, so that tiles are filled.
  const int vectors;
  // Hidden units of a panel, and their sums for one row: with the input, with the state.
  const int WIDTH = vectors * W, X_SUMS = gates_ih * WIDTH, SUMS = gates_first * WIDTH;

  explicit PanelSizes(const LayerCall& call)
      : gates_ih(int(call.cell->ih_gates)),
        gates_hh(int(call.cell->hh_gates)),
        gates_first(gates_hh - int(call.cell->phases) + 1),
        states(int(call.cell->states)),
        vectors(call.cell->gates > 1     ? 1
                : wide_panels<A>(call.H) ? 4
                                         : 2) {}
};

// The weights of all directions in a packed form, which calls may share: see cells/kept_weights.h.
template <class A>
struct PackedWeights {
  PackedMatrix<A> ih, hh, hr;  // panel after panel, direction after direction
  PackedMatrix<A> second;      // the last gate of W_hh, where it has a product of its own
  // [D] rows of Hp: b_ih by gate of the input, b_hh by recurrent gate, and the sums of both by gate of the input; and
  // the learned vectors.
  Scratch<A> rows;
  bool fine = true;  // no number came that the form cannot take
};

template <class A>
struct Weights : PanelSizes<A> {
  using Of = PanelSizes<A>;
  using Of::gates_first;
  using Of::gates_hh;
  using Of::gates_ih;
  using Of::vectors;
  using Of::W;
  using Of::WIDTH;

  const LayerCall& call;
  const Schedule schedule;
  const Program* const program = call.cell->program.get();
  const int64_t I = call.I, H = call.H, P = call.P, D = call.D;
  const int64_t panels = (H + WIDTH - 1) / WIDTH, out_panels = (P + WIDTH - 1) / WIDTH, Hp = panels * WIDTH;
  std::shared_ptr<PackedWeights<A>> packed;
  const int inputs = program ? int(program->inputs.size()) : gates_ih,
            learned = program ? int(program->vectors.size()) : 0, row_count = 2 * inputs + gates_hh + learned;
  mutable Flag overflow;  // a number that has no bf16 parts came

  Weights(const LayerCall& c, const Schedule& s) : Of(c), call(c), schedule(s) {}

  void allocate(PackedMatrix<A>& w, Layout layout, int64_t K, int gates) const {
    if (gates == 0 || !kept(layout)) return;
    const int64_t columns = D * panels * gates * WIDTH;
    if (layout == Layout::quads) w.allocate_quads(columns, K);
    else if (layout == Layout::narrow) w.allocate_narrow(columns, K, call.storage);
    else w.allocate(columns, K, layout == Layout::pairs ? schedule.parts : 0);
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
  A* row(int64_t d, int64_t k) const { return packed->rows.data() + (d * row_count + k) * Hp; }
  // As the vectors of a block.
  Place<A> bias_ih(int64_t d, int g) const { return {row(d, g), 0, W}; }
  Place<A> bias_hh(int64_t d, int g) const { return {row(d, inputs + g), 0, W}; }
  Place<A> bias_of_both(int64_t d, int g) const { return {row(d, inputs + gates_hh + g), 0, W}; }
  Place<A> vector(int64_t d, int k) const { return {row(d, 2 * inputs + gates_hh + k), 0, W}; }

  // All of them; false if a number came that the form cannot take.
  bool pack(bool parallel) {
    auto make = [&] {
      make_packed(parallel);
      return packed;
    };
    if (!call.kept) make();
    else packed = std::static_pointer_cast<PackedWeights<A>>(call.kept->get(form(), make));
    return packed->fine;
  }
  KeptWeights::Form form() const {
    return {call.kept_place,      kBytes,         sizeof(A),       int64_t(schedule.ih),
            int64_t(schedule.hh), schedule.parts, schedule.passing};
  }

  // Room for all of them.
  void allocate() {
    packed = std::make_shared<PackedWeights<A>>();
    packed->rows.allocate(D * row_count * Hp, true);
    allocate(packed->ih, schedule.ih, I, gates_ih);
    allocate(packed->hh, schedule.hh, P, gates_first);
    allocate(packed->second, schedule.hh, P, gates_hh - gates_first);
    if (call.project) packed->hr.allocate(D * out_panels * WIDTH, H, 0);
  }

  void make_packed(bool parallel) {
    allocate();
    for (int64_t d = 0; d < D; ++d) pack_rows(d);
    spread(parallel, D * panels, [&](int64_t i) { pack_panel(i / panels, i % panels); });
    if (call.project)
      spread(parallel, D * out_panels, [&](int64_t i) { pack_projection(i / out_panels, i % out_panels); });
    packed->fine = !overflow;
  }

  void pack_rows(int64_t d) {
    for (int g = 0; call.bias && g < gates_ih; ++g) stored(call.weight(d, call.bias_ih())).get_row(g * H, row(d, g), H);
    for (int g = 0; call.bias && g < gates_hh; ++g)
      stored(call.weight(d, call.bias_hh())).get_row(g * H, row(d, inputs + g), H);
    for (int g = 0; call.bias && g < inputs; ++g) {
      const int recurrent = recurrent_gate(g);
      if (recurrent < 0) continue;
      const A *x = row(d, g), *r = row(d, inputs + recurrent);
      A* const to = row(d, inputs + gates_hh + g);
      for (int64_t j = 0; j < H; ++j) to[j] = x[j] + r[j];
    }
    for (int k = 0; k < learned; ++k)
      stored(call.weight(d, call.vector(k))).get_row(0, row(d, 2 * inputs + gates_hh + k), H);
  }
  // The recurrent gate of the same name as gate g of the input, -1 where there is none.
  int recurrent_gate(int g) const {
    if (!program) return g;
    const auto& recurrent = program->recurrent;
    const auto same = std::find(recurrent.begin(), recurrent.end(), program->inputs[size_t(g)]);
    return same == recurrent.end() ? -1 : int(same - recurrent.begin());
  }

  // f(integral_constant<vectors>, first gate, gates) for groups of up to four vectors, nearly equal ones.
  template <class F>
  INLINE void for_groups(int gates, const F& f) const {
    const int all = gates * vectors;
    if (__builtin_expect(all <= 4, 1)) return with_vectors(all, f, 0, gates);
    for (int i = 0, count = (all + 3) / 4; i < count; ++i) {
      const int g0 = gates * i / count, n = gates * (i + 1) / count - g0;
      with_vectors(n * vectors, f, g0, n);
    }
  }
  template <class F>
  INLINE static void with_vectors(int n, const F& f, int g0, int gates) {
    switch (n) {
      case 1:
        return f(std::integral_constant<int, 1>{}, g0, gates);
      case 2:
        return f(std::integral_constant<int, 2>{}, g0, gates);
      case 3:
        return f(std::integral_constant<int, 3>{}, g0, gates);
      case 4:
        return f(std::integral_constant<int, 4>{}, g0, gates);
    }
  }
  // Of gate g of so many in panel u.
  int64_t column(int64_t d, int64_t u, int gates, int g) const { return ((d * panels + u) * gates + g) * WIDTH; }

  void pack_panel(int64_t d, int64_t u) {
    auto pack = [&](PackedMatrix<A>& w, Layout layout, int k, int64_t K, int first, int gates) {
      for_groups(kept(layout) ? gates : 0, [&](auto n, int g0, int) {
        pack_group(n, w, layout, k, K, first + g0, d, u, column(d, u, gates, g0));
      });
    };
    pack(packed->ih, schedule.ih, 0, I, 0, gates_ih);
    pack(packed->hh, schedule.hh, call.hh(), P, 0, gates_first);
    pack(packed->second, schedule.hh, call.hh(), P, gates_first, gates_hh - gates_first);
  }
  // Panel u of weights k of K columns, gates g0.. that are N vectors, to column c of w.
  void pack_group(int N, PackedMatrix<A>& w, Layout layout, int k, int64_t K, int g0, int64_t d, int64_t u,
                  int64_t c) const {
    for (int v = 0; v < N; ++v) {
      const int64_t j = u * WIDTH + v % vectors * W, first = (g0 + v / vectors) * H + j, at = first * K;
      const int n = int(std::clamp<int64_t>(H - j, 0, W));
      if (layout == Layout::quads) w.pack_quads(weight<int8_t>(d, k) + at, call.scale(d, k) + first, n, K, c, N, v);
      else if (layout == Layout::narrow) w.pack_narrow(weight<Bits>(d, k) + at, n, K, c, N, v);
      else w.pack_columns(stored(call.weight(d, k)), at, K, n, K, c, N, v, overflow);
    }
  }
  void pack_projection(int64_t d, int64_t u) {
    for (int v = 0; v < vectors; ++v) {
      const int64_t p = u * WIDTH + v * W;
      const int n = int(std::clamp<int64_t>(P - p, 0, W));
      packed->hr.pack_columns(stored(call.weight(d, call.projection())), p * H, H, n, H, (d * out_panels + u) * WIDTH,
                              vectors, v, overflow);
    }
  }

  // sums = left times W_ih, or times what the first product (or the second one) of a step takes of W_hh, for n rows of
  // panel u.
  void multiply_input(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply(packed->ih, schedule.ih, 0, I, 0, gates_ih, tiles, d, u, n, left, sums, sums_row);
  }
  void multiply_state(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply(packed->hh, schedule.hh, call.hh(), P, 0, gates_first, tiles, d, u, n, left, sums, sums_row);
  }
  void multiply_second(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                       int64_t sums_row) const {
    multiply(packed->second, schedule.hh, call.hh(), P, gates_first, gates_hh - gates_first, tiles, d, u, n, left, sums,
             sums_row);
  }
  // The same with weights k of K columns, of which so many gates from `first` on are in w.
  void multiply(const PackedMatrix<A>& w, Layout layout, int k, int64_t K, int first, int gates, Tiles& tiles,
                int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums, int64_t sums_row) const {
    if (layout == Layout::in_place) return multiply_in_place(k, K, first, gates, d, u, n, left, sums, sums_row);
    for_groups(gates, [&](auto N, int g0, int) {
      A* const to = sums + g0 * WIDTH;
      auto by = [&](const PackedMatrix<A>& factor, int64_t c) {
        factor.template multiply<N>(tiles, schedule.engine, n, left, 0, K, c, to, sums_row, Sum::put);
      };
      if (!passing(layout)) return by(w, column(d, u, gates, g0));
      PackedMatrix<A> panel;  // it stays close, and takes no memory of its own
      panel.allocate(N * W, K, layout == Layout::pairs ? schedule.parts : 0);
      pack_group(N, panel, layout, k, K, first + g0, d, u, 0);
      by(panel, 0);
    });
  }
  void multiply_in_place(int k, int64_t K, int first, int gates, int64_t d, int64_t u, int64_t n,
                         const RowsView<A>& left, A* sums, int64_t sums_row) const {
    const int64_t columns = std::min<int64_t>(WIDTH, H - u * WIDTH);
    for (int g = 0; g < gates; ++g, sums += WIDTH) {
      const int64_t row = (first + g) * H + u * WIDTH;
      for (int64_t m = 0; columns < WIDTH && m < n; ++m)  // what pads a panel may become a factor
        std::fill_n(sums + m * sums_row + columns, WIDTH - columns, A(0));
      if (!call.quantized()) {
        dot_product(n, left.a, left.row, stored(call.weight(d, k)), row * K, columns, K, sums, sums_row);
      } else if constexpr (sizeof(A) == 4) {
        dot_quads(n, left.split, left.split_row, weight<int8_t>(d, k) + row * K, call.scale(d, k) + row, columns, K,
                  sums, sums_row);
      }
    }
  }

  // sums = left times W_hr, for n rows of panel u of the outputs.
  void project(Tiles& tiles, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums) const {
    with_vectors(
        vectors,
        [&](auto N, int, int) {
          packed->hr.template multiply<N>(tiles, schedule.engine, n, left, 0, H, (d * out_panels + u) * WIDTH, sums,
                                          WIDTH, Sum::put);
        },
        0, 1);
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
