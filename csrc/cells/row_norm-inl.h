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

// The sums of f(row, gate, unit, lanes) over R rows, each in four sums that do not wait for each other.
template <class A, int R, class F>
INLINE void sum_of_rows(int g0, int g1, int64_t H, A (&sums)[R], const F& f) {
  constexpr int W = Vec<A>::W;
  Vec<A> parts[R][4];
#pragma GCC unroll 8
  for (int i = 0; i < 4 * R; ++i) parts[i / 4][i % 4] = Vec<A>(A(0));
  for (int g = g0; g < g1; ++g) {
    int64_t j = 0;
    for (; j + 4 * W <= H; j += 4 * W)
#pragma GCC unroll 8
      for (int i = 0; i < 4 * R; ++i) parts[i / 4][i % 4] = parts[i / 4][i % 4] + f(i / 4, g, j + i % 4 * W, W);
    for (; j < H; j += W) {
      const int lanes = int(std::min<int64_t>(W, H - j));
      for (int r = 0; r < R; ++r) parts[r][0] = parts[r][0] + first_of(f(r, g, j, lanes), lanes);
    }
  }
  for (int r = 0; r < R; ++r) sums[r] = total((parts[r][0] + parts[r][1]) + (parts[r][2] + parts[r][3]));
}

template <class A, class F>
INLINE A sum_of_row(int g0, int g1, int64_t H, const F& f) {
  A sum[1];
  sum_of_rows<A, 1>(g0, g1, H, sum, [&](int, int g, int64_t j, int lanes) { return f(g, j, lanes); });
  return sum[0];
}

// Means and inverse deviations of R rows get(row, gate, unit, lanes): several, because a single one is all latency.
template <class A, int R, class Get>
INLINE void moments(int g0, int g1, int64_t H, double eps, A (&mean)[R], A (&scale)[R], const Get& get) {
  const A n = A((g1 - g0) * H);
  sum_of_rows<A, R>(g0, g1, H, mean, get);
  for (int r = 0; r < R; ++r) mean[r] /= n;
  sum_of_rows<A, R>(g0, g1, H, scale, [&](int r, int g, int64_t j, int lanes) {
    const Vec<A> v = get(r, g, j, lanes) - Vec<A>(mean[r]);
    return v * v;
  });
  for (int r = 0; r < R; ++r) scale[r] = A(1) / std::sqrt(scale[r] / n + A(eps));
}

// A row less its mean and over its deviation.
template <class A, class Get>
struct Normal {
  using V = Vec<A>;
  const Get& get;
  A n, mean, scale;
  Normal(int g0, int g1, int64_t H, double eps, const Get& row) : get(row), n(A((g1 - g0) * H)) {
    A means[1], scales[1];
    moments<A, 1>(g0, g1, H, eps, means, scales, [&](int, int g, int64_t j, int lanes) { return get(g, j, lanes); });
    mean = means[0], scale = scales[0];
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
