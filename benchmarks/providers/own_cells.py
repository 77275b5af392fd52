"""Cells of one's own as layers, beside them our built-in layers and the public implementations of the cells.

T time, B batch, I input, G gates, H hidden. Imported when the first of them is built: it defines cells.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import cell_peers
import torch
from torch import Tensor, nn

import rnnkernels
from benchmarks.providers.case import Case, Job, Unsupported
from benchmarks.workloads import Workload


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


MODULES = ("LiGRU",)


def layer_of(w: Workload) -> nn.Module:
    """A module of ours by its name, or a layer of a cell: one of these, or of rnnkernels.cells."""
    if w.cell in MODULES:
        return getattr(rnnkernels, w.cell)(w.I, w.H, w.L, bidirectional=w.bidirectional)
    return rnnkernels.Recurrent(globals().get(w.cell) or getattr(rnnkernels.cells, w.cell), w.I, w.H)


def built_in(case: Case) -> Job:
    """Our layer of the same cell that is not of one's own."""
    w = case.workload
    if not w.own:
        raise Unsupported("this is our built-in layer")
    plain = getattr(rnnkernels, w.cell.removeprefix("own_").upper())(w.I, w.H)
    plain.load_state_dict(case.module.state_dict())
    return case.job(plain.to(case.x.dtype).train(case.train))


def public(case: Case) -> Job:
    """The public implementation, whose weights become the case's."""
    if case.workload.cell not in PUBLIC:
        raise Unsupported("no public implementation here")
    package, make = PUBLIC[case.workload.cell]
    try:
        library = importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise Unsupported(f"{package}: {error}") from None
    module, call = make(library, case)
    return case.job(module.to(case.x.dtype), lambda x: (call(x),))


def peer_of(make: Callable[..., cell_peers.Peer], start: Callable[[Tensor], tuple]) -> Callable:
    """What makes a peer. ``start``: its states, of zeros."""

    def made(library: Any, case: Case) -> tuple[nn.Module, Callable]:
        w = case.workload
        module, run, weights = make(library, w.I, w.H)
        case.module.load_state_dict({f"{name}_l0": weight.detach() for name, weight in weights().items()})
        states = start(torch.zeros(w.B, w.H, dtype=case.x.dtype))
        return module, lambda x: run(x, *states, **case.inputs)

    return made


def rleaky(library: Any, I: int, H: int) -> cell_peers.Peer:  # noqa: E741
    return cell_peers.snntorch_rleaky(library, I, H, 0.9, library.surrogate.atan())


def speechbrain(library: Any, case: Case) -> tuple[nn.Module, Callable]:
    """Both directions share the weights of a layer; rows have n before z."""
    w, layer = case.workload, case.module
    peer = library.LiGRU(w.H, torch.empty(w.B, w.T, w.I).shape, num_layers=w.L, bidirectional=w.bidirectional)
    with torch.no_grad():
        for n, theirs in enumerate(peer.rnn):
            for d in range(n * w.D, (n + 1) * w.D):
                layer.products[d].weight.copy_(cell_peers.swapped(theirs.w.weight, 1, 0))
                layer.layers[d].weight_hh_l0.copy_(cell_peers.swapped(theirs.u.weight, 1, 0))
    return peer.train(case.train), lambda x: peer(x.transpose(0, 1))[0].transpose(0, 1)


PUBLIC: dict[str, tuple[str, Callable]] = {
    "LiGRU": ("speechbrain.nnet.RNN", speechbrain),
    "ea_lstm": (
        "neuralhydrology.modelzoo.ealstm", peer_of(cell_peers.neuralhydrology_ealstm, lambda zero: ((zero, zero),))
    ),
    "cfc": ("ncps.torch", peer_of(cell_peers.ncps_cfc, lambda zero: (zero,))),
    "lif": ("snntorch", peer_of(rleaky, lambda zero: (zero, zero))),
}  # fmt: skip
