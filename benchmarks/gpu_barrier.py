"""The barrier of cooperative programs by itself: what a step costs before it computes anything."""

from __future__ import annotations

import statistics

import torch
import triton
import triton.language as tl

from benchmarks.measure import Timer
from rnnkernels.backends.triton.dots import arrive, wait


@triton.jit
def steps_of(counter, steps):
    for i in tl.range(0, steps):
        wait(counter, i * tl.num_programs(0))
        arrive(counter)


def timed(programs: int, steps: int, timer: Timer, rounds: int = 5) -> dict:
    """The median over calls, with what a launch costs in it."""
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")

    def run() -> None:
        counter.zero_()
        steps_of[(programs,)](counter, steps, num_warps=4, launch_cooperative_grid=True)

    run()
    took = statistics.median(timer(run, 3)[0] for _ in range(rounds))
    if counter.item() != programs * steps:
        raise RuntimeError(f"expected {programs * steps} arrivals, but {counter.item()} were counted")
    return {"seconds": took, "us_per_step": 1e6 * took / steps}
