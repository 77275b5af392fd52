// The results of the forward pass that the backward pass reads, for one direction: inputs, states and gates by step t
// and row b.
#pragma once
#include "../cells/run_program-inl.h"
#include "../cells/stages-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
struct Tape {
  using V = Vec<A>;

  const LayerCall& call;
  const int64_t d;
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P, D = call.D;
  const bool back = call.backwards(d);
  Stored<A> stored(const void* data) const { return {data, call.storage}; }
  const Stored<A> x = stored(call.x), y = stored(call.y), gates = stored(call.gates);
  const A* cells = static_cast<const A*>(call.cells);
  static constexpr Storage accumulate = sizeof(A) == 8 ? Storage::float64 : Storage::float32;
  const int64_t planes = call.planes();
  const Scratch<A> vectors = vectors_of(call, d);  // of a program, [vector][Hp]

  static Scratch<A> vectors_of(const LayerCall& call, int64_t d) {
    Scratch<A> rows;
    const size_t n = call.cell->program ? call.cell->program->vectors.size() : 0;
    rows.allocate(int64_t(n) * padded<A>(call.H), true);
    for (size_t k = 0; k < n; ++k)
      Stored<A>(call.weight(d, call.vector(int(k))), call.storage)
          .get_row(0, rows.data() + int64_t(k) * padded<A>(call.H), call.H);
    return rows;
  }

  int64_t time(int64_t step) const { return back ? step : T - 1 - step; }  // the backward pass goes the other way
  int64_t before(int64_t t) const { return back ? t + 1 : t - 1; }
  int64_t after(int64_t t) const { return back ? t - 1 : t + 1; }
  bool first(int64_t t, int64_t b) const { return back ? t == call.length(d, b) - 1 : t == 0; }
  bool alive(int64_t t, int64_t b) const { return t < call.length(d, b); }

  // True if the state after step t was reset before it entered the next one.
  bool reset_after(int64_t t, int64_t b) const {
    const int64_t next = after(t);
    return call.reset && next >= 0 && next < T && call.resets(d, next, b);
  }

  int64_t y_at(int64_t t, int64_t b) const { return ((t * B + b) * D + d) * P; }
  int64_t dy_at(int64_t t, int64_t b) const { return t * call.dy_stride_T + b * call.dy_stride_B + d * P; }
  int64_t cells_at(int64_t t, int64_t b) const { return ((d * T + t) * B + b) * H; }

  // State k (0: h) that entered step t of row b, and the one after it, from unit j on.
  V state_before(int k, int64_t t, int64_t b, int64_t j, int n) const {
    if (call.lengths && !alive(t, b)) return V(A(0));  // backwards in time, the step before may be none
    if (call.resets(d, t, b)) return given(call.reset_states[k], k, b, j, n);
    if (first(t, b)) return given(call.states[k], k, b, j, n);
    return state_after(k, before(t), b, j, n);
  }
  V given(const void* state, int k, int64_t b, int64_t j, int n) const {
    return state ? stored(state).get((d * B + b) * (k ? H : P) + j, n) : V(A(0));
  }
  V state_after(int k, int64_t t, int64_t b, int64_t j, int n) const {
    const int64_t history = call.history(k);
    if (history < 0) return y.get(y_at(t, b) + j, n);
    return load_first(cells + history * D * T * B * H + cells_at(t, b) + j, n);
  }
  // A plane that the forward pass kept.
  V plane_at(int64_t t, int64_t b, int k, int64_t j, int n) const {
    return gates.get((((d * T + t) * B + b) * planes + k) * H + j, n);
  }

  // Of a built-in cell that keeps no planes, the new h as the cell itself made it. Where zoneout has mixed it with the
  // old one, it comes from what is left of it: where nothing is, it has no gradient.
  V h_new(int64_t t, int64_t b, int64_t j, int n) const {
    const V h = y.get(y_at(t, b) + j, n);
    if (!call.zone[0]) return h;
    const V one(1), zone = coefficients<A>(call.zone[0], t, d, b, j, n), share = one - zone;
    if (call.zone[0].bools) return where_positive(share, h);
    const V old = zone * state_before(0, t, b, j, n), own = where_positive(share * share, (h - old) / share);
    if (call.act != Activation::relu && call.act != Activation::hard_sigmoid) return own;
    // At a corner, rounding must not make a gradient: y and the old h are each rounded, and so are their products.
    const bool brain = call.storage == Storage::bfloat16, half = call.storage == Storage::float16;
    const A unit = brain  ? A(0x1p-8)
                   : half ? A(0x1p-11)
                          : std::numeric_limits<A>::epsilon() / 2,
            least = half ? A(0x1p-24) : std::numeric_limits<A>::min();
    const V noise = V(3 * unit) * max(max(h, V(0) - h), max(old, V(0) - old)) + V(least);
    const V above = relu_back(own, own * share - noise);
    if (call.act == Activation::relu) return above;
    return one - where_positive((one - above) * share - noise, one - above);
  }

  // Where planes and states of a living row lie: null where they are stored in another type or come from elsewhere.
  struct Row {
    const A *planes = nullptr, *h_before = nullptr, *c_before = nullptr, *c_after = nullptr;
    int64_t plane = 0, row = 0;  // numbers from one plane, and from one row's planes, to the next
    // Plane k from unit j on; that of the next row is fetched.
    INLINE V get(int k, int64_t j, int n) const {
      const A* const from = planes + k * plane + j;
      __builtin_prefetch(from + row);
      return load_first(from, n);
    }
  };
  Row row_at(int64_t t, int64_t b) const {
    Row at;
    const bool inner = !first(t, b) && !call.resets(d, t, b);
    if (gates && gates.direct()) at.planes = gates.at(((d * T + t) * B + b) * planes * H);
    if (inner && y.direct()) at.h_before = y.at(y_at(before(t), b));
    if (inner && cells) at.c_before = cells + cells_at(before(t), b);
    if (cells) at.c_after = cells + cells_at(t, b);
    at.plane = H, at.row = planes * H;
    return at;
  }

  // States and planes of the whole batch at once. The states before a step lie so unless rows differ.
  bool states_lie_in_rows(int64_t t) const { return !call.reset && !first(t, 0) && !(call.lengths && back); }
  StoredRows<A> rows_of_state_after(int k, int64_t t) const {
    const int64_t history = call.history(k);
    if (history < 0) return {y, y_at(t, 0), D * P};
    return {{cells + history * D * T * B * H, accumulate}, cells_at(t, 0), H};
  }
  StoredRows<A> rows_of_plane(int64_t t, int k) const {
    return {gates, ((d * T + t) * B * planes + k) * H, planes * H};
  }

  void get_x(int64_t t, int64_t b, A* to) const {
    x.get_row(call.group(d) * call.x_stride_X + t * call.x_stride_T + b * call.x_stride_B, to, I);
  }
  // In whole vectors: h that entered the recurrent product.
  void get_h_before(int64_t t, int64_t b, A* to) const {
    for (int64_t j = 0; j < P; j += V::W) {
      const int n = int(std::min<int64_t>(V::W, P - j));
      const V h = state_before(0, t, b, j, n);
      (call.h_mask ? h * coefficients<A>(call.h_mask, 0, d, b, j, n) : h).store(to + j);
    }
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
