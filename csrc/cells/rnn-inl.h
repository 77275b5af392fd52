// The RNN cell: h' = act(x + r) (Elman 1990).
#pragma once
#include "activations-inl.h"

namespace RNNKERNELS_SET {
namespace {
struct Rnn {
  static constexpr int G = 1, SPLIT = 0, STATES = 1, KEPT = 0, PHASES = 1;
  static constexpr bool PROJECTION = false, MIXES = false;

  // sums: x + r per gate. The new h goes to h; nothing is kept, since the derivative follows from the output.
  template <class F, class V>
  static INLINE void forward(F f, const V* sums, const V*, V& h, V&, V*) {
    h = f.act(sums[0]);
  }

  // dh: gradient of h'. Out: d, the gradients of the pre-activations, and the gradient that reaches h directly.
  template <class F, class V>
  static INLINE void backward(F f, const V*, V h_new, V, V, V, V dh, V&, V* d, V& dh_direct) {
    d[0] = f.act_back(dh, h_new);
    dh_direct = V(0);
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
