"""The cells. Letters: G gates, H hidden, S states, K planes of (T, B, H) that training keeps."""

from typing import NamedTuple

from .program import Program, parse


class CellSpec(NamedTuple):
    """The facts of a cell that all backends use.

    The arithmetic of the built-in cells is in ``reference.py`` and the backends' cell files, that of all others in
    their program.
    """

    name: str
    gates: int
    """G: pre-activations per hidden unit that come from the input; ``weight_ih`` has G*H rows."""
    states: int
    """S: state tensors; the first is the hidden state h, which is also the output."""
    planes: tuple[str, ...]
    """The names of the planes of ``gates`` (D, T, B, K, H) that training saves; none where the output is enough."""
    has_projection: bool = False
    """h may be a projection of the output (``weight_hr``)."""
    phases: int = 1
    """Recurrent products in a step; with 2, the product of the last gate waits for the other gates."""
    output_norm: bool = False
    """A layer norm also normalises the last state on its way to the output."""
    program: Program | None = None
    """Of a cell that is not built in."""

    @property
    def kept(self):
        """K."""
        return len(self.planes)

    @property
    def recurrent_gates(self):
        """Pre-activations per hidden unit that come from the recurrent product; ``weight_hh`` has as many blocks."""
        return self.gates if self.program is None else len(self.program.recurrent)

    @property
    def projects_input(self):
        """True if there is a ``weight_ih``; else x is (T, B, G*H) already, or there are no gates of the input."""
        return self.program is None or bool(self.program.inputs and not self.program.given)

    @property
    def vectors(self):
        """The names of the learned vectors (H,)."""
        return () if self.program is None else self.program.vectors

    @property
    def extras(self):
        """The names of the inputs of steps, then of sequences."""
        return () if self.program is None else self.program.extras

    @property
    def apart(self):
        """How many states training saves, because the output does not tell them."""
        own_output = self.program is not None and self.program.own_output
        return self.states if own_output else self.states - 1

    def planes_of(self, zoned):
        """How many planes training saves; with zoneout also new states, where the backward pass reads them."""
        renewed = len(self.program.renewed) if zoned and self.program is not None else 0
        return self.kept + renewed


CELLS = {
    "rnn": CellSpec("rnn", gates=1, states=1, planes=()),
    "lstm": CellSpec(
        "lstm", gates=4, states=2, planes=("i", "f", "g", "o"), has_projection=True, output_norm=True
    ),
    "gru": CellSpec("gru", gates=3, states=1, planes=("r", "z", "n", "q")),  # q = W_hn h + b_hn
    "gru_reset_before": CellSpec("gru_reset_before", gates=3, states=1, planes=("r", "z", "n"), phases=2),
}  # fmt: skip


def spec_of(cell):
    """The ``CellSpec`` of the op's ``cell``: a name out of ``CELLS``, or the text of a program.

    Raises:
        ValueError: for neither.
    """
    return CELLS.get(cell) or _PROGRAMS.get(cell) or _of_program(cell)


_PROGRAMS = {}  # TorchDynamo traces the lookup of what is here; whoever makes a cell puts it here


def _of_program(text):
    if not text.startswith("cell "):
        raise ValueError(f"rnnkernels: expected a cell out of {', '.join(CELLS)} or a program, got {text!r}")
    program = parse(text)
    planes = tuple(f"plane_{k}" for k in range(program.keep))
    _PROGRAMS[text] = CellSpec(
        program.name, len(program.inputs), len(program.states), planes, phases=1 + program.inner, program=program
    )
    return _PROGRAMS[text]


def accumulate_dtype(dtype):
    """The dtype that sums and cell states are kept in: float64 for float64, else float32."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32
