"""torch's functions as a cell may have them: a rule for each, which makes its value of operations of the graph.

A rule takes the trace and then the arguments of torch's function; values are symbols or numbers. Values and derivatives
are torch's, at kinks too.
"""

import math
import numbers

import torch

ALLOWED = (
    "+ - * /, comparisons, torch.where, exp, log, log1p, expm1, sqrt, rsqrt, abs, sign, square, reciprocal, pow by 2, "
    "3, -1 and 0.5, minimum, maximum, clamp, lerp, addcmul, addcdiv, sigmoid, tanh, relu, softplus, logsigmoid, silu, "
    "gelu(approximate='tanh'), elu, hardsigmoid, hardtanh, leaky_relu, zeros_like, ones_like, float, detach, "
    "rnnkernels.product, rnnkernels.norm and rnnkernels.derivative"
)


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


def is_truth(x):
    return getattr(x, "is_truth", False)


def refuse_truth(trace, *values):
    if any(map(is_truth, values)):
        raise trace.refuse("- of truth values, as torch has not (~ or torch.logical_not inverts them)")


def total(trace, a, b):
    """A sum; of truth values it is true where one of them is."""
    return logical_or(trace, a, b) if is_truth(a) and is_truth(b) else trace.op("add", a, b)


def difference(trace, a, b):
    refuse_truth(trace, a, b)
    return trace.op("sub", a, b)


def multiply(trace, a, b):
    return trace.truth("mul", a, b) if is_truth(a) and is_truth(b) else trace.op("mul", a, b)


def negative(trace, x):
    refuse_truth(trace, x)
    return trace.op("neg", x)


def compared(op, reverse=False):
    return lambda trace, a, b: trace.truth(op, b, a) if reverse else trace.truth(op, a, b)


def logical_not(trace, x):
    return trace.truth("sub", 1.0, x) if is_truth(x) else trace.truth("eq", x, 0.0)


def unequal(trace, a, b):
    return logical_not(trace, trace.truth("eq", a, b))


def truths(trace, *values):
    """Each as a truth value: false where it is zero."""
    return [v if is_truth(v) else unequal(trace, v, 0.0) for v in values]


def logical_and(trace, a, b):
    return trace.truth("mul", *truths(trace, a, b))


def logical_or(trace, a, b):
    return trace.truth("max", *truths(trace, a, b))


def unary(op):
    return lambda trace, x: trace.op(op, x)


def binary(op):
    return lambda trace, a, b: trace.op(op, a, b)


def scaled(rule):
    """A sum or difference, where the second term may have a factor."""
    return lambda trace, a, b, alpha=1: rule(trace, a, b if alpha == 1 else trace.symbol(b) * alpha)


def of_two(op):
    """torch.max or torch.min of two values; of one value and a number, the number is a dimension."""

    def rule(trace, a, b):
        if isinstance(b, numbers.Real):
            raise trace.refuse(f"torch.{op} along a dimension (torch.{op}imum is of two values)")
        return trace.op(op, a, b)

    return rule


def lerp(trace, start, end, weight):
    """From start to end, computed from the nearer one as torch does."""
    way, weight = trace.op("sub", end, start), trace.symbol(weight)
    near = trace.op("lt", abs(weight), 0.5)
    return where(trace, near, trace.op("add", start, weight * way), trace.op("sub", end, way * (1.0 - weight)))


def addcmul(trace, a, b, c, value=1):
    return trace.op("add", a, trace.op("mul", trace.op("mul", b, value), c))


def addcdiv(trace, a, b, c, value=1):
    return trace.op("add", a, trace.op("div", trace.op("mul", b, value), c))


def same(trace, x):
    return x


def number(trace, x):
    """A truth value as 0 or 1."""
    return type(x)(trace, x.node)


def choose(trace, condition, a, b):
    if not is_truth(condition) and trace.graph.number(trace.symbol(condition).node) is None:
        raise trace.refuse("torch.where with a condition that is no truth value (compare, for example with != 0)")
    op = trace.truth if is_truth(a) and is_truth(b) else trace.op
    return op("where", condition, a, b)


def where(trace, condition, a, b):
    return trace.op("where", condition, a, b)


def bounded(trace, x, bound, beyond):
    """The bound where x is beyond it, else x, whose derivative is 1 at the bound too; a bound may be NaN."""
    y = where(trace, beyond, bound, x)
    return y if isinstance(bound, numbers.Real) else where(trace, bound == bound, y, bound)


def clamp(trace, x, min=None, max=None):
    if min is None and max is None:
        raise trace.refuse("torch.clamp without min and max")
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
    "neg negative": negative, "abs absolute": unary("abs"), "sign sgn": unary("sign"), "sqrt": unary("sqrt"),
    "exp": unary("exp"), "log": unary("log"), "log1p": unary("log1p"), "expm1": unary("expm1"),
    "sigmoid": unary("sigmoid"), "tanh": unary("tanh"), "relu": relu, "add": scaled(total),
    "sub subtract": scaled(difference), "rsub": lambda trace, a, b, alpha=1: scaled(difference)(trace, b, a, alpha),
    "mul multiply": multiply, "div divide true_divide": binary("div"), "minimum": binary("min"),
    "maximum": binary("max"), "min": of_two("min"), "max": of_two("max"), "lerp": lerp, "addcmul": addcmul,
    "addcdiv": addcdiv, "positive clone contiguous": same, "lt less": compared("lt"), "le less_equal": compared("le"),
    "gt greater": compared("lt", reverse=True), "ge greater_equal": compared("le", reverse=True),
    "eq": compared("eq"), "ne not_equal": unequal, "where": choose, "clamp clip": clamp,
    "clamp_min": lambda trace, x, min: clamp(trace, x, min),
    "clamp_max": lambda trace, x, max: clamp(trace, x, None, max),
    "square": lambda trace, x: x * x, "reciprocal": lambda trace, x: 1.0 / x,
    "rsqrt": lambda trace, x: 1.0 / trace.op("sqrt", x), "pow": power, "zeros_like": like(0.0), "ones_like": like(1.0),
    "logical_and": logical_and, "logical_or": logical_or, "logical_not": logical_not, "detach": detach,
    "float": number, "type_as": lambda trace, x, other: x if is_truth(other) else number(trace, x),
}  # fmt: skip
OF_NN = {
    "softplus": softplus, "silu": silu, "gelu": gelu, "elu": elu, "hardsigmoid": hardsigmoid, "hardtanh": hardtanh,
    "leaky_relu": leaky_relu, "relu": relu, "sigmoid": unary("sigmoid"), "tanh": unary("tanh"),
    "logsigmoid": logsigmoid,
}  # fmt: skip
METHODS = {name: rule for words, rule in RULES.items() for name in words.split()}
METHODS["where"] = lambda trace, a, condition, b: choose(trace, condition, a, b)
NUMPY_OPERATORS = {"equal": METHODS["eq"]} | {
    name: METHODS[name]
    for name in "add subtract multiply divide not_equal less less_equal greater greater_equal".split()
}
FUNCTIONS = {getattr(torch, name): rule for name, rule in METHODS.items() if name != "where" and hasattr(torch, name)}
FUNCTIONS |= {getattr(torch.Tensor, name): rule for name, rule in METHODS.items() if hasattr(torch.Tensor, name)}
FUNCTIONS |= {getattr(F, name): rule for name, rule in OF_NN.items()} | {torch.where: choose}
FUNCTIONS |= {getattr(torch.special, name): METHODS[name] for name in ("expm1", "log1p")}
FUNCTIONS[torch.special.expit] = METHODS["sigmoid"]
TENSOR_OPERATORS = {
    "__add__": "add", "__radd__": "add", "__mul__": "mul", "__rmul__": "mul", "__sub__": "sub", "__truediv__": "div",
}  # fmt: skip
FUNCTIONS |= {getattr(torch.Tensor, name): METHODS[function] for name, function in TENSOR_OPERATORS.items()}
