// The second product in a step of the backward loop (backward-inl.h): of a cell with two, or that of a projection.

// The gradient of what the second product multiplied, for rows r..r+n and panel u, and from
// there those of the first gate and of h.
template <class Loop, class A>
void step_again(Loop& f, Tiles& tiles, int64_t slot, int64_t t, int64_t u, int64_t r, int64_t n, A* sums) {
  using V = Vec<A>;
  constexpr int W = V::W, WIDTH = Loop::WIDTH, G = Loop::G;
  const LayerCall& call = f.call;
  f.recurrent(tiles, slot, r, n, u, u + 1, sums, G - 1, G);
  for (int64_t b = r; b < r + n; ++b, sums += WIDTH)
    for (int64_t j = u * WIDTH; f.record.alive(t, b) && j < std::min(f.Pp, (u + 1) * WIDTH); j += W) {
      const int lanes = int(std::min<int64_t>(W, f.H - j));
      const V gate = f.record.gate_at(t, b, 0, j, lanes), h = f.record.h_before(t, b, j, lanes),
              mask = call.h_mask ? coefficients<A>(call.h_mask, 0, f.d, b, j, lanes) : V(A(1));
      V dh = load(sums + j - u * WIDTH);
      const V delta =
          with_functions(call, [&](auto functions) { return Loop::Of::backward_first(functions, gate, h * mask, dh); });
      A *to = f.dz_of(slot, b) + j, *carried = f.carry.h_of(b) + j;
      delta.store(to);
      if (call.layer_norm) delta.store(to + G * f.Hp);
      else if (f.step_parts) f.dz_split.put(delta, slot * f.B + b, j, f.overflow);
      (load(carried) + dh * mask).store(carried);
    }
}

// The gradient before the projection, dout W_hr, and then the cell.
template <class Loop, class A>
void step_projected(Loop& f, Tiles& tiles, int64_t slot, int64_t t, int64_t u, int64_t r, int64_t n, A* sums) {
  constexpr int W = Vec<A>::W, WIDTH = Loop::WIDTH;
  Left<A> left;
  left.a = f.dout_of(slot, r), left.row = f.Pp;
  f.w_hr.multiply_all(tiles, f.plan.level, n, left, 0, f.P, u * WIDTH, std::min<int64_t>(WIDTH, f.H - u * WIDTH), sums,
                      WIDTH, Sum::put);
  with_functions(f.call, [&](auto functions) {
    for (int64_t b = r; b < r + n; ++b, sums += WIDTH)
      for (int64_t j = u * WIDTH; j < std::min(f.Hp, (u + 1) * WIDTH); j += W)
        f.deliver(functions, slot, t, b, j, load(sums + j - u * WIDTH));
  });
}
