"""Fixtures of all tests. Tests run with warnings as errors; only the one about a missing extension is expected."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from pairwise import ALL

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="rnnkernels: the C\\+\\+ extension is not there")
    from rnnkernels import backends
    from rnnkernels.cells import CELLS

CPU_BACKENDS = [name for name in backends.available() if name != "triton"]


def pytest_collection_modifyitems(config, items):
    """The short suite goes without tests that are marked as long; pytest says how many it has deselected."""
    if not ALL and (long := [item for item in items if item.get_closest_marker("long")]):
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    """Runs a test once on each backend that this CPU has, forced; not with a cell that the backend lacks."""
    cell = request.node.callspec.params.get("cell")
    if cell in CELLS:
        stages = frozenset({"second_product"} if CELLS[cell].phases > 1 else ())
        call = backends.Facts(cell, torch.device("cpu"), torch.float64, 1, 1, 1, 1, 1, 1, stages=stages)
        reason = backends.BACKENDS[request.param].unsupported(call)
        if reason is not None:
            pytest.skip(f"{request.param}: {reason}")
    with backends.force(request.param):
        yield request.param


@pytest.fixture(autouse=True, scope="session")
def laid_out_once():
    """Pictures of a name are laid out once, which takes most of their time, and then only drawn."""
    if "matplotlib.figure" not in sys.modules:  # nothing that was collected draws
        yield
        return
    figure, before = sys.modules["matplotlib.figure"].Figure, set()
    whole = figure.savefig

    def savefig(self, path, **options):
        name = Path(path).name
        if name in before:
            self.set_layout_engine("none")
        before.add(name)
        whole(self, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "savefig", savefig)
        yield
