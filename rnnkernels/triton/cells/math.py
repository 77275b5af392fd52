"""Activations of the cells and their derivatives, the latter as functions of the activation's value."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(v):
    return 1 / (1 + tl.exp(-v))


@triton.jit
def activate(v, NAME: tl.constexpr):
    """The activation by the name that it has in ``reference.ACTIVATIONS``."""
    if NAME == "tanh":
        return 2 * sigmoid(2 * v) - 1
    elif NAME == "sigmoid":
        return sigmoid(v)
    elif NAME == "relu":
        return tl.maximum(v, 0)
    elif NAME == "hard_sigmoid":
        return tl.minimum(tl.maximum(v / 6 + 0.5, 0), 1)
    else:
        tl.static_assert(NAME == "linear")
        return v


@triton.jit
def slope(a, NAME: tl.constexpr):
    """The derivative of the activation where its value is ``a``."""
    if NAME == "tanh":
        return 1 - a * a
    elif NAME == "sigmoid":
        return a * (1 - a)
    elif NAME == "relu":
        return tl.where(a > 0, 1.0, 0.0).to(a.dtype)
    elif NAME == "hard_sigmoid":
        return tl.where((a > 0) & (a < 1), 1.0, 0.0).to(a.dtype) / 6
    else:
        tl.static_assert(NAME == "linear")
        return tl.full(a.shape, 1.0, a.dtype)
