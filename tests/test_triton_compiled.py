"""The Triton kernels compiled for GPUs that are not here: no spills, shared memory within the chip, tensor cores used.

Runs without TRITON_INTERPRET (an interpreted kernel cannot be compiled).
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip(
        "needs a process without TRITON_INTERPRET=1: python -m pytest tests/test_triton_compiled.py",
        allow_module_level=True,
    )

from benchmarks import dry, offline
from benchmarks.chips import ARCHS
from benchmarks.machine_code import facts
from rnnkernels.triton import schedules
from rnnkernels.triton.cells import CELLS

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 tells of 3.10's default

KINDS = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "double": torch.float64}


def compiled(arch, cell, kind, H, T=2, **more):
    """Both passes of a layer of two directions, with states and lengths, as the launcher launches them."""
    more = {"reverse": (False, True), "states": True, "stages": ("lengths",), "arithmetic": kind} | more
    return dry.launches(ARCHS[arch], cell, KINDS[kind], T, 16, H, **more)


def check(launch, arch, tensor):
    found = facts(launch.compiled)
    assert found["stack"] == 0, f"{found['registers']} registers and {found['stack']} bytes of spills"
    assert found["shared"] <= ARCHS[arch].chip.shared
    assert found["tensor"] or not tensor, "no tensor cores"
    return found


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
            limits = schedules.row(schedules.RESIDENT, kind, ARCHS[arch].chip)
            for limit in limits:
                for cell in cells_of(arch, kind, limit is limits[-1]):
                    if arch != "sm_100" or limit.H >= 64:
                        yield pytest.param(arch, kind, cell, limit.H, id=f"{arch}-{kind}-{cell}-{limit.H}")
    for arch, cell, H in (("sm_90", "gru", 100), ("sm_80", "lstm", 40), ("sm_90", "lstm", 20)):
        yield pytest.param(arch, "half", cell, H, id=f"{arch}-half-{cell}-{H}")


@pytest.mark.parametrize("arch, kind, name, H", list(resident_cases()))
def test_resident(arch, kind, name, H):
    """All that the chooser keeps on chip: no spills, within the estimate, and no weights loaded in the loop."""
    cell = CELLS[name]
    for launch in compiled(arch, name, kind, H):
        tiles, backward = launch.tiles, launch.backward
        if tiles.schedule != "resident":
            assert backward and arch == "gfx942", tiles.reason
            continue
        found = check(launch, arch, kind in ("half", "tf32"))
        reads = schedules.bytes_read(cell, kind, backward)
        assert found["shared"] <= schedules.shared_bytes(kind, cell.gates, reads, tiles) or arch == "gfx942"
        assert not offline.reloads(cell, tiles, kind, H, H, backward, found), found


def cooperative_cases():
    """Every row of the table on sm_90; elsewhere the last, which has most registers."""
    for arch, kinds in (("sm_90", ("half", "tf32", "ieee")), ("sm_80", ("half", "tf32")), ("sm_100", ("half", "tf32"))):
        for kind in kinds:
            shares = schedules.row(schedules.COOPERATIVE, kind, ARCHS[arch].chip)
            for at in range(len(shares)) if arch == "sm_90" else [len(shares) - 1]:
                yield pytest.param(arch, kind, at, id=f"{arch}-{kind}-{at}")


@pytest.mark.parametrize("arch, kind, at", list(cooperative_cases()))
def test_cooperative(arch, kind, at, monkeypatch):
    """The widest product that a row is chosen for, in both passes: no spills, within the estimate, weights on chip; the
    programs are told to run at once, and wait by one atomic operation."""
    share, chip = schedules.row(schedules.COOPERATIVE, kind, ARCHS[arch].chip)[at], ARCHS[arch].chip
    monkeypatch.setattr(schedules, "COOPERATIVE", {kind: (share,)})

    def tiles_for(H, backward):
        return schedules.cooperative(kind, 4, 1, 1, H, H, chip._replace(processors=1024), backward)

    for backward in (False, True):
        H = share.K_back if backward else share.K
        while isinstance(tiles := tiles_for(H, backward), str):
            H -= 16  # more weights than fit
        for launch in compiled(arch, "lstm", kind, H, tiles=tiles, train=backward):
            if launch.backward == backward:
                found = check(launch, arch, kind != "ieee")
                assert found["shared"] <= schedules.cooperative_bytes(kind, 4, H, tiles)
                assert not offline.reloads(CELLS["lstm"], tiles, kind, H, H, backward, found), found
                assert launch.compiled.metadata.launch_cooperative_grid and found["atomics"] == 1


def stepwise_cases():
    for arch, kinds in KINDS_OF.items():
        for kind in kinds:
            for at in range(len(schedules.row(schedules.STEPWISE, kind, ARCHS[arch].chip))):
                yield pytest.param(arch, kind, at, id=f"{arch}-{kind}-{at}")


@pytest.mark.parametrize("arch, kind, at", list(stepwise_cases()))
def test_stepwise(arch, kind, at):
    """Every row of the table of stepwise launches, at a hidden size that is no multiple of the tiles."""
    step = schedules.row(schedules.STEPWISE, kind, ARCHS[arch].chip)[at]
    tiles = schedules.Tiles("stepwise", *step, 2 if arch == "gfx942" else 3, "")
    for cell in cells_of(arch, kind, at == 0):
        for launch in compiled(arch, cell, kind, 1000, tiles=tiles):
            check(launch, arch, kind in ("half", "tf32"))


def test_projection_is_the_same_loop():
    tiles = schedules.Tiles("stepwise", 64, 16, 64, 4, 3, "")
    found = compiled("sm_90", "lstm", "half", 1024, P=256, tiles=tiles)
    assert len(found) == 8 and {launch.grid[1] for launch in found} == {16, 4}
    for launch in found:
        check(launch, "sm_90", True)


def test_inference_in_fp16():
    (launch,) = dry.launches(ARCHS["sm_90"], "lstm", torch.float16, 1, 64, 128, train=False)
    assert launch.tiles.schedule == "resident"
    check(launch, "sm_90", True)


@pytest.mark.parametrize("cell, T, H, P, launches, kernels", [
    ("gru", 9, 64, 0, 2, 2), ("gru", 9, 200, 0, 2, 2), ("lstm", 18, 2000, 0, 36, 6), ("lstm", 18, 200, 72, 72, 12),
])  # fmt: skip
def test_launches_of_a_sequence(cell, T, H, P, launches, kernels):
    """One launch, or one per step, of kernels that do not multiply with T."""
    found = compiled("sm_90", cell, "half", H, T, P=P)
    assert len(found) == launches and len({launch.compiled.hash for launch in found}) <= kernels
    for launch in found:
        check(launch, "sm_90", True)


@pytest.mark.parametrize(
    "H, dtype, B, schedule",
    [
        (64, torch.bfloat16, 16, "resident"),
        (128, torch.float16, 16, "resident"),
        (129, torch.float16, 16, "cooperative"),
        (129, torch.float16, 256, "stepwise"),
        (64, torch.float32, 16, "resident"),
        (128, torch.float32, 16, "cooperative"),
        (16, torch.float64, 16, "stepwise"),
    ],
)
def test_chooser(H, dtype, B, schedule, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    tiles = schedules.choose(dtype, CELLS["lstm"], 9, B, 1, H, H, False, ARCHS["sm_90"].chip)
    assert tiles.schedule == schedule and tiles.reason


def test_chooser_gives_every_processor_a_program():
    large = schedules.choose(torch.bfloat16, CELLS["lstm"], 9, 1024, 1, 512, 512, False, ARCHS["sm_90"].chip)
    small = schedules.choose(torch.bfloat16, CELLS["lstm"], 1, 1, 1, 512, 512, False, ARCHS["sm_90"].chip)
    assert (large.BH, large.BB) == (64, 32) and (small.BH, small.BB) == (32, 16)


def test_forced_schedule_that_cannot_run():
    with schedules.force("resident"), pytest.raises(RuntimeError, match="forced but cannot run this layer: forward"):
        schedules.choose(torch.float64, CELLS["gru"], 9, 1, 1, 512, 512, False, ARCHS["sm_90"].chip)
    with pytest.raises(ValueError, match="Expected a schedule out of resident, cooperative, stepwise"):
        schedules.force("persistent").__enter__()
