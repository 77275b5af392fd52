"""The cells for the time loops: jit functions, and the planes and states that these read and write."""

from ....cells import CELLS as SPECS
from . import projection
from .generated import cell_of
from .layout import Cell

CELLS = {name: cell_of(name) for name in SPECS}

PROJECTION = Cell(
    projection.forward, projection.backward, 1, 1, 0, planes=1, recurrent=(0,), new=(False,), old=(False,)
)  # fmt: skip
