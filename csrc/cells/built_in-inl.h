// The arithmetic of the built-in cells. Generated from rnnkernels/cells/built_in.py by csrc/cells/generate.py: edit
// those, and run `make generate`.
#pragma once
#include "activations-inl.h"

namespace RNNKERNELS_SET {
namespace {
// h' = tanh(x.h + r.h)
struct Rnn {
  static constexpr int G = 1, SPLIT = 0, STATES = 1, KEPT = 0, PHASES = 1, LATE = 0;
  static constexpr bool PROJECTION = false, MIXES = false;
  static constexpr bool is_late(int) { return false; }  // of kept[k]: `finish` gives it

  // sums: x + r.
  template <class F, class V>
  static INLINE void forward([[maybe_unused]] F f, const V* sums, const V*, V& h, V&, V*, V*) {
    const V v0 = f.act(sums[0]);
    h = v0;
  }

  // dh: gradient of the new h. Out: d, those of the pre-activations; dh_direct, that of the old without the products'
  // share.
  template <class F, class V>
  static INLINE void backward([[maybe_unused]] F f, const V*, V h_new, V, V, V, V dh, V&, V* d, V& dh_direct) {
    const V v0 = f.act_back(dh, h_new);
    d[0] = v0;
    dh_direct = V(0);
  }
};

// i, f, o = s(x + r);  g = tanh(x.g + r.g);  c' = f c + i g;  h' = o tanh(c')
struct Lstm {
  static constexpr int G = 4, SPLIT = 0, STATES = 2, KEPT = 4, PHASES = 1, LATE = 2, OUTPUT = 3;
  static constexpr bool PROJECTION = true, MIXES = false;
  static constexpr bool is_late(int) { return false; }  // of kept[k]: `finish` gives it

  // sums: x + r. kept: i, f, g, o. late: for `finish`.
  template <class F, class V>
  static INLINE void forward([[maybe_unused]] F f, const V* sums, const V*, V&, V& c, V* kept, V* late) {
    const V v0 = f.gate(sums[0]);
    const V v1 = f.gate(sums[1]);
    const V v2 = f.act(sums[2]);
    const V v3 = f.gate(sums[3]);
    const V v4 = c * v1;
    const V v5 = v0 * v2;
    const V v6 = v4 + v5;
    kept[0] = v0;
    kept[1] = v1;
    kept[2] = v2;
    kept[3] = v3;
    late[0] = v3;
    late[1] = v6;
    c = v6;
  }

  // The new h.
  template <class F, class V>
  static INLINE V finish([[maybe_unused]] F f, const V* late, V*) {
    const V v0 = f.act(late[1]);
    const V v1 = late[0] * v0;
    return v1;
  }

  // dh, dc: gradients of the new h and c. Out: d, those of the pre-activations; dh_direct and dc, those of the old
  // without the products' share.
  template <class F, class V>
  static INLINE void backward([[maybe_unused]] F f, const V* kept, V, V, V c, V c_new, V dh, V& dc, V* d,
                              V& dh_direct) {
    const V v0 = kept[3] * dh;
    const V v1 = f.act(c_new);
    const V v2 = f.act_back(v0, v1);
    const V v3 = dc + v2;
    const V v4 = kept[2] * v3;
    const V v5 = f.gate_back(v4, kept[0]);
    const V v6 = c * v3;
    const V v7 = f.gate_back(v6, kept[1]);
    const V v8 = kept[0] * v3;
    const V v9 = f.act_back(v8, kept[2]);
    const V v10 = v1 * dh;
    const V v11 = f.gate_back(v10, kept[3]);
    const V v12 = kept[1] * v3;
    d[0] = v5;
    d[1] = v7;
    d[2] = v9;
    d[3] = v11;
    dh_direct = V(0);
    dc = v12;
  }

  // The same from y, which multiplies the output gate, and from what reaches the new c through it.
  template <class F, class V>
  static INLINE void backward_from([[maybe_unused]] F f, const V* kept, V c, V y, V dc_output, V dh, V& dc, V* d) {
    const V v0 = dc + dc_output;
    const V v1 = kept[2] * v0;
    const V v2 = f.gate_back(v1, kept[0]);
    const V v3 = c * v0;
    const V v4 = f.gate_back(v3, kept[1]);
    const V v5 = kept[0] * v0;
    const V v6 = f.act_back(v5, kept[2]);
    const V v7 = y * dh;
    const V v8 = f.gate_back(v7, kept[3]);
    const V v9 = kept[1] * v0;
    d[0] = v2;
    d[1] = v4;
    d[2] = v6;
    d[3] = v8;
    dc = v9;
  }

  // The new c from what training keeps, and the old c.
  template <class V>
  static INLINE V new_c(const V* kept, V c) {
    const V v0 = c * kept[1];
    const V v1 = kept[0] * kept[2];
    const V v2 = v0 + v1;
    return v2;
  }

  // The new h from what training keeps, and from c as it enters the output.
  template <class F, class V>
  static INLINE V output([[maybe_unused]] F f, const V* kept, V c_new) {
    const V v0 = f.act(c_new);
    const V v1 = kept[3] * v0;
    return v1;
  }
};

// reset, z = s(x + r);  n = tanh(x.n + reset r.n);  h' = n + z (h - n)
struct Gru {
  static constexpr int G = 3, SPLIT = 1, STATES = 1, KEPT = 4, PHASES = 1, LATE = 3;
  static constexpr bool PROJECTION = false, MIXES = true;
  static constexpr bool is_late(int k) { return k == 2; }  // of kept[k]: `finish` gives it

  // sums: x + r; of n r, whose x is in x_split. kept: r, z, n, q. late: for `finish`.
  template <class F, class V>
  static INLINE void forward([[maybe_unused]] F f, const V* sums, const V* x_split, V& h, V&, V* kept, V* late) {
    const V v0 = f.gate(sums[0]);
    const V v1 = f.gate(sums[1]);
    const V v2 = sums[2] * v0;
    const V v3 = x_split[0] + v2;
    kept[0] = v0;
    kept[1] = v1;
    kept[3] = sums[2];
    late[0] = v3;
    late[1] = v1;
    late[2] = h;
  }

  // The new h.
  template <class F, class V>
  static INLINE V finish([[maybe_unused]] F f, const V* late, V* kept) {
    const V v0 = f.act(late[0]);
    const V v1 = late[2] - v0;
    const V v2 = late[1] * v1;
    const V v3 = v0 + v2;
    kept[2] = v0;
    return v3;
  }

  // dh: gradient of the new h. Out: d, those of the pre-activations; dh_direct, that of the old without the products'
  // share.
  template <class F, class V>
  static INLINE void backward([[maybe_unused]] F f, const V* kept, V, V h, V, V, V dh, V&, V* d, V& dh_direct) {
    const V v0 = V(1) - kept[1];
    const V v1 = dh * v0;
    const V v2 = f.act_back(v1, kept[2]);
    const V v3 = kept[0] * v2;
    const V v4 = kept[3] * v2;
    const V v5 = f.gate_back(v4, kept[0]);
    const V v6 = h - kept[2];
    const V v7 = v6 * dh;
    const V v8 = f.gate_back(v7, kept[1]);
    const V v9 = kept[1] * dh;
    d[0] = v5;
    d[1] = v8;
    d[2] = v2;
    d[3] = v3;
    dh_direct = v9;
  }
};

// reset, z = s(x + r);  n = tanh(x.n + W_hn (reset h) + b_hn);  h' = n + z (h - n)
struct GruResetBefore {
  static constexpr int G = 3, SPLIT = 0, STATES = 1, KEPT = 3, PHASES = 2, LATE = 0;
  static constexpr bool PROJECTION = false, MIXES = true;
  static constexpr bool is_late(int) { return false; }  // of kept[k]: `finish` gives it

  // sums: x + r, and of the last gate x; they become what `forward` reads. Gives what the inner product multiplies,
  // from the h (masked, where it is) that the first product has multiplied.
  template <class F, class V>
  static INLINE V first([[maybe_unused]] F f, V* sums, V h) {
    const V v0 = f.gate(sums[1]);
    const V v1 = f.gate(sums[0]);
    const V v2 = v1 * h;
    sums[0] = v1;
    sums[1] = v0;
    return v2;
  }

  // product: gradient of the inner product's operand, where h is that of `first`; becomes h's share of it. Gives the
  // gradient of r's pre-activation.
  template <class F, class V>
  static INLINE V backward_first([[maybe_unused]] F f, V r, V h, V& product) {
    const V v0 = h * product;
    const V v1 = f.gate_back(v0, r);
    const V v2 = r * product;
    product = v2;
    return v1;
  }

  // sums: what `first` left, and of the last gate the sums of both products. kept: r, z, n.
  template <class F, class V>
  static INLINE void forward([[maybe_unused]] F f, const V* sums, const V*, V& h, V&, V* kept, V*) {
    const V v0 = f.act(sums[2]);
    const V v1 = h - v0;
    const V v2 = sums[1] * v1;
    const V v3 = v0 + v2;
    kept[0] = sums[0];
    kept[1] = sums[1];
    kept[2] = v0;
    h = v3;
  }

  // dh: gradient of the new h. Out: d, those of the pre-activations; dh_direct, that of the old without the products'
  // share.
  template <class F, class V>
  static INLINE void backward([[maybe_unused]] F f, const V* kept, V, V h, V, V, V dh, V&, V* d, V& dh_direct) {
    const V v0 = V(1) - kept[1];
    const V v1 = dh * v0;
    const V v2 = f.act_back(v1, kept[2]);
    const V v3 = h - kept[2];
    const V v4 = v3 * dh;
    const V v5 = f.gate_back(v4, kept[1]);
    const V v6 = kept[1] * dh;
    d[0] = V(0);
    d[1] = v5;
    d[2] = v2;
    dh_direct = v6;
  }
};
}  // namespace
}  // namespace RNNKERNELS_SET
