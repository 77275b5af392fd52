// Panels of weights that stay in their 16 bits and are widened in registers, two rows of the panel at a time: for
// products with few rows on the left, where bytes are what counts.
//
// A panel is [K / 2][2 * NB * W] numbers, K even after padding. bfloat16: the rows of a pair alternate, so that a word
// holds one above the other and widening is a shift or a mask. float16: one row after the other.
#pragma once
#include "pairs-inl.h"

namespace RNNKERNELS_SET {
namespace {
// Such a panel as a tile reads it.
template <Storage S>
struct NarrowPanel {
  using Number = float;
  static constexpr int ROWS = 2, SPARE = 2;
  static constexpr int phases(int sums) { return 4 * sums <= kRegisters ? 2 : 1; }
  const Bits* at;
  template <int NB>
  INLINE void read(int64_t k, Vec<float> (&rows)[ROWS][NB]) const {
    constexpr int W = Vec<float>::W;
    const Bits* pair = at + k * NB * W;
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n) {
      if constexpr (S == Storage::bfloat16) floats_of_pairs(pair + n * 2 * W, rows[0][n], rows[1][n]);
      else rows[0][n] = floats_of_16(pair + n * W, S), rows[1][n] = floats_of_16(pair + (NB + n) * W, S);
    }
  }
};

// A panel's vector v of NB from n rows of a matrix, K long, that become its columns.
inline void pack_narrow_columns(const Bits* from, Storage storage, int n, int64_t K, Bits* panel, int64_t NB,
                                int64_t v) {
  constexpr int64_t W = Vec<float>::W;
  for (int64_t i = 0; i < W; ++i)
    for (int64_t k = 0; k < (K + 1) / 2 * 2; ++k) {
      const int64_t column = v * W + i;
      const int64_t at = storage == Storage::bfloat16 ? column * 2 + k % 2 : k % 2 * NB * W + column;
      panel[k / 2 * 2 * NB * W + at] = i < n && k < K ? from[i * K + k] : 0;
    }
}
}  // namespace
}  // namespace RNNKERNELS_SET
