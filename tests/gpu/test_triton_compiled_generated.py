"""Generated cells compiled for a GPU that is not here: as good as hand-written ones, and others without spills.

Runs without TRITON_INTERPRET (an interpreted kernel cannot be compiled).
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip(
        "needs a process without TRITON_INTERPRET=1: python -m pytest tests/gpu/test_triton_compiled_generated.py",
        allow_module_level=True,
    )

import triton_offline
from generated_cases import CELLS, NORMED
from hand_written import hand_written
from machine_code import facts, resources
from pairwise import ALL, in_turn
from triton_offline import ARCHS, PASSES

from rnnkernels.backends.triton import problem, schedules

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 tells of 3.10's default

SIZES = {"resident": 64, "resident, largest": 128, "cooperative": 512, "stepwise": 1100}
STAGES = {"plain": (), "all stages": ("lengths", "reset", "restart", "h_mask", "zone")}


def compiled(cell, H, stages=(), arch="sm_90", dtype=torch.bfloat16, arithmetic="ieee", passes=PASSES):
    """A layer of two directions, with states."""
    more = dict(reverse=(False, True), states=True, stages=stages, arithmetic=arithmetic, passes=passes)
    return triton_offline.launches(ARCHS[arch], cell, dtype, 2, 16, H, **more)


# A pass in turn in the short suite, of what has most kernels.
@pytest.mark.parametrize("cell, size, backward", in_turn(["lstm", "gru"], SIZES, [True, False]))
def test_as_good_as_hand_written(cell, size, backward, monkeypatch):
    """The built-in cells, and programs that compute the same: the same schedule, the same number of launches, no more
    stack, and no more instructions in the loop, but for how the compiler orders them."""
    names = [cell, CELLS[cell].text]  # in turn in the short suite: they become source in the same way
    names = names if ALL else names[list(SIZES).index(size) // 2 :][:1]
    found = [compiled(name, SIZES[size], passes=PASSES[backward:][:1]) for name in names]
    monkeypatch.setattr(problem, "cell_of", hand_written)
    theirs = compiled(cell, SIZES[size], passes=PASSES[backward:][:1])
    for ours in found:
        assert len(ours) == len(theirs) > (size == "stepwise")
        for own, other in zip(ours, theirs, strict=True):
            assert own.tiles == other.tiles and own.backward == other.backward == backward
            own, other = facts(own.compiled), facts(other.compiled)
            assert own["stack"] <= other["stack"] and own["shared"] <= other["shared"]
            assert own["instructions"] <= other["instructions"] * 1.01 and own["tensor"] == other["tensor"]


MOST_STACK = 32  # bytes of a thread


# Those of the built-in cells are compiled above.
OTHERS = [name for name in CELLS if ALL or name not in ("rnn", "lstm", "gru", "gru_reset_before", "peephole_lstm")]


@pytest.mark.parametrize("cell, size, stages", in_turn(OTHERS, SIZES, STAGES))
def test_other_cells(cell, size, stages):
    """They compile, and fit a chip's shared memory; products on tensor cores."""
    for launch in compiled(CELLS[cell].text, SIZES[size], STAGES[stages]):
        found = facts(launch.compiled)
        assert found["stack"] <= MOST_STACK and found["shared"] <= ARCHS["sm_90"].chip.shared
        assert found["tensor"] or not CELLS[cell].recurrent


@pytest.mark.parametrize("backward", [False, True])
def test_a_launch_per_step_of_many_gates(backward):
    """The tiles of a step of many rows shrink until they fit, and take the bytes that schedules.py counts."""
    (launch,) = [
        each for each in triton_offline.launches(
            ARCHS["sm_90"], CELLS["many_gates"].text, torch.bfloat16, 2, 64, 2048, passes=PASSES[backward:][:1]
        ) if each.tiles.schedule == "stepwise"
    ][:1]  # fmt: skip
    counted = schedules.streamed_bytes("half", 7, launch.tiles, backward)
    assert resources(launch.compiled)["shared"] <= counted <= ARCHS["sm_90"].chip.shared


@pytest.mark.parametrize("arch, dtype", [("sm_80", torch.float32), ("gfx942", torch.float16), ("sm_90", torch.float64)])
def test_other_chips(arch, dtype):
    cell = "every_operation" if dtype == torch.float64 else "crossing"
    for launch in compiled(CELLS[cell].text, 32, ("lengths",), arch, dtype):
        assert resources(launch.compiled)["shared"] <= ARCHS[arch].chip.shared


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
@pytest.mark.parametrize("cell", NORMED)
def test_norms_inside_the_cell(cell, arch):
    """They compile for one program with all units of a row, and fit."""
    for launch in compiled(NORMED[cell].text, 32, ("lengths",), arch):
        assert launch.tiles.schedule == "resident" and launch.tiles.BH == 32
        found = resources(launch.compiled)
        assert found["stack"] <= MOST_STACK and found["shared"] <= ARCHS[arch].chip.shared


@pytest.mark.parametrize("cell, waits", [("normed", (3, 5)), ("normed_inner", (8, 12))])
def test_norms_between_programs(cell, waits):
    """Programs that share rows keep their weights, and wait once for each norm and for each product."""
    for launch in compiled(NORMED[cell].text, 256, ("lengths",)):
        found = facts(launch.compiled)
        assert launch.tiles.schedule == "cooperative" and found["atomics"] == waits[launch.backward]
        assert found["stack"] <= MOST_STACK and found["shared"] <= ARCHS["sm_90"].chip.shared and found["tensor"]


@pytest.mark.parametrize(
    "cell, size, backward", in_turn(["peephole_lstm", "crossing"], ["resident", "stepwise"], [False, True])
)
def test_layer_norm(cell, size, backward):
    """They compile and fit; norms in cells with so many tiles spill."""
    for launch in compiled(CELLS[cell].text, SIZES[size], ("layer_norm", "lengths"), passes=PASSES[backward:][:1]):
        found = resources(launch.compiled)
        assert found["stack"] <= 6 * MOST_STACK and found["shared"] <= ARCHS["sm_90"].chip.shared
