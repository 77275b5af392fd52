// What a processor reaches at best: multiply-adds a second by number format, bytes read a second. Built by probe.py.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_AMX 1
#endif

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int SUMS = 12;  // independent ones: enough to hide the latency of an instruction, within 16 registers
constexpr int TURNS = 4096;
constexpr int REPEATS = 3;

template <class T>
struct Fma {
  typedef T Vec __attribute__((vector_size(BYTES)));
  static constexpr double flops = 2.0 * BYTES / sizeof(T);
  static Vec start(int n) { return Vec{} + static_cast<T>(n * 0.01); }
  static Vec step(Vec s, Vec a, Vec b) { return s * a + b; }
};

#if defined(__AVX512BF16__)
struct DotBf16 {
  typedef __m512 Vec;
  static constexpr double flops = 64;
  static Vec start(int n) { return _mm512_set1_ps(n * 0.01f); }
  static Vec step(Vec s, Vec a, Vec b) { return _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)b); }
};
#endif
#if defined(__AVX512VNNI__)
struct DotInt8 {
  typedef __m512i Vec;
  static constexpr double flops = 128;
  static Vec start(int n) { return _mm512_set1_epi32(n); }
  static Vec step(Vec s, Vec a, Vec b) { return _mm512_dpbusd_epi32(s, a, b); }
};
#endif

#if defined(__x86_64__)
#define KEEP(v) asm volatile("" : "+v"(v))
#else
#define KEEP(v) asm volatile("" : "+w"(v))
#endif
// By name, so that they stay in registers in any compiler.
#define EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define START(n) auto s##n = K::start(n);
#define STEP(n) s##n = K::step(s##n, a, b);
#define KEPT(n) KEEP(s##n);  // claims to change the sum: no step can be dropped

template <class K>
double multiply_adds() {
  auto a = K::start(1), b = K::start(2);
  KEEP(a);
  KEEP(b);
  EACH(START)
  for (int turn = 0; turn < TURNS; turn++) {
    EACH(STEP)
    EACH(KEPT)
  }
  return K::flops * SUMS * TURNS;
}

#if defined(HAS_AMX)
double tiles() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
  if (!granted) return 0;
  alignas(64) uint8_t shape[64] = {1};
  for (int n = 0; n < 8; n++) shape[16 + 2 * n] = 64, shape[48 + n] = 16;
  asm volatile("" : : "r"(shape) : "memory");  // the intrinsic reads all of it, and does not say so
  _tile_loadconfig(shape);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(6);
  _tile_zero(7);
  for (int turn = 0; turn < TURNS / 4; turn++) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
  }
  _tile_release();
  return TURNS * 2.0 * 16 * 16 * 32;
}
#endif

typedef double (*Work)();

Work work_of(int kind) {
  switch (kind) {
    case 0:
      return multiply_adds<Fma<double>>;
    case 1:
      return multiply_adds<Fma<float>>;
#if defined(__AVX512BF16__)
    case 2:
      return multiply_adds<DotBf16>;
#endif
#if defined(__AVX512FP16__) && defined(__FLT16_MAX__)
    case 3:
      return multiply_adds<Fma<_Float16>>;
#endif
#if defined(__AVX512VNNI__)
    case 4:
      return multiply_adds<DotInt8>;
#endif
#if defined(HAS_AMX)
    case 5:
      return tiles;
#endif
    default:
      return nullptr;
  }
}

double read_through(const char* data, int64_t bytes) {
  typedef int64_t Vec __attribute__((vector_size(BYTES)));
  Vec sums[8] = {};
  const Vec* v = reinterpret_cast<const Vec*>(data);
  const int64_t count = bytes / BYTES;
  for (int64_t k = 0; k + 8 <= count; k += 8)
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) sums[n] ^= v[k + n];
  for (int n = 0; n < 8; n++) asm volatile("" : : "m"(sums[n]) : "memory");
  return static_cast<double>(count / 8 * 8 * BYTES);
}

// What all threads together do in a second: each works from a common start until the time is over, a few times. The
// best counts: anything else that ran can only have slowed it.
template <class F>
double rate(int threads, double seconds, F make) {
  typedef std::chrono::steady_clock Clock;
  std::atomic<int> ready{0};
  std::vector<double> rates(threads);
  std::vector<std::thread> team;
  for (int n = 0; n < threads; n++)
    team.emplace_back([&, n] {
      auto work = make();
      work();
      for (int repeat = 1; repeat <= REPEATS; repeat++) {
        ready++;
        while (ready < threads * repeat) std::this_thread::yield();
        const auto start = Clock::now();
        double done = 0, passed = 0;
        while (passed < seconds) {
          done += work();
          passed = std::chrono::duration<double>(Clock::now() - start).count();
        }
        rates[n] = std::max(rates[n], done / passed);
      }
    });
  double sum = 0;
  for (int n = 0; n < threads; n++) team[n].join(), sum += rates[n];
  return sum;
}

}  // namespace

// Operations a second (a multiply-add is two), 0 where the processor has no instruction for the kind of number.
extern "C" double roofs_flops(int kind, int threads, double seconds) {
  const Work work = work_of(kind);
  return work ? rate(threads, seconds, [work] { return work; }) : 0.0;
}

// Bytes read a second where each thread reads its own `bytes` again and again.
extern "C" double roofs_bandwidth(int64_t bytes, int threads, double seconds) {
  return rate(threads, seconds, [bytes] {
    std::vector<char> memory(bytes + 64, 1);
    char* data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    return [memory = std::move(memory), data, bytes] {
      double done = 0;
      do done += read_through(data, bytes);
      while (done < 1 << 22);  // small pieces several times for each look at the clock
      return done;
    };
  });
}
