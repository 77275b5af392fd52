"""Derivatives of cells: the backward sections of programs against autograd of their forward sections, in float64."""

import program_cases
import pytest
import torch

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
