// The built-in cells in the backward loop: their derivatives (cells/built_in-inl.h) over the vectors of a block, and
// the operands of their products, made again. F: the functions of a call, see activations-inl.h.
#pragma once
#include "../cells/built_in-inl.h"
#include "loop-inl.h"

namespace RNNKERNELS_SET {
namespace {
// The new c as the cell itself made it. Where zoneout has mixed it with the old one, it comes from what training keeps:
// it matters to h' even where none of it stays.
template <class Cell, class A>
INLINE Vec<A> c_made(const Tape<A>& tape, int64_t t, int64_t b, int64_t j, int n, const Vec<A>* kept) {
  if (tape.call.zone[1]) return Cell::new_c(kept, tape.state_before(1, t, b, j, n));
  return tape.state_after(1, t, b, j, n);
}
// That of all units of row b.
template <class Cell, class A>
void get_c_made(const Tape<A>& tape, int64_t t, int64_t b, A* to) {
  for_row<A>(0, 1, tape.H, [&](int, int64_t j, int n) {
    Vec<A> kept[Cell::KEPT];
    for (int k = 0; k < Cell::KEPT; ++k) kept[k] = tape.plane_at(t, b, k, j, n);
    c_made<Cell>(tape, t, b, j, n, kept).store(to + j);
  });
}

// The cell's derivative at units j.. of row b, given the gradient of its output.
template <class A, class Cell, class F>
INLINE void derivative(Backward<A>& loop, const BackwardBlock<A>& of, F functions, const typename Tape<A>::Row& row,
                       int64_t b, int64_t j, bool alive, Vec<A> dh) {
  using V = Vec<A>;
  constexpr int W = V::W, G = Cell::G, SPLIT = Cell::SPLIT, PLANES = G + SPLIT, K = Cell::KEPT;
  const LayerCall& call = loop.call;
  const Tape<A>& tape = loop.tape;
  StateGradients<A>& carried = loop.carried;
  const int64_t t = of.t, d = loop.d, Hp = loop.Hp;
  const int n = int(std::min<int64_t>(W, loop.H - j));
  A* const to = loop.dz_of(of.slot, b) + j;
  auto put = [&](int p, V v) __attribute__((always_inline)) {
    v.store(to + p * Hp);
    if (loop.step_parts && !call.layer_norm) loop.dz_split.put(v, of.slot * loop.B + b, p * loop.Hk + j, loop.overflow);
  };
  if constexpr (Cell::STATES > 1) carried.arriving_c(t, b, j);
  if (!alive) {
    for (int p = 0; p < loop.planes; ++p) put(p, V(A(0)));
    return;
  }
  V kept[K + 1], delta[PLANES], zero(A(0)), h = zero, h_new = zero, c = zero, c_new = zero, dc_new = zero,
                                            dc_old = zero, direct;
  if (row.planes)
    for (int k = 0; k < K; ++k) kept[k] = row.get(k, j, n);
  else
    for (int k = 0; k < K; ++k) kept[k] = tape.plane_at(t, b, k, j, n);
  if constexpr (Cell::MIXES) h = row.h_before ? load_first(row.h_before + j, n) : tape.state_before(0, t, b, j, n);
  if constexpr (K == 0) h_new = tape.h_new(t, b, j, n);
  if constexpr (Cell::STATES > 1) {
    c = row.c_before ? load_first(row.c_before + j, n) : tape.state_before(1, t, b, j, n);
    c_new = F::STAGED ? c_made<Cell>(tape, t, b, j, n, kept) : load_first(row.c_after + j, n);
    dc_new = load(carried.c_of(b) + j);
    if (loop.dcells) dc_new = dc_new + load_first(loop.dcells + tape.cells_at(t, b) + j, n);
    if (F::STAGED && call.zone[1])
      dc_old = coefficients<A>(call.zone[1], t, d, b, j, n) * dc_new, dc_new = dc_new - dc_old;
  }
  bool normed = false;
  if constexpr (F::STAGED && Cell::STATES > 1) normed = call.layer_norm;
  if constexpr (Cell::STATES > 1) {
    if (normed) {
      const V y = load(loop.norms.y.data() + b * Hp + j), dc_output = load(loop.norms.dc.data() + b * Hp + j);
      Cell::backward_from(functions, kept, c, y, dc_output, dh, dc_new, delta);
      direct = zero;
    }
  }
  if (!normed) Cell::backward(functions, kept, h_new, h, c, c_new, dh, dc_new, delta, direct);
  for (int p = 0; p < PLANES; ++p) put(p, delta[p]);
  for (int g = 0; F::STAGED && call.layer_norm && g < G; ++g) put(G + g, delta[g < G - SPLIT ? g : g + SPLIT]);
  if constexpr (Cell::STATES > 1) (F::STAGED && call.zone[1] ? dc_new + dc_old : dc_new).store(carried.c_of(b) + j);
  const bool zoned = F::STAGED && call.zone[0];
  if (!call.project) (zoned ? direct + load(carried.h_of(b) + j) : direct).store(carried.h_of(b) + j);
}

// Through the norm of c in the output of row b, whose gradient is dh: act(norm of c), and what reaches c.
template <class A, class Cell, class F>
void through_norm_of_c(const NormGradients<A>& norms, F functions, int64_t t, int64_t b, const A* dh, A* part) {
  using V = Vec<A>;
  const int64_t d = norms.d, H = norms.H, Hp = norms.Hp;
  A *c = norms.c.data() + b * Hp, *y = norms.y.data() + b * Hp, *dc = norms.dc.data() + b * Hp;
  get_c_made<Cell>(norms.tape, t, b, c);
  auto get = [&](int, int64_t j, int) { return load(c + j); };
  const auto norm = normal<A>(0, 1, H, norms.call.eps, get);
  for_row<A>(0, 1, H, [&](int, int64_t j, int lanes) {
    const V n = norm.at(0, j, lanes) * load(norms.norms.of(d, 2) + j) + load(norms.norms.of(d, 3) + j);
    const V o = norms.tape.plane_at(t, b, Cell::OUTPUT, j, lanes), in = load(dh + j);
    const V out = functions.act(n);
    out.store(y + j), functions.act_back(in * o, out).store(dc + j);
  });
  A* const to = part + 4 * norms.side;
  norm.back(0, 1, H, norms.norms.of(d, 2), dc, Hp, to + Hp, to);
}

template <class A, class Cell, class F>
void built_in_last_back(Backward<A>& loop, const BackwardBlock<A>& of) {
  using V = Vec<A>;
  constexpr int W = V::W;
  const F functions = F::of(loop.call);
  const bool arrives = !Cell::PROJECTION || !loop.call.project;
  const bool normed = Cell::STATES > 1 && F::STAGED && loop.call.layer_norm;
  for (int64_t b = of.r; b < of.r + of.n; ++b) {
    const bool alive = loop.tape.alive(of.t, b);
    const typename Tape<A>::Row row = alive ? loop.tape.row_at(of.t, b) : typename Tape<A>::Row{};
    A* const dh = loop.gradients.of_state[0].data() + b * loop.gradients.row;
    auto arrive = [&, dy_row = loop.tape.dy_at(of.t, b)](int64_t j) __attribute__((always_inline)) {
      return loop.template arrive<F::STAGED>(of.t, b, dy_row, j, alive, load(dh + j));
    };
    if (normed) {  // of a whole row
      for (int64_t j = of.q0 * W; arrives && j < of.q1 * W; j += W) arrive(j).store(dh + j);
      if constexpr (Cell::STATES > 1 && F::STAGED)
        if (alive) through_norm_of_c<A, Cell>(loop.norms, functions, of.t, b, dh, of.part);
    }
    for (int64_t j = of.q0 * W; j < of.q1 * W; j += W)
      derivative<A, Cell>(loop, of, functions, row, b, j, alive, arrives && !normed ? arrive(j) : load(dh + j));
  }
}

// Gradient of what the second product multiplied -> those of the first gate and of h.
template <class A, class Cell, class F>
void built_in_first_back(Backward<A>& loop, const BackwardBlock<A>& of) {
  using V = Vec<A>;
  constexpr int W = V::W, G = Cell::G;
  const LayerCall& call = loop.call;
  const F functions = F::of(call);
  for (int64_t b = of.r; b < of.r + of.n; ++b) {
    const A* const sums = loop.gradients.of_operand.data() + b * loop.gradients.row;
    for (int64_t j = of.q0 * W; loop.tape.alive(of.t, b) && j < of.q1 * W; j += W) {
      const int lanes = int(std::min<int64_t>(W, loop.H - j));
      const V gate = loop.tape.plane_at(of.t, b, 0, j, lanes), h = loop.tape.state_before(0, of.t, b, j, lanes),
              mask = call.h_mask ? coefficients<A>(call.h_mask, 0, loop.d, b, j, lanes) : V(A(1));
      V dh = load(sums + j);
      const V delta = Cell::backward_first(functions, gate, h * mask, dh);
      A *to = loop.dz_of(of.slot, b) + j, *direct = loop.carried.h_of(b) + j;
      delta.store(to);
      if (call.layer_norm) delta.store(to + G * loop.Hp);
      else if (loop.step_parts) loop.dz_split.put(delta, of.slot * loop.B + b, j, loop.overflow);
      (load(direct) + dh * mask).store(direct);
    }
  }
}

// What the second product of a step multiplied: the first gate times h.
template <class A>
void built_in_second_again(const Tape<A>& tape, Machine<A>*, int64_t t, int64_t b, A* to) {
  constexpr int W = Vec<A>::W;
  tape.get_h_before(t, b, to);
  for (int64_t j = 0; j < tape.P; j += W)
    (load(to + j) * tape.plane_at(t, b, 0, j, int(std::min<int64_t>(W, tape.P - j)))).store(to + j);
}

// The output before a projection.
template <class A, class Cell, class F>
void built_in_output_again(const Tape<A>& tape, Machine<A>*, int64_t t, int64_t b, A* to) {
  using V = Vec<A>;
  const LayerCall& call = tape.call;
  const F functions = F::of(call);
  const int64_t H = tape.H;
  get_c_made<Cell>(tape, t, b, to);
  if (F::STAGED && call.layer_norm) {
    const Stored<A> gain = tape.stored(call.weight(tape.d, call.norm(2))),
                    bias = tape.stored(call.weight(tape.d, call.norm(3)));
    auto get = [&](int, int64_t j, int) { return load(to + j); };
    const auto norm = normal<A>(0, 1, H, call.eps, get);
    for_row<A>(0, 1, H,
               [&](int, int64_t j, int n) { (norm.at(0, j, n) * gain.get(j, n) + bias.get(j, n)).store(to + j); });
  }
  for_row<A>(0, 1, H, [&](int, int64_t j, int n) {
    V kept[Cell::KEPT];
    for (int k = 0; k < Cell::KEPT; ++k) kept[k] = tape.plane_at(t, b, k, j, n);
    Cell::output(functions, kept, load(to + j)).store(to + j);
  });
}

template <class A, class Cell, class F>
constexpr BackwardCell<A> built_in_backward() {
  BackwardCell<A> cell{};
  cell.split = Cell::SPLIT;
  cell.last = built_in_last_back<A, Cell, F>;
  if constexpr (Cell::PHASES > 1)
    cell.first = built_in_first_back<A, Cell, F>, cell.second_again = built_in_second_again<A>;
  if constexpr (Cell::PROJECTION) cell.output_again = built_in_output_again<A, Cell, F>;
  return cell;
}
template <class A, class Cell, class F>
constexpr BackwardCell<A> kBuiltInBackward = built_in_backward<A, Cell, F>();
}  // namespace
}  // namespace RNNKERNELS_SET
