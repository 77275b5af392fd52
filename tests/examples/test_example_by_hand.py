"""Cells by hand: they are the layers, a wrong step is seen, weights come back, and refusals are one line."""

import json

import pytest
import torch

from examples import by_hand, common

TINY = ("--batch", "2", "--steps", "7", "--features", "3", "--hidden", "5")


def run(out, *arguments):
    return by_hand.main([*TINY, "--check", "--out", str(out), *map(str, arguments)])


@pytest.mark.parametrize("layers", common.LAYERS)
def test_the_steps_are_the_layers(layers, tmp_path, capsys):
    assert run(tmp_path, "--layers", layers) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert max(found["output_difference"], found["gradient_difference"]) < 1e-12 and found["state_backwards"] > 0.1
    assert set(found["first_over_last"]) == {"RNN", "LSTM", "GRU"}
    printed = capsys.readouterr().out
    assert "(2, 7, 10)" in printed  # both directions
    assert (tmp_path / "copies.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_step_would_be_seen(tmp_path, monkeypatch):
    def wrong(x, states, w):
        return [state + 1e-9 for state in by_hand.gru(x, states, w)]

    monkeypatch.setitem(by_hand.STEPS, "GRU", (wrong, "rzn"))
    assert run(tmp_path, "--cell", "gru") == 1


def test_the_gru_of_the_texts_is_not_that_of_torch_nn():
    torch.manual_seed(0)
    layer, x = torch.nn.GRU(3, 5, batch_first=True, dtype=torch.float64), torch.randn(2, 7, 3, dtype=torch.float64)
    y, _ = by_hand.unrolled("GRU", x, by_hand.by_gate(layer))
    assert (y - layer(x)[0]).abs().max() > 1e-3


def test_weights_come_back(tmp_path):
    assert run(tmp_path / "a", "--cell", "lstm", "--seed", 3) == run(tmp_path / "b", "--load", tmp_path / "a") == 0
    first, again = ((tmp_path / name / "metrics.json").read_text() for name in "ab")
    assert first == again


def test_it_is_for_one_process(tmp_path, capsys):
    assert run(tmp_path, "--processes", 2) == 2
    assert "nothing is trained" in capsys.readouterr().err
