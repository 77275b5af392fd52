"""``Stepper`` for cells of one's own."""

import pytest
import torch
from common import assert_close

from rnnkernels import Recurrent, RecurrentCell, Stepper, cells
from rnnkernels.backends import force

T, B, I, H = 6, 3, 5, 21  # noqa: E741
NAMES = ("peephole_lstm", "slstm", "mgu", "leaky_rnn", "ind_rnn", "sru", "lif", "gru_reset_before", "lstm")


def states_of(state):
    return (state,) if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_layers(name, dtype):
    """The results of a module for the whole sequence, whatever the pieces; states handed on; rows reset."""
    torch.manual_seed(0)
    module = Recurrent(getattr(cells, name), I, H, 2, dtype=dtype)
    x, tolerance = torch.randn(T, B, I).to(dtype), {torch.bfloat16: 3e-2, torch.float32: 1e-5}.get(dtype, 1e-12)
    y, last = module(x)
    whole, steps = Stepper(module, B), Stepper(module, B)
    got = whole.step(x)
    assert_close("y", got, y.double(), tolerance)
    for state, expected in zip(states_of(whole.state), states_of(last), strict=True):
        assert_close("states", state, expected.double(), tolerance)
    assert torch.equal(torch.stack([steps.step(v) for v in x]), got)
    other = Stepper(module, B)
    other.load_state(steps.state)
    after = other.step(x[:2])
    assert torch.equal(after, steps.step(x[:2]))
    reset = torch.tensor([True, False, True])
    other.reset(reset), other.step(x), steps.step(x)
    new, old = states_of(other.state), states_of(steps.state)
    for fresh, going in zip(new, old, strict=True):
        assert torch.equal(fresh[:, 1], going[:, 1])
    with force("reference"):
        slow = Stepper(module, B)
    assert_close("reference", slow.step(x), got.double(), tolerance)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_cells(name):
    """In the place of a cell: the state is an argument and a result."""
    torch.manual_seed(0)
    cell = RecurrentCell(getattr(cells, name), I, H)
    step, state, own, x = Stepper(cell, B), None, None, torch.randn(T, B, I)
    for v in x:
        y, state = cell(v, state)
        got, own = step(v, own)
        assert_close("y", got, y.double(), 1e-5)
        for a, e in zip(states_of(own), states_of(state), strict=True):
            assert_close("state", a, e.double(), 1e-5)
    one = Stepper(cell, 1)
    y, _ = cell(x[0, 0])
    assert_close("one row", one(x[0, 0])[0], y.double(), 1e-5)


def test_constants_and_no_bias():
    module = Recurrent(cells.leaky_rnn, I, H, bias=False, alpha=0.5)
    x = torch.randn(T, B, I)
    assert_close("y", Stepper(module, B).step(x), module(x)[0].detach().double(), 1e-5)


def test_inputs_of_steps_are_refused():
    for make in (Recurrent, RecurrentCell):
        with pytest.raises(TypeError, match="cells whose only input is x, but gru_d has gamma: step a RecurrentCell"):
            Stepper(make(cells.gru_d, I, H), 1)
    with pytest.raises(ValueError, match="one direction, but got a bidirectional one"):
        Stepper(Recurrent(cells.mgu, I, H, bidirectional=True), 1)
    with pytest.raises(RuntimeError, match="expects four hidden states, but got 2"):
        Stepper(Recurrent(cells.slstm, I, H), 1).load_state((torch.zeros(1, 1, H),) * 2)
