// The one matrix product of all loops: a register tile of MR rows and NB vectors, and the packing of weights for it.

// Rows of a tile with NB vectors a row, so that all sums stay in registers.
constexpr int tile_rows(int NB) {
  return kRegisters == 32 ? (NB == 4 ? 6 : 8) : (NB == 4 ? 3 : NB == 3 ? 4 : NB == 2 ? 6 : 8);
}

// c[m][n] += sum over k of a[m * row + k * step] * b[k * b_row + n * W ..], for MR rows and NB vectors.
template <class A, int MR, int NB>
void tile(const A* a, int64_t row, int64_t step, const A* b, int64_t b_row, int64_t K, A* c, int64_t c_row) {
  using V = Vec<A>;
  constexpr int W = V::W, PHASES = MR * NB <= 4 ? 4 : MR * NB <= 8 ? 2 : 1;  // few sums: several of each hide the latency
  V acc[PHASES][MR][NB];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n) {
      acc[0][m][n] = load(c + m * c_row + n * W);
#pragma GCC unroll 4
      for (int p = 1; p < PHASES; ++p) acc[p][m][n] = V(A(0));
    }
  auto products = [&](int64_t k, V(&sums)[MR][NB]) __attribute__((always_inline)) {
    V w[NB];
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n) w[n] = load(b + k * b_row + n * W);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      V v(a[m * row + k * step]);
#pragma GCC unroll 4
      for (int n = 0; n < NB; ++n) sums[m][n] = sums[m][n] + v * w[n];
    }
  };
  int64_t k = 0;
  for (; k + PHASES <= K; k += PHASES) {
#pragma GCC unroll 4
    for (int p = 0; p < PHASES; ++p) products(k + p, acc[p]);
  }
  for (; PHASES > 1 && k < K; ++k) products(k, acc[0]);
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < NB; ++n) {
#pragma GCC unroll 4
      for (int p = 1; p < PHASES; ++p) acc[0][m][n] = acc[0][m][n] + acc[p][m][n];
      acc[0][m][n].store(c + m * c_row + n * W);
    }
}

// tile<A, 1, NB>, tile<A, 2, NB>, ...
template <class A, int NB, int... m>
constexpr auto tile_table(std::integer_sequence<int, m...>) {
  return std::array<decltype(&tile<A, 1, NB>), sizeof...(m)>{&tile<A, m + 1, NB>...};
}

// The same for any number of rows: tiles of nearly equal size.
template <int NB, class A>
void product(int64_t rows, const A* a, int64_t row, int64_t step, const A* b, int64_t b_row, int64_t K, A* c, int64_t c_row) {
  constexpr int MR = tile_rows(NB);
  static constexpr auto table = tile_table<A, NB>(std::make_integer_sequence<int, MR>{});
  int64_t tiles = (rows + MR - 1) / MR;
  for (int64_t i = 0; i < tiles; ++i) {
    int64_t first = rows * i / tiles, n = rows * (i + 1) / tiles - first;
    table[n - 1](a + first * row, row, step, b, b_row, K, c + first * c_row, c_row);
  }
}

// Columns 0..n in panels of 4, 2 and 1 vectors (the last one padded): f(integral_constant<vectors>, first column).
template <class A, class F>
void for_columns(int64_t n, const F& f) {
  constexpr int W = Vec<A>::W;
  int64_t column = 0;
  for (; n - column > 3 * W; column += 4 * W) f(std::integral_constant<int, 4>{}, column);
  if (n - column > W) f(std::integral_constant<int, 2>{}, column), column += 2 * W;
  if (n - column > 0) f(std::integral_constant<int, 1>{}, column);
}

// The same for all n columns of c and b, whose rows are padded to whole vectors: c += a b.
template <class A>
void product_wide(int64_t rows, int64_t n, const A* a, int64_t row, int64_t step, const A* b, int64_t b_row, int64_t K, A* c, int64_t c_row) {
  for_columns<A>(n, [&](auto vectors, int64_t column) {
    product<decltype(vectors)::value>(rows, a, row, step, b + column, b_row, K, c + column, c_row);
  });
}

// ---- Packing ---------------------------------------------------------------------------------------------------------
// to[k * stride .. + W] = column k of n rows, K long and `row` apart from `first` on: one vector of a panel.
template <class A>
void pack_columns(const Port<A>& from, int64_t first, int64_t row, int n, int64_t K, A* to, int64_t stride) {
  using V = Vec<A>;
  constexpr int W = V::W;
  for (int64_t k = 0; k < K; k += W) {
    int width = int(std::min<int64_t>(W, K - k));
    V block[W];
    for (int i = 0; i < W; ++i) block[i] = i < n ? from.get(first + i * row + k, width) : V(A(0));
    transpose(block);
    for (int i = 0; i < width; ++i) block[i].store(to + (k + i) * stride);
  }
}

// to[k * stride .. + W] = elements of row k from `first` on, n of them: one vector of a panel whose rows lie along k.
template <class A>
void pack_rows(const Port<A>& from, int64_t first, int64_t row, int n, int64_t K, A* to, int64_t stride) {
  for (int64_t k = 0; k < K; ++k) from.get(first + k * row, n).store(to + k * stride);
}

// Whether panels of 4 vectors fit n columns, or would mostly be padding.
template <class A>
bool wide_panels(int64_t n) {
  int64_t vectors = (n + Vec<A>::W - 1) / Vec<A>::W;
  return (vectors + 3) / 4 * 4 * 5 <= vectors * 6;
}

// ---- Few steps: the weights read where they lie ----------------------------------------------------------------------
// sums[m * sums_row + g * gate] += product of row m with weight row g (w_row apart), for MR rows and G gates.
template <int MR, int G, class A>
void dot_rows(const A* a, int64_t row, const A* w, int64_t w_row, int64_t K, A* sums, int64_t sums_row, int64_t gate) {
  using V = Vec<A>;
  V acc[MR][G];
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) acc[m][g] = V(A(0));
  for (int64_t k = 0; k < K; k += V::W) {
    int n = int(std::min<int64_t>(V::W, K - k));
    V x[MR];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) x[m] = load_first(a + m * row + k, n);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      V v = load_first(w + g * w_row + k, n);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) acc[m][g] = acc[m][g] + x[m] * v;
    }
  }
  for (int m = 0; m < MR; ++m)
    for (int g = 0; g < G; ++g) sums[m * sums_row + g * gate] += sum(acc[m][g]);
}
