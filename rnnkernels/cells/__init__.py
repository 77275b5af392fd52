"""The cells: one line each. Letters: G gates, H hidden, S states, K planes of (T, B, H) that training keeps."""

from typing import NamedTuple


class CellSpec(NamedTuple):
    """The facts of a cell that all backends use; its arithmetic is in ``reference.py`` and the backends' cell files."""

    name: str
    gates: int
    """G: pre-activations per hidden unit; ``weight_ih`` has G*H rows."""
    states: int
    """S: state tensors; the first is the hidden state h, which is also the output."""
    planes: tuple[str, ...]
    """The names of the planes of ``gates`` (D, T, B, K, H) that training saves; none where the output is enough."""
    has_projection: bool = False
    """h may be a projection of the output (``weight_hr``)."""
    phases: int = 1
    """Recurrent products in a step; with 2, the product of the last gate waits for the other gates."""

    @property
    def kept(self):
        """K."""
        return len(self.planes)


CELLS = {
    "rnn": CellSpec("rnn", gates=1, states=1, planes=()),
    "lstm": CellSpec("lstm", gates=4, states=2, planes=("i", "f", "g", "o"), has_projection=True),
    "gru": CellSpec("gru", gates=3, states=1, planes=("r", "z", "n", "q")),  # q = W_hn h + b_hn
    "gru_reset_before": CellSpec("gru_reset_before", gates=3, states=1, planes=("r", "z", "n"), phases=2),
}


def accumulate_dtype(dtype):
    """The dtype that sums and cell states are kept in: float64 for float64, else float32."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32
