"""Launches without a GPU: the launcher runs on tensors that have no memory, and each kernel that it launches is
compiled for the chip asked for, exactly as it would be there, but does not run. machine_code.py reads what came out of
the compiler. Used by tests, `benchmarks.offline` and `benchmarks.gpu`.

Letters: T time, B batch, D directions, X input groups, G gates, H hidden, K width of the recurrent product, P output of
a step.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter
from contextlib import contextmanager
from typing import Any, NamedTuple

import machine_code
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    raise ImportError("triton_offline compiles kernels: it needs a process without TRITON_INTERPRET=1")

from triton.runtime import driver
from triton.runtime.jit import JITFunction

from rnnkernels.backends.triton import launch, schedules
from rnnkernels.backends.triton.cells import cell_of
from rnnkernels.backends.triton.chips import Chip, described
from rnnkernels.cells import spec_of
from rnnkernels.cells.weights import weights_of

# Kernels are the same for every T; so many launches of a step each cost only time.
STEPS = 64
PASSES = ("forward", "backward")
STAGES = ("lengths", "reset", "restart", "h_mask", "zone", "layer_norm")
# By name, the dtype and torch's switch for float32 in RNNs.
ARITHMETICS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}


class Gpu(NamedTuple):
    """A chip, and its architecture as compilers name it."""

    arch: str
    chip: Chip


def _gpu(arch: str, name: str, capability: int, shared: int, processors: int) -> Gpu:
    return Gpu(arch, Chip(name, "cuda" if arch.startswith("sm_") else "hip", capability, shared, processors))


# Published by the vendors: shared memory of one program, and processors of the SXM modules.
GPUS = (
    _gpu("sm_80", "A100", 80, 166_912, 108),
    _gpu("sm_86", "RTX 3090", 86, 101_376, 82),
    _gpu("sm_90", "H100", 90, 232_448, 132),
    _gpu("sm_100", "B200", 100, 232_448, 148),
    _gpu("gfx942", "MI300X", 0, 65_536, 304),
)
ARCHS = {gpu.arch: gpu for gpu in GPUS}


def gpu_here() -> Gpu:
    """The GPU that torch has, as one to compile for."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return Gpu(properties.gcnArchName.partition(":")[0], described(properties))
    return Gpu(f"sm_{properties.major}{properties.minor}", described(properties))


def kind_of(arithmetic: str) -> str:
    """The row of the chooser's tables: "half", "tf32" or "ieee"."""
    return "half" if arithmetic in ("bf16", "fp16") else arithmetic


def arithmetics(gpu: Gpu) -> list[str]:
    """Those that the chip has."""
    return [name for name in ARITHMETICS if name != "tf32" or gpu.chip.backend == "cuda"]


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
        return machine_code.target_of(self.arch)

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
def compiling(
    gpu: Gpu, arithmetic: str = "ieee", tiles: schedules.Tiles | None = None, passes: tuple[str, ...] = PASSES
):
    """Within this context the Triton backend's launches are compiled for a chip and collected in the list it gives.

    float32 products are as ``arithmetic`` ("tf32", "tf32x3" or "ieee") says; ``tiles`` stands in for the chooser's;
    launches of other passes than ``passes`` are left out.
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
        if PASSES[chosen["backward"]] not in passes:
            return
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


def call_of(
    cell: str, dtype: torch.dtype, T: int, B: int, H: int, P: int = 0, reverse: tuple[bool, ...] = (False,),
    groups: int = 1, states: bool = False, stages: tuple[str, ...] = (),
) -> tuple:  # fmt: skip
    """The op's arguments up to ``extras``, of tensors without memory; the arguments are those of ``launches``."""
    if unknown := set(stages) - set(STAGES):
        raise ValueError(f"Expected stages out of {', '.join(STAGES)}, but got {', '.join(sorted(unknown))}")
    spec = spec_of(cell)
    D, S, T = groups * len(reverse), spec.states, min(T, STEPS)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    group = () if groups == 1 else (groups,)
    I = 16  # noqa: E741 - no kernel sees the input's width
    norm = "layer_norm" in stages
    per_direction = [w.shape for w in weights_of(cell, I, H, P, project=P > 0, layer_norm=norm)]
    program = spec.program
    width = spec.gates * H if program.given else I
    extras = [
        *(empty(*group, T, B, 1 if name in program.narrow else H) for name in program.step),
        *(empty(*group, B, H) for _ in program.sequence),
    ]  # fmt: skip
    lengths = empty(*group, B, dtype=torch.int64) if "lengths" in stages else None
    reset = empty(*group, T, B, dtype=torch.bool) if {"reset", "restart"} & set(stages) else None
    widths = [P or H if k == 0 else H for k in range(S)]
    h_mask = empty(D, B, widths[0]) if "h_mask" in stages else None
    zone = [empty(T, D, B, n, dtype=torch.bool) for n in widths] if "zone" in stages else []
    first = [empty(D, B, n) for n in widths] if states else []
    given = [empty(D, B, n) for n in widths] if "restart" in stages else []
    return (
        cell, empty(*group, T, B, width), first, [empty(*shape) for shape in per_direction * D], list(reverse), True,
        P > 0, None, None, lengths, reset, given, h_mask, zone, norm, 1e-5, H, extras,
    )  # fmt: skip


def launches(
    gpu: Gpu, cell: str, dtype: torch.dtype, T: int, B: int, H: int, P: int = 0, reverse: tuple[bool, ...] = (False,),
    groups: int = 1, states: bool = False, stages: tuple[str, ...] = (), train: bool = True, arithmetic: str = "ieee",
    tiles: schedules.Tiles | None = None, passes: tuple[str, ...] = PASSES,
) -> list[Launch]:  # fmt: skip
    """The launches of one layer, forward and, with ``train``, backward.

    Args:
        cell: a name, or the text of a program.
        P: size of a projection, 0 for none.
        groups: X, each with an input of its own (heads).
        states: whether initial states are given, and gradients come to the final ones.
        stages: of STAGES; "restart" is a reset to states that are given.
        passes: of PASSES, those to compile.

    Raises:
        ValueError: for any other stage.
        NotImplementedError: if the backend lacks a stage.
    """
    call = call_of(cell, dtype, T, B, H, P, reverse, groups, states, stages)
    with compiling(gpu, arithmetic, tiles, passes) as found:
        y, last, saved = launch.layer(*call, train)
        if train:
            needs = [True, states, True, True]
            launch.layer_backward(torch.empty_like(y), last if states else [], None, *call, y, saved, needs)
    return found


def reloads(
    cell, tiles: schedules.Tiles, kind: str, H: int, K: int, backward: bool, found: dict, norm: bool = False
) -> bool:
    """Whether the time loop loads the weights of a program that should have loaded them before.

    It does if less than the weights was loaded before the loop, or if the loop loads more than it needs, plus the
    weights. What it needs is what a step reads per unit and row, which the compiler may have up to four threads load,
    and, where units are spread over programs, the vector of the product; ``norm``: with layer norms, for each of these
    some numbers of a unit or a row, and where units are spread two of each program and row. ``found``:
    ``machine_code.facts``.
    """
    size, threads = schedules.BYTES[kind], 32 * found["warps"]
    weights = cell.recurrent_gates * min(tiles.BH, H) * K * size
    planes = -(-schedules.bytes_read(cell, kind, backward) // size)
    needed = 4 * planes * max(tiles.BH * tiles.BB, threads) * size
    if tiles.schedule != "resident":
        parts = 16 * found["warps"]  # each warp takes a part of the vector, at least 16 wide
        needed += -(-K // parts) * parts * tiles.BB * size * (len(cell.recurrent) if backward else 1)
    if norm:
        programs = schedules.block(-(-H // tiles.BH)) if tiles.schedule != "resident" else 0
        needed += (1 + (cell.first is not None) + (cell.hidden is not None)) * 8 * (programs * tiles.BB + 4 * threads)
    return found["bytes_before"] < weights or found["load_bytes"] >= needed + weights


def summary(
    launched: list[Launch], cell: str, arithmetic: str, H: int, facts=machine_code.facts, norm: bool = False
) -> tuple[dict, list]:
    """What the launches of one pass of a layer show, and the grid of the most frequent one. ``facts``: of a kernel.

    Registers, stack and shared memory are the largest of all, the rest is that of the most frequent one.
    """
    kernels = {each.compiled.hash: each for each in launched}
    most = kernels[Counter(each.compiled.hash for each in launched).most_common(1)[0][0]]
    taken = {name: machine_code.resources(each.compiled) for name, each in kernels.items()}
    spilling = [each for name, each in kernels.items() if taken[name]["stack"]]
    tiles, main, of = most.tiles, facts(most.compiled), cell_of(cell)
    weights = "streamed" if tiles.schedule == "stepwise" else "on chip" if of.recurrent_gates else "none"
    if weights == "on chip" and reloads(of, tiles, kind_of(arithmetic), H, H, most.backward, main, norm):
        weights = "loaded again"
    return {
        "schedule": tiles.schedule, "tiles": [tiles.BH, tiles.BB, tiles.BK], "warps": tiles.warps,
        "stages": tiles.stages, "reason": tiles.reason, "kernels": sorted(kernels),
        **{name: max(each[name] for each in taken.values()) for name in ("registers", "stack", "shared")},
        "spills": max((facts(each.compiled)["spills"] for each in spilling), default=0),
        **{name: main[name] for name in ("tensor", "instructions", "loads", "load_bytes", "barriers", "atomics")},
        "weights": weights,
    }, list(most.grid)  # fmt: skip


def problems(row: dict, gpu: Gpu) -> list[str]:
    """The budgets that a summary with its arithmetic breaks."""
    found = []
    if row["stack"]:
        found.append(f"{row['stack']} bytes of stack ({row['spills']} accesses in the loop)")
    if row["shared"] > gpu.chip.shared:
        found.append(f"{row['shared']} bytes of shared memory, {gpu.chip.shared} are there")
    if kind_of(row["arithmetic"]) in ("half", "tf32") and not row["tensor"] and row["weights"] != "none":
        found.append("no tensor-core instruction")
    if row["weights"] == "loaded again":
        found.append("weights are loaded again in the loop")
    return found
