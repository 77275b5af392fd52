"""Programs against autograd: backward sections run on numbers, beside torch's derivatives of the forward sections.

All of a program but its norms is pointwise, so that each of N numbers, a row, is a case of its own.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from common import assert_close

from rnnkernels.cells import interpret
from rnnkernels.cells.definition import cell as rnnkernels_cell
from rnnkernels.cells.trace import norm, product

OWN_RESULTS = {"operand": "go", "inner": "gi"}  # what a value is put as, and the gradient that it comes back as


def leaves_of(program, draw):
    """Every number that the forward sections read, by what its gradient is put as: ``{("dx", gate): tensor}``."""
    names = [("dx", g) for g in program.inputs] + [("dr", g) for g in program.recurrent]
    names += [("ds", s) for s in program.states] + [("dv", v) for v in program.vectors]
    names += [("du", u) for u in program.extras] + [("di", None)] * program.inner
    return {name: draw().requires_grad_() for name in names}


def zeros():
    return torch.zeros(4, dtype=torch.float64)


def loader(leaves, also):
    """What the loads of a section give: the leaves, and what ``also`` has."""

    def load(op, what):
        if (op, what) in also:
            return also[op, what]
        if op == "a":
            return leaves["dx", what] + leaves["dr", what]
        return leaves[f"d{op}", what]

    return load


def forward(program, leaves):
    """All that the forward sections put, with the operand of the product and the planes: ``{(to, what): tensor}``."""
    like, put = next(iter(leaves.values())).detach(), {}
    for name in ("operand", "first", "forward"):
        if name in program.sections:
            crossing = {("cross", what): v for (to, what), v in put.items() if to == "cross"}
            put |= interpret.run(program.sections[name], loader(leaves, crossing), like)
    return put


def derived(program, leaves, put, gradients):
    """The gradients of the leaves by the program's backward sections; ``gradients`` are those of what is put."""
    like = next(iter(leaves.values())).detach()
    leaves = {name: v.detach() for name, v in leaves.items() if name[0] in ("ds", "dv", "du")}  # what is there then
    also = {("k", what): v.detach() for (to, what), v in put.items() if to == "keep"}
    also |= {("n", what): v.detach() for (to, what), v in put.items() if to == "new"}
    given = {"new": "g", "y": "gy", **OWN_RESULTS}
    also |= {(given[to], what): d for (to, what), d in gradients.items()}
    total = {}
    for name in ("backward", "backward_first", "backward_operand"):
        if name not in program.sections:
            continue
        found = interpret.run(program.sections[name], loader(leaves, also), like)
        also |= {where: d for where, d in found.items() if where[0] == "dcross"}
        for (to, what), d in found.items():
            for one in {"da": ("dx", "dr"), "dcross": ()}.get(to, (to,)):
                total[one, what] = total.get((one, what), 0) + d
    return total


def check(program, draw, tolerance=1e-10, eager=None):
    """Whether a program's backward sections give what autograd makes of its forward sections.

    With ``eager``, autograd gets what this function of the leaves gives, and the forward sections have to put the same.
    """
    leaves = leaves_of(program, draw)
    put = forward(program, leaves)
    if eager is not None:
        like, expected = next(iter(leaves.values())), eager(leaves)
        assert set(expected) == {where for where in put if where[0] not in ("keep", "cross")}
        for where, value in expected.items():
            assert_close(" ".join(map(str, where)), put[where], value.expand_as(like), tolerance)
        put |= expected
    results = {where: v for where, v in put.items() if where[0] in ("new", "y", *OWN_RESULTS)}
    gradients = {where: draw() for where in results}
    if not program.own_output:
        assert ("y", None) not in results
    found = derived(program, leaves, put, gradients)
    assert set(found) <= set(leaves)
    differentiable = {where: v for where, v in results.items() if v.requires_grad}
    expected = dict.fromkeys(leaves)
    if differentiable:
        grads = torch.autograd.grad(
            list(differentiable.values()), list(leaves.values()), [gradients[w] for w in differentiable],
            allow_unused=True,
        )  # fmt: skip
        expected = dict(zip(leaves, grads, strict=True))
    for name, leaf in leaves.items():
        wanted = torch.zeros_like(leaf) if expected[name] is None else expected[name]
        assert wanted.isfinite().all(), f"{name}: autograd gives numbers that are none"
        assert_close(" ".join(map(str, name)), found.get(name, torch.zeros_like(leaf)), wanted, tolerance)
    return found


def hardsigmoid(a):
    """torch's, which computes with 8 digits on tensors of float64."""
    return (a / 6 + 0.5).clamp(0, 1) if isinstance(a, torch.Tensor) else F.hardsigmoid(a)


def layer_norm(a):
    """With a large eps: the derivative for a row of equal numbers is not steep."""
    return F.layer_norm(a, a.shape[-1:], eps=0.3) if isinstance(a, torch.Tensor) else norm(a, eps=0.3)


UNARY = [  # functions of one value, and what they do to its degree: numbers stay in range
    (torch.sigmoid, 0), (torch.tanh, 0), (torch.relu, 1), (abs, 1), (lambda a: torch.exp(torch.tanh(a)), 0),
    (lambda a: torch.log(abs(a) + 0.5), 0), (lambda a: torch.sqrt(a * a + 0.1), 1), (lambda a: torch.log1p(a * a), 0),
    (lambda a: torch.expm1(-abs(a)), 0), (torch.sign, 0), (lambda a: -a, 1), (F.softplus, 1), (F.silu, 1),
    (lambda a: F.gelu(a, approximate="tanh"), 1), (F.elu, 1), (hardsigmoid, 0), (F.hardtanh, 0), (F.leaky_relu, 1),
    (F.logsigmoid, 1), (lambda a: torch.clamp(a, -0.5, 0.7), 0), (lambda a: torch.clamp(a, min=0.1), 1),
    (lambda a: torch.reciprocal(a * a + 1), 0), (lambda a: (1 + abs(a)) ** -1, 0),
    (lambda a: torch.rsqrt(1 + a * a), 0), (lambda a: 1.5 / (a * a + 2), 0),
    (lambda a: 0.5 * a, 1), (lambda a: a / 4, 1), (lambda a: 2 - a, 1), (lambda a: a - 0.3, 1),
    (lambda a: torch.where(a > 0.2, a, 0.1), 1), (lambda a: a.detach(), 1), (lambda a: -1 * a + 0.0, 1),
    (layer_norm, 0),
]  # fmt: skip
BINARY = [
    (torch.add, max), (lambda a, b: a - b, max), (lambda a, b: a + (-b), max), (lambda a, b: a * b, lambda a, b: a + b),
    (lambda a, b: a / (b * b + 1), max), (torch.minimum, max), (torch.maximum, max),
    (lambda a, b: torch.where(a < b, a, 0.5 * b), max), (lambda a, b: torch.where(a <= b, torch.tanh(b), a), max),
    (lambda a, b: torch.where((a != b) & (a >= 0), a, b), max), (lambda a, b: torch.clamp(a, max=b), max),
]  # fmt: skip
MOST_OPERATIONS, MOST_DEGREE = 30, 6


def chooser(numbers):
    """A ``choose(n)`` that takes its numbers out of bytes, and 0 after the last: the smaller, the simpler."""
    rest = iter(numbers)
    return lambda n: next(rest, 0) % n


def named(leaves, kind):
    """The leaves of a kind, as a cell's function has them."""
    return SimpleNamespace(**{name: value for (to, name), value in leaves.items() if to == f"d{kind}"})


class RandomCell:
    """A cell of random operations, as a ``Cell`` and as a function of tensors.

    ``choose(n)`` gives a number below n: one of ``chooser``, or the ``randrange`` of a ``random.Random``.
    """

    def __init__(self, choose):
        gates = "abcd"[: 1 + choose(4)]
        sides = [("xr", "xr", "x", "r")[choose(4)] for _ in gates]
        if not choose(4):  # no recurrent product
            sides = ["x"] * len(gates)
        self.inputs = [g for g, side in zip(gates, sides, strict=True) if "x" in side]
        self.recurrent = [g for g, side in zip(gates, sides, strict=True) if "r" in side]
        self.states = ["h", "c", "n", "m"][: 1 + choose(4)]
        self.vectors = ["p", "q"][: choose(3)]
        self.step, self.sequence = ["e", "w:1"][: choose(3)], ["y"][: choose(2)]
        self.inner = self.recurrent[-1] if self.recurrent and not choose(3) else None
        self.at = choose(8)  # after how many operations the inner product comes
        self.code = [(choose(2), choose(99), choose(99), choose(99)) for _ in range(choose(MOST_OPERATIONS + 1))]
        self.results = [choose(99) for _ in self.states]
        self.parts = {
            part: (choose(3), choose(99))
            for part in ("operand", "output")
            if not choose(3) and (part == "output" or self.recurrent)
        }
        self.cell = rnnkernels_cell(
            inputs=" ".join(self.inputs), recurrent=" ".join(self.recurrent), states=" ".join(self.states),
            vectors=" ".join(self.vectors), step_inputs=" ".join(self.step), sequence_inputs=" ".join(self.sequence),
            **{part: self.part(part) for part in self.parts}, name="random",
        )(lambda x, r, s, v, u: self.function(x, r, s, v, u, product))  # fmt: skip

    def part(self, part):
        """The function of states that is the operand, or the output."""
        kind, which = self.parts[part]

        def function(s, v, u):
            pool = [getattr(s, n) for n in self.states]
            pool += [getattr(v, n) for n in self.vectors] + [getattr(u, n.removesuffix(":1")) for n in self.step]
            a, b = pool[which % len(pool)], pool[which // 7 % len(pool)]
            return (torch.relu(a), a * b, torch.sigmoid(a) - b)[kind]

        return function

    def function(self, x, r, s, v, u, product):
        """The new states of values by name; ``product`` is the inner one."""
        extras = [n.removesuffix(":1") for n in self.step + self.sequence]
        recurrent = [g for g in self.recurrent if g != self.inner]
        loads = [getattr(x, g) for g in self.inputs] + [getattr(r, g) for g in recurrent]
        loads += [getattr(v, n) for n in self.vectors] + [getattr(u, n) for n in extras]
        pool = [(value, 1) for value in loads + [getattr(s, n) for n in self.states]]
        pool += [(getattr(x, g) + getattr(r, g), 1) for g in recurrent if g in self.inputs]
        used, inner = set(), None
        for k, (binary, which, first, second) in enumerate([*self.code, (0, 1, 0, 0)]):
            if self.inner and inner is None and (k >= self.at or k == len(self.code)):
                inner = product(self.inner, pool[-1][0])
                pool.append((inner, 1))
            a, b = first % len(pool), second % len(pool)
            if binary:
                operation, degree = BINARY[which % len(BINARY)]
                used |= {a, b}
                (a, m), (b, n) = pool[a], pool[b]
                pool.append((operation(a, b), degree(m, n)))
            else:
                operation, keeps = UNARY[which % len(UNARY)]
                used.add(a)
                pool.append((operation(pool[a][0]), pool[a][1] if keeps else 1))
            if pool[-1][1] > MOST_DEGREE:
                pool[-1] = torch.tanh(pool[-1][0]), 1
        new = [pool[-1 - k % len(pool)][0] for k in self.results]
        rest = [value for n, value in enumerate(loads)] + ([inner] if self.inner else [])  # all that is declared
        new[0] = new[0] + 0.1 * torch.tanh(sum(rest[1:], rest[0]))
        return new[0] if len(new) == 1 else tuple(new)

    def operand(self, leaves):
        """What the recurrent product multiplies, for a cell that has an operand."""
        return self.part("operand")(*(named(leaves, kind) for kind in "svu"))

    def eager(self, leaves):
        """What the forward sections put, without the planes, by the function itself on tensors."""
        x, r, s, v, u = (named(leaves, kind) for kind in "xrsvu")
        put = {}

        def product(name, value):
            put["inner", None] = value
            return leaves["di", None]

        if "operand" in self.parts:
            put["operand", None] = self.operand(leaves)
        new = self.function(x, r, s, v, u, product)
        new = dict(zip(self.states, new if isinstance(new, tuple) else (new,), strict=True))
        put |= {("new", name): value for name, value in new.items()}
        if "output" in self.parts:
            put["y", None] = self.part("output")(SimpleNamespace(**new), v, u)
        return put
