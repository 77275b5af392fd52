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
