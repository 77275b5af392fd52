// Weights that stay packed between calls, under a number: rnnkernels.freeze asks for them. Without torch.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

class KeptWeights {
 public:
  // What a packed form depends on besides the weights themselves: see forward/weights-inl.h.
  using Form = std::array<int64_t, 14>;

  // The weights of all layers in the order in which calls have them, which stay where they are.
  explicit KeptWeights(std::vector<const void*> weights) : weights_(std::move(weights)) {}

  // Where those of a call are among these; -1 if they are others.
  int64_t find(const std::vector<const void*>& weights) const;

  // What `make` gave for a form when it was first asked for.
  std::shared_ptr<void> get(const Form& form, const std::function<std::shared_ptr<void>()>& make);

 private:
  const std::vector<const void*> weights_;
  std::map<Form, std::shared_ptr<void>> made_;  // behind table_lock()
};

// Numbers are from 1 on, and none is used again. Null for a number that is none.
int64_t keep_weights(std::vector<const void*> weights);
void forget_weights(int64_t number);
std::shared_ptr<KeptWeights> kept_weights(int64_t number);
