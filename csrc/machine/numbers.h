// Conversions between float and the 16-bit storage types, on their bits.
#pragma once
#include <cstdint>
#include <cstring>

inline float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Subnormals are made of an integer: a subnormal float on the way would be zero after set_flush_denormal(True).
inline float float_of_half(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu, normal = (magnitude << 13) + 0x38000000u;  // exponent bias 15 -> 127
  const uint32_t subnormal = bits_of_float(float(int32_t(magnitude)) * 0x1p-24f);
  const uint32_t bits = magnitude < 0x400u ? subnormal : normal | (magnitude >= 0x7c00u ? 0x7f800000u : 0u);
  return float_of_bits(bits | uint32_t(half & 0x8000u) << 16);
}
// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t half_of_float(float x) {
  uint32_t bits = bits_of_float(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u)  // subnormal: adding 0.5 aligns the last bit of the result with the last bit of a float
    return uint16_t(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u));
  return uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13));
}
