// Functions that only programs of cells have: exp, log and their kin, and comparisons. In doubles they are within two
// units in the last place; in floats they are those of doubles, rounded.
#pragma once
#include "math-inl.h"

namespace RNNKERNELS_SET {
namespace {
template <class F>
INLINE Vec<float> in_doubles(Vec<float> x, const F& f) {
  typedef float Half __attribute__((vector_size(kBytes / 2)));
  Half halves[2];
  __builtin_memcpy(halves, &x.v, kBytes);
  for (Half& half : halves) {
    const Vec<double> wide(__builtin_convertvector(half, Vec<double>::Data));
    half = __builtin_convertvector(f(wide).v, Half);
  }
  __builtin_memcpy(&x.v, halves, kBytes);
  return x;
}

template <class A>
INLINE Vec<A> sqrt(Vec<A> x) {
#ifdef SQRT_FLOAT
  if constexpr (sizeof(A) == 4) return Vec<A>((typename Vec<A>::Data)SQRT_FLOAT(x.v));
  else return Vec<A>((typename Vec<A>::Data)SQRT_DOUBLE(x.v));
#else
  for (int i = 0; i < Vec<A>::W; ++i) x.v[i] = std::sqrt(x.v[i]);
  return x;
#endif
}

// All bits where a comparison holds, as 1 or 0.
template <class A, class Mask>
INLINE Vec<A> one_where(Mask mask) {
  const Vec<A> one(A(1)), zero(A(0));
  return Vec<A>(mask ? one.v : zero.v);
}
template <class A>
INLINE Vec<A> select(Vec<A> condition, Vec<A> a, Vec<A> b) {
  return Vec<A>(condition.v != 0 ? a.v : b.v);
}
template <class A>
INLINE Vec<A> magnitude(Vec<A> x) {
  using Ints = typename Vec<A>::IntData;
  const Ints minus = (Ints)Vec<A>(A(-0.0)).v;
  return Vec<A>((typename Vec<A>::Data)((Ints)x.v & ~minus));
}
template <class A>
INLINE Vec<A> sign(Vec<A> x) {
  return one_where<A>(x.v > 0) - one_where<A>(x.v < 0);
}
// NaN in either one is the result.
template <class A>
INLINE Vec<A> least(Vec<A> a, Vec<A> b) {
  return Vec<A>(b.v != b.v ? b.v : min(a, b).v);
}
template <class A>
INLINE Vec<A> greatest(Vec<A> a, Vec<A> b) {
  return Vec<A>(b.v != b.v ? b.v : max(a, b).v);
}

// The scale is 2^64 times too large left of zero, where the result may be subnormal, and half of it right of zero,
// where 2^1024 would be none.
INLINE Vec<double> exp(Vec<double> x) {
  using V = Vec<double>;
  x = min(max(x, V(-746.0)), V(710.0));
  const V magic(x.v < 0 ? V(6755399441055744.0 + 1023 + 64).v : V(6755399441055744.0 + 1023 - 1).v);
  const V shifted = x * V(1.4426950408889634) + magic, n = shifted - magic;
  const V r = x - n * V(6.93145751953125e-1) - n * V(1.42860682030941723212e-6);
  V p(2.0914686968086876e-9);
  for (double c :
       {2.5105217004720745e-8, 2.75572736431103e-7, 2.7557255400206422e-6, 2.4801587325547743e-5, 1.9841269874820627e-4,
        1.3888888888883748e-3, 8.333333333326136e-3, 4.166666666666667e-2, 1.666666666666667e-1, 0.5})
    p = p * r + V(c);
  const V scale((V::Data)((V::IntData)shifted.v << 52)), q = r * r * p + r;
  return (scale * q + scale) * V(x.v < 0 ? V(0x1p-64).v : V(2.0).v);
}

INLINE Vec<double> expm1(Vec<double> x) {
  using V = Vec<double>;
  V scale;
  const V q = exp_parts(min(max(x, V(-40.0)), V(40.0)), scale);
  return V(x.v > 40 ? (exp(x) - V(1.0)).v : (scale * q + (scale - V(1.0))).v);
}

// log(2^k (1 + f) + lost), fdlibm's: with s = f / (2 + f), log(1 + f) = f - f^2 / 2 + s (f^2 / 2 + R(s^2)).
INLINE Vec<double> log_of_parts(Vec<double> k, Vec<double> f, Vec<double> lost) {
  using V = Vec<double>;
  const V s = f / (V(2.0) + f), z = s * s, half = V(0.5) * f * f;
  V r(1.479819860511658591e-01);
  for (double c : {1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
                   2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01})
    r = r * z + V(c);
  r = r * z;
  const V low = k * V(1.90821492927058770002e-10) + lost;
  return k * V(6.93147180369123816490e-01) - ((half - (s * (half + r) + low)) - f);
}
// x = 2^k m with m from sqrt(1/2) to sqrt(2); x is normal.
INLINE Vec<double> mantissa(Vec<double> x, Vec<double>& k) {
  using V = Vec<double>;
  using Ints = V::IntData;
  const Ints root = Ints{} + uint64_t(0x3fe6a09e667f3bcd),
             bits = (Ints)x.v + ((Ints{} + uint64_t(0x3ff0000000000000)) - root);
  k = V((V::Data)((bits >> 52) | (Ints{} + uint64_t(0x4330000000000000)))) - V(4503599627370496.0 + 1023);
  return V((V::Data)((bits & (Ints{} + uint64_t(0x000fffffffffffff))) + root));
}
// What y is not at the edges: -inf at zero, NaN left of it; x is what the logarithm is of.
INLINE Vec<double> at_edges(Vec<double> x, Vec<double> y) {
  using V = Vec<double>;
  const V infinity(std::numeric_limits<double>::infinity()), nan(std::numeric_limits<double>::quiet_NaN());
  y = V(x.v == infinity.v ? infinity.v : y.v);
  y = V(x.v == 0 ? (V(0.0) - infinity).v : y.v);
  return V(x.v >= 0 ? y.v : nan.v);
}

INLINE Vec<double> log(Vec<double> x) {
  using V = Vec<double>;
  const V least(std::numeric_limits<double>::min()), zero(0.0);
  const V normal(x.v < least.v ? (x * V(0x1p54)).v : x.v);
  V k;
  const V m = mantissa(normal, k);
  k = k - V(x.v < least.v ? V(54.0).v : zero.v);
  return at_edges(x, log_of_parts(k, m - V(1.0), zero));
}

INLINE Vec<double> log1p(Vec<double> x) {
  using V = Vec<double>;
  const V one(1.0), u = one + x;
  V k;
  const V m = mantissa(u, k), lost = V(x.v > 1 ? (one - (u - x)).v : (x - (u - one)).v) / u;
  const V f(k.v == 0 ? x.v : (m - one).v), y = log_of_parts(k, f, V(k.v == 0 ? V(0.0).v : lost.v));
  return V(x.v == 0 ? x.v : at_edges(u, y).v);
}

INLINE Vec<float> exp(Vec<float> x) {
  return in_doubles(x, [](Vec<double> v) __attribute__((always_inline)) { return exp(v); });
}
INLINE Vec<float> expm1(Vec<float> x) {
  return in_doubles(x, [](Vec<double> v) __attribute__((always_inline)) { return expm1(v); });
}
INLINE Vec<float> log(Vec<float> x) {
  return in_doubles(x, [](Vec<double> v) __attribute__((always_inline)) { return log(v); });
}
INLINE Vec<float> log1p(Vec<float> x) {
  return in_doubles(x, [](Vec<double> v) __attribute__((always_inline)) { return log1p(v); });
}
}  // namespace
}  // namespace RNNKERNELS_SET
