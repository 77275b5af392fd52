"""A program of a user who checks types strictly; test_typing.py gives it to mypy, and nothing runs it.

``assert_type`` says which types the public names have. A line with ``type: ignore[...]`` is a mistake: mypy has to see
it, because an ignore without an error is an error.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import assert_type

import rnnkernels
import rnnkernels.counters
from rnnkernels import functional
from rnnkernels.cells import Cell, Names
from rnnkernels.checks import device_assertions
from rnnkernels.functional import gru
from rnnkernels.keras import load_weights
from rnnkernels.onnx import decompositions

Pair = tuple[Tensor, Tensor]


class Model(nn.Module):
    def __init__(self, size: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.lstm = rnnkernels.LSTM(size, 8, batch_first=True, device=device, zoneout=(0.1, 0.2), activation="relu")
        self.gru = rnnkernels.GRU(4, 8, 2, True, dropout=0.1, reset_after=False, dtype=torch.float64, heads=2)
        self.rnn = rnnkernels.RNN(4, 8, 1, "relu", recurrent_dropout=0.1, layer_norm=True, recompute=True)
        self.own = rnnkernels.Recurrent(own, 4, 8, num_layers=2, init=start, scale=2.0)

    def forward(self, x: Tensor, packed: PackedSequence, lengths: list[int], reset: Tensor) -> Tensor:
        assert_type(self.lstm(x), tuple[Tensor, Pair])
        assert_type(self.lstm(packed), tuple[PackedSequence, Pair])
        assert_type(self.lstm(x, return_cell_states=True), tuple[Tensor, Pair, Tensor])
        assert_type(self.lstm(packed, return_cell_states=True), tuple[PackedSequence, Pair, PackedSequence])
        assert_type(self.lstm(x, return_cell_states=bool(lengths)), tuple[Tensor, Pair] | tuple[Tensor, Pair, Tensor])
        y, (h, c) = self.lstm.forward(x, (x, x), lengths, (reset, (x, x)))
        assert_type(self.gru(x, None, lengths=torch.tensor(lengths), reset=reset), tuple[Tensor, Tensor])
        assert_type(self.rnn(packed, h), tuple[PackedSequence, Tensor])
        z, last = self.own(y, lengths=lengths, rate=c)
        assert_type(z, Tensor)
        assert_type(last, Any)
        return z

    def mistakes(self, x: Tensor) -> None:
        rnnkernels.LSTM("4", 8)  # type: ignore[arg-type]
        rnnkernels.LSTM(4, 8, activation="swish")  # type: ignore[arg-type]
        rnnkernels.GRU(4, 8, proj_size=2)  # type: ignore[call-arg]
        rnnkernels.RNN(4, 8, reset_after=False)  # type: ignore[call-arg]
        self.lstm(x, x)  # type: ignore[call-overload]
        self.gru(x, lenghts=[1])  # type: ignore[call-overload]
        rnnkernels.convert(x)  # type: ignore[type-var]
        rnnkernels.RNNCell(4, 8)(x, (x, x))  # type: ignore[arg-type]


def start(name: str, parameter: nn.Parameter) -> None:
    nn.init.zeros_(parameter)


@rnnkernels.cell(inputs="z n", recurrent=["z", "n"], step_inputs="rate", constants={"scale": 1.0}, keep="z")
def own(x: Names, r: Names, s: Names, u: Names, scale: float) -> Tensor:
    z, n = torch.sigmoid(x.z + r.z), torch.relu(x.n + r.n) * u.rate
    assert_type(z, Tensor)
    return scale * (z * s.h + (1 - z) * n)


@rnnkernels.cell(inputs="z")  # type: ignore[arg-type]
def no_state(x: Names) -> str:
    return "z"


def cells(x: Tensor) -> None:
    assert_type(own, Cell)
    assert_type(own.with_constants(scale=3.0).constants, dict[str, float])
    assert_type(rnnkernels.cells.li_gru, Cell)
    spike = rnnkernels.derivative(lambda v: (v > 0) * 1.0, lambda v, d: d / (1 + v.abs()))
    assert_type(spike, Callable[[Tensor], Tensor])
    assert_type(rnnkernels.product("n", x), Tensor)
    assert_type(rnnkernels.norm(x, eps=1e-3), Tensor)
    assert_type(rnnkernels.RNNCell(4, 8, nonlinearity="relu")(x), Tensor)
    assert_type(rnnkernels.GRUCell(4, 8, device="cpu")(x, x), Tensor)
    assert_type(rnnkernels.LSTMCell(4, 8, bias=False)(x, (x, x)), Pair)
    y, _ = rnnkernels.RecurrentCell(own, 4, 8)(x, rate=x)
    assert_type(y, Tensor)


def functions(x: Tensor, weights: list[Tensor]) -> None:
    assert_type(functional.lstm(x, None, weights, zoneout=0.1), tuple[Tensor, Tensor, Tensor])
    assert_type(functional.rnn(x, x, weights, nonlinearity="relu"), tuple[Tensor, Tensor])
    assert_type(gru(x, None, weights, lengths=[1], reset_after=False), tuple[Tensor, Tensor])
    assert_type(functional.recurrent(own, x, (x, x), weights)[0], Tensor)
    functional.gru(x, None, list(nn.GRU(3, 4).parameters())), functional.gru(x, None, tuple(weights))
    functional.gru(x, None, weights, proj_size=3)  # type: ignore[call-arg]


def tools(x: Tensor, model: Model) -> None:
    assert_type(rnnkernels.convert(model, subclasses=True), Model)
    assert_type(rnnkernels.freeze(model), Model)
    assert_type(rnnkernels.GRUD(3, 4)(x, x), tuple[Tensor, Tensor])
    assert_type(rnnkernels.EALSTM(3, 5, 4)(x, x), tuple[Tensor, Pair])
    assert_type(rnnkernels.LiGRU(3, 4)(x), tuple[Tensor, Tensor])
    assert_type(rnnkernels.revert(model), Model)
    assert_type(rnnkernels.quantize_dynamic(model, activations="float"), nn.Module)
    assert_type(rnnkernels.trace(model.lstm, x, lengths=[3])["i_l0"], Tensor)
    explanation = rnnkernels.explain(model.lstm, x)
    assert_type(explanation.layers[0].backend, str | None)
    assert_type(explanation.layers[0].others, tuple[tuple[str, str], ...])
    stepper = rnnkernels.Stepper(model.gru, batch_size=1)
    assert_type(stepper.step(x), Tensor)
    assert_type(stepper.state, Tensor | tuple[Tensor, ...])
    stepper.load_state(stepper.state)
    assert_type(load_weights(model.lstm, [x]), rnnkernels.LSTM)
    rnnkernels.keras.export_weights(model.lstm)[0].mean()
    assert_type(rnnkernels.backends.available(), list[str])
    assert_type(rnnkernels.backends.EXTENSION_ERROR, str | None)
    with rnnkernels.backends.force("reference"), device_assertions(False):
        decompositions()
    assert_type(rnnkernels.__version__, str)
