"""NaN where no gradient may see it: past a length, in a state that a reset replaces, in the gradient of padding.

A call is made twice, with NaN there and with a number; all results have to be the same to the bit.
"""

import torch
from common import make_case

from rnnkernels.cells import CELLS

T, B, H = 4, 3, 4
VARIANTS = {
    "plain": {}, "both directions": {"reverse": (False, True)}, "projected": {"P": 2},
    "layer norm": {"layer_norm": True}, "zoneout": {}, "recurrent dropout": {}, "recompute": {},
}  # fmt: skip
LENGTHS = ("inputs past lengths", "gradients past lengths", "states of a row without steps")
RESETS = ("states before a reset at the first step", "states to restart from without a reset")
PLACES = [
    (variant, place) for variant in VARIANTS for place in LENGTHS + RESETS
    if place in LENGTHS or variant != "both directions"
]  # fmt: skip


def results(cell, variant, place, fill, dtype, second):
    case = make_case(cell, T=T, B=B, H=H, dtype=dtype, **VARIANTS[variant])
    D, P, S, n = len(case.settings["reverse"]), VARIANTS[variant].get("P", H), case.states, len(case.tensors)
    draw = lambda *shape: torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.4  # noqa: E731
    more = {"recompute": variant == "recompute"}
    if variant == "zoneout":
        more["zone"] = [draw(T, D, B, H)] * S
    if variant == "recurrent dropout":
        more["h_mask"] = draw(D, B, P).to(dtype) / 0.6
    leaves = [t.detach().clone() for t in case.tensors]
    x, states, restart = leaves[0], leaves[1 : 1 + S], []
    padding = torch.zeros(T, B, dtype=torch.bool)
    if place in LENGTHS:
        more["lengths"] = torch.tensor([T, 0 if "without steps" in place else 2, 3])
        padding = torch.arange(T)[:, None] >= more["lengths"]
    else:
        more["reset"] = torch.zeros(T, B, dtype=torch.bool)
        more["reset"][0, 1] = more["reset"][2, 0] = True
    if place == "inputs past lengths":
        x[padding] = fill
    elif "states to restart" in place:
        restart = [torch.full_like(s, 0.3) for s in states]
        for s in restart:
            s[:, 2] = fill
    elif "states" in place:
        for s in states:
            s[:, 1] = fill
    leaves = [t.requires_grad_() for t in (*leaves, *restart)]
    y, *last = case(*leaves[:n], **more, reset_states=leaves[n:])
    dy = torch.linspace(0.1, 1, y.numel(), dtype=dtype).view_as(y).clone()
    if place == "gradients past lengths":
        dy[padding] = fill
    grads = torch.autograd.grad([y, *last], leaves, [dy, *map(torch.ones_like, last)], create_graph=second)
    found = [y, *grads]
    if place != "states of a row without steps":  # the final states of which are these
        found += last
    if second:
        found += torch.autograd.grad(sum(g.square().sum() for g in grads), leaves, allow_unused=True)
    return [t for t in found if t is not None]


def check(cell, variant, place, dtype=torch.float32, second=False):
    """Whether NaN in a place changes nothing, in gradients of the first and, if wanted, of the second order."""
    if variant == "projected" and CELLS[cell].states < 2:
        return
    with_nan, without = (results(cell, variant, place, fill, dtype, second) for fill in (torch.nan, 0.7))
    for k, (found, expected) in enumerate(zip(with_nan, without, strict=True)):
        assert torch.equal(found, expected), f"result {k}"
