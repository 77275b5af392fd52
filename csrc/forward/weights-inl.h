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
  PackedMatrix<A> input, state, second, projection;  // panel after panel, direction after direction
  // [D][vector of units][row][W], the rows: b_ih by gate of the input, b_hh by recurrent gate, and the sums of both by
  // gate of the input; and the learned vectors.
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
  // So many gates of a weight of K columns, from `first` on.
  struct Factor {
    Layout layout;
    int weight, first, gates;
    int64_t K;
    PackedMatrix<A>* packed = nullptr;
  };
  Factor input{schedule.ih, 0, 0, gates_ih, I}, state{schedule.hh, call.hh(), 0, gates_first, P};
  Factor second{schedule.hh, call.hh(), gates_first, gates_hh - gates_first, P};  // where W_hh has a second product
  std::shared_ptr<PackedWeights<A>> packed;
  const int inputs = program ? int(program->inputs.size()) : gates_ih,
            learned = program ? int(program->vectors.size()) : 0, row_count = 2 * inputs + gates_hh + learned;
  mutable Flag overflow;  // a number that has no bf16 parts came

  Weights(const LayerCall& c, const Schedule& s) : Of(c), call(c), schedule(s) {}

  // Room for all of them.
  void allocate() {
    use(std::make_shared<PackedWeights<A>>());
    packed->rows.allocate(D * row_count * Hp, true);
    for (const Factor* each : {&input, &state, &second}) allocate(*each);
    if (call.project) packed->projection.allocate(D * out_panels * WIDTH, H, 0);
  }
  void use(std::shared_ptr<PackedWeights<A>> form) {
    packed = std::move(form);
    input.packed = &packed->input, state.packed = &packed->state, second.packed = &packed->second;
  }

  void allocate(const Factor& of) const {
    if (of.gates == 0 || !kept(of.layout)) return;
    const int64_t columns = D * panels * of.gates * WIDTH;
    if (of.layout == Layout::quads) of.packed->allocate_quads(columns, of.K);
    else if (of.layout == Layout::narrow) of.packed->allocate_narrow(columns, of.K, call.storage);
    else of.packed->allocate(columns, of.K, of.layout == Layout::pairs ? schedule.parts : 0);
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
  // As the vectors of a block.
  Place<A> row(int64_t d, int k) const { return {packed->rows.data() + d * row_count * Hp + k * W, 0, row_count * W}; }
  Place<A> bias_ih(int64_t d, int g) const { return row(d, g); }
  Place<A> bias_hh(int64_t d, int g) const { return row(d, inputs + g); }
  Place<A> bias_of_both(int64_t d, int g) const { return row(d, inputs + gates_hh + g); }
  Place<A> vector(int64_t d, int k) const { return row(d, 2 * inputs + gates_hh + k); }

  // All of them, or what is kept of an earlier call; false if a number came that the form cannot take.
  bool pack(bool parallel) {
    auto make = [&] {
      pack_all(parallel);
      return packed;
    };
    if (!call.kept) make();
    else use(std::static_pointer_cast<PackedWeights<A>>(call.kept->get(form(), make)));
    return packed->fine;
  }
  KeptWeights::Form form() const {
    return {call.kept_place,
            int64_t(call.cell->id),
            D,
            H,
            call.I,
            call.P,
            call.bias,
            call.project,
            int64_t(call.storage),
            kBytes,
            sizeof(A),
            int64_t(schedule.ih) << 8 | int64_t(schedule.hh),
            schedule.parts,
            schedule.passing};
  }
  void pack_all(bool parallel) {
    allocate();
    for (int64_t d = 0; d < D; ++d) pack_rows(d);
    spread(parallel, D * panels, [&](int64_t i) { pack_panel(i / panels, i % panels); });
    if (call.project)
      spread(parallel, D * out_panels, [&](int64_t i) { pack_projection(i / out_panels, i % out_panels); });
    packed->fine = !overflow;
  }

  void pack_rows(int64_t d) {
    auto put = [&](const Place<A>& row, int weight, int64_t first) {
      for (int64_t q = 0; q * W < H; ++q)
        stored(call.weight(d, weight)).get_row(first + q * W, row_at(row, q), std::min<int64_t>(W, H - q * W));
    };
    for (int g = 0; call.bias && g < gates_ih; ++g) put(bias_ih(d, g), call.bias_ih(), g * H);
    for (int g = 0; call.bias && g < gates_hh; ++g) put(bias_hh(d, g), call.bias_hh(), g * H);
    for (int g = 0; call.bias && g < inputs; ++g) {
      const int recurrent = recurrent_gate(g);
      for (int64_t q = 0; recurrent >= 0 && q * W < H; ++q)
        (bias_ih(d, g).get(0, q) + bias_hh(d, recurrent).get(0, q)).store(row_at(bias_of_both(d, g), q));
    }
    for (int k = 0; k < learned; ++k) put(vector(d, k), call.vector(k), 0);
  }
  A* row_at(const Place<A>& row, int64_t q) const {
    return packed->rows.data() + (row.at - packed->rows.data()) + q * row.unit;
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
    for (Factor* of : {&input, &state, &second})
      for_groups(kept(of->layout) ? of->gates : 0,
                 [&](auto n, int g0, int) { pack_group(n, *of, *of->packed, g0, d, u, column(d, u, of->gates, g0)); });
  }
  // N vectors of panel u, of its gates from number g0 on, to column c of w.
  __attribute__((noinline)) void pack_group(int N, const Factor& of, PackedMatrix<A>& w, int g0, int64_t d, int64_t u,
                                            int64_t c) const {
    for (int v = 0; v < N; ++v) {
      const int64_t j = u * WIDTH + v % vectors * W, first = (of.first + g0 + v / vectors) * H + j, at = first * of.K;
      const int n = int(std::clamp<int64_t>(H - j, 0, W)), k = of.weight;
      if (of.layout == Layout::quads)
        w.pack_quads(weight<int8_t>(d, k) + at, call.scale(d, k) + first, n, of.K, c, N, v);
      else if (of.layout == Layout::narrow) w.pack_narrow(weight<Bits>(d, k) + at, n, of.K, c, N, v);
      else w.pack_columns(stored(call.weight(d, k)), at, of.K, n, of.K, c, N, v, overflow);
    }
  }
  void pack_projection(int64_t d, int64_t u) {
    for (int v = 0; v < vectors; ++v) {
      const int64_t p = u * WIDTH + v * W;
      const int n = int(std::clamp<int64_t>(P - p, 0, W));
      packed->projection.pack_columns(stored(call.weight(d, call.projection())), p * H, H, n, H,
                                      (d * out_panels + u) * WIDTH, vectors, v, overflow);
    }
  }

  // sums = left times W_ih, or times what the first product (or the second one) of a step takes of W_hh, for n rows of
  // panel u. Panel `next` comes after it.
  void multiply_input(Tiles& tiles, int64_t d, int64_t u, int64_t next, int64_t n, const RowsView<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply(input, tiles, d, u, next, n, left, sums, sums_row);
  }
  void multiply_state(Tiles& tiles, int64_t d, int64_t u, int64_t next, int64_t n, const RowsView<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply(state, tiles, d, u, next, n, left, sums, sums_row);
  }
  void multiply_second(Tiles& tiles, int64_t d, int64_t u, int64_t next, int64_t n, const RowsView<A>& left, A* sums,
                       int64_t sums_row) const {
    multiply(second, tiles, d, u, next, n, left, sums, sums_row);
  }
  void multiply(const Factor& of, Tiles& tiles, int64_t d, int64_t u, int64_t next, int64_t n, const RowsView<A>& left,
                A* sums, int64_t sums_row) const {
    if (__builtin_expect(!kept(of.layout), 0)) return multiply_unpacked(of, tiles, d, u, n, left, sums, sums_row);
    for_groups(of.gates, [&](auto N, int g0, int) __attribute__((always_inline)) {
      of.packed->template multiply<N>(tiles, schedule.engine, n, left, 0, of.K, column(d, u, of.gates, g0),
                                      column(d, next, of.gates, g0), sums + g0 * WIDTH, sums_row, Sum::put);
    });
  }
  // The same where weights lie, or with a panel that is packed for this: it stays close, and takes no memory of its
  // own.
  __attribute__((noinline)) void multiply_unpacked(const Factor& of, Tiles& tiles, int64_t d, int64_t u, int64_t n,
                                                   const RowsView<A>& left, A* sums, int64_t sums_row) const {
    if (of.layout == Layout::in_place) return multiply_in_place(of, d, u, n, left, sums, sums_row);
    for_groups(of.gates, [&](auto N, int g0, int) {
      PackedMatrix<A> panel;
      panel.allocate(N * W, of.K, of.layout == Layout::pairs ? schedule.parts : 0);
      pack_group(N, of, panel, g0, d, u, 0);
      panel.template multiply<N>(tiles, schedule.engine, n, left, 0, of.K, 0, 0, sums + g0 * WIDTH, sums_row, Sum::put);
    });
  }
  void multiply_in_place(const Factor& of, int64_t d, int64_t u, int64_t n, const RowsView<A>& left, A* sums,
                         int64_t sums_row) const {
    const int64_t columns = std::min<int64_t>(WIDTH, H - u * WIDTH), K = of.K;
    const int k = of.weight;
    for (int g = 0; g < of.gates; ++g, sums += WIDTH) {
      const int64_t row = (of.first + g) * H + u * WIDTH;
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
          const int64_t c = (d * out_panels + u) * WIDTH;
          packed->projection.template multiply<N>(tiles, schedule.engine, n, left, 0, H, c, c, sums, WIDTH, Sum::put);
        },
        0, 1);
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
