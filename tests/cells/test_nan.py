"""NaN that nothing may look at reaches no result and no gradient (nan_cases.py says where it lies)."""

import pytest
import torch
from nan_cases import PLACES, check
from pairwise import ALL

import rnnkernels
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


RELUS = {
    "RNN": lambda: rnnkernels.RNN(3, 5, nonlinearity="relu"),
    "zoneout": lambda: rnnkernels.RNN(3, 5, nonlinearity="relu", zoneout=0.25).eval(),
    "own": lambda: rnnkernels.Recurrent(
        rnnkernels.cell(inputs="n", recurrent="n", name="relu_rnn")(lambda x, r: torch.relu(x.n + r.n)), 3, 5
    ),
}


@pytest.mark.parametrize("name", RELUS)
def test_nan_passes_relu_backwards(backend, name):
    """As in torch.nn: a loss that is NaN must not leave gradients of zero, which an optimizer takes for right."""
    layer, x = RELUS[name](), torch.randn(3, 2, 3, requires_grad=True)
    with torch.no_grad():
        layer.bias_ih_l0[2] = torch.nan
    layer(x)[0].square().mean().backward()
    assert x.grad.isnan().all() and all(p.grad.isnan().any() for p in layer.parameters())
