// How a call is run on this instruction set: what is packed, and what the threads split.

template <class A>
Schedule choose_schedule(const LayerCall& call) {
  const int64_t B = call.B, D = call.D;
  const double recurrent = 2.0 * B * call.cell->gates * call.H * call.P,
               step = recurrent + 2.0 * B * call.cell->gates * call.H * call.I;
  Schedule s{true, true, false, false, 1, 1};
  const int64_t threads = step * call.T * D < 1e6 ? 1 : thread_count();
  s.threaded = threads > 1;
  if (threads > D) {
    // Parts of the batch never wait for each other, but want full tiles; units wait at every step, so steps must be
    // long.
    const int64_t wanted = (threads + D - 1) / D, by_batch = std::min(wanted, B / 6);
    const int64_t by_units = std::min({threads, (call.H + Vec<A>::W - 1) / Vec<A>::W, int64_t(recurrent / 1e5)});
    if (by_batch > 1 && 2 * by_batch >= std::min(wanted, by_units)) s.batch_parts = by_batch;
    else if (by_units > 1) s.members = by_units;
    else if (D == 1) s.batch_parts = std::clamp<int64_t>(B, 1, wanted);
  }
  // Packing reads the weights once in an awkward order: a few steps do not earn that back, and a single row does not
  // need it, because it reads every weight once a step anyway. 16-bit weights are widened while they are packed.
  const int64_t rows = B / s.batch_parts;
  const bool convert = call.storage == Storage::bfloat16 || call.storage == Storage::float16;
  const bool few_steps = call.T * ((B + 5) / 6) < 4;
  s.pack_ih = convert || !(few_steps || (call.T * B <= 256 && call.I >= 128));
  s.pack_hh = convert || !(few_steps || (rows == 1 && call.P >= 128));
  s.chunked = call.T > 1 && rows < 16;  // few rows: their tiles would be poorly filled
  return s;
}

template <class A, class Cell>
void run_forward(const LayerCall& call) {
  Schedule s = choose_schedule<A>(call);
  if constexpr (Cell::G > 1) Forward<A, Cell, 1>(call, s).run();
  else if (wide_panels<A>(call.H)) Forward<A, Cell, 4>(call, s).run();
  else Forward<A, Cell, 2>(call, s).run();
}

template <class A, class Cell>
void run_backward(const LayerCall& call) {
  Schedule s = choose_schedule<A>(call);
  if (s.threaded && s.members == 1) s.batch_parts = std::clamp<int64_t>(call.B / 6, 1, thread_count());
  for (int64_t d = 0; d < call.D; ++d)  // a direction at a time
    if (wide_panels<A>(call.H)) Backward<A, Cell, 4>(call, s, d).run();
    else Backward<A, Cell, 2>(call, s, d).run();
}

#define CELL(name, type) \
  case CellKind::name:   \
    return call.storage == Storage::float64 ? RUN<double, type>(call) : RUN<float, type>(call);
inline void forward(const LayerCall& call) {
#define RUN run_forward
  switch (call.cell->kind) { FOR_EACH_CELL(CELL) }
#undef RUN
}
inline void backward(const LayerCall& call) {
#define RUN run_backward
  switch (call.cell->kind) { FOR_EACH_CELL(CELL) }
#undef RUN
}
#undef CELL

inline Schedule schedule(const LayerCall& call) {
  return call.storage == Storage::float64 ? choose_schedule<double>(call) : choose_schedule<float>(call);
}
