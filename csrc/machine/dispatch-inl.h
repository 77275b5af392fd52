// The loops by cell and type: the entry points of an instruction set.
#pragma once
#include "../backward/loop-inl.h"
#include "../backward/program-inl.h"
#include "../cells/library-inl.h"
#include "../forward/loop-inl.h"
#include "../forward/program-inl.h"
#include "../forward/schedule-inl.h"
#include "../forward/stream-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A, class Cell>
bool forward(const LayerCall& call, const Schedule& s) {
  if constexpr (is_program<Cell>) return Forward<A, Cell, 1>(call, s).run();
  else if constexpr (Cell::G > 1) return Forward<A, Cell, 1>(call, s).run();
  else return wide_panels<A>(call.H) ? Forward<A, Cell, 4>(call, s).run() : Forward<A, Cell, 2>(call, s).run();
}

template <class A, class Cell>
bool backward(const LayerCall& call, Schedule s) {
  if (s.threaded && s.unit_threads == 1) s.row_jobs = std::clamp<int64_t>(call.B / 6, 1, thread_count());
  bool fine = true;
  for (int64_t d = 0; d < call.D && fine; ++d)  // a direction at a time
    fine = Backward<A, Cell>(call, s, d).run();
  return fine;
}

// Numbers that have no bf16 parts (infinities) are rare, and found on the way: then all is done again in vectors.
#define CELL(name, type)                                                          \
  case CellKind::name:                                                            \
    if (call.storage == Storage::float64) {                                       \
      if (RUN<double, type>(call, choose_schedule<double>(call, engine))) return; \
    } else if (RUN<float, type>(call, choose_schedule<float>(call, engine))) {    \
      return;                                                                     \
    }                                                                             \
    break;
inline void forward(const LayerCall& call, Engine engine) {
  if (call.quantized() && !takes_quads(call, engine)) return forward(Dequantized(call), engine);
#define RUN forward
  switch (call.cell->kind) { FOR_EACH_CELL(CELL) CELL(program, Programmed) }
#undef RUN
  forward(call, Engine::vectors);
}
inline void backward(const LayerCall& call, Engine engine) {
#define RUN backward
  switch (call.cell->kind) { FOR_EACH_CELL(CELL) CELL(program, Programmed) }
#undef RUN
  backward(call, Engine::vectors);
}
#undef CELL
}  // namespace
}  // namespace RNNKERNELS_SET
