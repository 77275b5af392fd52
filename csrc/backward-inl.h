// The backward loop over time, for every cell, in chunks of steps: first the recurrence of the chunk, which leaves the
// gradients of its pre-activations in a buffer, then their products with weights, inputs and states, while it is warm.
//
// PLANES: pre-activation gradients per hidden unit; a split gate has one for the input's share and one of its own.

template <class A, class Cell, int NV>
struct Backward {
  using V = Vec<A>;
  static constexpr int W = V::W, WIDTH = NV * W, G = Cell::G, SPLIT = Cell::SPLIT, PLANES = G + SPLIT, K = Cell::KEPT;
  static constexpr int64_t BLOCK = 16 * tile_rows(NV);  // rows whose sums are kept at a time

  const LayerCall& call;
  const Schedule plan;
  const int64_t d;
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P, D = call.D;
  const bool back = call.backwards(d), parallel = plan.batch_parts > 1 || plan.members > 1;
  const int64_t panels = (H + WIDTH - 1) / WIDTH, Hp = panels * WIDTH;
  const int64_t out_panels = (P + WIDTH - 1) / WIDTH, Pp = out_panels * WIDTH, Ip = (I + W - 1) / W * W;
  // Rows of a chunk: as many as the cache holds, but enough that reading and writing large gradients of weights pays.
  const bool large = G * H * (I + P) * int64_t(sizeof(A)) > 2 * kBackwardBytes;
  const int64_t chunk_rows = std::max<int64_t>(large ? 768 : 256, kBackwardBytes / (PLANES * Hp * int64_t(sizeof(A))));
  const int64_t chunk = std::clamp<int64_t>(chunk_rows / B, 1, T);
  Port<A> port(const void* data) const { return {data, call.storage}; }
  const Port<A> x = port(call.x), y = port(call.y), dy = port(call.dy), dx = port(call.dx), gates = port(call.gates);
  const A *cells = static_cast<const A*>(call.cells), *dcells = static_cast<const A*>(call.dcells);

  Scratch<A> w_hh, w_hr, w_ih;          // packed along the rows of the matrix: [panel][row][vectors][W]
  Scratch<A> dz, dout;                  // [slot][B][PLANES][Hp], [slot][B][Pp]; slot 0 is the step before the chunk
  Scratch<A> carry, dc;                 // [B][Pp], [B][Hp]: what reaches the state of the step before directly
  Scratch<A> x_rows, h_rows, out_rows;  // the other factors of the weights, a chunk's rows in panels of columns
  GradientSum<A> dw_ih, dw_hh, dw_hr;
  Scratch<A> db;  // [2][G * H]

  Backward(const LayerCall& c, const Schedule& s, int64_t direction) : call(c), plan(s), d(direction) {}

  // A few rows do not earn the packing back: weights whose rows are whole panels are then read where they lie.
  bool few_rows(int64_t n, int64_t panel) const { return x.direct() && T * B <= 32 && n % panel == 0; }
  const bool ih_in_place = few_rows(I, W), hh_in_place = few_rows(P, WIDTH);

  bool need_dweights() const { return !call.dweights.empty(); }
  bool pack_hh() const { return !hh_in_place && (T > 1 || call.dstates[0]); }
  bool pack_ih() const { return !ih_in_place && dx; }
  static constexpr int r_plane(int g) { return g < G - SPLIT ? g : g + SPLIT; }
  A* dz_of(int64_t slot, int64_t b) const { return dz.data() + (slot * B + b) * PLANES * Hp; }
  int64_t time(int64_t step) const { return back ? step : T - 1 - step; }  // the backward pass goes the other way
  int64_t before(int64_t t) const { return back ? t + 1 : t - 1; }
  bool first(int64_t t, int64_t b) const { return back ? t == call.length(d, b) - 1 : t == 0; }
  bool alive(int64_t t, int64_t b) const { return t < call.length(d, b); }

  // h that entered step t of row b, from unit j on.
  V h_before(int64_t t, int64_t b, int64_t j, int n) const {
    if (!first(t, b)) return y.get(((before(t) * B + b) * D + d) * P + j, n);
    return call.states[0] ? port(call.states[0]).get((d * B + b) * P + j, n) : V(A(0));
  }
  V c_before(int64_t t, int64_t b, int64_t j, int n) const {
    if (!first(t, b)) return load_first(cells + ((d * T + before(t)) * B + b) * H + j, n);
    return call.states[1] ? port(call.states[1]).get((d * B + b) * H + j, n) : V(A(0));
  }
  void kept_at(int64_t t, int64_t b, int64_t j, int n, V* kept) const {
    for (int k = 0; k < K; ++k) kept[k] = gates.get((((d * T + t) * B + b) * K + k) * H + j, n);
  }

  // sums [n][WIDTH]: gradient of the h that entered the step in `slot`, rows r..: dz W_hh, and what comes directly.
  void recurrent(int64_t slot, int64_t r, int64_t n, int64_t u, A* sums) const {
    for (int64_t m = 0; m < n; ++m) std::copy_n(carry.data() + (r + m) * Pp + u * WIDTH, WIDTH, sums + m * WIDTH);
    if (slot < 0) return;
    const A* w = hh_in_place ? static_cast<const A*>(call.weight(d, 1)) + u * WIDTH : w_hh.data() + u * G * H * WIDTH;
    const int64_t w_row = hh_in_place ? P : WIDTH;
    for (int g = 0; g < G; ++g)
      product<NV>(n, dz_of(slot, r) + r_plane(g) * Hp, PLANES * Hp, 1, w + g * H * w_row, w_row, H, sums, WIDTH);
  }

  // The cell's derivative at units j.., given the gradient of its output.
  INLINE void cell(int64_t slot, int64_t t, int64_t b, int64_t j, V dh) {
    int n = int(std::min<int64_t>(W, H - j));
    A* to = dz_of(slot, b) + j;
    if (n <= 0 || !alive(t, b)) {
      for (int p = 0; p < PLANES; ++p) V(A(0)).store(to + p * Hp);
      return;
    }
    V kept[K + 1], delta[PLANES], zero(A(0)), h = zero, h_new = zero, c = zero, c_new = zero, dc_new = zero, direct;
    kept_at(t, b, j, n, kept);
    if constexpr (SPLIT > 0) h = h_before(t, b, j, n);
    if constexpr (K == 0) h_new = y.get(((t * B + b) * D + d) * P + j, n);
    if constexpr (Cell::STATES > 1) {
      int64_t at = ((d * T + t) * B + b) * H + j;
      c = c_before(t, b, j, n), c_new = load_first(cells + at, n), dc_new = load(dc.data() + b * Hp + j);
      if (dcells) dc_new = dc_new + load_first(dcells + at, n);
    }
    Cell::backward(kept, h_new, h, c, c_new, dh, dc_new, delta, direct, call.relu);
    for (int p = 0; p < PLANES; ++p) delta[p].store(to + p * Hp);
    if constexpr (Cell::STATES > 1) dc_new.store(dc.data() + b * Hp + j);
    if (!call.project) direct.store(carry.data() + b * Pp + j);
  }

  // One step of panel u of h for rows r..r+n: dh = dy + recurrent, then the cell (with a projection: step_projected).
  void step(int64_t slot, int64_t t, bool start, int64_t u, int64_t r, int64_t n, A* sums) {
    recurrent(start ? -1 : slot - 1, r, n, u, sums);
    for (int64_t b = r; b < r + n; ++b)
      for (int64_t j = u * WIDTH; j < (u + 1) * WIDTH; j += W, sums += W) {
        V dh = load(sums);
        int lanes = int(std::min<int64_t>(W, P - j));
        if (!alive(t, b)) dh.store(carry.data() + b * Pp + j);  // the state passed through
        else if (lanes > 0) dh = dh + dy.get(((t * B + b) * D + d) * P + j, lanes);
        if (!call.project) {
          cell(slot, t, b, j, dh);
        } else {
          (alive(t, b) ? dh : V(A(0))).store(dout.data() + (slot * B + b) * Pp + j);
          if (alive(t, b)) V(A(0)).store(carry.data() + b * Pp + j);
        }
      }
  }

  // The gradient before the projection, dout W_hr, and then the cell.
  void step_projected(int64_t slot, int64_t t, int64_t u, int64_t r, int64_t n, A* sums) {
    std::fill_n(sums, n * WIDTH, A(0));
    product<NV>(n, dout.data() + (slot * B + r) * Pp, Pp, 1, w_hr.data() + u * P * WIDTH, WIDTH, P, sums, WIDTH);
    for (int64_t b = r; b < r + n; ++b)
      for (int64_t j = u * WIDTH; j < (u + 1) * WIDTH; j += W, sums += W) cell(slot, t, b, j, load(sums));
  }

  void recurrence(int64_t done, int64_t steps) {
    spread(plan.batch_parts > 1, plan.batch_parts, [&](int64_t i) {
      const int64_t b0 = B * i / plan.batch_parts, b1 = B * (i + 1) / plan.batch_parts;
      Team::run(plan.members, std::chrono::microseconds(500), [&](int64_t member, int64_t members, Team& team) {
        alignas(64) A sums[BLOCK * WIDTH];
        auto for_blocks = [&](int64_t all, auto&& f) {
          for (int64_t u = all * member / members; u < all * (member + 1) / members; ++u)
            for (int64_t r = b0; r < b1; r += BLOCK) f(u, r, std::min(BLOCK, b1 - r));
          team.barrier();
        };
        for (int64_t s = 0; s < steps; ++s) {
          int64_t t = time(done + s);
          for_blocks(out_panels,
                     [&](int64_t u, int64_t r, int64_t n) { step(s + 1, t, done + s == 0, u, r, n, sums); });
          if (call.project)
            for_blocks(panels, [&](int64_t u, int64_t r, int64_t n) { step_projected(s + 1, t, u, r, n, sums); });
        }
      });
    });
  }

  // dx of the chunk's rows lo..hi = dz W_ih, added to what other directions of the group have left there.
  void input_gradient(int64_t done, int64_t lo, int64_t hi) {
    constexpr int64_t ROWS = 96;
    const bool add = d % int64_t(call.reverse.size()) != 0;
    for_columns<A>(I, [&](auto vectors, int64_t column) {
      constexpr int N = decltype(vectors)::value;
      alignas(64) A sums[ROWS * N * W];
      const int64_t width = std::min<int64_t>(N * W, I - column), w_row = ih_in_place ? I : N * W;
      const A* w = ih_in_place ? static_cast<const A*>(call.weight(d, 0)) + column : w_ih.data() + column * G * H;
      for (int64_t first = lo; first < hi; first += ROWS) {
        int64_t n = std::min(ROWS, hi - first);
        for (int64_t m = 0; m < n; ++m) {
          std::fill_n(sums + m * N * W, N * W, A(0));
          if (add) dx.get_row(dx_at(done, first + m) + column, sums + m * N * W, width);
        }
        for (int g = 0; g < G; ++g)
          product<N>(n, dz_of(1, first) + g * Hp, PLANES * Hp, 1, w + g * H * w_row, w_row, H, sums, N * W);
        for (int64_t m = 0; m < n; ++m) dx.put_row(sums + m * N * W, dx_at(done, first + m) + column, width);
      }
    });
  }
  int64_t dx_at(int64_t done, int64_t r) const { return ((call.group(d) * T + time(done + r / B)) * B + r % B) * I; }

  // The other factors of the weights' gradients, for one row of the chunk. Where a sequence has ended the gradients are
  // zero, and what lies there must not spoil them.
  void gather(int64_t done, int64_t row, A* buffer) {
    const int64_t t = time(done + row / B), b = row % B;
    const bool lives = alive(t, b);
    if (lives) x.get_row(call.group(d) * call.x_stride_X + t * call.x_stride_T + b * call.x_stride_B, buffer, I);
    else std::fill_n(buffer, I, A(0));
    put_in_panels(buffer, I, row, chunk * B, x_rows.data());
    for (int64_t j = 0; j < P; j += W)
      (lives ? h_before(t, b, j, int(std::min<int64_t>(W, P - j))) : V(A(0))).store(buffer + j);
    put_in_panels(buffer, P, row, chunk * B, h_rows.data());
    if constexpr (Cell::PROJECTION) {
      if (!call.project) return;
      for (int64_t j = 0; j < H; j += W) {
        int n = int(std::min<int64_t>(W, H - j));
        V kept[K];
        kept_at(t, b, j, n, kept);
        (lives ? Cell::output(kept, load_first(cells + ((d * T + t) * B + b) * H + j, n)) : V(A(0))).store(buffer + j);
      }
      put_in_panels(buffer, H, row, chunk * B, out_rows.data());
    }
  }

  // The chunk's share of the gradients of weights and biases that belong to hidden units lo..hi of one plane.
  void weight_gradients(bool start, int64_t rows, int plane, int64_t lo, int64_t hi) {
    constexpr int64_t UNITS = 48;  // hidden units copied together, so that the product reads one stretch of memory
    const int x_gate = plane < G ? plane : -1, r_gate = plane < G - SPLIT ? plane : plane < G ? -1 : plane - SPLIT;
    Scratch<A> block;
    block.allocate(rows * UNITS);
    for (int64_t j = lo; j < hi; j += UNITS) {
      int64_t n = std::min(UNITS, hi - j);
      A total[UNITS] = {};
      for (int64_t start_row = 0; start_row < rows; start_row += 64) {
        A part[UNITS] = {};  // long sums are sums of sums
        for (int64_t r = start_row; r < std::min(rows, start_row + 64); ++r) {
          const A* from = dz_of(1, r) + plane * Hp + j;
          for (int64_t m = 0; m < n; ++m) part[m] += block.data()[r * UNITS + m] = from[m];
        }
        for (int64_t m = 0; m < n; ++m) total[m] += part[m];
      }
      if (x_gate >= 0) dw_ih.add(start, x_gate * H + j, n, block.data(), UNITS, x_rows.data(), chunk * B, rows);
      if (r_gate >= 0) dw_hh.add(start, r_gate * H + j, n, block.data(), UNITS, h_rows.data(), chunk * B, rows);
      for (int64_t m = 0; m < n; ++m) {
        if (x_gate >= 0) db.data()[x_gate * H + j + m] += total[m];
        if (r_gate >= 0) db.data()[(G + r_gate) * H + j + m] += total[m];
      }
    }
  }

  void products(int64_t done, int64_t steps) {
    const int64_t rows = steps * B, parts = parallel ? thread_count() : 1;  // every row, every unit is the same work
    auto split = [&](int64_t n, auto&& f) {
      spread(parallel, parts, [&](int64_t i) { f(n * i / parts, n * (i + 1) / parts); });
    };
    if (dx) split(rows, [&](int64_t lo, int64_t hi) { input_gradient(done, lo, hi); });
    if (!need_dweights()) return;
    split(rows, [&](int64_t lo, int64_t hi) {
      Scratch<A> buffer;
      buffer.allocate(std::max(Ip, std::max(Pp, Hp)));
      for (int64_t r = lo; r < hi; ++r) gather(done, r, buffer.data());
    });
    split(H, [&](int64_t lo, int64_t hi) {  // of every plane, since a split gate's planes are less work
      for (int p = 0; p < PLANES && lo < hi; ++p) weight_gradients(done == 0, rows, p, lo, hi);
    });
    if (call.project)
      split(P, [&](int64_t lo, int64_t hi) {
        dw_hr.add(done == 0, lo, hi - lo, dout.data() + B * Pp + lo, Pp, out_rows.data(), chunk * B, rows);
      });
  }

  void allocate() {
    if (pack_hh()) w_hh.allocate(out_panels * G * H * WIDTH);
    dz.allocate((chunk + 1) * B * PLANES * Hp);
    carry.allocate(B * Pp, true);
    if (Cell::STATES > 1) dc.allocate(B * Hp, true);
    if (pack_ih()) w_ih.allocate(Ip * G * H);
    if (call.project) w_hr.allocate(panels * P * WIDTH), dout.allocate((chunk + 1) * B * Pp);
    if (!need_dweights()) return;
    x_rows.allocate(chunk * B * Ip, Ip != I), h_rows.allocate(chunk * B * Pp, Pp != P), db.allocate(2 * G * H, true);
    dw_ih.open(port(call.dweight(d, 0)), G * H, I), dw_hh.open(port(call.dweight(d, 1)), G * H, P);
    if (!call.project) return;
    out_rows.allocate(chunk * B * Hp, true);
    dw_hr.open(port(call.dweight(d, call.bias ? 4 : 2)), P, H);
  }

  // One panel of nv vectors: columns `first`.. of a matrix with `rows` rows of n columns.
  void pack(const void* matrix, int64_t n, int64_t first, int64_t rows, A* to, int nv) const {
    for (int v = 0; v < nv; ++v)
      pack_rows(port(matrix), first + v * W, n, int(std::clamp<int64_t>(n - first - v * W, 0, W)), rows, to + v * W,
                nv * W);
  }

  void start() {
    allocate();
    spread(parallel, pack_hh() ? out_panels : 0,
           [&](int64_t u) { pack(call.weight(d, 1), P, u * WIDTH, G * H, w_hh.data() + u * G * H * WIDTH, NV); });
    if (call.project)
      for (int64_t u = 0; u < panels; ++u)
        pack(call.weight(d, call.bias ? 4 : 2), H, u * WIDTH, P, w_hr.data() + u * P * WIDTH, NV);
    if (pack_ih())
      for_columns<A>(
          I, [&](auto vectors, int64_t i) { pack(call.weight(d, 0), I, i, G * H, w_ih.data() + i * G * H, vectors); });
    for (int64_t b = 0; b < B; ++b) {
      if (call.dlast[0]) port(call.dlast[0]).get_row((d * B + b) * P, carry.data() + b * Pp, P);
      if (Cell::STATES > 1 && call.dlast[1]) port(call.dlast[1]).get_row((d * B + b) * H, dc.data() + b * Hp, H);
    }
  }

  void finish(int64_t last_slot) {
    if (call.dstates[0])
      for (int64_t u = 0; u < out_panels; ++u)
        for (int64_t b = 0; b < B; ++b) {
          alignas(64) A sums[WIDTH];
          recurrent(last_slot, b, 1, u, sums);
          port(call.dstates[0]).put_row(sums, (d * B + b) * P + u * WIDTH, std::min<int64_t>(WIDTH, P - u * WIDTH));
        }
    if (Cell::STATES > 1 && call.dstates[1])
      for (int64_t b = 0; b < B; ++b) port(call.dstates[1]).put_row(dc.data() + b * Hp, (d * B + b) * H, H);
    if (!need_dweights()) return;
    dw_ih.close(), dw_hh.close(), dw_hr.close();
    for (int k = 0; call.bias && k < 2; ++k) port(call.dweight(d, 2 + k)).put_row(db.data() + k * G * H, 0, G * H);
  }

  void run() {
    start();
    int64_t last = 0;
    for (int64_t done = 0; done < T; done += chunk) {
      if (done > 0) std::copy_n(dz_of(last, 0), B * PLANES * Hp, dz_of(0, 0));
      last = std::min(chunk, T - done);
      recurrence(done, last);
      products(done, last);
    }
    finish(last);
  }
};
