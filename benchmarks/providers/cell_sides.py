"""Who computes a cell of one's own: a `CellCase` (layer and inputs), and the sides, each of which makes a `Job`.

A job gives y (T, B, H), in training dx too, of the sum of y. T time, B batch, I input, G gates, H hidden.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import cell_peers
import torch
from torch import Tensor

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
    """The public implementation, whose weights are ours too."""
    package, make = PUBLIC[case.row.cell]
    try:
        library = importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise Unsupported(f"{package}: {error}") from None
    call, parameters = make(library, case)
    return case.job(call, [case.x, *case.inputs.values(), *parameters])


def peer_of(make: Callable[..., cell_peers.Peer], start: Callable[[Tensor], tuple]) -> Callable:
    """The side of a peer, with its own weights. ``start``: its states, of zeros."""

    def side(library: Any, case: CellCase) -> tuple[Callable, Iterator[Tensor]]:
        row = case.row
        module, run, weights = make(library, row.I, row.H)
        case.layer.load_state_dict({f"{name}_l0": weight.detach() for name, weight in weights().items()})
        states = start(torch.zeros(row.B, row.H))
        return lambda: run(case.x, *states, **case.inputs), module.parameters()

    return side


def rleaky(library: Any, I: int, H: int) -> cell_peers.Peer:  # noqa: E741
    return cell_peers.snntorch_rleaky(library, I, H, 0.9, library.surrogate.atan())


def speechbrain(library: Any, case: CellCase) -> tuple[Callable, list[Tensor]]:
    """Both directions share the weights of a layer; rows have n before z."""
    row, layer = case.row, case.layer
    x_BTI = torch.empty(row.B, row.T, row.I)
    peer = library.LiGRU(row.H, x_BTI.shape, num_layers=row.L, bidirectional=row.D == 2)
    with torch.no_grad():
        for n, theirs in enumerate(peer.rnn):
            for d in range(n * row.D, (n + 1) * row.D):
                layer.products[d].weight.copy_(cell_peers.swapped(theirs.w.weight, 1, 0))
                layer.layers[d].weight_hh_l0.copy_(cell_peers.swapped(theirs.u.weight, 1, 0))
    peer.train(case.mode == "train")
    layer.train(case.mode == "train")
    return lambda: peer(case.x.transpose(0, 1))[0].transpose(0, 1), [p for p in peer.parameters() if p.requires_grad]


PUBLIC: dict[str, tuple[str, Callable]] = {
    "LiGRU": ("speechbrain.nnet.RNN", speechbrain),
    "ea_lstm": (
        "neuralhydrology.modelzoo.ealstm", peer_of(cell_peers.neuralhydrology_ealstm, lambda zero: ((zero, zero),))
    ),
    "cfc": ("ncps.torch", peer_of(cell_peers.ncps_cfc, lambda zero: (zero,))),
    "lif": ("snntorch", peer_of(rleaky, lambda zero: (zero, zero))),
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
