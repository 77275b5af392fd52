"""Cells of other projects as functions: each makes their module, and gives it with what computes y (T, B, H), and what
gives our layer's weights, of which theirs are part. Used by tests and by `benchmarks.cells`.

T time, B batch, I input, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Peer(NamedTuple):
    module: nn.Module
    run: Callable[..., Tensor]
    weights: Callable[[], dict[str, Tensor]]


def swapped(weight: Tensor, *order: int) -> Tensor:
    """Blocks of rows in another order."""
    blocks = weight.chunk(len(order))
    return torch.cat([blocks[k] for k in order])


def ncps_cfc(library: Any, I: int, H: int) -> Peer:  # noqa: E741
    module = library.CfCCell(I, H, backbone_layers=0)

    def run(x: Tensor, h: Tensor, ts: Tensor) -> Tensor:
        ys = []
        for x_t, t in zip(x.unbind(), ts.unbind(), strict=True):
            h, _ = module(x_t, h, t)
            ys.append(h)
        return torch.stack(ys)

    def weights() -> dict[str, Tensor]:
        parts = [module.ff1, module.ff2, module.time_a, module.time_b]
        weight, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        return dict(weight_ih=weight[:, :I], weight_hh=weight[:, I:], bias_ih=bias, bias_hh=torch.zeros_like(bias))

    return Peer(module, run, weights)


def neuralhydrology_ealstm(library: Any, I: int, H: int) -> Peer:  # noqa: E741
    module = library._DynamicGates(SimpleNamespace(hidden_size=H, initial_forget_bias=3), I)
    step = SimpleNamespace(dynamic_gates=module)

    def run(x: Tensor, state: tuple[Tensor, Tensor], i: Tensor) -> Tensor:
        ys = []
        for x_t in x.unbind():
            state = library.EALSTM._cell(step, x_t, i, state)
            ys.append(state[0])
        return torch.stack(ys)

    def weights() -> dict[str, Tensor]:
        f_g_o = {n: swapped(getattr(module, n).mT, 0, 2, 1) for n in ("weight_ih", "weight_hh")}
        bias = swapped(module.bias, 0, 2, 1)
        return dict(**f_g_o, bias_ih=bias, bias_hh=torch.zeros_like(bias))

    return Peer(module, run, weights)


class Mixed(nn.Module):
    """Their layer takes what a linear one gives."""

    def __init__(self, mix: nn.Module, cell: nn.Module) -> None:
        super().__init__()
        self.mix, self.cell = mix, cell


def snntorch_rleaky(library: Any, I: int, H: int, beta: float, spike: Callable) -> Peer:  # noqa: E741
    module = Mixed(nn.Linear(I, H), library.RLeaky(beta=beta, linear_features=H, spike_grad=spike))

    def run(x: Tensor, spike: Tensor, mem: Tensor) -> Tensor:
        ys = []
        for mixed in module.mix(x).unbind():
            spike, mem = module.cell(mixed, spike, mem)
            ys.append(spike)
        return torch.stack(ys)

    def weights() -> dict[str, Tensor]:
        mix, own = module.mix, module.cell.recurrent
        return dict(weight_ih=mix.weight, bias_ih=mix.bias, weight_hh=own.weight, bias_hh=own.bias)

    return Peer(module, run, weights)
