"""Interpreted Triton kernels: NaN that nothing may look at reaches no result and no gradient (nan_cases.py).

Needs a process of its own (triton_cases.py).
"""

import nan_cases
import pytest
from pairwise import in_turn
from triton_cases import CELLS, interpreter, running  # noqa: F401 - used by every test

from rnnkernels import backends

OF_SCHEDULE = {"resident": "plain", "stepwise": "both directions", "cooperative": "plain"}
PLACES = dict.fromkeys(place for _, place in nan_cases.PLACES)


def exists(cell, schedule, place):
    return (OF_SCHEDULE[schedule], place) in nan_cases.PLACES


@pytest.mark.parametrize("cell, schedule, place", in_turn(CELLS, OF_SCHEDULE, PLACES, exists=exists))
def test_nan_stays_where_it_is(cell, schedule, place):
    with backends.force("triton"), running(schedule):
        nan_cases.check(cell, OF_SCHEDULE[schedule], place)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_past_lengths_with_recompute(cell):
    with backends.force("triton"):
        nan_cases.check(cell, "recompute", "inputs past lengths")
