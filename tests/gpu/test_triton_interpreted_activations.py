"""Sigmoid and tanh of the Triton kernels over all magnitudes, against float64.

Needs a process of its own (triton_cases.py).
"""

import mpmath
import pytest
import torch
from common import magnitudes, units
from triton_cases import interpreter  # noqa: F401 - used by every test; skips where there is no Triton

import triton  # isort: skip
import triton.language as tl  # isort: skip

from rnnkernels.backends.triton.cells import math
from rnnkernels.cells import reference


@triton.jit
def kernel(x, y, n, NAME: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, math.activate(tl.load(x + at, mask=at < n), NAME), mask=at < n)


def activated(name, x):
    y = torch.empty_like(x)
    kernel[(1,)](x, y, len(x), name, triton.next_power_of_2(len(x)))
    return y


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_within_a_unit_in_the_last_place(name):
    x = magnitudes(torch.float32)
    assert units(activated(name, x), getattr(torch, name)(x.double()).tolist()) <= 1.1


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_float64(name):
    x = magnitudes(torch.float64, 800)
    exact = {"tanh": mpmath.tanh, "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v))}[name]
    with mpmath.workdps(60):
        expected = [exact(mpmath.mpf(v)) for v in x.tolist()]
        assert units(activated(name, x), expected) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signs_of_zeros(dtype):
    y = activated("tanh", torch.tensor([0.0, -0.0], dtype=dtype))
    assert y.signbit().tolist() == [False, True] and not y.any()


@triton.jit
def slopes(y, dy, n, NAME: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(dy + at, math.slope(tl.load(y + at, mask=at < n), NAME), mask=at < n)


@pytest.mark.parametrize("name", ["relu", "hard_sigmoid"])
def test_corners_and_nan(name):
    """NaN stays NaN, and its slope is torch's: that of relu lets a gradient pass."""
    x = torch.tensor([float("nan"), -5.0, -3.0, 0.0, 2.0, 3.0, 5.0, float("inf")])
    y, leaf = activated(name, x), x.clone().requires_grad_()
    expected = reference.ACTIVATIONS[name](leaf)
    torch.testing.assert_close(y, expected, equal_nan=True)
    slope = torch.empty_like(x)
    slopes[(1,)](y, slope, len(x), name, 8)
    (wanted,) = torch.autograd.grad(expected, leaf, torch.ones_like(x))
    corners = torch.isin(x, torch.tensor([-3.0, 3.0]))  # where torch's clamp has the slope of the line
    torch.testing.assert_close(slope, wanted.where(~corners | (wanted == 1), 0.0))
