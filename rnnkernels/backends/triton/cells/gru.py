"""GRU: r, z = gate(x + r);  n = act(x_n + r q), q = W_hn h + b_hn;  h' = n + z (h - n)."""

import triton
import triton.language as tl

from .math import activate, slope


@triton.jit
def forward(x, r, s, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    reset = activate(x[0] + r[0], GATE)
    z = activate(x[1] + r[1], GATE)
    q = r[2]
    n = activate(x[2] + reset * q, ACTIVATION)
    return (n + z * (s[0] - n),), (reset, z, n, q)


@triton.jit
def backward(ds, new, old, kept, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    reset, z, n, q = kept
    dn = ds[0] * (1 - z) * slope(n, ACTIVATION)
    dz = ds[0] * (old[0] - n) * slope(z, GATE)
    dr = dn * q * slope(reset, GATE)
    return (dr, dz, dn, dn * reset), (ds[0] * z,)
