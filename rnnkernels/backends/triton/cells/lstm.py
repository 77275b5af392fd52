"""LSTM: i, f, o = gate(x + r);  g = act(x + r);  c' = f c + i g;  h' = o act(c')."""

import triton
import triton.language as tl

from ....cells.reference import ACTIVATIONS
from .math import activate, slope


@triton.jit
def forward(x, r, s, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    i = activate(x[0] + r[0], GATE)
    f = activate(x[1] + r[1], GATE)
    g = activate(x[2] + r[2], ACTIVATION)
    o = activate(x[3] + r[3], GATE)
    c = f * s[1] + i * g
    return (o * activate(c, ACTIVATION), c), (i, f, g, o)


@triton.jit
def hidden(kept, c, ACTIVATION: tl.constexpr):
    """h' from the kept planes and from c' as it enters the output."""
    return kept[3] * activate(c, ACTIVATION)


@triton.jit
def backward(ds, new, old, kept, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    i, f, g, o = kept
    a = activate(new[1], ACTIVATION)
    dc = ds[1] + ds[0] * o * slope(a, ACTIVATION)
    di = dc * g * slope(i, GATE)
    df = dc * old[1] * slope(f, GATE)
    dg = dc * i * slope(g, ACTIVATION)
    do = ds[0] * a * slope(o, GATE)
    return (di, df, dg, do), (tl.zeros_like(dc), dc * f)


@triton.jit
def backward_hidden(dh, kept, c, ACTIVATION: tl.constexpr):
    """The gradient of c' through the output; ``backward`` adds it to that of c'."""
    return dh * kept[3] * slope(activate(c, ACTIVATION), ACTIVATION)


@triton.jit
def renew(old, kept):
    """The new states from the old ones and the kept planes; h is not needed."""
    i, f, g, o = kept
    return old[0], f * old[1] + i * g


def output(gates, cells, activation):
    """h' of every step (T, B, H) from the kept planes (T, B, 4, H) and the new c (T, B, H), as torch tensors."""
    return (gates[:, :, 3] * ACTIVATIONS[activation](cells)).to(gates.dtype)


def new_cells(gates, old):
    """The new c of every step (T, B, H) from the kept planes and the c that entered the steps."""
    i, f, g, _ = gates.unbind(2)
    return f * old + i * g
