"""What `benchmarks.gpu` measures, one task at a time: a case, a row or an experiment.

A process for each provider, as on the CPU, would spend the time on starting: here nothing spins between calls, torch
counts memory by itself, and CUDA events time the GPU. That one process is not ours: a kernel that hangs, or breaks the
GPU's context, costs its task and another start.
"""

from __future__ import annotations

import gc
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import gpu_cases
import gpu_tests
import torch

from benchmarks import machine, rows
from benchmarks.gpu import experiments
from benchmarks.measure import Subject, Timer, truth_of
from benchmarks.providers import PROVIDERS, Case
from benchmarks.providers.ours import schedule_of
from benchmarks.worker import Worker, said
from benchmarks.workloads import Workload

DTYPES = ("bfloat16", "float32", "float16")
FIRST = ("flashrnn", "rl-bench", "legged", "unmix", "rnnt-decode")  # wanted most, and in the first two dtypes
GRACE = 30  # seconds beyond the end of its step that a task may take when it has begun


class Task(NamedTuple):
    """A method of `Measuring` with its arguments. ``key``: what its result has and no other of its step."""

    key: dict[str, Any]
    method: str
    arguments: tuple

    def failed(self, error: Exception) -> dict:
        """The result if nothing came of it."""
        return self.key | ({"providers": {}} if self.method == "row" else {}) | {"reason": str(error)}


def ordered(workloads: list[Workload], dtypes: Iterable[str], modes: Iterable[str]) -> list[tuple[Workload, str, str]]:
    """The rows in the order in which they are measured: those that are wanted most, by workload; then of every workload
    something, training first. Single steps come last: torch.compile has a part there, and takes long to compile."""
    found = [(w, dtype, mode) for dtype in dtypes for mode in sorted(modes, reverse=True) for w in workloads]

    def place(row: tuple[Workload, str, str]) -> tuple:
        w, dtype, _ = row
        return (0, FIRST.index(w.family)) if w.family in FIRST and dtype in DTYPES[:2] else (1, w.T == 1)

    return sorted(found, key=place)


def measured(
    w: Workload, dtype: str, mode: str, providers: list[str], seconds: float, rounds: int, timer: Timer | None = None
) -> dict:
    """The row, by every provider in this process."""
    case = Case(w, dtype, mode)
    how, given = (w, dtype, mode, torch.get_num_threads(), timer, case), (truth_of(case), True)
    asked = {name: ((Subject, PROVIDERS[name], *how), given) for name in providers}
    facts = rows.measured(asked, 1, seconds, rounds, apart=False)
    for found in facts.values():
        if "seconds" in found:
            found["us_per_step"] = 1e6 * found["seconds"] / (w.T * w.L)
    row = {**rows.head(w, dtype, mode, 1), "providers": facts}
    try:
        row["schedule"] = schedule_of(case)
    except (RuntimeError, TypeError, ValueError) as error:  # what was measured is worth more than this
        row["schedule"] = f"explain: {said(error)}"
    return rows.derive(row)


class Measuring:
    """Measures what it is asked for; lives in a process of its own (`Apart`)."""

    def __init__(self, device: str, seconds: float, rounds: int, timer: Timer, threads: int | None = None) -> None:
        self.device, self.how = device, (seconds, rounds, timer)
        if threads is not None:
            torch.set_num_threads(threads)

    def case(self, case: gpu_cases.Case) -> dict:
        return gpu_cases.run(case, self.device)

    def collected(self, path: str) -> dict:
        return gpu_tests.collected(path)

    def test(self, name: str) -> dict:
        return gpu_tests.run(name)

    def row(self, w: Workload, dtype: str, mode: str, providers: list[str]) -> dict:
        try:
            return measured(w, dtype, mode, providers, *self.how)
        finally:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def experiment(self, experiment: experiments.Experiment) -> dict:
        return experiments.measured(experiment, self.device, self.how[-1])


class Apart:
    """An object in a process of its own, started again when it was lost or its GPU context may be broken."""

    def __init__(self, make: Callable, *arguments: Any) -> None:
        self.make, self.worker = (make, *arguments), None

    def ask(self, limit: float, method: str, *given: Any) -> dict:
        if self.worker is None:
            self.worker = Worker(machine.cores(os.cpu_count() or 1), *self.make)
        self.worker.limit, lost = limit, True
        try:
            answer = self.worker.ask(method, *given)
            lost = broken(answer)
        finally:
            if lost:
                self.close()
        return answer

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def broken(answer: dict) -> bool:
    """Whether a provider, or an experiment, met an error after which a process can use the GPU no more."""
    reasons = (part.get("reason", "") for part in (answer, *answer.get("providers", {}).values()))
    return any("CUDA error" in reason or "AcceleratorError" in reason for reason in reasons)


def ask_all(
    tasks: list[Task], processes: int, make: Callable[[], Apart], left: Callable[[], float], limit: float,
    done: Callable[[dict], None],
) -> int:  # fmt: skip
    """Ask the tasks of so many processes that ``make`` makes; those for which no time is left are counted.

    Args:
        left: seconds until when a task may begin.
        limit: seconds that a task may take.
        done: is told of every result; from one thread at a time.
    """
    waiting, lock = deque(tasks), threading.Lock()

    def serve(_: int) -> None:
        with closing(make()) as process:
            while (rest := left()) > 0:
                try:
                    task = waiting.popleft()
                except IndexError:
                    return
                try:
                    found = process.ask(min(limit, rest + GRACE), task.method, *task.arguments)
                except RuntimeError as error:  # it hung, or its process ended
                    found = task.failed(error)
                with lock:
                    done(found)

    if processes == 1:  # in this thread, so that Ctrl-C stops it
        serve(0)
    else:
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(serve, range(min(processes, len(tasks)))))
    return len(waiting)
