"""Wrong arguments of ``Stepper``: each raises what is written here, and neither the state nor ``out`` has changed."""

import copy
import pickle

import pytest
import torch
from test_stepper import build, same
from torch import nn

from rnnkernels import Stepper, backends

X, OUT = torch.zeros(2, 5), torch.zeros(2, 20)
SHARED = torch.zeros(2, 25)
WRONG_STEPS = [
    (TypeError, "Expected x to be a Tensor, but got list", [[1.0]], {}),
    (ValueError, "Expected input to be 2D or 3D, got 1D", torch.zeros(5), {}),
    (RuntimeError, "input.size.-1. must be equal to input_size. Expected 5, got 4", torch.zeros(2, 4), {}),
    (ValueError, "equal to batch_size. Expected 2, got 3", torch.zeros(3, 5), {}),
    (RuntimeError, "Expected sequence length to be larger than 0", torch.zeros(0, 2, 5), {}),
    (ValueError, "input dtype .torch.float64. does not match weight dtype .torch.float32.", X.double(), {}),
    (RuntimeError, "not at the same device, found input tensor at meta", X.to("meta"), {}),
    (RuntimeError, "for inference only", X.clone().requires_grad_(), {}),
    (ValueError, "x to be a dense tensor", X.to_sparse(), {}),
    (TypeError, "Expected out to be a Tensor", X, {"out": None}),
    (ValueError, r"out of shape \(2, 20\), but got \(2, 19\)", X, {"out": torch.zeros(2, 19)}),
    (ValueError, r"out of shape \(1, 2, 20\)", X[None], {"out": OUT}),
    (ValueError, "output dtype", X, {"out": OUT.half()}),
    (RuntimeError, "found output tensor at meta", X, {"out": OUT.to("meta")}),
    (RuntimeError, "for inference only, but out requires", X, {"out": OUT.clone().requires_grad_()}),
    (ValueError, "rows of adjoining elements", X, {"out": torch.zeros(20, 2).t()}),
    (ValueError, "do not overlap", X, {"out": torch.zeros(1, 20).expand(2, 20)}),
    (ValueError, "do not overlap", torch.zeros(2, 2, 5), {"out": torch.zeros(80).as_strided((2, 2, 20), (30, 20, 1))}),
    (RuntimeError, "but they overlap", SHARED.view(-1)[:10].view(2, 5), {"out": SHARED.view(-1)[8:48].view(2, 20)}),
    (RuntimeError, "but they overlap", SHARED[:, :5], {"out": SHARED[:, 5:]}),
]


@pytest.mark.parametrize("kind, message, x, out", WRONG_STEPS)
def test_wrong_steps(backend, kind, message, x, out):
    stepper = Stepper(build("gru"), 2)
    stepper.step(torch.ones(2, 5))
    state = stepper.state
    with pytest.raises(kind, match=message):
        stepper.step_(x, **out) if out else stepper.step(x)
    assert same(stepper.state, state) and not OUT.any() and not SHARED.any()


@pytest.mark.parametrize("kind, message, call", [
    (TypeError, "Expected an RNN, LSTM or GRU .* or a cell, but got Linear", lambda s: Stepper(nn.Linear(2, 3), 1)),
    (TypeError, "A Stepper of LSTM.* is not callable", lambda s: s(X)),
    (ValueError, "weights on the CPU", lambda s: Stepper(nn.GRUCell(2, 3, device="meta"), 1)),
    (ValueError, "with hidden units, but it has none", lambda s: Stepper(nn.GRUCell(2, 0), 1)),
    (RuntimeError, "Unknown nonlinearity: selu", lambda s: Stepper(nn.RNNCell(2, 3, nonlinearity="selu"), 1)),
    (ValueError, "bidirectional", lambda s: Stepper(nn.GRU(2, 3, bidirectional=True), 1)),
    (ValueError, "batch_size to be at least 1, but got 0", lambda s: Stepper(nn.GRU(2, 3), 0)),
    (TypeError, "integer", lambda s: Stepper(nn.GRU(2, 3), 1.5)),
    (ValueError, "weights on the CPU", lambda s: Stepper(nn.GRU(2, 3, device="meta"), 1)),
    (ValueError, "but got torch.complex64", lambda s: Stepper(nn.GRU(2, 3, dtype=torch.complex64), 1)),
    (TypeError, "mask to be a Tensor", lambda s: s.reset([True, False])),
    (ValueError, r"torch.bool of shape \(2,\)", lambda s: s.reset(torch.ones(2))),
    (ValueError, r"torch.bool of shape \(2,\)", lambda s: s.reset(torch.ones(3, dtype=torch.bool))),
    (TypeError, "Expected hx to be a Tensor", lambda s: s.load_state(None)),
    (RuntimeError, "two hidden states", lambda s: s.load_state(s.state[0])),
    (RuntimeError, r"Expected hidden\[1\] size \(2, 2, 20\)", lambda s: s.load_state((s.state[0], s.state[1][0]))),
    (ValueError, "torch.float32 on the CPU", lambda s: s.load_state([t.double() for t in s.state])),
    (TypeError, "cannot be copied or pickled", copy.deepcopy),
    (TypeError, "cannot be copied or pickled", pickle.dumps),
])  # fmt: skip
def test_wrong_otherwise(backend, kind, message, call):
    stepper = Stepper(build("lstm"), 2)
    stepper.step(torch.ones(2, 5))
    state = stepper.state
    with pytest.raises(kind, match=message):
        call(stepper)
    assert same(stepper.state, state)


@pytest.mark.parametrize("kind, message, call", [
    (ValueError, "Expected input to be 1D or 2D, got 3D", lambda s: s(X[None])),
    (ValueError, "equal to batch_size. Expected 2, got 1", lambda s: s(X[:1], s.state)),
    (ValueError, "got 1D", lambda s: s(X[0])),
    (TypeError, "Expected x to be a Tensor", lambda s: s(None)),
    (RuntimeError, "two hidden states", lambda s: s(X, s.state[0])),
    (RuntimeError, r"Expected hidden\[1\] size \(2, 20\), got \[1, 2, 20\]", lambda s: s(X, (OUT, OUT[None]))),
    (RuntimeError, r"Expected hidden\[0\] size \(2, 20\)", lambda s: s.load_state((OUT[:1], OUT[:1]))),
    (RuntimeError, "for inference only, but x requires", lambda s: s(X.clone().requires_grad_(), s.state)),
    (RuntimeError, "for inference only, but hx requires", lambda s: s(X, (OUT.clone().requires_grad_(), OUT))),
])  # fmt: skip
def test_wrong_calls_of_cells(backend, kind, message, call):
    stepper = Stepper(nn.LSTMCell(5, 20), 2)
    stepper.step(torch.ones(2, 5))
    state = stepper.state
    with pytest.raises(kind, match=message):
        call(stepper)
    assert same(stepper.state, state)


def test_forced_backend_without_a_stepper():
    with backends.force("triton"), pytest.raises(RuntimeError, match="backend 'triton' is forced"):
        Stepper(build("gru"), 2)
