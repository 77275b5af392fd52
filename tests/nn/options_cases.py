"""Layers with options, written out from the papers' equations: plain loops over layers, directions, rows and steps.

Nothing of rnnkernels computes here, it only draws the masks. Letters as in nn/layers.py.
"""

import torch
import torch.nn.functional as F

from rnnkernels.nn.masks import random_bools

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": lambda x: F.relu6(x + 3) / 6,
    "linear": lambda x: x,
}


class Options:
    """What a module says of itself, with torch.nn's ways where it says nothing."""

    def __init__(self, module):
        self.module, self.lstm, self.gru = module, module.mode == "LSTM", module.mode == "GRU"
        self.norm, self.N, self.p = module.layer_norm, module.heads, module.recurrent_dropout
        self.act = ACTIVATIONS[module.nonlinearity if module.mode.startswith("RNN") else module.activation]
        self.gate = ACTIVATIONS[getattr(module, "recurrent_activation", "sigmoid")]
        z = module.zoneout
        self.zones = (z if isinstance(z, tuple) else (z, z))[: 1 + self.lstm]
        self.after = getattr(module, "reset_after", True)
        self.H, self.P = module.hidden_size, module.proj_size or module.hidden_size


def draw(o, T, B, dtype, layer):
    """The masks of a layer, drawn as ``stages.layers`` says: recurrent dropout, then zoneout state by state."""
    D, train = 1 + o.module.bidirectional, o.module.training
    mask = torch.ones(D, B, o.P, dtype=dtype)
    if train and o.p:
        mask = torch.dropout(mask, o.p, True)
    zones = []
    for p, width in zip(o.zones, (o.P, o.H), strict=False):
        shape = (T, D, B, width)
        zones.append(random_bools(p, shape, "cpu").to(dtype) if train and p else torch.full(shape, p, dtype=dtype))
    return mask, zones


def product(o, w, v):
    """``w v`` for a vector, or for each head its own block; the gates are (G, H) either way."""
    if o.N == 1:
        return w @ v
    blocks = [w[n] @ part for n, part in enumerate(v.chunk(o.N))]  # (G*H/N) each
    return torch.cat([b.view(-1, o.H // o.N) for b in blocks], 1).flatten()


def step(o, w, x, s, mask):
    """The states after a step, for one row: x (I,), s of (P,) and (H,)."""
    H, h = o.H, s[0]
    bias_x, bias_h = (w["bias_ih"], w["bias_hh"]) if o.module.bias else (0.0, 0.0)

    def norm(v, gain):
        return F.layer_norm(v, v.shape, gain, None, 1e-5) if o.norm else v

    gx = norm(w["weight_ih"] @ x, w.get("ln_x_gain")) + bias_x
    if o.gru and not o.after:  # Cho et al. 2014: n waits for r
        full = product(o, w["weight_hh"], h * mask)[: 2 * H]
        gain = w.get("ln_h_gain")
        grz = norm(full, gain if gain is None else gain[: 2 * H]) + (bias_h[: 2 * H] if o.module.bias else 0.0)
        r, z = o.gate(gx[:H] + grz[:H]), o.gate(gx[H : 2 * H] + grz[H:])
        gn = product(o, w["weight_hh"], r * (h * mask))[2 * H :]
        gn = norm(gn, gain if gain is None else gain[2 * H :]) + (bias_h[2 * H :] if o.module.bias else 0.0)
        return ((1 - z) * o.act(gx[2 * H :] + gn) + z * h,)
    gh = norm(product(o, w["weight_hh"], h * mask), w.get("ln_h_gain")) + bias_h
    if o.gru:
        r, z = o.gate(gx[:H] + gh[:H]), o.gate(gx[H : 2 * H] + gh[H : 2 * H])
        n = o.act(gx[2 * H :] + r * gh[2 * H :])
        return ((1 - z) * n + z * h,)
    if not o.lstm:
        return (o.act(gx + gh),)
    i, f, g, out = (gx + gh).chunk(4)
    c = o.gate(f) * s[1] + o.gate(i) * o.act(g)
    inner = F.layer_norm(c, c.shape, w["ln_c_gain"], w["ln_c_bias"], 1e-5) if o.norm else c
    h = o.gate(out) * o.act(inner)
    return (w["weight_hr"] @ h if o.module.proj_size else h, c)


def plain(module, x, hx=None, lengths=None, reset=None, restart=None):
    """``y, *last`` and, for an LSTM, the cell states of the last layer: all as a module without ``batch_first`` gives.

    x (T, B, I); hx and restart: tuples of (L*D, B, P or H), or None for zeros; reset (T, B) or None.
    """
    o, (T, B, _) = Options(module), x.shape
    D = 1 + module.bidirectional
    lengths = [T] * B if lengths is None else [int(n) for n in lengths]
    last = []
    for layer in range(module.num_layers):
        if layer and module.training and module.dropout:
            x = torch.dropout(x, module.dropout, True)
        mask, zones = draw(o, T, B, x.dtype, layer)
        rows = [[[None] * B for _ in range(T)] for _ in range(D)]
        cells = [[[torch.zeros(o.H, dtype=x.dtype)] * B for _ in range(T)] for _ in range(D)]
        for d in range(D):
            suffix = f"_l{layer}{'_reverse' if d else ''}"
            w = {n.removesuffix(suffix): p for n, p in module.named_parameters() if n.endswith(suffix)}
            ends = [[] for _ in o.zones]
            for b in range(B):
                k = layer * D + d
                zero = [torch.zeros(n, dtype=x.dtype) for n in (o.P, o.H)[: len(o.zones)]]
                s = zero if hx is None else [v[k, b] for v in hx]
                for t in range(T):
                    rows[d][t][b] = torch.zeros(o.P, dtype=x.dtype)
                for t in reversed(range(lengths[b])) if d else range(lengths[b]):
                    if reset is not None and reset[t, b]:
                        s = zero if restart is None else [v[k, b] for v in restart]
                    new = step(o, w, x[t, b], s, mask[d, b])
                    s = [z[t, d, b] * old + (1 - z[t, d, b]) * v for z, old, v in zip(zones, s, new, strict=True)]
                    rows[d][t][b] = s[0]
                    cells[d][t][b] = s[-1]
                for v, end in zip(s, ends, strict=True):
                    end.append(v)
            last.append([torch.stack(end) for end in ends])
        x = torch.cat([torch.stack([torch.stack(r) for r in steps]) for steps in rows], -1)
    c = [torch.cat([torch.stack([torch.stack(r) for r in steps]) for steps in cells], -1)] if o.lstm else []
    return [x, *(torch.stack(s) for s in zip(*last, strict=True)), *c]
