// The forward loop over time, for every cell. One job is one direction and a range of rows (or all rows and a team).
//
// Per step, block of rows and some panels of hidden units: the products with x and h, then the cell's functions on the
// sums, while these are in the first-level cache.
#pragma once
#include <type_traits>

#include "cell-inl.h"
#include "norm-inl.h"
#include "weights-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct Forward : PanelSizes<A> {
  using V = Vec<A>;
  using Of = PanelSizes<A>;
  using Of::gates_first;
  using Of::gates_hh;
  using Of::gates_ih;
  using Of::states;
  using Of::SUMS;
  using Of::W;
  using Of::WIDTH;
  using Of::X_SUMS;
  static constexpr int64_t BLOCK = 128;  // rows whose sums are kept at a time, at most
  static constexpr int64_t UNITS = 32;   // vectors of hidden units and rows that few rows take at a time
  static constexpr int64_t MOST = BLOCK * Program::kGates * W;

  const LayerCall& call;
  const Schedule schedule;
  const ForwardCell<A>& cell;
  Weights<A> weights{call, schedule};
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P, D = call.D;
  const int64_t panels = weights.panels, out_panels = weights.out_panels, Hp = panels * WIDTH, Pp = out_panels * WIDTH;
  const int64_t all_units = padded<A>(H) / W;  // vectors of them
  // Values that go from `first` to `last`, of a hidden unit.
  const int64_t crossing = call.cell->program ? call.cell->program->crossing : cell.first ? call.cell->gates : 0;
  const int64_t chunk = schedule.chunked ? std::clamp<int64_t>(kChunkBytes / (B * panels * X_SUMS * sizeof(A)),
                                                               std::min(T, 255 / B + 1), T)
                                         : 1;
  // Numbers from one row of the input's sums to the next: an odd count of cache lines, so that rows of a tile lie in
  // different sets of the cache.
  const int64_t pre_row = (panels * X_SUMS / W | 1) * W;
  // Rows of x that stay in the second-level cache as three parts, beside a panel of weights, while they meet one panel
  // after the other.
  const int64_t most_rows = std::max<int64_t>(32, kNearBytes / 2 / std::max<int64_t>(1, 6 * I));
  // Few rows, so that their sums stay close by; many where the weights come from afar, to use them more than once.
  const bool quads_in_tiles = schedule.hh == Layout::quads && schedule.engine == Engine::tiles;
  const bool near = (quads_in_tiles ? 1 : 2 * schedule.parts) * gates_hh * Hp * P <= kNearBytes;
  const int64_t block = schedule.passing                                  ? BLOCK
                        : schedule.hh != Layout::pairs && !quads_in_tiles ? 48
                        : near                                            ? 32
                                                                          : BLOCK;
  Stored<A> stored(const void* data) const { return {data, call.storage}; }
  Stored<A> y = stored(call.y);  // a stream gets a new one with every call
  int64_t y_stride_T = B * D * P, y_stride_B = D * P;
  const Stored<A> gates = stored(call.gates);
  const bool far = reaches_far(call.gates, call.planes());
  mutable Flag overflow;  // a number that has no bf16 parts came
  Operands<A> operands{call, schedule, chunk, Pp, overflow};
  const NormWeights<A> norms{call};
  const bool zoned = bool(call.zone[0]);
  const bool whole_rows = call.whole_rows();
  const bool streams = !gates_first && !cell.first && (!gates_ih || schedule.chunked);  // no product between two steps
  const bool y_far = streams && reaches_far(call.y, 1);
  const bool unbounded = !call.bounded() || call.project;  // else no h exceeds 1 or the first one

  Forward(const LayerCall& c, const Schedule& s, const ForwardCell<A>& of) : Of(c), call(c), schedule(s), cell(of) {}

  // True if results, so many planes, are whole vectors, and more than the caches hold until the backward pass or the
  // caller reads them: then lines are written without being read before.
  bool reaches_far(const void* to, int64_t count) const {
    const bool aligned = reinterpret_cast<uintptr_t>(to) % kBytes == 0;
    return to && y.direct() && D * T * B * H * count * int64_t(sizeof(A)) > kFarBytes && H % W == 0 && aligned;
  }

  void start(Strip<A>& strip) const {
    allocate(strip);
    for (int64_t r = 0; call.states[0] && r < strip.rows; ++r) set_state(strip, 0, r, call.states);
  }

  void allocate(Strip<A>& strip) const {
    strip.h.allocate(2 * strip.rows * Pp, true);
    if (schedule.hh == Layout::pairs && !call.h_mask && !operands.has_operand)
      strip.h_split.allocate(2 * strip.rows, P, schedule.parts);
    if (states > 1) strip.c.allocate((states - 1) * strip.rows * Hp, true);
    const bool norm_of_c = call.layer_norm && cell.output;
    if (call.project || norm_of_c) strip.cell_out.allocate(strip.rows * Hp);
    if (whole_rows) strip.sums.allocate(strip.rows * panels * std::max(SUMS, WIDTH));
    if (norm_of_c) strip.cell_c.allocate(strip.rows * Hp);
    if (operands.has_operand) strip.operand.allocate(strip.rows * Pp, true);
    if (cell.first) {
      strip.crossing.allocate(strip.rows * crossing * Hp);
      strip.second.allocate(strip.rows * Pp);
      if (schedule.hh == Layout::pairs) strip.second_split.allocate(strip.rows, P, schedule.parts);
    }
    if (schedule.chunked || whole_rows) strip.pre.allocate(chunk * strip.rows * pre_row);
  }

  // Rows r..r+n of a job as a job of their own, from step t of the loop on.
  Strip<A> cut(const Strip<A>& strip, int64_t r, int64_t n, int64_t t) const {
    Strip<A> part{strip.d, strip.b0 + r, n, t};
    allocate(part);
    std::copy_n(strip.h.data() + strip.at(t, r) * Pp, n * Pp, part.h.data() + part.at(t, 0) * Pp);
    if (strip.h_split) part.h_split.copy(strip.h_split, strip.at(t, r), n, part.at(t, 0));
    for (int k = 1; k < states; ++k) std::copy_n(state_of(strip, k, r), n * Hp, state_of(part, k, 0));
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
    for (int k = 1; k < states; ++k) {
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
      if (call.last[0]) stored(call.last[0]).put_row(strip.h.data() + strip.at(T, r) * Pp, row * P, P);
      for (int k = 1; k < states; ++k) stored(call.last[k]).put_row(state_of(strip, k, r), row * H, H);
    }
  }

  // The input's sums of some steps, for panels u0..u1.
  void project_input(const Strip<A>& strip, Work<A>& work, Tiles& tiles, int64_t t0, int64_t steps, int64_t u0,
                     int64_t u1) const {
    const RowsView<A> x = operands.rows_of_x(strip, work.x, t0, steps);
    for_even_blocks(0, steps * strip.rows, most_rows, [&](int64_t r, int64_t n) {
      for (int64_t u = u0; u < u1; ++u)
        weights.multiply_input(tiles, strip.d, u, u + 1, n, x.from(r), strip.pre.data() + r * pre_row + u * X_SUMS,
                               pre_row);
    });
  }

  // Where things of a row of one step lie, from row to row.
  struct Row {
    const SplitRows& split;
    Flag& overflow;
    const Stored<A>& y;
    const A* h_old;
    A *h, *c;  // c: the second state
    int64_t h_split, y_at, kept, h_row, c_row, y_row;
    Row(const Forward& f, const Block<A>& of)
        : split(of.strip.h_split),
          overflow(f.overflow),
          y(f.y),
          h_old(of.strip.h.data() + of.strip.at(of.slot, of.r) * f.Pp),
          h(of.strip.h.data() + of.strip.at(of.slot + 1, of.r) * f.Pp),
          c(of.strip.c.data() + (f.states > 1 ? of.r * f.Hp : 0)),
          h_split(of.strip.at(of.slot + 1, of.r)),
          y_at(of.t * f.y_stride_T + (of.strip.b0 + of.r) * f.y_stride_B + of.strip.d * f.P),
          kept((of.strip.d * f.T + of.t) * f.B + of.strip.b0 + of.r),
          h_row(f.Pp),
          c_row(f.states > 1 ? f.Hp : 0),
          y_row(f.y_stride_B) {}
    INLINE void next() { h_old += h_row, h += h_row, c += c_row, ++h_split, y_at += y_row, ++kept; }
  };

  INLINE V zone(int k, const Block<A>& of, const Row& row, int64_t j, int lanes) const {
    return coefficients<A>(call.zone[k], of.t, of.strip.d, row.kept - (of.strip.d * T + of.t) * B, j, lanes);
  }

  // The new h of a row at j: into the state and into y. STAGED: with zoneout, where there is one.
  template <bool STAGED>
  INLINE void put(const Block<A>& of, const Row& row, int64_t j, int lanes, bool alive, V out) const {
    if (STAGED && zoned) out = zoneout(zone(0, of, row, j, lanes), load(row.h_old + j), out);
    V h = alive ? out : load(row.h_old + j);
    h = first_of(h, lanes);  // rows of products are padded: no NaN there of an infinite x, times zero
    h.store(row.h + j);
    if (row.split && unbounded) row.split.put(h, row.h_split, j, row.overflow);
    else if (row.split) row.split.put(h, row.h_split, j);
    row.y.put(alive ? out : V(A(0)), row.y_at + j, lanes);
  }

  void project(const Block<A>& of, Tiles& tiles, int64_t u, A* sums) const {
    RowsView<A> out;
    out.a = of.strip.cell_out.data() + of.r * Hp, out.row = Hp;
    weights.project(tiles, of.strip.d, u, of.n, out, sums);
    Row row(*this, of);
    for (int64_t m = of.r; m < of.r + of.n; ++m, sums += WIDTH, row.next())
      for (int64_t j = u * WIDTH; j < std::min(P, (u + 1) * WIDTH); j += W)
        put<true>(of, row, j, int(std::min<int64_t>(W, P - j)), of.t < call.length(of.strip.d, of.strip.b0 + m),
                  load(sums + j - u * WIDTH));
  }

  // f(panels u0..u1, first row, rows) for this member's share of so many panels. Up and down in turn, so that what the
  // cache still holds of the weights is what the next step begins with. Few rows take several panels at a time, so that
  // a cell's functions go over enough vectors.
  template <class F>
  INLINE void for_blocks(const Strip<A>& strip, const Team::Member& member, int64_t all, bool down, const F& f) const {
    const auto [lo, hi] = member.share(all);
    const int64_t few = std::max<int64_t>(1, UNITS / (std::min(block, strip.rows) * this->vectors)),
                  group = streams ? std::max<int64_t>(1, hi - lo) : few;
    for (int64_t i = lo; i < hi; i += group) {
      const int64_t n = std::min(group, hi - i), u0 = down ? lo + hi - i - n : i;
      for_even_blocks(0, strip.rows, block,
                      [&](int64_t r, int64_t rows) __attribute__((always_inline)) { f(u0, u0 + n, r, rows); });
    }
  }
  // The sums of so many gates in panels, from row r and panel u0 on, as the vectors of a block.
  Place<A> place(const A* at, int64_t row, int gates, int64_t r, int64_t u0) const {
    return {at - r * row - u0 * WIDTH * gates, row, gates * W};
  }
  int64_t end_of(int64_t u1) const { return std::min(u1 * this->vectors, all_units); }

  // Layer norms of rows of sums of so many gates in panels, with gain k (0: of the input, 1: of the state) from gate g0
  // on.
  void normalize_rows(int64_t d, A* sums, int64_t row, int64_t rows, int gates, int k, int g0) const {
    const auto normalize = [&](auto count) __attribute__((always_inline)) {
      constexpr int R = decltype(count)::value;
      A mean[R], scale[R];
      auto at = [&](int r, int g, int64_t j) { return sums + r * row + j * gates + g * W; };
      moments<A, R>(0, gates, H, call.eps, mean, scale,
                    [&](int r, int g, int64_t j, int) { return load(at(r, g, j)); });
      for_row<A>(0, gates, H, [&](int g, int64_t j, int) {
        const V gain = load(norms.of(d, k, g0 + g) + j);
        for (int r = 0; r < R; ++r) ((load(at(r, g, j)) - V(mean[r])) * V(scale[r]) * gain).store(at(r, g, j));
      });
      sums += R * row, rows -= R;
    };
    while (gates > 0 && rows >= 2) normalize(std::integral_constant<int, 2>());
    if (gates > 0 && rows) normalize(std::integral_constant<int, 1>());
  }

  // Step t, whose h is in `slot`; pre: the input's sums or their norms, where they are there. Norms are of all units of
  // a row: all sums come before them.
  __attribute__((noinline)) void step_normed(const Strip<A>& strip, Work<A>& work, Tiles& tiles, int64_t t,
                                             int64_t slot, const A* pre, const RowsView<A>& x,
                                             const RowsView<A>& h) const {
    A* const sums = strip.sums.data();
    if (!pre && gates_ih > 0) {
      pre = strip.pre.data();
      for (int64_t u = 0; u < panels; ++u)
        weights.multiply_input(tiles, strip.d, u, u + 1, strip.rows, x, strip.pre.data() + u * X_SUMS, pre_row);
    }
    auto for_rows = [&](auto&& f) {
      for_even_blocks(0, strip.rows, std::max<int64_t>(1, UNITS / all_units), [&](int64_t r, int64_t n) {
        Block<A> of{strip, work, t, slot, r, n, 0, all_units};
        if (pre) of.x = place(pre, pre_row, gates_ih, 0, 0);
        f(of);
      });
    };
    for (int64_t u = 0; u < panels && gates_first > 0; ++u)
      weights.multiply_state(tiles, strip.d, u, u + 1, strip.rows, h, sums + u * SUMS, panels * SUMS);
    if (call.layer_norm) normalize_rows(strip.d, sums, panels * SUMS, strip.rows, gates_first, 1, 0);
    for_rows([&](Block<A>& of) {
      of.state = place(sums, panels * SUMS, gates_first, 0, 0);
      (cell.first ? cell.first : cell.last)(*this, of);
      if (cell.output) cell.output(*this, of);
    });
    if (cell.first) {
      const RowsView<A> second = operands.rows_of_second(strip, work.second);
      for (int64_t u = 0; u < panels; ++u)
        weights.multiply_second(tiles, strip.d, u, u + 1, strip.rows, second, sums + u * WIDTH, panels * WIDTH);
      if (call.layer_norm) normalize_rows(strip.d, sums, panels * WIDTH, strip.rows, 1, 1, gates_first);
      for_rows([&](Block<A>& of) {
        of.second = place(sums, panels * WIDTH, 1, 0, 0);
        cell.last(*this, of);
      });
    }
    alignas(64) A outs[BLOCK * 4 * W];
    for (int64_t u = 0; call.project && u < out_panels; ++u)
      for_even_blocks(0, strip.rows, block,
                      [&](int64_t r, int64_t n) { project({strip, work, t, slot, r, n, 0, 0}, tiles, u, outs); });
  }

  // One member's part of step t, whose h is in `slot`; pre: the input's sums of this step, if they are there already.
  // False: it has left the team.
  bool step(const Strip<A>& strip, Work<A>& work, Tiles& tiles, Team::Member& member, int64_t t, int64_t slot,
            const A* pre) const {
    if (call.reset) {
      reset(strip, t, slot, member);
      if (!member.barrier()) return false;
    }
    if (cell.operand) {
      const auto [q0, q1] = member.share(all_units);
      cell.operand(*this, {strip, work, t, slot, 0, strip.rows, q0, q1});
      if (!member.barrier()) return false;
    }
    const bool input = !pre && gates_ih > 0;
    const RowsView<A> x = input ? operands.rows_of_x(strip, work.x, t, 1) : RowsView<A>{},
                      h = gates_first > 0 ? operands.rows_of_h(strip, work.h, slot) : RowsView<A>{};
    if (__builtin_expect(whole_rows, 0)) return step_normed(strip, work, tiles, t, slot, pre, x, h), true;
    alignas(64) A sums[MOST], x_sums[MOST];
    const auto run = cell.first ? cell.first : cell.last;
    const bool down = slot & 1;
    for_blocks(strip, member, panels, down, [&](int64_t u0, int64_t u1, int64_t r, int64_t n) {
      const int64_t row = (u1 - u0) * SUMS, x_row = (u1 - u0) * X_SUMS;
      for (int64_t i = 0; i < u1 - u0; ++i) {
        const int64_t k = down ? u1 - u0 - 1 - i : i, u = u0 + k, next = down ? u - 1 : u + 1;
        if (input) weights.multiply_input(tiles, strip.d, u, next, n, x.from(r), x_sums + k * X_SUMS, x_row);
        if (gates_first > 0) weights.multiply_state(tiles, strip.d, u, next, n, h.from(r), sums + k * SUMS, row);
      }
      run(*this, {strip, work, t, slot, r, n, u0 * this->vectors, end_of(u1),
                  pre ? place(pre, pre_row, gates_ih, 0, 0) : place(x_sums, x_row, gates_ih, r, u0),
                  place(sums, row, gates_first, r, u0)});
    });
    if (!member.barrier()) return false;
    if (cell.first) {
      const RowsView<A> second = operands.rows_of_second(strip, work.second);
      for_blocks(strip, member, panels, down, [&](int64_t u0, int64_t u1, int64_t r, int64_t n) {
        const int64_t row = (u1 - u0) * WIDTH;
        for (int64_t u = u0; u < u1; ++u)
          weights.multiply_second(tiles, strip.d, u, down ? u - 1 : u + 1, n, second.from(r), sums + (u - u0) * WIDTH,
                                  row);
        cell.last(*this,
                  {strip, work, t, slot, r, n, u0 * this->vectors, end_of(u1), {}, {}, place(sums, row, 1, r, u0)});
      });
      return member.barrier();
    }
    if (!call.project) return true;
    for_blocks(strip, member, out_panels, down, [&](int64_t u0, int64_t u1, int64_t r, int64_t n) {
      for (int64_t u = u0; u < u1; ++u) project({strip, work, t, slot, r, n, 0, 0}, tiles, u, sums);
    });
    return member.barrier();
  }

  void run_strip(Strip<A>& strip, Team::Member& member, Handover<Strip<A>>& strips) const {
    const bool back = call.backwards(strip.d);
    Work<A> work(call);
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
        if (call.layer_norm) normalize_rows(strip.d, strip.pre.data(), pre_row, steps * strip.rows, gates_ih, 0, 0);
      }
      for (int64_t s = done; s < done + steps; ++s) {
        const int64_t t = back ? T - 1 - s : s;
        const A* pre = schedule.chunked ? strip.pre.data() + (t - t0) * strip.rows * pre_row : nullptr;
        if (!step(strip, work, tiles, member, t, s, pre)) return drain();
      }
    }
    drain();
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
