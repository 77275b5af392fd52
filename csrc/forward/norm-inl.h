// The weights of layer norms of the pre-activations, and of c.
#pragma once
#include "../cells/row_norm-inl.h"

namespace RNNKERNELS_SET {
namespace {
// The weights of a layer's norms, in rows of whole vectors.
template <class A>
class NormWeights {
 public:
  explicit NormWeights(const LayerCall& call) : G_(call.cell->gates), Hp_(padded<A>(call.H)) {
    if (!call.layer_norm) return;
    const bool of_c = call.cell->states > 1 && !call.cell->program;
    rows_.allocate(call.D * side() * 4, true);
    for (int64_t d = 0; d < call.D; ++d)
      for (int k = 0; k < (of_c ? 4 : 2); ++k)
        for (int64_t g = 0; g < (k == 0 ? call.cell->ih_gates : k == 1 ? call.cell->hh_gates : 1); ++g)
          Stored<A>(call.weight(d, call.norm(k == 1 ? call.hh() : k)), call.storage)
              .get_row(g * call.H, rows_.data() + (d * 4 + k) * side() + g * Hp_, call.H);
  }
  // k: of the input's sums, of the state's, of c, and the bias of c; gate g.
  const A* of(int64_t d, int k, int g = 0) const { return rows_.data() + (d * 4 + k) * side() + g * Hp_; }

 private:
  int64_t side() const { return G_ * Hp_; }
  int64_t G_, Hp_;
  Scratch<A> rows_;
};
}  // namespace
}  // namespace RNNKERNELS_SET
