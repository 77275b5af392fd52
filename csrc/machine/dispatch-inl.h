// The loops by type: the entry points of an instruction set.
#pragma once
#include "../backward/directions-inl.h"
#include "../forward/choose_cell-inl.h"
#include "../forward/schedule-inl.h"
#include "../forward/stream-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
bool run_forward(const LayerCall& call, Engine engine) {
  return Forward<A>(call, choose_schedule<A>(call, engine), forward_cell<A>(call)).run();
}

template <class A>
bool run_backward(const LayerCall& call, Engine engine) {
  return run_directions<A>(call, choose_schedule<A>(call, engine));
}

// Numbers that have no bf16 parts (infinities) are rare, and found on the way: then all is done again in vectors.
inline void forward(const LayerCall& call, Engine engine) {
  if (call.quantized() && !takes_quads(call, engine)) return forward(Dequantized(call), engine);
  const bool wide = call.storage == Storage::float64;
  if (!(wide ? run_forward<double>(call, engine) : run_forward<float>(call, engine))) forward(call, Engine::vectors);
}
inline void backward(const LayerCall& call, Engine engine) {
  const bool wide = call.storage == Storage::float64;
  if (!(wide ? run_backward<double>(call, engine) : run_backward<float>(call, engine))) backward(call, Engine::vectors);
}
}  // namespace
}  // namespace RNNKERNELS_SET
