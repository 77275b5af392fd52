"""``recompute``: the gates of a forward pass from its results, by large products over many steps, for a backward pass.

One layer's gates at a time take memory: in the backward pass, and in the forward pass of a cell with c.

Letters as in reference.py.
"""

import torch

from ..cells import accumulate_dtype, reference, spec_of

PARTS = 16  # parts of the steps: intermediate results before the gates are several times as large as these
LEAST = 2**16  # pre-activations in a part: smaller products are slow


def without_gates(cell, saved):
    """The saved tensors without the gates: the cell states, for a cell that has them."""
    return saved[-1:] if spec_of(cell).apart else []


def with_gates(call, y, cells):
    """The tensors that ``save`` gives, from the call, y (T, B, D*P) and [cells (D, T, B, H)], or [].

    The states that entered the steps are there, so that no step has to wait for another.
    """
    spec, x, h_mask = call.spec, call.x, call.h_mask
    K = spec.planes_of(len(call.zone) > 0)
    if not K:
        return cells
    acc, D, (T, B) = accumulate_dtype(x.dtype), call.D, y.shape[:2]
    parts = parts_of(y, B * max(spec.gates, 1) * call.H)
    gates = x.new_empty(D, T, B, K, call.H)
    for d in range(D):
        own = reference.Direction(call, d)
        x_TBI = reference.group(x, d, call.reverse, 3)
        extras, ends = reference.extras_of(call, d), reference.group(call.lengths, d, call.reverse, 1)
        for a, b in parts:
            old = entered(call, y, cells[0] if cells else None, d, a, b)
            inputs = own.inputs(x_TBI[a:b].to(acc))
            # a row for each step and sequence
            rows_of = lambda t: t.expand(b - a, *t.shape[-2:]).flatten(0, 1)  # noqa: B023, E731
            now = {name: rows_of(u[a:b] if u.dim() == 3 else u) for name, u in extras.items()}
            new, _, planes = own.step(
                None if inputs is None else inputs.flatten(0, 1), tuple(map(rows_of, old)),
                None if h_mask is None else rows_of(h_mask[d].to(acc)), now,
            )  # fmt: skip
            planes = (*planes, *reference.renewed(spec, new)) if call.zone else planes
            kept = torch.stack(planes, 1).unflatten(0, (b - a, B))
            if ends is not None:  # there may be NaN past a row's end, which the backward pass would multiply by zero
                kept = torch.where((torch.arange(a, b, device=x.device)[:, None] < ends)[..., None, None], kept, 0.0)
            gates[d, a:b] = kept
    return [gates, *cells]


def parts_of(y, each):
    """The steps of y (T, B, D*P) cut into parts (from, to); ``each``: pre-activations in a step."""
    T = y.size(0)
    if torch.compiler.is_compiling() or type(y) is not torch.Tensor:
        return [(0, T)]  # a compiler, which may trace with its own tensors, fuses as it likes, for any T
    steps = max(-(-T // PARTS), LEAST // max(1, each), 1)
    return [(a, min(a + steps, T)) for a in range(0, T, steps)]


def entered(call, y, cells, d, a=0, b=None):
    """The states (b-a, B, H or P) that enter steps a to b of direction d, from y (T, B, D*P) and cells, if any.

    The states that entered a step are those that left the one before.
    """
    acc, reverse = accumulate_dtype(call.x.dtype), call.reverse
    b = y.size(0) if b is None else b
    left = [] if cells is None else list(cells.unflatten(0, (call.spec.apart, call.D))[:, d])
    if len(left) < call.spec.states:
        left = [y.unflatten(-1, (call.D, -1))[:, :, d], *left]
    first = [s[d].to(acc) for s in call.states or reference.zero_states(call)]
    backward, ends = reverse[d % len(reverse)], reference.group(call.lengths, d, reverse, 1)
    old = [entering(s, f, backward, ends, a, b) for s, f in zip(left, first, strict=True)]
    at = reference.group(call.reset, d, reverse, 2)
    if at is None:
        return old
    restart = [s[d].to(acc) for s in call.reset_states] or [0.0] * len(old)
    return [torch.where(at[a:b, :, None], r, s) for s, r in zip(old, restart, strict=True)]


def entering(left, first, backward, ends, a, b):
    """The states (b-a, B, H or P) that enter steps a to b, from those that left all T, and the initial one."""
    T = left.size(0)
    if not backward:
        return torch.cat([left[a - 1 : a].to(first) if a else first[None], left[a : b - 1].to(first)])
    old = torch.cat([left[a + 1 : b].to(first), left[b : b + 1].to(first) if b < T else first[None]])
    if ends is None:
        return old
    steps = torch.arange(a, b, device=old.device)[:, None, None]
    return torch.where(steps + 1 < ends[:, None], old, first)
