"""The cells for the time loops: jit functions, and the planes and states that these read and write."""

from typing import Any, NamedTuple

from ....cells import CELLS as SPECS
from . import gru, gru_reset_before, lstm, projection, rnn


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
    recurrent_bias: bool = False
    """The last gate's b_hh belongs to its recurrent product alone; any other b_hh is merged with b_ih."""

    first: Any = None
    """``first(x, r)`` gives the factor of h in a second product, that of the last gate; None: there is one product."""

    backward_first: Any = None
    """``backward_first(dv, h, kept)``, from the gradient of that vector: the first plane, and the gradient of h."""

    hidden: Any = None
    """``hidden(kept, c)``: h from the last state as a layer norm left it; None: the output reads no other state."""

    backward_hidden: Any = None
    """``backward_hidden(dh, kept, c)``: the gradient of that, which ``backward`` adds to the last state's."""

    renew: Any = None
    """``renew(old, kept)`` gives the new states that zoneout has overwritten; None: they are not needed."""

    new_cells: Any = None
    """``new_cells(gates, old)``: the same for the last state, of all steps at once and in torch."""

    output: Any = None
    """``output(gates, cells, activation)``: h before a projection, from the kept planes; None: no projection."""

    def __hash__(self):
        """Of its numbers only: the hash of a jit function is that of its source."""
        return hash((self.gates, self.states, self.kept, self.planes, self.recurrent, self.new, self.old))

    @property
    def reads(self):
        """The planes that the product of the step before reads: all of ``recurrent``, but for that of the second."""
        return self.recurrent if self.first is None else self.recurrent[:-1]


def cell(name, module, **layout):
    spec = SPECS[name]
    return Cell(module.forward, module.backward, spec.gates, spec.states, spec.kept, **layout)


CELLS = {
    "rnn": cell("rnn", rnn, planes=1, recurrent=(0,), new=(True,), old=(False,)),
    "lstm": cell(
        "lstm", lstm, planes=4, recurrent=(0, 1, 2, 3), new=(False, True), old=(False, True), renew=lstm.renew,
        new_cells=lstm.new_cells, output=lstm.output, hidden=lstm.hidden, backward_hidden=lstm.backward_hidden
    ),
    "gru": cell("gru", gru, planes=4, recurrent=(0, 1, 3), new=(False,), old=(True,), recurrent_bias=True),
    "gru_reset_before": cell(
        "gru_reset_before", gru_reset_before, planes=3, recurrent=(0, 1, 2), new=(False,), old=(True,),
        first=gru_reset_before.first, backward_first=gru_reset_before.backward_first
    ),
}  # fmt: skip

PROJECTION = Cell(
    projection.forward, projection.backward, 1, 1, 0, planes=1, recurrent=(0,), new=(False,), old=(False,)
)  # fmt: skip
