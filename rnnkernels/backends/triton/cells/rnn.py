"""Elman's cell: h' = act(x + r)."""

import triton
import triton.language as tl

from .math import activate, slope


@triton.jit
def forward(x, r, s, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    return (activate(x[0] + r[0], ACTIVATION),), ()


@triton.jit
def backward(ds, new, old, kept, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    return (ds[0] * slope(new[0], ACTIVATION),), (tl.zeros_like(ds[0]),)
