"""Errors of the modules: the same type and the same words as torch.nn's on the same bad call."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkernels

T, B, I, H = 6, 3, 4, 5  # noqa: E741 - the letters of the whole library
LONG = torch.zeros(2, 2, 4, dtype=torch.int64)
r = torch.randn
BAD_CALLS = {  # of a layer (I=4, H=5); hx is given once per state
    "1D": (lambda m, s: m(r(4))),
    "4D": (lambda m, s: m(r(2, 2, 2, 4))),
    "input size": (lambda m, s: m(r(2, 2, 3))),
    "unbatched size": (lambda m, s: m(r(2, 3))),
    "dtype": (lambda m, s: m(r(2, 2, 4).double())),
    "integers": (lambda m, s: m(LONG)),
    "no steps": (lambda m, s: m(r(0, 2, 4))),
    "no steps, no batch": (lambda m, s: m(r(0, 4))),
    "hx 2D": (lambda m, s: m(r(2, 2, 4), s(r(2, 5)))),
    "hx 3D, unbatched": (lambda m, s: m(r(2, 4), s(r(1, 1, 5)))),
    "hx batch": (lambda m, s: m(r(2, 2, 4), s(r(1, 3, 5)))),
    "hx size": (lambda m, s: m(r(2, 2, 4), s(r(1, 2, 6)))),
    "hx layers": (lambda m, s: m(r(2, 2, 4), s(r(2, 2, 5)))),
    "hx device": (lambda m, s: m(r(2, 2, 4), s(torch.empty(1, 2, 5, device="meta")))),
    "input device": (lambda m, s: m(torch.empty(2, 2, 4, device="meta"))),
    "a list": (lambda m, s: m([1, 2])),
    "weight kind": (lambda m, s: setattr(m, "weight_hh_l0", r(5, 5))),
}
BAD_CALLS_OF_ONE_STATE = {  # nn.LSTM does not look, and fails with the words of oneDNN or of a product
    "hx dtype": (lambda m, s: m(r(2, 2, 4), r(1, 2, 5).double())),
    "hx pair": (lambda m, s: m(r(2, 2, 4), (r(1, 2, 5), r(1, 2, 5)))),
    "packed hx": (lambda m, s: m(pack_padded_sequence(r(4, 2, 4), [4, 2]), r(1, 3, 5))),
    "packed hx 2D": (lambda m, s: m(pack_padded_sequence(r(4, 2, 4), [4, 2]), r(2, 5))),
    "packed dtype": (lambda m, s: m(pack_padded_sequence(r(4, 2, 4).double(), [4, 2]))),
    "packed size": (lambda m, s: m(pack_padded_sequence(r(4, 2, 3), [4, 2]))),
}
BAD_CALLS_OF_TWO_STATES = {
    "one state": (lambda m, s: m(r(2, 2, 4), (r(1, 2, 5),))),
    "three states": (lambda m, s: m(r(2, 2, 4), (r(1, 2, 5),) * 3)),
    "a tensor": (lambda m, s: m(r(2, 2, 4), r(1, 2, 5))),
    "c batch": (lambda m, s: m(r(2, 2, 4), (r(1, 2, 5), r(1, 3, 5)))),
    "c 2D": (lambda m, s: m(r(2, 2, 4), (r(1, 2, 5), r(2, 5)))),
}
BAD_CELL_CALLS = {
    "0D": (lambda m, s: m(r(()))),
    "3D": (lambda m, s: m(r(1, 1, 4))),
    "input size": (lambda m, s: m(r(2, 3))),
    "unbatched size": (lambda m, s: m(r(3))),
    "dtype": (lambda m, s: m(r(2, 4).double())),
    "hx dtype": (lambda m, s: m(r(2, 4), s(r(2, 5).double()))),
    "hx 3D": (lambda m, s: m(r(2, 4), s(r(1, 2, 5)))),
    "hx 1D": (lambda m, s: m(r(2, 4), s(r(5)))),
    "hx 2D, unbatched": (lambda m, s: m(r(4), s(r(1, 5)))),
    "hx batch": (lambda m, s: m(r(2, 4), s(r(3, 5)))),
    "hx size": (lambda m, s: m(r(2, 4), s(r(2, 6)))),
}
BAD_CELL_CALLS_OF_TWO_STATES = {
    "one state": (lambda m, s: m(r(2, 4), (r(2, 5),))),
    "three states": (lambda m, s: m(r(2, 4), (r(2, 5),) * 3)),
    "a tensor": (lambda m, s: m(r(2, 4), r(2, 5))),
    "c batch": (lambda m, s: m(r(2, 4), (r(2, 5), r(3, 5)))),
    "c size": (lambda m, s: m(r(2, 4), (r(2, 5), r(2, 6)))),
    "c 3D": (lambda m, s: m(r(2, 4), (r(2, 5), r(1, 2, 6)))),
}
BAD = [
    *[(n, k, f) for n in ("RNN", "GRU", "LSTM") for k, f in BAD_CALLS.items()],
    *[(n, k, f) for n in ("RNN", "GRU") for k, f in BAD_CALLS_OF_ONE_STATE.items()],
    *[("LSTM", k, f) for k, f in BAD_CALLS_OF_TWO_STATES.items()],
    *[(n, k, f) for n in ("RNNCell", "GRUCell", "LSTMCell") for k, f in BAD_CELL_CALLS.items()],
    *[("LSTMCell", k, f) for k, f in BAD_CELL_CALLS_OF_TWO_STATES.items()],
]


def assert_same_error(provoke):
    """``provoke(library)`` raises the same for torch.nn as for rnnkernels."""
    said = []
    for library in (nn, rnnkernels):
        with pytest.raises(Exception) as info:  # noqa: B017 - what it is gets compared
            provoke(library)
        said.append((info.type, str(info.value)))
    assert said[1] == said[0]


def assert_same_error_of_call(name, call):
    """The same for a bad call of a module of this name."""
    repeat = (lambda h: (h, h)) if name.startswith("LSTM") else (lambda h: h)
    assert_same_error(lambda library: call(getattr(library, name)(I, H), repeat))


@pytest.mark.parametrize("name, call", [(n, f) for n, _, f in BAD], ids=[f"{n}-{k}" for n, k, _ in BAD])
def test_errors_are_torch_s(name, call):
    assert_same_error_of_call(name, call)


BAD_CONSTRUCTIONS = [
    ("RNN", (I,), {}),
    ("RNN", (I, H), {"proj_size": 2}),
    ("GRU", (I, H), {"proj_size": 2}),
    ("RNN", (I, H), {"nonlinearity": "sine"}),
    ("RNN", (I, H, 1, "sine"), {}),
    ("LSTM", (I, H), {"proj_size": H}),
    ("LSTM", (I, H), {"proj_size": -1}),
    ("LSTM", (I, 0), {}),
    ("LSTM", (0, H), {}),
    ("LSTM", (I, 2.0), {}),
    ("GRU", (I, H, 0), {}),
    ("GRU", (I, H), {"bias": 1}),
    ("GRU", (I, H), {"batch_first": None}),
    ("GRU", (I, H), {"dropout": 2}),
    ("GRU", (I, H), {"dropout": True}),
    ("GRU", (I, H), {"dropout": 0.5}),  # with one layer: a warning
    ("GRU", (I, H), {"colour": 1}),
]


@pytest.mark.parametrize("name, args, kwargs", BAD_CONSTRUCTIONS)
def test_construction_errors_are_torch_s(name, args, kwargs):
    assert_same_error(lambda library: getattr(library, name)(*args, **kwargs))


def test_unknown_nonlinearity_of_a_cell():
    for library in (nn, rnnkernels):
        with pytest.raises(RuntimeError, match="Unknown nonlinearity: sine"):
            library.RNNCell(I, H, nonlinearity="sine")(torch.randn(B, I))


def test_wrong_weights_are_refused():
    """Weights can be anything by the time of a call; what kernels would misread is an error."""
    module = rnnkernels.LSTM(I, H)
    module.bias_hh_l0 = nn.Parameter(torch.zeros(4 * H + 1))
    with pytest.raises(RuntimeError, match=r"parameter 3 of shape \(20,\), got \(21,\)"):
        module(torch.randn(T, B, I))
    module.bias_hh_l0 = nn.Parameter(torch.zeros(4 * H, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="same dtype, but got Float and Double"):
        module(torch.randn(T, B, I))
    cell = rnnkernels.GRUCell(I, H)
    cell.weight_hh = nn.Parameter(torch.zeros(3 * H, H + 1))
    with torch.no_grad(), pytest.raises(RuntimeError, match="parameter 1 of shape"):
        cell(torch.randn(B, I))
    with pytest.raises(RuntimeError, match="inconsistent hidden_size"):  # torch's own op, in training
        cell(torch.randn(B, I))
