// The tables of cells and of activations, by name.
#include "layer_call.h"

#include <mutex>
#include <unordered_map>
#include <utility>

#include "../threads/table_lock.h"
#include "built_in-inl.h"

namespace {
CellInfo info_of(const std::string& text) {
  const auto program = std::make_shared<const Program>(text);
  const int64_t inputs = int64_t(program->inputs.size()), recurrent = int64_t(program->recurrent.size());
  CellInfo cell{program->name,
                CellKind::program,
                std::max<int64_t>({inputs, recurrent, 1}),
                int64_t(program->states.size()),
                program->kept,
                program->output_again.there,
                1 + program->inner};
  cell.ih_gates = program->given ? 0 : inputs, cell.hh_gates = recurrent;
  cell.id = std::hash<std::string>()(text);
  cell.program = program;
  return cell;
}

// Programs by text. Few are in use at a time: when the table is full, it begins anew.
std::shared_ptr<const CellInfo> find_program(const std::string& text) {
  constexpr size_t kMost = 64;
  // The table stays: threads may still be in a call when the process ends.
  static auto& table = *new std::unordered_map<std::string, std::shared_ptr<const CellInfo>>;
  {
    std::lock_guard lock(table_lock());
    if (const auto found = table.find(text); found != table.end()) return found->second;
  }
  auto cell = std::make_shared<const CellInfo>(info_of(text));
  std::lock_guard lock(table_lock());
  if (table.size() >= kMost) table.clear();
  return table.emplace(text, std::move(cell)).first->second;
}
}  // namespace

std::shared_ptr<const CellInfo> find_cell(const std::string& name) {
  if (name.compare(0, 5, "cell ") == 0) return find_program(name);
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
    if (name == cell.name) return {std::shared_ptr<const CellInfo>(), &cell};  // nobody owns it
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
