"""NaN that nothing may look at reaches no result and no gradient (nan_cases.py says where it lies)."""

import pytest
import torch
from nan_cases import PLACES, check

from rnnkernels.cells import CELLS


@pytest.mark.parametrize("variant, place", PLACES)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_where_it_is(backend, cell, variant, place):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        check(cell, variant, place, dtype)
    if variant != "recompute":  # which has no second derivative of its own
        check(cell, variant, place, torch.float64, second=True)
