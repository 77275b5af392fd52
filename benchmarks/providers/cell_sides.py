"""Who computes a cell of one's own: a `CellCase` (layer and inputs), and the sides, each of which makes a `Job`.

A job gives y (T, B, H), in training dx too, of the sum of y. T time, B batch, I input, G gates, H hidden.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import rnnkernels
from benchmarks.providers.case import SEED, Job, Unsupported, torch_job
from benchmarks.providers.cell_loop import loop_of
from benchmarks.providers.jax_scan import jax_cell
from benchmarks.providers.torch_script import WARMING


@rnnkernels.cell(inputs="i f g o", recurrent="i f g o", states="h c")
def own_lstm(x, r, s):
    """An LSTM as a user writes it."""
    forget, enter, leave = torch.sigmoid(x.f + r.f), torch.sigmoid(x.i + r.i), torch.sigmoid(x.o + r.o)
    c = forget * s.c + enter * torch.tanh(x.g + r.g)
    return leave * torch.tanh(c), c


@rnnkernels.cell(inputs="z n", project_input=False)
def min_gru_given(x, s):
    return s.h + torch.sigmoid(x.z) * (x.n - s.h)


@rnnkernels.cell(inputs="h", vectors="u", project_input=False)
def ind_rnn_given(x, s, v):
    return torch.relu(x.h + v.u * s.h)


@rnnkernels.cell(inputs="n f r k", states="h c", vectors="v_f v_r", project_input=False)
def sru_given(x, s, v):
    f, r = torch.sigmoid(x.f + v.v_f * s.c), torch.sigmoid(x.r + v.v_r * s.c)
    c = x.n + f * (s.c - x.n)
    return x.k + r * (c - x.k), c


OWN = {cell.program.name: cell for cell in (own_lstm, min_gru_given, ind_rnn_given, sru_given)}
BUILT_IN = {"lstm": "LSTM", "own_lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
MODULES = ("LiGRU",)


class CellCase:
    """Our layer of a row, its inputs (the cell's own ones are from 0 to 1), and what has a gradient in training."""

    def __init__(self, row: Any, mode: str) -> None:
        torch.manual_seed(SEED)
        self.row, self.mode, name = row, mode, row.cell
        if name in MODULES:
            self.layer = getattr(rnnkernels, name)(row.I, row.H, row.L, bidirectional=row.D == 2)
            self.inputs: dict[str, Tensor] = {}
        else:
            cell = OWN.get(name) or getattr(rnnkernels.cells, name)
            self.layer = rnnkernels.Recurrent(cell, row.I, row.H)
            widths = {n: 1 if n in cell.program.narrow else row.H for n in cell.program.step}
            self.inputs = {n: torch.rand(row.T, row.B, width) for n, width in widths.items()}
            self.inputs |= {n: torch.rand(row.B, row.H) for n in cell.program.sequence}
        self.x = torch.randn(row.T, row.B, row.I)
        self.leaves = [self.x, *self.inputs.values(), *self.layer.parameters()]
        for t in self.leaves:
            t.requires_grad_(mode == "train")

    @property
    def spikes(self) -> bool:
        """Whether rounding can change an output altogether."""
        return self.row.cell == "lif"

    def job(self, call: Callable[[], Tensor], leaves: list[Tensor] | None = None) -> Job:
        """A job of what computes y. ``leaves``: x, and what else has a gradient where the parameters are others."""
        x, *rest = self.leaves if leaves is None else leaves
        job = torch_job(call, self.mode, {"x": x, **{str(n): leaf for n, leaf in enumerate(rest)}}, None)
        return Job(job.run, lambda out: {n: t for n, t in job.read(out).items() if n in ("y", "dx")})


def loop(case: CellCase, changed: Callable = lambda f: f, warming: int = 0) -> Job:
    """A loop over steps in plain torch; ``changed`` compiles it."""
    function, arguments = loop_of(case.layer, case.x, case.inputs)
    function = changed(function)
    job = case.job(lambda: function(*arguments))
    for _ in range(warming):
        job.run()
    return job


def compiled(case: CellCase) -> Job:
    torch._inductor.config.compile_threads = 1  # in this process: no pool of others that outlives it
    return loop(case, lambda f: torch.compile(f, fullgraph=True), 1)


def built_in(case: CellCase) -> Job:
    plain = getattr(rnnkernels, BUILT_IN[case.row.cell])(case.row.I, case.row.H)
    plain.load_state_dict(case.layer.state_dict())
    return case.job(lambda: plain(case.x)[0], [case.x, *plain.parameters()])


def public(case: CellCase) -> Job:
    """The public implementation, with the same weights."""
    package, make = PUBLIC[case.row.cell]
    try:
        library = importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise Unsupported(f"{package}: {error}") from None
    call, parameters = make(library, case)
    return case.job(call, [case.x, *parameters])


def swapped(weight: Tensor, *order: int) -> Tensor:
    """Blocks of rows in another order."""
    blocks = weight.detach().chunk(len(order))
    return torch.cat([blocks[k] for k in order])


def speechbrain(library: Any, case: CellCase) -> tuple[Callable, list[Tensor]]:
    """Both directions share the weights of a layer; rows have n before z."""
    row, layer = case.row, case.layer
    x_BTI = torch.empty(row.B, row.T, row.I)
    peer = library.LiGRU(row.H, x_BTI.shape, num_layers=row.L, bidirectional=row.D == 2)
    with torch.no_grad():
        for n, theirs in enumerate(peer.rnn):
            for d in range(n * row.D, (n + 1) * row.D):
                layer.products[d].weight.copy_(swapped(theirs.w.weight, 1, 0))
                layer.layers[d].weight_hh_l0.copy_(swapped(theirs.u.weight, 1, 0))
    peer.train(case.mode == "train")
    layer.train(case.mode == "train")
    return lambda: peer(case.x.transpose(0, 1))[0].transpose(0, 1), [p for p in peer.parameters() if p.requires_grad]


def neuralhydrology(library: Any, case: CellCase) -> tuple[Callable, list[Tensor]]:
    row, own = case.row, dict(case.layer.named_parameters())
    gates = library._DynamicGates(SimpleNamespace(hidden_size=row.H, initial_forget_bias=3), row.I)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh"):
            getattr(gates, name).copy_(swapped(own[f"{name}_l0"], 0, 2, 1).mT)
        gates.bias.copy_(swapped(own["bias_ih_l0"] + own["bias_hh_l0"], 0, 2, 1))
    step, zero = SimpleNamespace(dynamic_gates=gates), torch.zeros(row.B, row.H)

    def call() -> Tensor:
        state, ys = (zero, zero), []
        for x in case.x.unbind():
            state = library.EALSTM._cell(step, x, case.inputs["i"], state)
            ys.append(state[0])
        return torch.stack(ys)

    return call, [case.inputs["i"], *gates.parameters()]


def ncps(library: Any, case: CellCase) -> tuple[Callable, list[Tensor]]:
    row, own = case.row, dict(case.layer.named_parameters())
    cell = library.CfCCell(row.I, row.H, backbone_layers=0)
    weight = torch.cat([own["weight_ih_l0"], own["weight_hh_l0"]], 1).detach().chunk(4)
    bias = (own["bias_ih_l0"] + own["bias_hh_l0"]).detach().chunk(4)
    parts = [cell.ff1, cell.ff2, cell.time_a, cell.time_b]
    for part, w, b in zip(parts, weight, bias, strict=True):
        part.weight.data, part.bias.data = w.clone(), b.clone()
    zero = torch.zeros(row.B, row.H)

    def call() -> Tensor:
        h, ys = zero, []
        for x, ts in zip(case.x.unbind(), case.inputs["ts"].unbind(), strict=True):
            h, _ = cell(x, h, ts)
            ys.append(h)
        return torch.stack(ys)

    return call, [case.inputs["ts"], *(p for part in parts for p in part.parameters())]


def snntorch(library: Any, case: CellCase) -> tuple[Callable, list[Tensor]]:
    row, own = case.row, dict(case.layer.named_parameters())
    atan = library.surrogate.atan()
    cell = library.RLeaky(beta=0.9, linear_features=row.H, spike_grad=atan)
    mix = nn.Linear(row.I, row.H)
    with torch.no_grad():
        for layer, side in ((mix, "ih"), (cell.recurrent, "hh")):
            layer.weight.copy_(own[f"weight_{side}_l0"]), layer.bias.copy_(own[f"bias_{side}_l0"])
    zero = torch.zeros(row.B, row.H)

    def call() -> Tensor:
        spike, mem, ys = zero, zero, []
        for x in mix(case.x).unbind():
            spike, mem = cell(x, spike, mem)
            ys.append(spike)
        return torch.stack(ys)

    return call, [*mix.parameters(), *cell.recurrent.parameters()]


PUBLIC: dict[str, tuple[str, Callable]] = {
    "LiGRU": ("speechbrain.nnet.RNN", speechbrain), "ea_lstm": ("neuralhydrology.modelzoo.ealstm", neuralhydrology),
    "cfc": ("ncps.torch", ncps), "lif": ("snntorch", snntorch),
}  # fmt: skip
SIDES: dict[str, Callable[[CellCase], Job]] = {
    "rnnkernels": lambda case: case.job(lambda: case.layer(case.x, **case.inputs)[0]), "loop": loop,
    "torch.jit": lambda case: loop(case, torch.jit.script, WARMING), "torch.compile": compiled,
    "jax": lambda case: jax_cell(case.layer, case.x, case.inputs, case.mode), "built in": built_in, "public": public,
}  # fmt: skip


def sides_of(cell: str, compiled: list[str]) -> list[str]:
    """Those that there are for a cell; of torch.compile, those that were asked for."""
    loops = [] if cell in MODULES else ["loop", "torch.jit", *["torch.compile"] * (cell in compiled), "jax"]
    return ["rnnkernels", *loops, *["built in"] * (cell in BUILT_IN), *["public"] * (cell in PUBLIC)]
