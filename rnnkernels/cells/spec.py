"""What backends know of a cell: ``CellSpec``, of the built-in cells and of programs.

Letters: G gates, H hidden, S states, K planes of (T, B, H) that training keeps.
"""

from typing import NamedTuple

from .parts import output_again
from .program import Program, parse


class CellSpec(NamedTuple):
    """The facts of a cell that all backends use."""

    program: Program
    planes: tuple[str, ...]
    """The names of the planes of ``gates`` (D, T, B, K, H) that training saves; none where the states are enough."""
    built_in: bool = False
    """The op knows it by its name, and it has activations and a layer norm of its output by the call's arguments."""
    has_projection: bool = False
    """The first state may be a projection (``weight_hr``) of the one that the cell makes: see parts.py."""

    @property
    def name(self):
        return self.program.name

    @property
    def gates(self):
        """G: pre-activations per hidden unit that come from the input; ``weight_ih`` has G*H rows."""
        return len(self.program.inputs)

    @property
    def recurrent_gates(self):
        """Pre-activations per hidden unit that come from the recurrent product; ``weight_hh`` has as many blocks."""
        return len(self.program.recurrent)

    @property
    def states(self):
        """S: state tensors; the first is the hidden state h, which is also the output unless the cell has its own."""
        return len(self.program.states)

    @property
    def kept(self):
        """K."""
        return self.program.keep

    @property
    def phases(self):
        """Recurrent products in a step; with 2, the product of the last gate waits for the other gates."""
        return 1 + self.program.inner

    @property
    def output_norm(self):
        """True if a layer norm also normalises the last state on its way to the output."""
        return any(i.op == "norm" for i in self.program.sections["forward"].code)

    @property
    def projects_input(self):
        """True if there is a ``weight_ih``; else x is (T, B, G*H) already, or there are no gates of the input."""
        return bool(self.program.inputs and not self.program.given)

    @property
    def vectors(self):
        """The names of the learned vectors (H,)."""
        return self.program.vectors

    @property
    def extras(self):
        """The names of the inputs of steps, then of sequences."""
        return self.program.extras

    @property
    def apart(self):
        """How many states training saves, because the output does not tell them."""
        return self.states if self.program.own_output else self.states - 1

    def planes_of(self, zoned):
        """How many planes training saves; with zoneout also new states, where the backward pass reads them."""
        return self.kept + len(self.renewed(zoned))

    def renewed(self, zoned):
        """The states of which training saves the new value: the backward pass reads it, and zoneout overwrites it.

        The backward passes of built-in cells compute it from what there is.
        """
        return () if self.built_in or not zoned else self.program.renewed


CELLS = {}
"""The built-in cells by name: filled by built_in.py."""
ARITHMETIC = {}
"""What the built-in cells compute with their standard activations, and their names: filled by built_in.py."""
_PROGRAMS = {}  # TorchDynamo traces the lookup of what is here; whoever makes a cell puts it here


def spec_of(cell):
    """The ``CellSpec`` of the op's ``cell``: a name out of ``CELLS``, or the text of a program.

    Raises:
        ValueError: for neither.
    """
    return CELLS.get(cell) or _PROGRAMS.get(cell) or _of_program(cell)


def _of_program(text):
    if not text.startswith("cell "):
        raise ValueError(f"rnnkernels: expected a cell out of {', '.join(CELLS)} or a program, got {text!r}")
    program = parse(text)
    planes = tuple(f"plane_{k}" for k in range(program.keep))
    _PROGRAMS[text] = CellSpec(program, planes, has_projection=output_again(program) is not None)
    return _PROGRAMS[text]


def accumulate_dtype(dtype):
    """The dtype that sums and cell states are kept in: float64 for float64, else float32."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32
