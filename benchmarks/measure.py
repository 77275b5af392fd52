"""Checking and timing. A provider is timed only after its output (and in training each gradient) was found right.

Right means, against the same function in float64: no more than twice torch's own error, or below the dtype's floor.
Where torch's error is above the floor, the function magnifies rounding, and one library's error says little of
another's: there an error may also be twice as large as what the function makes of a change in the last digit of its
input and weights (measured in float64, for layers with options and cells of one's own). With int8 weights right means a
root mean square error of y below a tenth of y's own; where units spike, that few of the first steps' are others.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.providers import PROVIDERS, SEED, Case, Job, Provider, Unsupported, module_job
from benchmarks.providers.ours import in_dtype, reference_job
from benchmarks.worker import said
from benchmarks.workloads import Workload

# Errors below these are rounding (the tests' tolerances): largest difference over the largest value of the tensor.
FLOOR = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}
DRAWS = 6  # of changes in the last digit: what comes of one is up to twice or half what comes of another
WRONG = 0.05  # more than rounding in any dtype, even where torch's own error is larger: then torch is refused too
INT8_WRONG = 0.1  # root mean square error of y over that of y
SPIKES = 5  # steps of which one in a thousand spikes may be another: rounding can make a spike of none
BLOCK = 1e-3  # seconds: shorter calls are timed several at once, one after the other
SLOW = 20  # a provider so many times slower than the fastest one is timed FEWEST times
FEWEST, MOST = 3, 300  # rounds
LONG = 10  # seconds: of calls that take longer the first is a sample too, and there are no more than are asked for


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
            found[name] = ((a.to(e) - e).abs().max() / e.abs().max().clamp_min(torch.finfo(e.dtype).tiny)).item()
    return found


@dataclass
class Truth:
    """What a case gives in float64, by name, and how far rounding takes it in the case's dtype. None: nobody knows."""

    tensors: dict[str, Tensor] | None
    known: dict[str, float]
    """The errors of torch; or, if larger, what comes of changes in the last digit."""


def result_of(job: Job, mode: str) -> dict[str, Tensor]:
    torch.manual_seed(SEED)  # where masks are drawn, everybody's checked call draws the same
    with torch.inference_mode(mode == "infer"):
        return job.read(job.run())


def exact(case: Case) -> dict[str, Tensor]:
    """From torch.nn, or for the options that it has not our reference in plain torch; in float64 both.

    Of cells of one's own from our own layer in float64, as the reference takes minutes: loops in plain torch, JAX and
    public implementations have to agree with it. That is what everyone has names for, or where units spike the first
    steps' output.
    """
    w = case.workload
    job = in_dtype(case) if w.own else reference_job(case) if w.options else module_job(torch.nn, case, "float64")
    found = result_of(job, case.mode)
    names = ("y", "dx") if w.own else found
    return {"spikes": found["y"][:SPIKES]} if w.cell == "lif" else {n: t for n, t in found.items() if n in names}


def truth_of(case: Case) -> Truth:
    w, known = case.workload, {}
    try:
        tensors = exact(case)
    except Unsupported:
        return Truth(None, {})
    if case.dtype == "int8" or "spikes" in tensors:
        return Truth(tensors, {})
    torchs = PROVIDERS["torch_script" if w.options else "torch"]
    with suppress(RuntimeError, Unsupported):  # torch does not run this, or not in this dtype: the floor alone decides
        job = reference_job(case, case.dtype) if w.own else torchs.job(case)
        known = errors(result_of(job, case.mode), tensors)
    if (w.own or w.options) and max(known.values(), default=0.0) > FLOOR[case.dtype]:
        moved = [known] + [errors(exact(last_digit_changed(case, seed)), tensors) for seed in range(DRAWS)]
        known = {name: max(found[name] for found in moved) for name in known}
    return Truth(tensors, known)


def last_digit_changed(case: Case, seed: int) -> Case:
    """The case with every number of its input and weights a unit in the last place up or down."""
    found = Case(case.workload, case.dtype, case.mode, case.threads)
    random = torch.Generator().manual_seed(seed)
    for t in (found.x, *found.module.parameters()):
        up = torch.randint(0, 2, t.shape, generator=random).to(t.device)
        t.data += t.data * (2 * up - 1) * torch.finfo(found.x.dtype).eps
    return found


def check(tensors: dict[str, Tensor], truth: Truth, dtype: str) -> dict:
    """The facts of a result: its error, or the reason why it is wrong."""
    y, expected = tensors["y"], truth.tensors
    if "spikes" in expected:
        others = (y[:SPIKES] - expected["spikes"]).abs().mean().item()
        return {"error": others} if others < 1e-3 else {"reason": f"other spikes: {others:.1%}", "red": True}
    if dtype == "int8":
        difference = (y.to(expected["y"]) - expected["y"]).double()
        rms = difference.square().mean().sqrt()
        relative = (rms / expected["y"].square().mean().sqrt()).item()
        if not relative <= INT8_WRONG:
            return {"reason": f"wrong y: relative error {relative:.1e}", "red": True}
        return {"max_error": difference.abs().max().item(), "rms_error": rms.item(), "relative_error": relative}
    found = errors(tensors, expected)
    for name, error in found.items():
        allowed = min(WRONG, max(2 * truth.known.get(name, 0.0), FLOOR[dtype]))
        if not error <= allowed:  # also true for NaN
            reason = f"wrong {name}: error {error:.1e}, allowed {allowed:.1e}"
            return {"reason": reason, "red": True, "error": max(found.values())}
    worst = max(found, key=found.__getitem__)
    return {"error": found[worst], "error_of": worst}


Timer = Callable[[Callable[[], object], int], tuple[float, float]]


def wall_time(run: Callable[[], object], calls: int) -> tuple[float, float]:
    """Seconds of wall time and of processor time for each of so many calls, one after the other."""
    busy, start = time.process_time(), time.perf_counter()
    for _ in range(calls):
        run()
    end = time.perf_counter()
    return (end - start) / calls, (time.process_time() - busy) / calls


def event_time(run: Callable[[], object], calls: int, cuda=torch.cuda) -> tuple[float, float]:
    """Seconds of the GPU's time between two events around so many calls, for each; and of processor time."""
    first, last = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    cuda.synchronize()
    busy = time.process_time()
    first.record()
    for _ in range(calls):
        run()
    last.record()
    busy = time.process_time() - busy
    cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / calls, busy / calls


class Subject:
    """One provider on one case: admitted if it is right, then timed. A case that is there already can be given."""

    def __init__(
        self, provider: Provider, workload: Workload, dtype: str, mode: str, threads: int,
        timer: Timer | None = None, case: Case | None = None,
    ) -> None:  # fmt: skip
        self.provider, self.workload, self.dtype, self.mode, self.threads = provider, workload, dtype, mode, threads
        self.timer = timer or (event_time if workload.device == "cuda" else wall_time)
        self.given = case
        self.job: Job | None = None
        torch.set_num_threads(threads)

    def _admitted(self, truth: Truth, with_memory: bool) -> dict:
        cuda, start = self.workload.device == "cuda", time.perf_counter()
        measure = memory.cuda_growth if cuda else memory.rss_growth
        # Resident memory of a process does not shrink again: its first call of this size counts, after one step that
        # loads libraries and starts threads. torch counts a GPU's own memory, so there the second call does.
        first = with_memory and not cuda and self.workload.T > 1
        with torch.inference_mode(self.mode == "infer"):
            if first:
                self.provider.job(Case(replace(self.workload, T=1), self.dtype, self.mode, self.threads)).run()
            case = self.given or Case(self.workload, self.dtype, self.mode, self.threads)
            job = self.provider.job(case)
            if truth.tensors is None:
                return {"reason": "nothing to check it against"}
            torch.manual_seed(SEED)
            peak, result = measure(job.run) if first else (None, job.run())
            facts = {"cold": time.perf_counter() - start} if self.workload.own else {}
            if self.provider.weights:
                truth = Truth(exact(case), truth.known)
            found = check(job.read(result), truth, self.dtype)
            error = found.pop("error", math.nan) if "reason" in found else math.nan  # no JSON has NaN
            if self.workload.own and self.dtype == "float32" and error < WRONG:
                wide = self.provider.job(Case(self.workload, "float64", self.mode, self.threads))
                if "reason" not in check(result_of(wide, self.mode), Truth(truth.tensors, {}), "float64"):
                    found = {"error": error}  # rounding decided which units of relu pass, over hundreds of steps
                job.run()  # JAX compiles it again after float64 was switched on
            facts |= found
            if with_memory and not first:
                del result
                peak = measure(job.run)[0]
        self.job = None if "reason" in facts else job
        return facts | ({"peak_bytes": peak} if with_memory else {})

    def admit(self, truth: Truth | str, with_memory: bool = False) -> dict:
        """Its facts: {"error": ...}, or the {"reason": ...} why it is not timed. A string is the file of the truth."""
        if isinstance(truth, str):
            truth = torch.load(truth, mmap=True, weights_only=False)
        try:
            return self._admitted(truth, with_memory)
        except Unsupported as error:
            return {"reason": str(error)}
        except Exception as error:  # a provider that breaks costs its own cell of the table, not the run
            return {"reason": said(error), "red": True}

    def time(self, calls: int) -> tuple[float, float]:
        """Seconds, by the timer, and of processor time for each of so many calls, one after the other.

        An untimed call comes first, as in a program that computes all the time: threads wake, caches fill, and memory
        comes back from where it went meanwhile (a virtual machine gives what was freed to its host within seconds).
        """
        gc.disable()
        try:
            with torch.inference_mode(self.mode == "infer"):
                self.job.run()
                return self.timer(self.job.run, calls)
        finally:
            gc.enable()
            gc.collect(0)


def alternate(
    runs: dict[str, Callable[[int], tuple[float, float]]], seconds: float, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """What each run gave, time after time. A run is told how many calls to make, and gives seconds of wall and of
    processor time a call. They take turns, in an order that turns round each time; the slow ones (SLOW) leave early."""
    first = {name: run(1) for name, run in runs.items()}
    calls = {name: max(1, math.ceil(BLOCK / max(wall, 1e-9))) for name, (wall, _) in first.items()}
    samples = {name: [sample] if sample[0] > LONG else [] for name, sample in first.items()}
    order = list(runs)
    end = time.perf_counter() + seconds
    for n in range(MOST):
        if n >= rounds and time.perf_counter() > end:
            break
        if n == FEWEST:
            medians = {name: statistics.median(wall for wall, _ in samples[name]) for name in order}
            order = [name for name in order if medians[name] <= SLOW * min(medians.values())]
        for name in order:
            if first[name][0] <= LONG or len(samples[name]) < rounds:
                samples[name].append(runs[name](calls[name]))
        order.reverse()
    return samples
