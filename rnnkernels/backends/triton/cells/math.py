"""Activations of the cells and their derivatives, the latter as functions of the activation's value.

Sigmoid and tanh are within a unit in the last place for all floats, as near zero as where they saturate (1.1 units; in
float64 within three). The only approximate instruction in them is one division, whose error the remainder corrects.
``tl.exp`` is not used: it is ``ex2.approx`` of a rounded product, whose relative error grows with the argument's
magnitude. ``tl.fma`` marks the places that need a single rounding. The C++ backend does the same
(csrc/machine/math-inl.h).
"""

import triton
import triton.language as tl

MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: the low bits of a sum are its rounded value
MAGIC64 = tl.constexpr(6755399441055744.0)


@triton.jit
def power_of_2(n):
    """2^n as a float32, or a float64; ``n`` has that dtype, and 2^n is a normal number."""
    if n.dtype == tl.float64:
        return ((n + (MAGIC64 + 1023)).to(tl.int64, bitcast=True) << 52).to(tl.float64, bitcast=True)
    else:
        return ((n + (MAGIC + 127)).to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)


@triton.jit
def at_most(v, most):
    """The minimum; NaN for a ``v`` of NaN."""
    return tl.minimum(v, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def with_sign(y, v):
    """``y``, which is not negative, with the sign of ``v``, which may be a zero."""
    if v.dtype == tl.float64:
        sign = (v.to(tl.int64, bitcast=True) >> 63) << 63
        return (y.to(tl.int64, bitcast=True) | sign).to(tl.float64, bitcast=True)
    else:
        sign = (v.to(tl.int32, bitcast=True) >> 31) << 31
        return (y.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def fewer_bits(v):
    """A float32 with the upper 20 bits of its 24: then 1 - v is exact from 1/4 on."""
    return (v.to(tl.int32, bitcast=True) & -16).to(tl.float32, bitcast=True)


@triton.jit
def exp_parts(v):
    """``n, q`` with e^v = 2^n (1 + q), from the minimax polynomial of v - n ln 2."""
    if v.dtype == tl.float64:
        n = (v * 1.4426950408889634 + MAGIC64) - MAGIC64
    else:
        n = (v * 1.4426950408889634 + MAGIC) - MAGIC
    r = (v - n * 0.693145751953125) - n * 1.4286068203094173e-06  # the first product has few bits: it is exact
    if v.dtype == tl.float64:
        p = r * 2.0914686968086876e-9 + 2.5105217004720745e-8
        p = p * r + 2.75572736431103e-7
        p = p * r + 2.7557255400206422e-6
        p = p * r + 2.4801587325547743e-5
        p = p * r + 1.9841269874820627e-4
        p = p * r + 1.3888888888883748e-3
        p = p * r + 8.333333333326136e-3
        p = p * r + 4.166666666666667e-2
        p = p * r + 1.666666666666667e-1
        p = p * r + 0.5
    else:
        p = r * 1.38207339e-3 + 8.36867746e-3
        p = p * r + 4.16682661e-2
        p = p * r + 1.66665211e-1
        p = p * r + 4.9999994e-1
    return n, r * r * p + r


@triton.jit
def sigmoid(v):
    if v.dtype == tl.float64:
        n, q = exp_parts(-at_most(tl.abs(v), 746.0))
        e = (power_of_2(n + 64) * q + power_of_2(n + 64)) * 5.421010862427522e-20  # 2^-64: may be subnormal
        return tl.where(v < 0, e, 1.0) / (1 + e)
    else:
        n, q = exp_parts(at_most(-at_most(v, 40.0), 104.5))
        s = power_of_2(24 - n) * 5.9604644775390625e-08  # 1 / (1 + 2^n (1 + q)) = s / (s + 1 + q)
        y = fewer_bits(1 / (s + 1 + q))
        rest = tl.fma(-y, q, tl.fma(-y, tl.minimum(s, 1.0), tl.fma(-y, tl.maximum(s, 1.0), 1.0)))
        return tl.fma(y, rest, y) * s


@triton.jit
def tanh(v):
    if v.dtype == tl.float64:
        n, q = exp_parts(2 * at_most(tl.abs(v), 20.0))
        e = power_of_2(n) * q + (power_of_2(n) - 1)
        y = e / (e + 2)
    else:
        # |v| = n ln 2 / 2 + r, t = tanh r, s = 2^-n: ((1 - s) + t (1 + s)) / ((1 + s) + t (1 - s))
        magnitude = at_most(tl.abs(v), 9.02)
        n = (magnitude * 2.8853900817779268 + MAGIC) - MAGIC
        r = magnitude - n * 0.34657359027997264
        square = r * r
        t = r + r * square * ((square * -5.27152829e-2 + 1.33311421e-1) * square - 3.33333224e-1)
        s = power_of_2(-n)
        inverse = 1 / (t * (1 - s) + (1 + s))
        y = ((t * (1 + s) + (1 - s)) * inverse + 12288.0) - 12288.0  # a multiple of 2^-10: exact in what follows
        a, b = 1 - y, s + s * y
        y = tl.fma(tl.fma(t, a + b, a - b), inverse, y)
    return with_sign(y, v)


@triton.jit
def activate(v, NAME: tl.constexpr):
    """The activation by the name that it has in ``reference.ACTIVATIONS``."""
    if NAME == "tanh":
        return tanh(v)
    elif NAME == "sigmoid":
        return sigmoid(v)
    elif NAME == "relu":
        return at_least(v, 0.0)
    elif NAME == "hard_sigmoid":
        return at_most(at_least(v / 6 + 0.5, 0.0), 1.0)
    else:
        tl.static_assert(NAME == "linear")
        return v


@triton.jit
def slope(a, NAME: tl.constexpr):
    """The derivative of the activation where its value is ``a``; for NaN as in torch: 1 of relu, 0 of hard_sigmoid."""
    if NAME == "tanh":
        return 1 - a * a
    elif NAME == "sigmoid":
        return a * (1 - a)
    elif NAME == "relu":
        return tl.where(a <= 0, 0.0, 1.0).to(a.dtype)
    elif NAME == "hard_sigmoid":
        return tl.where((a > 0) & (a < 1), 1.0, 0.0).to(a.dtype) / 6
    else:
        tl.static_assert(NAME == "linear")
        return tl.full(a.shape, 1.0, a.dtype)


@triton.jit
def at_least(v, least):
    """The maximum; NaN for a ``v`` of NaN."""
    return tl.maximum(v, least, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sign(v):
    """-1, 0 or 1; 0 for NaN, as torch has it."""
    return (v > 0).to(v.dtype) - (v < 0).to(v.dtype)


@triton.jit
def divide(a, b):
    """The rounded quotient; ``/`` of float32 is two units in the last place off."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def square_root(v):
    if v.dtype == tl.float64:
        return tl.sqrt(v)
    else:
        return tl.sqrt_rn(v)


@triton.jit
def exp(v):
    """e^v; 2^n in two factors, because it may be subnormal or more than the largest number."""
    if v.dtype == tl.float64:
        n, q = exp_parts(at_least(at_most(v, 710.0), -746.0))
        half = (n * 0.5 + MAGIC64) - MAGIC64
    else:
        n, q = exp_parts(at_least(at_most(v, 89.0), -104.5))
        half = (n * 0.5 + MAGIC) - MAGIC
    return (power_of_2(half) * q + power_of_2(half)) * power_of_2(n - half)


@triton.jit
def expm1(v):
    """e^v - 1, with the digits of small ``v``."""
    if v.dtype == tl.float64:
        n, q = exp_parts(at_least(at_most(v, 710.0), -40.0))
    else:
        n, q = exp_parts(at_least(at_most(v, 89.0), -20.0))
    s = power_of_2(n - 1)  # half of 2^n, which may be infinite
    return 2 * (s * q + (s - 0.5))


@triton.jit
def log(v):
    """The natural logarithm, as FDLIBM has it: by a series in (m - 1) / (m + 1) for v = 2^k m, m from sqrt(1/2) on."""
    if v.dtype == tl.float64:
        small = v < 2.2250738585072014e-308
        bits = tl.where(small, v * 18014398509481984.0, v).to(tl.int64, bitcast=True) + 0x95F6200000000
        k = ((bits >> 52) - 1023).to(tl.float64) - tl.where(small, 54.0, 0.0)
        m = ((bits & 0xFFFFFFFFFFFFF) + 0x3FE6A09E00000000).to(tl.float64, bitcast=True)
    else:
        small = v < 1.1754943508222875e-38
        bits = tl.where(small, v * 33554432.0, v).to(tl.int32, bitcast=True) + 0x4AFB0D
        k = ((bits >> 23) - 127).to(tl.float32) - tl.where(small, 25.0, 0.0)
        m = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    f = m - 1
    s = f / (2 + f)
    z = s * s
    w = z * z
    half = 0.5 * f * f
    if v.dtype == tl.float64:
        p = w * (w * (w * 1.531383769920937332e-1 + 2.222219843214978396e-1) + 3.999999999940941908e-1)
        p += z * (w * (w * (w * 1.479819860511658591e-1 + 1.818357216161805012e-1) + 2.857142874366239149e-1)
                  + 6.666666666666735130e-1)  # fmt: skip
        y = s * (half + p) + k * 1.90821492927058770002e-10 - half + f + k * 6.93147180369123816490e-1
    else:
        p = w * (w * 0.24279078841 + 0.40000972152) + z * (w * 0.28498786688 + 0.66666662693)
        y = s * (half + p) + k * 9.0580006145e-06 - half + f + k * 6.9313812256e-01
    y = tl.where(v == 0, -float("inf"), y)
    return tl.where((v < 0) | (v != v), float("nan"), tl.where(v == float("inf"), v, y))


@triton.jit
def log1p(v):
    """log(1 + v), with the digits of small ``v``: the rounding error of 1 + v is made good for."""
    u = 1 + v
    y = log(u)
    return tl.where((u > 0) & (u < float("inf")), y + (v - (u - 1)) / u, y)
