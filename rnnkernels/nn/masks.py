"""A layer call with options: masks are drawn, heads become directions.

Letters: T time, B batch, D directions, N heads, G gates, H hidden, S states, I input, L layers, P output of a step.
"""

import math

import torch

from ..cells import spec_of
from ..op.autograd import jit_tracing, watched
from .options import settings

EPS = 1e-5
"""The number that layer norms add to a variance, as in ``torch.nn.LayerNorm``."""


def with_options(call, options, train):
    """A ``LayerCall`` with ``Options``: masks are drawn, heads become directions.

    In training (``train``) masks come from torch's generator of the device of x: first the mask of the recurrent
    dropout, then those of the zoneout, a state at a time.
    """
    x, D, N = call.x, len(call.reverse), options.heads
    # of fields where that is possible: see cells/weights.py
    S, H = len(spec_of(call.cell).program.states), call.hidden_size or call.H
    P = call.P if call.project else H
    weights, states, reset_states, h_mask, zone = call.weights, call.states, call.reset_states, None, []
    if train and options.recurrent_dropout:
        h_mask = torch.dropout(
            torch.ones(D, x.size(1), P, dtype=x.dtype, device=x.device), options.recurrent_dropout, True
        )
    if any(options.zones(S)):
        zone = [torch.full((1, 1, 1, 1), p, dtype=x.dtype, device=x.device) for p in options.zones(S)]
        for k, p in enumerate(options.zones(S) if train else ()):
            if p:
                zone[k] = random_bools(p, (x.size(0), D, x.size(1), H if k else P), x.device)
    cell, activation, gate = settings(call.cell, call.activation, options)
    if N > 1:
        weights = split_weights(weights, D, N)
        states, reset_states, zone = ([into_heads(t, N) for t in ts] for ts in (states, reset_states, zone))
        h_mask = h_mask if h_mask is None else into_heads(h_mask, N)
    return call._replace(
        cell=cell, states=states, weights=weights, reverse=tuple(r for r in call.reverse for _ in range(N)),
        activation=activation, recurrent_activation=gate, reset_states=reset_states, h_mask=h_mask, zone=zone,
        layer_norm=options.layer_norm, eps=EPS, hidden_size=H // N,
    )  # fmt: skip


def joined(last, cells, D, N):
    """Final states and [cell states (D*N, T, B, H/N)] of N heads as those of one layer."""
    last = tuple(s.unflatten(0, (D, N)).movedim(1, 2).flatten(2) for s in last)
    return last, [c.unflatten(0, (D, N)).movedim(1, 3).flatten(3) for c in cells]


def random_bools(p, shape, device):
    """Bools, each true with probability p, from 8 random bits each, which on a CPU is faster than torch.bernoulli.

    The threshold is rounded up or down at random, once for every row, so that the probability is p and not a multiple
    of 2^-8; where p is so close to 0 or 1 that rows would differ by it, it takes 16 bits. Under torch.jit.trace, which
    cannot record ``view(dtype)`` and would freeze the size, the bools come from torch.rand.
    """
    if jit_tracing():
        return torch.rand(shape, device=device) < p
    count, rare = math.prod(shape), min(p, 1 - p)
    kind, size = (torch.int8, 8) if rare > 2**-6 else (torch.int16, 16)
    words = torch.randint(-(2**63), 2**63 - 1, (-(-count * size // 64),), device=device)
    bits, whole = words.view(kind)[:count].view(shape), math.floor(rare * 2**size)
    limits = (torch.rand((*shape[:-1], 1), device=device) < rare * 2**size - whole).to(kind) + (whole - 2 ** (size - 1))
    if size > 8 or watched() or torch._C._are_functorch_transforms_active():
        found = bits < limits
    else:
        found = bits.lt_(limits).view(torch.bool)  # torch compares whole vectors in place only; vmap has no lt_
    return found if p == rare else ~found


def into_heads(t, N):
    """(..., D, B, H) as (..., D*N, B, H/N); a tensor that is broadcast along H stays as it is."""
    return t if t.size(-1) == 1 else t.unflatten(-1, (N, -1)).movedim(-2, -3).flatten(-4, -3)


def split_weights(weights, D, N):
    """The weights of every direction and head: the rows of the head's units, gate by gate."""
    each = len(weights) // D

    def of_head(w, n, H):
        return w[n] if w.dim() == 3 else w.unflatten(0, (w.size(0) // H, N, -1))[:, n].flatten(0, 1)

    def split(own):
        w_hh = next((w for w in own if w.dim() == 3), None)
        H = min(w.size(0) for w in own) if w_hh is None else N * w_hh.size(2)
        return [of_head(w, n, H) for n in range(N) for w in own]

    return [w for d in range(D) for w in split(weights[d * each : (d + 1) * each])]
