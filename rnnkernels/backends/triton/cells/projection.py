"""The projection of an LSTM's output as a separate cell: h' = r, with r = W_hr (the unprojected output)."""

import triton
import triton.language as tl


@triton.jit
def forward(x, r, s, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    return (r[0],), ()


@triton.jit
def backward(ds, new, old, kept, ACTIVATION: tl.constexpr, GATE: tl.constexpr):
    return (ds[0],), (tl.zeros_like(ds[0]),)
