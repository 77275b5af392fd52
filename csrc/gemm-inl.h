// The one matrix product of all loops: a register tile of MR rows and NB vectors, and the packing of weights for it.

// Rows of a tile with NB vectors a row, so that all sums stay in registers.
constexpr int tile_rows(int NB) {
  return kRegisters == 32 ? (NB == 4 ? 6 : 8) : (NB == 4 ? 3 : NB == 3 ? 4 : NB == 2 ? 6 : 8);
}

// c[m][n] = [c[m][n], if to be added to,] + sum over k of a[m * row + k * step] * b[k * b_row + n * W ..], for MR rows
// and NB vectors.
template <class A, int MR, int NB>
void tile(const A* a, int64_t row, int64_t step, const A* b, int64_t b_row, int64_t K, A* c, int64_t c_row, bool add) {
  using V = Vec<A>;
  constexpr int W = V::W, PHASES = MR * NB <= 4   ? 4
                                   : MR * NB <= 8 ? 2
                                                  : 1;  // few sums: several of each hide the latency
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
  do {  // stretches of 256, so that long sums are sums of sums and lose less to rounding
    V acc[PHASES][MR][NB];
#pragma GCC unroll 4
    for (int p = 0; p < PHASES; ++p)
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < NB; ++n) acc[p][m][n] = V(A(0));
    const int64_t end = std::min(K, k + 256);
    for (; k + PHASES <= end; k += PHASES) {
#pragma GCC unroll 4
      for (int p = 0; p < PHASES; ++p) products(k + p, acc[p]);
    }
    for (; PHASES > 1 && k < end; ++k) products(k, acc[0]);
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

// tile<A, 1, NB>, tile<A, 2, NB>, ...
template <class A, int NB, int... m>
constexpr auto tile_table(std::integer_sequence<int, m...>) {
  return std::array<decltype(&tile<A, 1, NB>), sizeof...(m)>{&tile<A, m + 1, NB>...};
}

// The same for any number of rows: tiles of nearly equal size.
template <int NB, class A>
void product(int64_t rows, const A* a, int64_t row, int64_t step, const A* b, int64_t b_row, int64_t K, A* c,
             int64_t c_row, bool add) {
  constexpr int MR = tile_rows(NB);
  static constexpr auto table = tile_table<A, NB>(std::make_integer_sequence<int, MR>{});
  const int64_t tiles = (rows + MR - 1) / MR;
  for (int64_t i = 0; i < tiles; ++i) {
    int64_t first = rows * i / tiles, n = rows * (i + 1) / tiles - first;
    for (int64_t m = first; m < first + n; ++m)  // needed when the tile is done
      for (int v = 0; v < NB; ++v) __builtin_prefetch(c + m * c_row + v * Vec<A>::W, 1);
    table[n - 1](a + first * row, row, step, b, b_row, K, c + first * c_row, c_row, add);
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

// ---- Packing: one vector of a panel ---------------------------------------------------------------------------------
// to[k * stride .. + W] = column k of n rows, K long and `row` apart from `first` on.
template <class A>
void pack_number_columns(const Port<A>& from, int64_t first, int64_t row, int n, int64_t K, A* to, int64_t stride) {
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

// to[k * stride .. + W] = elements of row k from `first` on, n of them.
template <class A>
void pack_number_rows(const Port<A>& from, int64_t first, int64_t row, int n, int64_t K, A* to, int64_t stride) {
  for (int64_t k = 0; k < K; ++k) from.get(first + k * row, n).store(to + k * stride);
}

// Whether panels of 4 vectors fit n columns, or would mostly be padding.
template <class A>
bool wide_panels(int64_t n) {
  int64_t vectors = (n + Vec<A>::W - 1) / Vec<A>::W;
  return (vectors + 3) / 4 * 4 * 5 <= vectors * 6;
}

// ---- One row, or few steps: the weights read where they lie ---------------------------------------------------------
// How the numbers of a row of weights are read: one vector of them, or two at once.
template <class A>
struct Direct {
  const Port<A>& w;
  INLINE Vec<A> one(int64_t i, int lanes) const { return load_first(w.at(i), lanes); }
  INLINE void two(int64_t i, Vec<A>& first, Vec<A>& second) const {
    first = load(w.at(i)), second = load(w.at(i) + Vec<A>::W);
  }
};
template <class A>
struct Half {
  const Port<A>& w;
  INLINE Vec<A> one(int64_t i, int lanes) const { return w.get_16(i, lanes, Storage::float16); }
  INLINE void two(int64_t i, Vec<A>& first, Vec<A>& second) const {
    first = one(i, Vec<A>::W), second = one(i + Vec<A>::W, Vec<A>::W);
  }
};
// bf16: of two vectors the even numbers and the odd ones, which is one instruction each.
template <class A>
struct Brain {
  const Port<A>& w;
  INLINE Vec<A> one(int64_t i, int lanes) const { return w.get_16(i, lanes, Storage::bfloat16); }
  INLINE void two(int64_t i, Vec<A>& even, Vec<A>& odd) const {
    using Ints = typename Vec<A>::IntData;
    Ints pairs;
    __builtin_memcpy(&pairs, w.address(i), sizeof(pairs));
    even = Vec<A>((typename Vec<A>::Data)(pairs << 16));
    odd = Vec<A>((typename Vec<A>::Data)(pairs & int32_t(0xffff0000)));
  }
};

// sums[m * sums_row + j] = product of row m with row j of the weights, for MR rows and n <= W / MR weight rows from
// number `first` on.
template <int MR, class A, class Get>
void dot_tile(const A* a, int64_t row, const Get& get, int64_t first, int n, int64_t K, A* sums, int64_t sums_row) {
  using V = Vec<A>;
  constexpr int W = V::W, U = W / MR;
  int64_t rows[U];
  for (int j = 0; j < U; ++j) rows[j] = first + std::min(j, n - 1) * K;
  V acc[MR * U];
#pragma GCC unroll 16
  for (int i = 0; i < MR * U; ++i) acc[i] = V(A(0));
  int64_t k = 0;
  for (; k + 2 * W <= K; k += 2 * W) {
    // What there is less of is held in registers.
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
  for (int m = 0; m < MR; ++m)
    for (int j = 0; j < n; ++j) sums[m * sums_row + j] = out[m * U + j];
}

// The same for any number of rows and weight rows.
template <class A, class Get>
void dot_rows(int64_t rows, const A* a, int64_t row, const Get& get, int64_t first, int64_t n, int64_t K, A* sums,
              int64_t sums_row) {
  auto block = [&](auto mr, int64_t m) {
    constexpr int MR = decltype(mr)::value, U = Vec<A>::W / MR;
    for (int64_t j = 0; j < n; j += U)
      dot_tile<MR>(a + m * row, row, get, first + j * K, int(std::min<int64_t>(U, n - j)), K, sums + m * sums_row + j,
                   sums_row);
  };
  constexpr int MANY = std::min(4, Vec<A>::W / 2);
  int64_t m = 0;
  for (; m + MANY <= rows; m += MANY) block(std::integral_constant<int, MANY>{}, m);
  for (; m + 2 <= rows; m += 2) block(std::integral_constant<int, 2>{}, m);
  for (; m < rows; ++m) block(std::integral_constant<int, 1>{}, m);
}

// sums[m][j] = row m times the weights' row of K numbers from `first + j * K` on, as they are stored. For weights in
// bf16 the rows are sorted, see below.
template <class A>
void dot_product(int64_t rows, const A* a, int64_t row, const Port<A>& w, int64_t first, int64_t n, int64_t K, A* sums,
                 int64_t sums_row) {
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
