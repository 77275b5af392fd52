// The GRU cell that resets before the product: n = act(x_n + W_hn (r h) + b_hn), h' = (1 - z) n + z h (Cho et al.
// 2014); gates r, z, n. Its step has two products: `first` comes between them, `forward` after the second one.
#pragma once
#include "activations-inl.h"

namespace RNNKERNELS_SET {
namespace {
struct GruResetBefore {
  static constexpr int G = 3, SPLIT = 0, STATES = 1, KEPT = 3, PHASES = 2;
  static constexpr bool PROJECTION = false, MIXES = true;

  // sums: x + r of the gates r and z, which they become. Gives what the second product multiplies, from the h (masked,
  // where it is) that the first one has multiplied.
  template <class F, class V>
  static INLINE V first(F f, V* sums, V h) {
    sums[0] = f.gate(sums[0]), sums[1] = f.gate(sums[1]);
    return sums[0] * h;
  }

  // sums: the gates r and z, and x + r of n. kept: r, z, n.
  template <class F, class V>
  static INLINE void forward(F f, const V* sums, const V*, V& h, V&, V* kept) {
    V r = sums[0], z = sums[1], n = f.act(sums[2]);
    h = n + z * (h - n);
    kept[0] = r, kept[1] = z, kept[2] = n;
  }

  // dh: gradient of h'. Out: d, the gradients of the pre-activations; that of r comes from `backward_first`.
  template <class F, class V>
  static INLINE void backward(F f, const V* kept, V, V h, V, V, V dh, V&, V* d, V& dh_direct) {
    V z = kept[1], n = kept[2];
    d[0] = V(0);
    d[1] = f.gate_back(dh * (h - n), z);
    d[2] = f.act_back(dh * (V(1) - z), n);
    dh_direct = dh * z;
  }

  // product: gradient of r h, where h is that of `first`; becomes h's share of it. Gives the gradient of r's
  // pre-activation.
  template <class F, class V>
  static INLINE V backward_first(F f, V r, V h, V& product) {
    V d = f.gate_back(product * h, r);
    product = product * r;
    return d;
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
