"""Triton kernels generated from programs, interpreted on the CPU: outputs and every gradient against float64.

Needs a process of its own (triton_cases.py).
"""

import pytest
import torch
from generated_cases import CELLS, arguments
from pairwise import cases, in_turn
from triton_cases import BOTH, DTYPES, compare, interpreter  # noqa: F401 - used by every test

from rnnkernels.backends.triton import schedules

VARIANTS = {
    "plain": dict(T=4, B=2, H=20),
    "reverse, no bias": dict(T=4, B=3, H=40, reverse=(True,), bias=False),
    "both directions from zero": dict(T=3, B=1, H=16, reverse=BOTH, states=False),
    "lengths": dict(T=5, B=4, H=20, reverse=BOTH, lengths=[5, 0, 3, 1]),
}


def has(cell, schedule):
    """True if a cell has a schedule: without a recurrent product there is only one."""
    return bool(CELLS[cell].recurrent) or schedule == "resident"


def check(cell, schedule=None, **options):
    compare(arguments(CELLS[cell], **options), schedule)


@pytest.mark.parametrize(
    "cell, schedule, variant", cases(CELLS, schedules.NAMES, VARIANTS, exists=lambda cell, schedule, _: has(cell, schedule))
)
def test_equals_definition(cell, schedule, variant):
    check(cell, schedule, **VARIANTS[variant])


STAGES = ["no reset", "reset", "restart"], ["no mask", "h_mask"], ["no zone", "zone"]


@pytest.mark.parametrize(
    "cell, schedule, reset, mask, zone",
    cases(CELLS, schedules.NAMES, *STAGES, exists=lambda cell, schedule, *_: has(cell, schedule)),
)
def test_stages(cell, schedule, reset, mask, zone):
    """Every two stages, with lengths and both directions."""
    check(cell, schedule, T=3, B=3, H=20, reverse=BOTH, lengths=[3, 0, 2], stages=[reset, mask, zone])


MORE = {
    "bf16": dict(T=3, B=2, H=33, reverse=(True,), dtype=torch.bfloat16),
    "fp16": dict(T=3, B=2, H=33, dtype=torch.float16, stages=["zone"]),
    "float64": dict(T=3, B=2, H=33, dtype=torch.float64, reverse=BOTH, lengths=[1, 3]),
    "one step": dict(T=1, B=5, H=20, lengths=[1, 0, 1, 1, 0]),
    "two batch tiles": dict(T=2, B=17, H=16, lengths=[2, 1, 0] * 5 + [1, 2]),
    "empty batch": dict(B=0, reverse=BOTH),
    "groups": dict(T=3, B=2, H=20, reverse=BOTH, groups=2, lengths=[[3, 0], [1, 2]]),
    "one unit": dict(T=3, B=2, H=1),
}


@pytest.mark.parametrize("cell, case", cases(CELLS, MORE))
def test_equals_definition_once(cell, case):
    check(cell, **MORE[case])


@pytest.mark.parametrize(
    "cell, schedule, more",
    cases([name for name in CELLS if CELLS[name].inputs], ["resident", "stepwise"], ["alone", "with all stages"],
          exists=lambda cell, schedule, _: has(cell, schedule)),
)  # fmt: skip
def test_layer_norm(cell, schedule, more):
    options = dict(stages=["restart", "h_mask", "zone"], lengths=[3, 0, 2], B=3) if more != "alone" else {}
    check(cell, schedule, layer_norm=True, T=3, H=20, reverse=(True,), **options)
