// The forward loop over time, for every cell. One job is one direction and a range of rows (or all rows and a team).
//
// Per step, panel of hidden units and block of rows: the products with x and h, then the cell and the stores, while the
// sums are in the first-level cache.
#pragma once
#include "../cells/activations-inl.h"
#include "../cells/stages-inl.h"
#include "norm-inl.h"
#include "operands-inl.h"
#include "program_weights-inl.h"
#include "weights-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A, class Cell, int NV>
struct Forward : PanelSizes<A, Cell, NV> {
  using V = Vec<A>;
  using Of = PanelSizes<A, Cell, NV>;
  using Of::STATES;
  using Of::SUMS;
  using Of::WIDTH;
  using Of::X_SUMS;
  static constexpr int W = V::W, G = Cell::G, SPLIT = Cell::SPLIT, K = Cell::KEPT;
  static constexpr int64_t BLOCK = 128;  // rows whose sums are kept at a time, at most

  const LayerCall& call;
  const Schedule schedule;
  Weights<A, Cell, NV> weights{call, schedule};
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P, D = call.D;
  const int64_t panels = weights.panels, out_panels = weights.out_panels, Hp = panels * WIDTH, Pp = out_panels * WIDTH;
  const int64_t chunk = schedule.chunked ? std::clamp<int64_t>(kChunkBytes / (B * panels * X_SUMS * sizeof(A)),
                                                               std::min(T, 255 / B + 1), T)
                                         : 1;
  // Few rows, so that their sums stay close by; many where the weights come from afar, to use them more than once.
  const bool quads_in_tiles = schedule.hh == Layout::quads && schedule.engine == Engine::tiles;
  const bool near = (quads_in_tiles ? 1 : 2 * schedule.parts) * SUMS * panels * P <= kNearBytes;
  const int64_t block = schedule.passing                                  ? BLOCK
                        : schedule.hh != Layout::pairs && !quads_in_tiles ? 48
                        : near                                            ? 32
                                                                          : BLOCK;
  Stored<A> stored(const void* data) const { return {data, call.storage}; }
  Stored<A> y = stored(call.y);  // a stream gets a new one with every call
  int64_t y_stride_T = B * D * P, y_stride_B = D * P;
  const Stored<A> gates = stored(call.gates);
  mutable Flag overflow;  // a number that has no bf16 parts came
  Operands<A> operands{call, schedule, chunk, Pp, overflow};
  const NormWeights<A> norms{call};
  const bool zoned = bool(call.zone[0]);
  const bool unbounded = !call.bounded() || call.project;  // else no h exceeds 1 or the first one

  Forward(const LayerCall& c, const Schedule& s) : Of(c), call(c), schedule(s) {}

  void start(Strip<A>& strip) const {
    allocate(strip);
    for (int64_t r = 0; call.states[0] && r < strip.rows; ++r) set_state(strip, 0, r, call.states);
  }

  void allocate(Strip<A>& strip) const {
    strip.h.allocate(2 * strip.rows * Pp, true);
    if (schedule.hh == Layout::pairs && !call.h_mask && !operands.has_operand)
      strip.h_split.allocate(2 * strip.rows, P, schedule.parts);
    if (STATES > 1) strip.c.allocate((STATES - 1) * strip.rows * Hp, true);
    const bool norm_of_c = call.layer_norm && STATES > 1 && !is_program<Cell>;
    if (call.project || norm_of_c) strip.cell_out.allocate(strip.rows * Hp);
    if (call.layer_norm) strip.normed.allocate(strip.rows * panels * std::max(SUMS, is_program<Cell> ? WIDTH : 0));
    if (norm_of_c) strip.cell_c.allocate(strip.rows * Hp);
    if (operands.has_operand) strip.operand.allocate(strip.rows * Pp, true);
    if (is_program<Cell>) strip.crossing.allocate(strip.rows * call.cell->program->crossing * Hp);
    if (call.cell->phases > 1) {
      strip.second.allocate(strip.rows * Pp);
      if (!is_program<Cell>) strip.first.allocate(strip.rows * panels * SUMS);
      if (schedule.hh == Layout::pairs) strip.second_split.allocate(strip.rows, P, schedule.parts);
    }
    if (schedule.chunked) strip.pre.allocate(chunk * strip.rows * panels * X_SUMS);
  }

  // Rows r..r+n of a job as a job of their own, from step t of the loop on.
  Strip<A> cut(const Strip<A>& strip, int64_t r, int64_t n, int64_t t) const {
    Strip<A> part{strip.d, strip.b0 + r, n, t};
    allocate(part);
    std::copy_n(strip.h.data() + strip.at(t, r) * Pp, n * Pp, part.h.data() + part.at(t, 0) * Pp);
    if (strip.h_split) part.h_split.copy(strip.h_split, strip.at(t, r), n, part.at(t, 0));
    for (int k = 1; k < STATES; ++k) std::copy_n(state_of(strip, k, r), n * Hp, state_of(part, k, 0));
    return part;
  }

  // States from the second one on are updated in place.
  A* state_of(const Strip<A>& strip, int k, int64_t r) const {
    return strip.c.data() + ((k - 1) * strip.rows + r) * Hp;
  }

  // The state of row r, with h in `slot`, from given states or zero.
  void set_state(const Strip<A>& strip, int64_t slot, int64_t r, const void* const* from) const {
    const int64_t row = strip.d * B + strip.b0 + r;
    A* h = strip.h.data() + strip.at(slot, r) * Pp;
    if (from[0]) stored(from[0]).get_row(row * P, h, P);
    else std::fill_n(h, P, A(0));
    if (strip.h_split) strip.h_split.put_row(h, P, strip.at(slot, r), overflow);
    for (int k = 1; k < STATES; ++k) {
      A* c = state_of(strip, k, r);
      if (from[k]) stored(from[k]).get_row(row * H, c, H);
      else std::fill_n(c, H, A(0));
    }
  }

  // The state that enters step t in this member's share of the rows, where it is reset.
  void reset(const Strip<A>& strip, int64_t t, int64_t slot, const Team::Member& member) const {
    const auto [lo, hi] = member.share(strip.rows);
    for (int64_t r = lo; r < hi; ++r)
      if (call.resets(strip.d, t, strip.b0 + r)) set_state(strip, slot, r, call.reset_states);
  }

  void finish(const Strip<A>& strip) const {
    for (int64_t r = 0; r < strip.rows; ++r) {
      int64_t row = strip.d * B + strip.b0 + r;
      stored(call.last[0]).put_row(strip.h.data() + strip.at(T, r) * Pp, row * P, P);
      for (int k = 1; k < STATES; ++k) stored(call.last[k]).put_row(state_of(strip, k, r), row * H, H);
    }
  }

  // Buffers of a single thread.
  struct Work {
    typename Operands<A>::Copy x, h, second;
    std::conditional_t<is_program<Cell>, Machine<A>, Nothing> machine;
    explicit Work(const Program* program = nullptr) : machine(program) {}
  };

  // The input's sums of some steps, for panels u0..u1.
  void project_input(const Strip<A>& strip, Work& work, Tiles& tiles, int64_t t0, int64_t steps, int64_t u0,
                     int64_t u1) const {
    const RowsView<A> x = operands.rows_of_x(strip, work.x, t0, steps);
    for (int64_t u = u0; u < u1; ++u)
      weights.multiply_input(tiles, strip.d, u, steps * strip.rows, x, strip.pre.data() + u * X_SUMS, panels * X_SUMS);
  }

  // Gates of the first product -> operand of the second, for rows r..r+n of panel u; arguments as those of `apply`.
  template <class F>
  void apply_first(F functions, const Strip<A>& strip, int64_t u, int64_t slot, int64_t r, int64_t n, const A* x_sums,
                   int64_t x_row, const A* sums) const {
    const A* b = weights.bias_of(strip.d, u);
    for (int64_t m = r; m < r + n; ++m, x_sums += x_row, sums += SUMS)
      for (int v = 0; v < NV; ++v) {
        const int64_t j = u * WIDTH + v * W;
        const int lanes = int(std::min<int64_t>(W, H - j));
        if (lanes <= 0) break;
        V s[G], h = load(strip.h.data() + strip.at(slot, m) * Pp + j);
        for (int g = 0; g < G; ++g) {
          const int at = g * WIDTH + v * W;
          s[g] = load(x_sums + at) + load(b + at);
          if (g < G - 1) s[g] = s[g] + load(sums + at);
        }
        if (call.h_mask) h = h * coefficients<A>(call.h_mask, 0, strip.d, strip.b0 + m, j, lanes);
        const V product = Cell::first(functions, s, h);
        for (int g = 0; g < G; ++g) s[g].store(strip.first.data() + (m * panels + u) * SUMS + g * WIDTH + v * W);
        product.store(strip.second.data() + m * Pp + j);
        if (strip.second_split) strip.second_split.put(product, m, j, overflow);
      }
  }

  // The cell for rows r..r+n of panel u at step t, from the sums of the input (x_row apart) and of the state; for a
  // cell with two products, from what `apply_first` left and the sums of the second one.
  template <class F>
  void apply(F functions, const Strip<A>& strip, int64_t t, int64_t u, int64_t slot, int64_t r, int64_t n,
             const A* x_sums, int64_t x_row, const A* sums) const {
    Row row(*this, strip, t, slot, r);
    const A* b = weights.bias_of(strip.d, u);
    for (int64_t m = r; m < r + n; ++m, x_sums += x_row, sums += SUMS, row.next()) {
      const bool alive = !call.lengths || t < call.length(strip.d, strip.b0 + m);
      for (int v = 0; v < NV; ++v) {
        const int64_t j = u * WIDTH + v * W;
        const int lanes = int(std::min<int64_t>(W, H - j));
        if (lanes <= 0) break;
        V s[G], x[SPLIT + 1], kept[K + 1], c(A(0)), out(A(0));
        for (int g = 0; g < G; ++g) {
          const int at = g * WIDTH + v * W;
          if constexpr (Cell::PHASES > 1) {
            s[g] = load(x_sums + at);
            if (g == G - 1) s[g] = s[g] + load(sums + v * W);
            continue;
          }
          s[g] = load(sums + at) + load(b + at);
          if (g < G - SPLIT) s[g] = s[g] + load(x_sums + at);
          else x[g - G + SPLIT] = load(x_sums + at) + load(b + SPLIT * WIDTH + at);
        }
        if constexpr (Cell::MIXES) out = load(row.h_old + j);
        if constexpr (Cell::STATES > 1) c = load(row.c + j);
        V c_new = c;
        Cell::forward(functions, s, x, out, c_new, kept);
        if constexpr (Cell::STATES > 1) {
          // a norm of c wants its whole row: until then, the output gate is what is left
          if (F::STAGED && call.layer_norm) c_new.store(strip.cell_c.data() + m * Hp + j), out = kept[Cell::OUTPUT];
          if (F::STAGED && zoned) c_new = zoneout(zone(1, strip, t, row, j, lanes), c, c_new);
          if (!alive) c_new = c;
          c_new.store(row.c + j);
          if (call.cells) store_first(c_new, static_cast<A*>(call.cells) + row.kept * H + j, lanes);
        }
        if (K > 0 && gates)
          for (int k = 0; k < K; ++k) gates.put(alive ? kept[k] : V(A(0)), (row.kept * K + k) * H + j, lanes);
        if (call.project || (F::STAGED && Cell::STATES > 1 && call.layer_norm))
          out.store(strip.cell_out.data() + m * Hp + j);
        else put<F>(strip, t, row, j, lanes, alive, out);
      }
    }
  }

  // Where things of a row of one step lie, from row to row.
  struct Row {
    const SplitRows& split;
    Flag& overflow;
    const Stored<A>& y;
    const A* h_old;
    A *h, *c;
    int64_t h_split, y_at, kept, h_row, c_row, y_row;
    Row(const Forward& f, const Strip<A>& strip, int64_t t, int64_t slot, int64_t r)
        : split(strip.h_split),
          overflow(f.overflow),
          y(f.y),
          h_old(strip.h.data() + strip.at(slot, r) * f.Pp),
          h(strip.h.data() + strip.at(slot + 1, r) * f.Pp),
          c(strip.c.data() + (Cell::STATES > 1 ? r * f.Hp : 0)),
          h_split(strip.at(slot + 1, r)),
          y_at(t * f.y_stride_T + (strip.b0 + r) * f.y_stride_B + strip.d * f.P),
          kept((strip.d * f.T + t) * f.B + strip.b0 + r),
          h_row(f.Pp),
          c_row(Cell::STATES > 1 ? f.Hp : 0),
          y_row(f.y_stride_B) {}
    INLINE void next() { h_old += h_row, h += h_row, c += c_row, ++h_split, y_at += y_row, ++kept; }
  };

  INLINE V zone(int k, const Strip<A>& strip, int64_t t, const Row& row, int64_t j, int lanes) const {
    return coefficients<A>(call.zone[k], t, strip.d, row.kept - (strip.d * T + t) * B, j, lanes);
  }

  // The new h of a row at j: into the state and into y.
  template <class F>
  INLINE void put(const Strip<A>& strip, int64_t t, const Row& row, int64_t j, int lanes, bool alive, V out) const {
    if (F::STAGED && zoned) out = zoneout(zone(0, strip, t, row, j, lanes), load(row.h_old + j), out);
    const V h = alive ? out : load(row.h_old + j);
    h.store(row.h + j);
    if (row.split && unbounded) row.split.put(h, row.h_split, j, row.overflow);
    else if (row.split) row.split.put(h, row.h_split, j);
    row.y.put(alive ? out : V(A(0)), row.y_at + j, lanes);
  }

  void project(const Strip<A>& strip, Tiles& tiles, int64_t t, int64_t u, int64_t slot, int64_t r, int64_t n,
               A* sums) const {
    RowsView<A> out;
    out.a = strip.cell_out.data() + r * Hp, out.row = Hp;
    weights.project(tiles, strip.d, u, n, out, sums);
    Row row(*this, strip, t, slot, r);
    with_functions(call, [&](auto functions) {
      for (int64_t m = r; m < r + n; ++m, sums += WIDTH, row.next())
        for (int64_t j = u * WIDTH; j < std::min(P, (u + 1) * WIDTH); j += W)
          put<decltype(functions)>(strip, t, row, j, int(std::min<int64_t>(W, P - j)),
                                   t < call.length(strip.d, strip.b0 + m), load(sums + j - u * WIDTH));
    });
  }

  // f(panel, first row, rows) for this member's share of so many panels. Up and down in turn, so that what the cache
  // still holds of the weights is what the next step begins with.
  template <class F>
  INLINE void for_blocks(const Strip<A>& strip, const Team::Member& member, int64_t all, bool down, const F& f) const {
    const auto [lo, hi] = member.share(all);
    for (int64_t i = lo; i < hi; ++i)
      for_even_blocks(0, strip.rows, block, [&](int64_t r, int64_t n) __attribute__((always_inline)) {
        f(down ? hi - 1 - (i - lo) : i, r, n);
      });
  }

  // Of sums in panels, rows of them: gates g0..g1 lie there as gates 0.., and k is the number of the gain.
  void normalize_rows(int64_t d, A* sums, int64_t rows, int k, int g0, int g1) const {
    using Panels = Weights<A, Cell, NV>;
    for (int64_t r = 0; r < rows; ++r, sums += panels * SUMS) {
      auto get = [&](int g, int64_t j, int) { return load(sums + in_panels<Panels>(g, j)); };
      const auto norm = normal<A>(0, g1 - g0, H, call.eps, get);
      for_row<A>(0, g1 - g0, H, [&](int g, int64_t j, int lanes) {
        (norm.at(g, j, lanes) * load(norms.of(d, k, g0 + g) + j)).store(sums + in_panels<Panels>(g, j));
      });
    }
  }

  // The input's sums of some steps.
  void normalize_input(const Strip<A>& strip, int64_t steps) const {
    if constexpr (is_program<Cell>)
      normalize_rows_of_program(*this, strip.d, strip.pre.data(), steps * strip.rows, this->gates_ih, 0, 0);
    else normalize_rows(strip.d, strip.pre.data(), steps * strip.rows, 0, 0, G);
  }

  // The output of row r, from the output gate, which is there, and from c.
  template <class Functions>
  void output_of_norm(Functions functions, const Strip<A>& strip, int64_t t, int64_t slot, int64_t r) const {
    Row row(*this, strip, t, slot, r);
    const A *gain = norms.of(strip.d, 2), *bias = norms.of(strip.d, 3);
    A* out = strip.cell_out.data() + r * Hp;
    auto get = [&](int, int64_t j, int) { return load(strip.cell_c.data() + r * Hp + j); };
    const auto norm = normal<A>(0, 1, H, call.eps, get);
    for_row<A>(0, 1, H, [&](int, int64_t j, int lanes) {
      Vec<A> kept[Cell::KEPT];
      kept[Cell::OUTPUT] = load(out + j);
      const Vec<A> c = norm.at(0, j, lanes) * load(gain + j) + load(bias + j);
      const Vec<A> h = Cell::output(functions, kept, c);
      if (call.project) h.store(out + j);
      else put<Functions>(strip, t, row, j, lanes, t < call.length(strip.d, strip.b0 + r), h);
    });
  }

  // Step t, whose h is in `slot`; pre: the norms of the input's sums.
  __attribute__((noinline)) bool step_normed(const Strip<A>& strip, Work& work, Tiles& tiles, int64_t t, int64_t slot,
                                             const A* pre) const {
    const int64_t row = panels * SUMS;
    A* const sums = strip.normed.data();
    const RowsView<A> h = operands.rows_of_h(strip, work.h, slot);
    for (int64_t u = 0; u < panels; ++u) weights.multiply_state(tiles, strip.d, u, strip.rows, h, sums + u * SUMS, row);
    normalize_rows(strip.d, sums, strip.rows, 1, 0, G - Cell::PHASES + 1);
    with_stages(call, [&](auto functions) {
      for (int64_t r = 0; r < strip.rows; ++r) {
        for (int64_t at = r * row, u = 0; u < panels; ++u, at += SUMS)
          if constexpr (Cell::PHASES > 1) apply_first(functions, strip, u, slot, r, 1, pre + at, row, sums + at);
          else apply(functions, strip, t, u, slot, r, 1, pre + at, row, sums + at);
        if constexpr (Cell::STATES > 1) output_of_norm(functions, strip, t, slot, r);
      }
    });
    if constexpr (Cell::PHASES > 1) {
      const RowsView<A> second = operands.rows_of_second(strip, work.second);
      for (int64_t u = 0; u < panels; ++u)
        weights.multiply_second(tiles, strip.d, u, strip.rows, second, sums + u * SUMS, row);
      normalize_rows(strip.d, sums, strip.rows, 1, G - 1, G);
      with_stages(call, [&](auto functions) {
        for (int64_t r = 0; r < strip.rows; ++r)
          for (int64_t at = r * row, u = 0; u < panels; ++u, at += SUMS)
            apply(functions, strip, t, u, slot, r, 1, strip.first.data() + at, row, sums + at);
      });
    }
    alignas(64) A outs[BLOCK * SUMS];
    for (int64_t u = 0; call.project && u < out_panels; ++u)
      for_even_blocks(0, strip.rows, block,
                      [&](int64_t r, int64_t n) { project(strip, tiles, t, u, slot, r, n, outs); });
    return true;
  }

  // One member's part of step t, whose h is in `slot`; pre: the input's sums of this step, if they are there already.
  // False: it has left the team.
  INLINE bool step(const Strip<A>& strip, Work& work, Tiles& tiles, Team::Member& member, int64_t t, int64_t slot,
                   const A* pre) const {
    if (call.reset) {
      reset(strip, t, slot, member);
      if (!member.barrier()) return false;
    }
    if constexpr (is_program<Cell>) return step_of_program(*this, strip, work, tiles, member, t, slot, pre);
    else return step_of_cell(strip, work, tiles, member, t, slot, pre);
  }

  INLINE bool step_of_cell(const Strip<A>& strip, Work& work, Tiles& tiles, Team::Member& member, int64_t t,
                           int64_t slot, const A* pre) const {
    if (__builtin_expect(call.layer_norm, 0)) return step_normed(strip, work, tiles, t, slot, pre);
    const RowsView<A> x = pre ? RowsView<A>{} : operands.rows_of_x(strip, work.x, t, 1),
                      h = operands.rows_of_h(strip, work.h, slot);
    alignas(64) A sums[BLOCK * SUMS], x_sums[BLOCK * SUMS];
    for_blocks(strip, member, panels, slot & 1, [&](int64_t u, int64_t r, int64_t n) {
      if (!pre) weights.multiply_input(tiles, strip.d, u, n, x.from(r), x_sums, SUMS);
      weights.multiply_state(tiles, strip.d, u, n, h.from(r), sums, SUMS);
      const A* given = pre ? pre + (r * panels + u) * SUMS : x_sums;
      const int64_t row = pre ? panels * SUMS : SUMS;
      with_functions(call, [&](auto functions) __attribute__((always_inline)) {
        if constexpr (Cell::PHASES > 1) apply_first(functions, strip, u, slot, r, n, given, row, sums);
        else apply(functions, strip, t, u, slot, r, n, given, row, sums);
      });
    });
    if (!member.barrier()) return false;
    if constexpr (Cell::PHASES > 1) {
      const RowsView<A> second = operands.rows_of_second(strip, work.second);
      for_blocks(strip, member, panels, slot & 1, [&](int64_t u, int64_t r, int64_t n) {
        weights.multiply_second(tiles, strip.d, u, n, second.from(r), sums, SUMS);
        with_functions(call, [&](auto functions) __attribute__((always_inline)) {
          apply(functions, strip, t, u, slot, r, n, strip.first.data() + (r * panels + u) * SUMS, panels * SUMS, sums);
        });
      });
      return member.barrier();
    }
    if (!call.project) return true;
    for_blocks(strip, member, out_panels, slot & 1,
               [&](int64_t u, int64_t r, int64_t n) { project(strip, tiles, t, u, slot, r, n, sums); });
    return member.barrier();
  }

  void run_strip(Strip<A>& strip, Team::Member& member, Handover<Strip<A>>& strips) const {
    const bool back = call.backwards(strip.d);
    Work work(call.cell->program.get());
    Tiles tiles;
    for (int64_t done = strip.begun; done < T; done += chunk) {
      if (schedule.unit_threads == 1 && strips.wanted() && divisible(call, strip.rows, T - done)) {
        strips.give(cut(strip, strip.rows / 2, strip.rows - strip.rows / 2, done));
        strip = cut(strip, 0, strip.rows / 2, done);
      }
      const int64_t steps = std::min(chunk, T - done), t0 = back ? T - done - steps : done;
      if (schedule.chunked) {
        const auto [u0, u1] = member.share(panels);
        project_input(strip, work, tiles, t0, steps, u0, u1);
        if (call.layer_norm) normalize_input(strip, steps);
      }
      for (int64_t s = done; s < done + steps; ++s) {
        const int64_t t = back ? T - 1 - s : s;
        const A* pre = schedule.chunked ? strip.pre.data() + (t - t0) * strip.rows * panels * X_SUMS : nullptr;
        if (!step(strip, work, tiles, member, t, s, pre)) return;
      }
    }
  }

  // False if a number came that the form of the weights cannot take: then the results are void.
  bool run() {
    const bool parallel = schedule.row_jobs > 1 || schedule.unit_threads > 1 || (D > 1 && schedule.threaded);
    if (!weights.pack(parallel)) return false;
    std::vector<Strip<A>> first;
    for (int64_t d = 0; d < D; ++d)
      for (int64_t i = 0, n = schedule.row_jobs; i < n; ++i)
        first.push_back({d, B * i / n, B * (i + 1) / n - B * i / n});
    Handover<Strip<A>> strips(std::move(first));
    strips.run(parallel && schedule.unit_threads == 1, [&](Strip<A>& strip) {
      if (strip.begun == 0) start(strip);
      Team::run(schedule.unit_threads, [&](Team::Member& member) { run_strip(strip, member, strips); });
      finish(strip);
    });
    return !overflow && !weights.overflow;
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
