"""Of the examples' tests: each picture is laid out once, which takes most of its time, and then only drawn."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure


@pytest.fixture(autouse=True, scope="session")
def laid_out_once():
    whole, before = Figure.savefig, set()

    def savefig(figure, path, **options):
        name = Path(path).name
        if name in before:
            figure.set_layout_engine("none")
        before.add(name)
        whole(figure, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield
