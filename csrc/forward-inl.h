// The forward loop over time, for every cell. One job is one direction and a range of rows (or all rows and a team).
//
// Per step, panel of hidden units and block of rows: the products with x and h, then the cell and the stores, while the
// sums are in the first-level cache.

template <class A, class Cell, int NV>
struct Forward {
  using V = Vec<A>;
  using Of = Cell;
  static constexpr int W = V::W, G = Cell::G, SPLIT = Cell::SPLIT, K = Cell::KEPT;
  static constexpr int WIDTH = Weights<A, Cell, NV>::WIDTH, SUMS = Weights<A, Cell, NV>::SUMS;
  static constexpr int64_t BLOCK = 128;  // rows whose sums are kept at a time, at most

  const LayerCall& call;
  const Schedule plan;
  Weights<A, Cell, NV> weights{call, plan};
  const int64_t T = call.T, B = call.B, I = call.I, H = call.H, P = call.P, D = call.D;
  const int64_t panels = weights.panels, out_panels = weights.out_panels, Hp = panels * WIDTH, Pp = out_panels * WIDTH;
  const int64_t chunk =
      plan.chunked ? std::clamp<int64_t>(kChunkBytes / (B * panels * SUMS * sizeof(A)), std::min(T, 255 / B + 1), T)
                   : 1;
  // Few rows, so that their sums stay close by; many where the weights come from afar, to use them more than once.
  const bool quads_in_tiles = plan.hh == Form::quads && plan.level == Level::tiles;
  const bool near = (quads_in_tiles ? 1 : 2 * plan.parts) * SUMS * panels * P <= kNearBytes;
  const int64_t block = plan.passing ? BLOCK : plan.hh != Form::pairs && !quads_in_tiles ? 48 : near ? 32 : BLOCK;
  Port<A> port(const void* data) const { return {data, call.storage}; }
  Port<A> y = port(call.y);  // a stream gets a new one with every call
  int64_t y_stride_T = B * D * P, y_stride_B = D * P;
  const Port<A> gates = port(call.gates);
  mutable Flag overflow;  // a number that has no bf16 parts came
  Inputs<A> inputs{call, plan, chunk, Pp, overflow};
  const NormWeights<A> norms{call};
  const bool zoned = bool(call.zone[0]);
  const bool unbounded = !call.bounded() || call.project;  // else no h exceeds 1 or the first one

  Forward(const LayerCall& c, const Schedule& s) : call(c), plan(s) {}

  void start(Job<A>& job) const {
    allocate(job);
    for (int64_t r = 0; call.states[0] && r < job.rows; ++r) set_state(job, 0, r, call.states);
  }

  void allocate(Job<A>& job) const {
    job.h.allocate(2 * job.rows * Pp, true);
    if (plan.hh == Form::pairs && !call.h_mask) job.h_split.allocate(2 * job.rows, P, plan.parts);
    if (Cell::STATES > 1) job.c.allocate(job.rows * Hp, true);
    if (call.project || (call.layer_norm && Cell::STATES > 1)) job.cell_out.allocate(job.rows * Hp);
    if (call.layer_norm) job.normed.allocate(job.rows * panels * SUMS);
    if (call.layer_norm && Cell::STATES > 1) job.cell_c.allocate(job.rows * Hp);
    if (Cell::PHASES > 1) {
      job.again.allocate(job.rows * Pp), job.first.allocate(job.rows * panels * SUMS);
      if (plan.hh == Form::pairs) job.again_split.allocate(job.rows, P, plan.parts);
    }
    if (plan.chunked) job.pre.allocate(chunk * job.rows * panels * SUMS);
  }

  // Rows r..r+n of a job as a job of their own, from step t of the loop on.
  Job<A> cut(const Job<A>& job, int64_t r, int64_t n, int64_t t) const {
    Job<A> part{job.d, job.b0 + r, n, t};
    allocate(part);
    std::copy_n(job.h.data() + job.at(t, r) * Pp, n * Pp, part.h.data() + part.at(t, 0) * Pp);
    if (job.h_split) part.h_split.copy(job.h_split, job.at(t, r), n, part.at(t, 0));
    if (Cell::STATES > 1) std::copy_n(job.c.data() + r * Hp, n * Hp, part.c.data());
    return part;
  }

  // The state of row r, with h in `slot`, from given states or zero.
  void set_state(const Job<A>& job, int64_t slot, int64_t r, const void* const* from) const {
    const int64_t row = job.d * B + job.b0 + r;
    A* h = job.h.data() + job.at(slot, r) * Pp;
    if (from[0]) port(from[0]).get_row(row * P, h, P);
    else std::fill_n(h, P, A(0));
    if (job.h_split) job.h_split.put_row(h, P, job.at(slot, r), overflow);
    if (Cell::STATES == 1) return;
    A* c = job.c.data() + r * Hp;
    if (from[1]) port(from[1]).get_row(row * H, c, H);
    else std::fill_n(c, H, A(0));
  }

  // The state that enters step t in this member's share of the rows, where it is reset.
  void reset(const Job<A>& job, int64_t t, int64_t slot, const Team::Member& member) const {
    const auto [lo, hi] = member.share(job.rows);
    for (int64_t r = lo; r < hi; ++r)
      if (call.resets(job.d, t, job.b0 + r)) set_state(job, slot, r, call.reset_states);
  }

  void finish(const Job<A>& job) const {
    for (int64_t r = 0; r < job.rows; ++r) {
      int64_t row = job.d * B + job.b0 + r;
      port(call.last[0]).put_row(job.h.data() + job.at(T, r) * Pp, row * P, P);
      if (Cell::STATES > 1) port(call.last[1]).put_row(job.c.data() + r * Hp, row * H, H);
    }
  }

  // What a thread has to itself.
  struct Work {
    typename Inputs<A>::Copy x, h, again;
  };

  // The input's sums of some steps, for panels u0..u1.
  void project_input(const Job<A>& job, Work& work, Tiles& tiles, int64_t t0, int64_t steps, int64_t u0,
                     int64_t u1) const {
    const Left<A> x = inputs.rows_of_x(job, work.x, t0, steps);
    for (int64_t u = u0; u < u1; ++u)
      weights.multiply_input(tiles, job.d, u, steps * job.rows, x, job.pre.data() + u * SUMS, panels * SUMS);
  }

  // What a cell with two products does between them, for rows r..r+n of panel u; arguments as those of `apply`.
  template <class F>
  void apply_first(F functions, const Job<A>& job, int64_t u, int64_t slot, int64_t r, int64_t n, const A* x_sums,
                   int64_t x_row, const A* sums) const {
    const A* b = weights.bias_of(job.d, u);
    for (int64_t m = r; m < r + n; ++m, x_sums += x_row, sums += SUMS)
      for (int v = 0; v < NV; ++v) {
        const int64_t j = u * WIDTH + v * W;
        const int lanes = int(std::min<int64_t>(W, H - j));
        if (lanes <= 0) break;
        V s[G], h = load(job.h.data() + job.at(slot, m) * Pp + j);
        for (int g = 0; g < G; ++g) {
          const int at = g * WIDTH + v * W;
          s[g] = load(x_sums + at) + load(b + at);
          if (g < G - 1) s[g] = s[g] + load(sums + at);
        }
        if (call.h_mask) h = h * coefficients<A>(call.h_mask, 0, job.d, job.b0 + m, j, lanes);
        const V product = Cell::first(functions, s, h);
        for (int g = 0; g < G; ++g) s[g].store(job.first.data() + (m * panels + u) * SUMS + g * WIDTH + v * W);
        product.store(job.again.data() + m * Pp + j);
        if (job.again_split) job.again_split.put(product, m, j, overflow);
      }
  }

  // The cell for rows r..r+n of panel u at step t, from the sums of the input (x_row apart) and of the state; for a
  // cell with two products, from what `apply_first` left and the sums of the second one.
  template <class F>
  void apply(F functions, const Job<A>& job, int64_t t, int64_t u, int64_t slot, int64_t r, int64_t n, const A* x_sums,
             int64_t x_row, const A* sums) const {
    Row row(*this, job, t, slot, r);
    const A* b = weights.bias_of(job.d, u);
    for (int64_t m = r; m < r + n; ++m, x_sums += x_row, sums += SUMS, row.next()) {
      const bool alive = !call.lengths || t < call.length(job.d, job.b0 + m);
      for (int v = 0; v < NV; ++v) {
        const int64_t j = u * WIDTH + v * W;
        const int lanes = int(std::min<int64_t>(W, H - j));
        if (lanes <= 0) break;
        V s[G], x[SPLIT + 1], kept[K + 1], c(A(0)), out(A(0));
        for (int g = 0; g < G; ++g) {
          const int at = g * WIDTH + v * W;
          if constexpr (Cell::PHASES > 1) {
            s[g] = load(x_sums + at);
            if (g == G - 1) s[g] = s[g] + load(sums + v * W);
            continue;
          }
          s[g] = load(sums + at) + load(b + at);
          if (g < G - SPLIT) s[g] = s[g] + load(x_sums + at);
          else x[g - G + SPLIT] = load(x_sums + at) + load(b + SPLIT * WIDTH + at);
        }
        if constexpr (Cell::MIXES) out = load(row.h_old + j);
        if constexpr (Cell::STATES > 1) c = load(row.c + j);
        V c_new = c;
        Cell::forward(functions, s, x, out, c_new, kept);
        if constexpr (Cell::STATES > 1) {
          // a norm of c wants its whole row: until then, the output gate is what is left
          if (F::STAGED && call.layer_norm) c_new.store(job.cell_c.data() + m * Hp + j), out = kept[Cell::OUTPUT];
          if (F::STAGED && zoned) c_new = zoneout(zone(1, job, t, row, j, lanes), c, c_new);
          if (!alive) c_new = c;
          c_new.store(row.c + j);
          if (call.cells) store_first(c_new, static_cast<A*>(call.cells) + row.kept * H + j, lanes);
        }
        if (K > 0 && gates)
          for (int k = 0; k < K; ++k) gates.put(alive ? kept[k] : V(A(0)), (row.kept * K + k) * H + j, lanes);
        if (call.project || (F::STAGED && Cell::STATES > 1 && call.layer_norm))
          out.store(job.cell_out.data() + m * Hp + j);
        else put<F>(job, t, row, j, lanes, alive, out);
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
    Row(const Forward& f, const Job<A>& job, int64_t t, int64_t slot, int64_t r)
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

  INLINE V zone(int k, const Job<A>& job, int64_t t, const Row& row, int64_t j, int lanes) const {
    return coefficients<A>(call.zone[k], t, job.d, row.kept - (job.d * T + t) * B, j, lanes);
  }

  // The new h of a row at j: into the state and into y.
  template <class F>
  INLINE void put(const Job<A>& job, int64_t t, const Row& row, int64_t j, int lanes, bool alive, V out) const {
    if (F::STAGED && zoned) out = zoneout(zone(0, job, t, row, j, lanes), load(row.h_old + j), out);
    const V h = alive ? out : load(row.h_old + j);
    h.store(row.h + j);
    if (row.split && unbounded) row.split.put(h, row.h_split, j, row.overflow);
    else if (row.split) row.split.put(h, row.h_split, j);
    row.y.put(alive ? out : V(A(0)), row.y_at + j, lanes);
  }

  void project(const Job<A>& job, Tiles& tiles, int64_t t, int64_t u, int64_t slot, int64_t r, int64_t n,
               A* sums) const {
    Left<A> out;
    out.a = job.cell_out.data() + r * Hp, out.row = Hp;
    weights.project(tiles, job.d, u, n, out, sums);
    Row row(*this, job, t, slot, r);
    with_functions(call, [&](auto functions) {
      for (int64_t m = r; m < r + n; ++m, sums += WIDTH, row.next())
        for (int64_t j = u * WIDTH; j < std::min(P, (u + 1) * WIDTH); j += W)
          put<decltype(functions)>(job, t, row, j, int(std::min<int64_t>(W, P - j)), t < call.length(job.d, job.b0 + m),
                                   load(sums + j - u * WIDTH));
    });
  }

  // f(panel, first row, rows) for this member's share of so many panels. Up and down in turn, so that what the cache
  // still holds of the weights is what the next step begins with.
  template <class F>
  INLINE void for_blocks(const Job<A>& job, const Team::Member& member, int64_t all, bool down, const F& f) const {
    const auto [lo, hi] = member.share(all);
    for (int64_t i = lo; i < hi; ++i)
      for_even_blocks(0, job.rows, block,
                      [&](int64_t r, int64_t n) __attribute__((always_inline)) { f(down ? hi - 1 - (i - lo) : i, r, n); });
  }

  // One member's part of step t, whose h is in `slot`; pre: the input's sums of this step, if they are there already.
  // False: it has left the team.
  INLINE bool step(const Job<A>& job, Work& work, Tiles& tiles, Team::Member& member, int64_t t, int64_t slot,
                   const A* pre) const {
    if (call.reset) {
      reset(job, t, slot, member);
      if (!member.barrier()) return false;
    }
    if (__builtin_expect(call.layer_norm, 0)) return step_normed(*this, job, work, tiles, t, slot, pre);
    const Left<A> x = pre ? Left<A>{} : inputs.rows_of_x(job, work.x, t, 1), h = inputs.rows_of_h(job, work.h, slot);
    alignas(64) A sums[BLOCK * SUMS], x_sums[BLOCK * SUMS];
    for_blocks(job, member, panels, slot & 1, [&](int64_t u, int64_t r, int64_t n) {
      if (!pre) weights.multiply_input(tiles, job.d, u, n, x.from(r), x_sums, SUMS);
      weights.multiply_state(tiles, job.d, u, n, h.from(r), sums, SUMS);
      const A* given = pre ? pre + (r * panels + u) * SUMS : x_sums;
      const int64_t row = pre ? panels * SUMS : SUMS;
      with_functions(call, [&](auto functions) __attribute__((always_inline)) {
        if constexpr (Cell::PHASES > 1) apply_first(functions, job, u, slot, r, n, given, row, sums);
        else apply(functions, job, t, u, slot, r, n, given, row, sums);
      });
    });
    if (!member.barrier()) return false;
    if constexpr (Cell::PHASES > 1) {
      const Left<A> again = inputs.rows_of_again(job, work.again);
      for_blocks(job, member, panels, slot & 1, [&](int64_t u, int64_t r, int64_t n) {
        weights.multiply_again(tiles, job.d, u, n, again.from(r), sums, SUMS);
        with_functions(call, [&](auto functions) __attribute__((always_inline)) {
          apply(functions, job, t, u, slot, r, n, job.first.data() + (r * panels + u) * SUMS, panels * SUMS, sums);
        });
      });
      return member.barrier();
    }
    if (!call.project) return true;
    for_blocks(job, member, out_panels, slot & 1,
               [&](int64_t u, int64_t r, int64_t n) { project(job, tiles, t, u, slot, r, n, sums); });
    return member.barrier();
  }

  void run_job(Job<A>& job, Team::Member& member, Handover<Job<A>>& jobs) const {
    const bool back = call.backwards(job.d);
    Work work;
    Tiles tiles;
    for (int64_t done = job.begun; done < T; done += chunk) {
      if (plan.members == 1 && jobs.wanted() && divisible(call, job.rows, T - done)) {
        jobs.give(cut(job, job.rows / 2, job.rows - job.rows / 2, done));
        job = cut(job, 0, job.rows / 2, done);
      }
      const int64_t steps = std::min(chunk, T - done), t0 = back ? T - done - steps : done;
      if (plan.chunked) {
        const auto [u0, u1] = member.share(panels);
        project_input(job, work, tiles, t0, steps, u0, u1);
        if (call.layer_norm) normalize_input(*this, job, steps);
      }
      for (int64_t s = done; s < done + steps; ++s) {
        const int64_t t = back ? T - 1 - s : s;
        const A* pre = plan.chunked ? job.pre.data() + (t - t0) * job.rows * panels * SUMS : nullptr;
        if (!step(job, work, tiles, member, t, s, pre)) return;
      }
    }
  }

  // False if a number came that the form of the weights cannot take: then the results are void.
  bool run() {
    const bool parallel = plan.batch_parts > 1 || plan.members > 1 || (D > 1 && plan.threaded);
    if (!weights.pack(parallel)) return false;
    std::vector<Job<A>> first;
    for (int64_t d = 0; d < D; ++d)
      for (int64_t i = 0, n = plan.batch_parts; i < n; ++i)
        first.push_back({d, B * i / n, B * (i + 1) / n - B * i / n});
    Handover<Job<A>> jobs(std::move(first));
    jobs.run(parallel && plan.members == 1, [&](Job<A>& job) {
      if (job.begun == 0) start(job);
      Team::run(plan.members, [&](Team::Member& member) { run_job(job, member, jobs); });
      finish(job);
    });
    return !overflow && !weights.overflow;
  }
};
