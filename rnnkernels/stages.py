"""Layers with options: masks are drawn, heads become directions, and the op runs the layers one by one.

Letters: T time, B batch, D directions, N heads, G gates, H hidden, S states, I input, L layers, P output of a step.
"""

import math

import torch

from . import ops
from .autograd import jit_tracing
from .cells import CELLS
from .checks import check
from .options import PLAIN, settings
from .reference import zero_past

EPS = 1e-5
"""The number that layer norms add to a variance, as in ``torch.nn.LayerNorm``."""


def layers(
    cell, x, states, weights, num_layers, reverse, bias, project, I, H, P, activation, options, train,  # noqa: E741
    dropout=0.0, lengths=None, reset=None, reset_states=(), drop=torch.dropout, return_cells=False, call=ops.layer,
):  # fmt: skip
    """``functional.layers`` with options, states to restart from, and all cell states.

    Args:
        options: ``Options``, or None.
        train: True draws masks, from torch's generator of the device of x: for each layer first the mask of the
            recurrent dropout, then those of the zoneout, a state at a time.
        reset_states: S tensors as ``states``, from which rows restart where ``reset`` is set; none for zeros.
        return_cells: True returns the cell states of the last layer too.
        call: runs a layer; called as ``ops.layer``.

    Returns:
        ``y, last``, or ``y, last, c`` with c (T, B, D*H).
    """
    options = options or PLAIN
    if return_cells and CELLS[cell].states < 2:
        raise ValueError(f"return_cell_states is for LSTM: {cell} has no cell state")
    check(cell, x, states, weights, num_layers, len(reverse), bias, project, I, H, P, options, reset_states)
    D, found = len(reverse), []

    def run(i, x, states, weights):
        restart = [s[i * D : (i + 1) * D] for s in reset_states]
        y, last, *cells = layer(
            call, cell, drop(x, dropout, True) if dropout and i else x, states, weights, reverse, bias, project, H, P,
            activation, options, train, lengths, reset, restart, i == num_layers - 1, return_cells,
        )  # fmt: skip
        found.extend(cells)
        return y, last

    y, last = ops.over_layers(run, x, states, weights, num_layers, D)
    if not return_cells:
        return y, last
    c = zero_past(found[0].permute(1, 2, 0, 3).flatten(2), lengths)  # backends may leave any value past the lengths
    return y, last, c.to(y.dtype)


def layer(
    call, cell, x, states, weights, reverse, bias, project, H, P, activation, options, train, lengths, reset,
    reset_states, top, return_cells,
):  # fmt: skip
    """One layer: ``y, last``, or for the ``top`` one ``y, last, cells (D, T, B, H)`` with ``return_cells``."""
    D, N, S, (T, B) = len(reverse), options.heads, CELLS[cell].states, x.shape[:2]
    h_mask, zone = None, []
    if train and options.recurrent_dropout:
        h_mask = torch.dropout(torch.ones(D, B, P, dtype=x.dtype, device=x.device), options.recurrent_dropout, True)
    if any(options.zones(S)):
        zone = [torch.full((1, 1, 1, 1), p, dtype=x.dtype, device=x.device) for p in options.zones(S)]
        for k, p in enumerate(options.zones(S) if train else ()):
            if p:
                zone[k] = random_bools(p, (T, D, B, H if k else P), x.device)
    cell, activation, gate = settings(cell, activation, options)
    if N > 1:
        weights = split_weights(weights, D, CELLS[cell].gates, N)
        states, reset_states, zone = ([into_heads(t, N) for t in ts] for ts in (states, reset_states, zone))
        h_mask = h_mask if h_mask is None else into_heads(h_mask, N)
    y, last, *cells = call(
        cell, x, states, weights, reverse=tuple(r for r in reverse for _ in range(N)), bias=bias, project=project,
        activation=activation, recurrent_activation=gate, lengths=lengths, reset=reset, reset_states=reset_states,
        h_mask=h_mask, zone=zone, layer_norm=options.layer_norm, eps=EPS,
        return_cells=top and return_cells, recompute=options.recompute, exposed=top,
    )  # fmt: skip
    if N > 1:
        last = tuple(s.unflatten(0, (D, N)).movedim(1, 2).flatten(2) for s in last)
        cells = [c.unflatten(0, (D, N)).movedim(1, 3).flatten(3) for c in cells]
    return y, last, *cells


def random_bools(p, shape, device):
    """Bools, each true with probability p, from 16 random bits each: on a CPU a third of the time of torch.bernoulli.

    The threshold is rounded up or down at random, once for all elements, so that the probability is p and not a
    multiple of 2^-16. Under torch.jit.trace, which cannot record ``view(dtype)`` and would freeze the size, the bools
    come from torch.rand.
    """
    if jit_tracing():
        return torch.rand(shape, device=device) < p
    count = math.prod(shape)
    bits = torch.randint(-(2**63), 2**63 - 1, ((count + 3) // 4,), device=device).view(torch.int16)[:count].view(shape)
    rare = min(p, 1 - p)
    found = bits < ((rare * 2**16 + torch.rand((), device=device)).floor() - 2**15).to(torch.int16)
    return found if p == rare else ~found


def into_heads(t, N):
    """(..., D, B, H) as (..., D*N, B, H/N); a tensor that is broadcast along H stays as it is."""
    return t if t.size(-1) == 1 else t.unflatten(-1, (N, -1)).movedim(-2, -3).flatten(-4, -3)


def split_weights(weights, D, G, N):
    """The weights of every direction and head: the rows of w_ih and biases of the head's units, gate by gate."""
    each, out = len(weights) // D, []
    for d in range(D):
        w_ih, w_hh, *biases = weights[d * each : (d + 1) * each]
        for n in range(N):
            rows = [w.unflatten(0, (G, N, -1))[:, n].flatten(0, 1) for w in (w_ih, *biases)]
            out += [rows[0], w_hh[n], *rows[1:]]
    return out
