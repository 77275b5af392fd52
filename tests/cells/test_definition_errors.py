"""What is no cell is refused where it is defined: one sentence, with the line, and what is allowed."""

import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import rnnkernels
from rnnkernels.cells.definition import CALL, LAYER, cell
from rnnkernels.cells.trace import CellError, derivative, norm, product
from rnnkernels.nn.options import REGULARISERS, Options

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


SETTINGS = {
    "name": ({"inputs": "a-b"}, "expected names separated by spaces in inputs, got 'a-b'"),
    "keyword": ({"inputs": "if"}, "expected names separated by spaces in inputs, got 'if'"),
    "twice": ({"recurrent": "a a"}, "expected at most 8 different names in recurrent, got 'a a'"),
    "many": ({"inputs": "a b c d e f g i j"}, "expected at most 8 different names in inputs"),
    "states": ({"states": "h c n m k"}, "expected at most 4 different names in states"),
    "no state": ({"states": ""}, "expected 1 to 4 states, got none"),
    "narrow": ({"step_inputs": "e:2"}, "expected names separated by spaces in step_inputs, got 'e:2'"),
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
    "private": ({"vectors": "_step"}, "_step cannot be the name of a vector: a module has something else of it"),
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
