// Panels of weights that stay in their 16 bits and are widened in registers, two rows of the panel at a time: for
// products with few rows on the left, where bytes are what counts.
//
// A panel is [K / 2][2 * NB * W] numbers, K even after padding. bfloat16: the rows of a pair alternate, so that a word
// holds one above the other and widening is a shift or a mask. float16: one row after the other.

template <Storage S>
INLINE void widen_pair(const Bits* pair, int NB, int n, Vec<float>& even, Vec<float>& odd) {
  using V = Vec<float>;
  if constexpr (S == Storage::bfloat16) {
    V::IntData words;
    __builtin_memcpy(&words, pair + n * 2 * V::W, sizeof(words));
    even = V((V::Data)(words << 16)), odd = V((V::Data)(words & -65536));
  } else {
    even = floats_of_16(pair + n * V::W, S), odd = floats_of_16(pair + (NB + n) * V::W, S);
  }
}

// c[m][n] = sum over k of a[m * row + k] * b[k][n], for MR rows and NB vectors.
template <Storage S, int MR, int NB>
void narrow_tile(const float* a, int64_t row, const Bits* b, int64_t K, float* c, int64_t c_row) {
  using V = Vec<float>;
  constexpr int W = V::W, PHASES = 4 * MR * NB <= kRegisters ? 2 : 1;  // few sums: two of each hide the latency
  int64_t k = 0;
  bool add = false;
  do {  // stretches of 256, as in tile
    V acc[PHASES][MR][NB];
#pragma GCC unroll 2
    for (int p = 0; p < PHASES; ++p)
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < NB; ++n) acc[p][m][n] = V(0.0f);
    const int64_t end = std::min(K, k + 256);
    for (; k + 2 <= end; k += 2, b += 2 * NB * W) {
      V even[NB], odd[NB];
#pragma GCC unroll 4
      for (int n = 0; n < NB; ++n) widen_pair<S>(b, NB, n, even[n], odd[n]);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const V first(a[m * row + k]), second(a[m * row + k + 1]);
#pragma GCC unroll 4
        for (int n = 0; n < NB; ++n) {
          acc[0][m][n] = acc[0][m][n] + first * even[n];
          acc[PHASES - 1][m][n] = acc[PHASES - 1][m][n] + second * odd[n];
        }
      }
    }
    if (k < end) {  // the last row of an odd number
#pragma GCC unroll 4
      for (int n = 0; n < NB; ++n) {
        V even, odd;
        widen_pair<S>(b, NB, n, even, odd);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) acc[0][m][n] = acc[0][m][n] + V(a[m * row + k]) * even;
      }
      ++k;
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < NB; ++n) {
        if (PHASES > 1) acc[0][m][n] = acc[0][m][n] + acc[1][m][n];
        float* to = c + m * c_row + n * W;
        (add ? load(to) + acc[0][m][n] : acc[0][m][n]).store(to);
      }
    add = true;
  } while (k < K);
}

template <Storage S, int NB, int... m>
constexpr auto narrow_table(std::integer_sequence<int, m...>) {
  return std::array<decltype(&narrow_tile<S, 1, NB>), sizeof...(m)>{&narrow_tile<S, m + 1, NB>...};
}

template <Storage S, int NB>
void narrow_product(int64_t rows, const float* a, int64_t row, const Bits* b, int64_t K, float* c, int64_t c_row) {
  constexpr int MR = tile_rows(NB) - 2;  // the widened vectors need registers too
  static constexpr auto table = narrow_table<S, NB>(std::make_integer_sequence<int, MR>{});
  const int64_t tiles = (rows + MR - 1) / MR;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = rows * i / tiles, n = rows * (i + 1) / tiles - first;
    table[n - 1](a + first * row, row, b, K, c + first * c_row, c_row);
  }
}

// Panels of NB vectors of columns, the gates of WIDTH hidden units side by side.
template <int NB>
class Narrow {
 public:
  static constexpr int W = Vec<float>::W;

  // From weights [G][H][K]; hidden unit j of gate g is column g * WIDTH + j of a panel.
  void pack(const void* weights, Storage storage, int G, int64_t H, int64_t K) {
    const Bits* from = static_cast<const Bits*>(weights);
    const int64_t width = NB * W / G, panels = (H + width - 1) / width;
    storage_ = storage, K_ = K, panel_ = (K + 1) / 2 * 2 * NB * W;
    bits_.allocate(panels * panel_, true);
    for (int64_t row = 0; row < G * H; ++row) {
      const int64_t g = row / H, j = row % H, column = g * width + j % width;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t at = storage == Storage::bfloat16 ? column * 2 + k % 2 : k % 2 * NB * W + column;
        bits_.data()[j / width * panel_ + k / 2 * 2 * NB * W + at] = from[row * K + k];
      }
    }
  }
  explicit operator bool() const { return panel_ > 0; }

  // sums [rows][sums_row] = rows of `a` times panel u.
  void multiply(int64_t rows, const float* a, int64_t row, int64_t u, float* sums, int64_t sums_row) const {
    const Bits* panel = bits_.data() + u * panel_;
    if (storage_ == Storage::bfloat16) narrow_product<Storage::bfloat16, NB>(rows, a, row, panel, K_, sums, sums_row);
    else narrow_product<Storage::float16, NB>(rows, a, row, panel, K_, sums, sums_row);
  }

 private:
  Storage storage_ = Storage::bfloat16;
  int64_t K_ = 0, panel_ = 0;
  Scratch<Bits> bits_;
};
