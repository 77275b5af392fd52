"""The cells: ``rnnkernels.cells.NAME``, made by :func:`rnnkernels.cell`, and what backends know of them."""

import importlib
from types import ModuleType

from . import built_in  # noqa: F401 - fills CELLS
from .definition import Cell as Cell
from .spec import CELLS, accumulate_dtype, spec_of  # noqa: F401 - for the other wings
from .trace import Names as Names


def _library() -> ModuleType:
    return importlib.import_module(f"{__name__}.library")


def __getattr__(name: str) -> Cell:
    """The cells of library.py, which are traced when the first of them is asked for."""
    if not name.startswith("_") and name in _library().__all__:
        return getattr(_library(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_library().__all__]
