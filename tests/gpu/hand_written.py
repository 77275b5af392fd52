"""Two cells as Triton functions written by hand, which those generated from programs have to be as good as."""

import triton
import triton.language as tl

from rnnkernels.backends.triton.cells import cell_of
from rnnkernels.backends.triton.cells.math import activate, slope


@triton.jit
def lstm(x, r, s, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    i = activate(x[0] + r[0], GATE)
    f = activate(x[1] + r[1], GATE)
    g = activate(x[2] + r[2], ACTIVATION)
    o = activate(x[3] + r[3], GATE)
    c = f * s[1] + i * g
    return (o * activate(c, ACTIVATION), c), (i, f, g, o)


@triton.jit
def lstm_backward(ds, new, old, kept, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    i, f, g, o = kept
    a = activate(new[1], ACTIVATION)
    dc = ds[1] + ds[0] * o * slope(a, ACTIVATION)
    di = dc * g * slope(i, GATE)
    df = dc * old[1] * slope(f, GATE)
    dg = dc * i * slope(g, ACTIVATION)
    do = ds[0] * a * slope(o, GATE)
    return (di, df, dg, do), (tl.zeros_like(dc), dc * f)


@triton.jit
def gru(x, r, s, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    reset = activate(x[0] + r[0], GATE)
    z = activate(x[1] + r[1], GATE)
    q = r[2]
    n = activate(x[2] + reset * q, ACTIVATION)
    return (n + z * (s[0] - n),), (reset, z, n, q)


@triton.jit
def gru_backward(ds, new, old, kept, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    reset, z, n, q = kept
    dn = ds[0] * (1 - z) * slope(n, ACTIVATION)
    dz = ds[0] * (old[0] - n) * slope(z, GATE)
    dr = dn * q * slope(reset, GATE)
    return (dr, dz, dn, dn * reset), (ds[0] * z,)


FUNCTIONS = {"lstm": (lstm, lstm_backward), "gru": (gru, gru_backward)}


def hand_written(name, H=None):
    """The built-in ``Cell`` with the functions of this file, for any H."""
    forward, backward = FUNCTIONS[name]
    return cell_of(name)._replace(forward=forward, backward=backward)
