"""``recompute``: what a backward pass needs of the forward pass, from its results, by one large product over all steps.

The gates of one layer at a time are there for a while: in the backward pass, and in the forward pass of a cell with c.

Letters as in reference.py.
"""

import torch

from . import reference
from .cells import CELLS, accumulate_dtype


def without_gates(cell, saved):
    """What is left to keep of what ``save`` gave: the cell states, for a cell that has them."""
    return saved[-1:] if CELLS[cell].states > 1 else []


def with_gates(arguments, y, cells):
    """What ``save`` gives, from the op's arguments, y (T, B, D*P) and [cells (D, T, B, H)], or [].

    The states that entered a step are those that left the one before, so that no step has to wait for another.
    """
    cell, x, states, weights, reverse, bias, project, activation, recurrent_activation, *rest = arguments
    lengths, reset, reset_states, h_mask, _, layer_norm, eps = rest
    if not CELLS[cell].kept:
        return cells
    dtype, acc, D = x.dtype, accumulate_dtype(x.dtype), reference.directions_of(x, reverse)
    act, gate = reference.functions(activation, recurrent_activation)
    states = states or reference.zero_states(cell, x, weights, reverse, project)
    outputs, kept = y.unflatten(-1, (D, -1)), []
    for d in range(D):
        own = [w.to(acc) for w in reference.weights_of(weights, d, D)]
        own = reference.Direction(cell, own, bias, project, eps if layer_norm else None)
        backward, ends = reverse[d % len(reverse)], reference.group(lengths, d, reverse, 1)
        left = [outputs[:, :, d], *(c[d] for c in cells)]
        old = [entering(s.to(acc), first[d].to(acc), backward, ends) for s, first in zip(left, states, strict=True)]
        if reset is not None:
            at = reference.group(reset, d, reverse, 2)[..., None]
            restart = [s[d].to(acc) for s in reset_states] or [0.0] * len(old)
            old = [torch.where(at, r, s) for s, r in zip(old, restart, strict=True)]
        h = old[0] if h_mask is None else old[0] * h_mask[d].to(acc)
        h, x_RGH, *old = (
            t.flatten(0, 1) for t in (h, own.inputs(reference.group(x, d, reverse, 3).to(acc)), *old)
        )  # a row for each step and sequence
        again = lambda r, h=h, own=own: own.again(r * h)  # noqa: E731
        gates = reference.CELL_FUNCTIONS[cell](x_RGH, own.recurrent(h), tuple(old), act, gate, own.norm, again)[1]
        kept.append(torch.stack(gates, 1).unflatten(0, y.shape[:2]))
    return [torch.stack(kept).to(dtype), *cells]


def entering(left, first, backward, ends):
    """The state that enters each step (T, B, H or P), from those that left it and the initial one (B, H or P)."""
    if not backward:
        return torch.cat([first[None], left[:-1]])
    old = torch.cat([left[1:], first[None]])
    if ends is None:
        return old
    steps = torch.arange(old.size(0), device=old.device)[:, None, None]
    return torch.where(steps + 1 < ends[:, None], old, first)
