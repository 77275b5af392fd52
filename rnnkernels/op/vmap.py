"""vmap: how a batch of N calls becomes one call.

Where the weights are shared, the N samples become rows of the batch (B -> N*B). Where each sample has weights of its
own, or needs weight gradients of its own, they become directions (D -> N*D) that read N input groups (X -> N*X).
"""

from itertools import chain

import torch

from ..cells import reference, spec_of
from ..cells.call import LayerCall
from .flat import Plan, Pull

# The dimension, from the end, into which each kind of tensor folds N: when N joins the batch, and when N joins D.
INTO_B = {
    "x": -2, "state": -2, "lengths": -1, "reset": -1, "zone": -2, "y": -2, "gates": -3, "cells": -2, "step": -2,
    "sequence": -2,
}  # fmt: skip
INTO_D = {
    "x": -4, "state": -3, "lengths": -2, "reset": -3, "zone": -3, "y": -1, "gates": -5, "cells": -4, "step": -4,
    "sequence": -3,
}  # fmt: skip


def fold(tensor, dim, N, at):
    """Join the vmapped dimension (or N copies, if there is none) with dimension ``at``, added if it is missing."""
    if tensor is None:
        return None
    tensor = tensor.expand(N, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    if tensor.dim() < 1 - at:
        return tensor
    return tensor.movedim(0, at - 1).flatten(at - 1, at)


def for_groups(tensor, dim, x, x_dim, dims):
    """Lengths or a reset mask, which may be the same for all groups of x, with one for each, and their vmapped
    dimension: ``fold`` would take the samples for groups."""
    if tensor is None or tensor.dim() - (dim is not None) > dims:
        return tensor, dim
    groups = x.size(0 if x_dim is None or x_dim > 0 else 1)
    tensor = tensor if dim is None else tensor.movedim(dim, 0)
    at = 0 if dim is None else 1
    return tensor.unsqueeze(at).expand(*tensor.shape[:at], groups, *tensor.shape[at:]), None if dim is None else 0


def fold_zone(tensor, dim, N, at, size):
    """``fold`` for a tensor that may be broadcast along ``at``, where one entry stands for ``size`` equal ones."""
    if dim is None and (tensor.dim() < -at or tensor.size(at) == 1):
        return tensor
    tensor = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
    tensor = tensor[(slice(None), *[None] * (5 - tensor.dim()))]  # (N or 1, T, D, B, H), any of them 1
    shape = [N, *tensor.shape[1:]]
    shape[at] = size
    return fold(tensor.expand(shape), 0, N, at)


def unfold(tensor, N, at, grouped=True):
    """The inverse of ``fold``: the tensor and the position of its vmapped dimension."""
    if not grouped:
        return tensor, 0
    tensor = tensor.unflatten(at, (N, tensor.size(at) // N))
    return tensor, tensor.dim() + at - 1


def fold_cells(tensor, dim, N, at, apart):
    """``fold`` for saved states (apart*D, T, B, H), of which each state's directions stay together."""
    if at != INTO_D["cells"] or apart == 1:
        return fold(tensor, dim, N, at)
    tensor = (tensor if dim is None else tensor.movedim(dim, 0)).unflatten(at, (apart, -1))
    return fold(tensor, None if dim is None else 0, N, at).flatten(0, 1)


def unfold_cells(tensor, N, at, apart):
    """The inverse of ``fold_cells``."""
    if at != INTO_D["cells"] or apart == 1:
        return unfold(tensor, N, at)
    tensor = tensor.unflatten(at, (apart, N, -1))
    return tensor.movedim(1, 0).flatten(1, 2), 0


def fold_inputs(plan, N, dims, tensors, into_d):
    """The plan and flat list of the one call that stands for N."""
    table = INTO_D if into_d else INTO_B
    n = sum(plan.sizes())
    (x,), states, weights, reset_states, extras = reference.split(list(zip(tensors, dims, strict=True)), plan.sizes())
    lengths, reset, h_mask, *zone = zip(tensors[n:], dims[n:], strict=True)
    if into_d:
        per_sample = [t.unbind(d) if d is not None else [t] * N for t, d in weights]
        weights = [w[i] for i in range(N) for w in per_sample]
    else:
        weights = [t for t, _ in weights]
    kinds = [("x", [x]), ("state", states), ("weights", None), ("state", reset_states)]
    kinds += [(kind, [extra]) for kind, extra in zip(kinds_of_extras(plan), extras, strict=True)]
    if into_d and x[0].dim() - (x[1] is not None) == 4:
        lengths, reset = for_groups(*lengths, *x, 1), for_groups(*reset, *x, 2)
    kinds += [("lengths", [lengths]), ("reset", [reset]), ("state", [h_mask])]
    flat = []
    for kind, pairs in kinds:
        flat += weights if kind == "weights" else [fold(t, d, N, table[kind]) for t, d in pairs]
    if zone:
        x_XTBI = flat[0]  # folded: X or B is N times that of a sample
        D = len(plan.settings[1]) * (x_XTBI.size(0) if x_XTBI.dim() == 4 else 1)
        size = D // N if into_d else x_XTBI.size(-2) // N
        flat += [fold_zone(t, d, N, table["zone"], size) for t, d in zone]
    return plan._replace(n_weights=len(weights)), flat


def kinds_of_extras(plan):
    """For each extra input, the kind that says how it folds."""
    program = spec_of(plan.cell).program
    return ("step",) * len(program.step) + ("sequence",) * len(program.sequence)


def of_none(rule, apply, dims, plan, tensors):
    """What a rule gives for no samples: that of one sample of zeros, without the sample."""
    tensors = [one_of_none(t, d) for t, d in zip(tensors, dims, strict=True)]
    results, dims = rule(apply, 1, dims, plan, tensors)
    return tuple(t.narrow(d, 0, 0) for t, d in zip(results, dims, strict=True)), dims


def one_of_none(tensor, dim):
    """A tensor of one sample of zeros where there are none."""
    return tensor if dim is None else tensor.new_zeros([1 if k == dim else n for k, n in enumerate(tensor.shape)])


def layer(apply, N, dims, plan, tensors):
    """vmap of ``Transform``: outputs ``(y, *last, [y], *saved)`` and their vmapped dimensions."""
    if N == 0:
        return of_none(layer, apply, dims, plan, tensors)
    first = 1 + plan.n_states
    into_d = any(d is not None for d in dims[first : first + plan.n_weights])
    table = INTO_D if into_d else INTO_B
    plan, flat = fold_inputs(plan, N, dims, tensors, into_d)
    results = apply(plan, *flat)
    spec = spec_of(plan.cell)
    own, apart = 1 + spec.states if plan.exposed else 0, spec.apart  # own: the index of the copy of y
    out, out_dims = [], []
    for k, t in enumerate(results):
        kind = "y" if k in (0, own) else "state" if t.dim() == 3 else "gates" if t.dim() == 5 else "cells"
        t, d = unfold_cells(t, N, table[kind], apart) if kind == "cells" else unfold(t, N, table[kind])
        out.append(t), out_dims.append(d)
    return tuple(out), tuple(out_dims)


def layer_backward(apply, N, dims, pull, tensors):
    """vmap of ``TransformBackward``: the needed gradients and their vmapped dimensions."""
    if N == 0:
        return of_none(layer_backward, apply, dims, pull, tensors)
    plan = pull.plan
    first = 1 + plan.n_states
    grads, inputs, outputs = pull.split(list(zip(tensors, dims, strict=True)))
    into_d = pull.needs[2] or any(d is not None for _, d in inputs[first : first + plan.n_weights])
    table = INTO_D if into_d else INTO_B
    grouped = not into_d or inputs[0][0].dim() - (inputs[0][1] is not None) == 4
    (dy, *dlast), (y, *saved) = grads, outputs
    dcells = [dlast.pop()] if pull.has_cells else []
    folded, flat = fold_inputs(plan, N, [d for _, d in inputs], [t for t, _ in inputs], into_d)
    flat = [
        fold(*dy, N, table["y"]),
        *[fold(t, d, N, table["state"]) for t, d in dlast],
        *[fold_cells(t, d, N, table["cells"], spec_of(plan.cell).apart) for t, d in dcells],
        *flat,
        fold(*y, N, table["y"]),
        *[
            fold(t, d, N, table["gates"])
            if t.dim() - (d is not None) == 5
            else fold_cells(t, d, N, table["cells"], spec_of(plan.cell).apart)
            for t, d in saved
        ],
    ]
    results = iter(apply(pull._replace(plan=folded, n_in=len(flat) - len(grads) - len(outputs)), *flat))
    out, out_dims = [], []
    if pull.needs[0]:
        t, d = unfold(next(results), N, table["x"], grouped)
        out.append(t), out_dims.append(d)
    states = [unfold(next(results), N, table["state"]) for _ in range(plan.n_states if pull.needs[1] else 0)]
    weights = [next(results) for _ in range(folded.n_weights if pull.needs[2] else 0)]
    stacked = [(torch.stack(weights[k :: plan.n_weights]), 0) for k in range(plan.n_weights if weights else 0)]
    reset_states = [unfold(next(results), N, table["state"]) for _ in range(plan.n_reset if pull.needs[1] else 0)]
    given = reference.split(inputs, plan.sizes())[4] if pull.needs[3] else ()
    extras = [
        # without groups of its own before, a sample's part is a group now
        unfold(next(results), N, table[kind], not into_d or t.dim() - (d is not None) == -table[kind])
        for kind, (t, d) in zip(kinds_of_extras(plan), given, strict=bool(given))
    ]
    for t, d in (*states, *stacked, *reset_states, *extras):
        out.append(t), out_dims.append(d)
    return tuple(out), tuple(out_dims)


def shown(x, tensors):
    """x as vmap has to see it beside ``tensors`` of optional lists, into which the dispatcher does not look: where vmap
    is to cut one of these into samples, x becomes one for each sample too."""
    for t in tensors:
        x = x + t.new_zeros(())
    return x


# ---- The same rules for the raw ops, which vmap inside torch.compile calls -------------------------------------------


def layer_op(name, info, in_dims, *args):
    """The vmap rule of ``rnnkernels::layer`` and ``rnnkernels::reference_layer``."""
    *args, save = args
    call = LayerCall.of(*args)
    plan = Plan.of(call)

    def apply(plan, *tensors):
        y, last, saved = getattr(torch.ops.rnnkernels, name)(*plan.call(tensors), save)
        return (y, *last, *saved)

    out = layer(apply, info.batch_size, LayerCall.of(*in_dims[:-1]).flat(), plan, call.flat())
    S = spec_of(plan.cell).states
    return tuple((o[0], list(o[1 : 1 + S]), list(o[1 + S :])) for o in out)


def layer_backward_op(name, info, in_dims, dy, dlast, dcells, *rest):
    """The vmap rule of ``rnnkernels::layer_backward`` and ``rnnkernels::reference_layer_backward``."""
    *args, y, saved, needs = rest
    call = LayerCall.of(*args)
    plan = Plan.of(call)

    def flat(dy, dlast, dcells, *rest):
        *args, y, saved, _ = rest
        cells = [] if not has_cells else [dcells]
        return [dy, *dlast, *cells, *LayerCall.of(*args).flat(), y, *saved]

    def apply(pull, *tensors):
        (dy, *dlast), inputs, (y, *saved) = pull.split(tensors)
        dcells = dlast.pop() if pull.has_cells else None
        out = getattr(torch.ops.rnnkernels, name)(
            dy, dlast, dcells, *pull.plan.call(inputs), y, saved, list(pull.needs)
        )
        return (*((out[0],) if pull.needs[0] else ()), *chain(*out[1:]))

    has_cells = dcells is not None
    pull = Pull(plan, len(dlast), has_cells, len(call.flat()), tuple(map(bool, needs)))
    results, dims = layer_backward(apply, info.batch_size, flat(*in_dims), pull, flat(dy, dlast, dcells, *rest))
    dx, *lists = zip(pull.lists(results), pull.lists(dims), strict=True)
    first = (dx[0][0], dx[1][0]) if needs[0] else (dy.new_empty(0), None)
    return tuple(zip(first, *lists, strict=True))


def stack_op(name, info, in_dims, *args):
    """The vmap rule of ``rnnkernels::stack``: samples become rows of the batch, or calls if weights are their own."""
    op, N = getattr(torch.ops.rnnkernels, name).default, info.batch_size
    names = [argument.name for argument in op._schema.arguments]
    call, dims = dict(zip(names, args, strict=False)), dict(zip(names, in_dims, strict=False))
    pairs = {
        k: list(zip(call[k], dims[k], strict=True)) for k in ("states", "weights", "scales", "extras") if call.get(k)
    }
    pairs |= {k: [(call[k], dims[k])] for k in ("x", "lengths") if call.get(k) is not None}
    if N == 0:
        pairs, N = {k: [(one_of_none(t, d), d) for t, d in found] for k, found in pairs.items()}, 1

    def run(change):
        new = {k: [change(k, *pair) for pair in found] for k, found in pairs.items()}
        new |= {k: new[k][0] for k in ("x", "lengths") if k in new}
        return op(*(call | new).values())

    if any(d is not None for k in ("weights", "scales") for _, d in pairs.get(k, ())):
        results = [run(lambda k, t, d: t if d is None else t.select(d, i)) for i in range(N)]  # noqa: B023
        y, *last = (torch.stack(s)[: info.batch_size] for s in zip(*((y, *last) for y, last in results), strict=True))
        return (y, last), (0, [0] * len(last))
    rows = {"x": INTO_B["x"], "states": INTO_B["state"], "lengths": INTO_B["lengths"], "extras": INTO_B["step"]}
    y, last = run(lambda k, t, d: fold(t, d, N, rows[k]) if k in rows else t)
    y, *last = (unfold(t, N, INTO_B["state"]) for t in (y, *last))
    if not info.batch_size:
        y, *last = ((t.narrow(d, 0, 0), d) for t, d in (y, *last))
    return (y[0], [t for t, _ in last]), (y[1], [d for _, d in last])
