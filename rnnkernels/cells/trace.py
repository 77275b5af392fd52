"""Tracing: a cell's function is called once with symbols, whose operations make the graph.

A symbol takes part in torch's functions by ``__torch_function__``. Whatever has no place in a program is refused, in a
sentence with the line of the function and what is allowed.
"""

import functools
import inspect
import math
import numbers
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from .graph import Graph
from .torch_functions import ALLOWED, FUNCTIONS, METHODS, NUMPY_OPERATORS, power


class CellError(TypeError):
    """A function that is no cell."""


class Trace:
    """The graph of one function, with the lines that values come from."""

    def __init__(self, function, last=None):
        self.function, self.graph, self.grad = function, Graph(), torch.is_grad_enabled()
        self.last, self.inner = last, None
        """The gate that may have an inner product, and the operand of that product."""
        self.frame = None
        """Where the function runs, or ran: of its frame, the names that it gave to values."""

    def running(self):
        """The function's frame, if it runs."""
        frame, code = sys._getframe(1), code_of(self.function)
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        return frame

    def error(self, why):
        """The error for something that the function did, with the line where it did so."""
        frame = self.running()
        where = described(self.function) if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return CellError(f"{where}: {why}")

    def refuse(self, what):
        return self.error(f"a cell cannot have {what}; allowed are {ALLOWED}")

    def symbol(self, value):
        """A symbol of the value, which may be a number."""
        if isinstance(value, Symbol):
            if value.trace is not self:
                raise self.error("a value comes from another cell")
            return value
        if isinstance(value, numbers.Real):
            try:
                finite = math.isfinite(value)
            except OverflowError:  # a Python int beyond float64
                value, finite = "an integer beyond float64", False
            if not finite:
                raise self.error(f"expected finite numbers, got {value}")
            return Symbol(self, self.graph.const(value))
        if isinstance(value, Names):
            refuse_whole(value)
        if isinstance(value, torch.Tensor):
            raise self.error(
                "a tensor comes from outside of the cell; allowed are x, r, s, v, u, constants= and Python numbers"
            )
        raise self.error(f"expected a value of the cell or a number, got {type(value).__name__}")

    def op(self, op, *of):
        if torch.is_grad_enabled() != self.grad:
            raise self.refuse("torch.no_grad or enable_grad (.detach() takes a value without its gradient)")
        return Symbol(self, self.graph.op(op, *(self.symbol(v).node for v in of)))

    def truth(self, op, *of):
        """The result of a comparison, or of several: in torch a bool, which is true or false and no number."""
        made = self.op(op, *of)
        made.is_truth = True
        return made


class Symbol:
    """A value of a cell while its function is traced. In the graph a truth value is 0 or 1."""

    __slots__ = ("is_truth", "node", "trace")

    def __init__(self, trace, node):
        self.trace, self.node, self.is_truth = trace, node, False

    def __bool__(self):
        raise self.trace.refuse(
            "`if`, `and`, `or`, `not`, `while`, max(), min() or `a < b < c` on values (torch.where, torch.maximum and "
            "torch.minimum choose, & and | join comparisons)"
        )

    def __iter__(self):
        raise self.trace.refuse("loops over values or unpacking of them")

    def __len__(self):
        raise self.trace.refuse("len() of values")

    def __getitem__(self, key):
        raise self.trace.refuse("indexing: a cell is pointwise")

    __hash__ = object.__hash__

    def __getattr__(self, name):
        if name in METHODS:
            return lambda *args, **kwargs: applied(self.trace, f".{name}", METHODS[name], (self, *args), kwargs)
        if name.startswith("__"):  # protocols that ask first
            raise AttributeError(name)
        if name.endswith("_"):
            raise self.trace.refuse(f"in-place code such as .{name}()")
        raise self.trace.refuse(f".{name}")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        trace, kwargs, name = None, kwargs or {}, f"torch.{getattr(function, '__name__', function)}"
        todo = [*args, *kwargs.values()]
        while trace is None:  # functions such as torch.stack have values in a list
            value = todo.pop()
            trace = value.trace if isinstance(value, Symbol) else None
            todo += value if isinstance(value, (tuple, list)) else ()
        rule = FUNCTIONS.get(function)
        if rule is None:
            raise trace.refuse(name)
        return applied(trace, name, rule, args, kwargs)


def applied(trace, name, rule, args, kwargs):
    """What a rule gives for the arguments of torch's function, which may have more than a cell can have."""
    try:
        given = inspect.signature(rule).bind(trace, *args, **kwargs).arguments
    except TypeError as error:
        raise trace.refuse(f"this call of {name} ({error})") from None
    if given.get("inplace"):
        raise trace.refuse("in-place code such as inplace=True")
    return rule(trace, *args, **kwargs)


def operator(name, reverse=False):
    rule = METHODS[name]

    def method(self, other):
        if type(other).__module__ == "numpy" and not isinstance(other, numbers.Real):
            return NotImplemented  # numpy asks array_ufunc then
        return rule(self.trace, other, self) if reverse else rule(self.trace, self, other)

    return method


for name, function in {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div"}.items():
    setattr(Symbol, f"__{name}__", operator(function))
    setattr(Symbol, f"__r{name}__", operator(function, reverse=True))
for name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Symbol, f"__{name}__", operator(name))
Symbol.__neg__ = lambda self: METHODS["neg"](self.trace, self)
Symbol.__pos__ = lambda self: self
Symbol.__abs__ = lambda self: self.trace.op("abs", self)
Symbol.__pow__ = lambda self, n: power(self.trace, self, n)


def joined(function, sign):
    """& and |, which torch has of truth values (and of integers)."""

    def method(self, other):
        if not all(getattr(v, "is_truth", isinstance(v, bool)) for v in (self, other)):
            raise self.trace.refuse(f"{sign} but of truth values (torch.{function} takes numbers too)")
        return METHODS[function](self.trace, self, other)

    return method


for name, function, sign in (("and", "logical_and", "&"), ("or", "logical_or", "|")):
    setattr(Symbol, f"__{name}__", joined(function, sign))
    setattr(Symbol, f"__r{name}__", joined(function, sign))


def inverted(self):
    if not self.is_truth:
        raise self.trace.refuse("~ but of truth values (torch.logical_not takes numbers too)")
    return METHODS["logical_not"](self.trace, self)


Symbol.__invert__ = inverted


def in_place(self, *_):
    raise self.trace.refuse("in-place code such as += (write h = h + x)")


for name in "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift setitem".split():
    setattr(Symbol, f"__{name}__", in_place)


def converted(self, *_):
    raise self.trace.refuse("Python's or numpy's functions of values (torch's take them)")


for name in ("float", "int", "complex", "index", "round", "trunc", "floor", "ceil", "array"):
    setattr(Symbol, f"__{name}__", converted)


def formatted(self, spec):
    if spec:
        raise self.trace.refuse("numbers in text: a value is none yet")
    return repr(self)


Symbol.__format__ = formatted


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


def product(name: str, value: Tensor) -> Tensor:
    """A second recurrent product inside a cell: ``W_h,name value + b_h,name``.

    Args:
        name: the gate, the last one of the cell's ``recurrent``.
        value: what the product multiplies, in place of h.
    """
    if isinstance(value, Names):
        refuse_whole(value)
    if not isinstance(value, Symbol):
        raise CellError(f"product is for values inside a cell, got {type(value).__name__}")
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
    if isinstance(value, Names):
        refuse_whole(value)
    if not isinstance(value, Symbol):
        raise CellError(f"norm is for values inside a cell, got {type(value).__name__}")
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
        backward: ``backward(x, d)``: the gradient of x from that of the result; a multiple of d, by something that
            does not depend on d. Anything else is refused.

    Example::

        spike = rnnkernels.derivative(lambda v: (v > 0) * 1.0, lambda v, d: d / (1 + 10 * v.abs()) ** 2)
    """

    def function(x):
        if isinstance(x, Names):
            refuse_whole(x)
        if not isinstance(x, Symbol):
            raise CellError(f"derivative makes functions for values inside a cell, got {type(x).__name__}")
        trace = x.trace
        d = trace.graph.load("d")
        if not is_multiple(trace.graph, trace.symbol(backward(x, Symbol(trace, d))).node, d):
            raise trace.error("expected backward of derivative to give a multiple of d, by something without d")
        return trace.op("through", forward(x), x, backward(x, trace.symbol(1.0)))

    return function


def is_multiple(graph, n, d):
    """True if the value of node n is that of node d times something that does not depend on d."""
    depends = {d}
    for m in graph.ancestors([n]):
        if any(k in depends for k in graph.nodes[m].of):
            depends.add(m)

    @functools.cache
    def multiple(n):
        op, of, _ = graph.nodes[n]
        if n not in depends:
            return graph.number(n) == 0
        if n == d:
            return True
        if op in ("neg", "add", "sub"):
            return all(map(multiple, of))
        if op == "mul":
            return len(depends.intersection(of)) == 1 and of[0] != of[1] and any(map(multiple, depends & set(of)))
        free = {"div": of[1:], "where": of[:1]}
        if op not in free or depends.intersection(free[op]):
            return False
        return all(multiple(m) for m in of if m not in free[op])

    return multiple(n)


class Names:
    """The values of one kind by name, as the cell's function sees them; torch's functions take each."""

    def __init__(self, trace, kind, values):
        self.__dict__[""] = trace, kind, values  # under the one name that no value has

    def __getattr__(self, name: str) -> Tensor:
        trace, kind, values = self.__dict__[""]
        if name in values:
            trace.frame = trace.running()
            return values[name]
        if name.startswith("__"):  # protocols that ask first
            raise AttributeError(name)
        known = ", ".join(values) or "none"
        raise trace.error(f"{kind} has no {name}; allowed are {known}")

    def __setattr__(self, name, *value):
        trace, kind, _ = self.__dict__[""]
        raise trace.error(f"{kind} cannot be changed; return the new states")

    __delattr__ = __setattr__
    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        refuse_whole(next(v for v in (*args, *(kwargs or {}).values()) if isinstance(v, Names)))


def refuse_whole(names, *_):
    """Raise where the function computes with all values of a kind at once."""
    trace, kind, values = names.__dict__[""]
    known = ", ".join(f"{kind}.{name}" for name in values) or "none"
    raise trace.error(f"{kind} is no value, it has values by name: {known}")


BINARY = "add sub mul truediv floordiv mod divmod matmul pow and or xor lshift rshift".split()
OTHERS = "lt le gt ge eq ne neg pos abs invert bool float int getitem setitem contains iter len call".split()
for name in (*OTHERS, *BINARY, *(f"r{name}" for name in BINARY)):
    setattr(Names, f"__{name}__", refuse_whole)


def parameters_of(function):
    """The parameters of a function by name."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of torch's and Python's own functions
        raise CellError(f"{described(function)}: expected a function with named parameters") from None


def run(trace, function, values, constants, functions=()):
    """What the function returns, and the names that it gave to values: ``(results, {name: node})``."""
    arguments, by_position = {}, []
    for parameter in parameters_of(function).values():
        if parameter.name in values:
            arguments[parameter.name] = values[parameter.name]
        elif parameter.name in constants:
            arguments[parameter.name] = trace.symbol(constants[parameter.name])
        elif parameter.name in functions:
            arguments[parameter.name] = functions[parameter.name]
        elif parameter.default is parameter.empty or parameter.kind is parameter.VAR_POSITIONAL:
            allowed = ", ".join([*values, *constants])
            raise CellError(f"{described(function)}: expected parameters out of {allowed}, got {parameter.name}")
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.name in arguments:
            by_position.append(arguments.pop(parameter.name))
    results, called = function(*by_position, **arguments), {}
    for name, value in trace.frame.f_locals.items() if trace.frame else ():
        if isinstance(value, Symbol):
            called[name] = value.node
    trace.frame = None  # which holds the function's values
    return results, called


def described(function):
    """Where a function is."""
    code = code_of(function)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def innermost(function):
    """The function that the user wrote, under ``functools.partial`` and decorators."""
    while True:
        before = function
        function = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
        if function is before:
            return function


def code_of(function):
    """The code of a function or of an object that is called as one; None for what is not written in Python."""
    function = innermost(function)
    if not hasattr(function, "__code__") and callable(function):
        function = type(function).__call__
    return getattr(function, "__code__", None)
