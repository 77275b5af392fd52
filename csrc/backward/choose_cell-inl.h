// The cells of the backward loop: its functions for each.
#pragma once
#include "built_in-inl.h"
#include "program-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class A>
const BackwardCell<A>& backward_cell(const LayerCall& call) {
  switch (call.cell->kind) {
#define CELL(name, type)                                                        \
  case CellKind::name:                                                          \
    return *with_functions(call, [](auto functions) -> const BackwardCell<A>* { \
      return &kBuiltInBackward<A, type, decltype(functions)>;                   \
    });
    FOR_EACH_CELL(CELL)
#undef CELL
    case CellKind::program:
      break;
  }
  const Program& program = *call.cell->program;
  return kProgramBackward<A>[program.has_operand][program.inner];
}
}  // namespace
}  // namespace RNNKERNELS_SET
