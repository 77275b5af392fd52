// The gradients of one direction's weights: products of the gradients of pre-activations with x, h and the output
// before a projection, a chunk of steps at a time. Row r of a chunk is row r % B of its step r / B.
#pragma once
#include "../products/packed_matrix-inl.h"
#include "tape-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A, class Cell>
struct WeightGradients {
  using V = Vec<A>;
  static constexpr int W = V::W, G = Cell::G, SPLIT = Cell::SPLIT;

  const Tape<A, Cell>& tape;
  const Schedule& schedule;
  const int planes;    // in dz: as in Backward
  const int64_t most;  // rows of a chunk
  Flag& overflow;      // a number that has no bf16 parts came
  const LayerCall& call = tape.call;
  const int64_t d = tape.d, B = call.B, I = call.I, H = call.H, P = call.P;
  const int64_t Hp = padded<A>(H), Pp = padded<A>(P), Ip = padded<A>(I), widest = std::max({Ip, Pp, Hp});
  const int parts = schedule.products == Layout::pairs ? schedule.parts : 0;
  PackedMatrix<A> x_rows, h_rows, second_rows, out_rows;  // the right factors: a chunk's rows
  GradientSum<A> dw_ih, dw_hh, dw_hr;
  Scratch<A> db;  // [2][G * H]

  explicit operator bool() const { return !call.dweights.empty(); }
  // Rows of a right factor for so many rows of a chunk: whole pairs, or whole blocks.
  int64_t rows_of_factor(int64_t rows) const { return parts ? padded_k(rows) : (rows + 1) / 2 * 2; }

  void open() {
    const int64_t rows = rows_of_factor(most);
    x_rows.allocate(Ip, rows, parts), h_rows.allocate(Pp, rows, parts), db.allocate(2 * G * H, true);
    dw_ih.open(result(0), G * H, I), dw_hh.open(result(1), G * H, P);
    if (Cell::PHASES > 1) second_rows.allocate(Pp, rows, parts);
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
    for (int64_t row = lo; row < hi; row += 2) {
      auto put = [&](PackedMatrix<A>& factor, int64_t n, auto&& get) {
        for (int64_t r = row; r < row + 2; ++r) {
          const int64_t t = tape.time(done + r / B), b = r % B;
          if (r < rows && tape.alive(t, b)) get(t, b, two[r - row]);
          else std::fill_n(two[r - row], widest, A(0));
        }
        factor.put_rows(two[0], two[1], n, row, overflow);
      };
      put(x_rows, I, [&](int64_t t, int64_t b, A* to) { tape.get_x(t, b, to); });
      put(h_rows, P, [&](int64_t t, int64_t b, A* to) { tape.get_h_before(t, b, to); });
      if constexpr (Cell::PHASES > 1)
        put(second_rows, P, [&](int64_t t, int64_t b, A* to) { tape.get_second(t, b, to); });
      if constexpr (Cell::PROJECTION)
        if (call.project) put(out_rows, H, [&](int64_t t, int64_t b, A* to) { tape.get_output(t, b, to); });
    }
  }

  // The chunk's share of the gradients of weights and biases that belong to hidden units lo..hi; dz [rows][planes][Hp].
  void add(bool start, const A* dz, int64_t rows, int64_t lo, int64_t hi) {
    Tiles tiles;
    Columns<A> units;
    units.allocate(parts ? most : rows, parts);
    for (int plane = 0; plane < planes; ++plane) {
      const int split = planes - G, x_gate = plane < G ? plane : -1;
      int r_gate = plane - split;
      if (plane < G) r_gate = plane < G - split ? plane : -1;
      for (int64_t j = lo; j < hi; j += units.most()) {
        const int64_t n = std::min(units.most(), hi - j);
        const RowsView<A> left = units.take(dz + plane * Hp + j, planes * Hp, rows, n, overflow);
        if (x_gate >= 0) dw_ih.add(start, tiles, schedule.engine, x_gate * H + j, n, left, x_rows, rows);
        const PackedMatrix<A>& states = Cell::PHASES > 1 && r_gate == G - 1 ? second_rows : h_rows;
        if (r_gate >= 0) dw_hh.add(start, tiles, schedule.engine, r_gate * H + j, n, left, states, rows);
        for (int64_t m = 0; m < n; ++m) {
          if (x_gate >= 0) db.data()[x_gate * H + j + m] += units.total(m);
          if (r_gate >= 0) db.data()[(G + r_gate) * H + j + m] += units.total(m);
        }
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
    for (int k = 0; call.bias && !call.layer_norm && k < 2; ++k) result(2 + k).put_row(db.data() + k * G * H, 0, G * H);
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
