// Sizes of caches and of work that schedules go by, measured on machines with 1 to 2 MB of second-level cache.
#pragma once
#include <cstdint>

#include "../cells/layer_call.h"

constexpr int64_t kChunkBytes = 512 * 1024;      // of the second-level cache for a projected chunk of steps
constexpr int64_t kNearBytes = 1536 * 1024;      // weights up to so many stay in the second-level cache
constexpr int64_t kFarBytes = 8 * 1024 * 1024;   // more than the second-level cache holds for the backward pass
constexpr int64_t kShortSums = 256;              // inputs and outputs for which a float is not split in three
constexpr int64_t kFewUses = 40;                 // rows that use weights: for so many all are worth packing,
constexpr int64_t kFewUses16 = 20;               // and for so many those in 16 bits
constexpr int64_t kEarningSteps = 64;            // of a single row, for which near weights are worth packing
constexpr int64_t kPieces = 4;                   // of work for each thread: a slow core takes fewer
constexpr int64_t kDivisible = 18;               // rows worth dividing: each half is more than a tile
constexpr double kDivisibleWork = 1e7;           // and their operations
constexpr int64_t kFewForRows = 48;              // a thread for each direction beats one for each half of so many rows
constexpr int64_t kBackwardBytes = 1024 * 1024;  // and for the gradients of a chunk's pre-activations

// True if half of so many rows and steps is worth handing over to another thread.
inline bool divisible(const LayerCall& call, int64_t rows, int64_t steps) {
  const int64_t weights = call.H * (call.cell->ih_gates * call.I + call.cell->hh_gates * call.P);
  return rows >= kDivisible && 2.0 * double(rows) * double(steps) * double(weights) >= kDivisibleWork;
}
