"""Derivatives of cells: the backward sections of programs against autograd of their forward sections, in float64."""

import program_cases
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from rnnkernels import cells
from rnnkernels.cells import OF_LIBRARY, library


def draws(N=64, seed=0, size=1.0):
    random = torch.Generator().manual_seed(seed)
    return lambda: size * torch.randn(N, dtype=torch.float64, generator=random)


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_cells_of_the_library(name):
    program_cases.check(getattr(cells, name).program, draws(size=1.5))


def test_the_list_of_the_library_is_complete():
    assert sorted(library.__all__) == sorted(OF_LIBRARY)
    assert all(name in dir(cells) for name in OF_LIBRARY)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(min_size=160, max_size=160))
def test_random_cells(numbers):
    """Up to 30 operations, 4 gates, 4 states: the program gives what the function gives, and its gradients."""
    made = program_cases.RandomCell(program_cases.chooser(numbers))
    note(str(made.cell))
    program_cases.check(made.cell.program, draws(N=16), 1e-9, made.eager)
