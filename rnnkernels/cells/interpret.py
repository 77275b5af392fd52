"""A program in torch operations: differentiable to any order, and slow.

Values are tensors (..., H), or numbers.
"""

import torch
import torch.nn.functional as F
from torch._C._functorch import _add_batch_dim, get_unwrapped, is_batchedtensor, maybe_get_bdim, maybe_get_level
from torch.autograd import forward_ad


def primal(t):
    """A saved tensor, in ``jvp`` of an ``autograd.Function``, without the tangent of the level that is computed.

    torch switches tangents off there, of levels further out too, whose derivatives are lost then (pytorch issue
    197867). With tangents switched on again the tensor must have none of its own level.
    """
    if is_batchedtensor(t):
        return _add_batch_dim(primal(get_unwrapped(t)), maybe_get_bdim(t), maybe_get_level(t))
    return forward_ad.unpack_dual(t).primal


class Through(torch.autograd.Function):
    """The value y, whose gradient goes to x, multiplied by m: a derivative of the user's own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y, x, m):
        return y.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[2])

    @staticmethod
    def jvp(ctx, dy, dx, dm):
        (m,) = ctx.saved_tensors
        with forward_ad._set_fwd_grad_enabled(True):
            return dx * primal(m)

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


def row(value, like):
    return tensor(value, like).expand(like.shape)


def normalized(v, eps, gain=None, bias=None):
    """The layer norm of v (..., H). In forward mode it is written out: torch's own tangent has wrong derivatives
    (pytorch issue 196700). So it is under ``torch.func``, where torch's second derivative writes what is vmapped into
    what is not, and raises."""
    if forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return F.layer_norm(v, v.shape[-1:], gain, bias, eps)
    v = v - v.mean(-1, keepdim=True)
    scale = torch.rsqrt(v.square().mean(-1, keepdim=True) + eps)
    v = (v if gain is None else gain * v) * scale
    return v if bias is None else v + bias


def layer_norm(like, a, eps):
    return normalized(row(a, like), eps)


def layer_norm_back(like, d, a, eps):
    d, centred = row(d, like), row(a, like)
    centred = centred - centred.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = centred * scale
    return (d - d.mean(-1, keepdim=True) - y * (d * y).mean(-1, keepdim=True)) * scale


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
    "relu_back": lambda like, d, y: choose(like, compare(torch.le)(like, y, 0.0), 0.0, d),
    "through": lambda like, *values: Through.apply(*(row(v, like) for v in values)), "layer_norm": layer_norm,
    "layer_norm_back": layer_norm_back,
}  # fmt: skip


def run(section, loads, like, functions=()):
    """The values that a section puts: ``{(to, what): tensor}``.

    ``loads`` gives the tensor of a load from its kind and what it reads; ``like`` has the shape and dtype of all;
    ``functions`` are those that a call chooses, by name.
    """
    values = []
    for op, args, what in section.code:
        if op == "const":
            values.append(what)
        elif op in functions:
            values.append(functions[op](values[args[0]]))
        elif args:
            values.append(OPERATIONS[op](like, *(values[n] for n in args)))
        else:
            values.append(loads(op, what))
    return {(to, what): tensor(values[n], like).expand(like.shape) for to, what, n in section.puts}


def step(program, x, recurrent, again, old, h_mask, named, functions):
    """One step: the new states, the output where it is not the first of them, and the kept planes.

    Args:
        x: the input pre-activations (..., G, H), or None for a cell without.
        recurrent: gives the recurrent ones (..., G, H) of the first product from its operand.
        again: gives that of the inner product (..., H), likewise.
        old: the states (..., H) that enter; with a projection the first is narrower.
        h_mask: multiplies the operand of the first product, or None.
        named: vectors and extra inputs: ``{"v": {name: tensor}, "u": {name: tensor}}``.
        functions: those that a call chooses, by name.
    """
    sections, like = program.sections, old[-1]
    states, name = dict(zip(program.states, old, strict=True)), program.states[0]
    crossing, r, i = {}, None, None

    def load(op, what):
        if op in ("a", "x", "r"):
            from_x = None if op == "r" else x[..., program.inputs.index(what), :]
            from_h = None if op == "x" else r[..., program.recurrent.index(what), :]
            return from_h if op == "r" else from_x if op == "x" else from_x + from_h
        if op == "i":
            return i
        return {"s": states, "cross": crossing, **named}[op][what]

    def put_by(section):
        return run(sections[section], load, like, functions)

    operand = put_by("operand")["operand", None] if "operand" in sections else old[0]
    r, put = recurrent(operand if h_mask is None else operand * h_mask), {}
    like = like if r is None else r[..., 0, :]  # a projected state is narrower
    if program.inner:
        states[name] = old[0] if h_mask is None else old[0] * h_mask
        put = put_by("first")
        states[name] = old[0]
        crossing.update((what, v) for (to, what), v in put.items() if to == "cross")
        i = again(put["inner", None])
    put |= put_by("forward")
    new = tuple(put["new", name] for name in program.states)
    return new, put.get(("y", None)), tuple(put["keep", k] for k in range(program.keep))
