// Headers that know no instruction set. Each of baseline.cpp, avx2.cpp and avx512.cpp includes this one before it sets
// its target: templates of the standard library, of which the linker keeps any copy, must run on every machine.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __x86_64__
#if defined(__GNUC__) && !defined(__clang__)  // GCC warns of its own header's undefined vectors
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#include "../cells/layer_call.h"
#include "../threads/handover.h"
#include "../threads/scratch.h"
#include "../threads/team.h"
#include "instruction_set.h"
#include "numbers.h"
#include "sizes.h"
#include "tables.h"
