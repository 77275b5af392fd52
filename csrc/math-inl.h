// Functions of vectors: reciprocal, exponential, sigmoid, tanh.

INLINE Vec<double> reciprocal(Vec<double> x) { return Vec<double>(1.0) / x; }
INLINE Vec<float> reciprocal(Vec<float> x) {
#ifdef RECIPROCAL_ESTIMATE  // 14 bits, and one Newton step
  Vec<float> r(RECIPROCAL_ESTIMATE(x.v));
  return r * (Vec<float>(2.0f) - x * r);
#else
  return Vec<float>(1.0f) / x;
#endif
}

// e^-x for |x| clamped to the normal range: -x = (n + r) ln 2, 2^r by a minimax polynomial, and n put into the
// exponent.
INLINE Vec<float> exp_minus(Vec<float> x) {
  using V = Vec<float>;
  const V magic(12582912.0f), scale(-1.44269504f);  // 1.5 * 2^23: the low bits of a sum are its rounded value
  x = min(max(x, V(-87.0f)), V(87.0f));
  V shifted = x * scale + magic, r = x * scale - (shifted - magic);
  V p = V(1.53458122e-4f);
  for (float c : {1.33999312e-3f, 9.61848896e-3f, 5.55032878e-2f, 2.40226469e-1f, 6.93147206e-1f, 1.0f})
    p = p * r + V(c);
  return V((V::Data)(((V::IntData)shifted.v << 23) + (V::IntData)p.v));
}
// e^x = scale + scale * q with q = e^r - 1, so that e^x - 1 keeps the digits of small x.
INLINE Vec<double> exp_parts(Vec<double> x, Vec<double>& scale) {
  using V = Vec<double>;
  const V magic(6755399441055744.0 + 1023);  // 1.5 * 2^52 and the bias: the low bits of a sum are the exponent's
  x = min(max(x, V(-708.0)), V(709.0));
  V shifted = x * V(1.4426950408889634) + magic, n = shifted - magic;
  V r = x - n * V(6.93145751953125e-1) - n * V(1.42860682030941723212e-6);
  V p = V(1.0 / 479001600);
  for (double d : {39916800., 3628800., 362880., 40320., 5040., 720., 120., 24., 6., 2., 1.}) p = p * r + V(1 / d);
  scale = V((V::Data)((V::IntData)shifted.v << 52));
  return p * r;
}
INLINE Vec<double> exp_minus(Vec<double> x) {
  Vec<double> scale, q = exp_parts(Vec<double>(0.0) - x, scale);
  return scale * q + scale;
}

template <class A>
INLINE Vec<A> sigmoid(Vec<A> x) {
  return reciprocal(Vec<A>(A(1)) + exp_minus(x));
}

// x P(x^2) / Q(x^2): good to a few units in the last place, also near zero (the minimax fit that Eigen uses).
INLINE Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  x = min(max(x, V(-7.90531110763549805f)), V(7.90531110763549805f));
  V s = x * x;
  V p = V(-2.76076847742355e-16f);
  for (float c : {2.00018790482477e-13f, -8.60467152213735e-11f, 5.12229709037114e-08f, 1.48572235717979e-05f,
                  6.37261928875436e-04f, 4.89352455891786e-03f})
    p = p * s + V(c);
  V q = V(1.19825839466702e-06f);
  for (float c : {1.18534705686654e-04f, 2.26843463243900e-03f, 4.89352518554385e-03f}) q = q * s + V(c);
  return x * p * reciprocal(q);
}
INLINE Vec<double> tanh(Vec<double> x) {
  Vec<double> scale, q = exp_parts(x + x, scale), e = scale * q + (scale - Vec<double>(1.0));  // e^2x - 1
  return e / (e + Vec<double>(2.0));
}
