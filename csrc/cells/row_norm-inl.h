// Layer norm (Ba, Kiros & Hinton 2016) of a row: of the pre-activations of some gates, of a state, or of any value
// inside a program. A row is what get(g, j, lanes) gives for gates g0..g1 and H units each.
#pragma once
#include "../machine/vectors-inl.h"

namespace RNNKERNELS_SET {
namespace {
// f(gate, unit, lanes) for every vector of a row.
template <class A, class F>
INLINE void for_row(int g0, int g1, int64_t H, const F& f) {
  for (int g = g0; g < g1; ++g)
    for (int64_t j = 0; j < H; j += Vec<A>::W) f(g, j, int(std::min<int64_t>(Vec<A>::W, H - j)));
}

// The sum of f(gate, unit, lanes) over a row, in four sums that do not wait for each other.
template <class A, class F>
INLINE A sum_of_row(int g0, int g1, int64_t H, const F& f) {
  constexpr int W = Vec<A>::W;
  Vec<A> sums[4] = {A(0), A(0), A(0), A(0)};
  for (int g = g0; g < g1; ++g) {
    int64_t j = 0;
    for (; j + 4 * W <= H; j += 4 * W)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[i] = sums[i] + f(g, j + i * W, W);
    for (; j < H; j += W) {
      const int lanes = int(std::min<int64_t>(W, H - j));
      sums[0] = sums[0] + first_of(f(g, j, lanes), lanes);
    }
  }
  return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// A row less its mean and over its deviation.
template <class A, class Get>
struct Normal {
  using V = Vec<A>;
  const Get& get;
  A n, mean, scale;
  Normal(int g0, int g1, int64_t H, double eps, const Get& row) : get(row), n(A((g1 - g0) * H)) {
    mean = sum_of_row<A>(g0, g1, H, get) / n;
    const A squares = sum_of_row<A>(g0, g1, H, [&](int g, int64_t j, int lanes) {
      const V v = get(g, j, lanes) - V(mean);
      return v * v;
    });
    scale = A(1) / std::sqrt(squares / n + A(eps));
  }
  INLINE V at(int g, int64_t j, int lanes) const { return (get(g, j, lanes) - V(mean)) * V(scale); }

  // The gradient of the row, d[(g - g0) * d_row + j], from that of its norm times `gain`, in place; adds up the
  // gradients of what is added to that (db) and of the gain, all in rows of d_row from gate g0 on.
  void back(int g0, int g1, int64_t H, const A* gain, A* d, int64_t d_row, A* db, A* dgain) const {
    V sum(A(0)), products(A(0));
    for_row<A>(g0, g1, H, [&](int g, int64_t j, int lanes) {
      const int64_t i = (g - g0) * d_row + j;
      const V x = at(g, j, lanes), delta = first_of(load(d + i), lanes), v = delta * load(gain + i);
      sum = sum + v, products = products + v * x;
      (load(db + i) + delta).store(db + i), (load(dgain + i) + delta * x).store(dgain + i);
      v.store(d + i);
    });
    const V a(total(sum) / n), b(total(products) / n);
    for_row<A>(g0, g1, H, [&](int g, int64_t j, int lanes) {
      A* to = d + (g - g0) * d_row + j;
      first_of((load(to) - a - at(g, j, lanes) * b) * V(scale), lanes).store(to);
    });
  }
};
template <class A, class Get>
Normal<A, Get> normal(int g0, int g1, int64_t H, double eps, const Get& get) {
  return {g0, g1, H, eps, get};
}
}  // namespace
}  // namespace RNNKERNELS_SET
