// The backward loop over time, for every cell, in chunks of steps: first the recurrence of the chunk, which leaves the
// gradients of its pre-activations in a buffer, then their products with weights, inputs and states, while it is warm.
//
// planes: pre-activation gradients per hidden unit; a split gate has one for the input's share and one of its own, and
// with layer norms every gate has.
#pragma once
#include "../cells/activations-inl.h"
#include "norm_gradients-inl.h"
#include "state_gradients-inl.h"
#include "weight_gradients-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct ProgramGradients;

template <class A, class Cell>
struct Backward {
  using V = Vec<A>;
  using Of = Cell;
  using Number = A;
  static constexpr bool LATE = Cell::STATES > 1;  // with layer norms, cells wait for the norm of a whole row of c
  static constexpr int W = V::W, WIDTH = 4 * W, G = Cell::G, SPLIT = Cell::SPLIT, PLANES = G + SPLIT, K = Cell::KEPT;
  static constexpr bool PROGRAM = is_program<Cell>;
  static constexpr int split_gates() {
    if constexpr (PROGRAM) return 0;
    else return SPLIT;
  }

  const LayerCall& call;
  const Schedule schedule;
  const int64_t d;
  const Tape<A, Cell> tape{call, d};
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P;
  const Program* const program = call.cell->program.get();
  const Program::Planes* const at = !program ? nullptr : call.layer_norm ? &program->apart : &program->shared;
  const int GX = int(call.cell->ih_gates), GR = int(call.cell->hh_gates);  // gates of W_ih and W_hh
  const int split = call.layer_norm ? GX : split_gates(), planes = program ? at->all : GX + split;
  const int gate_planes = program ? at->gates : planes;
  const bool parallel = schedule.row_jobs > 1 || schedule.unit_threads > 1;
  const int64_t panels = (H + WIDTH - 1) / WIDTH, out_panels = (P + WIDTH - 1) / WIDTH;
  const int64_t Hp = padded<A>(H), Pp = padded<A>(P), Ip = padded<A>(I);
  // Products with weights: in bf16 parts where the machine multiplies them (0: no). A few rows do not fill its tiles.
  const int parts = schedule.products == Layout::pairs ? schedule.parts : 0,
            step_parts = schedule.hh == Layout::pairs ? schedule.parts : 0;
  const int64_t Hk = padded_k(H);  // hidden units of a plane in pairs
  // Rows of a step whose sums are kept at a time: many where the weights come from afar, to use them more than once.
  const int64_t block = !step_parts || 2 * step_parts * GR * H * P > kNearBytes ? 128 : 32;
  // Rows of a chunk: as many as the cache holds, but enough that reading and writing large gradients of weights pays.
  const bool large = H * (GX * I + GR * P) * int64_t(sizeof(A)) > 2 * kBackwardBytes;
  const int64_t chunk_rows =
      std::max<int64_t>(large ? 768 : 256, kBackwardBytes / (std::max(planes, 1) * Hp * int64_t(sizeof(A))));
  const int64_t chunk = std::clamp<int64_t>(chunk_rows / B, 1, T);
  Stored<A> stored(const void* data) const { return {data, call.storage}; }
  const Stored<A> dy = stored(call.dy), dx = stored(call.dx);
  const A* dcells = static_cast<const A*>(call.dcells);

  PackedMatrix<A> w_hh, w_hr, w_ih;  // in panels of columns, gate after gate
  std::conditional_t<PROGRAM, ProgramGradients<A>, Nothing> gradients;
  Scratch<A> sequence_sums;  // of a program: gradients of sequence inputs [input][B][Hp]
  Scratch<A> dz, dout;       // [slot][B][planes][Hp], [slot][B][Pp]; slot 0 is the step before the chunk
  SplitRows dz_split;        // [slot][B] rows of [planes][Hk]
  Flag overflow;             // a number that has no bf16 parts came
  StateGradients<A, Cell> carried{tape};
  WeightGradients<A, Cell> dweights{tape, schedule, planes, chunk * B, overflow};
  NormGradients<A, Cell> norms{tape, schedule, overflow};

  Backward(const LayerCall& c, const Schedule& s, int64_t direction) : call(c), schedule(s), d(direction) {}

  // A few rows, or a single step, do not earn the packing back: weights whose rows are whole vectors are then read
  // where they lie.
  bool in_place(int64_t n) const { return dy.direct() && (T == 1 || T * B <= 32) && n % W == 0; }
  const bool ih_in_place = !parts && in_place(I), hh_in_place = !step_parts && in_place(P);
  const bool first_state = call.dstates[0] || call.dreset_states[0];

  bool pack_hh() const {
    const bool within = call.cell->phases > 1 || (program && program->has_operand);  // a product within the step
    return !hh_in_place && GR > 0 && (T > 1 || within || first_state);
  }
  bool pack_ih() const { return !ih_in_place && GX > 0 && dx; }
  int x_plane(int g) const { return program ? at->x[size_t(g)] : g; }
  int r_plane(int g) const { return program ? at->r[size_t(g)] : g < GX - split ? g : g + split; }
  A* dz_of(int64_t slot, int64_t b) const { return dz.data() + (slot * B + b) * planes * Hp; }
  A* dout_of(int64_t slot, int64_t b) const { return dout.data() + (slot * B + b) * Pp; }

  // sums [u0..u1][n][WIDTH]: what reaches the h that entered the step in `slot` through the gates g0..g1 of W_hh, rows
  // r..: dz W_hh. A gate after the other, so that its rows stay in the cache for all panels; panels up and down in
  // turn, as in the forward loop.
  void recurrent(Tiles& tiles, int64_t slot, int64_t r, int64_t n, int64_t u0, int64_t u1, A* sums, int g0,
                 int g1) const {
    recurrent(tiles, slot, r, n, u0, u1, sums, g0, g1, n * WIDTH, WIDTH);
  }
  void recurrent(Tiles& tiles, int64_t slot, int64_t r, int64_t n, int64_t u0, int64_t u1, A* sums) const {
    recurrent(tiles, slot, r, n, u0, u1, sums, 0, first_gates());
  }
  int first_gates() const { return GR - int(call.cell->phases) + 1; }  // of the first product of a step
  // The same, with panels and rows of the sums so far apart.
  void recurrent(Tiles& tiles, int64_t slot, int64_t r, int64_t n, int64_t u0, int64_t u1, A* sums, int g0, int g1,
                 int64_t panel, int64_t row) const {
    for (int64_t i = u0; slot < 0 && i < u1; ++i)
      for (int64_t m = 0; m < n; ++m)
        std::fill_n(sums + (i - u0) * panel + m * row, std::min<int64_t>(WIDTH, Pp - i * WIDTH), A(0));
    for (int g = g0; slot >= 0 && g < g1; ++g)
      for (int64_t i = u0; i < u1; ++i) {
        const int64_t u = (slot + g) & 1 ? u1 - 1 - (i - u0) : i;
        multiply(tiles, w_hh, hh_in_place ? call.weight(d, call.hh()) : nullptr, n, dz_rows(slot, r, r_plane(g)), g,
                 u * WIDTH, std::min(P, (u + 1) * WIDTH), P, sums + (u - u0) * panel, row, g > g0);
      }
  }

  // sums [n][sums_row] = or += left times columns c0..c1 of gate g of weights with `columns` columns, packed or as they
  // lie.
  void multiply(Tiles& tiles, const PackedMatrix<A>& packed, const void* in_place, int64_t n, const RowsView<A>& left,
                int g, int64_t c0, int64_t c1, int64_t columns, A* sums, int64_t sums_row, bool add) const {
    if (!in_place)
      return packed.multiply_all(tiles, schedule.engine, n, left, g * (packed.parts() ? Hk : H), H, c0, c1 - c0, sums,
                                 sums_row, add ? Sum::add : Sum::put);
    for_columns<A>(c1 - c0, [&](auto vectors, int64_t c) {
      const A* w = static_cast<const A*>(in_place) + g * H * columns + c0 + c;
      product<decltype(vectors)::value>(n, left.a, left.row, 1, Numbers<A>{w, columns}, H, sums + c, sums_row, add);
    });
  }

  // One plane of the gradients of the pre-activations, as a left factor.
  RowsView<A> dz_rows(int64_t slot, int64_t b, int plane) const {
    RowsView<A> left;
    left.a = dz_of(slot, b) + plane * Hp, left.row = planes * Hp;
    if (dz_split) left.take(dz_split, slot * B + b), left.split += plane * Hk;
    return left;
  }

  // The cell's derivative at units j.., given the gradient of its output.
  template <class F>
  INLINE void cell(F functions, int64_t slot, int64_t t, int64_t b, int64_t j, V dh) {
    const int n = int(std::min<int64_t>(W, H - j));
    A* to = dz_of(slot, b) + j;
    auto put = [&](int p, V v) {
      v.store(to + p * Hp);
      if (step_parts && !call.layer_norm) dz_split.put(v, slot * B + b, p * Hk + j, overflow);
    };
    if constexpr (Cell::STATES > 1) carried.arriving_c(t, b, j);
    if (!tape.alive(t, b)) {
      for (int p = 0; p < planes; ++p) put(p, V(A(0)));
      return;
    }
    V kept[K + 1], delta[PLANES], zero(A(0)), h = zero, h_new = zero, c = zero, c_new = zero, dc_new = zero,
                                              dc_old = zero, direct;
    tape.kept_at(t, b, j, n, kept);
    if constexpr (Cell::MIXES) h = tape.h_before(t, b, j, n);
    if constexpr (K == 0) h_new = tape.h_new(t, b, j, n);
    if constexpr (Cell::STATES > 1) {
      c = tape.c_before(t, b, j, n), c_new = tape.c_new(t, b, j, n, kept), dc_new = load(carried.c_of(b) + j);
      if (dcells) dc_new = dc_new + load_first(dcells + tape.cells_at(t, b) + j, n);
      if (F::STAGED && call.zone[1])
        dc_old = coefficients<A>(call.zone[1], t, d, b, j, n) * dc_new, dc_new = dc_new - dc_old;
    }
    bool normed = false;
    if constexpr (F::STAGED && Cell::STATES > 1) normed = call.layer_norm;
    if constexpr (Cell::STATES > 1) {
      if (normed) {
        const V y = load(norms.y.data() + b * Hp + j), dc_output = load(norms.dc.data() + b * Hp + j);
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

  // To the cell; but before that a norm of c wants its whole row.
  template <class F>
  INLINE void deliver(F functions, int64_t slot, int64_t t, int64_t b, int64_t j, V dh) {
    if (F::STAGED && LATE && call.layer_norm) dh.store(norms.dh.data() + b * Hp + j);
    else cell(functions, slot, t, b, j, dh);
  }

  // One step of panel u of h for rows r..r+n: dh = dy + recurrent, then the cell (with a projection: see
  // step_projected).
  template <class F>
  void step(F functions, int64_t slot, int64_t t, int64_t u, int64_t r, int64_t n, const A* sums) {
    const bool zoned = F::STAGED && call.zone[0];
    for (int64_t b = r; b < r + n; ++b)
      for (int64_t j = u * WIDTH; j < std::min(Pp, (u + 1) * WIDTH); j += W) {
        const bool alive = tape.alive(t, b);
        const int lanes = int(std::min<int64_t>(W, P - j));
        V dh = carried.arriving(t, b, j, load(sums + (b - r) * WIDTH + j - u * WIDTH)),
          old = dh;  // dead: passed through
        if (alive) {
          dh = dh + dy.get(tape.y_at(t, b) + j, lanes), old = V(A(0));
          if (zoned) old = coefficients<A>(call.zone[0], t, d, b, j, lanes) * dh, dh = dh - old;
        }
        if (!alive || call.project || zoned) old.store(carried.h_of(b) + j);
        if (!call.project) deliver(functions, slot, t, b, j, dh);
        else (alive ? dh : V(A(0))).store(dout_of(slot, b) + j);
      }
  }

  // The gradient of what the second product multiplied, for rows r..r+n and panel u, and from
  // there those of the first gate and of h.
  void step_second(Tiles& tiles, int64_t slot, int64_t t, int64_t u, int64_t r, int64_t n, A* sums) {
    recurrent(tiles, slot, r, n, u, u + 1, sums, G - 1, G);
    for (int64_t b = r; b < r + n; ++b, sums += WIDTH)
      for (int64_t j = u * WIDTH; tape.alive(t, b) && j < std::min(Pp, (u + 1) * WIDTH); j += W) {
        const int lanes = int(std::min<int64_t>(W, H - j));
        const V gate = tape.gate_at(t, b, 0, j, lanes), h = tape.h_before(t, b, j, lanes),
                mask = call.h_mask ? coefficients<A>(call.h_mask, 0, d, b, j, lanes) : V(A(1));
        V dh = load(sums + j - u * WIDTH);
        const V delta =
            with_functions(call, [&](auto functions) { return Cell::backward_first(functions, gate, h * mask, dh); });
        A *to = dz_of(slot, b) + j, *direct = carried.h_of(b) + j;
        delta.store(to);
        if (call.layer_norm) delta.store(to + G * Hp);
        else if (step_parts) dz_split.put(delta, slot * B + b, j, overflow);
        (load(direct) + dh * mask).store(direct);
      }
  }

  // The gradient before the projection, dout W_hr, and then the cell.
  void step_projected(Tiles& tiles, int64_t slot, int64_t t, int64_t u, int64_t r, int64_t n, A* sums) {
    RowsView<A> left;
    left.a = dout_of(slot, r), left.row = Pp;
    w_hr.multiply_all(tiles, schedule.engine, n, left, 0, P, u * WIDTH, std::min<int64_t>(WIDTH, H - u * WIDTH), sums,
                      WIDTH, Sum::put);
    with_functions(call, [&](auto functions) {
      for (int64_t b = r; b < r + n; ++b, sums += WIDTH)
        for (int64_t j = u * WIDTH; j < std::min(Hp, (u + 1) * WIDTH); j += W)
          deliver(functions, slot, t, b, j, load(sums + j - u * WIDTH));
    });
  }

  // With layer norms, rows r..r+n of a step, of which all is there: dz of the norms becomes
  // that of the products. first: of all gates; else, of a cell with two products, of the second one's.
  void norm_rows(int64_t slot, int64_t t, int64_t r, int64_t n, bool first, A* part) {
    for (int64_t b = r; b < r + n; ++b) {
      const int64_t row = (slot - 1) * B + b;
      const bool alive = tape.alive(t, b);
      with_stages(call, [&](auto functions) {
        if (alive) norms.output(functions, t, b, part);
        for (int64_t j = 0; LATE && j < Hp; j += W) cell(functions, slot, t, b, j, load(norms.dh.data() + b * Hp + j));
      });
      norm_gates(slot, b, row, alive, first, part);
    }
  }
  void norm_gates(int64_t slot, int64_t b, int64_t row, bool alive, bool first, A* part) {
    const int one = first_gates(), all = program ? int(program->inputs.size()) : GX;
    A *x = dz_of(slot, b), *h = x + all * Hp;
    if (alive && first && GX > 0) norms.gates(true, row, 0, GX, x, part);
    if (alive && first && one > 0) norms.gates(false, row, 0, one, h, part);
    if (alive && !first) norms.gates(false, row, one, GR, h + one * Hp, part);
    for (int p = 0; step_parts && p < gate_planes; ++p)
      for (int64_t j = 0; j < Hp; j += W) dz_split.put(load(x + p * Hp + j), slot * B + b, p * Hk + j, overflow);
  }

  void recurrence(int64_t done, int64_t steps) {
    if (call.layer_norm) norms.begin(done, steps * B, schedule.row_jobs, parallel ? thread_count() : 1);
    struct Rows {
      int64_t first, last, step, part;
    };
    std::vector<Rows> first;
    for (int64_t i = 0, n = schedule.row_jobs; i < n; ++i) first.push_back({B * i / n, B * (i + 1) / n, 1, i});
    Handover<Rows> shares(std::move(first));
    shares.run(schedule.unit_threads == 1, [&](Rows& rows) {
      Team::run(schedule.unit_threads, [&](Team::Member& member) {
        Tiles tiles;
        Scratch<A> sums;
        [[maybe_unused]] std::conditional_t<PROGRAM, Machine<A>, Nothing> machine(program);
        auto for_blocks = [&](auto&& f) {
          for_even_blocks(rows.first, rows.last, block, f);
          return member.barrier();
        };
        for (int64_t s = rows.step; s <= steps; ++s) {
          const int64_t n = rows.last - rows.first;
          // Norms sum the gradients of their gains part by part.
          if (schedule.unit_threads == 1 && shares.wanted() && !call.layer_norm && divisible(call, n, steps + 1 - s)) {
            shares.give({rows.first + n / 2, rows.last, s, rows.part});
            rows.last = rows.first + n / 2;
          }
          const int64_t t = tape.time(done + s - 1);
          if constexpr (PROGRAM) {
            A* const part = call.layer_norm ? norms.part(rows.part) : nullptr;
            if (!step_of_program(*this, machine, tiles, member, rows.first, rows.last, s, done + s > 1, t, part))
              return;
            continue;
          } else {
            const auto [u0, u1] = member.share(out_panels);
            sums.allocate((u1 - u0) * std::min(block, n) * WIDTH);
            const bool go_on = for_blocks([&, u0 = u0, u1 = u1](int64_t r, int64_t n) {
              recurrent(tiles, done + s > 1 ? s - 1 : -1, r, n, u0, u1, sums.data());
              with_functions(call, [&](auto functions) {
                for (int64_t u = u0; u < u1; ++u) step(functions, s, t, u, r, n, sums.data() + (u - u0) * n * WIDTH);
              });
              if (call.layer_norm && !call.project) norm_rows(s, t, r, n, Cell::PHASES == 1, norms.part(rows.part));
            });
            if (!go_on) return;
            if (Cell::PHASES == 1 && !call.project) continue;
            const auto [p0, p1] = member.share(panels);
            sums.allocate(std::min(block, n) * WIDTH);
            auto second = [&, p0 = p0, p1 = p1](int64_t r, int64_t n) {
              for (int64_t u = p0; u < p1; ++u)
                if constexpr (Cell::PHASES > 1) step_second(tiles, s, t, u, r, n, sums.data());
                else step_projected(tiles, s, t, u, r, n, sums.data());
              if (call.layer_norm) norm_rows(s, t, r, n, true, norms.part(rows.part));
            };
            if (!for_blocks(second)) return;
          }
        }
      });
    });
  }

  // dx of the chunk's rows lo..hi = dz W_ih, added to what other directions of the group have
  // left there.
  void input_gradient(int64_t done, int64_t lo, int64_t hi) {
    constexpr int64_t ROWS = 128;
    const bool add = d % int64_t(call.reverse.size()) != 0;
    if (GX == 0) return gradient_of_given(done, lo, hi, add);
    if (parts && !step_parts)  // in pairs for this product only
      for (int64_t r = lo; r < hi; ++r)
        for (int p = 0; p < (program ? gate_planes : GX); ++p)
          for (int64_t j = 0; j < call.H; j += Vec<A>::W)
            dz_split.put(load(dz_of(1, r) + p * Hp + j), call.B + r, p * Hk + j, overflow);
    Tiles tiles;
    Scratch<A> sums;
    sums.allocate(ROWS * Ip);
    auto dx_at = [&](int64_t r) {
      return ((call.group(d) * call.T + tape.time(done + r / call.B)) * call.B + r % call.B) * I;
    };
    for (int64_t first = lo; first < hi; first += ROWS) {
      const int64_t n = std::min(ROWS, hi - first);
      for (int64_t m = 0; add && m < n; ++m) dx.get_row(dx_at(first + m), sums.data() + m * Ip, I);
      for (int g = 0; g < GX; ++g)
        multiply(tiles, w_ih, ih_in_place ? call.weight(d, 0) : nullptr, n, dz_rows(1, first, x_plane(g)), g, 0, I, I,
                 sums.data(), Ip, add || g > 0);
      for (int64_t m = 0; m < n; ++m) dx.put_row(sums.data() + m * Ip, dx_at(first + m), I);
    }
  }

  // The same where x is the pre-activation itself, or is not read at all.
  void gradient_of_given(int64_t done, int64_t lo, int64_t hi, bool add) {
    for (int64_t r = lo; r < hi; ++r) {
      const int64_t at = ((call.group(d) * T + tape.time(done + r / B)) * B + r % B) * I;
      auto put = [&](int64_t i, int n, V v) { dx.put(add ? dx.get(at + i, n) + v : v, at + i, n); };
      if (program->inputs.empty()) {
        for (int64_t i = 0; i < I; i += W) put(i, int(std::min<int64_t>(W, I - i)), V(A(0)));
        continue;
      }
      for (int g = 0; g < int(program->inputs.size()); ++g)
        for (int64_t j = 0; j < H; j += W)
          put(g * H + j, int(std::min<int64_t>(W, H - j)), load(dz_of(1, r) + x_plane(g) * Hp + j));
    }
  }

  void products(int64_t done, int64_t steps) {
    const int64_t rows = steps * B, threads = parallel ? thread_count() : 1, columns = std::max(W, 32);
    auto pieces_of = [&](int64_t units) { return threads > 1 ? std::min(units, kPieces * threads) : 1; };
    // f(lo, hi) for piece i of 0..n, cut at whole units.
    auto piece = [](int64_t i, int64_t pieces, int64_t n, int64_t unit, auto&& f) {
      const int64_t units = (n + unit - 1) / unit;
      f(units * i / pieces * unit, std::min(n, units * (i + 1) / pieces * unit));
    };
    int64_t of_units = 0, of_outputs = 0;
    if (dweights) {
      const int64_t n = dweights.rows_of_factor(rows), pieces = pieces_of(n / 2);
      spread(parallel, pieces, [&](int64_t i) {
        piece(i, pieces, n, 2, [&](int64_t lo, int64_t hi) { dweights.gather(done, lo, hi, rows); });
      });
      of_units = pieces_of((H + columns - 1) / columns);
      if (call.project) of_outputs = pieces_of((P + columns - 1) / columns);
    }
    // The finest pieces come last.
    const int64_t of_rows = dx || !call.dextras.empty() ? pieces_of(rows) : 0;
    spread(parallel, of_units + of_outputs + of_rows, [&](int64_t i) {
      if (i < of_units)
        return piece(i, of_units, H, columns,
                     [&](int64_t lo, int64_t hi) { dweights.add(done == 0, dz_of(1, 0), rows, lo, hi); });
      if ((i -= of_units) < of_outputs)
        return piece(i, of_outputs, P, columns,
                     [&](int64_t lo, int64_t hi) { dweights.add_projection(done == 0, dout_of(1, 0), rows, lo, hi); });
      piece(i - of_outputs, of_rows, rows, 1, [&](int64_t lo, int64_t hi) {
        if (dx) input_gradient(done, lo, hi);
        if constexpr (PROGRAM) step_inputs(*this, done, lo, hi);
      });
    });
    if constexpr (PROGRAM) {
      if (int(program->extras.size()) == program->steps) return;
      const int64_t pieces = pieces_of(B);
      spread(parallel, pieces, [&](int64_t i) {
        piece(i, pieces, B, 1, [&](int64_t lo, int64_t hi) {
          sequence_inputs(*this, steps, lo, hi, sequence_sums.data(), done + steps == T);
        });
      });
    }
  }

  void allocate() {
    if (pack_hh()) w_hh.allocate(Pp, GR * (step_parts ? Hk : H), step_parts);
    bool gaps = false;  // planes that no section puts, which stay zero
    if constexpr (PROGRAM) gaps = !at->empty.empty();
    dz.allocate((chunk + 1) * B * planes * Hp, gaps);
    if (step_parts || (parts && dx)) dz_split.allocate((chunk + 1) * B, gate_planes * Hk, schedule.parts);
    if (pack_ih()) w_ih.allocate(Ip, GX * (parts ? Hk : H), parts);
    if constexpr (PROGRAM) {
      gradients.allocate(call);
      sequence_sums.allocate(int64_t(program->extras.size() - size_t(program->steps)) * B * Hp, true);
    }
    if (call.project) w_hr.allocate(Hp, P, 0), dout.allocate((chunk + 1) * B * Pp);
    if (dweights) dweights.open();
  }

  // All panels of a matrix of `gates` times `rows` rows of n columns.
  void pack(PackedMatrix<A>& factor, const void* matrix, int gates, int64_t rows, int64_t n) {
    spread(parallel, (n + WIDTH - 1) / WIDTH, [&](int64_t u) {
      for_columns<A>(std::min<int64_t>(WIDTH, n - u * WIDTH), [&](auto vectors, int64_t column) {
        const int64_t c = u * WIDTH + column;
        for (int g = 0; g < gates; ++g)
          for (int v = 0; v < vectors; ++v)
            factor.pack_rows(stored(matrix), g * rows * n + c + v * W, n, int(std::min<int64_t>(n - c - v * W, W)),
                             g * (factor.parts() ? Hk : rows), rows, c, vectors, v, overflow);
      });
    });
  }

  void start() {
    allocate();
    if (pack_hh()) pack(w_hh, call.weight(d, call.hh()), GR, H, P);
    if (call.project) pack(w_hr, call.weight(d, call.projection()), 1, P, H);
    if (pack_ih()) pack(w_ih, call.weight(d, 0), GX, H, I);
    carried.start();
    if (call.layer_norm) norms.open(chunk * B, schedule.row_jobs, parallel);
  }

  void finish(int64_t last_slot) {
    Tiles tiles;
    const int64_t t = tape.before(tape.time(T - 1));  // the initial state is the one after that step
    const bool through_weights = first_gates() > 0 && !(program && program->has_operand);
    for (int64_t u = 0; first_state && u < out_panels; ++u)
      for (int64_t b = 0; b < B; ++b) {
        alignas(64) A sums[WIDTH];
        recurrent(tiles, through_weights ? last_slot : -1, b, 1, u, u + 1, sums);
        for (int64_t j = u * WIDTH; j < std::min(Pp, (u + 1) * WIDTH); j += W)
          carried.arriving(t, b, j, load(sums + j - u * WIDTH)).store(carried.h_of(b) + j);
      }
    carried.finish(t);
    if (dweights) dweights.close();
    if (dweights && call.layer_norm) norms.close();
  }

  // False if a number came that has no bf16 parts: then the results are void.
  bool run() {
    start();
    int64_t last = 0;
    for (int64_t done = 0; done < T && !overflow; done += chunk) {
      if (done > 0) {
        std::copy_n(dz_of(last, 0), B * planes * Hp, dz_of(0, 0));
        if (dz_split) dz_split.copy(dz_split, last * B, B, 0);
      }
      last = std::min(chunk, T - done);
      recurrence(done, last);
      if (call.layer_norm) norms.add(schedule.row_jobs);
      products(done, last);
    }
    if (overflow) return false;
    finish(last);
    return !overflow;
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
