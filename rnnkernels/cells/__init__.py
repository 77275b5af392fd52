"""The cells: ``rnnkernels.cells.NAME``, made by :func:`rnnkernels.cell`, and what backends know of them."""

from . import built_in  # noqa: F401 - fills CELLS
from .spec import CELLS, accumulate_dtype, spec_of  # noqa: F401 - for the other wings

OF_LIBRARY = (
    "augru", "cfc", "cifg_lstm", "ea_lstm", "gru", "gru_d", "gru_reset_before", "ind_rnn", "janet", "leaky_rnn",
    "li_gru", "lif", "lstm", "mgu", "min_gru", "min_lstm", "peephole_lstm", "rnn", "slstm", "sru",
)  # fmt: skip


def __getattr__(name):
    """The cells of library.py, which are traced when the first of them is asked for."""
    if name in OF_LIBRARY:
        from . import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *OF_LIBRARY]
