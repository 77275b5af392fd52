// The products of what pairs-inl.h (or quads-inl.h) packs, in the matrix registers of AMX or in vectors. The matrix
// registers 0..3 hold sums, the others factors.
#pragma once
#include "gemm-inl.h"
#include "pairs-inl.h"

namespace RNNKERNELS_SET {
namespace {
#ifdef PAIRS
template <class F, int... i>
INLINE void each(std::integer_sequence<int, i...>, const F& f) {
  (f(std::integral_constant<int, i>{}), ...);
}
template <int n, class F>
INLINE void each(const F& f) {
  each(std::make_integer_sequence<int, n>{}, f);
}

// The shape of a thread's matrix registers; freed in the end, so that other code finds them as it left them.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() {
    if (shape_) release_tiles();
  }
  // Two blocks of rows, the upper of 16 and the lower of m: sums in 0, 1 and 2, 3; left factors in 4 and 5. Or one
  // block of m rows: sums in 0..3, left factors in 5..7. Or all of 16 rows. The right factors are in what is left.
  void shape(bool two, int m) {
    const int wanted = two || m == 16 ? 100 + m : m;
    if (wanted == shape_) return;
    shape_ = wanted;
    TileShapes shapes{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {}};
    const int upper[8] = {16, 16, m, m, 16, m, 16, 16}, lower[8] = {m, m, m, m, 16, m, m, m};
    for (int i = 0; i < 8; ++i) shapes.rows[i] = uint8_t((two ? upper : lower)[i]);
    shape_tiles(shapes);
  }

 private:
  int shape_ = 0;
};

// The products of parts, left and right, in an order in which each differs from the one before in one factor only.
template <int PARTS>
struct Order;
template <>
struct Order<1> {
  static constexpr int n = 1, left[] = {0}, right[] = {0};
};
template <>
struct Order<2> {
  static constexpr int n = 3, left[] = {0, 0, 1}, right[] = {1, 0, 0};
};
template <>
struct Order<3> {
  static constexpr int n = 6, left[] = {0, 0, 1, 1, 0, 2}, right[] = {2, 1, 1, 0, 0, 0};
};

// MT blocks of up to 16 rows times NT vectors of columns: one block times up to four, or two times up to two. AHEAD:
// with every product a cache line of the panel ahead is fetched.
template <int MT, int NT, int PARTS, bool QUADS, bool AHEAD = false>
void multiply_in_tiles(const PairProduct& p) {
  using O = Order<PARTS>;
  const Bits *left = p.left, *right = p.right, *ahead = p.ahead;
  const int64_t row = 2 * p.row, sums_row = 4 * p.sums_row, right_part = p.NB * kTile;
  each<MT>([&](auto m) {
    each<NT>([&](auto n) {
      if (p.sum != Sum::put) load_tile<2 * m + n>(p.sums + m * 16 * p.sums_row + n * 16, sums_row);
      else clear_tile<2 * m + n>();
    });
  });
  for (int64_t k = 0; k < p.K; k += kBlock, left += kBlock, right += PARTS * right_part) {
    if constexpr (MT == 1) {  // all parts of the left factor in registers, those of the right one after the other
      each<PARTS>([&](auto i) { load_tile<5 + i>(left + i * p.part, row); });
      each<PARTS>([&](auto j) {
        each<NT>([&](auto n) {
          load_tile<4>(right + (PARTS - 1 - j) * right_part + n * kTile, 64);
          each<j + 1>([&](auto s) {
            constexpr int i = j == 2 && s < 2 ? 1 - s : s;  // in the same order as below
            multiply_tiles<n, 5 + i, 4, QUADS>();
          });
        });
      });
    } else {
      each<O::n>([&](auto s) {
        constexpr int now = s, last = now ? now - 1 : 0;
        if constexpr (now == 0 || O::left[now] != O::left[last])
          each<MT>([&](auto m) { load_tile<4 + m>(left + m * 16 * p.row + O::left[now] * p.part, row); });
        if constexpr (now == 0 || O::right[now] != O::right[last])
          each<NT>([&](auto n) { load_tile<6 + n>(right + O::right[now] * right_part + n * kTile, 64); });
        each<MT>([&](auto m) {
          each<NT>([&](auto n) {
            multiply_tiles<2 * m + n, 4 + m, 6 + n, QUADS>();
            if constexpr (AHEAD) __builtin_prefetch(ahead, 0, 2), ahead += 32;
          });
        });
      });
    }
  }
  each<MT>([&](auto m) {
    each<NT>([&](auto n) { store_tile<2 * m + n>(p.sums + m * 16 * p.sums_row + n * 16, sums_row); });
  });
}

// Any number of rows; in stretches of k for which the left rows stay in the first-level cache, where that pays. Long
// sums are sums of the stretches' sums, which loses less to rounding.
template <int NB, int PARTS, bool QUADS>
void multiply_in_tiles(Tiles& tiles, const PairProduct& p, int64_t rows) {
  const bool is_long = p.sum == Sum::add_long;
  const int64_t stretch = is_long ? 256 : p.K * PARTS > 768 ? p.K : 384 / PARTS;
  for (int64_t k = 0; k < p.K; k += stretch) {
    int64_t fetched = 0;  // of this stretch of the panel ahead
    for (int64_t r = 0; r < rows;) {
      const bool two = rows - r > 16;
      const int64_t n = std::min<int64_t>(rows - r, two ? 32 : 16);
      alignas(64) float own[32 * NB * 16];
      float* sums = p.sums + r * p.sums_row;
      PairProduct part = p;
      part.K = std::min(stretch, p.K - k), part.left += k + r * p.row, part.right += k * PARTS * NB * 16;
      if (is_long) part.sums = own, part.sums_row = NB * 16, part.sum = Sum::put;
      else part.sums = sums, part.sum = k ? Sum::add : p.sum;
      tiles.shape(two, int((n - 1) % 16 + 1));
      if (two) {
        for (int c = 0; c + 1 < NB; c += 2, part.right += 2 * kTile, part.sums += 2 * 16) {
          if (p.ahead && fetched < part.K * PARTS * NB * 16) {
            part.ahead = p.ahead + k * PARTS * NB * 16 + fetched;
            multiply_in_tiles<2, 2, PARTS, QUADS, true>(part);
          } else {
            multiply_in_tiles<2, 2, PARTS, QUADS>(part);
          }
          fetched += part.K * 4 * Order<PARTS>::n;
        }
        if constexpr (NB % 2) multiply_in_tiles<2, 1, PARTS, QUADS>(part);
      } else {
        multiply_in_tiles<1, NB, PARTS, QUADS>(part);
      }
      for (int64_t m = 0; is_long && m < n; ++m)
        for (int c = 0; c < NB * 16; c += 16)
          (load(sums + m * p.sums_row + c) + load(own + m * NB * 16 + c)).store(sums + m * p.sums_row + c);
      r += n;
    }
  }
}

// The same for one part in vector registers: MR rows times NB vectors.
template <int MR, int NB, bool QUADS>
void multiply_in_vectors(const PairProduct& p) {
  __m512 sums[MR][NB];  // the bits of int32 if QUADS
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n)
      sums[m][n] = p.sum != Sum::put ? _mm512_loadu_ps(p.sums + m * p.sums_row + n * 16) : _mm512_setzero_ps();
  for (int64_t k = 0; k < p.K; k += 2) {
    const Bits* right = p.right + k / kBlock * NB * kTile + k % kBlock * 16;
    __m512i w[NB];
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n) w[n] = _mm512_loadu_si512(right + n * kTile);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, p.left + m * p.row + k, 4);
      const __m512i v = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int n = 0; n < NB; ++n) {
        if constexpr (QUADS) sums[m][n] = (__m512)add_quads((__m512i)sums[m][n], w[n], v);
        else sums[m][n] = add_pairs(sums[m][n], v, w[n]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n) _mm512_storeu_ps(p.sums + m * p.sums_row + n * 16, sums[m][n]);
}

template <int NB, bool QUADS, int... m>
constexpr auto vector_table(std::integer_sequence<int, m...>) {
  return std::array<void (*)(const PairProduct&), sizeof...(m)>{&multiply_in_vectors<m + 1, NB, QUADS>...};
}

template <int NB, bool QUADS = false>
void multiply_pairs(Tiles& tiles, Engine engine, int parts, PairProduct p, int64_t rows) {
  p.NB = NB;
  if (engine == Engine::tiles) {
    if constexpr (!QUADS) {
      if (parts == 3) return multiply_in_tiles<NB, 3, QUADS>(tiles, p, rows);
      if (parts == 2) return multiply_in_tiles<NB, 2, QUADS>(tiles, p, rows);
    }
    return multiply_in_tiles<NB, 1, QUADS>(tiles, p, rows);
  }
  constexpr int MR = tile_rows(NB);
  static constexpr auto table = vector_table<NB, QUADS>(std::make_integer_sequence<int, MR>{});
  const int64_t blocks = (rows + MR - 1) / MR;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = rows * i / blocks, n = rows * (i + 1) / blocks - first;
    PairProduct block = p;
    block.left += first * p.row, block.sums += first * p.sums_row;
    table[n - 1](block);
  }
}
#else
struct Tiles {};
#endif
}  // namespace
}  // namespace RNNKERNELS_SET
