// The instruction set that every processor has: vectors of 16 bytes. Also what an editor sees that opens another
// header.
#pragma once
#include "standard.h"
#define RNNKERNELS_SET baseline

namespace baseline {
constexpr int kBytes = 16;
#ifdef __aarch64__
constexpr int kRegisters = 32;
constexpr bool kFused = true;  // a * b + c is one instruction, which rounds once
#else
constexpr int kRegisters = 16;
constexpr bool kFused = false;
#endif
}  // namespace baseline
