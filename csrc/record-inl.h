// What the backward pass reads of the forward pass, for one direction: inputs, states and gates by step t and row b.

template <class A, class Cell>
struct Record {
  using V = Vec<A>;
  static constexpr int K = Cell::KEPT;

  const LayerCall& call;
  const int64_t d;
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P, D = call.D;
  const bool back = call.backwards(d);
  Port<A> port(const void* data) const { return {data, call.storage}; }
  const Port<A> x = port(call.x), y = port(call.y), gates = port(call.gates);
  const A* cells = static_cast<const A*>(call.cells);

  int64_t time(int64_t step) const { return back ? step : T - 1 - step; }  // the backward pass goes the other way
  int64_t before(int64_t t) const { return back ? t + 1 : t - 1; }
  bool first(int64_t t, int64_t b) const { return back ? t == call.length(d, b) - 1 : t == 0; }
  bool alive(int64_t t, int64_t b) const { return t < call.length(d, b); }

  int64_t y_at(int64_t t, int64_t b) const { return ((t * B + b) * D + d) * P; }
  int64_t cells_at(int64_t t, int64_t b) const { return ((d * T + t) * B + b) * H; }

  // h that entered step t of row b, from unit j on.
  V h_before(int64_t t, int64_t b, int64_t j, int n) const {
    if (!first(t, b)) return y.get(y_at(before(t), b) + j, n);
    return call.states[0] ? port(call.states[0]).get((d * B + b) * P + j, n) : V(A(0));
  }
  V c_before(int64_t t, int64_t b, int64_t j, int n) const {
    if (!first(t, b)) return load_first(cells + cells_at(before(t), b) + j, n);
    return call.states[1] ? port(call.states[1]).get((d * B + b) * H + j, n) : V(A(0));
  }
  void kept_at(int64_t t, int64_t b, int64_t j, int n, V* kept) const {
    for (int k = 0; k < K; ++k) kept[k] = gates.get((((d * T + t) * B + b) * K + k) * H + j, n);
  }

  void get_x(int64_t t, int64_t b, A* to) const {
    x.get_row(call.group(d) * call.x_stride_X + t * call.x_stride_T + b * call.x_stride_B, to, I);
  }
  // Rows in whole vectors: h that entered the step, and the output before a projection.
  void get_h_before(int64_t t, int64_t b, A* to) const {
    for (int64_t j = 0; j < P; j += V::W) h_before(t, b, j, int(std::min<int64_t>(V::W, P - j))).store(to + j);
  }
  void get_output(int64_t t, int64_t b, A* to) const {
    for (int64_t j = 0; j < H; j += V::W) {
      const int n = int(std::min<int64_t>(V::W, H - j));
      V kept[K];
      kept_at(t, b, j, n, kept);
      Cell::output(kept, load_first(cells + cells_at(t, b) + j, n)).store(to + j);
    }
  }
};
