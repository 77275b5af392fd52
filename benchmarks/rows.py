"""A row of the results: a workload in one dtype, mode and thread count, by every provider, each in its own process."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, partial

import numpy as np
import torch

from benchmarks import machine
from benchmarks.measure import Subject, alternate, truth_of
from benchmarks.providers import OURS, PROVIDERS, TORCH_DTYPES, Case, Job
from benchmarks.providers.case import masks
from benchmarks.roofline import bound
from benchmarks.worker import Here, Worker, busy_core
from benchmarks.workloads import Workload

BUSY_ROUNDS = 5
AGAINST = {"ratio": "torch", "ratio_best": "the best peer"}  # to whom the ratios of a row are


def ours(row: dict) -> dict:
    """Our library's own results of a row, {} where it was not asked."""
    return row["providers"].get("rnnkernels", {})


def threads_text(count: int | str) -> str:
    return f"{count} thread{'s' if int(count) > 1 else ''}"


def derive(row: dict) -> dict:
    """Fill in what follows from the times: ratio to torch and to the best peer (their time over the provider's), and
    the share of the bound. The best peer is the fastest provider that is not ours; its own ratio is to the next."""
    results = row["providers"]
    times = {name: result["seconds"] for name, result in results.items() if "seconds" in result}
    peers = {name: seconds for name, seconds in times.items() if name not in OURS}
    row["best_peer"] = min(peers, key=peers.__getitem__) if peers else None
    limit = row.get("bound", {}).get("seconds")
    for name, result in results.items():
        seconds = times.get(name)
        others = [peer for peer in peers if peer != name]
        result["ratio"] = times["torch"] / seconds if seconds and "torch" in times else None
        result["ratio_best"] = min(peers[peer] for peer in others) / seconds if seconds and others else None
        result["share"] = limit / seconds if seconds and limit else None
    return row


def head(w: Workload, dtype: str, mode: str, threads: int) -> dict:
    """What a row says of its workload and how it was computed."""
    shape = {"workload": w.name, "kind": w.kind, "source": w.source}
    shape |= {letter: getattr(w, letter) for letter in "TBIHL"}
    how = {"device": w.device, "dtype": dtype, "own_dtype": dtype == w.dtype, "mode": mode}
    return (
        {**shape, **how, "threads": threads}
        | ({"variant": w.variant} if w.variant else {})
        | ({"own": True} if w.own else {})
    )


def summed_up(values: list[tuple[float, float]]) -> dict:
    """Median and quartiles of the times of a provider, and the processors that it kept busy."""
    walls, busies = np.array(values).T
    low, median, high = np.percentile(walls, (25, 50, 75)).tolist()
    found = {"seconds": median, "seconds_25": low, "seconds_75": high, "samples": len(values)}
    return found | {"cores": float(busies.sum() / walls.sum())}


def guarded(worker: Worker | Here, facts: dict) -> Callable[[int], tuple[float, float]]:
    """Times the worker. One that breaks meanwhile is so slow from then on that it leaves, and its facts say why."""

    def run(calls: int) -> tuple[float, float]:
        if "reason" not in facts:
            try:
                return worker.ask("time", calls)
            except RuntimeError as error:
                facts.update({"reason": str(error), "red": True})
        return math.inf, 0.0

    return run


def measured(
    asked: dict[str, tuple[tuple, tuple]], threads: int, seconds: float, rounds: int, busy=False, apart=True
) -> dict:
    """The facts of each subject, with the times of those that are right; they take turns.

    Args:
        asked: by name a class and its arguments, and what `admit` of the object is given.
        apart: each in a process of its own.
        busy: time ours also with a busy process on one of its cores.
    """
    cores, facts, runs = machine.cores(threads), {}, {}
    with ExitStack() as stack:
        for name, (make, given) in asked.items():
            try:
                worker = stack.enter_context(Worker(cores, *make) if apart else Here(*make))
                facts[name] = worker.ask("admit", *given)
            except RuntimeError as error:
                facts[name] = {"reason": str(error), "red": True}
            if "reason" not in facts[name]:
                runs[name] = guarded(worker, facts[name])
        samples = alternate(runs, seconds, rounds)
        if busy and threads > 1 and len(cores) == threads and "rnnkernels" in runs:
            with busy_core(cores[-1]):
                disturbed = alternate({"rnnkernels": runs["rnnkernels"]}, seconds / 4, BUSY_ROUNDS)["rnnkernels"]
            facts["rnnkernels"]["busy_seconds"] = float(np.median([wall for wall, _ in disturbed]))
    for name, values in samples.items():
        if "reason" not in facts[name]:
            facts[name] |= summed_up(values)
    return facts


class Drawing(Subject):
    """What torch needs to draw the masks of a call, which all sides do the same way: a part of every time."""

    def admit(self) -> dict:
        self.job = Job(partial(masks, self.workload, True, torch.empty(0, dtype=TORCH_DTYPES[self.dtype])), None)
        return {}


class Rows(AbstractContextManager):
    """The rows of one workload in one dtype and mode. The truth is computed once and lies in a file."""

    def __init__(self, workload: Workload, dtype: str, mode: str, providers: list[str], roofs: dict | None = None):
        self.how, self.providers, self.roofs = (workload, dtype, mode), providers, roofs
        self._folder = tempfile.TemporaryDirectory()

    @cached_property
    def truth(self) -> str:
        path = f"{self._folder.name}/truth.pt"
        torch.save(truth_of(Case(*self.how)), path)
        return path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def subjects(self, threads: int, with_memory: bool) -> dict[str, tuple[tuple, tuple]]:
        given = (self.truth, with_memory)
        return {name: ((Subject, PROVIDERS[name], *self.how, threads), given) for name in self.providers}

    def measure(
        self, threads: int, seconds: float, rounds: int, with_memory: bool = False, busy: bool = False,
        plain: Rows | None = None,
    ) -> dict:  # fmt: skip
        """The row. ``plain``: of the plain workload by our layer only, which then is timed between the others."""
        asked = self.subjects(threads, with_memory)
        if plain is not None:
            asked["plain"] = plain.subjects(threads, with_memory)["rnnkernels"]
        facts = measured(asked, threads, seconds, rounds, busy=busy)
        row = {**head(*self.how, threads), "providers": facts, "bound": bound(*self.how, threads, self.roofs)}
        if plain is not None:
            row["plain"] = facts.pop("plain")
            pair = [found.get("seconds") for found in (ours(row), row["plain"])]
            row["over_plain"] = pair[0] / pair[1] if all(pair) else None
        return derive(row)

    def masks(self, threads: int, rounds: int) -> dict | None:
        """How long the masks alone take, where there are any; apart from the others, who would be slow beside it."""
        w, _, mode = self.how
        if mode == "infer" or w.variant not in ("recurrent_dropout", "zoneout"):
            return None
        return measured({"masks": ((Drawing, None, *self.how, threads), ())}, threads, 0.0, rounds)["masks"]
