"""Fused LSTM, GRU and RNN layers: drop-in replacements of ``torch.nn``'s on C++ (CPU) and Triton (GPU) kernels."""

from . import backends, checks, counters, functional, keras, onnx
from ._version import __version__
from .convert import convert, revert
from .explain import explain
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from .quantize import quantize_dynamic
from .stepper import Stepper
from .trace import trace

__all__ = [
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "RNN",
    "RNNCell",
    "Stepper",
    "__version__",
    "backends",
    "checks",
    "convert",
    "counters",
    "explain",
    "functional",
    "keras",
    "onnx",
    "quantize_dynamic",
    "revert",
    "trace",
]
