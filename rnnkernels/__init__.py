"""Fused LSTM, GRU and RNN layers: drop-in replacements of ``torch.nn``'s on C++ (CPU) and Triton (GPU) kernels."""

import sys

from . import backends, cells
from ._version import __version__
from .cells.definition import cell
from .cells.trace import derivative, norm, product
from .nn import checks, functional
from .nn.composed import EALSTM, GRUD, LiGRU
from .nn.layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from .nn.recurrent import Recurrent, RecurrentCell
from .recorders import onnx
from .tools import counters, keras
from .tools.convert import convert, revert
from .tools.explain import explain
from .tools.freeze import freeze
from .tools.quantize import quantize_dynamic
from .tools.stepper import Stepper
from .tools.trace import trace

# Pickles name classes by where users import them from, and so survive moves of files.
for _class in (GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, Recurrent, RecurrentCell, EALSTM, GRUD, LiGRU, Stepper):
    _class.__module__ = __name__

# Public modules by the names that users know them by.
for _module in (checks, counters, functional, keras, onnx):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module

__all__ = [
    "EALSTM",
    "GRU",
    "GRUCell",
    "GRUD",
    "LSTM",
    "LSTMCell",
    "LiGRU",
    "RNN",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "Stepper",
    "__version__",
    "backends",
    "cell",
    "cells",
    "checks",
    "convert",
    "counters",
    "derivative",
    "explain",
    "freeze",
    "functional",
    "keras",
    "norm",
    "onnx",
    "product",
    "quantize_dynamic",
    "revert",
    "trace",
]
