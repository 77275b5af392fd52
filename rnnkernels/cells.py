"""The cells: one line each. Letters: G gates, S states, K planes of (T, B, H) that training keeps for the backward."""

from typing import NamedTuple


class CellSpec(NamedTuple):
    """What every backend has to know of a cell; its arithmetic is in ``reference.py`` and the backends' cell files."""

    name: str
    gates: int
    """G: pre-activations per hidden unit; ``weight_ih`` has G*H rows."""
    states: int
    """S: state tensors; the first is the hidden state h, which is also the output."""
    kept: int
    """K: planes of ``gates`` (D, T, B, K, H) saved in training; 0 where the output is enough."""
    activations: tuple[str, ...] = ("tanh",)
    """What the Triton cells offer as activation; the first is the default. The C++ cells take any, also for gates."""


CELLS = {
    "rnn": CellSpec("rnn", gates=1, states=1, kept=0, activations=("tanh", "relu")),
    "lstm": CellSpec("lstm", gates=4, states=2, kept=4),  # kept: i, f, g, o
    "gru": CellSpec("gru", gates=3, states=1, kept=4),  # kept: r, z, n and q = W_hn h + b_hn
}


def accumulate_dtype(dtype):
    """The dtype that sums and cell states are kept in: float64 for float64, else float32."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32
