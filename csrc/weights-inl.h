// The weights of a layer's forward pass in the form that its schedule says, and their products with rows of x and of h.
// A panel is WIDTH hidden units (outputs of a projection) with all their gates. A is the type computed in, NV the
// vectors that a gate has in a panel.

template <class A, class Cell, int NV>
struct Weights {
  static constexpr int W = Vec<A>::W, G = Cell::G, SPLIT = Cell::SPLIT, NB = G * NV;
  static constexpr int WIDTH = NV * W, SUMS = NB * W;      // hidden units of a panel; their sums for one row
  static constexpr int AGAIN = Cell::PHASES > 1 ? NV : 0;  // vectors of W_hh that wait for the second product
  static constexpr int BIAS = (G + SPLIT) * WIDTH;         // and what is added to these

  const LayerCall& call;
  const Schedule plan;
  const int64_t I = call.I, H = call.H, P = call.P, D = call.D;
  const int64_t panels = (H + WIDTH - 1) / WIDTH, out_panels = (P + WIDTH - 1) / WIDTH;
  Factor<A> w_ih, w_hh, w_hr;  // panel after panel, direction after direction
  Factor<A> w_again;           // the last gate of W_hh, where it has a product of its own
  Scratch<A> bias;             // [D][panel][BIAS]
  mutable Flag overflow;       // a number that has no bf16 parts came

  Weights(const LayerCall& c, const Schedule& s) : call(c), plan(s) {
    bias.allocate(D * panels * BIAS);
    allocate(w_ih, plan.ih, I, NB);
    allocate(w_hh, plan.hh, P, NB - AGAIN);
    if (AGAIN > 0) allocate(w_again, plan.hh, P, AGAIN);
    if (call.project) w_hr.allocate(D * out_panels * WIDTH, H, 0);
  }

  // Panels of n vectors.
  void allocate(Factor<A>& w, Form form, int64_t K, int n) const {
    const int64_t columns = D * panels * n * W;
    if (form == Form::quads) w.allocate_quads(columns, K);
    else if (form == Form::narrow) w.allocate_narrow(columns, K, call.storage);
    else if (kept(form)) w.allocate(columns, K, form == Form::pairs ? plan.parts : 0);
  }
  // Whether a matrix is there in a form of its own, all of it at once.
  bool kept(Form form) const { return form != Form::in_place && !passing(form); }
  // Whether it is packed a panel at a time, each time that one is used.
  bool passing(Form form) const { return plan.passing && (form == Form::pairs || form == Form::panels); }
  Port<A> port(const void* data) const { return {data, call.storage}; }
  template <class T>
  const T* weight(int64_t d, int k) const {
    return static_cast<const T*>(call.weight(d, k));
  }
  int64_t column(int64_t d, int64_t u, int n) const { return (d * panels + u) * n * W; }
  A* bias_of(int64_t d, int64_t u) const { return bias.data() + (d * panels + u) * BIAS; }

  // All of them; false if a number came that the form cannot take.
  bool pack(bool parallel) {
    spread(parallel, D * panels, [&](int64_t i) { pack_panel(i / panels, i % panels); });
    if (call.project)
      spread(parallel, D * out_panels, [&](int64_t i) { pack_projection(i / out_panels, i % out_panels); });
    return !overflow;
  }

  // What is added to the sums: b_ih + b_hh; but a split gate's recurrent sum has its b_hh, and its b_ih comes last.
  void pack_bias(int64_t d, int64_t u) {
    A* to = bias_of(d, u);
    std::fill_n(to, BIAS, A(0));
    if (!call.bias) return;
    for (int side = 0; side < 2; ++side)
      for (int g = 0; g < G; ++g) {
        alignas(64) A row[WIDTH];
        int64_t n = std::min<int64_t>(WIDTH, H - u * WIDTH);
        port(call.weight(d, 2 + side)).get_row(g * H + u * WIDTH, row, n);
        A* at = to + (side == 0 && g >= G - SPLIT ? g + SPLIT : g) * WIDTH;
        for (int64_t j = 0; j < n; ++j) at[j] += row[j];
      }
  }

  void pack_panel(int64_t d, int64_t u) {
    pack_bias(d, u);
    if (kept(plan.ih)) pack_matrix<NB>(w_ih, plan.ih, 0, I, 0, d, u, column(d, u, NB));
    if (!kept(plan.hh)) return;
    pack_matrix<NB - AGAIN>(w_hh, plan.hh, 1, P, 0, d, u, column(d, u, NB - AGAIN));
    if constexpr (AGAIN > 0) pack_matrix<AGAIN>(w_again, plan.hh, 1, P, G - 1, d, u, column(d, u, AGAIN));
  }

  // Panel u of weights k of K columns, gates g0.. that are N vectors, to column c of w.
  template <int N>
  void pack_matrix(Factor<A>& w, Form form, int k, int64_t K, int g0, int64_t d, int64_t u, int64_t c) const {
    for (int v = 0; v < N; ++v) {
      const int64_t j = u * WIDTH + v % NV * W, first = (g0 + v / NV) * H + j, at = first * K;
      const int n = int(std::clamp<int64_t>(H - j, 0, W));
      if (form == Form::quads) w.pack_quads(weight<int8_t>(d, k) + at, call.scale(d, k) + first, n, K, c, N, v);
      else if (form == Form::narrow) w.pack_narrow(weight<Bits>(d, k) + at, n, K, c, N, v);
      else w.pack_columns(port(call.weight(d, k)), at, K, n, K, c, N, v, overflow);
    }
  }

  void pack_projection(int64_t d, int64_t u) {
    for (int v = 0; v < NV; ++v) {
      int64_t p = u * WIDTH + v * W;
      int n = int(std::clamp<int64_t>(P - p, 0, W));
      w_hr.pack_columns(port(call.weight(d, call.bias ? 4 : 2)), p * H, H, n, H, (d * out_panels + u) * WIDTH, NV, v,
                        overflow);
    }
  }

  // sums = left times W_ih, or times what the first product (or the second one) of a step takes of W_hh, for n rows of
  // panel u.
  void multiply_input(Tiles& tiles, int64_t d, int64_t u, int64_t n, const Left<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply<NB>(w_ih, plan.ih, 0, I, 0, tiles, d, u, n, left, sums, sums_row);
  }
  void multiply_state(Tiles& tiles, int64_t d, int64_t u, int64_t n, const Left<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply<NB - AGAIN>(w_hh, plan.hh, 1, P, 0, tiles, d, u, n, left, sums, sums_row);
  }
  void multiply_again(Tiles& tiles, int64_t d, int64_t u, int64_t n, const Left<A>& left, A* sums,
                      int64_t sums_row) const {
    multiply<AGAIN>(w_again, plan.hh, 1, P, G - 1, tiles, d, u, n, left, sums, sums_row);
  }

  // The same with weights k of K columns, gates g0.. that are N vectors in a panel.
  template <int N>
  void multiply(const Factor<A>& w, Form form, int k, int64_t K, int g0, Tiles& tiles, int64_t d, int64_t u, int64_t n,
                const Left<A>& left, A* sums, int64_t sums_row) const {
    if (passing(form)) {  // it stays close, and takes no memory of its own
      Factor<A> panel;
      panel.allocate(N * W, K, form == Form::pairs ? plan.parts : 0);
      pack_matrix<N>(panel, form, k, K, g0, d, u, 0);
      return panel.template multiply<N>(tiles, plan.level, n, left, 0, K, 0, sums, sums_row, Sum::put);
    }
    if (form != Form::in_place)
      return w.template multiply<N>(tiles, plan.level, n, left, 0, K, column(d, u, N), sums, sums_row, Sum::put);
    for (int g = 0; g < N / NV; ++g) {
      const int64_t first = (g0 + g) * H + u * WIDTH, count = std::min<int64_t>(WIDTH, H - u * WIDTH);
      for (int64_t m = 0; count < WIDTH && m < n; ++m)  // what pads a panel may become a factor
        std::fill_n(sums + m * sums_row + g * WIDTH + count, WIDTH - count, A(0));
      if (!call.quantized()) {
        dot_product(n, left.a, left.row, port(call.weight(d, k)), first * K, count, K, sums + g * WIDTH, sums_row);
      } else if constexpr (sizeof(A) == 4) {
        dot_quads(n, left.split, left.split_row, weight<int8_t>(d, k) + first * K, call.scale(d, k) + first, count, K,
                  sums + g * WIDTH, sums_row);
      }
    }
  }

  // sums = left times W_hr, for n rows of panel u of the outputs.
  void project(Tiles& tiles, int64_t d, int64_t u, int64_t n, const Left<A>& left, A* sums) const {
    w_hr.template multiply<NV>(tiles, plan.level, n, left, 0, H, (d * out_panels + u) * WIDTH, sums, WIDTH, Sum::put);
  }
};
