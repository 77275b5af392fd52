"""Checking and timing. A provider is timed only after its output (and in training each gradient) was found right.

Right means, against the same function in float64: no more than twice torch's own error, or below the dtype's floor.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.providers import PROVIDERS, Case, Job, Unsupported, module_job
from benchmarks.workloads import Workload

# Errors below these are rounding (the tests' tolerances): largest difference over the largest value of the tensor.
FLOOR = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}
WRONG = 0.05  # more than rounding in any dtype, even where torch's own error is larger: then torch is refused too
BLOCK = 1e-3  # seconds: shorter calls are timed several at once, one after the other
MOST_ROUNDS = 300


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """By name, the largest difference over the largest expected value; NaN where a tensor is missing or misshapen."""
    found = {}
    for name, e in expected.items():
        a = actual.get(name)
        if a is None or a.shape != e.shape:
            found[name] = math.nan
        elif e.numel() == 0:
            found[name] = 0.0
        else:
            largest = e.abs().max().clamp_min(torch.finfo(e.dtype).tiny)
            found[name] = ((a.to(e) - e).abs().max() / largest).item()
    return found


def faults(found: dict[str, float], torch_errors: dict[str, float], dtype: str) -> str | None:
    """The first tensor that is not right, as text, or None."""
    for name, error in found.items():
        allowed = min(WRONG, max(2 * torch_errors.get(name, 0.0), FLOOR[dtype]))
        if not error <= allowed:  # also true for NaN
            return f"wrong {name}: error {error:.1e}, allowed {allowed:.1e}"
    return None


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def alternate(runs: dict[str, Callable], device: str, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Seconds per call, a list for each run. The runs take turns, in an order that turns round each time."""

    def block(run: Callable, calls: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(device)
        return (time.perf_counter() - start) / calls

    calls = {}
    for name, run in runs.items():
        block(run, 1)
        calls[name] = max(1, math.ceil(BLOCK / block(run, 1)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    end = time.perf_counter() + seconds
    collected = gc.isenabled()
    gc.disable()
    try:
        for n in range(MOST_ROUNDS):
            if n >= rounds and time.perf_counter() > end:
                break
            for name in order:
                samples[name].append(block(runs[name], calls[name]))
            order.reverse()
            gc.collect(0)
    finally:
        if collected:
            gc.enable()
    return samples


class Bench:
    """One workload in one dtype and mode: the jobs that were found right, ready to be timed with any thread count."""

    def __init__(self, workload: Workload, dtype: str, mode: str, providers: list[str]) -> None:
        self.case = Case(workload, dtype, mode)
        self.jobs: dict[str, Job] = {}
        self.facts: dict[str, dict] = {}  # by provider: {"error": ...} or {"reason": ...}
        truth, torch_errors = self._truth()
        for name in providers:
            self.facts[name] = self._admit(name, truth, torch_errors)

    def _result(self, job: Job) -> dict[str, Tensor]:
        with torch.inference_mode(self.case.mode == "infer"):
            return job.read(job.run())

    def _truth(self) -> tuple[dict[str, Tensor] | None, dict[str, float]]:
        """What the workload gives in float64, and how far torch is from it in the case's dtype."""
        try:
            job = module_job(torch.nn, self.case, "float64")
        except Unsupported:
            return None, {}
        truth = self._result(job)
        try:
            return truth, errors(self._result(PROVIDERS["torch"](self.case)), truth)
        except RuntimeError:
            return truth, {}  # torch does not run this dtype on this device: the floor alone decides

    def _admit(self, name: str, truth: dict[str, Tensor] | None, torch_errors: dict[str, float]) -> dict:
        try:
            job = PROVIDERS[name](self.case)
            if truth is None:
                return {"reason": "nothing to check it against"}
            found = errors(self._result(job), truth)
        except Unsupported as error:
            return {"reason": str(error)}
        except Exception as error:  # a provider that breaks costs its own cell of the table, not the run
            lines = str(error).strip().splitlines() or [""]
            return {"reason": f"{type(error).__name__}: {lines[0]}", "red": True}
        fault = faults(found, torch_errors, self.case.dtype)
        if fault:
            return {"reason": fault, "red": True}
        self.jobs[name] = job
        worst = max(found, key=found.__getitem__)
        return {"error": found[worst], "error_of": worst}

    def measure_memory(self, threads: int) -> None:
        """Peak memory of one call, the results included; None where it cannot be read."""
        for name, job in self.jobs.items():
            if self.case.workload.device == "cuda":
                self.facts[name]["peak_bytes"] = memory.cuda_growth(job.run)
            else:
                self.facts[name]["peak_bytes"] = memory.of_child(self.case, name, threads)

    def measure_time(self, threads: int, seconds: float, rounds: int) -> dict:
        """A row of the results."""
        w, case = self.case.workload, self.case
        torch.set_num_threads(threads)
        with torch.inference_mode(case.mode == "infer"):
            samples = alternate({name: job.run for name, job in self.jobs.items()}, w.device, seconds, rounds)
        results = {name: dict(fact) for name, fact in self.facts.items()}
        for name, values in samples.items():
            low, median, high = np.percentile(values, (25, 50, 75)).tolist()
            results[name] |= {"seconds": median, "seconds_25": low, "seconds_75": high, "samples": len(values)}
        base = results.get("torch", {}).get("seconds")
        for result in results.values():
            result["ratio"] = base / result["seconds"] if base and "seconds" in result else None
        shape = {"workload": w.name, "kind": w.kind, "source": w.source}
        shape |= {letter: getattr(w, letter) for letter in "TBIHL"}
        how = {"device": w.device, "dtype": case.dtype, "mode": case.mode, "threads": threads}
        return {**shape, **how, "providers": results}
