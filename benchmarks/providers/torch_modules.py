"""Providers from torch: torch.nn, with int8 weights torch.ao's, and torch.nn under torch.compile."""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import nn

from benchmarks.providers.case import Case, Job, Unsupported, module_job, provider

DEVICES = ("cpu", "cuda")
# torch.compile unrolls a recurrent layer, about a second of compilation for each step of each layer and direction.
LONGEST_COMPILED = 4


def torch_int8(case: Case) -> Job:
    """torch.ao's dynamic quantisation, with its default engine and per-tensor weights."""
    case.refuse_extras("torch.ao's layer")
    if case.workload.cell == "rnn":
        raise Unsupported("torch.ao has no quantised RNN")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated; torchao, its successor, has no recurrent layers
        box = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(case.module_of(nn)), {nn.LSTM, nn.GRU}, dtype=torch.qint8
        )
    return case.job(box[0])


@provider("torch", package="torch", devices=DEVICES, int8=torch_int8)
def torch_nn(case: Case) -> Job:
    return module_job(nn, case)


@provider("torch_compile", package="torch", devices=DEVICES)
def torch_compile(case: Case) -> Job:
    """torch.compile of torch.nn's module, told to enter recurrent layers: left alone it gives them back to torch. Of a
    cell of one's own, of its loop."""
    w = case.workload
    torch._inductor.config.compile_threads = 1  # in this process: no pool of others that outlives it
    if w.own:
        from benchmarks.providers.loops import loop_job

        return loop_job(case, partial(torch.compile, fullgraph=True), 1)
    case.refuse_extras("the compiled module")
    if w.T * w.L * w.D > LONGEST_COMPILED:
        raise Unsupported(
            f"torch.compile leaves nn.{w.cell.upper()} to torch; with dynamo's allow_rnn it unrolls every step, "
            f"which is compiled here up to {LONGEST_COMPILED} steps"
        )
    module = case.module_of(nn)
    torch._dynamo.config.allow_rnn = True
    with torch.inference_mode(not case.train):
        return case.job(module, torch.compile(module, fullgraph=True)).warmed()
