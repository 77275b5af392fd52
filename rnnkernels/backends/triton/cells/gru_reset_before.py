"""GRU that resets before the product: r, z = gate(x + r);  n = act(x_n + W_hn (r h) + b_hn);  h' = n + z (h - n)."""

import triton
import triton.language as tl

from .math import activate, slope


@triton.jit
def first(x, r, s, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    """The operand of the second product."""
    return s[0] * activate(x[0] + r[0], GATE), ()


@triton.jit
def forward(x, r, s, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    reset = activate(x[0] + r[0], GATE)
    z = activate(x[1] + r[1], GATE)
    n = activate(x[2] + r[2], ACTIVATION)
    return (n + z * (s[0] - n),), (reset, z, n)


@triton.jit
def backward(ds, new, old, kept, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    """The planes of z and n; ``backward_first`` gives the reset gate's, which needs the second product's gradient."""
    reset, z, n = kept
    dn = ds[0] * (1 - z) * slope(n, ACTIVATION)
    dz = ds[0] * (old[0] - n) * slope(z, GATE)
    return (tl.zeros_like(dn), dz, dn), (ds[0] * z,)


@triton.jit
def backward_first(dv, crossing, new, old, kept, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    """From the gradient of r h: the reset gate's plane, and the gradient of h."""
    return (dv * old[0] * slope(kept[0], GATE),), (dv * kept[0],)


def inner(states, gates, vectors, inputs):
    """The operand of the second product at every step (T, B, H) from h and the kept planes (T, B, K, H), in torch."""
    return gates[:, :, 0] * states[0]
