"""exp, log and so on of generated cells over all magnitudes, against mpmath's.

Needs a process of its own (triton_cases.py).
"""

import math as python
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from common import magnitudes
from triton_cases import interpreter  # noqa: F401 - used by every test; skips where there is no Triton

import triton  # isort: skip
import triton.language as tl  # isort: skip

from rnnkernels.backends.triton.cells import math

FUNCTIONS = {"exp": math.exp, "log": math.log, "log1p": math.log1p, "expm1": math.expm1, "sqrt": math.square_root}


@triton.jit
def kernel(x, y, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, FUNCTION(tl.load(x + at, mask=at < n, other=1.0)), mask=at < n)


@triton.jit
def pair_kernel(a, b, y, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    mask = at < n
    tl.store(y + at, FUNCTION(tl.load(a + at, mask=mask, other=1.0), tl.load(b + at, mask=mask, other=1.0)), mask=mask)


def applied(function, *inputs):
    y = torch.empty_like(inputs[0])
    run = kernel if len(inputs) == 1 else pair_kernel
    with np.errstate(all="ignore"):  # NumPy, which interprets, would warn of infinities
        run[(1,)](*inputs, y, len(y), function, triton.next_power_of_2(len(y)))
    return y


def exact(name, v):
    """The value of a function, as torch has it at the ends of what it is defined for."""
    if v != v or (v < 0 and name in ("log", "sqrt")) or (v < -1 and name == "log1p"):
        return python.nan
    if (name, v) in (("log", 0.0), ("log1p", -1.0)):
        return -python.inf
    return getattr(mpmath, name)(mpmath.mpf(v))


def error(actual, expected):
    """The largest error in units of the last place; infinite where one is NaN or infinite, and the other is not."""
    info, worst = torch.finfo(actual.dtype), 0.0
    most = mpmath.mpf(info.max) * (1 + mpmath.mpf(info.eps) / 4)  # what is beyond it rounds to infinity
    for a, e in zip(actual.tolist(), expected, strict=True):
        e = mpmath.sign(e) * mpmath.inf if e == e and abs(e) >= most else e
        if a == e or (a != a and e != e):
            continue
        if not (mpmath.isfinite(a) and mpmath.isfinite(e)):
            return python.inf
        power = max(mpmath.frexp(e)[1] - 1, mpmath.frexp(info.smallest_normal)[1] - 1)
        worst = max(worst, float(abs(a - e) / (mpmath.ldexp(1, power) * info.eps)))
    return worst


@pytest.mark.parametrize("dtype, n, most", [(torch.float32, 2048, 1.6), (torch.float64, 400, 3)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_units_in_the_last_place(name, dtype, n, most):
    near = torch.linspace(-0.9, 3, 201, dtype=torch.float64).to(dtype)  # where log is near zero, and exp changes n
    x = torch.cat([near, magnitudes(dtype, n)])
    with mpmath.workdps(60):
        assert error(applied(FUNCTIONS[name], x), [exact(name, v) for v in x.tolist()]) <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_functions_are_torchs(dtype):
    x = magnitudes(dtype, 64)
    a, b = x.repeat_interleave(len(x)), x.repeat(len(x))
    same = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
    same(applied(math.smaller, a, b), torch.minimum(a, b))
    same(applied(math.larger, a, b), torch.maximum(a, b))
    same(applied(math.divide, a, b), a / b)
    same(applied(math.sign, x), torch.sign(x))
