// The LSTM cell: c' = f c + i g, h' = o act(c') (Hochreiter & Schmidhuber 1997, Gers et al. 2000); gates i, f, g, o.
#pragma once
#include "activations-inl.h"

namespace RNNKERNELS_SET {
namespace {
struct Lstm {
  static constexpr int G = 4, SPLIT = 0, STATES = 2, KEPT = 4, PHASES = 1, OUTPUT = 3;
  static constexpr bool PROJECTION = true, MIXES = false;

  // sums: x + r per gate. kept: the activated gates.
  template <class F, class V>
  static INLINE void forward(F of, const V* sums, const V*, V& h, V& c, V* kept) {
    V i = of.gate(sums[0]), f = of.gate(sums[1]), g = of.act(sums[2]), o = of.gate(sums[3]);
    c = f * c + i * g;
    h = o * of.act(c);
    kept[0] = i, kept[1] = f, kept[2] = g, kept[3] = o;
  }

  // dh, dc: gradients of h' and c'. Out: d, the gradients of the pre-activations; dc, that of c.
  template <class F, class V>
  static INLINE void backward(F of, const V* kept, V, V, V c, V c_new, V dh, V& dc, V* d, V& dh_direct) {
    V y = of.act(c_new);
    backward_from(of, kept, c, y, of.act_back(dh * kept[OUTPUT], y), dh, dc, d);
    dh_direct = V(0);
  }
  // The same from y, which multiplies o, and from what reaches c' through it.
  template <class F, class V>
  static INLINE void backward_from(F of, const V* kept, V c, V y, V dc_output, V dh, V& dc, V* d) {
    V i = kept[0], f = kept[1], g = kept[2], o = kept[OUTPUT], dc_new = dc + dc_output;
    d[0] = of.gate_back(dc_new * g, i);
    d[1] = of.gate_back(dc_new * c, f);
    d[2] = of.act_back(dc_new * i, g);
    d[3] = of.gate_back(dh * y, o);
    dc = dc_new * f;
  }

  // c' from what training keeps, and the old c.
  template <class V>
  static INLINE V new_c(const V* kept, V c) {
    return kept[1] * c + kept[0] * kept[2];
  }

  // The output before a projection, which training does not keep.
  template <class F, class V>
  static INLINE V output(F of, const V* kept, V c_new) {
    return kept[3] * of.act(c_new);
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
