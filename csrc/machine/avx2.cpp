// The kernels for AVX2, FMA and F16C.
#include "standard.h"

#ifdef __x86_64__
#define RNNKERNELS_SET avx2
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
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
#define SQRT_FLOAT(a) _mm256_sqrt_ps((__m256)(a))
#define SQRT_DOUBLE(a) _mm256_sqrt_pd((__m256d)(a))
#define MASKED_LOAD(p, n) _mm256_maskload_ps((const float*)(p), first_lanes(n))
#define MASKED_STORE(p, n, v) _mm256_maskstore_ps((float*)(p), first_lanes(n), (__m256)(v))
#define WIDEN_8(p) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p)))
#define WIDEN_16(p) _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p)))
#define HALVES_TO_FLOATS(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p)))
#define FLOATS_TO_HALVES(p, v) _mm_storeu_si128((__m128i*)(p), _mm256_cvtps_ph((__m256)(v), 0))
}  // namespace avx2

#include "dispatch-inl.h"

namespace avx2 {
const Kernels kernels{forward, backward, schedule, stream};
}  // namespace avx2

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
