"""Tracing: a cell's function is called once with symbols, whose operations make the graph.

A symbol takes part in torch's functions by ``__torch_function__``. Whatever has no place in a program is refused, in a
sentence with the line of the function and what is allowed.
"""

import inspect
import math
import numbers
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from .graph import Graph

ALLOWED = (
    "+ - * /, comparisons, torch.where, exp, log, log1p, expm1, sqrt, rsqrt, abs, sign, square, reciprocal, pow by 2, "
    "3, -1 and 0.5, minimum, maximum, clamp, sigmoid, tanh, relu, softplus, logsigmoid, silu, "
    "gelu(approximate='tanh'), elu, hardsigmoid, hardtanh, leaky_relu, zeros_like, ones_like, float, detach, "
    "rnnkernels.product, rnnkernels.norm and rnnkernels.derivative"
)


class CellError(TypeError):
    """A function that is no cell."""


class Trace:
    """The graph of one function, with the lines that values come from."""

    def __init__(self, function, last=None):
        self.function, self.graph = function, Graph()
        self.last, self.inner = last, None
        """The gate that may have an inner product, and the operand of that product."""

    def error(self, why):
        """The error for something that the function did, with the line where it did so."""
        frame, code, where = sys._getframe(1), getattr(self.function, "__code__", None), f"{described(self.function)}: "
        while frame is not None:
            if frame.f_code is code:
                where = f"{frame.f_code.co_filename}:{frame.f_lineno}: "
                break
            frame = frame.f_back
        return CellError(f"{where}{why}")

    def refuse(self, what):
        return self.error(f"a cell cannot have {what}; allowed are {ALLOWED}")

    def symbol(self, value):
        """A symbol of the value, which may be a number."""
        if isinstance(value, Symbol):
            if value.trace is not self:
                raise self.error("a value comes from another cell")
            return value
        if isinstance(value, numbers.Real):
            if not math.isfinite(value):
                raise self.error(f"expected finite numbers, got {value}")
            return Symbol(self, self.graph.const(value))
        if isinstance(value, torch.Tensor):
            raise self.error(
                "a tensor comes from outside of the cell; allowed are x, r, s, v, u, constants= and Python numbers"
            )
        raise self.error(f"expected a value of the cell or a number, got {type(value).__name__}")

    def op(self, op, *of):
        return Symbol(self, self.graph.op(op, *(self.symbol(v).node for v in of)))


class Symbol:
    """A value of a cell while its function is traced."""

    __slots__ = ("node", "trace")

    def __init__(self, trace, node):
        self.trace, self.node = trace, node

    def __bool__(self):
        raise self.trace.refuse("`if`, `and`, `or`, `not` or `while` on values (torch.where chooses)")

    def __iter__(self):
        raise self.trace.refuse("loops over values or unpacking of them")

    def __len__(self):
        raise self.trace.refuse("len() of values")

    def __getitem__(self, key):
        raise self.trace.refuse("indexing: a cell is pointwise")

    __hash__ = object.__hash__

    def __getattr__(self, name):
        if name in METHODS:
            return lambda *args, **kwargs: METHODS[name](self.trace, self, *args, **kwargs)
        if name.startswith("__"):  # protocols that ask first
            raise AttributeError(name)
        if name.endswith("_"):
            raise self.trace.refuse(f"in-place code such as .{name}()")
        raise self.trace.refuse(f".{name}")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        trace = next(v.trace for v in (*args, *(kwargs or {}).values()) if isinstance(v, Symbol))
        rule = FUNCTIONS.get(function)
        if rule is None:
            raise trace.refuse(f"torch.{getattr(function, '__name__', function)}")
        return rule(trace, *args, **(kwargs or {}))


def operator(op, reverse=False):
    def method(self, other):
        if not isinstance(other, (Symbol, numbers.Real, torch.Tensor)):
            return NotImplemented
        return self.trace.op(op, other, self) if reverse else self.trace.op(op, self, other)

    return method


for name, op in {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div"}.items():
    setattr(Symbol, f"__{name}__", operator(op))
    setattr(Symbol, f"__r{name}__", operator(op, reverse=True))
for name, op, turned in (("lt", "lt", 0), ("le", "le", 0), ("gt", "lt", 1), ("ge", "le", 1), ("eq", "eq", 0)):
    setattr(Symbol, f"__{name}__", operator(op, reverse=bool(turned)))
Symbol.__ne__ = lambda self, other: 1.0 - (self == other)
Symbol.__neg__ = lambda self: self.trace.op("neg", self)
Symbol.__abs__ = lambda self: self.trace.op("abs", self)
Symbol.__pow__ = lambda self, n: power(self.trace, self, n)
Symbol.__and__ = lambda self, other: self * other  # of comparisons
Symbol.__or__ = lambda self, other: self.trace.op("max", self, other)
Symbol.__invert__ = lambda self: 1.0 - self


def in_place(self, *_):
    raise self.trace.refuse("in-place code such as += (write h = h + x)")


for name in ("iadd", "isub", "imul", "itruediv", "ipow", "setitem"):
    setattr(Symbol, f"__{name}__", in_place)


def converted(self, *_):
    raise self.trace.refuse("Python's or numpy's functions of values (torch's take them)")


for name in ("float", "int", "complex", "index", "round", "trunc", "floor", "ceil", "array"):
    setattr(Symbol, f"__{name}__", converted)


def array_ufunc(self, ufunc, method, *values, **kwargs):
    """An operator with a number of numpy's on its left, such as ``np.sqrt(2) * x.a``."""
    values = [v.item() if type(v).__module__ == "numpy" and v.ndim == 0 else v for v in values]
    if ufunc.__name__ not in NUMPY_OPERATORS or not all(isinstance(v, (Symbol, numbers.Real)) for v in values):
        raise self.trace.refuse("Python's or numpy's functions of values (torch's take them)")
    return NUMPY_OPERATORS[ufunc.__name__](self.trace, *values)


Symbol.__array_ufunc__ = array_ufunc


def no_operator(self, *_):
    raise self.trace.refuse("other operators, such as //, %, @, ^ or a value as exponent")


for name in ("mod", "floordiv", "matmul", "xor", "lshift", "rshift", "divmod"):
    setattr(Symbol, f"__{name}__", no_operator)
    setattr(Symbol, f"__r{name}__", no_operator)
Symbol.__rpow__ = no_operator


def power(trace, x, n):
    if not isinstance(n, numbers.Real):
        raise trace.refuse("a value as exponent")
    if n == 2:
        return x * x
    if n == 3:
        return x * x * x
    if n == -1:
        return 1.0 / x
    if n == 0.5:
        return trace.op("sqrt", x)
    raise trace.refuse(f"a power of {n}")


def unary(op):
    return lambda trace, x: trace.op(op, x)


def binary(op, reverse=False):
    def rule(trace, a, b, alpha=1):
        if alpha != 1:
            raise trace.refuse("alpha=")
        return trace.op(op, b, a) if reverse else trace.op(op, a, b)

    return rule


def where(trace, condition, a, b):
    return trace.op("where", condition, a, b)


def bounded(trace, x, bound, beyond):
    """The bound where x is beyond it, else x, whose derivative is 1 at the bound too; a bound may be NaN."""
    y = where(trace, beyond, bound, x)
    return where(trace, bound == bound, y, bound) if isinstance(bound, Symbol) else y


def clamp(trace, x, min=None, max=None):
    if min is not None:
        x = bounded(trace, x, min, trace.op("lt", x, min))
    return x if max is None else bounded(trace, x, max, trace.op("lt", max, x))


def between(trace, x, low, high, inside):
    """``inside`` where x lies between the bounds, else 0 or 1: the derivative is 0 at the bounds."""
    above = where(trace, trace.op("le", high, x), 1.0, inside)
    return where(trace, trace.op("le", x, low), 0.0, above)


def hardsigmoid(trace, x, inplace=False):
    return between(trace, x, -3.0, 3.0, x / 6 + 0.5)


def hardtanh(trace, x, min_val=-1.0, max_val=1.0, inplace=False):
    inside = where(trace, trace.op("le", max_val, x), max_val, x)
    return where(trace, trace.op("le", x, min_val), min_val, inside)


def softplus(trace, x, beta=1, threshold=20):
    scaled = x * float(beta)
    # past the threshold the other branch gets a zero, so that nothing overflows
    safe = where(trace, trace.op("lt", float(threshold), scaled), 0.0, scaled)
    soft = trace.op("log1p", trace.op("exp", safe)) / float(beta)
    return where(trace, trace.op("lt", float(threshold), scaled), x, soft)


def elu(trace, x, alpha=1.0, inplace=False):
    positive = trace.op("lt", 0.0, x)
    return where(trace, positive, x, alpha * trace.op("expm1", where(trace, positive, 0.0, x)))


def leaky_relu(trace, x, negative_slope=0.01, inplace=False):
    return where(trace, trace.op("lt", 0.0, x), x, x * float(negative_slope))


def logsigmoid(trace, x):
    return trace.op("min", x, 0.0) - trace.op("log1p", trace.op("exp", -abs(x)))


def detach(trace, x):
    """The value, and no gradient."""
    return trace.op("through", x, 0.0, 0.0)


def silu(trace, x, inplace=False):
    return x * trace.op("sigmoid", x)


def gelu(trace, x, approximate="none"):
    if approximate != "tanh":
        raise trace.refuse("gelu but with approximate='tanh'")
    return 0.5 * x * (1.0 + trace.op("tanh", math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def relu(trace, x, inplace=False):
    return trace.op("relu", x)


def like(value):
    return lambda trace, x, **kwargs: trace.symbol(value)


F = torch.nn.functional
RULES = {
    "neg negative": unary("neg"), "abs absolute": unary("abs"), "sign sgn": unary("sign"), "sqrt": unary("sqrt"),
    "exp": unary("exp"), "log": unary("log"), "log1p": unary("log1p"), "expm1": unary("expm1"),
    "sigmoid": unary("sigmoid"), "tanh": unary("tanh"), "relu": relu, "add": binary("add"),
    "sub subtract": binary("sub"), "mul multiply": binary("mul"), "div divide true_divide": binary("div"),
    "minimum": binary("min"), "maximum": binary("max"), "lt less": binary("lt"), "le less_equal": binary("le"),
    "gt greater": binary("lt", reverse=True), "ge greater_equal": binary("le", reverse=True), "eq": binary("eq"),
    "ne not_equal": lambda trace, a, b: 1.0 - trace.op("eq", a, b), "where": where, "clamp clip": clamp,
    "clamp_min": lambda trace, x, min: clamp(trace, x, min),
    "clamp_max": lambda trace, x, max: clamp(trace, x, None, max),
    "square": lambda trace, x: x * x, "reciprocal": lambda trace, x: 1.0 / x,
    "rsqrt": lambda trace, x: 1.0 / trace.op("sqrt", x), "pow": power, "zeros_like": like(0.0), "ones_like": like(1.0),
    "logical_and": lambda trace, a, b: a * b, "logical_not": lambda trace, a: 1.0 - a, "detach": detach,
    "float": lambda trace, x: x, "type_as": lambda trace, x, other: x,  # of comparisons: a program has one dtype
}  # fmt: skip
OF_NN = {
    "softplus": softplus, "silu": silu, "gelu": gelu, "elu": elu, "hardsigmoid": hardsigmoid, "hardtanh": hardtanh,
    "leaky_relu": leaky_relu, "relu": relu, "sigmoid": unary("sigmoid"), "tanh": unary("tanh"),
    "logsigmoid": logsigmoid,
}  # fmt: skip
METHODS = {name: rule for words, rule in RULES.items() for name in words.split()}
METHODS["where"] = lambda trace, a, condition, b: where(trace, condition, a, b)
NUMPY_OPERATORS = {"equal": METHODS["eq"]} | {
    name: METHODS[name]
    for name in "add subtract multiply divide not_equal less less_equal greater greater_equal".split()
}
FUNCTIONS = {getattr(torch, name): rule for name, rule in METHODS.items() if name != "where" and hasattr(torch, name)}
FUNCTIONS |= {getattr(torch.Tensor, name): rule for name, rule in METHODS.items() if hasattr(torch.Tensor, name)}
FUNCTIONS |= {getattr(F, name): rule for name, rule in OF_NN.items()} | {torch.where: where}
TENSOR_OPERATORS = {
    "__add__": "add", "__radd__": "add", "__mul__": "mul", "__rmul__": "mul", "__sub__": "sub", "__truediv__": "div",
}  # fmt: skip
FUNCTIONS |= {getattr(torch.Tensor, name): binary(op) for name, op in TENSOR_OPERATORS.items()}


def product(name: str, value: Tensor) -> Tensor:
    """A second recurrent product inside a cell: ``W_h,name value + b_h,name``.

    Args:
        name: the gate, the last one of the cell's ``recurrent``.
        value: what the product multiplies, in place of h.
    """
    if not isinstance(value, Symbol):
        raise TypeError(f"product is for values inside a cell, got {type(value).__name__}")
    trace = value.trace
    if trace.last is None:
        raise trace.error("product is for a cell's own function, with a recurrent product")
    if name != trace.last:
        raise trace.error(f"product is for the last gate of recurrent, {trace.last!r}, got {name!r}")
    if trace.inner not in (None, value.node):
        raise trace.error("a cell has one inner product")
    trace.inner = value.node
    return Symbol(trace, trace.graph.load("i"))


def norm(value: Tensor, *, eps: float = 1e-5) -> Tensor:
    """The layer norm of a value inside a cell, over the H units of a row: without gain or bias, which vectors can be.

    As ``torch.nn.functional.layer_norm(value, (H,), eps=eps)``: less the mean, over the root of the biased variance and
    eps. With heads, a row has the units of one head.

    Args:
        value: any value of the cell's function.
        eps: a number of 0 or more, which may be a constant of the cell. Default: 1e-5

    Example::

        @rnnkernels.cell(inputs="i f g o", recurrent="i f g o", states="h c", vectors="gain shift")
        def normed_lstm(x, r, s, v):
            i, f, o = torch.sigmoid(x.i + r.i), torch.sigmoid(x.f + r.f), torch.sigmoid(x.o + r.o)
            c = f * s.c + i * torch.tanh(x.g + r.g)
            return o * torch.tanh(rnnkernels.norm(c) * v.gain + v.shift), c
    """
    if not isinstance(value, Symbol):
        raise TypeError(f"norm is for values inside a cell, got {type(value).__name__}")
    trace = value.trace
    number = trace.graph.number(trace.symbol(eps).node)
    if number is None or number < 0:
        got = "a value" if number is None else number
        raise trace.error(f"expected eps of norm to be a number of 0 or more, got {got}")
    return trace.op("layer_norm", value, eps)


def derivative(
    forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """A function of one value with a derivative of one's own, for spikes and other steps.

    Args:
        forward: the function, in terms of what a cell may have.
        backward: ``backward(x, d)``: the gradient of x from that of the result; a multiple of d.

    Example::

        spike = rnnkernels.derivative(lambda v: (v > 0) * 1.0, lambda v, d: d / (1 + 10 * v.abs()) ** 2)
    """

    def function(x):
        if not isinstance(x, Symbol):
            raise TypeError(f"derivative makes functions for values inside a cell, got {type(x).__name__}")
        return x.trace.op("through", forward(x), x, backward(x, x.trace.symbol(1.0)))

    return function


class Names:
    """The values of one kind by name, as the cell's function sees them; torch's functions take each."""

    def __init__(self, trace, kind, values):
        self.__dict__.update(_trace=trace, _kind=kind, _values=values)

    def __getattr__(self, name: str) -> Tensor:
        values = self.__dict__["_values"]
        if name in values:
            return values[name]
        known = ", ".join(values) or "none"
        raise self._trace.error(f"{self._kind} has no {name}; allowed are {known}")

    def __setattr__(self, name, value):
        raise self._trace.error(f"{self._kind} cannot be changed; return the new states")


def run(trace, function, values, constants, functions=()):
    """What the function returns, and the names that it gave to values: ``(results, {node: name})``."""
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in values:
            arguments[parameter.name] = values[parameter.name]
        elif parameter.name in constants:
            arguments[parameter.name] = trace.symbol(constants[parameter.name])
        elif parameter.name in functions:
            arguments[parameter.name] = functions[parameter.name]
        elif parameter.default is parameter.empty or parameter.kind is parameter.VAR_POSITIONAL:
            allowed = ", ".join([*values, *constants])
            raise CellError(f"{described(function)}: expected parameters out of {allowed}, got {parameter.name}")
    called, code = {}, getattr(function, "__code__", None)

    def profile(frame, event, _):
        if event == "return" and frame.f_code is code:
            for name, value in frame.f_locals.items():
                if isinstance(value, Symbol):
                    called.setdefault(value.node, name)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        return function(**arguments), called
    finally:
        sys.setprofile(before)


def described(function):
    """Where a function is."""
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
