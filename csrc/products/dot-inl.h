// Products with weights that are read where they lie: for a single row, or few steps.
#pragma once
#include "../machine/vectors-inl.h"

namespace RNNKERNELS_SET {
namespace {
// How the numbers of a row of weights are read: one vector of them, or half of what two hold.
template <class A>
struct Direct {
  const Stored<A>& w;
  INLINE Vec<A> one(int64_t i, int lanes) const { return load_first(w.at(i), lanes); }
  template <int HALF>
  INLINE Vec<A> half(int64_t i) const {
    return load(w.at(i) + HALF * Vec<A>::W);
  }
};
template <class A>
struct Half {
  const Stored<A>& w;
  INLINE Vec<A> one(int64_t i, int lanes) const { return w.get_16(i, lanes, Storage::float16); }
  template <int HALF>
  INLINE Vec<A> half(int64_t i) const {
    return one(i + HALF * Vec<A>::W, Vec<A>::W);
  }
};
// bf16: of two vectors the even numbers, or the odd ones.
template <class A>
struct Brain {
  const Stored<A>& w;
  INLINE Vec<A> one(int64_t i, int lanes) const { return w.get_16(i, lanes, Storage::bfloat16); }
  template <int HALF>
  INLINE Vec<A> half(int64_t i) const {
    Vec<A> pair[2];
    floats_of_pairs(w.bits(i), pair[0], pair[1]);
    return pair[HALF];
  }
};

// Rows of a tile at most, and the weight rows that it takes: as many sums as registers hold beside the factors, and
// enough to hide the latency of adding to one.
constexpr int kDotRows = kRegisters == 32 ? 4 : 3;
template <class A>
constexpr int dot_columns(int MR) {
  return MR > 2 || (kRegisters < 32 && MR == 2) ? std::min(4, Vec<A>::W) : Vec<A>::W / MR;
}

// sums[m * sums_row + j] = product of row m with row j of the weights, for MR rows and n <= U weight rows from number
// `first` on.
template <int MR, class A, class Get>
__attribute__((noinline)) void dot_tile(const A* a, int64_t row, const Get& get, int64_t first, int n, int64_t K,
                                        A* sums, int64_t sums_row) {
  using V = Vec<A>;
  constexpr int W = V::W, U = dot_columns<A>(MR);
  int64_t rows[U];
  for (int j = 0; j < U; ++j) rows[j] = first + std::min(j, n - 1) * K;
  V acc[MR * U];
#pragma GCC unroll 16
  for (int i = 0; i < MR * U; ++i) acc[i] = V(A(0));
  auto add = [&](const V(&x)[MR], auto&& weights) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int j = 0; j < U; ++j) {
      const V w = weights(rows[j]);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) acc[m * U + j] = acc[m * U + j] + x[m] * w;
    }
  };
  V x[MR];
  int64_t k = 0;
  for (; k + 2 * W <= K; k += 2 * W) {
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) x[m] = load(a + m * row + k);
    add(x, [&](int64_t i) __attribute__((always_inline)) { return get.template half<0>(i + k); });
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) x[m] = load(a + m * row + k + W);
    add(x, [&](int64_t i) __attribute__((always_inline)) { return get.template half<1>(i + k); });
  }
  for (; k < K; k += W) {
    const int lanes = int(std::min<int64_t>(W, K - k));
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) x[m] = load_first(a + m * row + k, lanes);
    add(x, [&](int64_t i) __attribute__((always_inline)) { return get.one(i + k, lanes); });
  }
  constexpr int ALL = MR * U == W ? W : U;  // sums that are made at once
#pragma GCC unroll 4
  for (int i = 0; i < MR * U; i += ALL) {
    alignas(kBytes) A out[W];
    reduce<ALL>(acc + i).store(out);
    for (int m = i / U; m < (i + ALL) / U; ++m) {
      if (n == U) __builtin_memcpy(sums + m * sums_row, out + m * U - i, sizeof(A) * U);
      else
        for (int j = 0; j < std::min(n, U); ++j) sums[m * sums_row + j] = out[m * U - i + j];
    }
  }
}

// The same for any number of rows and weight rows.
template <class A, class Get>
void dot_rows(int64_t rows, const A* a, int64_t row, const Get& get, int64_t first, int64_t n, int64_t K, A* sums,
              int64_t sums_row) {
  // Rows m0..m1, MR at a time. Weight rows stay in the first-level cache for all of them, while the next ones are
  // fetched.
  auto block = [&](auto mr, int64_t m0, int64_t m1) {
    constexpr int MR = decltype(mr)::value, U = dot_columns<A>(MR);
    for (int64_t j = 0; m0 < m1 && j < n; j += U) {
      const int64_t next = j + U < n && m1 - m0 > MR ? std::min<int64_t>(U, n - j - U) * K : 0;
      for (int64_t m = m0; m < m1; m += MR) {
        dot_tile<MR>(a + m * row, row, get, first + j * K, int(std::min<int64_t>(U, n - j)), K, sums + m * sums_row + j,
                     sums_row);
        const int64_t ahead = first + (j + U) * K;
        get.w.prefetch(ahead + next * (m - m0) / (m1 - m0), ahead + next * (m + MR - m0) / (m1 - m0));
      }
    }
  };
  // Tiles of two sizes, which differ by a row, instead of full ones and a small one.
  const int64_t tiles = std::max<int64_t>(1, (rows + kDotRows - 1) / kDotRows), small = rows / tiles,
                larger = rows % tiles * (small + 1);
  auto of_size = [&](int64_t size, int64_t m0, int64_t m1) {
    if (size == 1) block(std::integral_constant<int, 1>{}, m0, m1);
    if (size == 2) block(std::integral_constant<int, 2>{}, m0, m1);
    if (size == 3) block(std::integral_constant<int, 3>{}, m0, m1);
    if (size == 4 && kDotRows == 4) block(std::integral_constant<int, kDotRows>{}, m0, m1);
  };
  of_size(small + 1, 0, larger);
  of_size(small, larger, rows);
}

// sums[m][j] = row m times the weights' row of K numbers from `first + j * K` on, as they are stored. For weights in
// bf16 the rows are sorted, see below.
template <class A>
void dot_product(int64_t rows, const A* a, int64_t row, const Stored<A>& w, int64_t first, int64_t n, int64_t K,
                 A* sums, int64_t sums_row) {
  if (w.direct()) dot_rows(rows, a, row, Direct<A>{w}, first, n, K, sums, sums_row);
  else if (w.storage() == Storage::float16) dot_rows(rows, a, row, Half<A>{w}, first, n, K, sums, sums_row);
  else dot_rows(rows, a, row, Brain<A>{w}, first, n, K, sums, sums_row);
}

// A row for a product with weights in bf16: the even numbers of every two vectors before the odd ones.
template <class A>
void sort_for_bfloat16(const A* from, int64_t K, A* to) {
  constexpr int W = Vec<A>::W;
  int64_t k = 0;
  for (; k + 2 * W <= K; k += 2 * W)
    for (int i = 0; i < W; ++i) to[k + i] = from[k + 2 * i], to[k + W + i] = from[k + 2 * i + 1];
  std::copy(from + k, from + K, to + k);
}
}  // namespace
}  // namespace RNNKERNELS_SET
