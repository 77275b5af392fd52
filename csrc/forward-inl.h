// The forward loop over time, for every cell. One job is one direction and a range of rows (or all rows and a team).
//
// Per step, panel of hidden units and block of rows: the products with x and h, then the cell and the stores, while the
// sums are in the first-level cache. A is the type computed in, NV the vectors that a gate has in a panel.

template <class A, class Cell, int NV>
struct Forward {
  using V = Vec<A>;
  static constexpr int W = V::W, G = Cell::G, SPLIT = Cell::SPLIT, NB = G * NV, XB = SPLIT * NV, K = Cell::KEPT;
  static constexpr int WIDTH = NV * W, SUMS = (NB + XB) * W;  // hidden units of a panel; their sums for one row
  static constexpr int64_t BLOCK = 8 * tile_rows(NB);         // rows whose sums are kept at a time

  const LayerCall& call;
  const Schedule plan;
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P, D = call.D;
  const int64_t panels = (H + WIDTH - 1) / WIDTH, Hp = panels * WIDTH;
  const int64_t out_panels = (P + WIDTH - 1) / WIDTH, Pp = out_panels * WIDTH;
  const int64_t chunk = plan.chunked ? std::clamp<int64_t>(kChunkBytes / (B * panels * NB * W * sizeof(A)), 1, T) : 1;
  Port<A> port(const void* data) const { return {data, call.storage}; }
  const Port<A> x_in = port(call.x), y = port(call.y), gates = port(call.gates);
  Scratch<A> w_ih, w_hh, bias, w_hr;  // packed: [D][panel][k][NB][W]; the bias [D][panel][NB + XB][W]

  Forward(const LayerCall& c, const Schedule& s) : call(c), plan(s) {
    bias.allocate(D * panels * SUMS);
    if (plan.pack_ih) w_ih.allocate(D * panels * I * NB * W);
    if (plan.pack_hh) w_hh.allocate(D * panels * P * NB * W);
    if (call.project) w_hr.allocate(D * out_panels * H * WIDTH);
  }

  A* w_ih_of(int64_t d, int64_t u) const { return w_ih.data() + (d * panels + u) * I * NB * W; }
  A* w_hh_of(int64_t d, int64_t u) const { return w_hh.data() + (d * panels + u) * P * NB * W; }
  A* w_hr_of(int64_t d, int64_t u) const { return w_hr.data() + (d * out_panels + u) * H * WIDTH; }
  A* bias_of(int64_t d, int64_t u) const { return bias.data() + (d * panels + u) * SUMS; }

  // Where the sums start: b_ih + b_hh; but a split gate's recurrent sum starts at its b_hh, and its b_ih comes last.
  void pack_bias(int64_t d, int64_t u) {
    A* to = bias_of(d, u);
    std::fill_n(to, SUMS, A(0));
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
    for (int i = 0; i < NB; ++i) {
      int64_t j = u * WIDTH + i % NV * W, first = i / NV * H + j;
      int n = int(std::clamp<int64_t>(H - j, 0, W));
      if (plan.pack_ih) pack_columns(port(call.weight(d, 0)), first * I, I, n, I, w_ih_of(d, u) + i * W, NB * W);
      if (plan.pack_hh) pack_columns(port(call.weight(d, 1)), first * P, P, n, P, w_hh_of(d, u) + i * W, NB * W);
    }
  }

  void pack_projection(int64_t d, int64_t u) {
    for (int v = 0; v < NV; ++v) {
      int64_t p = u * WIDTH + v * W;
      int n = int(std::clamp<int64_t>(P - p, 0, W));
      pack_columns(port(call.weight(d, call.bias ? 4 : 2)), p * H, H, n, H, w_hr_of(d, u) + v * W, WIDTH);
    }
  }

  // The state of one job: rows b0..b0+rows of direction d.
  struct Job {
    int64_t d, b0, rows;
    Scratch<A> h, c, cell_out, pre;  // h [2][rows][Pp], c and cell_out [rows][Hp], pre [rows of a chunk][panel][NB][W]
    const A* h_old(int64_t s, int64_t Pp) const { return h.data() + s % 2 * rows * Pp; }
  };

  void start(Job& job) const {
    job.h.allocate(2 * job.rows * Pp, true);
    if (Cell::STATES > 1) job.c.allocate(job.rows * Hp, true);
    if (call.project) job.cell_out.allocate(job.rows * Hp);
    if (plan.chunked) job.pre.allocate(chunk * job.rows * panels * NB * W);
    for (int64_t r = 0; r < job.rows; ++r) {
      int64_t row = job.d * B + job.b0 + r;
      if (call.states[0]) port(call.states[0]).get_row(row * P, job.h.data() + r * Pp, P);
      if (Cell::STATES > 1 && call.states[1]) port(call.states[1]).get_row(row * H, job.c.data() + r * Hp, H);
    }
  }

  void finish(const Job& job) const {
    for (int64_t r = 0; r < job.rows; ++r) {
      int64_t row = job.d * B + job.b0 + r;
      port(call.last[0]).put_row(job.h_old(T, Pp) + r * Pp, row * P, P);
      if (Cell::STATES > 1) port(call.last[1]).put_row(job.c.data() + r * Hp, row * H, H);
    }
  }

  // The rows of x of some steps, `row` apart: in place where they are evenly spaced, else copied into the buffer.
  const A* rows_of_x(const Job& job, Scratch<A>& buffer, int64_t t0, int64_t steps, int64_t* row) const {
    int64_t first = call.group(job.d) * call.x_stride_X + job.b0 * call.x_stride_B + t0 * call.x_stride_T;
    *row = steps == 1 ? call.x_stride_B : call.x_stride_T;
    bool even = steps == 1 || job.rows == 1;
    if (!even && call.x_stride_T == job.rows * call.x_stride_B) even = true, *row = call.x_stride_B;
    if (even && x_in.direct()) return x_in.at(first);
    buffer.allocate(chunk * job.rows * I);
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t r = 0; r < job.rows; ++r)
        x_in.get_row(first + t * call.x_stride_T + r * call.x_stride_B, buffer.data() + (t * job.rows + r) * I, I);
    *row = I;
    return buffer.data();
  }

  // The input's share of the sums of some steps, for panels u0..u1.
  void project_input(const Job& job, Scratch<A>& buffer, int64_t t0, int64_t steps, int64_t u0, int64_t u1) const {
    int64_t row, n = steps * job.rows;
    const A* x = rows_of_x(job, buffer, t0, steps, &row);
    for (int64_t u = u0; u < u1; ++u) {
      A* to = job.pre.data() + u * NB * W;
      const A* b = bias_of(job.d, u);
      for (int64_t r = 0; r < n; ++r) {
        std::copy_n(b, (NB - XB) * W, to + r * panels * NB * W);
        std::copy_n(b + NB * W, XB * W, to + r * panels * NB * W + (NB - XB) * W);
      }
      add(job.d, u, n, x, row, true, I, to, panels * NB * W);
    }
  }

  // sums [n][NB + XB][W] of panel u for rows r..r+n: x is null where `pre` has its share.
  void sum_up(const Job& job, int64_t u, int64_t r, int64_t n, const A* x, int64_t x_row, const A* pre, const A* h,
              A* sums) const {
    const A* b = bias_of(job.d, u);
    for (int64_t m = 0; m < n;
         ++m) {  // first the input's share; that of a split gate in the place of its recurrent sum
      A* to = sums + m * SUMS;
      if (!x) {
        std::copy_n(pre + ((r + m) * panels + u) * NB * W, NB * W, to);
      } else {
        std::copy_n(b, (NB - XB) * W, to);
        std::copy_n(b + NB * W, XB * W, to + (NB - XB) * W);
      }
    }
    if (x) add(job.d, u, n, x + r * x_row, x_row, true, I, sums, SUMS);
    if constexpr (SPLIT > 0)
      for (int64_t m = 0; m < n; ++m) {
        A* to = sums + m * SUMS;
        std::copy_n(to + (NB - XB) * W, XB * W, to + NB * W);
        std::copy_n(b + (NB - XB) * W, XB * W, to + (NB - XB) * W);
      }
    add(job.d, u, n, h + r * Pp, Pp, false, P, sums, SUMS);
  }

  // sums += a times W_ih or W_hh, for n rows of panel u.
  void add(int64_t d, int64_t u, int64_t n, const A* a, int64_t row, bool input, int64_t width, A* sums,
           int64_t sums_row) const {
    if (input ? plan.pack_ih : plan.pack_hh)
      return product<NB>(n, a, row, 1, input ? w_ih_of(d, u) : w_hh_of(d, u), NB * W, width, sums, sums_row);
    const A* w = static_cast<const A*>(call.weight(d, input ? 0 : 1)) + u * WIDTH * width;
    for (int g = 0; g < G; ++g)
      dot_product(n, a, row, w + g * H * width, std::min<int64_t>(WIDTH, H - u * WIDTH), width, sums + g * WIDTH,
                  sums_row);
  }

  // The cell for rows r..r+n of panel u at step t, from their sums.
  void apply(const Job& job, int64_t t, int64_t u, int64_t r, int64_t n, const A* sums, const A* h, A* h_new) const {
    for (int64_t m = r; m < r + n; ++m, sums += SUMS) {
      int64_t b = job.b0 + m, at = (job.d * T + t) * B + b;
      bool alive = t < call.length(job.d, b);
      for (int v = 0; v < NV; ++v) {
        int64_t j = u * WIDTH + v * W;
        int lanes = int(std::min<int64_t>(W, H - j));
        if (lanes <= 0) break;
        V s[G], x[SPLIT + 1], kept[K + 1], c(A(0)), out(A(0));
        for (int g = 0; g < G; ++g) s[g] = load(sums + (g * NV + v) * W);
        for (int g = 0; g < SPLIT; ++g) x[g] = load(sums + (NB + g * NV + v) * W);
        if constexpr (SPLIT > 0) out = load(h + m * Pp + j);
        if constexpr (Cell::STATES > 1) c = load(job.c.data() + m * Hp + j);
        V c_new = c;
        Cell::forward(s, x, out, c_new, kept, call.relu);
        if (!alive) c_new = c;
        if constexpr (Cell::STATES > 1) {
          c_new.store(job.c.data() + m * Hp + j);
          if (call.cells) store_first(c_new, static_cast<A*>(call.cells) + at * H + j, lanes);
        }
        if (K > 0 && gates)
          for (int k = 0; k < K; ++k) gates.put(alive ? kept[k] : V(A(0)), (at * K + k) * H + j, lanes);
        if (call.project) out.store(job.cell_out.data() + m * Hp + j);
        else put(job, t, m, j, lanes, alive, out, h, h_new);
      }
    }
  }

  // The new h of row r at j: into the state and into y.
  INLINE void put(const Job& job, int64_t t, int64_t r, int64_t j, int lanes, bool alive, V out, const A* h,
                  A* h_new) const {
    (alive ? out : load(h + r * Pp + j)).store(h_new + r * Pp + j);
    y.put(alive ? out : V(A(0)), ((t * B + job.b0 + r) * D + job.d) * P + j, lanes);
  }

  void project(const Job& job, int64_t t, int64_t u, int64_t r, int64_t n, A* sums, const A* h, A* h_new) const {
    std::fill_n(sums, n * WIDTH, A(0));
    product<NV>(n, job.cell_out.data() + r * Hp, Hp, 1, w_hr_of(job.d, u), WIDTH, H, sums, WIDTH);
    for (int64_t m = r; m < r + n; ++m, sums += WIDTH)
      for (int64_t j = u * WIDTH; j < std::min(P, (u + 1) * WIDTH); j += W)
        put(job, t, m, j, int(std::min<int64_t>(W, P - j)), t < call.length(job.d, job.b0 + m),
            load(sums + j - u * WIDTH), h, h_new);
  }

  void run_job(const Job& job, int64_t member, int64_t members, Team& team) const {
    const int64_t u0 = panels * member / members, u1 = panels * (member + 1) / members;
    const bool back = call.backwards(job.d);
    Scratch<A> x_buffer;
    alignas(64) A sums[BLOCK * SUMS];
    auto for_blocks = [&](int64_t lo, int64_t hi, auto&& f) {
      for (int64_t u = lo; u < hi; ++u)
        for (int64_t r = 0; r < job.rows; r += BLOCK) f(u, r, std::min(BLOCK, job.rows - r));
    };
    for (int64_t done = 0; done < T; done += chunk) {
      int64_t steps = std::min(chunk, T - done), t0 = back ? T - done - steps : done;
      if (plan.chunked) project_input(job, x_buffer, t0, steps, u0, u1);
      for (int64_t s = done; s < done + steps; ++s) {
        int64_t t = back ? T - 1 - s : s, x_row = 0;
        const A* x = plan.chunked ? nullptr : rows_of_x(job, x_buffer, t, 1, &x_row);
        const A* pre = plan.chunked ? job.pre.data() + (t - t0) * job.rows * panels * NB * W : nullptr;
        const A* h = job.h_old(s, Pp);
        A* h_new = const_cast<A*>(job.h_old(s + 1, Pp));
        for_blocks(u0, u1, [&](int64_t u, int64_t r, int64_t n) {
          sum_up(job, u, r, n, x, x_row, pre, h, sums);
          apply(job, t, u, r, n, sums, h, h_new);
        });
        team.barrier();
        if (!call.project) continue;
        for_blocks(out_panels * member / members, out_panels * (member + 1) / members,
                   [&](int64_t u, int64_t r, int64_t n) { project(job, t, u, r, n, sums, h, h_new); });
        team.barrier();
      }
    }
  }

  void run() {
    const bool parallel = plan.batch_parts > 1 || plan.members > 1 || (D > 1 && plan.threaded);
    spread(parallel, D * panels, [&](int64_t i) { pack_panel(i / panels, i % panels); });
    if (call.project)
      spread(parallel, D * out_panels, [&](int64_t i) { pack_projection(i / out_panels, i % out_panels); });
    spread(parallel && plan.members == 1, D * plan.batch_parts, [&](int64_t i) {
      int64_t part = i % plan.batch_parts, b0 = B * part / plan.batch_parts;
      Job job{i / plan.batch_parts, b0, B * (part + 1) / plan.batch_parts - b0, {}, {}, {}, {}};
      start(job);
      Team::run(plan.members, std::chrono::microseconds(500),
                [&](int64_t member, int64_t members, Team& team) { run_job(job, member, members, team); });
      finish(job);
    });
  }
};
