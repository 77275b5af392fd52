// The kernels for every instruction set, their table and the choice among them. Knows no torch.
// Standard headers come first: inside the target pragmas they would be compiled for that target.
#include "kernels.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "handover.h"
#include "numbers.h"
#include "scratch.h"
#include "tables.h"
#include "team.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace {
constexpr int64_t kChunkBytes = 512 * 1024;      // what a projected chunk of steps may take of the second-level cache
constexpr int64_t kNearBytes = 1536 * 1024;      // weights up to so many stay in the second-level cache
constexpr int64_t kShortSums = 256;              // inputs and outputs for which a float is not split in three
constexpr int64_t kPassing = 12;                 // rows for which weights that are used once are packed on the way
constexpr int64_t kPieces = 4;                   // of work for each thread: a slow core takes fewer
constexpr int64_t kDivisible = 18;               // rows that are worth to be divided: each half is more than a tile
constexpr double kDivisibleWork = 1e7;           // and their operations
constexpr int64_t kBackwardBytes = 1024 * 1024;  // and what the gradients of a chunk's pre-activations may take
// Whether half of so many rows and steps is worth to be handed over to another thread.
bool divisible(const LayerCall& call, int64_t rows, int64_t steps) {
  const int64_t weights = call.cell->gates * call.H * (call.I + call.P);
  return rows >= kDivisible && 2.0 * double(rows) * double(steps) * double(weights) >= kDivisibleWork;
}
#ifdef __x86_64__
bool has_vnni();
bool has_amx_int8();
#else
constexpr bool has_vnni() { return false; }
constexpr bool has_amx_int8() { return false; }
#endif

namespace baseline {
constexpr int kBytes = 16;
#ifdef __aarch64__
constexpr int kRegisters = 32;
constexpr bool kFused = true;  // a * b + c is one instruction, which rounds once
#else
constexpr int kRegisters = 16;
constexpr bool kFused = false;
#endif
#include "all-inl.h"
}  // namespace baseline

#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
constexpr int kBytes = 32, kRegisters = 16;
constexpr bool kFused = true;
inline __attribute__((always_inline)) __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#define MIN_FLOAT(a, b) _mm256_min_ps((__m256)(a), (__m256)(b))
#define MAX_FLOAT(a, b) _mm256_max_ps((__m256)(a), (__m256)(b))
#define ANY_NOT_BELOW(a, b) _mm256_movemask_ps(_mm256_cmp_ps((__m256)(a), (__m256)(b), _CMP_NLT_UQ))
#define MASKED_LOAD(p, n) _mm256_maskload_ps((const float*)(p), first_lanes(n))
#define MASKED_STORE(p, n, v) _mm256_maskstore_ps((float*)(p), first_lanes(n), (__m256)(v))
#include "all-inl.h"
#undef MIN_FLOAT
#undef MAX_FLOAT
#undef ANY_NOT_BELOW
#undef MASKED_LOAD
#undef MASKED_STORE
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
#endif
namespace avx512 {
constexpr int kBytes = 64, kRegisters = 32;
#define MIN_FLOAT(a, b) _mm512_min_ps((__m512)(a), (__m512)(b))
#define MAX_FLOAT(a, b) _mm512_max_ps((__m512)(a), (__m512)(b))
#define ANY_NOT_BELOW(a, b) _mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_NLT_UQ)
#define MAGNITUDE(x) _mm512_maskz_range_ps(0xffff, (__m512)(x), (__m512)(x), 10)
#define WITH_SIGN(x, of) _mm512_maskz_range_ps(0xffff, (__m512)(of), (__m512)(x), 2)  // for |x| up to |of|
#define LOOK_UP(table, i) _mm512_permutex2var_ps(_mm512_load_ps(table), (__m512i)(i), _mm512_load_ps((table) + 16))
#define MASKED_LOAD(p, n) _mm512_maskz_loadu_ps(__mmask16((1u << (n)) - 1), (const void*)(p))
#define MASKED_STORE(p, n, v) _mm512_mask_storeu_ps((void*)(p), __mmask16((1u << (n)) - 1), (__m512)(v))
#define HALVES_TO_FLOATS(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(p)))
#define FLOATS_TO_HALVES(p, v) _mm256_storeu_si256((__m256i*)(p), _mm512_cvtps_ph((__m512)(v), 0))
#define PAIRS
#include "all-inl.h"
#undef PAIRS
#undef MIN_FLOAT
#undef MAX_FLOAT
#undef ANY_NOT_BELOW
#undef MAGNITUDE
#undef WITH_SIGN
#undef LOOK_UP
#undef MASKED_LOAD
#undef MASKED_STORE
#undef HALVES_TO_FLOATS
#undef FLOATS_TO_HALVES
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
}  // namespace

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

#ifdef __x86_64__
namespace {
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// Products of bytes: in vectors, and in matrix registers where has_amx() too.
bool has_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);
}
bool has_amx_int8() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 25 & 1);
}

// The processor has matrix registers for bf16, and the system lets this process use them: Linux wants to be asked.
bool has_amx() {
#ifdef __linux__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
}  // namespace
#endif

std::string Schedule::text() const {
  auto held = [&](Form form) -> std::string {
    if (form == Form::in_place) return "in place";
    if (form == Form::panels) return std::string("packed") + (passing ? " a panel at a time" : "");
    if (form == Form::narrow) return "packed in 16 bits";
    if (form == Form::quads) return std::string("in int8") + (level == Level::tiles ? " for AMX" : "");
    return "in " + std::to_string(parts) + " bf16 part" + (parts > 1 ? "s" : "") +
           (level == Level::tiles ? " for AMX" : "") + (passing ? ", a panel at a time" : "");
  };
  std::string s = "W_ih " + held(ih) + ", W_hh " + held(hh);
  s += chunked ? ", input projected in chunks of steps" : ", input projected inside the tile";
  if (phases > 1) s += ", two products in a step";
  if (normed) s += ", a step's products before its norms and cells";
  if (members > 1) s += ", hidden units split over " + std::to_string(members) + " threads";
  else if (batch_parts > 1) s += ", batch split into " + std::to_string(batch_parts) + " parts";
  return s;
}

const std::vector<InstructionSet>& instruction_sets() {
#define SET(space, level)                                          \
  [](const LayerCall& call) { space::forward(call, level); },      \
      [](const LayerCall& call) { space::backward(call, level); }, \
      [](const LayerCall& call) -> Schedule { return space::schedule(call, level); }, space::stream
  static const std::vector<InstructionSet> table = {
#ifdef __x86_64__
      {"amx", has_amx, SET(avx512, Level::tiles)},
      {"avx512_bf16", has_avx512_bf16, SET(avx512, Level::pairs)},
      {"avx512_vnni", has_vnni, SET(avx512, Level::bytes)},
      {"avx512", has_avx512, SET(avx512, Level::vectors)},
      {"avx2", has_avx2, SET(avx2, Level::vectors)},
#endif
      {"baseline", [] { return true; }, SET(baseline, Level::vectors)},
  };
#undef SET
  return table;
}

namespace {
// Not chosen yet, or to be chosen again: nullptr.
std::atomic<const InstructionSet*> used{nullptr};

// The best one of this machine, or the one of this name; `what` begins the error where there is none.
const InstructionSet& find_set(const std::string& name, const std::string& what) {
  std::string names;
  for (const InstructionSet& set : instruction_sets()) {
    if (!set.supported()) continue;
    if (name.empty() || name == set.name) return set;
    names += (names.empty() ? "" : ", ") + std::string(set.name);
  }
  throw std::runtime_error(what + name + " is none of this machine's instruction sets: " + names);
}
}  // namespace

const InstructionSet& instruction_set() {
  const InstructionSet* set = used.load(std::memory_order_acquire);
  if (!set) {
    const char* forced = std::getenv("RNNKERNELS_ISA");
    set = &find_set(forced ? forced : "", "RNNKERNELS_ISA=");
    used.store(set, std::memory_order_release);
  }
  return *set;
}

void use_instruction_set(const std::string& name) {
  used.store(name.empty() ? nullptr : &find_set(name, "use_instruction_set: "), std::memory_order_release);
}
