"""The definition: the plain scan over time that every backend has to equal.

Letters: T time, B batch, D directions, X input groups, G gates, H hidden, S states, I input, P output of a step,
K planes kept for the backward pass. The arguments are those of the op ``rnnkernels::layer`` (see ``op/schema.py``).
Cells are programs (program.py), which interpret.py runs in torch operations: differentiable to any order, and slow.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch._C import DispatchKey

from . import accumulate_dtype, interpret
from .call import LayerCall
from .weights import names_of

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": lambda x: (x / 6 + 0.5).clamp(0, 1),  # F.hardsigmoid: 8 digits, no second derivative
    "linear": lambda x: x,
}


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


def extras_of(call, d):
    """The extra inputs of direction d by name, (T, B, H or 1) or (B, H)."""
    acc, program = accumulate_dtype(call.x.dtype), call.spec.program
    dims = [3 if k < len(program.step) else 2 for k in range(len(call.extras))]
    found = [group(u.to(acc), d, call.reverse, n) for u, n in zip(call.extras, dims, strict=True)]
    return dict(zip(call.spec.extras, found, strict=True))


def zero_states(call):
    """The states that an empty list stands for: h0 (D, B, P) and, for a cell that has one, c0 (D, B, H)."""
    return [call.x.new_zeros(call.D, call.x.size(-2), call.H if k else call.P) for k in range(call.spec.states)]


class Direction:
    """The step of one direction: its products, and its cell.

    Tensors have any number of leading dimensions, which are those of a batch, of steps, or of both.
    """

    def __init__(self, call, d):
        self.spec = spec = call.spec
        acc, H = accumulate_dtype(call.x.dtype), call.H
        weights = [w.to(acc) for w in weights_of(call.weights, d, call.D)]
        own = dict(zip(names_of(call.cell, call.bias, call.project, call.layer_norm), weights, strict=True))
        self.w_ih, self.w_hh, self.w_hr = own.get("weight_ih"), own.get("weight_hh"), own.get("weight_hr")
        self.b_ih, self.b_hh = own.get("bias_ih"), own.get("bias_hh")
        self.ln_x, self.ln_h = own.get("ln_x_gain"), own.get("ln_h_gain")
        self.ln_c = [own[name] for name in ("ln_c_gain", "ln_c_bias") if name in own]
        self.vectors = {name: own[name] for name in spec.vectors}
        self.H, self.eps = H, call.eps
        self.act, self.gate = functions(call.activation, call.recurrent_activation)
        self.first = (spec.recurrent_gates - (spec.phases > 1)) * H  # the rows of w_hh in the first product

    def affine(self, v, w, b, weight):
        v = v @ w.T
        v = v if weight is None else interpret.normalized(v, self.eps, weight)
        return v if b is None else v + b

    def inputs(self, x):
        """The gates' input pre-activations (..., G, H); None for a cell without."""
        if self.spec.projects_input:
            x = self.affine(x, self.w_ih, self.b_ih, self.ln_x)
        return x.unflatten(-1, (-1, self.H)) if self.spec.gates else None

    def recurrent(self, h):
        """The recurrent pre-activations of all gates in the first product (..., G or G - 1, H); None for no product."""
        if self.w_hh is None or not self.first:
            return None
        rows = [w if w is None else w[: self.first] for w in (self.w_hh, self.b_hh, self.ln_h)]
        return self.affine(h, *rows).unflatten(-1, (-1, self.H))

    def again(self, h):
        """The recurrent pre-activation of the last gate (..., H), for a cell with a second product."""
        return self.affine(h, *(w if w is None else w[self.first :] for w in (self.w_hh, self.b_hh, self.ln_h)))

    def norm(self, c):
        """c on its way to the output."""
        return interpret.normalized(c, self.eps, *self.ln_c) if self.ln_c else c

    def step(self, x, old, h_mask, extras):
        """The new states (without zoneout), the output where it is not the first of them, and the kept planes.

        x: of ``inputs``; old: the states that enter; h_mask: for the first of them, or None; extras: by name.
        """
        functions = {"act": self.act, "gate": self.gate, "norm": self.norm}
        loads = {"v": self.vectors, "u": extras}
        program = self.spec.program
        new, y, planes = interpret.step(program, x, self.recurrent, self.again, old, h_mask, loads, functions)
        return (new if self.w_hr is None else (new[0] @ self.w_hr.T, *new[1:])), y, planes


def scan(call, d, x_TBI, s, lengths, reset, reset_s, h_mask, zone, extras):
    """One direction: y_TBP, the last states, the states apart from y (T, B, H each), the kept planes (T, B, K, H)."""
    spec, T, own, backward = call.spec, x_TBI.size(0), Direction(call, d), call.reverse[d % len(call.reverse)]
    if lengths is not None:
        longest = lengths.argmax(0, keepdim=True)
        x_TBI = filled(x_TBI, lengths, longest)
        extras = {name: filled(v, lengths, longest) if v.dim() == 3 else v for name, v in extras.items()}
    x_TBGH = own.inputs(x_TBI)
    ys, apart, kept = [None] * T, [None] * T, [None] * T
    for t in reversed(range(T)) if backward else range(T):
        old = s
        if reset is not None:
            at = reset[t][:, None]
            old = tuple(torch.where(at, reset_s[k] if reset_s else 0.0, v) for k, v in enumerate(old))
        now = {name: v[t] if v.dim() == 3 else v for name, v in extras.items()}
        if lengths is not None:
            alive = (t < lengths)[:, None]
            old = tuple(torch.where(alive, v, v.index_select(0, longest)) for v in old)
            now = {name: torch.where(alive, v, v.index_select(0, longest)) for name, v in now.items()}
        new, y, planes = own.step(None if x_TBGH is None else x_TBGH[t], old, h_mask, now)
        if zone:
            planes = (*planes, *renewed(spec, new))
            new = tuple(z[t] * o + (1 - z[t]) * n for z, o, n in zip(zone, old, new, strict=True))
        y = new[0] if y is None else y
        if lengths is not None:
            new = tuple(torch.where(alive, n, o) for n, o in zip(new, s, strict=True))
            y = torch.where(alive, y, 0.0)
        s = new
        ys[t], apart[t], kept[t] = y, s[len(s) - spec.apart :], torch.stack(planes, 1) if planes else None
    apart = [torch.stack(c) for c in zip(*apart, strict=True)]
    return torch.stack(ys), s, apart, None if kept[0] is None else torch.stack(kept)


def renewed(spec, new):
    """The new states, as the cell made them, that a backward pass with zoneout wants to be kept."""
    wanted = spec.renewed(True)
    return [n for name, n in zip(spec.program.states, new, strict=True) if name in wanted]


def filled(v, lengths, longest):
    """v (T, B, K) whose rows go on with the last step of the longest one.

    Rows that have ended compute what that one computes, and their results are not taken. Values past the end of their
    own, NaN perhaps, would be multiplied by a gradient of zero, and of zeros a cell may have no logarithm.
    """
    end = lengths.index_select(0, longest)
    last = v.index_select(1, longest).index_select(0, (end - 1).clamp(min=0))
    alive = torch.arange(v.size(0), device=v.device)[:, None] < lengths
    return torch.where(alive[..., None], v, torch.where(end > 0, last, 0.0))


def zero_past(v, lengths):
    """v (T, B, H) or (X, T, B, H) with zeros past the lengths (B,) or (X, B), where there are any."""
    if lengths is None:
        return v
    return torch.where((torch.arange(v.size(-3), device=v.device)[:, None] < lengths[..., None, :])[..., None], v, 0.0)


def layer(*args):
    """One layer, all its directions: the reference of ``rnnkernels::layer``. Returns ``y, last, saved``."""
    *call, save = args
    call = LayerCall.of(*call)
    spec, reverse, D = call.spec, call.reverse, call.D
    dtype, acc, (T, B) = call.x.dtype, accumulate_dtype(call.x.dtype), call.x.shape[-3:-1]
    x, states, reset_states = (
        call.x.to(acc), [s.to(acc) for s in call.states or zero_states(call)],
        [s.to(acc) for s in call.reset_states],
    )  # fmt: skip
    h_mask = None if call.h_mask is None else call.h_mask.to(acc)
    zone = [z.to(acc).expand(T, D, B, -1) for z in call.zone]
    ys, lasts, apart, kept = [], [], [], []
    for d in range(D):
        y, last, c, gates = scan(
            call, d, group(x, d, reverse, 3), tuple(s[d] for s in states),
            group(call.lengths, d, reverse, 1) if B else None,
            group(call.reset, d, reverse, 2), [s[d] for s in reset_states], None if h_mask is None else h_mask[d],
            [z[:, d] for z in zone], extras_of(call, d),
        )  # fmt: skip
        ys.append(y), lasts.append(last), apart.append(c), kept.append(gates)
    last = [torch.stack(s).to(dtype) for s in zip(*lasts, strict=True)]
    saved = []
    if save and kept[0] is not None:
        saved.append(torch.stack(kept).to(dtype))
    if save and spec.apart:
        saved.append(torch.cat([torch.stack(c) for c in zip(*apart, strict=True)]))
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
    """The reference of ``rnnkernels::layer_backward``: its results by autograd of ``layer``."""
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
        live = [k for k, v in enumerate(outputs) if v.requires_grad]  # a state of comparisons alone has no gradient
        outputs, given = ([of[k] for k in live] for of in (outputs, given))
        grads = [torch.zeros_like(v) for v in inputs]
        if live:
            grads = torch.autograd.grad(outputs, inputs, given, allow_unused=True, materialize_grads=True)
    (dx,), dstates, dweights, dreset_states, dextras = split(grads, call.sizes())
    return (
        dx.contiguous() if needs[0] else dx.new_empty(0),
        dstates if needs[1] else [],
        dweights if needs[2] else [],
        dreset_states if needs[1] else [],
        dextras if needs[3] else [],
    )


def pullback(call, dy, dlast, dcells):
    """Gradients of x, *states, *weights, *reset_states, *extras, as differentiable functions of all that is given."""
    tensors, n = call.flat(), sum(call.sizes())

    def run(*flat):
        again = LayerCall.from_flat(call.settings(), call.sizes(), [*flat, *tensors[n:]])
        y, last, saved = layer(*again, dcells is not None)
        return (y, *(last if dlast else ()), *(saved[-1:] if dcells is not None else ()))

    _, pull = torch.func.vjp(run, *tensors[:n])
    return pull((dy, *dlast, *(() if dcells is None else (dcells,))))
