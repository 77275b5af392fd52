"""Cells whose Triton kernels are generated from their programs, and calls of the op with them.

Letters: T time, B batch, D directions, X input groups, GX gates of the input, H hidden, S states.
"""

import torch

from rnnkernels.cells import library
from rnnkernels.cells.definition import cell
from rnnkernels.cells.parts import projected
from rnnkernels.cells.reference import zero_past
from rnnkernels.cells.trace import norm, product
from rnnkernels.cells.weights import weights_of

sigmoid, tanh = torch.sigmoid, torch.tanh


@cell(inputs="h", recurrent="h", states="v", vectors="tau", operand=lambda s: tanh(s.v),
      output=lambda s, v: tanh(s.v) * v.tau)  # fmt: skip
def rate(x, r, s, v):
    """The product reads, and the layer gives, a firing rate; the state is a potential."""
    return s.v + sigmoid(v.tau) * (x.h + r.h - s.v)


@cell(inputs="p q", recurrent="q w", states="h m n", vectors="k", step_inputs="gamma rate:1", sequence_inputs="context")
def mixed(x, r, s, v, u):
    """Three states, all kinds of inputs, and gates of only one of the products."""
    c = tanh(x.p + v.k * s.m + u.gamma * s.n)
    q, w = sigmoid(x.q + r.q), sigmoid(r.w)
    h = c + q * (s.h - c)
    return tanh(h * u.rate + u.context), w * s.m + 0.5 * c, tanh(q * s.n + u.context)


@cell(inputs="r z n", recurrent="r z n", states="h m", vectors="k", step_inputs="gamma", project_input=False,
      operand=lambda s, u: u.gamma * s.h + 0.5 * s.m)  # fmt: skip
def crossing(x, r, s, v, u):
    """Two products, whose operands read vectors, inputs and another state; the input is given."""
    reset, z = sigmoid(x.r + r.r), sigmoid(x.z + r.z)
    n = tanh(x.n + product("n", (reset * s.h + v.k * s.m) * u.gamma))
    h = s.h + z * (n - s.h)
    return h, tanh((reset * s.m + reset * reset * x.z) * u.gamma)


@cell(inputs="a b", recurrent="a b", constants={"alpha": 0.25})
def every_operation(x, r, s, alpha):
    a, b = x.a + r.a, x.b + r.b
    e = torch.exp(a)
    root = torch.sqrt(torch.abs(torch.expm1(-alpha * b)) + 0.5)
    p = (torch.log1p(e) / root - torch.log(torch.abs(b) + 1)) * torch.sign(b)
    p = torch.where(s.h < 0.1, torch.maximum(torch.minimum(p, b), a), b) + (a <= e) * 0.3
    return sigmoid(p - torch.relu(a) * b) * s.h + tanh(p) * 0.5


@cell(inputs="f g", states="h a b c", project_input=False, output=lambda s: s.h * s.c)
def running(x, s):
    """Four states and no weights."""
    f = sigmoid(x.f)
    h, a, b, c = f * s.h + x.g, f * s.a + s.h, f * s.b + s.a, f * s.c + s.b
    return h, a, b, c


@cell(inputs="f g", recurrent="f", states="h m", project_input=False, step_inputs="k")
def beside(x, r, s, u):
    """A product joins one gate of the x that is given; the backward pass reads the other one again."""
    f = sigmoid(x.f + r.f)
    return f * s.m + (1 - f) * tanh(x.g), sigmoid(x.g * u.k) * s.m + s.h


@cell(inputs="a b c d e f g", recurrent="a b c d e f g")
def many_gates(x, r, s):
    a, b, c, d, e, f, g = (getattr(x, n) + getattr(r, n) for n in "abcdefg")
    return sigmoid(a) * tanh(b) + sigmoid(c) * tanh(d) + sigmoid(e) * tanh(f) + sigmoid(g) * s.h


@cell(recurrent="a b", states="h m")
def autonomous(r, s):
    """No gates of the input: x only says how many steps there are."""
    return tanh(r.a + s.m), sigmoid(r.b) * s.m + 0.1 * s.h


@cell(inputs="i o", recurrent="i o", states="h c", vectors="p", step_inputs="gamma rate:1", sequence_inputs="f")
def noted(x, r, s, v, u):
    """A cell with a projection, whose operand reads all kinds of inputs and an old state."""
    c = sigmoid(u.f) * s.c + sigmoid(x.i + r.i + v.p * s.c) * u.gamma
    return sigmoid(x.o + r.o) * tanh(c * u.rate) - v.p * s.c, c


@cell(inputs="i f g o", recurrent="i f g o", states="h c", vectors="gain shift")
def normed(x, r, s, v):
    """The LSTM with the layer norm of c on its way to the output, and of a sum of gates."""
    i, f, o = sigmoid(x.i + r.i), sigmoid(x.f + r.f), sigmoid(x.o + r.o)
    c = f * s.c + i * tanh(norm(x.g + r.g, eps=1e-3))
    return o * tanh(norm(c) * v.gain + v.shift), c


@cell(inputs="z n", recurrent="z n", states="h w", vectors="p", step_inputs="u", output=lambda s: norm(s.w, eps=0.01),
      operand=lambda s, u: norm(s.h + u.u, eps=0.01))  # fmt: skip
def normed_inner(x, r, s, v, u):
    """Norms of operands of both products, of sums, of vectors and of the output."""
    z = sigmoid(norm(x.z + r.z, eps=0.01))
    n = tanh(norm(x.n + product("n", norm(s.h, eps=0.01) * z), eps=0.01))
    h = norm(v.p) + z * (s.h - n)
    return h, 0.5 * (s.w + h)


@cell(inputs="z n")
def normed_alone(x, s):
    """No recurrent product: units of a step meet in the norm alone."""
    return s.h + sigmoid(x.z) * (norm(tanh(x.n) + 0.5 * s.h) - s.h)


LIBRARY = {name: getattr(library, name).program for name in library.__all__}
OF_LIBRARY = ("rnn", "lstm", "gru", "gru_reset_before", "peephole_lstm", "gru_d", "ind_rnn")
CELLS = {name: LIBRARY[name] for name in OF_LIBRARY}
CELLS |= {
    c.program.name: c.program for c in (rate, mixed, crossing, every_operation, running, beside, many_gates, autonomous)
}
NORMED = {c.program.name: c.program for c in (normed, normed_inner, normed_alone)}
"""Cells whose units meet inside the step, which one schedule has."""


def arguments(
    program, T=3, B=2, I=3, H=20, reverse=(False,), groups=0, stages=(), lengths=None, bias=True,  # noqa: E741
    layer_norm=False, states=True, dtype=torch.float32, seed=0, P=0,
):  # fmt: skip
    """The op's arguments up to ``extras``, as a list. ``stages``: of reset, restart, h_mask, zone. P: projection."""
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape, scale=0.6: (scale * torch.randn(shape, generator=random)).to(dtype)  # noqa: E731
    chance = lambda *shape: torch.rand(*shape, generator=random)  # noqa: E731
    group, D, S = (groups,) if groups else (), len(reverse) * max(1, groups), len(program.states)
    text, widths = projected(program) if P else program.text, [P or H, *[H] * (S - 1)]
    table = weights_of(text, I, H, P, bias=bias, project=P > 0, layer_norm=layer_norm)
    scale = 0.6 if dtype.itemsize > 2 else 0.15  # larger weights make the recurrence chaotic: it magnifies rounding
    weights = [normal(*w.shape, scale=scale) for _ in range(D) for w in table]
    x = normal(*group, T, B, len(program.inputs) * H if program.given else I)
    extras = [normal(*group, T, B, 1 if name in program.narrow else H) for name in program.step]
    if lengths is not None:  # nobody knows what lies past them; NaN in bf16 spoils other rows of torch.mm on the CPU
        lengths = torch.tensor(lengths)
        poison = torch.nan if dtype.itemsize > 2 else 10.0
        live = zero_past(torch.ones(*group, T, B, 1), lengths) > 0
        x, *extras = (torch.where(live, v, poison) for v in (x, *extras))
    extras += [normal(*group, B, H) for _ in program.sequence]
    reset = chance(*group, T, B) < 0.4 if {"reset", "restart"} & set(stages) else None
    given = [normal(D, B, n) for n in widths if "restart" in stages]
    h_mask = ((chance(D, B, P or H) < 0.6) / 0.8).to(dtype) if "h_mask" in stages else None
    zone = [(chance(T, D, B, n).mul(3).floor() / 2).clamp(max=1).to(dtype) for n in widths if "zone" in stages]
    return [
        text, x, [normal(D, B, n) for n in widths if states], weights, list(reverse), bias, P > 0,
        None, None, lengths, reset, given, h_mask, zone, layer_norm, 1e-5, H, extras,
    ]  # fmt: skip
