// The RNN cell: h' = act(x + r), act = tanh or relu (Elman 1990).
struct Rnn {
  static constexpr int G = 1, SPLIT = 0, STATES = 1, KEPT = 0;
  static constexpr bool RELU = true, PROJECTION = false;

  // sums: x + r per gate. The new h goes to h; nothing is kept, since the derivative follows from the output.
  template <class V>
  static INLINE void forward(const V* sums, const V*, V& h, V&, V*, bool relu) {
    h = activate(sums[0], relu);
  }

  // dh: gradient of h'. Out: d, the gradients of the pre-activations, and the gradient that reaches h directly.
  template <class V>
  static INLINE void backward(const V*, V h_new, V, V, V, V dh, V&, V* d, V& dh_direct, bool relu) {
    d[0] = relu ? where_positive(h_new, dh) : dh * (V(1) - h_new * h_new);
    dh_direct = V(0);
  }
};
