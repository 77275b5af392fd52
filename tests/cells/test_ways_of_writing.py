"""Ways of writing a cell's function: all give the same program."""

import cProfile
import functools
import sys
from collections import namedtuple

import program_cases
import pytest
import torch
from common import assert_close

from rnnkernels.cells.definition import Cell, cell
from rnnkernels.cells.trace import CellError, derivative

GATES = {"inputs": "a b", "recurrent": "a b", "states": "h c"}


def plain(x, r, s):
    c = torch.sigmoid(x.a + r.a) * s.c
    return torch.tanh(c + x.b + r.b), c


def by_position(x, r, /, s):
    return plain(x, r, s)


def decorated():
    @functools.wraps(plain)
    def around(*args, **kwargs):
        return plain(*args, **kwargs)

    return around


class Object:
    def __call__(self, x, r, s):
        return plain(x, r, s)

    def method(self, x, r, s):
        return plain(x, r, s)


def with_factor(factor, x, r, s):
    h, c = plain(x, r, s)
    return h * factor, c


def defaults(x, r, s, *, factor=1.0):
    return with_factor(factor, x, r, s)


NEW = namedtuple("NEW", "c h")
WAYS = {
    "position": by_position, "lambda": lambda x, r, s: plain(x, r, s), "decorated": decorated(), "object": Object(),
    "method": Object().method, "partial": functools.partial(with_factor, 1), "defaults": defaults,
    "partial of a keyword": functools.partial(defaults, factor=1), "list": lambda x, r, s: list(plain(x, r, s)),
    "dict": lambda x, r, s: dict(zip("ch", plain(x, r, s)[::-1], strict=True)),
    "named tuple": lambda x, r, s: NEW(*plain(x, r, s)[::-1]),
    "names of another tuple": lambda x, r, s: namedtuple("Other", "hidden c")(*plain(x, r, s)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_writing_a_function(way):
    expected, made = cell(**GATES, name="k")(plain), cell(**GATES, name="k")(WAYS[way])
    assert made == expected
    assert isinstance(cell(**GATES)(WAYS[way]), Cell)  # whose name is the function's, if it has one


def test_lines_and_names_are_those_of_the_function_inside():
    def around(function):
        return functools.wraps(function)(lambda **kwargs: function(**kwargs))

    def sine(x, r, s):
        return torch.sin(x.a), s.c

    def gated(x, r, s):
        z, n = torch.sigmoid(x.a + r.a), torch.tanh(x.b + r.b)
        return z * n, s.c

    with pytest.raises(CellError, match=f":{sine.__code__.co_firstlineno + 1}: a cell cannot have torch.sin"):
        cell(**GATES)(around(sine))
    for function in (around(gated), functools.partial(gated)):
        made = cell(**GATES)(function)
        assert made.names == ("z", "n") and made.program.name == "gated"


def test_under_a_profiler():
    """Which goes on as before."""

    def gated(x, r, s):
        z, n = torch.sigmoid(x.a + r.a), torch.tanh(x.b + r.b)
        return z * n, s.c

    calls = []
    sys.setprofile(lambda frame, event, _: calls.append((frame.f_code.co_name, event)))
    try:
        cell(**GATES)(gated)
    finally:
        sys.setprofile(None)
    assert ("gated", "call") in calls and ("gated", "return") in calls
    profile = cProfile.Profile()
    profile.enable()
    made = cell(**GATES)(gated)
    profile.disable()
    assert made.names == ("z", "n")
    assert any(
        code.co_name == "gated" for code in (entry.code for entry in profile.getstats()) if hasattr(code, "co_name")
    )


def test_gates_of_any_name():
    names = "_trace _kind _values T real"
    made = cell(inputs=names)(lambda x, s: x._trace + x._kind + x._values + x.T * x.real)
    assert list(made.program.inputs) == names.split()


def test_what_is_no_function():
    for what in (3, "a b", torch.nn.Tanh, cell(**GATES)(plain)):
        with pytest.raises(CellError, match="cell makes a cell of a function, got .*; names are given by keyword"):
            cell(what, **GATES)
    with pytest.raises(CellError, match="built-in method tanh.*: expected a function with named parameters"):
        cell(torch.tanh, **GATES)
    with pytest.raises(CellError, match="built-in function print>: expected parameters out of x, r, s, v, u"):
        cell(print, **GATES)


@pytest.mark.parametrize(
    "backward",
    [
        lambda v, d: d, lambda v, d: -d / (1 + v * v), lambda v, d: torch.where(v > 0, 2 * d, d * v - d),
        lambda v, d: torch.zeros_like(d), lambda v, d: 0 * d, lambda v, d: 0.0, lambda v, d: torch.lerp(d, d * v, 0.5),
    ],
)  # fmt: skip
def test_multiples_of_d(backward):
    step = derivative(lambda v: (v > 0) * 1.0, backward)
    made = cell(inputs="a")(lambda x, s: step(x.a) + s.h)
    a, d = (torch.linspace(-2, 2, 7, dtype=torch.float64).requires_grad_(), torch.linspace(0.5, 1.5, 7).double())
    loads = {("dx", "a"): a, ("ds", "h"): torch.zeros_like(a).requires_grad_()}
    put = program_cases.forward(made.program, loads)
    found = program_cases.derived(made.program, loads, put, {("new", "h"): d})
    assert_close("value", put["new", "h"], (a > 0).double())
    expected = torch.as_tensor(backward(a, d), dtype=d.dtype).expand_as(d)
    assert_close("da", found.get(("dx", "a"), torch.zeros_like(d)), expected)
