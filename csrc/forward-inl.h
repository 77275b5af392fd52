// The forward loop over time, for every cell. One job is one direction and a range of rows (or all rows and a team).
//
// Per step, panel of hidden units and block of rows: the products with x and h, then the cell and the stores, while the
// sums are in the first-level cache. A is the type computed in, NV the vectors that a gate has in a panel.

template <class A, class Cell, int NV>
struct Forward {
  using V = Vec<A>;
  static constexpr int W = V::W, G = Cell::G, SPLIT = Cell::SPLIT, NB = G * NV, K = Cell::KEPT;
  static constexpr int WIDTH = NV * W, SUMS = NB * W;  // hidden units of a panel; their sums for one row
  static constexpr int64_t BLOCK = 128;                // rows whose sums are kept at a time, at most

  const LayerCall& call;
  const Schedule plan;
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P, D = call.D;
  const int64_t panels = (H + WIDTH - 1) / WIDTH, Hp = panels * WIDTH;
  const int64_t out_panels = (P + WIDTH - 1) / WIDTH, Pp = out_panels * WIDTH;
  const int64_t chunk =
      plan.chunked ? std::clamp<int64_t>(kChunkBytes / (B * panels * SUMS * sizeof(A)), std::min(T, 255 / B + 1), T)
                   : 1;
  Port<A> port(const void* data) const { return {data, call.storage}; }
  Port<A> x_in = port(call.x), y = port(call.y);  // a stream gets new ones with every call
  int64_t y_stride_T = B * D * P, y_stride_B = D * P;
  const Port<A> gates = port(call.gates);
  Factor<A> w_ih, w_hh, w_hr;                        // panel after panel, direction after direction
  Scratch<A> bias;                                   // [D][panel][G + SPLIT][NV][W]
  mutable Flag overflow;                             // a number that has no bf16 parts came
  const bool unbounded = call.relu || call.project;  // else no h is larger than 1 or than it was at the start

  Forward(const LayerCall& c, const Schedule& s) : call(c), plan(s) {
    bias.allocate(D * panels * BIAS);
    allocate(w_ih, plan.ih, I);
    allocate(w_hh, plan.hh, P);
    if (call.project) w_hr.allocate(D * out_panels * WIDTH, H, 0);
  }

  void allocate(Factor<A>& w, Form form, int64_t K) const {
    const int64_t columns = D * panels * NB * W;
    if (form == Form::quads) w.allocate_quads(columns, K);
    else if (packed(form)) w.allocate(columns, K, form == Form::pairs ? plan.parts : 0);
  }
  static bool packed(Form form) { return form != Form::in_place && form != Form::elsewhere; }
  int64_t column(int64_t d, int64_t u) const { return (d * panels + u) * NB * W; }
  A* bias_of(int64_t d, int64_t u) const { return bias.data() + (d * panels + u) * BIAS; }
  static constexpr int BIAS = (G + SPLIT) * WIDTH;

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
    for (int i = 0; i < NB; ++i) {
      int64_t j = u * WIDTH + i % NV * W, first = i / NV * H + j;
      int n = int(std::clamp<int64_t>(H - j, 0, W));
      auto pack = [&](Factor<A>& w, Form form, int k, int64_t width) {
        if (form == Form::quads)
          w.pack_quads(int8_weight(d, k) + first * width, call.scale(d, k) + first, n, width, column(d, u), NB, i);
        else if (packed(form))
          w.pack_columns(port(call.weight(d, k)), first * width, width, n, width, column(d, u), NB, i, overflow);
      };
      pack(w_ih, plan.ih, 0, I);
      pack(w_hh, plan.hh, 1, P);
    }
  }
  const int8_t* int8_weight(int64_t d, int k) const { return static_cast<const int8_t*>(call.weight(d, k)); }

  void pack_projection(int64_t d, int64_t u) {
    for (int v = 0; v < NV; ++v) {
      int64_t p = u * WIDTH + v * W;
      int n = int(std::clamp<int64_t>(P - p, 0, W));
      w_hr.pack_columns(port(call.weight(d, call.bias ? 4 : 2)), p * H, H, n, H, (d * out_panels + u) * WIDTH, NV, v,
                        overflow);
    }
  }

  // The state of one job: rows b0..b0+rows of direction d. h lies in two slots, the old one and the new one.
  struct Job {
    int64_t d, b0, rows;
    Scratch<A> h, c, cell_out, pre;  // h [2][rows][Pp], c and cell_out [rows][Hp], pre [rows of a chunk][panel][NB][W]
    SplitRows h_split;               // [2][rows], where W_hh is in pairs
    int64_t at(int64_t slot, int64_t r) const { return (slot & 1) * rows + r; }
  };

  void start(Job& job) const {
    job.h.allocate(2 * job.rows * Pp, true);
    if (plan.hh == Form::pairs) job.h_split.allocate(2 * job.rows, P, plan.parts);
    if (Cell::STATES > 1) job.c.allocate(job.rows * Hp, true);
    if (call.project) job.cell_out.allocate(job.rows * Hp);
    if (plan.chunked) job.pre.allocate(chunk * job.rows * panels * SUMS);
    for (int64_t r = 0; r < job.rows; ++r) {
      int64_t row = job.d * B + job.b0 + r;
      if (call.states[0]) {
        port(call.states[0]).get_row(row * P, job.h.data() + r * Pp, P);
        if (job.h_split) job.h_split.put_row(job.h.data() + r * Pp, P, r, overflow);
      }
      if (Cell::STATES > 1 && call.states[1]) port(call.states[1]).get_row(row * H, job.c.data() + r * Hp, H);
    }
  }

  void finish(const Job& job) const {
    for (int64_t r = 0; r < job.rows; ++r) {
      int64_t row = job.d * B + job.b0 + r;
      port(call.last[0]).put_row(job.h.data() + job.at(T, r) * Pp, row * P, P);
      if (Cell::STATES > 1) port(call.last[1]).put_row(job.c.data() + r * Hp, row * H, H);
    }
  }

  // Where rows of x and of h are copied to if they cannot be read in place.
  struct Input {
    Scratch<A> rows, row;
    SplitRows split;
    QuantizedRows quantized;
  };
  bool sorted(Form form) const { return form == Form::in_place && call.storage == Storage::bfloat16; }

  // The rows of x of some steps: in place where they are evenly spaced, else copied.
  Left<A> rows_of_x(const Job& job, Input& input, int64_t t0, int64_t steps) const {
    const int64_t first = call.group(job.d) * call.x_stride_X + job.b0 * call.x_stride_B + t0 * call.x_stride_T;
    auto for_rows = [&](auto&& f) {
      for (int64_t t = 0; t < steps; ++t)
        for (int64_t r = 0; r < job.rows; ++r) f(t * job.rows + r, first + t * call.x_stride_T + r * call.x_stride_B);
    };
    Left<A> x;
    if (call.quantized()) {
      if (!input.quantized) input.quantized.allocate(chunk * job.rows, I);
      for_rows([&](int64_t r, int64_t from) { quantize(input.quantized, x_in.at(from), r, x); });
      return x;
    }
    if (plan.ih == Form::pairs) {
      if (!input.split) input.split.allocate(chunk * job.rows, I, plan.parts);
      for_rows([&](int64_t r, int64_t from) {
        for (int64_t i = 0; i < I; i += W)
          input.split.put(x_in.get(from + i, int(std::min<int64_t>(W, I - i))), r, i, overflow);
      });
      x.split = input.split.at(0), x.split_row = input.split.row(), x.part = input.split.part();
      return x;
    }
    bool even = steps == 1 || job.rows == 1;
    x.row = steps == 1 ? call.x_stride_B : call.x_stride_T;
    if (!even && call.x_stride_T == job.rows * call.x_stride_B) even = true, x.row = call.x_stride_B;
    if (even && x_in.direct()) {
      x.a = x_in.at(first);
      return x;
    }
    input.rows.allocate(chunk * job.rows * I);
    if (sorted(plan.ih)) input.row.allocate(I);
    for_rows([&](int64_t r, int64_t from) {
      A* to = input.rows.data() + r * I;
      x_in.get_row(from, sorted(plan.ih) ? input.row.data() : to, I);
      if (sorted(plan.ih)) sort_for_bfloat16(input.row.data(), I, to);
    });
    x.a = input.rows.data(), x.row = I;
    return x;
  }

  // Row r of a left factor in int8.
  static void quantize(const QuantizedRows& to, const A* from, int64_t r, Left<A>& left) {
    if constexpr (sizeof(A) == 4) to.put_row(from, r);
    left.split = to.at(0), left.split_row = to.row();
  }

  // The rows of h in `slot`. In int8 they are each thread's own: the whole row has one scale.
  Left<A> rows_of_h(const Job& job, Input& copy, int64_t slot) const {
    Left<A> h;
    h.a = job.h.data() + job.at(slot, 0) * Pp, h.row = Pp;
    if (call.quantized()) {
      if (!copy.quantized) copy.quantized.allocate(job.rows, P);
      for (int64_t r = 0; r < job.rows; ++r) quantize(copy.quantized, h.a + r * Pp, r, h);
    } else if (job.h_split) {
      h.split = job.h_split.at(job.at(slot, 0)), h.split_row = job.h_split.row(), h.part = job.h_split.part();
    } else if (sorted(plan.hh)) {
      copy.rows.allocate(job.rows * Pp);
      for (int64_t r = 0; r < job.rows; ++r) sort_for_bfloat16(h.a + r * Pp, P, copy.rows.data() + r * Pp);
      h.a = copy.rows.data();
    }
    return h;
  }

  // The input's sums of some steps, for panels u0..u1.
  void project_input(const Job& job, Input& input, Tiles& tiles, int64_t t0, int64_t steps, int64_t u0,
                     int64_t u1) const {
    const Left<A> x = rows_of_x(job, input, t0, steps);
    for (int64_t u = u0; u < u1; ++u)
      multiply(tiles, job.d, u, steps * job.rows, x, true, job.pre.data() + u * SUMS, panels * SUMS);
  }

  // sums = left times W_ih or W_hh, for n rows of panel u.
  void multiply(Tiles& tiles, int64_t d, int64_t u, int64_t n, const Left<A>& left, bool input, A* sums,
                int64_t sums_row) const {
    const int64_t K = input ? I : P;
    if (packed(input ? plan.ih : plan.hh))
      return (input ? w_ih : w_hh)
          .template multiply<NB>(tiles, plan.level, n, left, 0, K, column(d, u), sums, sums_row, Sum::put);
    const int k = input ? 0 : 1;
    for (int g = 0; g < G; ++g) {
      const int64_t first = g * H + u * WIDTH, count = std::min<int64_t>(WIDTH, H - u * WIDTH);
      for (int64_t m = 0; count < WIDTH && m < n; ++m)  // what pads a panel may become a factor
        std::fill_n(sums + m * sums_row + g * WIDTH + count, WIDTH - count, A(0));
      if (!call.quantized()) {
        dot_product(n, left.a, left.row, port(call.weight(d, k)), first * K, count, K, sums + g * WIDTH, sums_row);
      } else if constexpr (sizeof(A) == 4) {
        dot_quads(n, left.split, left.split_row, int8_weight(d, k) + first * K, call.scale(d, k) + first, count, K,
                  sums + g * WIDTH, sums_row);
      }
    }
  }

  // The cell for rows r..r+n of panel u at step t, from the sums of the input (x_row apart) and of the state.
  void apply(const Job& job, int64_t t, int64_t u, int64_t slot, int64_t r, int64_t n, const A* x_sums, int64_t x_row,
             const A* sums) const {
    Row row(*this, job, t, slot, r);
    const A* b = bias_of(job.d, u);
    for (int64_t m = r; m < r + n; ++m, x_sums += x_row, sums += SUMS, row.next()) {
      const bool alive = !call.lengths || t < call.length(job.d, job.b0 + m);
      for (int v = 0; v < NV; ++v) {
        const int64_t j = u * WIDTH + v * W;
        const int lanes = int(std::min<int64_t>(W, H - j));
        if (lanes <= 0) break;
        V s[G], x[SPLIT + 1], kept[K + 1], c(A(0)), out(A(0));
        for (int g = 0; g < G; ++g) {
          const int at = g * WIDTH + v * W;
          s[g] = load(sums + at) + load(b + at);
          if (g < G - SPLIT) s[g] = s[g] + load(x_sums + at);
          else x[g - G + SPLIT] = load(x_sums + at) + load(b + SPLIT * WIDTH + at);
        }
        if constexpr (SPLIT > 0) out = load(row.h_old + j);
        if constexpr (Cell::STATES > 1) c = load(row.c + j);
        V c_new = c;
        Cell::forward(s, x, out, c_new, kept, call.relu);
        if (!alive) c_new = c;
        if constexpr (Cell::STATES > 1) {
          c_new.store(row.c + j);
          if (call.cells) store_first(c_new, static_cast<A*>(call.cells) + row.kept * H + j, lanes);
        }
        if (K > 0 && gates)
          for (int k = 0; k < K; ++k) gates.put(alive ? kept[k] : V(A(0)), (row.kept * K + k) * H + j, lanes);
        if (call.project) out.store(job.cell_out.data() + m * Hp + j);
        else put(row, j, lanes, alive, out);
      }
    }
  }

  // Where things of a row of one step lie, from row to row.
  struct Row {
    const SplitRows& split;
    Flag& overflow;
    const Port<A>& y;
    const A* h_old;
    A *h, *c;
    int64_t h_split, y_at, kept, h_row, c_row, y_row;
    Row(const Forward& f, const Job& job, int64_t t, int64_t slot, int64_t r)
        : split(job.h_split),
          overflow(f.overflow),
          y(f.y),
          h_old(job.h.data() + job.at(slot, r) * f.Pp),
          h(job.h.data() + job.at(slot + 1, r) * f.Pp),
          c(job.c.data() + (Cell::STATES > 1 ? r * f.Hp : 0)),
          h_split(job.at(slot + 1, r)),
          y_at(t * f.y_stride_T + (job.b0 + r) * f.y_stride_B + job.d * f.P),
          kept((job.d * f.T + t) * f.B + job.b0 + r),
          h_row(f.Pp),
          c_row(Cell::STATES > 1 ? f.Hp : 0),
          y_row(f.y_stride_B) {}
    INLINE void next() { h_old += h_row, h += h_row, c += c_row, ++h_split, y_at += y_row, ++kept; }
  };

  // The new h of a row at j: into the state and into y.
  INLINE void put(const Row& row, int64_t j, int lanes, bool alive, V out) const {
    const V h = alive ? out : load(row.h_old + j);
    h.store(row.h + j);
    if (row.split && unbounded) row.split.put(h, row.h_split, j, row.overflow);
    else if (row.split) row.split.put(h, row.h_split, j);
    row.y.put(alive ? out : V(A(0)), row.y_at + j, lanes);
  }

  void project(const Job& job, Tiles& tiles, int64_t t, int64_t u, int64_t slot, int64_t r, int64_t n, A* sums) const {
    Left<A> out;
    out.a = job.cell_out.data() + r * Hp, out.row = Hp;
    w_hr.template multiply<NV>(tiles, plan.level, n, out, 0, H, (job.d * out_panels + u) * WIDTH, sums, WIDTH,
                               Sum::put);
    Row row(*this, job, t, slot, r);
    for (int64_t m = r; m < r + n; ++m, sums += WIDTH, row.next())
      for (int64_t j = u * WIDTH; j < std::min(P, (u + 1) * WIDTH); j += W)
        put(row, j, int(std::min<int64_t>(W, P - j)), t < call.length(job.d, job.b0 + m), load(sums + j - u * WIDTH));
  }

  void run_job(const Job& job, Team::Member& member) const {
    const bool back = call.backwards(job.d);
    Input input, copy_of_h;
    Tiles tiles;
    alignas(64) A sums[BLOCK * SUMS], x_sums[BLOCK * SUMS];
    // Few rows, so that their sums stay close by; many where the weights come from afar, to use them more than once.
    const bool quads = plan.hh == Form::quads && plan.level == Level::tiles;
    const bool near = (quads ? 1 : 2 * plan.parts) * SUMS * panels * P <= kNearBytes;
    const int64_t block = plan.hh != Form::pairs && !quads ? 48 : near ? 32 : BLOCK;
    // Up and down in turn, so that what the cache still holds of the weights is what the next step begins with.
    auto for_blocks = [&](int64_t all, bool down, auto&& f) {
      const auto [lo, hi] = member.share(all);
      for (int64_t i = lo; i < hi; ++i)
        for (int64_t r = 0; r < job.rows; r += block) f(down ? hi - 1 - (i - lo) : i, r, std::min(block, job.rows - r));
    };
    for (int64_t done = 0; done < T; done += chunk) {
      int64_t steps = std::min(chunk, T - done), t0 = back ? T - done - steps : done;
      if (plan.chunked) {
        const auto [u0, u1] = member.share(panels);
        project_input(job, input, tiles, t0, steps, u0, u1);
      }
      for (int64_t s = done; s < done + steps; ++s) {
        int64_t t = back ? T - 1 - s : s;
        const Left<A> x = plan.chunked ? Left<A>{} : rows_of_x(job, input, t, 1), h = rows_of_h(job, copy_of_h, s);
        for_blocks(panels, s & 1, [&](int64_t u, int64_t r, int64_t n) {
          const A* of_x = x_sums;
          if (plan.chunked) of_x = job.pre.data() + (((t - t0) * job.rows + r) * panels + u) * SUMS;
          else multiply(tiles, job.d, u, n, x.from(r), true, x_sums, SUMS);
          multiply(tiles, job.d, u, n, h.from(r), false, sums, SUMS);
          apply(job, t, u, s, r, n, of_x, plan.chunked ? panels * SUMS : SUMS, sums);
        });
        if (!member.barrier()) return;
        if (!call.project) continue;
        for_blocks(out_panels, s & 1,
                   [&](int64_t u, int64_t r, int64_t n) { project(job, tiles, t, u, s, r, n, sums); });
        if (!member.barrier()) return;
      }
    }
  }

  // False if a number came that the form of the weights cannot take: then the results are void.
  bool run() {
    const bool parallel = plan.batch_parts > 1 || plan.members > 1 || (D > 1 && plan.threaded);
    spread(parallel, D * panels, [&](int64_t i) { pack_panel(i / panels, i % panels); });
    if (call.project)
      spread(parallel, D * out_panels, [&](int64_t i) { pack_projection(i / out_panels, i % out_panels); });
    if (overflow) return false;
    spread(parallel && plan.members == 1, D * plan.batch_parts, [&](int64_t i) {
      int64_t part = i % plan.batch_parts, b0 = B * part / plan.batch_parts;
      Job job{i / plan.batch_parts, b0, B * (part + 1) / plan.batch_parts - b0, {}, {}, {}, {}, {}};
      start(job);
      Team::run(plan.members, [&](Team::Member& member) { run_job(job, member); });
      finish(job);
    });
    return !overflow;
  }
};
