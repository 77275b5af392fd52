// The backward loop over time, for every cell, in chunks of steps: first the recurrence of the chunk, which leaves the
// gradients of its pre-activations in a buffer, then their products with weights, inputs and states, while it is warm.
//
// planes: pre-activation gradients per hidden unit, see planes_of.
#pragma once
#include "cell-inl.h"
#include "norm_gradients-inl.h"
#include "state_gradients-inl.h"
#include "weight_gradients-inl.h"

namespace RNNKERNELS_SET {
namespace {
// The planes of gradients that a step leaves. A gate of a built-in cell has one, but one of its own for each of the
// input and the state where their sums stay apart: for its last gates, so many, and for all with layer norms.
inline Program::Planes planes_of(const LayerCall& call, int split) {
  if (const Program* const program = call.cell->program.get())
    return call.layer_norm ? program->apart : program->shared;
  Program::Planes at;
  const int G = int(call.cell->gates);
  if (call.layer_norm) split = G;
  for (int g = 0; g < G; ++g) at.x.push_back(g), at.r.push_back(g < G - split ? g : g + split);
  at.gates = at.all = G + split;
  return at;
}

template <class A>
struct Backward {
  using V = Vec<A>;
  static constexpr int W = V::W, WIDTH = 4 * W;

  const LayerCall& call;
  const Schedule schedule;
  const BackwardCell<A>& cell;
  const int64_t d;
  const Tape<A> tape{call, d};
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P;
  const Program* const program = call.cell->program.get();
  const Program::Planes at = planes_of(call, cell.split);
  const int planes = at.all;
  const int GX = int(call.cell->ih_gates), GR = int(call.cell->hh_gates);  // gates of W_ih and W_hh
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
  const bool adds;  // to what other directions of the group have left in dx
  // Gradients of pre-activations that are x itself, and that no product reads, go straight to dx; past the caches where
  // these hold far less.
  const bool straight = program && program->given && program->recurrent.empty();
  const bool far = straight && dx.direct() && !adds && I % W == 0 && H % W == 0 &&
                   reinterpret_cast<uintptr_t>(call.dx) % kBytes == 0 && T * B * I * int64_t(sizeof(A)) > kFarBytes;

  PackedMatrix<A> w_hh, w_hr, w_ih;  // in panels of columns, gate after gate
  StepGradients<A> gradients{call};
  Scratch<A> sequence_sums;  // of a program: gradients of sequence inputs [input][B][Hp]
  Scratch<A> dz, dout;       // [slot][B][planes][Hp], [slot][B][Pp]; slot 0 is the step before the chunk
  SplitRows dz_split;        // [slot][B] rows of [planes][Hk]
  Flag overflow;             // a number that has no bf16 parts came
  StateGradients<A> carried{tape};
  WeightGradients<A> dweights{tape, cell, at, schedule, chunk * B, overflow};
  NormGradients<A> norms{tape, cell, schedule, overflow};

  Backward(const LayerCall& c, const Schedule& s, const BackwardCell<A>& of, int64_t direction, bool adding)
      : call(c), schedule(s), cell(of), d(direction), adds(adding) {}

  // A few rows, or a single step, do not earn the packing back: weights whose rows are whole vectors are then read
  // where they lie.
  bool in_place(int64_t n) const { return dy.direct() && (T == 1 || T * B <= 32) && n % W == 0; }
  const bool ih_in_place = !parts && in_place(I), hh_in_place = !step_parts && in_place(P);
  const bool first_state = call.dstates[0] || call.dreset_states[0];

  bool pack_hh() const { return !hh_in_place && GR > 0 && (T > 1 || cell.first || cell.operand || first_state); }
  bool pack_ih() const { return !ih_in_place && GX > 0 && dx; }
  A* dz_of(int64_t slot, int64_t b) const { return dz.data() + (slot * B + b) * planes * Hp; }
  int64_t dx_at(int64_t t, int64_t b) const { return ((call.group(d) * T + t) * B + b) * I; }
  bool goes_straight(int gate) const {
    return straight && std::find(at.empty.begin(), at.empty.end(), at.x[size_t(gate)]) == at.empty.end();
  }
  A* dout_of(int64_t slot, int64_t b) const { return dout.data() + (slot * B + b) * Pp; }

  // Rows r.. of sums, panels u0..u1 of them: what reaches the h that entered the step in `slot` through the gates
  // g0..g1 of W_hh: dz W_hh; zeros if there was no such step (-1). A gate after the other, so that its rows stay in the
  // cache for all panels; panels up and down in turn, as in the forward loop.
  void recurrent(Tiles& tiles, int64_t slot, int64_t r, int64_t n, int64_t u0, int64_t u1, A* sums, int64_t sums_row,
                 int g0, int g1) const {
    for (int64_t m = 0; slot < 0 && m < n; ++m)
      std::fill(sums + m * sums_row + u0 * WIDTH, sums + m * sums_row + std::min(Pp, u1 * WIDTH), A(0));
    for (int g = g0; slot >= 0 && g < g1; ++g)
      for (int64_t i = u0; i < u1; ++i) {
        const bool down = (slot + g) & 1;
        const int64_t u = down ? u1 - 1 - (i - u0) : i;
        multiply(tiles, w_hh, hh_in_place ? call.weight(d, call.hh()) : nullptr, n, dz_rows(slot, r, at.r[size_t(g)]),
                 g, u * WIDTH, std::min(P, (u + 1) * WIDTH), P, sums + u * WIDTH, sums_row, g > g0, down);
      }
  }
  int first_gates() const { return GR - int(call.cell->phases) + 1; }  // of the first product of a step

  // sums [n][sums_row] = or += left times columns c0..c1 of gate g of weights with `columns` columns, packed or as they
  // lie.
  void multiply(Tiles& tiles, const PackedMatrix<A>& packed, const void* in_place, int64_t n, const RowsView<A>& left,
                int g, int64_t c0, int64_t c1, int64_t columns, A* sums, int64_t sums_row, bool add,
                bool down = false) const {
    if (!in_place)
      return packed.multiply_all(tiles, schedule.engine, n, left, g * (packed.parts() ? Hk : H), H, c0, c1 - c0, sums,
                                 sums_row, add ? Sum::add : Sum::put, down);
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

  // The gradient of the new h, or of a projection's output, of row b at j: what arrives from the step after it, of
  // which the sums of W_hh are there, and that of y, whose row is at `dy_row`. What zoneout or the end of a sequence
  // lets pass stays with the old h.
  template <bool STAGED>
  INLINE V arrive(int64_t t, int64_t b, int64_t dy_row, int64_t j, bool alive, V sums) {
    const bool zoned = STAGED && call.zone[0];
    const int lanes = int(std::min<int64_t>(W, P - j));
    V dh = carried.arriving(t, b, j, sums), old = dh;
    if (alive) {
      dh = dh + dy.get(dy_row + j, lanes), old = V(A(0));
      if (zoned) old = coefficients<A>(call.zone[0], t, d, b, j, lanes) * dh, dh = dh - old;
    }
    if (!alive || call.project || zoned) old.store(carried.h_of(b) + j);
    return dh;
  }

  // With a projection: the gradient of its output.
  void arrive_at_output(const BackwardBlock<A>& of) {
    for (int64_t b = of.r; b < of.r + of.n; ++b) {
      const bool alive = tape.alive(of.t, b);
      const int64_t dy_row = tape.dy_at(of.t, b);
      for (int64_t j = of.q0 * W; j < of.q1 * W; j += W) {
        const V dh =
            arrive<true>(of.t, b, dy_row, j, alive, load(gradients.of_state[0].data() + b * gradients.row + j));
        (alive ? dh : V(A(0))).store(dout_of(of.slot, b) + j);
      }
    }
  }

  // With layer norms, rows of a step, of which all is there: dz of the norms becomes that of the products. first: of
  // all gates; else, of a cell with two products, of the second one's.
  void norm_rows(const BackwardBlock<A>& of, bool first) {
    for (int64_t b = of.r; call.layer_norm && b < of.r + of.n; ++b) {
      for (const int plane : at.empty)
        if (first || plane == at.r.back()) std::fill_n(dz_of(of.slot, b) + plane * Hp, Hp, A(0));
      const int one = first_gates();
      const bool alive = tape.alive(of.t, b);
      const int64_t row = (of.slot - 1) * B + b;
      A *x = dz_of(of.slot, b), *h = x + int64_t(at.x.size()) * Hp;
      if (alive && first && GX > 0) norms.gates(true, row, 0, GX, x, of.part);
      if (alive && first && one > 0) norms.gates(false, row, 0, one, h, of.part);
      if (alive && !first) norms.gates(false, row, one, GR, h + one * Hp, of.part);
      auto split = [&](int p) {
        for (int64_t j = 0; j < Hp; j += W) dz_split.put(load(x + p * Hp + j), of.slot * B + b, p * Hk + j, overflow);
      };
      for (int p = 0; step_parts && first && p < at.gates; ++p) split(p);
      for (int g = one; step_parts && !first && g < GR; ++g) split(at.r[size_t(g)]);  // the others are not there yet
    }
  }

  // One member's part of step t, whose gradients of pre-activations go to `slot`, for rows b0..b1; begun: it is not the
  // first one. False: it has left the team.
  bool step(Machine<A>* machine, Tiles& tiles, Team::Member& member, int64_t b0, int64_t b1, int64_t slot, bool begun,
            int64_t t, A* part) {
    // f(block, panels u0..u1) of so many panels, or units.
    auto for_blocks = [&](int64_t all, int64_t units, auto&& f) {
      const auto [u0, u1] = member.share(all);
      if (u0 == u1) return;
      const int64_t q0 = u0 * WIDTH / W, q1 = std::min(u1 * WIDTH, units) / W;
      for_even_blocks(b0, b1, block, [&, u0 = u0, u1 = u1](int64_t r, int64_t n) {
        f(BackwardBlock<A>{machine, part, slot, t, r, n, q0, q1}, u0, u1);
      });
    };
    auto product = [&](int64_t from, const Scratch<A>& to, const BackwardBlock<A>& of, int64_t u0, int64_t u1, int g0,
                       int g1) {
      recurrent(tiles, from, of.r, of.n, u0, u1, to.data() + of.r * gradients.row, gradients.row, g0, g1);
    };
    const Scratch<A>&dh = gradients.of_state[0], &doperand = gradients.of_operand;
    const int one = first_gates();
    for_blocks(out_panels, Pp, [&](const BackwardBlock<A>& of, int64_t u0, int64_t u1) {
      product(begun && !cell.operand && one > 0 ? slot - 1 : -1, dh, of, u0, u1, 0, one);
      if (call.project) return arrive_at_output(of);
      cell.last(*this, of);
      norm_rows(of, !cell.first);
    });
    if (!member.barrier()) return false;
    if (cell.first) {
      for_blocks(out_panels, Pp, [&](const BackwardBlock<A>& of, int64_t u0, int64_t u1) {
        product(slot, doperand, of, u0, u1, one, GR);
        cell.first(*this, of);
        norm_rows(of, true);
      });
      if (!member.barrier()) return false;
    }
    if (call.project) {
      for_blocks(panels, Hp, [&](const BackwardBlock<A>& of, int64_t u0, int64_t u1) {
        RowsView<A> left;
        left.a = dout_of(slot, of.r), left.row = Pp;
        w_hr.multiply_all(tiles, schedule.engine, of.n, left, 0, P, u0 * WIDTH, std::min(H, u1 * WIDTH) - u0 * WIDTH,
                          dh.data() + of.r * gradients.row + u0 * WIDTH, gradients.row, Sum::put);
        cell.last(*this, of);
        norm_rows(of, true);
      });
      if (!member.barrier()) return false;
    }
    if (cell.operand)
      for_blocks(out_panels, Pp, [&](const BackwardBlock<A>& of, int64_t u0, int64_t u1) {
        product(one > 0 ? slot : -1, doperand, of, u0, u1, 0, one);
        cell.operand(*this, of);
      });
    return true;
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
        std::optional<Machine<A>> machine;
        if (program) machine.emplace(call);
        A* const part = call.layer_norm ? norms.part(rows.part) : nullptr;
        for (int64_t s = rows.step; s <= steps; ++s) {
          const int64_t n = rows.last - rows.first;
          // Norms sum the gradients of their gains part by part.
          if (schedule.unit_threads == 1 && shares.wanted() && !call.layer_norm && divisible(call, n, steps + 1 - s)) {
            shares.give({rows.first + n / 2, rows.last, s, rows.part});
            rows.last = rows.first + n / 2;
          }
          if (!step(machine ? &*machine : nullptr, tiles, member, rows.first, rows.last, s, done + s > 1,
                    tape.time(done + s - 1), part))
            break;
        }
        drain();
      });
    });
  }

  // dx of the chunk's rows lo..hi = dz W_ih, added to what other directions of the group have left there.
  void input_gradient(int64_t done, int64_t lo, int64_t hi) {
    constexpr int64_t ROWS = 128;
    if (GX == 0) return gradient_of_given(done, lo, hi);
    if (parts && !step_parts)  // in pairs for this product only
      for (int64_t r = lo; r < hi; ++r)
        for (int g = 0; g < GX; ++g)
          for (int64_t j = 0, p = at.x[size_t(g)]; j < H; j += W)
            dz_split.put(load(dz_of(1, r) + p * Hp + j), B + r, p * Hk + j, overflow);
    Tiles tiles;
    Scratch<A> sums;
    sums.allocate(ROWS * Ip);
    auto at_row = [&](int64_t r) { return dx_at(tape.time(done + r / B), r % B); };
    for (int64_t first = lo; first < hi; first += ROWS) {
      const int64_t n = std::min(ROWS, hi - first);
      for (int64_t m = 0; adds && m < n; ++m) dx.get_row(at_row(first + m), sums.data() + m * Ip, I);
      for (int g = 0; g < GX; ++g)
        multiply(tiles, w_ih, ih_in_place ? call.weight(d, 0) : nullptr, n, dz_rows(1, first, at.x[size_t(g)]), g, 0, I,
                 I, sums.data(), Ip, adds || g > 0);
      for (int64_t m = 0; m < n; ++m) dx.put_row(sums.data() + m * Ip, at_row(first + m), I);
    }
  }

  // The same where x is the pre-activation itself, or is not read at all.
  void gradient_of_given(int64_t done, int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; ++r) {
      const int64_t first = dx_at(tape.time(done + r / B), r % B);
      auto put = [&](int64_t i, int n, V v) { dx.put(adds ? dx.get(first + i, n) + v : v, first + i, n); };
      if (program->inputs.empty()) {
        for (int64_t i = 0; i < I; i += W) put(i, int(std::min<int64_t>(W, I - i)), V(A(0)));
        continue;
      }
      for (int g = 0; g < int(program->inputs.size()); ++g) {
        if (goes_straight(g)) continue;
        for (int64_t j = 0; j < H; j += W)
          put(g * H + j, int(std::min<int64_t>(W, H - j)), load(dz_of(1, r) + at.x[size_t(g)] * Hp + j));
      }
    }
  }

  // The gradients of a program's inputs besides x, from their planes, added to what other directions of the group have
  // left there. Those of steps: rows lo..hi of a chunk that begins after `done` steps.
  void step_inputs(int64_t done, int64_t lo, int64_t hi) const {
    for (int k = 0; program && k < program->steps && !call.dextras.empty(); ++k) {
      const Stored<A> to = stored(call.dextras[size_t(k)]);
      const int plane = at.extra[size_t(k)];
      const bool narrow = program->narrow[size_t(k)];
      auto put = [&](int64_t i, int n, V v) { to.put(adds ? to.get(i, n) + v : v, i, n); };
      for (int64_t r = lo; r < hi; ++r) {
        const int64_t row = (call.group(d) * T + tape.time(done + r / B)) * B + r % B;
        V sum(A(0));
        for (int64_t j = 0; j < H; j += W) {
          const V v = plane < 0 ? V(A(0)) : load(dz_of(1, r) + plane * Hp + j);
          if (narrow) sum = sum + v;
          else put(row * H + j, int(std::min<int64_t>(W, H - j)), v);
        }
        if (narrow) put(row, 1, V(total(sum)));
      }
    }
  }
  // Those of sequences, which are summed up for all steps: rows lo..hi of the batch, and at the end to where they go.
  void sequence_inputs(int64_t steps, int64_t lo, int64_t hi, bool end) const {
    A* sums = sequence_sums.data();
    for (int k = program->steps; k < int(program->extras.size()) && !call.dextras.empty(); ++k, sums += B * Hp) {
      const Stored<A> to = stored(call.dextras[size_t(k)]);
      const int plane = at.extra[size_t(k)];
      for (int64_t b = lo; b < hi; ++b)
        for (int64_t j = 0; j < H; j += W) {
          A* const sum = sums + b * Hp + j;
          for (int64_t s = 0; s < steps && plane >= 0; ++s)
            (load(sum) + load(dz_of(1, s * B + b) + plane * Hp + j)).store(sum);
          const int n = int(std::min<int64_t>(W, H - j));
          const int64_t i = (call.group(d) * B + b) * H + j;
          if (end) to.put(adds ? to.get(i, n) + load(sum) : load(sum), i, n);
        }
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
        step_inputs(done, lo, hi);
      });
    });
    if (!program || int(program->extras.size()) == program->steps) return;
    const int64_t pieces = pieces_of(B);
    spread(parallel, pieces, [&](int64_t i) {
      piece(i, pieces, B, 1, [&](int64_t lo, int64_t hi) { sequence_inputs(steps, lo, hi, done + steps == T); });
    });
  }

  void allocate() {
    if (pack_hh()) w_hh.allocate(Pp, GR * (step_parts ? Hk : H), step_parts);
    dz.allocate((chunk + 1) * B * planes * Hp, !at.empty.empty());  // planes that no section puts stay zero
    if (step_parts || (parts && dx)) dz_split.allocate((chunk + 1) * B, at.gates * Hk, schedule.parts);
    if (pack_ih()) w_ih.allocate(Ip, GX * (parts ? Hk : H), parts);
    gradients.allocate(call);
    if (program) sequence_sums.allocate((int64_t(program->extras.size()) - program->steps) * B * Hp, true);
    if (call.project) w_hr.allocate(Hp, P, 0), dout.allocate((chunk + 1) * B * Pp);
    if (dweights) dweights.open();
  }

  // All panels of a matrix of `gates` times `rows` rows of n columns.
  void pack(PackedMatrix<A>& factor, const void* matrix, int gates, int64_t rows, int64_t n) {
    spread(parallel, (n + WIDTH - 1) / WIDTH, [&](int64_t u) {
      for_columns<A>(std::min<int64_t>(WIDTH, n - u * WIDTH), [&](auto vectors, int64_t column) {
        const int64_t c = u * WIDTH + column;
        constexpr int NB = decltype(vectors)::value;
        for (int g = 0; g < gates; ++g)
          factor.template pack_rows<NB>(stored(matrix), g * rows * n + c, n, std::min<int64_t>(n - c, NB * W),
                                        g * (factor.parts() ? Hk : rows), rows, c, overflow);
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
    const bool through_weights = first_gates() > 0 && !cell.operand;
    A* const sums = gradients.of_state[0].data();
    for (int64_t b = 0; first_state && b < B; ++b) {
      recurrent(tiles, through_weights ? last_slot : -1, b, 1, 0, out_panels, sums, gradients.row, 0, first_gates());
      for (int64_t j = 0; j < Pp; j += W) carried.arriving(t, b, j, load(sums + j)).store(carried.h_of(b) + j);
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
