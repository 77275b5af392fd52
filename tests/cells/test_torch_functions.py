"""torch's functions in a cell, one by one: values are torch's own, of infinities and NaN too, and so are derivatives,
at kinks and infinities too. (Where a value is NaN, derivatives are some number or NaN, in torch as well.)"""

from pathlib import Path

import numpy as np
import program_cases
import pytest
import torch
import torch.nn.functional as F
from common import assert_close

from rnnkernels.cells import torch_functions
from rnnkernels.cells.definition import cell

inf, nan = torch.inf, torch.nan
AROUND = [-30.0, -20.0, -3.0, -1.0, -0.5, -1e-9, 0.0, 1e-9, 0.25, 0.5, 1.0, 2.0, 3.0, 20.0, 20.000001, 30.0]
POSITIVE = [1e-9, 0.25, 0.5, 1.0, 2.0, 30.0]

UNARY = {  # a function and the numbers that it gets, besides infinities and NaN
    "neg": (lambda a: -a, AROUND), "torch.neg": (torch.neg, AROUND), "abs": (torch.abs, AROUND), "abs()": (abs, AROUND),
    "sign": (torch.sign, AROUND), "sqrt": (torch.sqrt, POSITIVE), "exp": (torch.exp, AROUND),
    "log": (torch.log, POSITIVE), "log1p": (torch.log1p, POSITIVE + [-0.5]), "expm1": (torch.expm1, AROUND),
    "sigmoid": (torch.sigmoid, AROUND), "tanh": (torch.tanh, AROUND), "relu": (torch.relu, AROUND),
    "F.relu": (F.relu, AROUND), "F.tanh": (F.tanh, AROUND), "F.sigmoid": (F.sigmoid, AROUND),
    "square": (torch.square, AROUND), "reciprocal": (torch.reciprocal, POSITIVE + [-2.0]),
    "rsqrt": (torch.rsqrt, POSITIVE), "** 2": (lambda a: a**2, AROUND), "pow 3": (lambda a: torch.pow(a, 3), AROUND),
    "** -1": (lambda a: a**-1, POSITIVE), "** 0.5": (lambda a: a**0.5, POSITIVE), "softplus": (F.softplus, AROUND),
    "softplus 2 3": (lambda a: F.softplus(a, beta=2, threshold=3), AROUND + [1.5]),
    "logsigmoid": (F.logsigmoid, AROUND), "silu": (F.silu, AROUND),
    "gelu": (lambda a: F.gelu(a, approximate="tanh"), AROUND), "elu": (F.elu, AROUND),
    "elu 0.5": (lambda a: F.elu(a, 0.5), AROUND), "hardtanh": (F.hardtanh, AROUND),
    "hardtanh -.5 2": (lambda a: F.hardtanh(a, -0.5, 2.0), AROUND), "leaky_relu": (F.leaky_relu, AROUND),
    "leaky_relu 0.3": (lambda a: F.leaky_relu(a, negative_slope=0.3), AROUND),
    "hardsigmoid": (F.hardsigmoid, AROUND), "clamp": (lambda a: torch.clamp(a, -0.5, 1.0), AROUND),
    "clamp of crossed bounds": (lambda a: a.clamp(1.0, -0.5), AROUND),
    "clamp min": (lambda a: a.clamp(min=0.25), AROUND), "clamp max": (lambda a: torch.clip(a, max=0.25), AROUND),
    "clamp_min": (lambda a: torch.clamp_min(a, 0.0), AROUND), "clamp_max": (lambda a: a.clamp_max(1.0), AROUND),
    "zeros_like": (lambda a: a * torch.zeros_like(a) + torch.ones_like(a), AROUND),
    "where": (lambda a: torch.where(a > 0.25, a * a, 0.5), AROUND),
    "method where": (lambda a: a.where(a < 1, -a), AROUND),
    "where hides": (lambda a: torch.where(a > 0, torch.where(a > 0, a, 1.0).log(), a), AROUND),
    "a - number": (lambda a: 1 - a, AROUND), "a / number": (lambda a: a / 3 + 2 / (a * a + 1), AROUND),
    "detach": (lambda a: a * a.detach(), AROUND), "add": (lambda a: torch.add(a, 2), AROUND),
    "number - a": (lambda a: torch.sub(2, a), AROUND), "rsub": (lambda a: torch.rsub(a, 2, alpha=3), AROUND),
    "expit": (torch.special.expit, AROUND), "special.expm1": (torch.special.expm1, AROUND),
    "special.log1p": (torch.special.log1p, POSITIVE + [-0.5]), "+": (lambda a: +a, AROUND),
    "positive": (lambda a: torch.positive(a).clone().contiguous(), AROUND),
    "lerp by a number": (lambda a: torch.lerp(a, a * a, 0.25) + torch.lerp(a, 1 - a, 0.75), [-2.0, -0.5, 0.5, 30.0]),
    "sum of methods": (lambda a: a.sigmoid().mul(2).add(a.tanh()), AROUND),
}  # fmt: skip
BINARY = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "minimum": torch.minimum, "maximum": torch.maximum, "clamp by values": lambda a, b: torch.clamp(a, b - 1, b),
    "where <": lambda a, b: torch.where(a < b, a, b * b), "where <=": lambda a, b: torch.where(a <= b, a, b * b),
    "where >": lambda a, b: torch.where(a > b, a, b * b), "where >=": lambda a, b: torch.where(a >= b, a, b * b),
    "where ==": lambda a, b: torch.where(a == b, a, b * b), "where !=": lambda a, b: torch.where(a != b, a, b * b),
    "and": lambda a, b: torch.where((a > 0) & (b > 0), a, b), "or": lambda a, b: torch.where((a > 0) | (b > 0), a, b),
    "not": lambda a, b: torch.where(~(a > b), a, b), "lt": lambda a, b: torch.where(torch.lt(a, b), a, b),
    "ge": lambda a, b: torch.where(torch.ge(a, b), a, b), "ne": lambda a, b: torch.where(a.ne(b), a, b),
    "logical": lambda a, b: torch.where(torch.logical_and(a > b, torch.logical_not(b > 0)), a, b),
    "float": lambda a, b: (a > b).float() * a + (a < b).type_as(a) * b,
    "divide": lambda a, b: torch.div(a, b), "subtract": torch.subtract, "max": torch.max, "min": lambda a, b: a.min(b),
    "logical_or": lambda a, b: torch.where(torch.logical_or(a > 0, b > 0), a, b),
    "alpha": lambda a, b: torch.add(a, b, alpha=3) + a.sub(b, alpha=0.5), "lerp": lambda a, b: torch.lerp(a, b * b, b),
    "addcmul": lambda a, b: torch.addcmul(a, a, b) + torch.addcmul(a, b, b, value=-2),
    "addcdiv": lambda a, b: torch.addcdiv(a, a, b) + torch.addcdiv(b, b, a, value=0.5),
    "numpy's numbers": lambda a, b: np.sqrt(2.0) * a - b * np.float32(0.5) + torch.where(np.float64(0.5) < b, a, b),
    "of numpy": lambda a, b: np.float64(1.5) - a + np.float64(2) / (b * b + 1) + torch.where(a >= np.float64(1), a, b),
}  # fmt: skip


def compare(function, *values):
    """A function in a cell and outside: values and derivatives of all numbers."""
    gates = ["a", "b"][: len(values)]

    @cell(inputs=" ".join(gates))
    def f(x):
        return function(*(getattr(x, g) for g in gates))

    values = [torch.tensor(v, dtype=torch.float64) for v in values]
    leaves = {("dx", g): v.clone().requires_grad_() for g, v in zip(gates, values, strict=True)}
    leaves["ds", "h"] = torch.zeros_like(values[0]).requires_grad_()
    put = program_cases.forward(f.program, leaves)
    d = torch.linspace(0.5, 1.5, values[0].numel(), dtype=torch.float64)
    found = program_cases.derived(f.program, leaves, put, {("new", "h"): d})
    inputs = [v.clone().requires_grad_() for v in values]
    y = function(*inputs)
    y.backward(d)
    for name, actual, expected in (
        ("value", put["new", "h"], y),
        *((f"d{g}", found.get(("dx", g), torch.zeros_like(d)), v.grad) for g, v in zip(gates, inputs, strict=True)),
    ):
        expected = torch.zeros_like(d) if expected is None else expected
        if name != "value":
            actual, expected = (torch.where(y.isnan(), 0.0, v) for v in (actual, expected))
        special = ~expected.isfinite()
        at = [v[special].tolist() for v in values]
        assert torch.equal(actual[special].nan_to_num(), expected[special].nan_to_num()), f"{name} at {at}"
        tolerance = 1e-7 if function is F.hardsigmoid else 1e-12  # torch's has 1/6 in float32
        assert_close(name, actual[~special], expected[~special], tolerance)


@pytest.mark.parametrize("name", UNARY)
def test_of_one_value(name):
    function, numbers = UNARY[name]
    compare(function, [*numbers, inf, nan] + ([-inf] if numbers is AROUND else []))


@pytest.mark.parametrize("name", BINARY)
def test_of_two_values(name):
    numbers = [-2.0, -1.0, 0.5, 1.0, 2.0, nan]
    compare(BINARY[name], [a for a in numbers for _ in numbers], numbers * len(numbers))


def test_every_function_that_a_cell_may_have_is_compared():
    source = Path(__file__).read_text()
    names = {name for words in torch_functions.RULES for name in words.split()} | set(torch_functions.OF_NN)
    aliases = {"negative", "absolute", "sgn", "multiply", "mul", "true_divide", "less", "less_equal", "le", "greater",
               "gt", "greater_equal", "eq", "not_equal", "pow", "logical_and", "logical_not", "ones_like"}  # fmt: skip
    assert not [n for n in names - aliases if n not in source]
