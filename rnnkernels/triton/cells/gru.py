"""GRU: r, z = sigmoid(x + r);  n = act(x_n + r q), q = W_hn h + b_hn;  h' = n + z (h - n)."""

import triton
import triton.language as tl

from .math import activate, sigmoid, slope


@triton.jit
def forward(x, r, s, ACTIVATION: tl.constexpr):
    reset = sigmoid(x[0] + r[0])
    z = sigmoid(x[1] + r[1])
    q = r[2]
    n = activate(x[2] + reset * q, ACTIVATION)
    return (n + z * (s[0] - n),), (reset, z, n, q)


@triton.jit
def backward(ds, new, old, kept, ACTIVATION: tl.constexpr):
    reset, z, n, q = kept
    dn = ds[0] * (1 - z) * slope(n, ACTIVATION)
    dz = ds[0] * (old[0] - n) * z * (1 - z)
    dr = dn * q * reset * (1 - reset)
    return (dr, dz, dn, dn * reset), (ds[0] * z,)
