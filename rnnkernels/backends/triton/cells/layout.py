"""The functions of a cell for the time loops, and the planes and states that these read and write."""

from typing import Any, NamedTuple


class Cell(NamedTuple):
    """``forward(x, r, s)`` gives the new states and the kept planes; ``backward(ds, new, old, kept)`` the gradients of
    the pre-activations as planes, and of the old states without the terms of the recurrent products."""

    forward: Any
    backward: Any
    gates: int
    states: int
    kept: int
    planes: int
    """The number of planes of ``backward``; the first G are the gradients of the gates' input pre-activations."""
    recurrent: tuple[int, ...]
    """The planes that are the gradients of the gates' recurrent pre-activations, in the order of the gates."""
    new: tuple[bool, ...]
    """For each state, true if ``backward`` reads its value after the step."""
    old: tuple[bool, ...]
    """For each state, true if ``backward`` reads its value before the step."""
    merged: tuple[tuple[int, int], ...] = ()
    """Pairs of an input gate and a recurrent gate that the cell only reads as a sum: their biases are one."""

    first: Any = None
    """``first(x, r, s)`` gives the operand of a second product, that of the last gate, and a tuple that ``forward``
    reads after the states; h of ``s`` is masked. None: there is one product."""

    backward_first: Any = None
    """``backward_first(dv, crossing, new, s, kept)``, from the gradient of that operand and the last results of
    ``backward``: the planes ``first_planes``, and gradients of the old states (and of what follows them)."""

    first_planes: tuple[int, ...] = ()
    """For every plane, its number among the results of ``backward_first``, or -1 where ``backward`` gives it."""

    cross: int = 0
    """How many gradients ``backward`` gives to ``backward_first``, after all others."""

    inner: Any = None
    """``inner(states, gates, vectors, inputs)``: the operand of the second product at all steps, in torch."""

    hidden: Any = None
    """``hidden(kept, c)``: h from the last state as a layer norm left it; None: the output reads no other state."""

    backward_hidden: Any = None
    """``backward_hidden(dh, kept, c)``: the gradient of that, which ``backward`` adds to the last state's."""

    renew: Any = None
    """``renew(old, kept)`` gives the new states that zoneout has overwritten; None: they are not needed, or the loop
    computes them from the states after zoneout."""

    new_cells: Any = None
    """``new_cells(gates, old)``: the same for the last state, of all steps at once and in torch."""

    output: Any = None
    """``output(gates, cells, functions)``: h before a projection, from the kept planes and the last state, at all steps
    and in torch, with the functions that the call chooses by name; None: no projection. Of a program it is
    ``output(states, new, gates, vectors, inputs)``, from all states before and after the steps."""

    vectors: int = 0
    """V learned vectors (H), which follow the states among what the functions read and give gradients of."""

    sequences: int = 0
    """Inputs of a whole sequence (B, H), which follow those."""

    steps: int = 0
    """Inputs of a step (T, B, H), which follow those."""

    again: bool = False
    """``backward`` reads the gates of x again, after all that; x is given as it is, without a product."""

    operand: Any = None
    """``operand(s)``: the operand of the recurrent product; None: h."""

    backward_operand: Any = None
    """``backward_operand(go, s)``: from its gradient, those of the old states and of what follows them."""

    operands: Any = None
    """``operands(states, vectors, inputs)``: the operand at all steps, in torch."""

    operand_gradients: Any = None
    """``operand_gradients(go, states, vectors, inputs)``: the same of ``backward_operand``."""

    y: bool = False
    """``forward`` gives the output after the new states, and ``backward`` reads its gradient after theirs."""

    own: tuple[int, ...] = ()
    """The states that are kept, after the K planes, as the cell made them, if there is zoneout."""

    finite: bool = True
    """Where all that the functions read is zero they give numbers, not infinities."""

    norms: tuple[int, ...] = ()
    """How many norms over all units of a row stand in operand, first and forward, and in the same three backward; empty
    without any. The programs that share a row meet at each."""

    text: str = ""
    """The program, if the op's ``cell`` is that; built-in cells have names."""

    def __hash__(self):
        """Of its numbers only: the hash of a jit function is that of its source."""
        return hash((self.gates, self.states, self.kept, self.planes, self.recurrent, self.new, self.old, self.text))

    @property
    def recurrent_gates(self):
        """The gates of the recurrent products; ``gates`` are those of the input."""
        return len(self.recurrent)

    @property
    def biased(self):
        """The recurrent gates whose bias is not merged with an input gate's."""
        merged = [r for _, r in self.merged]
        return tuple(r for r in range(len(self.recurrent)) if r not in merged)

    @property
    def cells(self):
        """The number of states that cannot be read off the output."""
        return self.states - 1 + self.y

    @property
    def reads(self):
        """The planes that the product of the step before reads: all of ``recurrent``, but for that of the second."""
        return self.recurrent if self.first is None else self.recurrent[:-1]
