// Products with weights that are read where they lie: for a single row, or few steps.
#pragma once
#include "../machine/vectors-inl.h"

namespace RNNKERNELS_SET {
namespace {
// How the numbers of a row of weights are read: one vector of them, or two at once.
template <class A>
struct Direct {
  const Stored<A>& w;
  INLINE Vec<A> one(int64_t i, int lanes) const { return load_first(w.at(i), lanes); }
  INLINE void two(int64_t i, Vec<A>& first, Vec<A>& second) const {
    first = load(w.at(i)), second = load(w.at(i) + Vec<A>::W);
  }
};
template <class A>
struct Half {
  const Stored<A>& w;
  INLINE Vec<A> one(int64_t i, int lanes) const { return w.get_16(i, lanes, Storage::float16); }
  INLINE void two(int64_t i, Vec<A>& first, Vec<A>& second) const {
    first = one(i, Vec<A>::W), second = one(i + Vec<A>::W, Vec<A>::W);
  }
};
// bf16: of two vectors the even numbers and the odd ones.
template <class A>
struct Brain {
  const Stored<A>& w;
  INLINE Vec<A> one(int64_t i, int lanes) const { return w.get_16(i, lanes, Storage::bfloat16); }
  INLINE void two(int64_t i, Vec<A>& even, Vec<A>& odd) const { floats_of_pairs(w.bits(i), even, odd); }
};

// sums[m * sums_row + j] = product of row m with row j of the weights, for MR rows and n <= W / MR weight rows from
// number `first` on.
template <int MR, class A, class Get>
__attribute__((noinline)) void dot_tile(const A* a, int64_t row, const Get& get, int64_t first, int n, int64_t K,
                                        A* sums, int64_t sums_row) {
  using V = Vec<A>;
  constexpr int W = V::W, U = W / MR;
  int64_t rows[U];
  for (int j = 0; j < U; ++j) rows[j] = first + std::min(j, n - 1) * K;
  V acc[MR * U];
#pragma GCC unroll 16
  for (int i = 0; i < MR * U; ++i) acc[i] = V(A(0));
  int64_t k = 0;
  for (; k + 2 * W <= K; k += 2 * W) {
    // The factor with fewer rows is held in registers.
    constexpr bool FEW = MR < U;
    V held[FEW ? MR : U][2];
#pragma GCC unroll 8
    for (int i = 0; i < (FEW ? MR : U); ++i) {
      if constexpr (FEW) held[i][0] = load(a + i * row + k), held[i][1] = load(a + i * row + k + W);
      else get.two(rows[i] + k, held[i][0], held[i][1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < (FEW ? U : MR); ++i) {
      V v, w;
      if constexpr (FEW) get.two(rows[i] + k, v, w);
      else v = load(a + i * row + k), w = load(a + i * row + k + W);
#pragma GCC unroll 8
      for (int j = 0; j < (FEW ? MR : U); ++j) {
        V& sum = acc[FEW ? j * U + i : i * U + j];
        sum = sum + v * held[j][0];
        sum = sum + w * held[j][1];
      }
    }
  }
  for (; k < K; k += W) {
    const int lanes = int(std::min<int64_t>(W, K - k));
    V x[MR];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) x[m] = load_first(a + m * row + k, lanes);
#pragma GCC unroll 16
    for (int j = 0; j < U; ++j) {
      V v = get.one(rows[j] + k, lanes);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) acc[m * U + j] = acc[m * U + j] + x[m] * v;
    }
  }
  alignas(kBytes) A out[W];
  reduce(acc).store(out);
  for (int m = 0; m < MR; ++m) {
    if (n == U) __builtin_memcpy(sums + m * sums_row, out + m * U, sizeof(A) * U);
    else
      for (int j = 0; j < std::min(n, U); ++j) sums[m * sums_row + j] = out[m * U + j];
  }
}

// The same for any number of rows and weight rows.
template <class A, class Get>
void dot_rows(int64_t rows, const A* a, int64_t row, const Get& get, int64_t first, int64_t n, int64_t K, A* sums,
              int64_t sums_row) {
  // Rows m0..m1, MR at a time, with as many weight rows as fill a vector with their sums. Weight rows stay in the
  // first-level cache for all of them, while the next ones are fetched.
  auto block = [&](auto mr, int64_t m0, int64_t m1) {
    constexpr int MR = decltype(mr)::value, U = Vec<A>::W / MR;
    for (int64_t j = 0; j < n; j += U) {
      const int64_t next = j + U < n && m1 - m0 > MR ? std::min<int64_t>(U, n - j - U) * K : 0;
      for (int64_t m = m0; m < m1; m += MR) {
        dot_tile<MR>(a + m * row, row, get, first + j * K, int(std::min<int64_t>(U, n - j)), K, sums + m * sums_row + j,
                     sums_row);
        const int64_t ahead = first + (j + U) * K;
        get.w.prefetch(ahead + next * (m - m0) / (m1 - m0), ahead + next * (m + MR - m0) / (m1 - m0));
      }
    }
  };
  constexpr int MANY = std::min(4, Vec<A>::W / 2);
  const int64_t many = rows / MANY * MANY, two = rows / 2 * 2;
  block(std::integral_constant<int, MANY>{}, 0, many);
  block(std::integral_constant<int, 2>{}, many, two);
  block(std::integral_constant<int, 1>{}, two, rows);
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
