"""The Triton kernels compiled for GPUs that are not here: no spills, shared memory within the chip, tensor cores used.

Runs without TRITON_INTERPRET (an interpreted kernel cannot be compiled).
"""

import os

import pytest
import torch
from common import make_case

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip(
        "needs a process without TRITON_INTERPRET=1: python -m pytest tests/test_triton_compiled.py",
        allow_module_level=True,
    )

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton_offline import compile_kernel, facts

from rnnkernels.triton import launch, loop, schedules
from rnnkernels.triton.cells import CELLS, PROJECTION

CHIPS = {
    "sm_80": schedules.Chip("A100", "cuda", 80, 166_912, 108),
    "sm_90": schedules.Chip("H100", "cuda", 90, 232_448, 132),
    "sm_100": schedules.Chip("B200", "cuda", 100, 232_448, 148),
    "gfx942": schedules.Chip("MI300X", "hip", 0, 65_536, 304),
}
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64"}


def compiled(arch, cell, dtype, tiles, H, K=None, backward=False, lengths=True, save=True):
    """The facts of one pass of a layer, both directions, as passes.py would launch it."""
    pointer, wide = TYPES[dtype], "*fp64" if dtype == torch.float64 else "*fp32"
    resident, two = tiles.schedule == "resident", cell.states > 1
    state = pointer if resident else wide
    arguments = {name: "i32" for name in ("begin", "end", "T", "B", "D", "length_x")}
    arguments |= {"w": pointer, "lengths": "*i64" if lengths else None}
    arguments |= {"gates": pointer if cell.kept and save else None}
    constants = {
        "ACTIVATION": "tanh", "S": cell.states, "KEPT": cell.kept, "H": H, "K": K or H, "BH": tiles.BH, "BB": tiles.BB,
        "BK": tiles.BK, "REVERSE": 2, "DIRECTIONS": 2, "RESIDENT": resident, "STAGES": tiles.stages,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "PRECISION": schedules.precision(dtype, CHIPS[arch]),
    }  # fmt: skip
    if backward:
        arguments |= {
            "dy": pointer, "dcells": None, "saved": (pointer, wide)[: cell.states], "s_first": (pointer,) * cell.states,
            "ds_in": (state,) * cell.states, "ds_out": (wide,) * cell.states, "source": pointer, "planes": pointer,
        }  # fmt: skip
        constants |= {
            "CELL": cell.backward, "PLANES": cell.planes, "NEW": cell.new, "OLD": cell.old, "SOURCE": cell.planes,
            "READS": cell.recurrent, "LAG": 1,
        }  # fmt: skip
        kernel = loop.scan_backward
    else:
        arguments |= {name: "i32" for name in ("x_d", "x_t", "x_b")}
        arguments |= {
            "x": None if cell is PROJECTION else pointer, "bias": pointer if cell.recurrent_bias else None,
            "s_in": (state,) * cell.states, "s_out": (state,) * cell.states, "y": pointer,
            "h_in": None if resident else pointer, "h_out": None if resident else pointer,
            "cells": wide if two and save else None,
        }  # fmt: skip
        constants |= {"CELL": cell.forward, "G": cell.gates}
        kernel = loop.scan_forward
    aligned = ("x_d", "x_t", "x_b") if H % 16 == 0 else ()
    return facts(compile_kernel(kernel, arguments, constants, arch, aligned, num_warps=tiles.warps))


KINDS = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "double": torch.float64}


def check(found, arch, tensor):
    assert found["stack"] == 0, f"{found['registers']} registers and {found['stack']} bytes of spills"
    assert found["shared"] <= CHIPS[arch].shared
    assert found["tensor"] or not tensor, "no tensor cores"


KINDS_OF = {  # the arithmetics to compile; what is the same code as on another chip is compiled there
    "sm_80": ("half", "tf32", "ieee"),
    "sm_90": ("half", "tf32", "double"),
    "sm_100": ("half", "tf32"),
    "gfx942": ("half", "ieee", "double"),
}


def cells_of(arch, kind, largest):
    """LSTM has most registers; the other cells are compiled where tiles are largest."""
    return list(CELLS) if (arch, kind, largest) == ("sm_90", "half", True) else ["lstm"]


def resident_cases():
    for arch, kinds in KINDS_OF.items():
        for kind in kinds:
            limits = schedules.row(schedules.RESIDENT, kind, CHIPS[arch])
            for limit in limits:
                for cell in cells_of(arch, kind, limit is limits[-1]):
                    if arch != "sm_100" or limit.H >= 64:
                        yield pytest.param(arch, kind, cell, limit.H, id=f"{arch}-{kind}-{cell}-{limit.H}")
    for arch, cell, H in (("sm_90", "gru", 100), ("sm_80", "lstm", 40), ("sm_90", "lstm", 20)):
        yield pytest.param(arch, "half", cell, H, id=f"{arch}-half-{cell}-{H}")


@pytest.mark.parametrize("arch, kind, name, H", list(resident_cases()))
def test_resident(arch, kind, name, H, monkeypatch):
    """All that the chooser keeps on chip: no spills, within the estimate, and no weights loaded in the loop."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32" if kind == "tf32" else "ieee")
    cell, chip = CELLS[name], CHIPS[arch]
    for backward in (False, True):
        reads = schedules.bytes_read(cell, kind, backward)
        tiles = schedules.resident(kind, cell.gates, reads, H, chip, backward)
        if isinstance(tiles, str):
            assert backward and arch == "gfx942", tiles
            continue
        found = compiled(arch, cell, KINDS[kind], tiles, H, backward=backward)
        check(found, arch, kind in ("half", "tf32"))
        assert found["shared"] <= schedules.shared_bytes(kind, cell.gates, reads, tiles) or chip.backend == "hip"
        if "LDG" in found["loop"] and H % 16 == 0:
            loads = found["loop"].get("LDG", 0) + found["loop"].get("LDGSTS", 0)
            weights = cell.gates * tiles.BH * tiles.BK * schedules.BYTES[kind] // (512 * tiles.warps)
            assert loads < weights or H < 64, f"{loads} loads in the loop, where the weights would take {weights}"


def stepwise_cases():
    for arch, kinds in KINDS_OF.items():
        for kind in kinds:
            for at in range(len(schedules.row(schedules.STEPWISE, kind, CHIPS[arch]))):
                yield pytest.param(arch, kind, at, id=f"{arch}-{kind}-{at}")


@pytest.mark.parametrize("arch, kind, at", list(stepwise_cases()))
def test_stepwise(arch, kind, at, monkeypatch):
    """Every row of the table of stepwise launches, at a hidden size that is no multiple of the tiles."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32" if kind == "tf32" else "ieee")
    step = schedules.row(schedules.STEPWISE, kind, CHIPS[arch])[at]
    tiles = schedules.Tiles("stepwise", *step, 2 if arch == "gfx942" else 3, "")
    for cell in cells_of(arch, kind, at == 0):
        for backward in (False, True):
            found = compiled(arch, CELLS[cell], KINDS[kind], tiles, 1000, backward=backward)
            check(found, arch, kind in ("half", "tf32"))


def test_projection_is_the_same_loop():
    tiles = schedules.Tiles("stepwise", 64, 16, 64, 4, 3, "")
    for backward in (False, True):
        found = compiled("sm_90", PROJECTION, torch.bfloat16, tiles, 256, K=1024, backward=backward)
        check(found, "sm_90", True)


def test_inference_in_fp16():
    tiles = schedules.choose(torch.float16, CELLS["lstm"], 64, 2, 128, 128, False, CHIPS["sm_90"])
    assert tiles.schedule == "resident"
    check(compiled("sm_90", CELLS["lstm"], torch.float16, tiles, 128, lengths=False, save=False), "sm_90", True)


class Hopper:
    """A driver of Triton for a GPU that is not there."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def launched(monkeypatch):
    """The kernels that launches compile, which do not run: the list of their hash and shared memory, per launch."""
    run, found = JITFunction.run, []

    def compile_only(kernel, *args, warmup, **kwargs):
        made = run(kernel, *args, warmup=True, **kwargs)
        found.append((made.hash, made.metadata.shared))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(schedules, "chip_of", lambda device: CHIPS["sm_90"])
    monkeypatch.setattr(driver, "_active", Hopper())
    yield found
    for kernel in (loop.scan_forward, loop.scan_backward):
        kernel.device_caches.clear()


@pytest.mark.parametrize("cell, T, H, P, launches, kernels", [
    ("gru", 9, 64, 0, 2, 2), ("lstm", 18, 200, 0, 36, 6), ("lstm", 18, 200, 72, 72, 12),
])  # fmt: skip
def test_launches_through_the_jit(cell, T, H, P, launches, kernels, launched):
    """The calls as passes.py makes them: one launch, or one per step, of kernels that do not multiply with T and B."""
    case = make_case(cell, T=T, B=5, I=16, H=H, P=P, reverse=(False, True), dtype=torch.bfloat16)
    x, states, weights = case.split(case.detached())
    lengths = torch.arange(5)
    args = (cell, x, states, weights, [False, True], True, P > 0, None, None, lengths, None, [], None, [], False, 1e-5)
    y, last, saved = launch.layer(*args, True)
    launch.layer_backward(y, last, None, *args, y, saved, [True] * 3)
    assert len(launched) == launches and len(set(launched)) <= kernels
    assert max(shared for _, shared in launched) <= CHIPS["sm_90"].shared


@pytest.mark.parametrize(
    "H, dtype, B, schedule",
    [
        (64, torch.bfloat16, 16, "resident"),
        (128, torch.float16, 16, "resident"),
        (129, torch.float16, 16, "stepwise"),
        (64, torch.float32, 16, "resident"),
        (128, torch.float32, 16, "stepwise"),
        (16, torch.float64, 16, "stepwise"),
    ],
)
def test_chooser(H, dtype, B, schedule, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    tiles = schedules.choose(dtype, CELLS["lstm"], B, 1, H, H, False, CHIPS["sm_90"])
    assert tiles.schedule == schedule and tiles.reason


def test_chooser_gives_every_processor_a_program():
    large = schedules.choose(torch.bfloat16, CELLS["lstm"], 1024, 1, 512, 512, False, CHIPS["sm_90"])
    small = schedules.choose(torch.bfloat16, CELLS["lstm"], 1, 1, 512, 512, False, CHIPS["sm_90"])
    assert (large.BH, large.BB) == (64, 32) and (small.BH, small.BB) == (32, 16)


def test_forced_schedule_that_cannot_run():
    with schedules.force("resident"), pytest.raises(RuntimeError, match="forced but cannot run this layer: forward"):
        schedules.choose(torch.float64, CELLS["gru"], 1, 1, 512, 512, False, CHIPS["sm_90"])
    with pytest.raises(ValueError, match="Expected a schedule out of resident, stepwise"):
        schedules.force("persistent").__enter__()
