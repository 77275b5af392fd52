"""Launches without a GPU: the launcher runs on tensors that have no memory, and each kernel that it launches is
compiled for the chip asked for, exactly as it would be there, but does not run.

Letters: T time, B batch, D directions, X input groups, G gates, H hidden, P output of a step.
"""

from __future__ import annotations

import inspect
import os
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    raise ImportError("benchmarks.dry compiles kernels: it needs a process without TRITON_INTERPRET=1")

from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.chips import Gpu
from benchmarks.machine_code import target_of
from rnnkernels.backends.triton import launch, schedules
from rnnkernels.cells import CELLS

# Kernels are the same for every T; so many launches of a step each cost only time.
STEPS = 64
STAGES = ("lengths", "reset", "restart", "h_mask", "zone", "layer_norm")


class Launch(NamedTuple):
    kernel: str
    backward: bool
    tiles: schedules.Tiles
    grid: tuple[int, int, int]
    compiled: Any


class Driver:
    """A driver of Triton for a GPU that is not there. Its device is a name, so that what is compiled for one chip is
    never taken for what is compiled for another."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def get_current_target(self):
        return target_of(self.arch)

    def get_current_device(self):
        return f"no GPU here, as for {self.arch}"

    def get_current_stream(self, device):
        return 0


@contextmanager
def replaced(owner: Any, name: str, value: Any):
    """The attribute of an object, replaced within the context."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


@contextmanager
def compiling(gpu: Gpu, arithmetic: str = "ieee", tiles: schedules.Tiles | None = None):
    """Within this context the Triton backend's launches are compiled for a chip and collected in the list it gives.

    float32 products are as ``arithmetic`` ("tf32", "tf32x3" or "ieee") says; ``tiles`` stands in for the chooser's.
    """
    found: list[Launch] = []
    chosen: dict[str, Any] = {}
    whole = JITFunction.run
    choose = schedules.choose

    def noted(*args, **kwargs):
        chosen["backward"] = inspect.signature(choose).bind(*args, **kwargs).arguments.get("backward", False)
        chosen["tiles"] = tiles or choose(*args, **kwargs)
        return chosen["tiles"]

    def compile_only(kernel, *args, grid, warmup, **kwargs):
        compiled = whole(kernel, *args, grid=grid, warmup=True, **kwargs)
        grid = (*grid, 1, 1)[:3]
        found.append(Launch(kernel.fn.__name__, chosen["backward"], chosen["tiles"], grid, compiled))

    switch = "tf32" if arithmetic == "tf32" else "ieee"
    with (
        schedules.tf32x3(arithmetic == "tf32x3"),
        replaced(schedules, "chip_of", lambda device: gpu.chip),
        replaced(schedules, "choose", noted),
        replaced(JITFunction, "run", compile_only),
        replaced(driver, "_active", Driver(gpu.arch)),
        replaced(torch.backends.cudnn.rnn, "fp32_precision", switch),
    ):
        yield found


def launches(
    gpu: Gpu, cell: str, dtype: torch.dtype, T: int, B: int, H: int, P: int = 0, reverse: tuple[bool, ...] = (False,),
    groups: int = 1, states: bool = False, stages: tuple[str, ...] = (), train: bool = True, arithmetic: str = "ieee",
    tiles: schedules.Tiles | None = None,
) -> list[Launch]:  # fmt: skip
    """The launches of one layer, forward and, with ``train``, backward.

    Args:
        P: size of a projection, 0 for none.
        groups: X, each with an input of its own (heads).
        states: whether initial states are given, and gradients come to the final ones.
        stages: of STAGES; "restart" is a reset to states that are given.

    Raises:
        ValueError: for any other stage.
        NotImplementedError: if the backend lacks a stage.
    """
    if unknown := set(stages) - set(STAGES):
        raise ValueError(f"Expected stages out of {', '.join(STAGES)}, but got {', '.join(sorted(unknown))}")
    G, D, S, T = CELLS[cell].gates, groups * len(reverse), CELLS[cell].states, min(T, STEPS)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    group = () if groups == 1 else (groups,)
    I = 16  # noqa: E741 - no kernel sees the input's width
    per_direction = [(G * H, I), (G * H, P or H), (G * H,), (G * H,)] + [(P, H)] * (P > 0)
    norm = "layer_norm" in stages
    per_direction += [(G * H,), (G * H,)] * norm + [(H,), (H,)] * (norm and S > 1)
    lengths = empty(*group, B, dtype=torch.int64) if "lengths" in stages else None
    reset = empty(*group, T, B, dtype=torch.bool) if {"reset", "restart"} & set(stages) else None
    widths = [P or H if k == 0 else H for k in range(S)]
    h_mask = empty(D, B, widths[0]) if "h_mask" in stages else None
    zone = [empty(T, D, B, n, dtype=torch.bool) for n in widths] if "zone" in stages else []
    first = [empty(D, B, n) for n in widths] if states else []
    given = [empty(D, B, n) for n in widths] if "restart" in stages else []
    call = (
        cell, empty(*group, T, B, I), first, [empty(*shape) for shape in per_direction * D], list(reverse), True, P > 0,
        None, None, lengths, reset, given, h_mask, zone, norm, 1e-5,
    )  # fmt: skip
    with compiling(gpu, arithmetic, tiles) as found:
        y, last, saved = launch.layer(*call, train)
        if train:
            needs = [True, states, True]
            launch.layer_backward(empty(*y.shape), last if states else [], None, *call, y, saved, needs)
    return found
