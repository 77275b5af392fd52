// The instructions for products of bf16 and int8, in vectors and in matrix registers (AMX). They are written out in
// assembly: compilers of our day know their names, but not all have functions for them.
// `make emulated` has others in their place: tests/cpu/emulated_avx512.h.
#pragma once
#include "../machine/vectors-inl.h"

#ifdef PAIRS
namespace RNNKERNELS_SET {
namespace {
// Of the matrix registers 0..7, as the processor reads them.
struct TileShapes {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];  // of a row
  uint8_t rows[16];
};

#ifndef RNNKERNELS_EMULATED
// ---- Vectors --------------------------------------------------------------------------------------------------------
INLINE __m256i to_bf16(__m512 v) {
  __m256i bits;
  asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(v));
  return bits;
}
// Sums and the products of two bf16 each.
INLINE __m512 add_pairs(__m512 sums, __m512i left, __m512i right) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
  return sums;
}
// Sums and the products of four unsigned and four signed bytes each.
INLINE __m512i add_quads(__m512i sums, __m512i bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bytes), "v"(signed_bytes));
  return sums;
}

// ---- Matrix registers, by their numbers -----------------------------------------------------------------------------
INLINE void shape_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
INLINE void release_tiles() { asm volatile("tilerelease"); }
template <int R>
INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(R) : "memory");
}
template <int R>
INLINE void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(R) : "memory");
}
template <int R>
INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(R));
}
// C += L times R, of pairs of bf16 or, QUADS, of four int8: signed on the left, unsigned on the right, summed in int32.
template <int C, int L, int R, bool QUADS>
INLINE void multiply_tiles() {
  if constexpr (QUADS) asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(L), "i"(R));
  else asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(L), "i"(R));
}
#endif
}  // namespace
}  // namespace RNNKERNELS_SET
#endif
