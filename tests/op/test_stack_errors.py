"""``rnnkernels::stack`` refuses what does not fit, and in inference too the modules say what torch.nn says of it."""

import pytest
import torch
from test_module_errors import (
    BAD_CALLS,
    BAD_CALLS_OF_ONE_STATE,
    BAD_CALLS_OF_TWO_STATES,
    assert_same_error_of_call,
)
from test_modules import B, H, I, T
from test_stack import OPS, arguments, make
from torch import nn

from rnnkernels.op import autograd

BAD = [
    *[(n, k, f) for n in ("RNN", "GRU", "LSTM") for k, f in BAD_CALLS.items()],
    *[(n, k, f) for n in ("RNN", "GRU") for k, f in BAD_CALLS_OF_ONE_STATE.items()],
    *[("LSTM", k, f) for k, f in BAD_CALLS_OF_TWO_STATES.items()],
]


@pytest.mark.parametrize("name, call", [(n, f) for n, _, f in BAD], ids=[f"{n}-{k}" for n, k, _ in BAD])
@torch.no_grad()
def test_errors_are_torch_s(name, call):
    assert_same_error_of_call(name, call)


def spoil(name, tensor):
    return lambda module: setattr(module, name, nn.Parameter(tensor))


WRONG_WEIGHTS = {
    "rows": (spoil("bias_hh_l1", torch.zeros(4 * H + 1)), r"parameter 7 of shape \(20,\), got \(21,\)"),
    "dimensions": (spoil("weight_hh_l0", torch.zeros(4 * H)), r"parameter 1 of shape \(20, 5\), got \(20,\)"),
    "columns": (spoil("weight_ih_l1", torch.zeros(4 * H, H + 1)), r"parameter 4 of shape \(20, 5\), got \(20, 6\)"),
    "input": (spoil("weight_ih_l0", torch.zeros(4 * H, I + 1)), r"parameter 0 of shape \(20, 4\), got \(20, 5\)"),
    "dtype": (spoil("bias_hh_l0", torch.zeros(4 * H).double()), "same dtype, but got Float and Double"),
    "dtype of a layer": (spoil("weight_ih_l1", torch.zeros(4 * H, H).half()), "same dtype, but got Float and Half"),
    "device": (spoil("weight_hh_l1", torch.zeros(4 * H, H, device="meta")), "not at the same device"),
    "hidden size": (lambda module: setattr(module, "hidden_size", H + 1), r"parameter 0 of shape \(24, 4\)"),
    "none": (lambda module: module._parameters.update(bias_hh_l0=None), "NoneType"),
}


@pytest.mark.parametrize("what", WRONG_WEIGHTS)
@torch.no_grad()
def test_wrong_weights_are_refused(what):
    module = make("lstm", 2)
    change, said = WRONG_WEIGHTS[what]
    change(module)
    with pytest.raises((RuntimeError, AttributeError), match=said):
        module(torch.randn(T, B, I))


def test_other_errors_come_through(monkeypatch):
    def fail(*args):
        raise RuntimeError("out of something")

    monkeypatch.setitem(autograd.PLAIN, "stack", fail)
    with torch.no_grad(), pytest.raises(RuntimeError, match="out of something"):
        make("gru")(torch.randn(T, B, I))


@pytest.mark.parametrize("changes, said", [
    ({"cell": "mgu"}, "no cell mgu"),
    ({"activation": "elu"}, "expected an activation out of tanh, relu, .* got elu"),
    ({"x": torch.randn(1, T, B, I)}, "x must have 3 dimensions, got 4"),
    ({"x": torch.randn(0, B, I)}, "at least one step"),
    ({"x": torch.randn(T, B, I).int()}, "expected float32, float64"),
    ({"x": torch.randn(T, B, I + 1)}, "weight_ih must have size 5 in dimension 1, got 4"),
    ({"num_layers": 0}, "expected 0 weights, got 8"),
    ({"num_layers": 3}, "expected 12 weights, got 8"),
    ({"bias": False}, "expected 4 weights, got 8"),
    ({"bidirectional": True}, "expected 16 weights, got 8"),
    ({"hidden_size": 0}, "hidden unit"),
    ({"hidden_size": -1, "proj_size": -1}, "hidden unit"),
    ({"hidden_size": H + 1}, "weight_ih must have size 24 in dimension 0, got 20"),
    ({"proj_size": 2}, "expected 10 weights, got 8"),
    ({"states": [torch.zeros(2, B, H)]}, "expected 2 states, got 1"),
    ({"states": [torch.zeros(1, B, H)] * 2}, "h0 must have size 2 in dimension 0, got 1"),
    ({"states": [torch.zeros(2, B, H).half()] * 2}, "h0 and x must have the same dtype"),
    ({"lengths": torch.tensor([1, 2])}, "lengths must be int64"),
    ({"lengths": torch.tensor([[1, 2, 3]] * 2)}, "lengths must be int64"),
    ({"lengths": torch.tensor(1)}, "lengths must be int64"),
    ({"lengths": torch.tensor([1.0, 2.0, 3.0])}, "lengths must be int64"),
])  # fmt: skip
def test_the_op_refuses_what_does_not_fit(changes, said):
    with pytest.raises(RuntimeError, match=said):
        OPS.stack(**arguments(**changes))


@pytest.mark.parametrize("where", ("states", "weights"))
def test_the_op_refuses_tensors_elsewhere(where):
    elsewhere = {where: [t.to("meta") for t in arguments()[where]]}
    with pytest.raises(RuntimeError, match="expected all tensors on cpu, the device of x, but got meta"):
        OPS.stack(**arguments(**elsewhere))
