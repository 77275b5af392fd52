// The GRU cell: n = act(x_n + r q), q = W_hn h + b_hn, h' = (1 - z) n + z h (Cho et al. 2014 as in cuDNN); gates r, z,
// n.
#pragma once
#include "activations-inl.h"

namespace RNNKERNELS_SET {
namespace {
struct Gru {
  static constexpr int G = 3, SPLIT = 1, STATES = 1, KEPT = 4, PHASES = 1;
  static constexpr bool PROJECTION = false, MIXES = true;

  // sums: x + r for the gates r and z, and q for n, whose x comes in x_split. kept: r, z, n, q.
  template <class F, class V>
  static INLINE void forward(F f, const V* sums, const V* x_split, V& h, V&, V* kept) {
    V r = f.gate(sums[0]), z = f.gate(sums[1]), q = sums[2], n = f.act(x_split[0] + r * q);
    h = n + z * (h - n);
    kept[0] = r, kept[1] = z, kept[2] = n, kept[3] = q;
  }

  // dh: gradient of h'. Out: d, the gradients of x's and r's pre-activations (r, z, n of x, n of r).
  template <class F, class V>
  static INLINE void backward(F f, const V* kept, V, V h, V, V, V dh, V&, V* d, V& dh_direct) {
    V r = kept[0], z = kept[1], n = kept[2], q = kept[3];
    V dn = f.act_back(dh * (V(1) - z), n);
    d[0] = f.gate_back(dn * q, r);
    d[1] = f.gate_back(dh * (h - n), z);
    d[2] = dn;
    d[3] = dn * r;
    dh_direct = dh * z;
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
