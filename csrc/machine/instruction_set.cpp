// The table of instruction sets, what this machine has of them, and the choice.
#include "instruction_set.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#ifdef __x86_64__
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#ifdef __x86_64__
namespace {
#ifdef RNNKERNELS_EMULATED  // `make emulated`
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

// Every processor with AVX2 has the conversions of float16 too; a virtual machine may hide them.
bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
         (c >> 29 & 1);
}

bool has_avx512() {
  if (kEmulated) return has_avx2();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && (kEmulated || (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1)));
}

// The processor has matrix registers for bf16, and the system lets this process use them: Linux wants to be asked.
bool has_amx() {
#ifdef __linux__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512_bf16() &&
         (kEmulated || (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1) &&
                        syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0));
#else
  return false;
#endif
}
}  // namespace

bool has_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && (kEmulated || (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1)));
}
bool has_amx_int8() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return kEmulated || (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 25 & 1));
}
#endif

std::string Schedule::text() const {
  auto held = [&](Layout layout) -> std::string {
    if (layout == Layout::in_place) return "in place";
    if (layout == Layout::panels) return std::string("packed") + (passing ? " a panel at a time" : "");
    if (layout == Layout::narrow) return "packed in 16 bits";
    if (layout == Layout::quads) return std::string("in int8") + (engine == Engine::tiles ? " for AMX" : "");
    return "in " + std::to_string(parts) + " bf16 part" + (parts > 1 ? "s" : "") +
           (engine == Engine::tiles ? " for AMX" : "") + (passing ? ", a panel at a time" : "");
  };
  std::string s = "W_ih " + held(ih) + ", W_hh " + held(hh);
  s += chunked ? ", input projected in chunks of steps" : ", input projected inside the tile";
  if (phases > 1) s += ", two products in a step";
  if (normed) s += ", a step's products before its norms and cells";
  if (unit_threads > 1) s += ", hidden units split over " + std::to_string(unit_threads) + " threads";
  else if (row_jobs > 1) s += ", batch split into " + std::to_string(row_jobs) + " parts";
  return s;
}

const std::vector<InstructionSet>& instruction_sets() {
  // The table is never freed: threads may use it when the process ends.
  static const auto* const table = new std::vector<InstructionSet>{
#ifdef __x86_64__
      {"amx", has_amx, avx512::kernels, Engine::tiles},
      {"avx512_bf16", has_avx512_bf16, avx512::kernels, Engine::pairs},
      {"avx512_vnni", has_vnni, avx512::kernels, Engine::bytes},
      {"avx512", has_avx512, avx512::kernels, Engine::vectors},
      {"avx2", has_avx2, avx2::kernels, Engine::vectors},
#endif
      {"baseline", [] { return true; }, baseline::kernels, Engine::vectors},
  };
  return *table;
}

namespace {
// Null before the choice, or to choose again.
std::atomic<const InstructionSet*> used{nullptr};

// The best one of this machine, or the one of this name; `what` begins the error if there is none.
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
