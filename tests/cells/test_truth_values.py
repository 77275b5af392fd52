"""Comparisons in a cell: truth values, which torch joins, adds and multiplies otherwise than numbers."""

import operator

import pytest
import torch

import rnnkernels
from rnnkernels.cells.trace import CellError

A = torch.tensor([-2.0, -1.0, 0.0, 0.0, 1.0, 3.0], dtype=torch.float64)
B = torch.tensor([0.0, -1.0, 0.0, 5.0, -4.0, 3.0], dtype=torch.float64)
WAYS = {
    "sum": lambda a, b: ((a > 0) + (b > 0)) * a, "torch.add": lambda a, b: torch.add(a > 0, b > 0) * a,
    "sum of numbers": lambda a, b: (a > 0) * 1.0 + (b > 0).float(), "with a number": lambda a, b: (a > 0) + 1.0 * b,
    "difference of numbers": lambda a, b: (a > 0) * 1.0 - (b > 0) * 1.0, "product": lambda a, b: (a > 0) * (b > 0) * b,
    "and": lambda a, b: ((a > 0) & (b > 0)) * b, "or": lambda a, b: ((a > 0) | (b > 0) | (a == b)) * b,
    "and True": lambda a, b: (True & (a > 0)) * b, "or False": lambda a, b: ((a > 0) | False) * b,
    "not": lambda a, b: (~(a > 0)) * b, "not equal": lambda a, b: (a != b) * b, "not not": lambda a, b: ~(a != b) * b,
    "logical_and": lambda a, b: torch.logical_and(a, b) * 2.0, "logical_or": lambda a, b: torch.logical_or(a, b) * b,
    "logical_not": lambda a, b: torch.where(torch.logical_not(a), b, -b),
    "logical_not of a comparison": lambda a, b: torch.where((a > b).logical_not(), b, -b),
    "nested": lambda a, b: torch.where((a > 0) & ~(b == 3) | (a < -1), a, b),
    "a comparison of comparisons": lambda a, b: ((a > 0) == (b > 0)) * 1.5,
    "where": lambda a, b: torch.where(a > 0, a > 2, b > 0) + (a == b) + 0.0 * b,
    "type_as": lambda a, b: (a > 0).type_as(a) + (b > 0).type_as(b),
}  # fmt: skip
REFUSED = {
    "& of numbers": lambda a, b: a & b, "| with a number": lambda a, b: a | 2, "~ of a number": lambda a, b: ~a,
    "& of one number": lambda a, b: ((a > 0) * 1.0) & (b > 0), "-": lambda a, b: -(a < b),
    "1 -": lambda a, b: 1 - (a < b), "- of two": lambda a, b: (a < b) - (b < a),
    "torch.neg": lambda a, b: torch.neg(a < b), "torch.sub": lambda a, b: torch.sub(a, a < b),
    "where of a number": lambda a, b: torch.where(a, a, b), "clamp of nothing": lambda a, b: torch.clamp(a),
    "where of a product": lambda a, b: torch.where((a > 0) * b, a, b),
}  # fmt: skip


def cell(function):
    return rnnkernels.cell(inputs="a b", project_input=False)(lambda x: function(x.a, x.b))


@pytest.mark.parametrize("way", WAYS)
def test_as_torch_computes_them(backend, way):
    layer = rnnkernels.Recurrent(cell(WAYS[way]), 12, 6, dtype=torch.float64)
    assert torch.equal(layer(torch.cat([A, B])[None, None])[0][0, 0], WAYS[way](A, B).double())


@pytest.mark.parametrize("way", REFUSED)
def test_refused_as_torch_refuses_them(way):
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[way](A, B)
    with pytest.raises(CellError, match="a cell cannot have"):
        cell(REFUSED[way])


CHANGES = ("iand", "ior", "ixor", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")


@pytest.mark.parametrize("change", CHANGES)
def test_in_place_code_is_refused(change):
    def function(x):
        m = k = x.a > 0
        m = getattr(operator, change)(m, x.b > 0)
        return k * 1.0 + m

    with pytest.raises(CellError, match="in-place code"):
        rnnkernels.cell(inputs="a b", project_input=False)(function)


def test_gradients_are_not_switched_off():
    def function(x, s):
        with torch.no_grad():
            k = torch.sigmoid(x.a)
        return k * s.h + x.a

    for wrong in (function, torch.no_grad()(lambda x, s: torch.sigmoid(x.a) * s.h)):
        with pytest.raises(CellError, match=r"a cell cannot have torch\.no_grad .*detach"):
            rnnkernels.cell(inputs="a")(wrong)
    with torch.no_grad():
        rnnkernels.cell(inputs="a")(lambda x, s: torch.sigmoid(x.a) * s.h)  # where it was off before


WHOLE = {
    "==": lambda x: x == 0, "!=": lambda x: x != 0, "&": lambda x: x & 1, "~": lambda x: ~x, "%": lambda x: x % 2,
    "//": lambda x: x // 2, "@": lambda x: x @ x, "float": float, "bool": bool, "in": lambda x: "a" in x,
    "|": lambda x: 1 | x, "norm": rnnkernels.norm,
}  # fmt: skip


@pytest.mark.parametrize("way", WHOLE)
def test_a_whole_kind_is_no_value(way):
    with pytest.raises(CellError, match="x is no value, it has values by name: x.a"):
        rnnkernels.cell(inputs="a")(lambda x: x.a * (2.0 if WHOLE[way](x) else 1.0))


def test_nothing_of_a_kind_can_be_deleted():
    def function(x, s):
        del s.h
        return x.a

    with pytest.raises(CellError, match="s cannot be changed; return the new states"):
        rnnkernels.cell(inputs="a")(function)
