"""A section of a program in torch operations: differentiable to any order, and slow.

Values are tensors (..., H), or numbers.
"""

import torch


class Through(torch.autograd.Function):
    """The value y, whose gradient goes to x, multiplied by m: a derivative of the user's own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y, x, m):
        return y.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, d):
        (m,) = ctx.saved_tensors
        return None, d * m, None


def tensor(value, like):
    return value if isinstance(value, torch.Tensor) else torch.full_like(like, value)


def compare(op):
    return lambda like, a, b: op(tensor(a, like), tensor(b, like)).to(like.dtype)


def choose(like, condition, a, b):
    return torch.where(tensor(condition, like) != 0, tensor(a, like), tensor(b, like))


def of_tensors(function):
    return lambda like, *values: function(*(tensor(v, like) for v in values))


OPERATIONS = {
    "add": lambda like, a, b: a + b, "sub": lambda like, a, b: a - b, "mul": lambda like, a, b: a * b,
    "div": lambda like, a, b: a / b, "neg": lambda like, a: -a, "abs": of_tensors(torch.abs),
    "sign": of_tensors(torch.sign), "sqrt": of_tensors(torch.sqrt), "exp": of_tensors(torch.exp),
    "log": of_tensors(torch.log), "log1p": of_tensors(torch.log1p), "expm1": of_tensors(torch.expm1),
    "sigmoid": of_tensors(torch.sigmoid), "tanh": of_tensors(torch.tanh), "relu": of_tensors(torch.relu),
    "min": of_tensors(torch.minimum), "max": of_tensors(torch.maximum), "lt": compare(torch.lt),
    "le": compare(torch.le), "eq": compare(torch.eq), "where": choose,
    "tanh_back": lambda like, d, y: d * (1 - y * y), "sigmoid_back": lambda like, d, y: d * y * (1 - y),
    "relu_back": lambda like, d, y: choose(like, compare(torch.gt)(like, y, 0.0), d, 0.0),
    "through": of_tensors(Through.apply),
}  # fmt: skip


def run(section, loads, like):
    """The values that a section puts: ``{(to, what): tensor}``.

    ``loads`` gives the tensor of a load from its kind and what it reads; ``like`` has the shape and dtype of all.
    """
    values = []
    for op, args, what in section.code:
        if op == "const":
            values.append(what)
        elif args:
            values.append(OPERATIONS[op](like, *(values[n] for n in args)))
        else:
            values.append(loads(op, what))
    return {(to, what): tensor(values[n], like).expand(like.shape) for to, what, n in section.puts}
