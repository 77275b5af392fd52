// The kernels for the instruction set that every processor has.
#include "baseline-inl.h"
//
#include "dispatch-inl.h"

namespace baseline {
const Kernels kernels{forward, backward, schedule, stream};
}  // namespace baseline
