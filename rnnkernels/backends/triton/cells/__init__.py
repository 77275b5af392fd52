"""The cells for the time loops: jit functions, and the planes and states that these read and write."""

from ....cells import CELLS as SPECS
from . import generated, gru, gru_reset_before, lstm, projection, rnn
from .layout import Cell


def cell(name, module, biased=(), **layout):
    spec = SPECS[name]
    merged = tuple((g, g) for g in range(spec.gates) if g not in biased)
    return Cell(module.forward, module.backward, spec.gates, spec.states, spec.kept, merged=merged, **layout)


CELLS = {
    "rnn": cell("rnn", rnn, planes=1, recurrent=(0,), new=(True,), old=(False,)),
    "lstm": cell(
        "lstm", lstm, planes=4, recurrent=(0, 1, 2, 3), new=(False, True), old=(False, True), renew=lstm.renew,
        new_cells=lstm.new_cells, output=lstm.output, hidden=lstm.hidden, backward_hidden=lstm.backward_hidden
    ),
    "gru": cell("gru", gru, planes=4, recurrent=(0, 1, 3), new=(False,), old=(True,), biased=(2,)),
    "gru_reset_before": cell(
        "gru_reset_before", gru_reset_before, planes=3, recurrent=(0, 1, 2), new=(False,), old=(True,),
        first=gru_reset_before.first, backward_first=gru_reset_before.backward_first, first_planes=(0, -1, -1),
        inner=gru_reset_before.inner
    ),
}  # fmt: skip

PROJECTION = Cell(
    projection.forward, projection.backward, 1, 1, 0, planes=1, recurrent=(0,), new=(False,), old=(False,)
)  # fmt: skip


def cell_of(name):
    """The ``Cell`` of the op's ``cell``: the name of a built-in cell, or the text of a program."""
    return CELLS.get(name) or generated.cell_of(name)
