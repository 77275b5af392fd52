"""The table of a direction's weights: which there are, in which order, of which shape and kind.

Letters: G gates, H hidden, I input, P output of a step, N heads.
"""

from functools import lru_cache
from typing import NamedTuple

import torch

from . import spec_of


class Weight(NamedTuple):
    """One weight of a direction."""

    name: str
    """The parameter's, without the suffix of its layer and direction."""
    kind: str
    """``input``, ``recurrent``, ``bias``, ``projection``, ``gain`` or ``shift`` (of layer norms), or ``vector``."""
    shape: tuple[int, ...]


def weights_of(cell, I, H, P=None, *, bias=True, project=False, layer_norm=False, heads=1):  # noqa: E741
    """The weights of a direction, in the order of the op.

    No name of a vector contains "weight": loops that initialise by name take such a parameter for a matrix.
    """
    spec, P = spec_of(cell), P or H
    sides = {}  # suffix: rows of the matrix of that side, columns, kind and shape
    if spec.projects_input:
        sides["ih"] = spec.gates * H, (spec.gates * H, I), "input", "ln_x_gain"
    if spec.recurrent_gates:
        rows = spec.recurrent_gates * H
        shape = (rows, P) if heads == 1 else (heads, rows // heads, H // heads)
        sides["hh"] = rows, shape, "recurrent", "ln_h_gain"
    table = [Weight(f"weight_{side}", kind, shape) for side, (_, shape, kind, _) in sides.items()]
    if bias:
        table += [Weight(f"bias_{side}", "bias", (rows,)) for side, (rows, *_) in sides.items()]
    if project:
        table.append(Weight("weight_hr", "projection", (P, H)))
    if layer_norm:
        table += [Weight(gain, "gain", (rows,)) for rows, *_, gain in sides.values()]
        if spec.output_norm:  # c is normalised on its way to the output
            table += [Weight("ln_c_gain", "gain", (H,)), Weight("ln_c_bias", "shift", (H,))]
    # a field: TorchDynamo of torch 2.10 goes over fields of a NamedTuple, and not over what its properties give
    return tuple(table + [Weight(name, "vector", (H,)) for name in spec.program.vectors])


def names_of(cell, bias=True, project=False, layer_norm=False):
    """The names of a direction's weights, in the order of the op."""
    compute = _names_of if torch.compiler.is_compiling() else _known_names_of
    return compute(cell, bool(bias), bool(project), bool(layer_norm))


def _names_of(cell, bias, project, layer_norm):
    return tuple(w.name for w in weights_of(cell, 1, 1, bias=bias, project=project, layer_norm=layer_norm))


def shapes_of(cell, num_layers, D, I, H, P, **settings):  # noqa: E741
    """The shapes of all weights of layers on top of each other, layer by layer and in it direction by direction."""
    known = not torch.compiler.is_compiling() and type(I) is type(H) is type(P) is int  # symbols have no hash
    return (_known_shapes_of if known else _shapes_of)(cell, num_layers, D, I, H, P, **settings)


def _shapes_of(cell, num_layers, D, I, H, P, **settings):  # noqa: E741
    first, others = ([w.shape for w in weights_of(cell, width, H, P, **settings)] for width in (I, D * P))
    return first * D + others * (D * (num_layers - 1))


# TorchDynamo traces no lru_cache
_known_names_of, _known_shapes_of = (lru_cache(maxsize=1024)(f) for f in (_names_of, _shapes_of))
