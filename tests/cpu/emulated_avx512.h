// AVX-512 with its bf16 and int8 products and AMX, in plain C++: so that what is compiled for them runs, slowly, on any
// machine with AVX2. `make emulated` has avx512.cpp include this file in the place of the target's own functions, which
// become macros here. Results, rounding included, follow the Intel 64 and IA-32 Architectures Software Developer's
// Manual, volume 2; what a processor refuses ends the process.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {
#define EMULATED inline __attribute__((always_inline))
using Floats = __m512;
using Doubles = __m512d;
using Ints = __m512i;
typedef int32_t Words __attribute__((vector_size(64)));
typedef uint32_t UnsignedWords __attribute__((vector_size(64)));

template <class V, class T>
EMULATED V read(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
// A vector of 16 floats, or of 16 words, from f(lane).
template <class V = Floats, class F>
EMULATED V lanes(const F& f) {
  V v{};
  for (int i = 0; i < 16; ++i) v[i] = f(i);
  return v;
}
template <class F>
EMULATED Ints words(const F& f) {
  return Ints(lanes<Words>(f));
}

// ---- AVX-512 --------------------------------------------------------------------------------------------------------
// The second of two numbers where one is NaN, or where both are zero.
EMULATED Floats min_ps(Floats a, Floats b) { return a < b ? a : b; }
EMULATED Floats max_ps(Floats a, Floats b) { return a > b ? a : b; }
EMULATED Floats sqrt_ps(Floats a) {
  return lanes([&](int i) { return std::sqrt(a[i]); });
}
EMULATED Doubles sqrt_pd(Doubles a) {
  for (int i = 0; i < 8; ++i) a[i] = std::sqrt(a[i]);
  return a;
}
EMULATED Floats mul_ps(Floats a, Floats b) { return a * b; }
EMULATED Floats set1_ps(float a) { return a - Floats{}; }
EMULATED Floats setzero_ps() { return Floats{}; }
EMULATED Floats abs_ps(Floats a) { return Floats(UnsignedWords(a) & 0x7fffffffu); }
template <class T>
EMULATED Floats loadu_ps(const T* p) {
  return read<Floats>(p);
}
template <class T>
EMULATED Floats load_ps(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % 64) std::abort();
  return read<Floats>(p);
}
template <class T>
EMULATED void storeu_ps(T* p, Floats v) {
  std::memcpy(p, &v, 64);
}
// Lanes outside of the mask touch no memory.
EMULATED Floats maskz_loadu_ps(__mmask16 mask, const void* p) {
  return lanes([&](int i) { return mask >> i & 1 ? static_cast<const float*>(p)[i] : 0.0f; });
}
EMULATED void mask_storeu_ps(void* p, __mmask16 mask, Floats v) {
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) static_cast<float*>(p)[i] = v[i];
}
EMULATED Ints maskz_loadu_epi8(__mmask64 mask, const int8_t* p) {
  int8_t bytes[64] = {};
  for (int i = 0; i < 64; ++i)
    if (mask >> i & 1) bytes[i] = p[i];
  return read<Ints>(bytes);
}
EMULATED __mmask16 compare(Floats a, Floats b, int how) {
  int mask = 0;
  for (int i = 0; i < 16; ++i) {
    const bool holds = how == _CMP_NLT_UQ ? !(a[i] < b[i]) : how == _CMP_GE_OQ ? a[i] >= b[i] : (std::abort(), false);
    mask |= holds << i;
  }
  return __mmask16(mask);
}
// The one of smaller magnitude, of two numbers: with the sign of the first one (how = 2), or with none (10).
EMULATED Floats maskz_range_ps(__mmask16 mask, Floats a, Floats b, int how) {
  if (mask != 0xffff || (how != 2 && how != 10)) std::abort();
  return lanes([&](int i) {
    const float least = std::isnan(a[i]) ? b[i] : std::isnan(b[i]) || std::fabs(a[i]) <= std::fabs(b[i]) ? a[i] : b[i];
    return how == 10 ? std::fabs(least) : std::copysign(least, a[i]);
  });
}
EMULATED Floats permutex2var_ps(Floats a, Ints index, Floats b) {
  const Words at = Words(index);
  return lanes([&](int i) { return at[i] & 16 ? b[at[i] & 15] : a[at[i] & 15]; });
}
EMULATED void stream_si512(Ints* p, Ints v) {
  if (reinterpret_cast<uintptr_t>(p) % 64) std::abort();
  std::memcpy(p, &v, 64);
}
template <class T>
EMULATED Ints loadu_si512(const T* p) {
  return read<Ints>(p);
}
template <class T>
EMULATED void storeu_si512(T* p, Ints v) {
  std::memcpy(p, &v, 64);
}
EMULATED Ints setzero_si512() { return Ints{}; }
EMULATED Ints set1_epi32(int32_t a) { return Ints(Words{} + a); }
EMULATED Ints set1_epi8(int8_t a) { return Ints(UnsignedWords{} + 0x01010101u * uint8_t(a)); }
EMULATED Ints or_si512(Ints a, Ints b) { return a | b; }
EMULATED Ints and_si512(Ints a, Ints b) { return a & b; }
EMULATED Ints xor_si512(Ints a, Ints b) { return a ^ b; }
EMULATED Ints add_epi32(Ints a, Ints b) { return Ints(UnsignedWords(a) + UnsignedWords(b)); }
EMULATED Ints sub_epi32(Ints a, Ints b) { return Ints(UnsignedWords(a) - UnsignedWords(b)); }
EMULATED Ints max_epi32(Ints a, Ints b) { return Ints(Words(a) > Words(b) ? Words(a) : Words(b)); }
EMULATED Ints slli_epi32(Ints a, int n) { return Ints(UnsignedWords(a) << n); }
EMULATED int32_t reduce_add_epi32(Ints a) {
  uint32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += UnsignedWords(a)[i];
  return int32_t(sum);
}
EMULATED int32_t reduce_max_epi32(Ints a) {
  int32_t most = Words(a)[0];
  for (int i = 1; i < 16; ++i) most = std::max(most, Words(a)[i]);
  return most;
}
EMULATED Ints cvtepu8_epi32(__m128i a) {
  uint8_t from[16];
  std::memcpy(from, &a, 16);
  return words([&](int i) { return int32_t(from[i]); });
}
EMULATED Ints cvtepu16_epi32(__m256i a) {
  uint16_t from[16];
  std::memcpy(from, &a, 32);
  return words([&](int i) { return int32_t(from[i]); });
}
EMULATED Floats cvtepi32_ps(Ints a) {
  return lanes([&](int i) { return float(Words(a)[i]); });
}
EMULATED Ints cvtps_epi32(Floats a) {
  return words([&](int i) { return int32_t(std::nearbyint(a[i])); });
}
EMULATED __m128i cvtsepi32_epi8(Ints a) {
  int8_t to[16];
  for (int i = 0; i < 16; ++i) to[i] = int8_t(std::min(127, std::max(-128, Words(a)[i])));
  return read<__m128i>(to);
}
EMULATED Floats cvtph_ps(__m256i a) {
  uint16_t from[16];
  std::memcpy(from, &a, 32);
  return lanes([&](int i) { return float_of_half(from[i]); });
}
EMULATED __m256i cvtps_ph(Floats a, int) {
  uint16_t to[16];
  for (int i = 0; i < 16; ++i) to[i] = half_of_float(a[i]);
  return read<__m256i>(to);
}

// ---- bf16 and int8 --------------------------------------------------------------------------------------------------
// Subnormal numbers count as zero.
EMULATED Floats flushed(Floats v) {
  const UnsignedWords b = UnsignedWords(v);
  return Floats((b & 0x7f800000u) == 0 ? b & 0x80000000u : b);
}
EMULATED __m256i to_bf16(Floats v) {
  const UnsignedWords b = UnsignedWords(flushed(v)), rounded = b + 0x7fff + (b >> 16 & 1);
  const UnsignedWords words = (v == v ? rounded : b | 0x400000) >> 16;
  uint16_t to[16];
  for (int i = 0; i < 16; ++i) to[i] = uint16_t(words[i]);
  return read<__m256i>(to);
}
// A sum and the products of one bf16 each: of the upper ones of pairs, or of the lower ones.
template <bool UPPER>
EMULATED Floats add_one(Floats sums, Ints left, Ints right) {
  auto numbers = [](UnsignedWords pairs) __attribute__((always_inline)) {
    return flushed(Floats(UPPER ? pairs & 0xffff0000u : pairs << 16));
  };
  return flushed(sums + numbers(UnsignedWords(left)) * numbers(UnsignedWords(right)));
}
EMULATED Floats add_pairs(Floats sums, Ints left, Ints right) {
  return add_one<false>(add_one<true>(flushed(sums), left, right), left, right);
}
EMULATED Ints add_quads(Ints sums, Ints bytes, Ints signed_bytes) {
  UnsignedWords sum = UnsignedWords(sums);
  for (int k = 0; k < 32; k += 8)
    sum += (UnsignedWords(bytes) >> k & 255) * UnsignedWords(Words(UnsignedWords(signed_bytes) << (24 - k)) >> 24);
  return Ints(sum);
}

// ---- Matrix registers -----------------------------------------------------------------------------------------------
struct Tile {
  int rows = 0, bytes = 0;  // none: not configured
  uint8_t at[16][64] = {};
};
inline thread_local Tile tiles[8];
// A processor raises an exception where the shapes of registers do not fit each other.
inline void must(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "emulated matrix registers: %s\n", what);
  std::abort();
}
template <class TileShapes>
void shape_tiles(const TileShapes& shapes) {
  must(shapes.palette == 1 && shapes.start == 0, "palette");
  for (int i = 0; i < 8; ++i) {
    must(shapes.rows[i] <= 16 && shapes.bytes[i] <= 64, "shape");
    tiles[i] = Tile{shapes.rows[i], shapes.bytes[i], {}};
  }
}
inline void release() {
  for (Tile& tile : tiles) tile = Tile{};
}
inline void load_tile(Tile& tile, const void* from, int64_t stride) {
  must(tile.rows > 0 && tile.bytes > 0, "load of a register without a shape");
  const Tile empty{tile.rows, tile.bytes, {}};
  tile = empty;
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(tile.at[r], static_cast<const char*>(from) + r * stride, size_t(tile.bytes));
}
inline void store_tile(const Tile& tile, void* to, int64_t stride) {
  must(tile.rows > 0 && tile.bytes > 0, "store of a register without a shape");
  for (int r = 0; r < tile.rows; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tile.at[r], size_t(tile.bytes));
}
inline void clear_tile(Tile& tile) { tile = Tile{tile.rows, tile.bytes, {}}; }
inline void must_fit(const Tile& sums, const Tile& left, const Tile& right) {
  must(sums.rows > 0 && sums.rows == left.rows && sums.bytes == right.bytes && left.bytes == 4 * right.rows, "product");
}
// Four bytes of row m of the left factor, as often as the right one has columns.
EMULATED Ints all_of(const Tile& left, int m, int k) { return set1_epi32(read<int32_t>(left.at[m] + 4 * k)); }
// sums += left times right.
inline void multiply_pairs(Tile& sums, const Tile& left, const Tile& right) {
  must_fit(sums, left, right);
  for (int m = 0; m < sums.rows; ++m) {
    Floats upper{}, lower{};
    for (int k = 0; k < right.rows; ++k) {
      upper = add_one<true>(upper, all_of(left, m, k), read<Ints>(right.at[k]));
      lower = add_one<false>(lower, all_of(left, m, k), read<Ints>(right.at[k]));
    }
    const Floats sum = flushed(flushed(read<Floats>(sums.at[m])) + flushed(lower + upper));
    std::memcpy(sums.at[m], &sum, size_t(sums.bytes));
  }
}
// Signed bytes on the left, unsigned ones on the right.
inline void multiply_quads(Tile& sums, const Tile& left, const Tile& right) {
  must_fit(sums, left, right);
  for (int m = 0; m < sums.rows; ++m) {
    Ints sum = read<Ints>(sums.at[m]);
    for (int k = 0; k < right.rows; ++k) sum = add_quads(sum, read<Ints>(right.at[k]), all_of(left, m, k));
    std::memcpy(sums.at[m], &sum, size_t(sums.bytes));
  }
}
}  // namespace emulated

#undef _mm512_cmp_ps_mask
#undef _mm512_maskz_range_ps
#undef _mm512_slli_epi32
#undef _mm512_cvtps_ph
#define _mm512_abs_ps emulated::abs_ps
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_and_si512 emulated::and_si512
#define _mm512_cmp_ps_mask emulated::compare
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepu8_epi32 emulated::cvtepu8_epi32
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_cvtps_ph emulated::cvtps_ph
#define _mm512_cvtsepi32_epi8 emulated::cvtsepi32_epi8
#define _mm512_load_ps emulated::load_ps
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_maskz_loadu_epi8 emulated::maskz_loadu_epi8
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_maskz_range_ps emulated::maskz_range_ps
#define _mm512_max_epi32 emulated::max_epi32
#define _mm512_max_ps emulated::max_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_or_si512 emulated::or_si512
#define _mm512_permutex2var_ps emulated::permutex2var_ps
#define _mm512_reduce_add_epi32 emulated::reduce_add_epi32
#define _mm512_reduce_max_epi32 emulated::reduce_max_epi32
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_set1_epi8 emulated::set1_epi8
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_setzero_si512 emulated::setzero_si512
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_sqrt_pd emulated::sqrt_pd
#define _mm512_sqrt_ps emulated::sqrt_ps
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_storeu_si512 emulated::storeu_si512
#define _mm512_stream_si512 emulated::stream_si512
#define _mm512_sub_epi32 emulated::sub_epi32
#define _mm512_xor_si512 emulated::xor_si512

// In the place of those in csrc/products/instructions-inl.h.
namespace avx512 {
namespace {
using emulated::add_pairs, emulated::add_quads, emulated::shape_tiles, emulated::to_bf16;
inline void release_tiles() { emulated::release(); }
template <int R>
void load_tile(const void* from, int64_t stride) {
  emulated::load_tile(emulated::tiles[R], from, stride);
}
template <int R>
void store_tile(void* to, int64_t stride) {
  emulated::store_tile(emulated::tiles[R], to, stride);
}
template <int R>
void clear_tile() {
  emulated::clear_tile(emulated::tiles[R]);
}
template <int C, int L, int R, bool QUADS>
void multiply_tiles() {
  emulated::Tile* const t = emulated::tiles;
  if constexpr (QUADS) emulated::multiply_quads(t[C], t[L], t[R]);
  else emulated::multiply_pairs(t[C], t[L], t[R]);
}
}  // namespace
}  // namespace avx512
