// The gradients of the layer norms of one direction. Their operands are computed again, a chunk of steps at a
// time.
#pragma once
#include "../forward/norm-inl.h"
#include "../forward/weights-inl.h"
#include "cell-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct NormGradients {
  using V = Vec<A>;

  const Tape<A>& tape;
  const BackwardCell<A>& cell;
  const Schedule& loop;
  Flag& overflow;  // a number that has no bf16 parts came
  const LayerCall& call = tape.call;
  const Schedule schedule = in_panels_only(loop);
  const NormWeights<A> norms{call};
  // Gates of W_ih and W_hh, of the first product with W_hh, and of the side that has more.
  const int GX = int(call.cell->ih_gates), GR = int(call.cell->hh_gates), FIRST = GR - int(call.cell->phases) + 1;
  const int G = int(call.cell->gates);
  const int64_t d = tape.d, B = call.B, I = call.I, H = call.H, P = call.P;
  const int64_t Hp = padded<A>(H), Pp = padded<A>(P), side = G * Hp, all = 4 * side + 2 * Hp;
  std::unique_ptr<Weights<A>> weights;
  Scratch<A> x, h;         // [row of a chunk][panel][gate][WIDTH]: the sums of input and state
  Scratch<A> c, y, dc;     // [B][Hp], of a step: c as the cell made it, act(its norm), and what reaches it through that
  Scratch<A> parts, sums;  // [part][all], [all]: gradients of b_ih, b_hh and both gains, and of those of c

  static Schedule in_panels_only(Schedule s) {  // of numbers, or of pairs: there are many rows
    for (Layout* layout : {&s.ih, &s.hh})
      if (*layout != Layout::pairs) *layout = Layout::panels;
    s.passing = false;
    return s;
  }
  Stored<A> stored(const void* data) const { return {data, call.storage}; }
  // Sums of a panel and of a row, of the input or of the state; and where those of gate g of unit j are.
  int64_t panel(bool input) const { return (input ? GX : GR) * weights->WIDTH; }
  int64_t row(bool input) const { return weights->panels * panel(input); }
  int64_t at(bool input, int g, int64_t j) const { return j * (input ? GX : GR) + g * V::W; }
  bool of_c() const { return call.cell->states > 1 && !call.cell->program; }
  A* part(int64_t i) const { return parts.data() + i * all; }

  void open(int64_t rows, int64_t count, bool parallel) {
    weights = std::make_unique<Weights<A>>(call, schedule);
    weights->allocate();
    spread(parallel, weights->panels, [&](int64_t u) { weights->pack_panel(d, u); });
    x.allocate(rows * row(true)), h.allocate(rows * row(false));
    parts.allocate(count * all), sums.allocate(all, true);
    if (of_c()) c.allocate(B * Hp), y.allocate(B * Hp), dc.allocate(B * Hp);
  }

  // Before a chunk of so many rows.
  void begin(int64_t done, int64_t rows, int64_t count, int64_t threads) const {
    spread(threads > 1, threads, [&](int64_t i) { recompute(done, rows * i / threads, rows * (i + 1) / threads); });
    std::fill_n(parts.data(), count * all, A(0));
  }

  // Sums of rows lo..hi of the chunk that begins after `done` steps; those of rows that have ended are not looked at.
  void recompute(int64_t done, int64_t lo, int64_t hi) const {
    constexpr int64_t ROWS = 64;
    Tiles tiles;
    Scratch<A> buffer;
    SplitRows split_x, split_h;
    OperandsAgain<A> again{tape, cell};
    const int64_t widest = std::max(padded<A>(I), Pp);
    buffer.allocate(ROWS * widest);
    if (schedule.ih == Layout::pairs) split_x.allocate(ROWS, I, schedule.parts);
    if (schedule.hh == Layout::pairs) split_h.allocate(ROWS, P, schedule.parts);
    for (int64_t first = lo; first < hi; first += ROWS) {
      const int64_t n = std::min(ROWS, hi - first);
      auto take = [&](const SplitRows& split, int64_t K, auto&& get, auto&& multiply) {
        for (int64_t r = first; r < first + n; ++r) {
          const int64_t t = tape.time(done + r / B), b = r % B;
          A* to = buffer.data() + (r - first) * widest;
          if (tape.alive(t, b)) get(t, b, to);
          else std::fill_n(to, widest, A(0));
          if (split) split.put_row(to, K, r - first, overflow);
        }
        RowsView<A> left;
        left.a = buffer.data(), left.row = widest;
        if (split) left.take(split, 0);
        const bool input = &split == &split_x;
        for (int64_t u = 0; u < weights->panels; ++u) multiply(u, left, first * row(input) + u * panel(input));
      };
      if (GX > 0)
        take(
            split_x, I, [&](int64_t t, int64_t b, A* to) { tape.get_x(t, b, to); },
            [&](int64_t u, const RowsView<A>& left, int64_t at) {
              weights->multiply_input(tiles, d, u, u + 1, n, left, x.data() + at, row(true));
            });
      if (FIRST > 0)
        take(
            split_h, P, [&](int64_t t, int64_t b, A* to) { again.first(t, b, to); },
            [&](int64_t u, const RowsView<A>& left, int64_t at) {
              weights->multiply_state(tiles, d, u, u + 1, n, left, h.data() + at, row(false));
            });
      if (FIRST < GR)
        take(
            split_h, P, [&](int64_t t, int64_t b, A* to) { again.second(t, b, to); },
            [&](int64_t u, const RowsView<A>& left, int64_t at) {
              weights->multiply_second(tiles, d, u, u + 1, n, left, h.data() + at + FIRST * weights->WIDTH, row(false));
            });
    }
  }

  // Gates g0..g1 of row r of the chunk: dz [gate][Hp], from gate g0 on, becomes the gradient of the sums.
  void gates(bool input, int64_t r, int g0, int g1, A* dz, A* part) const {
    const A* from = (input ? x : h).data() + r * row(input);
    auto get = [&](int g, int64_t j, int) { return load(from + at(input, g, j)); };
    A *db = part + (input ? 0 : 1) * side + g0 * Hp, *dgain = db + 2 * side;
    normal<A>(g0, g1, H, call.eps, get).back(g0, g1, H, norms.of(d, input ? 0 : 1, g0), dz, Hp, db, dgain);
  }

  // After a chunk: what the parts have added up, which begins anew.
  void add(int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < all; ++k) sums.data()[k] += part(i)[k];
  }
  void close() const {
    const int first = call.norm(0), to[] = {call.bias_ih(), call.bias_hh(), first, first + call.hh()};
    for (int k = 0; k < 4; ++k)
      for (int g = 0; g < (k % 2 ? GR : GX) && (k > 1 || call.bias); ++g)
        stored(call.dweight(d, to[k])).put_row(sums.data() + k * side + g * Hp, g * H, H);
    for (int k = 0; k < 2 && of_c(); ++k)
      stored(call.dweight(d, first + 2 + k)).put_row(sums.data() + 4 * side + k * Hp, 0, H);
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
