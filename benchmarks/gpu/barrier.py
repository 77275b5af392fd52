"""The barrier of cooperative programs by itself: what a step costs before it computes anything."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from rnnkernels.backends.triton.dots import arrive, wait


@triton.jit
def steps_of(counter, steps):
    for i in tl.range(0, steps):
        wait(counter, i * tl.num_programs(0))
        arrive(counter)


def barrier(programs: int, steps: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A call in which so many programs wait for each other at so many steps, and what raises RuntimeError unless all
    have arrived at each step of the last call."""
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")

    def run() -> None:
        counter.zero_()
        steps_of[(programs,)](counter, steps, num_warps=4, launch_cooperative_grid=True)

    def check() -> None:
        expected, counted = programs * steps, counter.item()
        if counted != expected:
            raise RuntimeError(f"expected {expected} arrivals, but {counted} were counted")

    return run, check
