"""Rows of the GPU benchmark: a workload in one dtype and mode by every provider, all in one process.

A process for each, as on the CPU, would spend the time on starting: here nothing spins between calls, torch counts
memory by itself, and CUDA events time the GPU. That one process is not ours: a kernel that hangs, or breaks the GPU's
context, costs its row and another start.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable

import torch

from benchmarks import gpu_experiments, machine, model
from benchmarks.chips import Gpu
from benchmarks.measure import Subject, Timer, alternate, truth_of
from benchmarks.providers import PROVIDERS, Case
from benchmarks.providers.ours import schedule_of
from benchmarks.rows import derive, head, summed_up
from benchmarks.worker import Worker, said
from benchmarks.workloads import Workload

MODES = ("train", "infer")
DTYPES = ("bfloat16", "float32", "float16")
# The rows that are wanted most: by our own and torch's layers only, in two dtypes.
FIRST = ("flashrnn", "rl-bench", "legged", "unmix", "rnnt-decode")
FIRST_DTYPES, FIRST_PROVIDERS = ("bfloat16", "float32"), ("rnnkernels", "torch")


def ordered(workloads: list[Workload], dtypes: Iterable[str], modes: Iterable[str]) -> list[tuple[Workload, str, str]]:
    """The rows in the order in which they are measured: what stops early has something of every workload.

    Single steps come last: torch.compile has a part there, and takes long to compile.
    """
    rows = [(w, dtype, mode) for dtype in dtypes for mode in modes for w in workloads]
    return sorted(rows, key=lambda row: row[0].T == 1)


def first(rows: list[tuple[Workload, str, str]]) -> list[tuple[Workload, str, str]]:
    """Those of the rows that are wanted most, by workload in the order of FIRST."""
    wanted = [row for row in rows if row[0].family in FIRST and row[1] in FIRST_DTYPES]
    return sorted(wanted, key=lambda row: FIRST.index(row[0].family))


def arithmetic_of(dtype: str) -> str:
    """What the model calls a dtype, by torch's switch for RNNs."""
    if dtype != "float32":
        return {"bfloat16": "bf16", "float16": "fp16"}[dtype]
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"


def measured(
    w: Workload, dtype: str, mode: str, providers: list[str], gpu: Gpu | None, seconds: float, rounds: int,
    timer: Timer | None = None,
) -> dict:  # fmt: skip
    """The row. ``gpu``: the figures for bound and prediction, if there are any."""
    case = Case(w, dtype, mode)
    truth = truth_of(case)
    subjects = {
        name: Subject(PROVIDERS[name], w, dtype, mode, torch.get_num_threads(), timer, case) for name in providers
    }
    facts = {name: subject.admit(truth, with_memory=True) for name, subject in subjects.items()}
    del truth
    samples = alternate({name: s.time for name, s in subjects.items() if s.job is not None}, seconds, rounds)
    for name, values in samples.items():
        facts[name] |= summed_up(values)
        facts[name]["us_per_step"] = 1e6 * facts[name]["seconds"] / (w.T * w.L)
    row = {**head(w, dtype, mode, 1), "bound": {"reason": "no figures of this chip"}, "providers": facts}
    try:
        row["schedule"] = schedule_of(case)
    except (RuntimeError, TypeError, ValueError) as error:  # what was measured is worth more than this
        row["schedule"] = f"explain: {said(error)}"
    if gpu is not None:
        arithmetic = arithmetic_of(dtype)
        row["bound"] = model.bound(gpu, w, arithmetic, mode)
        row["model"] = model.predict(gpu, w, arithmetic, mode)
    return derive(row)


class Measuring:
    """Measures what it is asked for; lives in a process of its own (`Apart`), or in this one (`Here`)."""

    def __init__(self, device: str, gpu: Gpu | None, seconds: float, rounds: int, timer: Timer):
        self.device, self.timer = device, timer
        self.how = (gpu, seconds, rounds, timer)

    def row(self, w: Workload, dtype: str, mode: str, providers: list[str]) -> dict:
        try:
            return measured(w, dtype, mode, providers, *self.how)
        finally:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def experiment(self, purpose: str, schedule: str, size: gpu_experiments.Size) -> dict:
        return gpu_experiments.measured(purpose, schedule, size, self.device, self.timer)


class Here:
    """An object asked in this process. Raises RuntimeError with what was raised, as a worker does."""

    def __init__(self, make, *arguments) -> None:
        self.target = make(*arguments)

    def ask(self, limit: float, method: str, *given):
        try:
            return getattr(self.target, method)(*given)
        except Exception as error:
            raise RuntimeError(said(error)) from error

    def close(self) -> None:
        """Nothing is to be ended here."""


class Apart:
    """An object asked in a process of its own, which is started again when it was lost or its GPU context may be
    broken."""

    def __init__(self, make, *arguments) -> None:
        self.make, self.arguments, self.worker = make, arguments, None

    def ask(self, limit: float, method: str, *given):
        if self.worker is None:
            self.worker = Worker(machine.cores(os.cpu_count() or 1), self.make, *self.arguments)
        self.worker.limit = limit
        try:
            answer = self.worker.ask(method, *given)
        except RuntimeError:
            self.close()
            raise
        if broken(answer):
            self.close()
        return answer

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def broken(answer: dict) -> bool:
    """Whether a provider, or an experiment, met an error after which a process can use the GPU no more."""
    parts = [answer, *answer.get("providers", {}).values()]
    return any("CUDA error" in part.get("reason", "") or "AcceleratorError" in part.get("reason", "") for part in parts)
