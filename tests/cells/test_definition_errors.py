"""What is no cell is refused where it is defined: one sentence, with the line, and what is allowed."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rnnkernels.cells.definition import cell
from rnnkernels.cells.trace import CellError, derivative, norm, product

HERE = Path(__file__).name
LINES = Path(__file__).read_text().splitlines()
ALLOWED = "allowed are + - * /, comparisons, torch.where"
CHOICE = (
    "a cell cannot have `if`, `and`, `or`, `not`, `while`, max(), min() or `a < b < c` on values (torch.where, "
    "torch.maximum and torch.minimum choose, & and | join comparisons); "
)
MULTIPLE = "expected backward of derivative to give a multiple of d, by something without d"
TENSOR = torch.ones(3)
GATES = {"inputs": "a b", "recurrent": "a b"}


def in_place_module(x, r, s):
    h = x.a + r.a + x.b + r.b
    h += s.h  # here
    return h


def in_place_method(x, r, s):
    h = x.a + r.a + x.b + r.b
    h.mul_(0.5)  # here
    return h


def branch(x, r, s):
    h = x.a + r.a + x.b + r.b
    if h > 0:  # here
        h = -h
    return h


def chained(x, r, s):
    return torch.where(0 < x.a < r.a, x.b, r.b)  # here


def loop(x, r, s):
    for h in x.a:  # here
        return h


def unpacked(x, r, s):
    a, b = x.a  # here
    return a


def indexed(x, r, s):
    return x.a[..., 0] + r.a  # here


def assigned(x, r, s):
    s.h = x.a  # here
    return s.h


def outside(x, r, s):
    return x.a + r.a + TENSOR  # here


def outside_first(x, r, s):
    return TENSOR * x.a  # here


def outside_argument(x, r, s):
    return torch.maximum(x.a, TENSOR)  # here


def outside_numpy(x, r, s):
    return x.a * np.ones(3)  # here


def unknown_gate(x, r, s):
    return x.a + r.z  # here


def unknown_state(x, r, s):
    return x.a + s.c  # here


def reduced(x, r, s):
    return torch.softmax(x.a, -1)  # here


def method(x, r, s):
    return x.a.mean()  # here


def attribute(x, r, s):
    return x.a.shape[0]  # here


def norm_of_torch(x, r, s):
    return torch.nn.functional.layer_norm(x.a, (4,))  # here


def module(x, r, s):
    return torch.nn.Linear(3, 3)(x.a)  # here


def dropout(x, r, s):
    return torch.nn.functional.dropout(x.a)  # here


def exact_gelu(x, r, s):
    return torch.nn.functional.gelu(x.a)  # here


def power(x, r, s):
    return x.a**4  # here


def power_of_value(x, r, s):
    return x.a**r.a  # here


def number_to_value(x, r, s):
    return 2**x.a  # here


def modulo(x, r, s):
    return x.a % 2  # here


def matmul(x, r, s):
    return x.a @ r.a  # here


def python_math(x, r, s):
    return math.exp(x.a)  # here


def to_float(x, r, s):
    return float(x.a)  # here


def rounded(x, r, s):
    return round(x.a)  # here


def numpy_math(x, r, s):
    return np.tanh(x.a)  # here


def infinite(x, r, s):
    return torch.where(x.a > 0, float("inf"), x.a)  # here


def rounding_mode(x, r, s):
    return torch.div(x.a, r.a, rounding_mode="floor")  # here


def out(x, r, s):
    return torch.tanh(x.a, out=r.a)  # here


def inplace(x, r, s):
    return torch.nn.ReLU(inplace=True)(x.a) + x.a  # here


def stacked(x, r, s):
    return torch.stack([x.a, r.a]).sum(0)  # here


def greatest(x, r, s):
    return max(x.a, 0)  # here


def dimension(x, r, s):
    return torch.max(x.a, 0)  # here


def huge(x, r, s):
    return x.a * 10**400  # here


def other_number(x, r, s):
    return x.a * 1j  # here


def all_gates(x, r, s):
    return torch.tanh(x) + r.a  # here


def sum_of_all_gates(x, r, s):
    return x + r  # here


def gates_as_a_list(x, r, s):
    a, b = x  # here
    return a


def not_linear(x, r, s):
    return derivative(torch.sign, lambda v, d: d * d)(x.a)  # here


def bounded(x, r, s):
    return derivative(torch.sign, lambda v, d: d.clamp(-1, 1))(x.a)  # here


def shifted(x, r, s):
    return derivative(torch.sign, lambda v, d: torch.where(v > 0, d, 1.0))(x.a)  # here


def without_d(x, r, s):
    return derivative(torch.sign, lambda v, d: v)(x.a)  # here


def wrong_product(x, r, s):
    return x.a + r.b + product("a", s.h)  # here


def two_products(x, r, s):
    n = product("b", s.h * x.a)
    return n + product("b", s.h)  # here


def negative_eps(x, r, s):
    return x.a + norm(s.h, eps=-1)  # here


def eps_of_values(x, r, s):
    return x.a + norm(s.h, eps=s.h * s.h)  # here


def eps_from_outside(x, r, s):
    return x.a + norm(s.h, eps=TENSOR)  # here


def infinite_eps(x, r, s):
    return x.a + norm(s.h, eps=math.inf)  # here


WITH_LINE = {  # a function, and what is said of the line that says "here"
    in_place_module: "a cell cannot have in-place code such as += (write h = h + x); " + ALLOWED,
    in_place_method: "a cell cannot have in-place code such as .mul_(); " + ALLOWED,
    branch: CHOICE + ALLOWED,
    chained: CHOICE + ALLOWED,
    greatest: CHOICE + ALLOWED,
    loop: "a cell cannot have loops over values or unpacking of them; " + ALLOWED,
    unpacked: "a cell cannot have loops over values or unpacking of them; " + ALLOWED,
    indexed: "a cell cannot have indexing: a cell is pointwise; " + ALLOWED,
    assigned: "s cannot be changed; return the new states",
    outside: "a tensor comes from outside of the cell; allowed are x, r, s, v, u, constants= and Python numbers",
    outside_first: "a tensor comes from outside of the cell; ",
    outside_argument: "a tensor comes from outside of the cell; ",
    outside_numpy: "a cell cannot have Python's or numpy's functions of values (torch's take them); ",
    unknown_gate: "r has no z; allowed are a, b",
    unknown_state: "s has no c; allowed are h",
    reduced: "a cell cannot have torch.softmax; " + ALLOWED,
    method: "a cell cannot have .mean; " + ALLOWED,
    attribute: "a cell cannot have .shape; " + ALLOWED,
    norm_of_torch: "a cell cannot have torch.layer_norm; " + ALLOWED,
    negative_eps: "expected eps of norm to be a number of 0 or more, got -1",
    eps_of_values: "expected eps of norm to be a number of 0 or more, got a value",
    eps_from_outside: "a tensor comes from outside of the cell; ",
    infinite_eps: "expected finite numbers, got inf",
    module: "a cell cannot have torch.linear; " + ALLOWED,
    dropout: "a cell cannot have torch.dropout; " + ALLOWED,
    exact_gelu: "a cell cannot have gelu but with approximate='tanh'; " + ALLOWED,
    power: "a cell cannot have a power of 4; " + ALLOWED,
    power_of_value: "a cell cannot have a value as exponent; " + ALLOWED,
    number_to_value: "a cell cannot have other operators, such as //, %, @, ^ or a value as exponent; " + ALLOWED,
    modulo: "a cell cannot have other operators, such as //, %, @, ^ or a value as exponent; " + ALLOWED,
    matmul: "a cell cannot have other operators, such as //, %, @, ^ or a value as exponent; " + ALLOWED,
    python_math: "a cell cannot have Python's or numpy's functions of values (torch's take them); " + ALLOWED,
    to_float: "a cell cannot have Python's or numpy's functions of values (torch's take them); " + ALLOWED,
    rounded: "a cell cannot have Python's or numpy's functions of values (torch's take them); " + ALLOWED,
    numpy_math: "a cell cannot have Python's or numpy's functions of values (torch's take them); " + ALLOWED,
    infinite: "expected finite numbers, got inf",
    rounding_mode: "a cell cannot have this call of torch.div (got an unexpected keyword argument 'rounding_mode'); ",
    out: "a cell cannot have this call of torch.tanh (got an unexpected keyword argument 'out'); " + ALLOWED,
    inplace: "a cell cannot have in-place code such as inplace=True; " + ALLOWED,
    stacked: "a cell cannot have torch.stack; " + ALLOWED,
    dimension: "a cell cannot have torch.max along a dimension (torch.maximum is of two values); " + ALLOWED,
    huge: "expected finite numbers, got an integer beyond float64",
    other_number: "expected a value of the cell or a number, got complex",
    all_gates: "x is no value, it has values by name: x.a, x.b",
    sum_of_all_gates: "x is no value, it has values by name: x.a, x.b",
    gates_as_a_list: "x is no value, it has values by name: x.a, x.b",
    not_linear: MULTIPLE,
    bounded: MULTIPLE,
    shifted: MULTIPLE,
    without_d: MULTIPLE,
    wrong_product: "product is for the last gate of recurrent, 'b', got 'a'",
    two_products: "a cell has one inner product",
}


@pytest.mark.parametrize("function", WITH_LINE, ids=lambda f: f.__name__)
def test_refused_with_the_line(function):
    first = function.__code__.co_firstlineno
    line = next(n for n in range(first, len(LINES)) if LINES[n - 1].endswith("# here"))
    with pytest.raises(CellError) as refusal:
        cell(**GATES)(function)
    message = str(refusal.value)
    assert re.match(rf"\S*{re.escape(HERE)}:{line}: {re.escape(WITH_LINE[function])}", message), message
    assert "\n" not in message
