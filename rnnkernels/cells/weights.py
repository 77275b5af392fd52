"""The table of a direction's weights: which there are, in which order, of which shape and kind.

Letters: G gates, H hidden, I input, P output of a step, N heads.
"""

from itertools import product
from typing import NamedTuple

from . import CELLS


class Weight(NamedTuple):
    """One weight of a direction."""

    name: str
    """The parameter's, without the suffix of its layer and direction."""
    kind: str
    """``input``, ``recurrent``, ``bias``, ``projection``, ``gain`` or ``shift`` (the last two of layer norms)."""
    shape: tuple[int, ...]


def weights_of(cell, I, H, P=None, *, bias=True, project=False, layer_norm=False, heads=1):  # noqa: E741
    """The weights of a direction, in the order of the op.

    No name of a vector contains "weight": loops that initialise by name take such a parameter for a matrix.
    """
    spec, P = CELLS[cell], P or H
    rows = spec.gates * H
    table = [
        Weight("weight_ih", "input", (rows, I)),
        Weight("weight_hh", "recurrent", (rows, P) if heads == 1 else (heads, rows // heads, H // heads)),
    ]
    if bias:
        table += [Weight("bias_ih", "bias", (rows,)), Weight("bias_hh", "bias", (rows,))]
    if project:
        table.append(Weight("weight_hr", "projection", (P, H)))
    if layer_norm:
        table += [Weight("ln_x_gain", "gain", (rows,)), Weight("ln_h_gain", "gain", (rows,))]
        if spec.states > 1:  # c is normalised on its way to the output
            table += [Weight("ln_c_gain", "gain", (H,)), Weight("ln_c_bias", "shift", (H,))]
    return tuple(table)


NAMES = {
    (cell, *settings): tuple(
        w.name for w in weights_of(cell, 1, 1, bias=settings[0], project=settings[1], layer_norm=settings[2])
    )
    for cell in CELLS
    for settings in product((False, True), repeat=3)
}


def names_of(cell, bias=True, project=False, layer_norm=False):
    """The names of a direction's weights, in the order of the op."""
    return NAMES[cell, bool(bias), bool(project), bool(layer_norm)]


def shapes_of(cell, num_layers, D, I, H, P, **settings):  # noqa: E741
    """The shapes of all weights of layers on top of each other, layer by layer and in it direction by direction."""
    first, others = ([w.shape for w in weights_of(cell, width, H, P, **settings)] for width in (I, D * P))
    return first * D + others * (D * (num_layers - 1))
