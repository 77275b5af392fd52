"""The comparison: both libraries count and compute the same, every number is there, and a table can be shown again."""

import json

import pytest
import torch

from examples import common, compare, footprint

TINY = ("--batch", "3", "--steps", "5", "--epochs", "2")


@pytest.fixture
def no_processes(monkeypatch):
    """Without the processes that count memory, of seconds each; `test_memory_...` starts one."""
    monkeypatch.setattr(compare, "measured", lambda *_: {"forward": 1 << 20, "train": None})


def run(out, *arguments):
    return compare.main(["--out", str(out), *arguments])


@pytest.mark.parametrize("cell", compare.CELLS)
@pytest.mark.parametrize("name", common.LAYERS)
def test_the_formula_counts_every_parameter(cell, name):
    model = footprint.Classifier(common.LAYERS[name], cell)
    assert sum(p.numel() for p in model.parameters()) == compare.formula(cell)


def test_all_models_are_timed_and_drawn_and_the_libraries_agree(no_processes, tmp_path, capsys):
    assert run(tmp_path, *TINY, "--check") == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    assert [(row["cell"], row["layers"]) for row in found["rows"]] == [
        (cell, name) for cell in compare.CELLS for name in common.LAYERS
    ]
    assert all(row["forward_seconds"] > 0 and row["train_seconds"] > 0 for row in found["rows"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["parameters_lstm"] == 93_450 and metrics["difference_of_logits"] < 1e-5
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "93,450" in printed and "?" in printed and "times as fast" in printed


def test_the_same_seed_gives_the_same_metrics_and_load_shows_them_again(no_processes, tmp_path, capsys):
    for folder in ("a", "b"):
        assert run(tmp_path / folder, *TINY, "--cell", "gru", "--seed", "3") == 0
    assert run(tmp_path / "c", "--load", str(tmp_path / "a")) == 0
    first, *others = ((tmp_path / folder / "metrics.json").read_bytes() for folder in "abc")
    assert others == [first, first]
    assert (tmp_path / "a/compare.json").read_bytes() == (tmp_path / "c/compare.json").read_bytes()


@pytest.mark.parametrize("name", common.LAYERS)
def test_one_library_alone(name, no_processes, tmp_path, capsys):
    assert run(tmp_path, *TINY, "--cell", "rnn", "--layers", name) == 0
    assert f"trained in 0.0 s with {name}'s layers" in capsys.readouterr().out


def test_other_numbers_would_be_seen(no_processes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common.LAYERS["rnnkernels"], "GRU", torch.nn.LSTM)
    assert run(tmp_path, *TINY, "--cell", "gru", "--check") == 1
    assert capsys.readouterr().out.count("missed") == 2


@pytest.mark.long
def test_memory_is_counted_in_a_process_of_its_own():
    held = footprint.measured("rnnkernels", "GRU", 64, 400, "cpu")
    output = 64 * 400 * footprint.HIDDEN * 4
    assert held["forward"] is None or output <= held["forward"] <= held["train"] <= 30 * output


@pytest.mark.parametrize(
    "content, word",
    [(None, "No such file"), ("{", "Expecting"), ("", "empty"), ("[]", "no table")],
    ids=["missing", "broken", "empty", "other"],
)
def test_a_table_that_is_none_is_one_clear_line(content, word, tmp_path, capsys):
    if content is not None:
        (tmp_path / "compare.json").write_text(content)
    assert run(tmp_path / "out", "--load", str(tmp_path)) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and printed.startswith("compare: ") and word in printed


def test_one_process_only(tmp_path, capsys):
    assert run(tmp_path, "--processes", "2") == 2
    assert "one process" in capsys.readouterr().err
