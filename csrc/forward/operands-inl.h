// The left factors of the forward pass: rows of x and of h, in the form that the weights want.
#pragma once
#include "../cells/stages-inl.h"
#include "../products/dot-inl.h"
#include "../products/packed_matrix-inl.h"

namespace RNNKERNELS_SET {
namespace {
// One job: rows b0..b0+rows of direction d from step `begun` on, and their state. h lies in two slots, the old one and
// the new one.
template <class A>
struct Strip {
  int64_t d, b0, rows, begun = 0;
  // h [2][rows][Pp], c [state 1 and on][rows][Hp], cell_out [rows][Hp], pre [rows of a chunk][panel][gate][WIDTH], a
  // row a little longer than its panels
  Scratch<A> h, c, cell_out, pre;
  SplitRows h_split;  // [2][rows], where W_hh is in pairs and h is not masked
  // Between the two products of a step: what the second one multiplies [rows][Pp] (and in pairs), and the values that
  // are there by then [rows][value][Hp].
  Scratch<A> second, crossing;
  SplitRows second_split;
  Scratch<A> operand;       // what the first product multiplies, where that is not h [rows][Pp]
  Scratch<A> sums, cell_c;  // with norms: the state's sums of a step, as pre; c as the cell made it [rows][Hp]
  int64_t at(int64_t slot, int64_t r) const { return (slot & 1) * rows + r; }
};

template <class A>
struct Operands {
  static constexpr int W = Vec<A>::W;
  const LayerCall& call;
  const Schedule& schedule;
  const int64_t chunk, Pp;  // steps whose input is taken at once; numbers in a row of h
  Flag& overflow;           // a number that has no bf16 parts came
  Stored<A> x{call.x, call.storage};
  const int64_t I = call.I, P = call.P;
  const bool has_operand = call.cell->program && call.cell->program->has_operand;
  const bool h_as_it_is = !call.quantized() && schedule.hh != Layout::pairs && !call.h_mask && !sorted(schedule.hh);

  // Where a thread copies rows to if they cannot be read in place.
  struct Copy {
    Scratch<A> rows, row;
    SplitRows split;
    QuantizedRows quantized;
  };
  bool sorted(Layout layout) const { return layout == Layout::in_place && call.storage == Storage::bfloat16; }

  // The rows of x of some steps: in place where they are evenly spaced, else copied.
  RowsView<A> rows_of_x(const Strip<A>& strip, Copy& copy, int64_t t0, int64_t steps) const {
    const int64_t first = call.group(strip.d) * call.x_stride_X + strip.b0 * call.x_stride_B + t0 * call.x_stride_T;
    auto for_rows = [&](auto&& f) {
      for (int64_t t = 0; t < steps; ++t)
        for (int64_t r = 0; r < strip.rows; ++r)
          f(t * strip.rows + r, first + t * call.x_stride_T + r * call.x_stride_B);
    };
    RowsView<A> left;
    if (call.quantized()) {
      if (!copy.quantized) copy.quantized.allocate(chunk * strip.rows, I);
      for_rows([&](int64_t r, int64_t from) { quantize(copy.quantized, x.at(from), r); });
      left.take(copy.quantized);
      return left;
    }
    if (schedule.ih == Layout::pairs) {
      if (!copy.split) copy.split.allocate(chunk * strip.rows, I, schedule.parts);
      for_rows([&](int64_t r, int64_t from) {
        for (int64_t i = 0; i < I; i += W)
          copy.split.put(x.get(from + i, int(std::min<int64_t>(W, I - i))), r, i, overflow);
      });
      left.take(copy.split, 0);
      return left;
    }
    bool even = steps == 1 || strip.rows == 1;
    left.row = steps == 1 ? call.x_stride_B : call.x_stride_T;
    if (!even && call.x_stride_T == strip.rows * call.x_stride_B) even = true, left.row = call.x_stride_B;
    if (even && x.direct()) {
      left.a = x.at(first);
      return left;
    }
    copy.rows.allocate(chunk * strip.rows * I);
    if (sorted(schedule.ih)) copy.row.allocate(I);
    for_rows([&](int64_t r, int64_t from) {
      A* to = copy.rows.data() + r * I;
      x.get_row(from, sorted(schedule.ih) ? copy.row.data() : to, I);
      if (sorted(schedule.ih)) sort_for_bfloat16(copy.row.data(), I, to);
    });
    left.a = copy.rows.data(), left.row = I;
    return left;
  }

  // The rows of h in `slot`: as they are, or in a form of their own.
  INLINE RowsView<A> rows_of_h(const Strip<A>& strip, Copy& copy, int64_t slot) const {
    RowsView<A> left;
    left.a = strip.h.data() + strip.at(slot, 0) * Pp, left.row = Pp;
    if (has_operand) left.a = strip.operand.data();
    if (!h_as_it_is) transform(strip, copy, slot, left);
    return left;
  }

  // The rows that the second product of a step multiplies.
  RowsView<A> rows_of_second(const Strip<A>& strip, Copy& copy) const {
    RowsView<A> left;
    left.a = strip.second.data(), left.row = Pp;
    if (strip.second_split) left.take(strip.second_split, 0);
    if (!sorted(schedule.hh)) return left;
    copy.rows.allocate(strip.rows * Pp);
    for (int64_t r = 0; r < strip.rows; ++r)
      sort_for_bfloat16(strip.second.data() + r * Pp, P, copy.rows.data() + r * Pp);
    left.a = copy.rows.data();
    return left;
  }

 private:
  // In int8, sorted or masked they are copies, each thread's own.
  __attribute__((noinline)) void transform(const Strip<A>& strip, Copy& copy, int64_t slot, RowsView<A>& left) const {
    if (call.quantized()) {
      if (!copy.quantized) copy.quantized.allocate(strip.rows, P);
      for (int64_t r = 0; r < strip.rows; ++r) quantize(copy.quantized, left.a + r * Pp, r);
      left.take(copy.quantized);
    } else if (strip.h_split) {
      left.take(strip.h_split, strip.at(slot, 0));
    } else {
      copy_of_h(strip, copy, left.a);
      left.a = copy.rows.data();
      if (copy.split) left.take(copy.split, 0);
    }
  }

  static void quantize(const QuantizedRows& to, const A* from, int64_t r) {
    if constexpr (sizeof(A) == 4) to.put_row(from, r);
  }

  void copy_of_h(const Strip<A>& strip, Copy& copy, const A* h) const {
    copy.rows.allocate(strip.rows * Pp), copy.row.allocate(Pp);
    if (schedule.hh == Layout::pairs && !copy.split) copy.split.allocate(strip.rows, P, schedule.parts);
    for (int64_t r = 0; r < strip.rows; ++r) {
      const A* from = h + r * Pp;
      A* to = copy.rows.data() + r * Pp;
      if (call.h_mask) {
        A* masked = sorted(schedule.hh) ? copy.row.data() : to;
        for (int64_t j = 0; j < P; j += W) {
          const int n = int(std::min<int64_t>(W, P - j));
          (load(from + j) * coefficients<A>(call.h_mask, 0, strip.d, strip.b0 + r, j, n)).store(masked + j);
        }
        from = masked;
      }
      if (sorted(schedule.hh)) sort_for_bfloat16(from, P, to);
      else if (copy.split) copy.split.put_row(from, P, r, overflow);
    }
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
