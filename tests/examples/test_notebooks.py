"""The notebooks: they are those that their sources give, and run from the first cell to the last."""

import importlib.util
from pathlib import Path

import pytest

jupytext, nbclient, nbformat, _ = (
    pytest.importorskip(package, reason=f"the notebooks need {package}: pip install .[notebooks]")
    for package in ("jupytext", "nbclient", "nbformat", "ipykernel")
)

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
TINY = {
    "sentiment": ("--reviews", 100, "--epochs", 1, "--embedding", 8, "--units", 8, "--stack", 8, 8, "--batch", 16),
    "char_lm": ("--data", "sentence", "--hidden", 8, "--steps", 8, "--batch", 2, "--epochs", 2, "--length", 9),
    "forecast": ("--data", "sine", "--points", 210, "--hidden", 4, "--window", 8, "--epochs", 1),
    "own_cell": ("--people", 16, "--visits", 5, "--epochs", 1),
}
PICTURES = {"sentiment": "confusion.png", "char_lm": "curves.png", "forecast": "sine.png", "own_cell": "gates.png"}
long = pytest.mark.long


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_notebooks", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_notebooks_would_change_nothing(make):
    assert set(make.NOTEBOOKS) == set(TINY) == {path.stem for path in FOLDER.glob("*.ipynb")}
    for name in make.NOTEBOOKS:
        assert make.written(name) == (FOLDER / f"{name}.ipynb").read_text("utf-8"), f"run: make notebooks ({name})"


def test_a_notebook_has_all_of_its_sources(make):
    """Every line of code but that of the command line; and no import of what the notebook defines itself."""
    for name, parts in make.NOTEBOOKS.items():
        cells = make.notebook(name).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code").splitlines()
        own = tuple(f"from examples.{part} " for part in parts)
        assert not [line for line in code if line.startswith(own)]
        for part in parts:
            source = (FOLDER.parent / f"{part}.py").read_text("utf-8").split('"""', 2)[2]
            lines = [line for line in source.split("\nif __name__")[0].splitlines() if line.strip()]
            missing = [line for line in lines if line not in code]
            assert all(line.startswith(own) for line in missing), missing
        assert cells[0].cell_type == "markdown" and f"pictures/{name}.png" in cells[0].source
        assert (FOLDER / f"../pictures/{name}.png").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::DeprecationWarning:jupyter_client")
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "own_cell" else long) for name in TINY])
def test_a_notebook_runs(name, tmp_path):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    settings.source = f"ARGUMENTS = {[str(word) for word in TINY[name]]!r}\nout = Path({str(tmp_path)!r})"
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    ).execute()
    outputs = notebook.cells[-1].outputs
    assert any(PICTURES[name] in output.get("text", "") for output in outputs)
    assert any(output.get("data", {}).get("image/png") for output in outputs)
    assert (tmp_path / "metrics.json").exists()
