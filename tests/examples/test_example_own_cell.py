"""A cell of one's own: it is the loop, the levels are those of the equation, it beats the LSTM, and runs repeat."""

import json

import pytest
import torch

pytest.importorskip("lightning", reason="the examples need Lightning: pip install .[examples]")

from examples import own_cell

TINY = ("--people", 8, "--visits", 6, "--units", 5, "--epochs", 1)


def run(*arguments):
    return own_cell.main([str(argument) for argument in arguments])


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def test_the_cell_is_the_loop():
    assert own_cell.difference() < 1e-12


def test_levels_fall_and_rise():
    seen = own_cell.people(4, 9, 0)
    assert seen.gaps.min() >= 0.05 and seen.gaps.max() <= 3 and seen.doses.shape == seen.levels.shape == (4, 9, 3)
    assert 0.2 < (seen.doses > 0).float().mean() < 0.6
    times = seen.gaps.cumsum(1)
    for last in range(9):  # the sum over all doses, each as old as it is
        ages = times[:, last : last + 1] - times[:, : last + 1]
        level = (seen.doses[:, : last + 1] * torch.exp(-ages / torch.tensor(own_cell.HOURS))).sum(1)
        torch.testing.assert_close(seen.levels[:, last], level)
    assert own_cell.people(4, 9, 0, longest=6.0).gaps.max() > 3
    assert not torch.equal(own_cell.people(4, 9, 1).doses, seen.doses)


def test_the_error_of_whoever_says_the_mean_is_one():
    seen = own_cell.people(50, 20, 0)
    assert own_cell.error(lambda gaps, doses: seen.levels.mean().expand_as(seen.levels), seen) == pytest.approx(1, 1e-3)
    assert own_cell.error(lambda gaps, doses: seen.levels, seen) == 0


def test_gamma_can_be_how_levels_fall():
    model = own_cell.Reader(3)
    with torch.no_grad():
        model.fading.weight.copy_(1 / torch.tensor(own_cell.HOURS)[:, None])
        model.fading.bias.zero_()
    seen = own_cell.people(2, 5, 0)
    torch.testing.assert_close(model.gamma(seen.gaps), torch.exp(-seen.gaps / torch.tensor(own_cell.HOURS)))


def test_a_run_is_written_repeated_and_loaded(tmp_path, capsys):
    assert run(*TINY, "--out", tmp_path / "a") == run(*TINY, "--out", tmp_path / "b") == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert metrics(tmp_path / "a")["lstm"]["parameters"] > metrics(tmp_path / "a")["gru_d"]["parameters"]
    assert (tmp_path / "a" / "gates.png").read_bytes().startswith(b"\x89PNG")
    assert "squared_error" in (tmp_path / "a" / "logs" / "gru_d" / "metrics.csv").read_text()
    capsys.readouterr()
    assert run("--load", tmp_path / "a", "--out", tmp_path / "c") == 0
    assert "trained" not in capsys.readouterr().out
    assert metrics(tmp_path / "c") == metrics(tmp_path / "a")
    assert run(*TINY, "--layers", "torch", "--cell", "gru", "--out", tmp_path / "d") == 0
    assert metrics(tmp_path / "d")["gru_d"] == metrics(tmp_path / "a")["gru_d"]


def test_what_cannot_be_done_is_said_in_one_line(tmp_path, capsys):
    for arguments, words in ((("--processes", 2), "too small"), (("--load", tmp_path / "nowhere"), "no model.json")):
        assert run(*arguments, "--out", tmp_path / "out") == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1


@pytest.mark.long
def test_it_beats_the_lstm(tmp_path):
    assert run("--quick", "--check", "--out", tmp_path) == 0
