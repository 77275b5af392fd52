// Weights that stay packed between calls: the table of them.
#include "kept_weights.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>

#include "../threads/table_lock.h"

namespace {
struct Table {
  std::unordered_map<int64_t, std::shared_ptr<KeptWeights>> weights;
  int64_t last = 0;
};
Table& table() {
  static Table* const all = new Table;  // stays: threads may still be in a call when the process ends
  return *all;
}
}  // namespace

int64_t KeptWeights::find(const std::vector<const void*>& weights) const {
  const auto at = std::search(weights_.begin(), weights_.end(), weights.begin(), weights.end());
  return at == weights_.end() ? -1 : at - weights_.begin();
}

std::shared_ptr<void> KeptWeights::get(const Form& form, const std::function<std::shared_ptr<void>()>& make) {
  {
    const std::lock_guard lock(table_lock());
    if (const auto made = made_.find(form); made != made_.end()) return made->second;
  }
  // Outside of the lock, for which others and forks wait: two threads may both make it once.
  std::shared_ptr<void> made = make();
  const std::lock_guard lock(table_lock());
  return made_.emplace(form, std::move(made)).first->second;
}

int64_t keep_weights(std::vector<const void*> weights) {
  Table& all = table();
  const std::lock_guard lock(table_lock());
  all.weights.emplace(++all.last, std::make_shared<KeptWeights>(std::move(weights)));
  return all.last;
}

void forget_weights(int64_t number) {
  Table& all = table();
  std::shared_ptr<KeptWeights> last_use;  // freed after the lock
  const std::lock_guard lock(table_lock());
  if (const auto at = all.weights.find(number); at != all.weights.end()) {
    last_use = std::move(at->second);
    all.weights.erase(at);
  }
}

std::shared_ptr<KeptWeights> kept_weights(int64_t number) {
  if (number == 0) return nullptr;
  Table& all = table();
  const std::lock_guard lock(table_lock());
  const auto at = all.weights.find(number);
  return at == all.weights.end() ? nullptr : at->second;
}
