"""The definition: one eager function per cell, and the plain scan over time that every backend has to equal.

Letters: T time, B batch, D directions, X input groups, G gates, H hidden, S states, I input, P output of a step,
K planes kept for the backward pass. The arguments are those of the op ``rnnkernels::layer`` (see ``op/schema.py``).
A cell is a function of x and r, the gates' input and recurrent pre-activations (B, G, H), of the states before the
step, and of four functions: the two activations, the norm of the output, and ``again`` for a second product inside the
step. It gives the new states and the planes to keep. It consists of torch operations: differentiable to any order, and
slow.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch._C import DispatchKey

from . import CELLS, accumulate_dtype
from .call import LayerCall
from .weights import names_of

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": lambda x: (x / 6 + 0.5).clamp(0, 1),  # F.hardsigmoid: 8 digits, no second derivative
    "linear": lambda x: x,
}


def rnn(x_BGH, r_BGH, s, act, gate, norm, again=None):
    """h' = act(x + r)  (Elman 1990); x = W_ih x_t + b_ih, r = W_hh h + b_hh."""
    return (act(x_BGH[:, 0] + r_BGH[:, 0]),), ()


def lstm(x_BGH, r_BGH, s, act, gate, norm, again=None):
    """i, f, o = gate(x + r);  g = act(x + r);  c' = f c + i g;  h' = o act(c')

    (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; gate order i, f, g, o as in torch.)
    """
    c = s[1]
    i, f, g, o = (x_BGH + r_BGH).unbind(1)
    i, f, g, o = gate(i), gate(f), act(g), gate(o)
    c = f * c + i * g
    return (o * act(norm(c)), c), (i, f, g, o)


def gru(x_BGH, r_BGH, s, act, gate, norm, again=None):
    """r, z = gate(x + r);  n = act(x_n + r q), q = W_hn h + b_hn;  h' = (1 - z) n + z h

    (Cho et al. 2014 in the variant of cuDNN and torch, which resets after the product; gate order r, z, n.)
    """
    h = s[0]
    r = gate(x_BGH[:, 0] + r_BGH[:, 0])
    z = gate(x_BGH[:, 1] + r_BGH[:, 1])
    q = r_BGH[:, 2]
    n = act(x_BGH[:, 2] + r * q)
    return (n + z * (h - n),), (r, z, n, q)


def gru_reset_before(x_BGH, r_BGH, s, act, gate, norm, again):
    """r, z = gate(x + r);  n = act(x_n + W_hn (r h) + b_hn);  h' = (1 - z) n + z h

    (Cho et al. 2014, which resets before the product; gate order r, z, n. ``r_BGH`` has r and z only.)
    """
    h = s[0]
    r, z = gate(x_BGH[:, :2] + r_BGH).unbind(1)
    n = act(x_BGH[:, 2] + again(r))
    return (n + z * (h - n),), (r, z, n)


CELL_FUNCTIONS = {"rnn": rnn, "lstm": lstm, "gru": gru, "gru_reset_before": gru_reset_before}


def functions(activation, recurrent_activation):
    """The two activations of a call."""
    return ACTIVATIONS[activation or "tanh"], ACTIVATIONS[recurrent_activation or "sigmoid"]


def dequantized(weights, scales):
    """The floats that int8 weights stand for; ``scales`` has the factors of the rows of each int8 matrix, in order."""
    scale = iter(scales)
    return [w * next(scale)[:, None] if w.dtype == torch.int8 else w for w in weights]


def weights_of(weights, d, directions):
    """The weights of direction ``d`` in the op's flat list."""
    n = len(weights) // directions
    return weights[d * n : (d + 1) * n]


def group(tensor, d, reverse, dims):
    """The input (or lengths, or reset mask) of direction ``d``: its group's, if there are groups."""
    return tensor if tensor is None or tensor.dim() == dims else tensor[d // len(reverse)]


def zero_states(call):
    """The states that an empty list stands for: h0 (D, B, P) and, for a cell that has one, c0 (D, B, H)."""
    return [call.x.new_zeros(call.D, call.x.size(-2), call.H if k else call.P) for k in range(call.spec.states)]


class Direction:
    """The products of a direction with its weights, as functions of tensors with any number of leading dimensions."""

    def __init__(self, cell, weights, bias, project, norm_eps):
        G, H = CELLS[cell].gates, weights[1].size(0) // CELLS[cell].gates
        own = dict(zip(names_of(cell, bias, project, norm_eps is not None), weights, strict=True))
        self.w_ih, self.w_hh, self.w_hr = own["weight_ih"], own["weight_hh"], own.get("weight_hr")
        self.b_ih, self.b_hh = own.get("bias_ih"), own.get("bias_hh")
        self.ln_x, self.ln_h = own.get("ln_x_gain"), own.get("ln_h_gain")
        self.ln_c = [own[name] for name in ("ln_c_gain", "ln_c_bias") if name in own]
        self.H, self.eps = H, norm_eps
        self.first = (G - 1) * H if CELLS[cell].phases > 1 else G * H  # the rows of w_hh in the first product

    def affine(self, v, w, b, weight):
        v = v @ w.T
        v = v if weight is None else F.layer_norm(v, v.shape[-1:], weight, None, self.eps)
        return v if b is None else v + b

    def inputs(self, x):
        """The gates' input pre-activations (..., G, H)."""
        return self.affine(x, self.w_ih, self.b_ih, self.ln_x).unflatten(-1, (-1, self.H))

    def recurrent(self, h):
        """The recurrent pre-activations of all gates in the first product (..., G or G - 1, H)."""
        rows = [w if w is None else w[: self.first] for w in (self.w_hh, self.b_hh, self.ln_h)]
        return self.affine(h, *rows).unflatten(-1, (-1, self.H))

    def again(self, h):
        """The recurrent pre-activation of the last gate (..., H), for a cell with a second product."""
        return self.affine(h, *(w if w is None else w[self.first :] for w in (self.w_hh, self.b_hh, self.ln_h)))

    def norm(self, c):
        """c on its way to the output."""
        return F.layer_norm(c, c.shape[-1:], *self.ln_c, self.eps) if self.ln_c else c


def scan(cell, x_TBI, s, weights, backward, bias, project, act, gate, lengths, reset, reset_s, h_mask, zone, norm_eps):
    """One direction: returns y_TBP, the last states, the cell states c_TBH and the kept gates (T, B, K, H)."""
    spec, T, own = CELLS[cell], x_TBI.size(0), Direction(cell, weights, bias, project, norm_eps)
    x_TBGH = own.inputs(x_TBI)
    ys, cs, kept = [None] * T, [None] * T, [None] * T
    for t in reversed(range(T)) if backward else range(T):
        old = s
        if reset is not None:
            at = reset[t][:, None]
            old = tuple(torch.where(at, reset_s[k] if reset_s else 0.0, v) for k, v in enumerate(old))
        if lengths is not None:  # values past a row's end, NaN perhaps, would be multiplied by a gradient of zero
            alive = (t < lengths)[:, None]
            old = tuple(torch.where(alive, v, 0.0) for v in old)
        h = old[0] if h_mask is None else old[0] * h_mask
        again = lambda r, h=h: own.again(r * h)  # noqa: E731
        new, gates = CELL_FUNCTIONS[cell](x_TBGH[t], own.recurrent(h), old, act, gate, own.norm, again)
        if project:
            new = (new[0] @ own.w_hr.T, *new[1:])
        if zone:
            new = tuple(z[t] * o + (1 - z[t]) * n for z, o, n in zip(zone, old, new, strict=True))
        y = new[0]
        if lengths is not None:
            new = tuple(torch.where(alive, n, o) for n, o in zip(new, s, strict=True))
            y = torch.where(alive, y, 0.0)
        s = new
        ys[t], cs[t], kept[t] = y, s[-1], torch.stack(gates, 1) if gates else None
    return torch.stack(ys), s, torch.stack(cs), torch.stack(kept) if spec.kept else None


def zero_past(v, lengths):
    """v (T, B, H) or (X, T, B, H) with zeros past the lengths (B,) or (X, B), where there are any."""
    if lengths is None:
        return v
    return torch.where((torch.arange(v.size(-3), device=v.device)[:, None] < lengths[..., None, :])[..., None], v, 0.0)


def layer(*args):
    """One layer, all its directions: the reference of ``rnnkernels::layer``. Returns ``y, last, saved``."""
    *call, save = args
    call = LayerCall.of(*call)
    cell, spec, reverse, lengths, reset, D = call.cell, call.spec, call.reverse, call.lengths, call.reset, call.D
    dtype, acc, (T, B) = call.x.dtype, accumulate_dtype(call.x.dtype), call.x.shape[-3:-1]
    act, gate = functions(call.activation, call.recurrent_activation)
    x, states, weights, reset_states = (
        zero_past(call.x.to(acc), lengths), [s.to(acc) for s in call.states or zero_states(call)],
        [w.to(acc) for w in call.weights], [s.to(acc) for s in call.reset_states],
    )  # fmt: skip
    h_mask = None if call.h_mask is None else call.h_mask.to(acc)
    zone = [z.to(acc).expand(T, D, B, -1) for z in call.zone]
    ys, lasts, cells, kept = [], [], [], []
    for d in range(D):
        y, last, c, gates = scan(
            cell, group(x, d, reverse, 3), tuple(s[d] for s in states), weights_of(weights, d, D),
            reverse[d % len(reverse)], call.bias, call.project, act, gate, group(lengths, d, reverse, 1),
            group(reset, d, reverse, 2), [s[d] for s in reset_states], None if h_mask is None else h_mask[d],
            [z[:, d] for z in zone], call.eps if call.layer_norm else None,
        )  # fmt: skip
        ys.append(y), lasts.append(last), cells.append(c), kept.append(gates)
    last = [torch.stack(s).to(dtype) for s in zip(*lasts, strict=True)]
    saved = []
    if save and spec.kept:
        saved.append(torch.stack(kept).to(dtype))
    if save and spec.states > 1:
        saved.append(torch.stack(cells))
    return torch.cat(ys, -1).to(dtype), last, saved


def no_units(x, states, weights, directions, count, return_cells):
    """A layer without hidden units (H = P = 0): empty results that depend on all inputs, whose gradients are zeros."""
    (T, B, _), each = x.shape, len(weights) // directions
    zero = sum(F.linear(x, weights[d * each]).sum() for d in range(directions))  # no elements, as in all sums here
    zero = zero + sum(t.sum() for t in (*states, *weights))
    last = tuple(x.new_zeros(directions, B, 0) + zero for _ in range(count))
    y = x.new_zeros(T, B, 0) + zero
    return (y, last, x.new_zeros(directions, T, B, 0) + zero) if return_cells else (y, last)


def split(flat, sizes):
    """Cut a flat sequence into lists of the given lengths."""
    parts, at = [], 0
    for n in sizes:
        parts.append(list(flat[at : at + n]))
        at += n
    return parts


@contextmanager
def autograd_enabled():
    """Autograd switched on inside an op, where the dispatcher may have switched it off."""
    with torch._C._PreserveDispatchKeyGuard(), torch.enable_grad():
        for key in (DispatchKey.AutogradFunctionality, DispatchKey.ADInplaceOrView):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        yield


def layer_backward(dy, dlast, dcells, *args):
    """The reference of ``rnnkernels::layer_backward``: its four results by autograd of ``layer``."""
    *call, y, saved, needs = args
    call = LayerCall.of(*call)
    n = sum(call.sizes())
    inputs = [v.detach().requires_grad_() for v in call.flat()[:n]]
    with autograd_enabled():
        leaves = LayerCall.from_flat(call.settings(), call.sizes(), [*inputs, *call.flat()[n:]])
        y, last, saved = layer(*leaves, dcells is not None)
        outputs, given = [y], [dy]
        if dlast:
            outputs, given = [y, *last], [dy, *dlast]
        if dcells is not None:
            outputs, given = [*outputs, saved[-1]], [*given, dcells]
        grads = torch.autograd.grad(outputs, inputs, given, allow_unused=True, materialize_grads=True)
    (dx,), dstates, dweights, dreset_states = split(grads, call.sizes())
    return (
        dx.contiguous() if needs[0] else dx.new_empty(0),
        dstates if needs[1] else [],
        dweights if needs[2] else [],
        dreset_states if needs[1] else [],
    )


def pullback(call, dy, dlast, dcells):
    """Gradients of x, *states, *weights, *reset_states: differentiable functions of them and of dy, dlast, dcells."""
    tensors, n = call.flat(), sum(call.sizes())

    def run(*flat):
        again = LayerCall.from_flat(call.settings(), call.sizes(), [*flat, *tensors[n:]])
        y, last, saved = layer(*again, dcells is not None)
        return (y, *(last if dlast else ()), *(saved[-1:] if dcells is not None else ()))

    _, pull = torch.func.vjp(run, *tensors[:n])
    return pull((dy, *dlast, *(() if dcells is None else (dcells,))))
