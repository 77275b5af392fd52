// The LSTM cell: c' = f c + i g, h' = o tanh(c') (Hochreiter & Schmidhuber 1997, Gers et al. 2000); gates i, f, g, o.
struct Lstm {
  static constexpr int G = 4, SPLIT = 0, STATES = 2, KEPT = 4;
  static constexpr bool RELU = false, PROJECTION = true;

  // sums: x + r per gate. kept: the activated gates.
  template <class V>
  static INLINE void forward(const V* sums, const V*, V& h, V& c, V* kept, bool) {
    V i = sigmoid(sums[0]), f = sigmoid(sums[1]), g = tanh(sums[2]), o = sigmoid(sums[3]);
    c = f * c + i * g;
    h = o * tanh(c);
    kept[0] = i, kept[1] = f, kept[2] = g, kept[3] = o;
  }

  // dh, dc: gradients of h' and c'. Out: d, the gradients of the pre-activations; dc, that of c.
  template <class V>
  static INLINE void backward(const V* kept, V, V, V c, V c_new, V dh, V& dc, V* d, V& dh_direct, bool) {
    V i = kept[0], f = kept[1], g = kept[2], o = kept[3], y = tanh(c_new);
    V one(1), dc_new = dc + dh * o * (one - y * y);
    d[0] = dc_new * g * i * (one - i);
    d[1] = dc_new * c * f * (one - f);
    d[2] = dc_new * i * (one - g * g);
    d[3] = dh * y * o * (one - o);
    dc = dc_new * f;
    dh_direct = V(0);
  }

  // c' from what training keeps, and the old c.
  template <class V>
  static INLINE V new_c(const V* kept, V c) {
    return kept[1] * c + kept[0] * kept[2];
  }

  // The output before a projection, which training does not keep.
  template <class V>
  static INLINE V output(const V* kept, V c_new) {
    return kept[3] * tanh(c_new);
  }
};
