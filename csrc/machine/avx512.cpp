// The kernels for AVX-512, and for the products of bf16, int8 and matrix registers that come with it.
#include "standard.h"

#ifdef __x86_64__
#define RNNKERNELS_SET avx512
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))), apply_to = function)
#elif defined(RNNKERNELS_EMULATED)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include "emulated_avx512.h"
#else
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
#define SQRT_FLOAT(a) _mm512_sqrt_ps((__m512)(a))
#define SQRT_DOUBLE(a) _mm512_sqrt_pd((__m512d)(a))
#define MASKED_LOAD(p, n) _mm512_maskz_loadu_ps(__mmask16((1u << (n)) - 1), (const void*)(p))
#define MASKED_STORE(p, n, v) _mm512_mask_storeu_ps((void*)(p), __mmask16((1u << (n)) - 1), (__m512)(v))
#define STREAM(p, v) _mm512_stream_si512((__m512i*)(p), (__m512i)(v))
#define WIDEN_8(p) _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(p)))
#define WIDEN_16(p) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(p)))
#define HALVES_TO_FLOATS(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(p)))
#define FLOATS_TO_HALVES(p, v) _mm256_storeu_si256((__m256i*)(p), _mm512_cvtps_ph((__m512)(v), 0))
#define PAIRS
}  // namespace avx512

#include "dispatch-inl.h"

namespace avx512 {
const Kernels kernels{forward, backward, schedule, stream};
}  // namespace avx512

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
