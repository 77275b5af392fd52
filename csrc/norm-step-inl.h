// The forward pass with layer norms, for a loop (forward-inl.h) on one thread: a norm is of all units of a row, so that
// the products of a whole step come first, and then the norms and cells of a row after the other.

// Of sums in panels, rows of them: gates g0..g1 lie there as gates 0.., and k is the number of the gain.
template <class Loop, class A>
void normalize_rows(const Loop& f, int64_t d, A* sums, int64_t rows, int k, int g0, int g1) {
  using Panels = decltype(f.weights);
  for (int64_t r = 0; r < rows; ++r, sums += f.panels * Loop::SUMS) {
    auto get = [&](int g, int64_t j, int) { return load(sums + in_panels<Panels>(g, j)); };
    const auto norm = normal<A>(0, g1 - g0, f.H, f.call.eps, get);
    for_row<A>(0, g1 - g0, f.H, [&](int g, int64_t j, int lanes) {
      (norm.at(g, j, lanes) * load(f.norms.of(d, k, g0 + g) + j)).store(sums + in_panels<Panels>(g, j));
    });
  }
}

// The input's sums of some steps.
template <class Loop, class A>
void normalize_input(const Loop& f, const Job<A>& job, int64_t steps) {
  normalize_rows(f, job.d, job.pre.data(), steps * job.rows, 0, 0, Loop::G);
}

// The output of row r, from the output gate, which is there, and from c.
template <class Functions, class Loop, class A>
void output_of_norm(Functions functions, const Loop& f, const Job<A>& job, int64_t t, int64_t slot, int64_t r) {
  using Cell = typename Loop::Of;
  const LayerCall& call = f.call;
  typename Loop::Row row(f, job, t, slot, r);
  const A *gain = f.norms.of(job.d, 2), *bias = f.norms.of(job.d, 3);
  A* out = job.cell_out.data() + r * f.Hp;
  auto get = [&](int, int64_t j, int) { return load(job.cell_c.data() + r * f.Hp + j); };
  const auto norm = normal<A>(0, 1, f.H, call.eps, get);
  for_row<A>(0, 1, f.H, [&](int, int64_t j, int lanes) {
    Vec<A> kept[Cell::KEPT];
    kept[Cell::OUTPUT] = load(out + j);
    const Vec<A> c = norm.at(0, j, lanes) * load(gain + j) + load(bias + j);
    const Vec<A> h = Cell::output(functions, kept, c);
    if (call.project) h.store(out + j);
    else f.template put<Functions>(job, t, row, j, lanes, t < call.length(job.d, job.b0 + r), h);
  });
}

// Step t, whose h is in `slot`; pre: the norms of the input's sums.
template <class Loop, class A, class Work>
__attribute__((noinline)) bool step_normed(const Loop& f, const Job<A>& job, Work& work, Tiles& tiles, int64_t t,
                                           int64_t slot, const A* pre) {
  using Cell = typename Loop::Of;
  constexpr int G = Cell::G, SUMS = Loop::SUMS;
  const int64_t panels = f.panels, row = panels * SUMS;
  A* const sums = job.normed.data();
  const Left<A> h = f.inputs.rows_of_h(job, work.h, slot);
  for (int64_t u = 0; u < panels; ++u) f.weights.multiply_state(tiles, job.d, u, job.rows, h, sums + u * SUMS, row);
  normalize_rows(f, job.d, sums, job.rows, 1, 0, G - Cell::PHASES + 1);
  with_stages(f.call, [&](auto functions) {
    for (int64_t r = 0; r < job.rows; ++r) {
      for (int64_t at = r * row, u = 0; u < panels; ++u, at += SUMS)
        if constexpr (Cell::PHASES > 1) f.apply_first(functions, job, u, slot, r, 1, pre + at, row, sums + at);
        else f.apply(functions, job, t, u, slot, r, 1, pre + at, row, sums + at);
      if constexpr (Cell::STATES > 1) output_of_norm(functions, f, job, t, slot, r);
    }
  });
  if constexpr (Cell::PHASES > 1) {
    const Left<A> again = f.inputs.rows_of_again(job, work.again);
    for (int64_t u = 0; u < panels; ++u)
      f.weights.multiply_again(tiles, job.d, u, job.rows, again, sums + u * SUMS, row);
    normalize_rows(f, job.d, sums, job.rows, 1, G - 1, G);
    with_stages(f.call, [&](auto functions) {
      for (int64_t r = 0; r < job.rows; ++r)
        for (int64_t at = r * row, u = 0; u < panels; ++u, at += SUMS)
          f.apply(functions, job, t, u, slot, r, 1, job.first.data() + at, row, sums + at);
    });
  }
  alignas(64) A outs[Loop::BLOCK * SUMS];
  for (int64_t u = 0; f.call.project && u < f.out_panels; ++u)
    for_even_blocks(0, job.rows, f.block,
                    [&](int64_t r, int64_t n) { f.project(job, tiles, t, u, slot, r, n, outs); });
  return true;
}
