// The tables of cells and of activations, by name.
#include "layer_call.h"

#include <utility>

#include "library-inl.h"

const CellInfo* find_cell(const std::string& name) {
#define CELL(name, type)       \
  {#name,                      \
   CellKind::name,             \
   baseline::type::G,          \
   baseline::type::STATES,     \
   baseline::type::KEPT,       \
   baseline::type::PROJECTION, \
   baseline::type::PHASES},
  static const CellInfo table[] = {FOR_EACH_CELL(CELL)};
#undef CELL
  for (const CellInfo& cell : table)
    if (name == cell.name) return &cell;
  return nullptr;
}

bool find_activation(const std::string& name, Activation& found) {
  static const std::pair<const char*, Activation> table[] = {{"tanh", Activation::tanh},
                                                             {"relu", Activation::relu},
                                                             {"sigmoid", Activation::sigmoid},
                                                             {"hard_sigmoid", Activation::hard_sigmoid},
                                                             {"linear", Activation::linear}};
  for (const auto& [known, kind] : table)
    if (name == known) return found = kind, true;
  return false;
}
