// Functions of vectors: sigmoid and tanh. In floats both are within a unit in the last place for all numbers (1.1
// units), as near zero as where they saturate: of 1 - y^2 and y (1 - y), which gradients are made of, that leaves the
// digits that y's rounding leaves. In doubles they are within three.
#pragma once
#include "vectors-inl.h"

namespace RNNKERNELS_SET {
namespace {
INLINE Vec<float> power_of_2(Vec<float> shifted) {  // 2^n from n + 1.5 * 2^23 + the exponent's bias
  return Vec<float>((Vec<float>::Data)((Vec<float>::IntData)shifted.v << 23));
}

// e^-x = 2^n (1 + q), from r = x + n ln 2 within ln 2 / 2 by a minimax polynomial. The scale is 2^(n + shift), and lost
// is what r lost to rounding.
INLINE Vec<float> exp_minus(Vec<float> x, Vec<float>& scale, Vec<float>& lost, int shift = 0) {
  using V = Vec<float>;
  const V magic(12582912.0f + 127 + float(shift));  // 1.5 * 2^23: the low bits of a sum are its rounded value
  const V shifted = x * V(-1.44269504f) + magic, n = shifted - magic, low(1.42860677e-6f);
  const V first = x + n * V(6.93145751953125e-1f), r = first + n * low;  // the first product is exact: few bits
  lost = (first - r) + n * low;
  V p = V(1.38207339e-3f);
  for (float c : {-8.36867746e-3f, 4.16682661e-2f, -1.66665211e-1f, 4.9999994e-1f}) p = p * r + V(c);
  scale = power_of_2(shifted);
  return r * r * p - r;
}

// Where |x| is not below kFar: E = e^-|x|, E - E^2 left of zero and 1 - E right of it. The others keep their y.
constexpr float kFar = 11.5f;
__attribute__((noinline, cold)) Vec<float> sigmoid_far(Vec<float> x, Vec<float> y) {
  using V = Vec<float>;
  const V one(1.0f), unit(0x1p-24f), magnitude = max(x, V(0.0f) - x);
  V scale, lost, q = exp_minus(min(magnitude, V(104.5f)), scale, lost, 24);  // scaled: a subnormal E is rounded once
  const V e = one + q, tiny = scale * unit * e;
  const V left = (e + (((one - e) + q) - (lost + tiny) * e)) * scale * unit, right = one - tiny;
  const V far(x.v < 0 ? left.v : right.v);
  return V(magnitude.v < kFar ? y.v : far.v);
}
INLINE bool any_far(Vec<float> x) {  // or NaN
  const Vec<float> square = x * x, most(kFar * kFar);
#ifdef ANY_NOT_BELOW
  return ANY_NOT_BELOW(square.v, most.v);
#else
  auto below = square.v < most.v;
  uint64_t halves[kBytes / 8], all = ~uint64_t(0);
  __builtin_memcpy(halves, &below, kBytes);
  for (uint64_t half : halves) all &= half;
  return ~all;
#endif
}

#ifdef LOOK_UP
// A polynomial of degree N around the centre of the interval i (modulo 32) that x is in: tables.h.
template <int N>
INLINE Vec<float> polynomial(const float (&table)[N + 2][32], Vec<float>::IntData i, Vec<float> x) {
  using V = Vec<float>;
  x = x - V((V::Data)LOOK_UP(table[0], i));
  V p((V::Data)LOOK_UP(table[N + 1], i));
#pragma GCC unroll 8
  for (int k = N; k > 0; --k) p = p * x + V((V::Data)LOOK_UP(table[k], i));
  return p;
}

INLINE Vec<float> sigmoid(Vec<float> x) {
  using V = Vec<float>;
  const V shifted = x * V(1 / kSigmoidWidth) + V(12582912.0f);
  V y = polynomial<6>(kSigmoid, (V::IntData)shifted.v, x);
  if (__builtin_expect(any_far(x), 0)) y = sigmoid_far(x, y);
  return y;
}

INLINE Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  // of the magnitude plus 1: 8 intervals from each power of two to the next one
  const V magnitude = min(V((V::Data)MAGNITUDE(x.v)), V(9.02f)), shifted = magnitude + V(1.0f);
  const V y = polynomial<5>(kTanh, (V::IntData)shifted.v >> 20, magnitude);
  return V((V::Data)WITH_SIGN(y.v, x.v));
}

#else
// The upper 12 bits of a number's 24: products of two such are exact.
INLINE Vec<float> upper(Vec<float> x) { return Vec<float>((Vec<float>::Data)((Vec<float>::IntData)x.v & 0xfffff000)); }

// 1 / (1 + e^-x) with e^-x = s + q, s a power of 2; then what the quotient lost, from the remainder of the division.
INLINE Vec<float> sigmoid(Vec<float> x) {
  using V = Vec<float>;
  const V one(1.0f);
  V s, lost, q = exp_minus(x, s, lost), rest;
  q = q * s;
  V y = one / (one + s + q);
  if (kFused) {
    rest = one - y * (one + s);
  } else {
    const V high = upper(y);
    rest = ((one - high * max(s, one)) - high * min(s, one)) - (y - high) * (one + s);
  }
  y = y + y * (rest - y * q);
  if (__builtin_expect(any_far(x), 0)) y = sigmoid_far(x, y);
  return y;
}

// |x| = n ln 2 / 2 + r, t = tanh r, s = 2^-n: tanh |x| = ((1 - s) + t (1 + s)) / ((1 + s) + t (1 - s)). The result is a
// multiple y of 2^-10 near the quotient, which is exact in what follows, and the remainder of its division.
INLINE Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  using Ints = V::IntData;
  const V one(1.0f), magic(12582912.0f + 127), grid(12288.0f);
  const V magnitude = min(V((V::Data)((Ints)x.v & 0x7fffffff)), V(9.02f));
  V shifted = magnitude * V(-2.88539008f) + magic, s = power_of_2(shifted);
  V r = magnitude + (shifted - magic) * V(3.46573591e-1f), square = r * r;
  V t = r + r * square * ((V(-5.27152829e-2f) * square + V(1.33311421e-1f)) * square + V(-3.33333224e-1f));
  V inverse = one / (t * (one - s) + (one + s)), y = ((t * (one + s) + (one - s)) * inverse + grid) - grid;
  V a = one - y, b = s + s * y, rest = a - b;
  if (kFused) {
    rest = rest + t * (a + b);
  } else {
    const V high = upper(t);
    rest = (rest + high * (a + b)) + (t - high) * (a + b);
  }
  y = y + rest * inverse;
  return V((V::Data)((Ints)y.v | ((Ints)x.v & 0x80000000)));
}
#endif

// e^x = 2^n (1 + q), so that e^x - 1 keeps the digits of small x. The scale is 2^(n + shift).
INLINE Vec<double> exp_parts(Vec<double> x, Vec<double>& scale, int shift = 0) {
  using V = Vec<double>;
  const V magic(6755399441055744.0 + 1023 + shift);  // 1.5 * 2^52, as above
  V shifted = x * V(1.4426950408889634) + magic, n = shifted - magic;
  V r = x - n * V(6.93145751953125e-1) - n * V(1.42860682030941723212e-6);
  V p = V(2.0914686968086876e-9);
  for (double c :
       {2.5105217004720745e-8, 2.75572736431103e-7, 2.7557255400206422e-6, 2.4801587325547743e-5, 1.9841269874820627e-4,
        1.3888888888883748e-3, 8.333333333326136e-3, 4.166666666666667e-2, 1.666666666666667e-1, 0.5})
    p = p * r + V(c);
  scale = V((V::Data)((V::IntData)shifted.v << 52));
  return r * r * p + r;
}

// E / (1 + E) left of zero and 1 / (1 + E) right of it, with E = e^-|x|, scaled until it may be subnormal.
INLINE Vec<double> sigmoid(Vec<double> x) {
  using V = Vec<double>;
  const V one(1.0), magnitude = min(max(x, V(0.0) - x), V(746.0));
  V scale, q = exp_parts(V(0.0) - magnitude, scale, 64), e = (scale * q + scale) * V(0x1p-64);
  return V(x.v < 0 ? e.v : one.v) / (one + e);
}

INLINE Vec<double> tanh(Vec<double> x) {
  using V = Vec<double>;
  using Ints = V::IntData;
  const V magnitude = min(max(x, V(0.0) - x), V(20.0));
  V scale, q = exp_parts(magnitude + magnitude, scale), e = scale * q + (scale - V(1.0));  // e^2|x| - 1
  return V((V::Data)((Ints)(e / (e + V(2.0))).v | ((Ints)x.v & (Ints{} + (uint64_t(1) << 63)))));
}
}  // namespace
}  // namespace RNNKERNELS_SET
