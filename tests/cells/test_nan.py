"""NaN that nothing may look at reaches no result and no gradient (nan_cases.py says where it lies)."""

import pytest
import torch
from nan_cases import PLACES, check
from pairwise import ALL

from rnnkernels.cells import CELLS


@pytest.mark.parametrize("variant, place", PLACES)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_where_it_is(backend, cell, variant, place):
    turn = list(CELLS).index(cell) + PLACES.index((variant, place)) + (backend == "reference")
    for n, dtype in enumerate((torch.float32, torch.float64, torch.bfloat16)):
        if ALL or n == turn % 3:
            check(cell, variant, place, dtype)
    if variant != "recompute" and (ALL or turn % 2):  # which has no second derivative of its own
        check(cell, variant, place, torch.float64, second=True)
