"""The provider that torch.nn leaves to its users: a loop over the steps of one layer, scripted by torch.jit.

It has every stage that rnnkernels has arguments for, and does outside the loop what can be done there: the input's
product, and the biases that are added to nothing else. T time, B batch, I input, G gates, H hidden.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.providers.case import (
    Case,
    Job,
    Unsupported,
    job_of,
    masks,
    module_of,
    provider,
    refuse_stacks,
)

WARMING = 3  # calls in which the profiling executor looks at the loop and compiles it


def product(v: Tensor, w: Tensor, gain: Tensor | None) -> Tensor:
    """v W^T, normalised where there is a gain."""
    r = F.linear(v, w)
    return r if gain is None else F.layer_norm(r, [r.size(-1)], gain, None, 1e-5)


def added(x: Tensor, v: Tensor, w: Tensor, gain: Tensor | None) -> Tensor:
    """x plus that product."""
    return torch.addmm(x, v, w.t()) if gain is None else x + product(v, w, gain)


def loop(
    cell: str,
    x_TBG: Tensor,
    w: Tensor,
    b: Tensor,
    gain: Tensor | None,
    norm_c: list[Tensor],
    keep: Tensor | None,
    alive: Tensor | None,
    h_mask: Tensor | None,
    zone: list[Tensor],
) -> Tensor:
    """y_TBH from the input's product with the biases; ``b`` is that of the GRU's n, which belongs into the loop.

    ``keep`` (T, B, 1) is zero where the state restarts, ``alive`` (T, B, 1) tells the steps before a row's end,
    ``zone`` (T, B, H) what stays of each state, ``gain`` and ``norm_c`` (weight, bias) are those of layer norms.
    """
    H = w.size(1)
    h = torch.zeros([x_TBG.size(1), H], dtype=x_TBG.dtype, device=x_TBG.device)
    c = h
    ys: list[Tensor] = []
    steps = x_TBG.unbind(0)  # indexing would give each step a gradient of the size of the whole
    for t in range(len(steps)):
        x, h_before, c_before = steps[t], h, c
        if keep is not None:
            h, c = h * keep[t], c * keep[t]
        h_old, c_old = h, c
        v = h if h_mask is None else h * h_mask
        if cell == "rnn":
            h = torch.tanh(added(x, v, w, gain))
        elif cell == "lstm":
            i, f, g, o = added(x, v, w, gain).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            inner = F.layer_norm(c, [H], norm_c[0], norm_c[1], 1e-5) if len(norm_c) > 0 else c
            h = torch.sigmoid(o) * torch.tanh(inner)
        elif cell == "gru":
            q_r, q_z, q_n = product(v, w, gain).chunk(3, 1)
            x_r, x_z, x_n = x.chunk(3, 1)
            n = torch.tanh(torch.addcmul(x_n, torch.sigmoid(x_r + q_r), q_n + b))
            h = torch.lerp(n, h, torch.sigmoid(x_z + q_z))
        else:  # the GRU that resets before its second product
            first, second = w[: 2 * H], w[2 * H :]
            gains = (None, None) if gain is None else (gain[: 2 * H], gain[2 * H :])
            r, z = torch.sigmoid(added(x[:, : 2 * H], v, first, gains[0])).chunk(2, 1)
            n = torch.tanh(added(x[:, 2 * H :], r * v, second, gains[1]))
            h = torch.lerp(n, h, z)
        if len(zone) > 0:
            h = torch.lerp(h, h_old, zone[0][t])
        if len(zone) > 1:
            c = torch.lerp(c, c_old, zone[1][t])
        if alive is not None:
            ys.append(h * alive[t])
            h, c = torch.where(alive[t], h, h_before), torch.where(alive[t], c, c_before)
        else:
            ys.append(h)
    return torch.stack(ys)


@cache
def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated; what shall replace it unrolls every step
        return torch.jit.script(loop)


def loop_of(module: nn.Module, case: Case) -> Callable[[Tensor], tuple[Tensor, None]]:
    """The loop with a module's weights; called as the module is."""
    w, p, function = case.workload, dict(module.named_parameters()), scripted()
    cell = "gru_reset_before" if not getattr(module, "reset_after", True) else w.cell
    weight, gain = p["weight_hh_l0"], p.get("ln_h_gain_l0")
    norm_c = [p[name] for name in ("ln_c_gain_l0", "ln_c_bias_l0") if name in p]
    alive = None if case.lengths is None else torch.arange(w.T)[:, None, None] < case.lengths[:, None]
    ones = None if case.reset is None else ~case.reset[..., None]

    def inputs(x: Tensor) -> tuple[Tensor, Tensor]:
        """The input's product with all biases but the GRU's of n, and that one."""
        b = p["bias_hh_l0"]
        rest = b.new_zeros(0)
        if cell == "gru":
            before, rest = b.tensor_split([2 * w.H])
            b = F.pad(before, (0, len(rest)))
        if "ln_x_gain_l0" not in p:
            return F.linear(x, p["weight_ih_l0"], p["bias_ih_l0"] + b), rest
        return product(x, p["weight_ih_l0"], p["ln_x_gain_l0"]) + (p["bias_ih_l0"] + b), rest

    def call(x: Tensor) -> tuple[Tensor, None]:
        h_mask, zone = masks(w, case.mode == "train", x)
        h_mask = None if h_mask is None else h_mask[0]
        zone = [z[:, 0].expand(w.T, -1, -1) for z in zone]
        keep = None if ones is None else ones.to(x.dtype)
        x, b = inputs(x)
        return function(cell, x, weight, b, gain, norm_c, keep, alive, h_mask, zone), None

    return call


@provider("torch_script", package="torch", default=False)
def torch_script(case: Case) -> Job:
    w = case.workload
    refuse_stacks("the scripted loop", w)
    if set(dict(w.options)) == {"recurrent_dropout"} and case.mode == "infer":
        raise Unsupported("recurrent dropout does nothing in inference: torch.nn's plain layer does the same")
    if set(dict(w.options)) == {"recompute"}:
        raise Unsupported("recompute changes no number: torch.nn's plain layer does the same")
    library = torch.nn
    if w.options:
        import rnnkernels as library
    module = module_of(library, case)
    job = job_of(module, case, call=loop_of(module, case))
    with torch.inference_mode(case.mode == "infer"):
        for _ in range(WARMING):
            job.run()
    return job
