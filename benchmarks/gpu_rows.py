"""Rows of the GPU benchmark: a workload in one dtype and mode by every provider, in this one process.

Processes of their own, as on the CPU, would spend the time on starting: here nothing spins between calls, torch counts
memory by itself, and CUDA events time the GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

import torch

from benchmarks import model
from benchmarks.chips import Gpu
from benchmarks.measure import Subject, Timer, alternate, truth_of
from benchmarks.providers import PROVIDERS, Case
from benchmarks.providers.case import TORCH_DTYPES, build
from benchmarks.rows import derive, head, summed_up
from benchmarks.workloads import Workload

MODES = ("train", "infer")
DTYPES = ("bfloat16", "float32", "float16")


def ordered(workloads: list[Workload], dtypes: Iterable[str], modes: Iterable[str]) -> list[tuple[Workload, str, str]]:
    """The rows in the order in which they are measured: what stops early has something of every workload.

    Single steps come last: torch.compile has a part there, and takes long to compile.
    """
    rows = [(w, dtype, mode) for dtype in dtypes for mode in modes for w in workloads]
    return sorted(rows, key=lambda row: row[0].T == 1)


def arithmetic_of(dtype: str) -> str:
    """What the model calls a dtype, by torch's switch for RNNs."""
    if dtype != "float32":
        return {"bfloat16": "bf16", "float16": "fp16"}[dtype]
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"


def schedule_of(w: Workload, dtype: str, mode: str) -> str:
    """The backend and schedule that `explain` names for the first layer."""
    import rnnkernels
    from rnnkernels.explain import describe

    library = build(rnnkernels, w)
    module = library[0] if isinstance(library, torch.nn.ModuleList) else library
    module = module.to(w.device, TORCH_DTYPES[dtype])
    x = torch.empty(w.T, w.B, module.input_size, device=w.device, dtype=TORCH_DTYPES[dtype])
    with torch.set_grad_enabled(mode == "train"):
        call = rnnkernels.explain(module, x).layers[0].call
        stages = {name for name, used in (("lengths", w.packed), ("reset", w.resets > 0)) if used}
        layer = describe(0, call._replace(D=call.D * w.heads, stages=call.stages | stages))
    return f"{layer.backend}: {layer.schedule}"


def measured(
    w: Workload, dtype: str, mode: str, providers: list[str], gpu: Gpu | None, seconds: float, rounds: int,
    timer: Timer | None = None, say: Callable[[str], None] = lambda name: None,
) -> dict:  # fmt: skip
    """The row. ``gpu``: the figures for bound and prediction, if there are any; ``say`` is told each provider."""
    case = Case(w, dtype, mode)
    truth = truth_of(case)
    subjects = {
        name: Subject(PROVIDERS[name], w, dtype, mode, torch.get_num_threads(), timer, case) for name in providers
    }
    facts = {}
    for name, subject in subjects.items():
        say(name)
        facts[name] = subject.admit(truth, with_memory=True)
    del truth
    samples = alternate({name: s.time for name, s in subjects.items() if s.job is not None}, seconds, rounds)
    for name, values in samples.items():
        facts[name] |= summed_up(values)
        facts[name]["us_per_step"] = 1e6 * facts[name]["seconds"] / (w.T * w.L)
    row = {**head(w, dtype, mode, 1), "bound": {"reason": "no figures of this chip"}, "providers": facts}
    row["schedule"] = schedule_of(w, dtype, mode)
    if gpu is not None:
        arithmetic = arithmetic_of(dtype)
        row["bound"] = model.bound(gpu, w, arithmetic, mode)
        row["model"] = model.predict(gpu, w, arithmetic, mode)
    return derive(row)


def forget() -> None:
    """Give back what the last row held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
