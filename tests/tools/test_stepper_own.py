"""``Stepper`` for cells of one's own."""

import pytest
import torch
from common import assert_close

import rnnkernels
from rnnkernels import Recurrent, RecurrentCell, Stepper, cells
from rnnkernels.backends import force

T, B, I, H = 6, 3, 5, 21  # noqa: E741
NAMES = ("peephole_lstm", "slstm", "mgu", "leaky_rnn", "ind_rnn", "sru", "lif", "gru_reset_before", "lstm")
WITH_INPUTS = ("gru_d", "ea_lstm", "cfc", "augru")


def inputs_of(name, dtype=torch.float32):
    """Random step inputs (T, B, H or 1) and sequence inputs (B, H) of a cell, by name."""
    program = getattr(cells, name).program
    found = {u: torch.rand(T, B, 1 if u in program.narrow else H).to(dtype) for u in program.step}
    return found | {u: torch.rand(B, H).to(dtype) for u in program.sequence}


def at(inputs, steps):
    """The inputs of one or some of the steps."""
    return {name: u if u.dim() == 2 else u[steps] for name, u in inputs.items()}


def states_of(state):
    return (state,) if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("name", NAMES + WITH_INPUTS)
@torch.no_grad()
def test_layers(name, dtype):
    """The results of a module for the whole sequence, whatever the pieces; states handed on; rows reset."""
    torch.manual_seed(0)
    module = Recurrent(getattr(cells, name), I, H, 2, dtype=dtype)
    x, tolerance = torch.randn(T, B, I).to(dtype), {torch.bfloat16: 3e-2, torch.float32: 1e-5}.get(dtype, 1e-12)
    u = inputs_of(name, dtype)
    y, last = module(x, **u)
    whole, steps = Stepper(module, B), Stepper(module, B)
    got = whole.step(x, **u)
    assert_close("y", got, y.double(), tolerance)
    for state, expected in zip(states_of(whole.state), states_of(last), strict=True):
        assert_close("states", state, expected.double(), tolerance)
    assert torch.equal(torch.stack([steps.step(v, **at(u, t)) for t, v in enumerate(x)]), got)
    other = Stepper(module, B)
    other.load_state(steps.state)
    after, two = other.step(x[:2], **at(u, slice(2))), torch.empty(2, B, H, dtype=dtype)
    assert torch.equal(after, steps.step_(x[:2], two, **at(u, slice(2))))
    reset = torch.tensor([True, False, True])
    other.reset(reset), other.step(x, **u), steps.step(x, **u)
    new, old = states_of(other.state), states_of(steps.state)
    for fresh, going in zip(new, old, strict=True):
        assert torch.equal(fresh[:, 1], going[:, 1])
    with force("reference"):
        slow = Stepper(module, B)
    assert_close("reference", slow.step(x, **u), got.double(), tolerance)
    if dtype == torch.float32:
        strided = {n: v.transpose(0, 1).contiguous().transpose(0, 1) for n, v in u.items()}
        narrow = {n: torch.stack([v, v], -1)[..., 0] for n, v in u.items()}
        for given in (strided, narrow):
            whole.reset()
            assert torch.equal(whole.step(x.transpose(0, 1).contiguous().transpose(0, 1), **given), got)


@pytest.mark.parametrize("name", NAMES + WITH_INPUTS)
@torch.no_grad()
def test_cells(name):
    """In the place of a cell: the state is an argument and a result."""
    torch.manual_seed(0)
    cell = RecurrentCell(getattr(cells, name), I, H)
    step, state, own, x, u = Stepper(cell, B), None, None, torch.randn(T, B, I), inputs_of(name)
    for t, v in enumerate(x):
        y, state = cell(v, state, **at(u, t))
        got, own = step(v, own, **at(u, t))
        assert_close("y", got, y.double(), 1e-5)
        for a, e in zip(states_of(own), states_of(state), strict=True):
            assert_close("state", a, e.double(), 1e-5)
    one = Stepper(cell, 1)
    row = {n: v[0] for n, v in at(u, 0).items()}
    y, _ = cell(x[0, 0], **row)
    assert_close("one row", one(x[0, 0], **row)[0], y.double(), 1e-5)


def test_constants_and_no_bias():
    module = Recurrent(cells.leaky_rnn, I, H, bias=False, alpha=0.5)
    x = torch.randn(T, B, I)
    assert_close("y", Stepper(module, B).step(x), module(x)[0].detach().double(), 1e-5)


@torch.no_grad()
def test_pre_activations_as_input():
    """Of a cell with project_input=False x is read where it lies."""

    @rnnkernels.cell(inputs="z n", recurrent="z", project_input=False)
    def given(x, r, s):
        return torch.sigmoid(x.z + r.z) * s.h + torch.relu(x.n)

    module, x = Recurrent(given, 2 * H, H), torch.randn(T, B, 2 * H)
    stepper = Stepper(module, B)
    assert_close("y", torch.stack([stepper.step(v) for v in x]), module(x)[0].double(), 1e-5)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@torch.no_grad()
def test_a_cell_without_weights(backend):
    @rnnkernels.cell(inputs="a b", project_input=False)
    def weightless(x, s):
        return torch.sigmoid(x.a) * s.h + x.b

    x = torch.randn(T, B, 2 * H)
    with force(backend):
        for module in (Recurrent(weightless, 2 * H, H), RecurrentCell(weightless, 2 * H, H)):
            stepper = Stepper(module, B)
            expected = Recurrent(weightless, 2 * H, H)(x)[0]
            assert_close("y", torch.stack([stepper.step(v) for v in x]), expected.double(), 1e-5)


def test_inputs_that_do_not_fit():
    """Errors of the layer's call, and the state stays as it was."""
    stepper, x, gamma = Stepper(RecurrentCell(cells.gru_d, I, H), B), torch.randn(B, I), torch.rand(B, H)
    stepper.step(x, gamma=gamma)
    before = stepper.state
    out = torch.empty(B, H)
    for error, words, call in (
        (TypeError, r"step\(\) missing the input 'gamma'; extra inputs of gru_d: gamma", lambda: stepper.step(x)),
        (TypeError, r"step_\(\) got an unexpected input 'i'", lambda: stepper.step_(x, out, gamma=gamma, i=gamma)),
        (TypeError, r"forward\(\) missing the input 'gamma'", lambda: stepper(x)),
        (RuntimeError, r"Expected gamma size \(3, 21\)", lambda: stepper.step(x, gamma=gamma[:, :1])),
        (RuntimeError, "gamma should be 3-D but got 2-D", lambda: stepper.step(x[None], gamma=gamma)),
        (RuntimeError, "Expected gamma of dtype torch.float32", lambda: stepper.step(x, gamma=gamma.double())),
        (RuntimeError, "gamma", lambda: stepper.step(x, gamma=gamma.clone().requires_grad_())),
        (RuntimeError, "overlap", lambda: stepper.step_(x, gamma, gamma=gamma)),
        (TypeError, r"step\(\) got an unexpected keyword argument 'gamma'",
         lambda: Stepper(rnnkernels.GRU(I, H), B).step(x, gamma=gamma)),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            call()
        assert torch.equal(stepper.state, before)
    stepper.step_(x, out, gamma=gamma)
    assert not torch.equal(stepper.state, before)


def test_what_is_refused():
    named = rnnkernels.cell(inputs="a", step_inputs="out")(lambda x, u: x.a * u.out)
    with pytest.raises(TypeError, match="a Stepper has an argument out of its own"):
        Stepper(Recurrent(named, I, H), 1)
    with pytest.raises(ValueError, match="one direction, but got a bidirectional one"):
        Stepper(Recurrent(cells.mgu, I, H, bidirectional=True), 1)
    with pytest.raises(RuntimeError, match="expects four hidden states, but got 2"):
        Stepper(Recurrent(cells.slstm, I, H), 1).load_state((torch.zeros(1, 1, H),) * 2)
