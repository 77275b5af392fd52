// The one matrix product of all loops: a register tile of MR rows and NB vectors, and the packing of weights for it.
#pragma once
#include "../machine/vectors-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Rows of a tile with NB vectors a row, so that all sums stay in registers.
constexpr int tile_rows(int NB) {
  return kRegisters == 32 ? (NB == 4 ? 6 : 8) : (NB == 4 ? 3 : NB == 3 ? 4 : NB == 2 ? 6 : 8);
}

// A panel of the right factor as a tile reads it, ROWS rows at once: here numbers of type A, `row` apart.
template <class A>
struct Numbers {
  using Number = A;
  static constexpr int ROWS = 1, SPARE = 0;  // SPARE: how many rows fewer a tile has, for what reading takes
  // Sums of each kind that a tile with so many keeps: where they are few, several of each hide the latency, as long as
  // registers hold them all.
  static constexpr int phases(int sums) {
    constexpr int held = kRegisters == 32 ? 16 : 12;
    return 4 * sums <= held ? 4 : 2 * sums <= held ? 2 : 1;
  }
  const A* at;
  int64_t row;
  template <int NB>
  INLINE void read(int64_t k, Vec<A> (&rows)[ROWS][NB]) const {
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n) rows[0][n] = load(at + k * row + n * Vec<A>::W);
  }
};

// c[m][n] = [c[m][n], if to be added to,] + sum over k of a[m * row + k * step] * right[k][n], for MR rows and NB
// vectors, with PHASES sums of each kind. AHEAD: the panel that comes next is fetched meanwhile, `fetched` bytes with
// every k.
template <class Right, int MR, int NB, int PHASES, bool AHEAD = false, class A = typename Right::Number>
void tile(const A* a, int64_t row, int64_t step, Right right, int64_t K, A* c, int64_t c_row, bool add,
          const char* ahead, int64_t fetched) {
  using V = Vec<A>;
  constexpr int W = V::W, ROWS = Right::ROWS, STEP = std::max(PHASES, ROWS);
  static_assert(ROWS == 1 || ROWS == STEP);
  auto products = [&](int64_t k, const V(&w)[NB], V(&sums)[MR][NB]) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      V v(a[m * row + k * step]);
#pragma GCC unroll 4
      for (int n = 0; n < NB; ++n) sums[m][n] = sums[m][n] + v * w[n];
    }
  };
  int64_t k = 0;
  do {  // stretches of 256, so that long sums are sums of sums and lose less to rounding
    V acc[PHASES][MR][NB];
#pragma GCC unroll 4
    for (int p = 0; p < PHASES; ++p)
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < NB; ++n) acc[p][m][n] = V(A(0));
    const int64_t end = std::min(K, k + 256);
    for (; k + STEP <= end; k += STEP) {
#pragma GCC unroll 4
      for (int p = 0; p < STEP; p += ROWS) {
        V w[ROWS][NB];
        right.read(k + p, w);
#pragma GCC unroll 2
        for (int i = 0; i < ROWS; ++i) products(k + p + i, w[i], acc[(p + i) % PHASES]);
      }
      if constexpr (AHEAD) __builtin_prefetch(ahead, 0, 2), ahead += STEP * fetched;
    }
    for (; STEP > 1 && k < end; ++k) {  // what is left is less than STEP, and of ROWS rows only the first
      V w[ROWS][NB];
      right.read(k, w);
      products(k, w[0], acc[0]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < NB; ++n) {
#pragma GCC unroll 4
        for (int p = 1; p < PHASES; ++p) acc[0][m][n] = acc[0][m][n] + acc[p][m][n];
        A* to = c + m * c_row + n * W;
        (add ? load(to) + acc[0][m][n] : acc[0][m][n]).store(to);
      }
    add = true;
  } while (k < K);
}

// Tiles of FIRST, FIRST + 1, ... rows; with the phases of SUMS sums, or of as many as each has.
template <class Right, int NB, int FIRST, int SUMS, bool AHEAD, int... m>
constexpr auto tile_table(std::integer_sequence<int, m...>) {
  return std::array<void (*)(const typename Right::Number*, int64_t, int64_t, Right, int64_t, typename Right::Number*,
                             int64_t, bool, const char*, int64_t),
                    sizeof...(m)>{&tile<Right, FIRST + m, NB, Right::phases(SUMS ? SUMS : (FIRST + m) * NB), AHEAD>...};
}

// The same for any number of rows: tiles of nearly equal size. Where there is more than one, a row's sums do not depend
// on how many rows there are, so that work can be divided at any row. next: the panel that comes after this one, where
// it comes from afar.
template <int NB, class Right, class A = typename Right::Number>
void product(int64_t rows, const A* a, int64_t row, int64_t step, Right right, int64_t K, A* c, int64_t c_row, bool add,
             const A* next = nullptr) {
  constexpr int MR = tile_rows(NB) - Right::SPARE, LEAST = (MR + 1) / 2;
  constexpr bool MAY_FETCH = kBytes > 16 && std::is_same_v<Right, Numbers<float>> && NB > 2;
  static constexpr auto single = tile_table<Right, NB, 1, 0, false>(std::make_integer_sequence<int, MR>{});
  using Rest = std::make_integer_sequence<int, MR - LEAST + 1>;
  static constexpr auto one_of_many = tile_table<Right, NB, LEAST, MR * NB, false>(Rest{}),
                        one_that_fetches = tile_table<Right, NB, LEAST, MR * NB, MAY_FETCH>(Rest{});
  const auto& many = next ? one_that_fetches : one_of_many;
  const int64_t tiles = (rows + MR - 1) / MR;
  const char* ahead = reinterpret_cast<const char*>(next);
  const int64_t fetched = next && tiles > 1 ? std::min<int64_t>(64, NB * kBytes / tiles) : 0;  // a line at most
  for (int64_t i = 0; i < tiles; ++i) {
    int64_t first = rows * i / tiles, n = rows * (i + 1) / tiles - first;
    for (int64_t m = first; m < first + n; ++m)  // needed when the tile is done
      for (int v = 0; v < NB; ++v) __builtin_prefetch(c + m * c_row + v * Vec<A>::W, 1);
    (tiles == 1 ? single[n - 1] : many[n - LEAST])(a + first * row, row, step, right, K, c + first * c_row, c_row, add,
                                                   ahead, fetched);
    if (next) ahead += K * fetched;
  }
}

// f(first, count) for blocks of nearly equal size, `most` at most, that cover lo..hi.
template <class F>
INLINE void for_even_blocks(int64_t lo, int64_t hi, int64_t most, const F& f) {
  const int64_t n = hi - lo, blocks = (n + most - 1) / most;
  for (int64_t i = 0; i < blocks; ++i) f(lo + n * i / blocks, n * (i + 1) / blocks - n * i / blocks);
}

// Columns 0..n in panels of 4 vectors and one of what is left (padded): f(integral_constant<vectors>, first column).
template <class A, class F>
void for_columns(int64_t n, const F& f) {
  constexpr int W = Vec<A>::W;
  int64_t column = 0;
  for (; n - column > 3 * W; column += 4 * W) f(std::integral_constant<int, 4>{}, column);
  if (n - column > 2 * W) f(std::integral_constant<int, 3>{}, column);
  else if (n - column > W) f(std::integral_constant<int, 2>{}, column);
  else if (n - column > 0) f(std::integral_constant<int, 1>{}, column);
}

// ---- Packing: one vector of a panel ---------------------------------------------------------------------------------
// to[k * stride .. + W] = column k of n rows, K long and `row` apart from `first` on.
template <class A>
void pack_number_columns(const Stored<A>& from, int64_t first, int64_t row, int n, int64_t K, A* to, int64_t stride) {
  using V = Vec<A>;
  constexpr int W = V::W;
  // A square of numbers, get(i) those from number i on. Its loops are unrolled, so that it stays in registers.
  auto square = [&](int64_t k, auto&& get) __attribute__((always_inline)) {
    V rows[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = i < n ? get(first + i * row + k) : V(A(0));
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if (i < K - k) rows[i].store(to + (k + i) * stride);
  };
  const int64_t whole = K / W * W;
  if (from.direct())
    for (int64_t k = 0; k < whole; k += W)
      square(k, [&](int64_t i) __attribute__((always_inline)) { return load(from.at(i)); });
  else
    for (int64_t k = 0; k < whole; k += W)
      square(k, [&](int64_t i) __attribute__((always_inline)) { return from.get_16(i, W, from.storage()); });
  if (whole < K) square(whole, [&](int64_t i) __attribute__((always_inline)) { return from.get(i, int(K - whole)); });
}

// to[k][NB vectors] = n elements of row k from `first` on, and zeros. A whole row of the panel at a time, so that each
// line of the matrix is read once.
template <int NB, class A>
void pack_number_rows(const Stored<A>& from, int64_t first, int64_t row, int64_t n, int64_t K, A* to) {
  constexpr int W = Vec<A>::W;
  auto all = [&](auto&& get) __attribute__((always_inline)) {
    for (int64_t k = 0; k < K; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < NB; ++v) get(first + k * row + v * W, n - v * W).store(to + (k * NB + v) * W);
  };
  if (n == NB * W && from.direct())
    all([&](int64_t i, int64_t) __attribute__((always_inline)) { return load(from.at(i)); });
  else
    all([&](int64_t i, int64_t left)
            __attribute__((always_inline)) { return from.get(i, int(std::min<int64_t>(W, left))); });
}

// True if panels of 4 vectors fit n columns, false if they would mostly be padding.
template <class A>
bool wide_panels(int64_t n) {
  int64_t vectors = (n + Vec<A>::W - 1) / Vec<A>::W;
  return (vectors + 3) / 4 * 4 * 5 <= vectors * 6;
}
}  // namespace
}  // namespace RNNKERNELS_SET
