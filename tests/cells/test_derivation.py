"""Derivatives of cells: the backward sections of programs against autograd of their forward sections, in float64."""

import program_cases
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from rnnkernels import cells
from rnnkernels.cells.library import __all__ as OF_LIBRARY


def draws(N=64, seed=0, size=1.0):
    random = torch.Generator().manual_seed(seed)
    return lambda: size * torch.randn(N, dtype=torch.float64, generator=random)


PLANES = {  # what training keeps, no more than a hand-written cell would; plane_2: a difference without a name
    "augru": "q reset z n", "cfc": "a t f1 f2", "cifg_lstm": "f o g", "ea_lstm": "f o g", "gru": "reset z n q",
    "gru_d": "q reset z n", "gru_reset_before": "reset z n", "ind_rnn": "", "janet": "a g", "leaky_rnn": "",
    "li_gru": "z n", "lif": "", "lstm": "i f g o", "mgu": "f n", "min_gru": "z plane_1", "min_lstm": "n f i",
    "peephole_lstm": "i f g o", "rnn": "", "slstm": "i o f z", "sru": "f r plane_2 plane_3",
}  # fmt: skip


@pytest.mark.parametrize("name", PLANES)
def test_what_training_keeps(name):
    made = getattr(cells, name)
    assert sorted(made.names) == sorted(PLANES[name].split()) and len(made.names) == made.program.keep


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_cells_of_the_library(name):
    assert "h' = " in getattr(cells, name).__doc__ or "v' = " in getattr(cells, name).__doc__
    program_cases.check(getattr(cells, name).program, draws(size=1.5))


def test_the_list_of_the_library_is_complete():
    assert len(OF_LIBRARY) >= 20 and {"lstm", "li_gru", "gru_d"} <= set(OF_LIBRARY)
    assert all(name in dir(cells) for name in OF_LIBRARY)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(min_size=160, max_size=160))
def test_random_cells(numbers):
    """Up to 30 operations, 4 gates, 4 states: the program gives what the function gives, and its gradients."""
    made = program_cases.RandomCell(program_cases.chooser(numbers))
    note(str(made.cell))
    program_cases.check(made.cell.program, draws(N=16), 1e-9, made.eager)
