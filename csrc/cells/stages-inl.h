// Functions that the stages of a step share, forward and backward. A stage is a branch outside the products.
#pragma once
#include "../machine/vectors-inl.h"

namespace RNNKERNELS_SET {
namespace {
// The coefficients for step t, direction d, row b at j.
template <class A>
INLINE Vec<A> coefficients(const Coefficients& c, int64_t t, int64_t d, int64_t b, int64_t j, int n) {
  const int64_t at = t * c.stride_T + d * c.stride_D + b * c.stride_B;
  if (c.bools) {
    const uint8_t* from = static_cast<const uint8_t*>(c.data) + at;
    return c.whole ? of_bools<A>(from + j, n) : Vec<A>(A(*from));
  }
  const A* from = static_cast<const A*>(c.data) + at;
  return c.whole ? load_first(from + j, n) : Vec<A>(*from);
}

// Zoneout (Krueger et al. 2017): the fraction of the old state that stays.
template <class A>
INLINE Vec<A> zoneout(Vec<A> fraction, Vec<A> old, Vec<A> now) {
  return fraction * old + (Vec<A>(A(1)) - fraction) * now;
}
}  // namespace
}  // namespace RNNKERNELS_SET
