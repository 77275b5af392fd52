"""Activations of the cells and their derivatives, the latter as functions of the activation's value."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(v):
    return 1 / (1 + tl.exp(-v))


@triton.jit
def tanh(v):
    return 2 * sigmoid(2 * v) - 1


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.maximum(v, 0)
    else:
        return tanh(v)


@triton.jit
def slope(a, ACTIVATION: tl.constexpr):
    """The derivative of the activation where its value is ``a``."""
    if ACTIVATION == "relu":
        return tl.where(a > 0, 1.0, 0.0).to(a.dtype)
    else:
        return 1 - a * a
