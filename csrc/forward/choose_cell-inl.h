// The cells of the forward loop: its functions for each.
#pragma once
#include "built_in-inl.h"
#include "program-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
const ForwardCell<A>& forward_cell(const LayerCall& call) {
  switch (call.cell->kind) {
#define CELL(name, type)    \
  case CellKind::name:      \
    return *with_functions( \
        call, [](auto functions) -> const ForwardCell<A>* { return &kBuiltInForward<A, type, decltype(functions)>; });
    FOR_EACH_CELL(CELL)
#undef CELL
    case CellKind::program:
      break;
  }
  const Program& program = *call.cell->program;
  return kProgramForward<A>[program.has_operand][program.inner];
}
}  // namespace
}  // namespace RNNKERNELS_SET
