"""Interpreted Triton kernels: NaN that nothing may look at reaches no result and no gradient (nan_cases.py).

Needs a process of its own (triton_cases.py).
"""

import nan_cases
import pytest
from triton_cases import CELLS, interpreter, running  # noqa: F401 - used by every test

from rnnkernels import backends

OF_SCHEDULE = {"resident": "plain", "stepwise": "both directions", "cooperative": "plain"}


@pytest.mark.parametrize("schedule, variant", OF_SCHEDULE.items())
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_where_it_is(cell, schedule, variant):
    with backends.force("triton"), running(schedule):
        for place in (place for v, place in nan_cases.PLACES if v == variant):
            nan_cases.check(cell, variant, place)
