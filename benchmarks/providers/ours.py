"""Our own providers: the modules of rnnkernels, and for single steps its Stepper, which packs the weights once."""

from __future__ import annotations

import importlib

import torch

from benchmarks.providers.case import (
    TORCH_DTYPES,
    Case,
    Job,
    Unsupported,
    int8,
    job_of,
    module_job,
    module_of,
    provider,
)


@provider("rnnkernels", package="rnnkernels", devices=("cpu", "cuda"))
def ours(case: Case) -> Job:
    return module_job(importlib.import_module("rnnkernels"), case)


@int8("rnnkernels")
def ours_int8(case: Case) -> Job:
    library = importlib.import_module("rnnkernels")
    if not hasattr(library, "quantize_dynamic"):
        raise Unsupported(f"rnnkernels {library.__version__} has no quantize_dynamic")
    try:
        module = library.quantize_dynamic(module_of(library, case))
    except NotImplementedError as error:
        raise Unsupported(str(error)) from None
    return job_of(module, case)


@provider("stepper", package="rnnkernels")
def stepper(case: Case) -> Job:
    """One `step_` into a tensor that is there; the state goes on from call to call, as it does in a stream."""
    w = case.workload
    if w.T != 1 or case.mode != "infer":
        raise Unsupported("for inference of single steps (T = 1)")
    library = importlib.import_module("rnnkernels")
    if not hasattr(library, "Stepper"):
        raise Unsupported(f"rnnkernels {library.__version__} has no Stepper")
    if w.bidirectional or w.alternating:
        raise Unsupported("a stream has no future to walk back from")
    step_ = library.Stepper(module_of(library, case), w.B).step_
    x, y = case.x[0], torch.empty(w.B, w.H, dtype=TORCH_DTYPES[case.dtype])

    def run() -> torch.Tensor:
        step_(x, y)
        return y

    return Job(run, lambda out: {"y": out.clone()[None]})
