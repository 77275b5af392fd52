"""Cells that are refused as a whole: for their results, parameters and settings, not for a line of their function."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import rnnkernels
from rnnkernels.cells.definition import CALL, LAYER, cell
from rnnkernels.cells.trace import CellError, derivative, norm, product
from rnnkernels.nn.options import REGULARISERS, Options

HERE = Path(__file__).name
TENSOR = torch.ones(3)
GATES = {"inputs": "a b", "recurrent": "a b"}


def two(x, r, s):
    return x.a + r.a, x.b + r.b


def one(x, r, s):
    return x.a + r.a + x.b + r.b


def nothing(x, r, s):
    one(x, r, s)


def other_parameter(x, r, s, w):
    return x.a


def stars(x, *rest):
    return x.a


def unused(x, r, s):
    return x.a + r.a + x.b


def unused_input(x, r, s):
    return r.a + x.b + r.b


def dead(x, r, s):
    h = x.a + r.a
    torch.tanh(x.b + r.b)
    return h


def unused_product(x, r, s):
    product("b", s.h)
    return x.a + r.a + x.b


def product_and_gate(x, r, s):
    return x.a + r.a + x.b + r.b + product("b", s.h)


def product_of_itself(x, r, s):
    n = product("b", s.h)
    return product("b", n) + x.a + x.b + r.a


def with_vector(x, r, s, v):
    return one(x, r, s)


def with_input(x, r, s, u):
    return one(x, r, s)


def other_names(x, r, s):
    return {"h": one(x, r, s), "m": x.a}


WITH_FUNCTION = {  # name: a function, other settings, and what is said of it
    "names": (other_names, {"states": "h c"}, "expected new states h, c, got h, m"),
    "too many": (two, {}, "expected 1 new states (h), got 2"),
    "too few": (one, {"states": "h c"}, "expected 2 new states (h, c), got 1"),
    "nothing": (nothing, {}, "expected a value of the cell or a number, got NoneType"),
    "parameter": (other_parameter, {}, "expected parameters out of x, r, s, v, u, got w"),
    "stars": (stars, {}, "expected parameters out of x, r, s, v, u, got rest"),
    "constant": (one, {"constants": {"k": 1.0}}, "expected parameters for all constants, k is missing"),
    "unused gate": (unused, {}, "r.b is declared, and not used"),
    "unused input": (unused_input, {}, "x.a is declared, and not used"),
    "dead": (dead, {}, "x.b is declared, and not used"),
    "unused product": (unused_product, {}, "product('b', ...) is made, and not used"),
    "both": (product_and_gate, {}, "r.b is what the inner product gives"),
    "vector": (with_vector, {"vectors": "p"}, "v.p is declared, and not used"),
    "step input": (with_input, {"step_inputs": "e:1"}, "u.e is declared, and not used"),
    "sequence input": (with_input, {"sequence_inputs": "e"}, "u.e is declared, and not used"),
    "keep": (two, {"states": "h c", "keep": "z"}, "keep= names z, which the function has not"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_FUNCTION)
def test_refused_with_the_function(name):
    function, settings, why = WITH_FUNCTION[name]
    with pytest.raises(CellError) as refusal:
        cell(**GATES, **settings)(function)
    place = rf"\S*{re.escape(HERE)}:{function.__code__.co_firstlineno}: "
    assert re.fullmatch(place + re.escape(why), str(refusal.value)), refusal.value


NAMES = "of ASCII letters, digits and _, and without __ at the beginning"
SETTINGS = {
    "name": ({"inputs": "a-b"}, f"expected names separated by spaces in inputs, {NAMES}, got 'a-b'"),
    "keyword": ({"inputs": "if"}, f"expected names separated by spaces in inputs, {NAMES}, got 'if'"),
    "accents": ({"inputs": "é"}, f"expected names separated by spaces in inputs, {NAMES}, got 'é'"),
    "underscores": ({"inputs": "__a"}, f"expected names separated by spaces in inputs, {NAMES}, got '__a'"),
    "of the cell": ({"name": "my cell"}, "expected the name of a cell to be one of ASCII letters, digits and _"),
    "no text": ({"name": 5}, "expected the name of a cell to be one of ASCII letters, digits and _, got 5"),
    "kept": ({"keep": 3}, "expected names separated by spaces in keep, got 3"),
    "twice": ({"recurrent": "a a"}, "expected at most 8 different names in recurrent, got 'a a'"),
    "many": ({"inputs": "a b c d e f g i j"}, "expected at most 8 different names in inputs"),
    "states": ({"states": "h c n m k"}, "expected at most 4 different names in states"),
    "no state": ({"states": ""}, "expected 1 to 4 states, got none"),
    "narrow": ({"step_inputs": "e:2"}, f"expected names separated by spaces in step_inputs, {NAMES}, got 'e:2'"),
    "extras": ({"step_inputs": "e", "sequence_inputs": "e"}, "a step input and a sequence input have the same name"),
    "given": ({"inputs": "", "project_input": False}, "project_input=False is for a cell with inputs"),
    "constant": ({"constants": {"s": 1.0}}, "s cannot be the name of a constant"),
    "vector": ({"vectors": "forward"}, "forward cannot be the name of a vector: a module has something else of it"),
    "weight": ({"vectors": "weight_ih"}, "weight_ih cannot be the name of a vector"),
    "bias": ({"vectors": "bias_hh"}, "bias_hh cannot be the name of a vector"),
    "module": ({"vectors": "hidden_size"}, "hidden_size cannot be the name of a vector"),
    "step": ({"step_inputs": "lengths"}, "lengths cannot be the name of an extra input: layers have an argument of it"),
    "sequence": ({"sequence_inputs": "reset"}, "reset cannot be the name of an extra input"),
    "keyword of layers": ({"constants": {"zoneout": 0.5}}, "zoneout cannot be the name of a constant: layers have"),
    "private": ({"vectors": "_rk_step"}, "_rk_step cannot be the name of a vector: a module has something else of it"),
    "of functions": ({"step_inputs": "train"}, "train cannot be the name of an extra input: layers have"),
    "option": ({"step_inputs": "dropout"}, "dropout cannot be the name of an extra input: layers have"),
    "constant of a call": ({"constants": {"hx": 1.0}}, "hx cannot be the name of a constant: layers have"),
    "constant and input": (
        {"step_inputs": "k", "constants": {"k": 1.0}}, "an extra input and a constant have the same name, k",
    ),
    "None": ({"inputs": None}, "expected names separated by spaces in inputs, got None"),
    "numbers": ({"vectors": [1, 2]}, "expected names separated by spaces in vectors, got 1"),
    "list of constants": ({"constants": ["k"]}, "expected constants to be a dict of numbers, got ['k']"),
    "output": ({"output": "h"}, "expected output to be a function, got 'h'"),
    "operand": ({"recurrent": "", "operand": lambda s: s.h}, "operand= is for a cell with a recurrent product"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_refused_settings(name):
    settings, why = SETTINGS[name]
    with pytest.raises(CellError, match=re.escape(why)):
        cell(**{"inputs": "a", "recurrent": "", **settings})(lambda x, s, k=0, hx=0: x.a + s.h)


def test_arguments_of_layers_are_no_names():
    for kind in (rnnkernels.Recurrent, rnnkernels.RecurrentCell):
        assert {n for n in inspect.signature(kind).parameters if n not in ("more", "constants")} <= set(LAYER)
        call = {n for n in inspect.signature(kind.forward).parameters if n != "inputs"}
        assert call <= set(CALL)
    assert {n for n in inspect.signature(rnnkernels.functional.recurrent).parameters if n != "more"} <= set(CALL)
    assert set(Options._fields) <= set(LAYER) and set(REGULARISERS) <= set(CALL)


def test_operand_and_output_are_functions_of_states():
    for part in ("operand", "output"):
        for function, why in (
            (lambda x: x.a, "expected parameters out of s, v, u, got x"),
            (lambda s: s.c, "s has no c; allowed are h"),
            (lambda s: torch.cumsum(s.h, 0), "a cell cannot have torch.cumsum"),
            (lambda s: None, "expected a value of the cell or a number, got NoneType"),
            (lambda s: product("b", s.h), "product is for a cell's own function, with a recurrent product"),
        ):
            with pytest.raises(CellError, match=re.escape(why)) as refusal:
                cell(**GATES, **{part: function})(one)
            assert f"{HERE}:{function.__code__.co_firstlineno}: " in str(refusal.value)


def test_product_norm_and_derivative_are_for_values_of_cells():
    for value, kind in ((TENSOR, "Tensor"), (2.0, "float")):
        with pytest.raises(TypeError, match=f"norm is for values inside a cell, got {kind}"):
            norm(value)
    with pytest.raises(TypeError, match="product is for values inside a cell, got Tensor"):
        product("a", TENSOR)
    with pytest.raises(TypeError, match="derivative makes functions for values inside a cell, got Tensor"):
        derivative(torch.sign, lambda v, d: d)(TENSOR)


def test_values_of_another_cell():
    taken = []

    @cell(inputs="a")
    def first(x):
        taken.append(x.a)
        return x.a

    with pytest.raises(CellError, match="a value comes from another cell"):
        cell(inputs="a")(lambda x: x.a + taken[0])


def test_more_than_a_program_may_have():
    def long(x, r, s):
        h = one(x, r, s)
        for k in range(600):
            h = torch.tanh(h) + k
        return h

    with pytest.raises(CellError, match=f"{HERE}:.*more than 512 instructions"):
        cell(**GATES)(long)


def test_errors_of_the_function_itself_stay_as_they_are():
    with pytest.raises(NameError, match="undefined"):
        cell(inputs="a")(lambda x: undefined(x.a))  # noqa: F821


def test_keep_that_does_not_suffice():
    def gated(x, r):
        a, b = torch.sigmoid(x.a + r.a), torch.tanh(x.b + r.b)
        return a * b

    with pytest.raises(CellError, match=r"keep= does not suffice for the backward pass, which needs a\.b"):
        cell(**GATES, keep="a")(gated)
    assert cell(**GATES, keep="b a")(gated).names == ("b", "a")


def test_constants():
    @cell(inputs="a", constants={"k": 0.5})
    def decay(x, s, k):
        return k * s.h + x.a

    assert "const 0.5" in str(decay) and decay.constants == {"k": 0.5}
    assert "const 0.25" in str(decay.with_constants(k=0.25))
    assert decay.with_constants() is decay
    made = cell(inputs="a", constants={"eps": 1e-3})(lambda x, s, eps: norm(s.h + x.a, eps=eps))
    assert "const 0.001\nlayer_norm" in str(made) and "const 0.5\nlayer_norm" in str(made.with_constants(eps=0.5))
    with pytest.raises(CellError, match="expected eps of norm to be a number of 0 or more, got -2"):
        made.with_constants(eps=-2.0)
    with pytest.raises(TypeError, match="decay has no constant q; its constants are k"):
        decay.with_constants(q=1)


def test_no_numbers_in_text_yet():
    with pytest.raises(CellError, match="a cell cannot have numbers in text: a value is none yet"):
        cell(**GATES)(lambda x, r, s: (f"{x.a:.2f}", one(x, r, s))[1])
    cell(**GATES)(lambda x, r, s: (f"{x.a}", one(x, r, s))[1])
