"""Commands: those that pages name can be parsed, sizes are real arguments, and training says where it is."""

import importlib
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning", reason="the examples need Lightning: pip install .[examples]")

from examples import __main__ as listing
from examples import common

ROOT = Path(__file__).parents[2]
PAGES = ("docs/texts.md", "examples/README.md")
SIZED = [name for name in listing.EXAMPLES if "sizes=SIZES" in (ROOT / f"examples/{name}.py").read_text("utf-8")]
COMMAND = re.compile(r"python -m examples\.(\w+)([^`#\n]*)")


def commands():
    """Name and arguments of every command of the pages and of the examples' first lines."""
    texts = [(ROOT / page).read_text("utf-8") for page in PAGES]
    for name in listing.EXAMPLES:
        texts.append((ROOT / f"examples/{name}.py").read_text("utf-8").split('"""')[1])
    return sorted({found for text in texts for found in COMMAND.findall(text)})


@pytest.mark.parametrize("name", listing.EXAMPLES)
def test_commands_can_be_parsed(name):
    parser = importlib.import_module(f"examples.{name}").parser()
    asked = [words for of, words in commands() if of == name]
    assert asked
    for words in asked:
        parser.parse_args(shlex.split(words))


def test_every_example_is_on_both_pages():
    texts, readme = ((ROOT / page).read_text("utf-8") for page in PAGES)
    assert set(re.findall(r"^## (\w+):", readme, re.MULTILINE)) == set(listing.EXAMPLES)
    assert {name for name in listing.EXAMPLES if f"examples.{name}" not in texts} == {"rl", "own_cell"}  # of no text
    for name in listing.EXAMPLES:
        assert (ROOT / f"examples/pictures/{name}.png").exists()


@pytest.mark.parametrize("name", SIZED)
def test_sizes_are_arguments_and_given_ones_win(name, tmp_path, monkeypatch):
    module = importlib.import_module(f"examples.{name}")
    seen = []
    monkeypatch.setattr(module, "work", lambda asked: (seen.append(asked), ({}, []))[1])
    for sizes, wanted in module.SIZES.items():
        assert module.main(["--sizes", sizes, "--quick", "--out", str(tmp_path)]) == 0
        assert vars(seen[-1]).items() >= wanted.items() and wanted.keys() <= vars(module.parser().parse_args([])).keys()
        assert module.main(["--sizes", sizes, "--epochs", "77", "--out", str(tmp_path)]) == 0
        assert seen[-1].epochs == 77
        assert f"--sizes {sizes}" in (ROOT / PAGES[0]).read_text("utf-8")


def test_training_says_where_it_is_where_there_is_no_terminal(tmp_path, capsys):
    asked = common.parser("any", "An example.", epochs=5).parse_args(["--out", str(tmp_path)])
    (lines,) = (one for one in common.trainer(asked, name="gru").callbacks if isinstance(one, common.Lines))
    at = SimpleNamespace(is_global_zero=True, current_epoch=1, max_epochs=5, num_training_batches=9)
    lines.on_train_batch_end(at, None, {"loss": torch.tensor(0.5)}, None, 2)  # at once there is nothing to say
    lines.last -= lines.every
    lines.on_train_batch_end(at, None, {"loss": torch.tensor(0.25)}, None, 3)
    lines.on_train_batch_end(at, None, {"loss": torch.tensor(0.125)}, None, 4)
    assert capsys.readouterr().out == "gru: epoch 2 of 5, step 4 of 9, loss 0.25\n"
    assert list(common.progress(iter("abc"), "letters", 3)) == ["a", "b", "c"]


@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs_on_an_axis_are_whole(epochs, tmp_path):
    with common.plot(tmp_path / "curve.png") as axis:
        axis.plot(range(1, epochs + 1), range(epochs), marker="o")
        axis.set(xlabel="epoch")
    ticks = axis.get_xticks()
    assert all(ticks == ticks.round()) and {*range(1, epochs + 1)} <= {*ticks}
