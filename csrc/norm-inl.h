// Layer norms (Ba, Kiros & Hinton 2016) of a row: of the pre-activations of some gates, or of c. A row is what get(g,
// j, lanes) gives for gates g0..g1 and H units each.

template <class A>
INLINE Vec<A> first_of(Vec<A> v, int n) {  // the other lanes are zero
  if (n >= Vec<A>::W) return v;
  alignas(64) A buffer[Vec<A>::W];
  v.store(buffer);
  return load_first(buffer, n);
}
template <class A>
INLINE A total(Vec<A> v) {
  A sum = 0;
  for (int i = 0; i < Vec<A>::W; ++i) sum += v.v[i];
  return sum;
}

// f(gate, unit, lanes) for every vector of a row.
template <class A, class F>
INLINE void for_row(int g0, int g1, int64_t H, const F& f) {
  for (int g = g0; g < g1; ++g)
    for (int64_t j = 0; j < H; j += Vec<A>::W) f(g, j, int(std::min<int64_t>(Vec<A>::W, H - j)));
}

// A row less its mean and over its deviation.
template <class A, class Get>
struct Normal {
  using V = Vec<A>;
  const Get& get;
  A n, mean, scale;
  Normal(int g0, int g1, int64_t H, double eps, const Get& row) : get(row), n(A((g1 - g0) * H)) {
    V sum(A(0)), squares(A(0));
    for_row<A>(g0, g1, H, [&](int g, int64_t j, int lanes) { sum = sum + first_of(get(g, j, lanes), lanes); });
    mean = total(sum) / n;
    for_row<A>(g0, g1, H, [&](int g, int64_t j, int lanes) {
      const V v = first_of(get(g, j, lanes) - V(mean), lanes);
      squares = squares + v * v;
    });
    scale = A(1) / std::sqrt(total(squares) / n + A(eps));
  }
  INLINE V at(int g, int64_t j, int lanes) const { return (get(g, j, lanes) - V(mean)) * V(scale); }

  // The gradient of the row, d[(g - g0) * d_row + j], from that of its norm times `gain` (from gate g0 on), in place;
  // adds up the gradients of what is added to that (db) and of the gain, both in rows of d_row.
  void back(int g0, int g1, int64_t H, const Port<A>& gain, int64_t first, A* d, int64_t d_row, A* db, A* dgain) const {
    V sum(A(0)), products(A(0));
    for_row<A>(g0, g1, H, [&](int g, int64_t j, int lanes) {
      const int64_t i = (g - g0) * d_row + j;
      const V x = at(g, j, lanes), delta = first_of(load(d + i), lanes),
              v = delta * gain.get(first + (g - g0) * H + j, lanes);
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

// Where gate g of unit j lies in a row of sums in panels.
template <class Weights>
INLINE int64_t in_panels(int g, int64_t j) {
  return j / Weights::WIDTH * Weights::SUMS + g * Weights::WIDTH + j % Weights::WIDTH;
}
