"""The Triton kernels compiled for GPUs that are not here: no spills, shared memory within the chip, tensor cores used.

Runs without TRITON_INTERPRET (an interpreted kernel cannot be compiled).
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip(
        "needs a process without TRITON_INTERPRET=1: python -m pytest tests/gpu/test_triton_compiled.py",
        allow_module_level=True,
    )

import triton_offline
from machine_code import facts
from pairwise import among
from triton_offline import ARCHS

from rnnkernels.backends.triton import schedules
from rnnkernels.backends.triton.cells import CELLS

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 tells of 3.10's default

KINDS = {"half": torch.bfloat16, "tf32": torch.float32, "tf32x3": torch.float32, "ieee": torch.float32}
KINDS |= {"double": torch.float64}


def compiled(arch, cell, kind, H, T=2, **more):
    """Both passes of a layer of two directions, with states and lengths, as the launcher launches them."""
    more = {"reverse": (False, True), "states": True, "stages": ("lengths",), "arithmetic": kind} | more
    return triton_offline.launches(ARCHS[arch], cell, KINDS[kind], T, 16, H, **more)


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
    all_of_them = largest and (arch, kind) in (("sm_90", "half"), ("gfx942", "double"))
    return list(CELLS) if all_of_them else ["lstm"]


def resident_cases():
    for arch, kinds in KINDS_OF.items():
        for kind in kinds:
            limits = schedules.row(schedules.RESIDENT, kind, ARCHS[arch].chip)
            for limit in limits:
                for cell in cells_of(arch, kind, limit is limits[-1]):
                    if arch != "sm_100" or limit.H >= 64:
                        yield pytest.param(arch, kind, cell, limit.H, id=f"{arch}-{kind}-{cell}-{limit.H}")
    for arch, kind, cell, H in (
        ("sm_90", "half", "gru", 100), ("sm_80", "half", "lstm", 40), ("sm_90", "half", "lstm", 20),
        ("sm_80", "half", "gru_reset_before", 128), ("sm_90", "tf32", "gru_reset_before", 64),
        ("sm_100", "tf32", "gru_reset_before", 64),
    ):  # fmt: skip
        yield pytest.param(arch, kind, cell, H, id=f"{arch}-{kind}-{cell}-{H}")


RESIDENT = list(resident_cases())
DEAREST = [case for case in RESIDENT if case.values == ("sm_90", "half", "lstm", 128)]  # most registers of all
CHOSEN = among(RESIDENT, 1)


@pytest.mark.parametrize("arch, kind, name, H", CHOSEN + [case for case in DEAREST if case not in CHOSEN])
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
        assert not triton_offline.reloads(cell, tiles, kind, H, H, backward, found), found


ALL_STAGES = ("lengths", "reset", "restart", "h_mask", "zone")


def shared_tiles(share, kind):
    return schedules.tiles_of(share, kind)


STAGES = {"plain": (), "all stages": ALL_STAGES}


def cooperative_cases():
    """Every row of the table at the widest product of each pass that fits the chip, and at one of odd pieces."""
    for arch in ("sm_80", "sm_86", "sm_90", "sm_100"):
        for kind in ("half", "tf32", "tf32x3", "ieee") if arch == "sm_90" else ("half", "tf32"):
            for share in schedules.row(schedules.COOPERATIVE, kind, ARCHS[arch].chip):
                for backward, most in ((False, share.K), (True, share.K_back)):
                    for H in sorted({most, most * 5 // 8} if arch == "sm_90" else {most}):
                        bytes_ = schedules.cooperative_bytes(kind, 4, H, shared_tiles(share, kind))
                        if 0 < H and bytes_ <= ARCHS[arch].chip.shared:
                            name = "backward" if backward else "forward"
                            case = f"{arch}-{kind}-{share.BH}x{share.BB}x{share.warps}-{name}-{H}"
                            for stages in STAGES:
                                value = arch, kind, "lstm", share, H, backward, stages
                                yield pytest.param(*value, id=f"{case}-{stages}")
    share = next(share for share in schedules.COOPERATIVE["half"] if share.K >= 1000)
    for cell, H in (("gru", 1000), ("rnn", 1000), ("gru_reset_before", 1000)):
        for backward in (False, True):
            for stages in STAGES:
                value = "sm_90", "half", cell, share, H, backward, stages
                yield pytest.param(*value, id=f"sm_90-{cell}-{backward}-{H}-{stages}")


@pytest.mark.parametrize("arch, kind, cell, share, H, backward, stages", among(cooperative_cases(), 1))
def test_cooperative(arch, kind, cell, share, H, backward, stages):
    """No spills, within the estimate, no weights loaded in the loop; an arrival, and a wait, at each step."""
    tiles, passes = shared_tiles(share, kind), (triton_offline.PASSES[backward],)
    more = dict(stages=STAGES[stages], tiles=tiles, reverse=(False,), passes=passes)
    (launch,) = compiled(arch, cell, kind, H, **more)
    found = check(launch, arch, kind != "ieee")
    assert found["shared"] <= schedules.cooperative_bytes(kind, CELLS[cell].gates, H, tiles)
    if not STAGES[stages]:
        assert not triton_offline.reloads(CELLS[cell], tiles, kind, H, H, backward, found), found
    assert launch.compiled.metadata.launch_cooperative_grid
    barriers = 1 if CELLS[cell].first is None else 2
    assert found["atomics"] == barriers and "CCTL" in found["opcodes"], "arrivals that release, waits that acquire"


def stepwise_cases():
    for arch, kinds in KINDS_OF.items():
        for kind in kinds:
            for at in range(len(schedules.row(schedules.STEPWISE, kind, ARCHS[arch].chip))):
                yield pytest.param(arch, kind, at, id=f"{arch}-{kind}-{at}")


@pytest.mark.parametrize("arch, kind, at", among(stepwise_cases(), 1))
def test_stepwise(arch, kind, at):
    """Every row of the table of stepwise launches, at a hidden size that is no multiple of the tiles."""
    step = schedules.row(schedules.STEPWISE, kind, ARCHS[arch].chip)[at]
    tiles = schedules.streamed(step, kind, ARCHS[arch].chip)
    for cell in cells_of(arch, kind, at == 0):
        for launch in compiled(arch, cell, kind, 1000, tiles=tiles):
            check(launch, arch, kind in ("half", "tf32"))


def norm_cases():
    """The largest tiles on chip, and those of the first row of stepwise launches."""
    for arch, kind in (
        ("sm_80", "half"), ("sm_80", "tf32"), ("sm_90", "half"), ("sm_90", "tf32"), ("sm_100", "half"),
        ("sm_100", "tf32"), ("gfx942", "half"), ("gfx942", "ieee"),
    ):  # fmt: skip
        for cell in ("lstm", "gru_reset_before") if arch in ("sm_80", "sm_90") else ("lstm",):
            for schedule in ("resident", "stepwise"):
                yield pytest.param(arch, kind, cell, schedule, id=f"{arch}-{kind}-{cell}-{schedule}")


@pytest.mark.parametrize("arch, kind, cell, schedule", among(norm_cases(), 1))
def test_layer_norm(arch, kind, cell, schedule):
    chip, tiles = ARCHS[arch].chip, None
    H = schedules.row(schedules.RESIDENT, kind, chip)[-1].H
    if schedule == "stepwise":
        H, tiles = 1000, schedules.streamed(schedules.row(schedules.STEPWISE, kind, chip)[0], kind, chip, norm=True)
    for launch in compiled(arch, cell, kind, H, stages=("lengths", "layer_norm"), tiles=tiles, reverse=(False,)):
        found = check(launch, arch, False)
        if launch.tiles.schedule == "resident":
            reads = schedules.bytes_read(CELLS[cell], kind, launch.backward, norm=True)
            most = schedules.shared_bytes(kind, CELLS[cell].gates, reads, launch.tiles)
            assert (found["shared"] <= most or arch == "gfx942") and (found["tensor"] or kind == "ieee")
        else:
            assert schedule == "stepwise" or (launch.backward and arch == "gfx942"), launch.tiles.reason


WAITS = {"rnn": (2, 1), "lstm": (3, 2), "gru": (2, 1), "gru_reset_before": (4, 2)}  # in a step, forward and backward


def cooperative_norm_cases():
    """The widest product of each pass that fits the chip."""
    for arch, kind, cells in (
        ("sm_80", "half", ["lstm"]), ("sm_90", "half", CELLS), ("sm_90", "tf32", ["lstm"]), ("sm_90", "ieee", ["lstm"]),
        ("sm_100", "half", ["lstm"]), ("sm_100", "tf32", ["lstm"]),
    ):  # fmt: skip
        for cell in cells:
            for backward in (False, True):
                yield pytest.param(arch, kind, cell, backward, id=f"{arch}-{kind}-{cell}-{backward}")


@pytest.mark.parametrize("arch, kind, cell, backward", among(cooperative_norm_cases(), 1))
def test_cooperative_layer_norm(arch, kind, cell, backward):
    """As without norms, but that float32 may keep four values that wait for the end of the loop on the stack."""
    shares = schedules.row(schedules.COOPERATIVE, kind, ARCHS[arch].chip)
    share = next(share for share in shares if share.warps == 8)
    H, passes = share.K_back if backward else share.K, (triton_offline.PASSES[backward],)
    tiles, stages = schedules.tiles_of(share, kind, norm=True), ("lengths", "layer_norm")
    (launch,) = compiled(arch, cell, kind, H, tiles=tiles, stages=stages, reverse=(False,), passes=passes)
    found = facts(launch.compiled)
    assert found["stack"] <= (0 if kind == "half" else 16) and found["spills"] == 0
    assert found["shared"] <= schedules.cooperative_bytes(kind, CELLS[cell].gates, H, tiles) <= ARCHS[arch].chip.shared
    assert found["atomics"] == WAITS[cell][backward] and (found["tensor"] or kind == "ieee")
    assert not triton_offline.reloads(CELLS[cell], tiles, kind, H, H, backward, found, norm=True), found


def test_projection_is_the_same_loop():
    tiles = schedules.Tiles("stepwise", 32, 16, 32, 4, 3, "")
    found = compiled("sm_90", "lstm", "half", 512, T=4, P=128, tiles=tiles)
    assert len(found) == 16 and {launch.grid[1] for launch in found} == {16, 4}
    assert len({launch.compiled.hash for launch in found}) <= 12  # they do not multiply with T
    for launch in found:
        check(launch, "sm_90", True)


def test_inference_in_fp16():
    (launch,) = triton_offline.launches(ARCHS["sm_90"], "lstm", torch.float16, 1, 64, 128, train=False)
    assert launch.tiles.schedule == "resident"
    check(launch, "sm_90", True)


@pytest.mark.parametrize("cell, T, H, P, launches, kernels", [
    ("gru", 9, 64, 0, 2, 2), ("lstm", 18, 200, 0, 2, 2), ("rnn", 18, 2000, 0, 36, 6),
    pytest.param("lstm", 18, 2000, 0, 36, 6, marks=pytest.mark.long),
    pytest.param("lstm", 18, 200, 72, 72, 12, marks=pytest.mark.long),  # as above
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
        (1000, torch.bfloat16, 16, "cooperative"),
        (1024, torch.bfloat16, 32, "cooperative"),
        (1024, torch.bfloat16, 96, "stepwise"),
        (2048, torch.bfloat16, 1, "stepwise"),
        (129, torch.float16, 1024, "stepwise"),
        (64, torch.float32, 16, "resident"),
        (128, torch.float32, 16, "cooperative"),
        (16, torch.float64, 16, "stepwise"),
    ],
)
def test_chooser(H, dtype, B, schedule, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    tiles = schedules.choose(dtype, CELLS["lstm"], B, 1, H, H, False, ARCHS["sm_90"].chip)
    assert tiles.schedule == schedule and tiles.reason


def test_chooser_reads_little_and_uses_many_processors():
    def tiles(B, H):
        return schedules.choose(torch.bfloat16, CELLS["lstm"], B, 1, H, H, False, ARCHS["sm_90"].chip)

    large, small, long = tiles(1024, 512), tiles(1, 2048), tiles(96, 1024)
    assert (long.BH, long.BB) == (64, 32)  # the smallest would fill the chip, and read the weights six times
    assert (large.schedule, large.BH, large.BB) == ("stepwise", 64, 32)
    assert (small.schedule, small.BH, small.BB) == ("stepwise", 32, 16)
    assert [tiles(B, 256)[:3] for B in (16, 64)] == [("cooperative", 8, 16)] * 2
    assert [tiles(B, 1024).schedule for B in (16, 32, 64)] == ["cooperative", "cooperative", "stepwise"]


def test_chooser_goes_by_what_was_measured():
    """Forward a launch per step is faster than 16 units a program, where products are short; backward it is not."""
    chip, cell = ARCHS["sm_90"].chip, CELLS["lstm"]
    for B, tile in ((128, (16, 16)), (256, (16, 32))):
        forward, backward = (
            schedules.choose(torch.bfloat16, cell, B, 1, 256, 256, False, chip, back) for back in (False, True)
        )
        assert forward.schedule == "stepwise"
        assert (backward.schedule, backward.BH, backward.BB) == ("cooperative", *tile)


def test_chooser_says_why_not():
    """The properties of a chip decide: the same layer on a chip with fewer processors, less memory, or from AMD."""
    chip = ARCHS["sm_90"].chip
    for other, why in (
        (chip, "programs keep 64 KB of weights each"),
        (chip._replace(processors=50), "64 programs do not run at once on 50 processors"),
        (chip._replace(shared=64 << 10), "share of the weights does not fit the shared memory"),
        (ARCHS["gfx942"].chip, "only proved on NVIDIA's memory model"),
    ):
        tiles = schedules.choose(torch.bfloat16, CELLS["lstm"], 16, 1, 1024, 1024, False, other)
        assert why in tiles.reason, tiles


@pytest.mark.parametrize("parts", [4, 8])
@pytest.mark.parametrize("width", [16, 20, 127, 192, 640, 768, 1000, 1024])
def test_pieces_cover_a_product_once(width, parts):
    """Powers of two that follow each other, and no more padding than a multiple of 16 times the parts needs."""
    found, at = schedules.pieces(width, parts, 64), 0
    for start, size in found:
        assert start == at and size in (16, 32, 64)
        at += parts * size
    assert width <= at < width + 16 * parts


def test_forced_schedule_that_cannot_run():
    with schedules.force("resident"), pytest.raises(RuntimeError, match="forced but cannot run this layer: forward"):
        schedules.choose(torch.float64, CELLS["gru"], 1, 1, 512, 512, False, ARCHS["sm_90"].chip)
    with pytest.raises(ValueError, match="Expected a schedule out of resident, cooperative, stepwise"):
        schedules.force("persistent").__enter__()
