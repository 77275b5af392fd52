"""The barrier of cooperative programs by itself: what a step costs before it computes anything."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rnnkernels.backends.triton.dots import arrive, wait


@triton.jit
def steps_of(counter, steps):
    for i in tl.range(0, steps):
        wait(counter, i * tl.num_programs(0))
        arrive(counter)


class Barrier:
    """A call in which so many programs wait for each other at so many steps."""

    def __init__(self, programs: int, steps: int) -> None:
        self.programs, self.steps = programs, steps
        self.counter = torch.zeros(1, dtype=torch.int32, device="cuda")

    def __call__(self) -> None:
        self.counter.zero_()
        steps_of[(self.programs,)](self.counter, self.steps, num_warps=4, launch_cooperative_grid=True)

    def check(self) -> None:
        """Raise RuntimeError unless all have arrived at each step of the last call."""
        expected, counted = self.programs * self.steps, self.counter.item()
        if counted != expected:
            raise RuntimeError(f"expected {expected} arrivals, but {counted} were counted")
