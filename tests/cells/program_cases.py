"""Programs against autograd: backward sections run on numbers, beside torch's derivatives of the forward sections.

All of a program is pointwise, so that each of N numbers is a case of its own.
"""

import torch
from common import assert_close

from rnnkernels.cells import interpret

OWN_RESULTS = {"operand": "go", "inner": "gi"}  # what a value is put as, and the gradient that it comes back as


def leaves_of(program, draw):
    """Every number that the forward sections read, by what its gradient is put as: ``{("dx", gate): tensor}``."""
    names = [("dx", g) for g in program.inputs] + [("dr", g) for g in program.recurrent]
    names += [("ds", s) for s in program.states] + [("dv", v) for v in program.vectors]
    names += [("du", u) for u in program.extras] + [("di", None)] * program.inner
    return {name: draw().requires_grad_() for name in names}


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


def check(program, draw, tolerance=1e-10):
    """Whether a program's backward sections give what autograd makes of its forward sections."""
    leaves = leaves_of(program, draw)
    put = forward(program, leaves)
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
