"""Experiments on a GPU: the barrier alone, each schedule forced at several batch sizes, what a step costs as a sequence
grows, and whether a call can be recorded in a CUDA graph.

T time, B batch, H hidden. One layer of an LSTM, inference, in bfloat16. Each size is measured by itself, so that what
is there when the time is over can be used.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.measure import Timer
from rnnkernels.backends.triton import schedules

ROUNDS = 5


class Experiment(NamedTuple):
    purpose: str  # a key of KINDS
    schedule: str
    H: int  # of a barrier, the programs that wait for each other
    B: int
    T: int


BARRIER = [(programs, 1, 2000) for programs in (16, 32, 64, 128)]  # H, B, T here and below
SIZES = {
    "capture": [(64, 16, 32), (512, 16, 32)],
    "crossover": [(H, B, 256) for H in (512, 1024, 256) for B in (1, 16, 32, 64, 128)],
    "scaling": [(H, B, T) for H, B in ((64, 16), (512, 16), (1024, 1)) for T in (128, 512, 2048)],
}
QUICK = {"capture": [(8, 2, 3)], "crossover": [(8, 2, 3)], "scaling": [(8, 2, 3), (8, 2, 6)]}


def planned(quick: bool) -> list[Experiment]:
    """What is measured; with ``quick`` tiny sizes, to see that it works."""
    barriers = [Experiment("barrier", "cooperative", *size) for size in BARRIER[: 1 if quick else None]]
    found = [(purpose, size) for purpose, sizes in (QUICK if quick else SIZES).items() for size in sizes]
    forced = itertools.product(found, schedules.NAMES)
    return barriers + [Experiment(purpose, name, *size) for (purpose, size), name in forced]


def call_of(e: Experiment, device: str) -> partial:
    """A call of a layer of that size."""
    import rnnkernels

    torch.manual_seed(0)
    module = rnnkernels.LSTM(16, e.H).to(device, torch.bfloat16).eval()
    return partial(module, torch.randn(e.T, e.B, 16).to(device, torch.bfloat16))


def median_time(run: Callable[[], object], e: Experiment, timer: Timer) -> dict:
    """The median time of a call, after a first one that may compile."""
    run()
    took = statistics.median(timer(run, 3)[0] for _ in range(ROUNDS))
    return {"seconds": took, "us_per_step": 1e6 * took / e.T}


def timed(e: Experiment, device: str, timer: Timer) -> dict:
    return median_time(call_of(e, device), e, timer)


def captured(e: Experiment, device: str, timer: Timer) -> dict:
    """Whether a call can be recorded in a CUDA graph, and a replay gives the same bits."""
    if device == "cpu":
        raise RuntimeError("a CUDA graph needs a GPU")
    run = call_of(e, device)
    expected = run()[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()[0]
    graph.replay()
    return {"captured": torch.equal(y, expected)}


def waited(e: Experiment, device: str, timer: Timer) -> dict:
    """What a barrier costs by itself."""
    if device == "cpu":
        raise RuntimeError("a barrier between programs needs a GPU")
    from benchmarks.gpu.barrier import barrier  # imports triton

    run, check = barrier(e.H, e.T)
    found = median_time(run, e, timer)
    check()
    return found


KINDS = {"barrier": waited, "capture": captured, "crossover": timed, "scaling": timed}


def measured(e: Experiment, device: str, timer: Timer) -> dict:
    """A result, or the reason why there is none."""
    try:
        with schedules.force(e.schedule), torch.inference_mode():
            return e._asdict() | KINDS[e.purpose](e, device, timer)
    except RuntimeError as error:
        return e._asdict() | {"reason": str(error).strip().splitlines()[0]}
