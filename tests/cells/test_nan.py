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


NOT_AT_ZERO = {  # cells that have no value, or no derivative, where their inputs and states are zero
    "logarithm": ("inputs", lambda x, s: 0.5 * s.h + torch.log(x.a * x.a)),
    "quotient": ("step_inputs", lambda x, s, u: s.h / 2 + x.a / u.u),
    "of the sequence": ("sequence_inputs", lambda x, s, u: s.h / 2 + torch.tanh(x.a) * torch.log(u.u)),
    "root of a state": ("states", lambda x, s: torch.sqrt(s.h * torch.sigmoid(x.a))),
}


@pytest.mark.parametrize("lengths", [(4, 2, 0), (2, 1, 2)])
@pytest.mark.parametrize("kind", NOT_AT_ZERO)
def test_cells_that_zeros_do_not_suit(backend, kind, lengths):
    """Padding counts for nothing there either, in gradients of both orders: they are those of each row alone."""
    where, f = NOT_AT_ZERO[kind]
    own = rnnkernels.cell(inputs="a", states="h", **({where: "u"} if where.endswith("_inputs") else {}))(f)
    layer = rnnkernels.Recurrent(own, 2, 3, dtype=torch.float64)
    x, hx = torch.rand(4, 3, 2, dtype=torch.float64) + 0.5, torch.rand(1, 3, 3, dtype=torch.float64) + 0.5
    u = torch.rand(4, 3, 3, dtype=torch.float64) + 0.5
    leaves = [t.requires_grad_() for t in (x, hx, u)]

    def run(x, hx, u, **more):
        extra = {} if not where.endswith("_inputs") else {"u": u if where == "step_inputs" else u[0]}
        y, h = layer(x, hx, **extra, **more)
        return y.sin().sum() + h.cos().sum()

    def gradients(loss):
        tensors = [*leaves, *layer.parameters()]
        first = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
        return first, torch.autograd.grad(sum(g.square().sum() for g in first), tensors, materialize_grads=True)

    alone = [run(x[:n, b : b + 1], hx[:, b : b + 1], u[: max(n, 1), b : b + 1]) for b, n in enumerate(lengths) if n]
    alone += [hx[:, b].cos().sum() for b, n in enumerate(lengths) if not n]
    expected, found = gradients(sum(alone)), gradients(run(x, hx, u, lengths=torch.tensor(lengths)))
    torch.testing.assert_close(found, expected)
