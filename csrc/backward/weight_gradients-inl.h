// The gradients of one direction's weights: products of the gradients of pre-activations with x, h and the output
// before a projection, a chunk of steps at a time. Row r of a chunk is row r % B of its step r / B.
#pragma once
#include "../products/packed_matrix-inl.h"
#include "cell-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct WeightGradients {
  using V = Vec<A>;
  static constexpr int W = V::W;

  const Tape<A>& tape;
  const BackwardCell<A>& cell;
  const Program::Planes& at;  // of dz
  const Schedule& schedule;
  const int64_t most;  // rows of a chunk
  Flag& overflow;      // a number that has no bf16 parts came
  const LayerCall& call = tape.call;
  const int64_t d = tape.d, B = call.B, I = call.I, H = call.H, P = call.P;
  const int64_t Hp = padded<A>(H), Pp = padded<A>(P), Ip = padded<A>(I), widest = std::max({Ip, Pp, Hp});
  const int GX = int(call.cell->ih_gates), GR = int(call.cell->hh_gates);  // gates of W_ih and W_hh
  const Program* const program = call.cell->program.get();
  const int parts = schedule.products == Layout::pairs ? schedule.parts : 0;
  PackedMatrix<A> x_rows, h_rows, second_rows, out_rows;  // the right factors: a chunk's rows
  GradientSum<A> dw_ih, dw_hh, dw_hr;
  Scratch<A> db;        // [GX * H] and [GR * H]
  Scratch<A> dvectors;  // of a program [vector][Hp]

  explicit operator bool() const { return !call.dweights.empty(); }
  // Rows of a right factor for so many rows of a chunk: whole pairs, or whole blocks.
  int64_t rows_of_factor(int64_t rows) const { return parts ? padded_k(rows) : (rows + 1) / 2 * 2; }

  void open() {
    const int64_t rows = rows_of_factor(most);
    db.allocate((GX + GR) * H, true);
    if (GX > 0) x_rows.allocate(Ip, rows, parts), dw_ih.open(result(0), GX * H, I);
    if (GR > 0) h_rows.allocate(Pp, rows, parts), dw_hh.open(result(call.hh()), GR * H, P);
    if (cell.second_again) second_rows.allocate(Pp, rows, parts);
    if (program) dvectors.allocate(int64_t(program->vectors.size()) * Hp, true);
    if (!call.project) return;
    out_rows.allocate(Hp, rows, 0);
    dw_hr.open(result(call.projection()), P, H);
  }
  Stored<A> result(int k) const { return tape.stored(call.dweight(d, k)); }

  // The right factors' rows lo..hi (both even) of a chunk of so many rows that begins after `done` steps. Where a
  // sequence has ended, and past the last row, the gradients are zero, and what lies there must not spoil them.
  void gather(int64_t done, int64_t lo, int64_t hi, int64_t rows) {
    Scratch<A> buffer;
    buffer.allocate(2 * widest);
    A* two[2] = {buffer.data(), buffer.data() + widest};
    OperandsAgain<A> again{tape, cell};
    for (int64_t row = lo; row < hi; row += 2) {
      auto put = [&](PackedMatrix<A>& factor, int64_t n, auto&& get) {
        for (int64_t r = row; r < row + 2; ++r) {
          const int64_t t = tape.time(done + r / B), b = r % B;
          if (r < rows && tape.alive(t, b)) get(t, b, two[r - row]);
          else std::fill_n(two[r - row], widest, A(0));
        }
        factor.put_rows(two[0], two[1], n, row, overflow);
      };
      if (GX > 0) put(x_rows, I, [&](int64_t t, int64_t b, A* to) { tape.get_x(t, b, to); });
      if (GR > 0) put(h_rows, P, [&](int64_t t, int64_t b, A* to) { again.first(t, b, to); });
      if (cell.second_again) put(second_rows, P, [&](int64_t t, int64_t b, A* to) { again.second(t, b, to); });
      if (call.project) put(out_rows, H, [&](int64_t t, int64_t b, A* to) { again.output(t, b, to); });
    }
  }

  // The gate whose gradient is a plane of dz, of so many gates that have these planes; -1 where there is none.
  static int gate_of(int plane, const std::vector<int>& planes, int gates) {
    const auto found = std::find(planes.begin(), planes.end(), plane);
    return gates == 0 || found == planes.end() ? -1 : int(found - planes.begin());
  }

  // The chunk's share of the gradients of weights and biases that belong to hidden units lo..hi; dz [rows][planes][Hp].
  void add(bool start, const A* dz, int64_t rows, int64_t lo, int64_t hi) {
    Tiles tiles;
    Columns<A> units;
    units.allocate(parts ? most : rows, parts);
    for (int plane = 0; plane < at.all; ++plane) {
      const int x_gate = gate_of(plane, at.x, GX), r_gate = gate_of(plane, at.r, GR);
      if (x_gate < 0 && r_gate < 0) continue;
      for (int64_t j = lo; j < hi; j += units.most()) {
        const int64_t n = std::min(units.most(), hi - j);
        const RowsView<A> left = units.take(dz + plane * Hp + j, at.all * Hp, rows, n, overflow);
        if (x_gate >= 0) dw_ih.add(start, tiles, schedule.engine, x_gate * H + j, n, left, x_rows, rows);
        const PackedMatrix<A>& states = cell.second_again && r_gate == GR - 1 ? second_rows : h_rows;
        if (r_gate >= 0) dw_hh.add(start, tiles, schedule.engine, r_gate * H + j, n, left, states, rows);
        for (int64_t m = 0; m < n; ++m) {
          if (x_gate >= 0) db.data()[x_gate * H + j + m] += units.total(m);
          if (r_gate >= 0) db.data()[(GX + r_gate) * H + j + m] += units.total(m);
        }
      }
    }
    for (size_t k = 0; program && k < program->vectors.size(); ++k) {
      const int plane = at.vector[k];
      for (int64_t j = lo; plane >= 0 && j < hi; j += W) {
        A* const to = dvectors.data() + int64_t(k) * Hp + j;
        V sum(A(0));
        for (int64_t first = 0; first < rows; first += 64) {
          V part(A(0));  // long sums are sums of sums
          for (int64_t r = first; r < std::min(rows, first + 64); ++r)
            part = part + load(dz + (r * at.all + plane) * Hp + j);
          sum = sum + part;
        }
        (load(to) + sum).store(to);
      }
    }
  }

  // The same for outputs lo..hi of the projection; dout [rows][Pp].
  void add_projection(bool start, const A* dout, int64_t rows, int64_t lo, int64_t hi) {
    Tiles tiles;
    dw_hr.add(start, tiles, schedule.engine, lo, hi - lo, {dout + lo, 1, Pp}, out_rows, rows);
  }

  void close() const {
    dw_ih.close(), dw_hh.close(), dw_hr.close();
    const bool bias = call.bias && !call.layer_norm;
    if (bias && GX > 0) result(call.bias_ih()).put_row(db.data(), 0, GX * H);
    if (bias && GR > 0) result(call.bias_hh()).put_row(db.data() + GX * H, 0, GR * H);
    for (size_t k = 0; program && k < program->vectors.size(); ++k)
      result(call.vector(int(k))).put_row(dvectors.data() + int64_t(k) * Hp, 0, H);
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
