"""Elman's letters: the text, what each network can know, the error that falls inside words, and clear refusals."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from examples import elman


@pytest.fixture(autouse=True)
def one_thread():
    """The networks are tiny: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*arguments):
    return elman.main([str(argument) for argument in arguments])


def trained(cell, span, words=250, passes=5):
    torch.manual_seed(0)
    model = elman.Predictor("torch", cell)
    elman.train(model, elman.sentences(words, 0, 0).bits, passes, span, lambda n, loss: None)
    return model


def test_the_text_is_sixteen_words_in_five_bits():
    text = elman.sentences(500, 0, 0)
    assert len(elman.WORDS) == len(set(elman.WORDS)) == 16
    cuts = np.flatnonzero(text.starts)
    words = [text.letters[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]
    assert len(words) == 500 and set(words) == set(elman.WORDS)
    assert text.places.tolist() == [place for word in words for place in range(len(word))]
    assert text.bits.shape == (len(text.letters), 5) and text.bits.dtype == torch.float64
    assert text.bits.unique().tolist() == [0, 1]
    assert len(set(zip(text.letters, map(tuple, text.bits.tolist()), strict=True))) == len(set(text.letters))
    assert elman.sentences(500, 0, 0).letters == text.letters
    assert elman.sentences(500, 0, 1).letters != text.letters != elman.sentences(500, 1, 0).letters


def test_peaks_of_a_clear_error_are_the_words():
    text = elman.sentences(100, 0, 0)
    error = np.where(text.starts, 0.5, 0.1)[1:]
    found = elman.measured(error, text)
    assert found == {"first": 0.5, "later": pytest.approx(0.1), "ratio": pytest.approx(5), "fall": 1, "f1": 1}
    assert not elman.peaks(np.linspace(0, 1, 9)).any()


def test_the_table_of_pairs_knows_what_follows_on_average():
    learned = elman.Text("abac", torch.eye(5, dtype=torch.float64)[[0, 1, 0, 2]], None, None)
    heard = elman.Text("abd", torch.eye(5, dtype=torch.float64)[[0, 1, 3]], None, None)
    after_a, after_b = elman.pair_errors(learned, heard)
    assert after_a == pytest.approx((0.5 / 5) ** 0.5)  # b and c are half of it each
    assert after_b == pytest.approx((2 / 5) ** 0.5)  # a was expected, d came


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("library", ["torch", "rnnkernels"])
def test_a_step_over_the_whole_text_is_a_step_of_sgd(cell, library):
    bits = elman.sentences(6, 0, 0).bits
    torch.manual_seed(1)
    model = elman.Predictor(library, cell)
    layer = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell](5, 20).double()
    layer.load_state_dict({f"{name}_l0": value for name, value in model.hidden.state_dict().items()})
    guesses = torch.sigmoid(layer(bits[:-1])[0] @ model.head.weight.detach().T + model.head.bias.detach())
    (guesses - bits[1:]).square().mean().backward()
    before = {name: value.detach().clone() for name, value in model.hidden.named_parameters()}
    elman.train(model, bits, 1, len(bits), lambda n, loss: None)
    for name, value in model.hidden.named_parameters():
        gradient = getattr(layer, f"{name}_l0").grad
        assert gradient.abs().max() > 0
        torch.testing.assert_close(value, before[name] - 0.1 * gradient, rtol=1e-10, atol=1e-14)


def test_no_gradient_comes_from_before_the_span():
    """Elman's own training is that of a layer that gets its last state as an input."""
    bits = elman.sentences(2, 0, 0).bits[:4]
    torch.manual_seed(1)
    model = elman.Predictor("torch", "rnn")
    cell, head = nn.RNNCell(5, 20).double(), nn.Linear(20, 5).double()
    cell.load_state_dict(model.hidden.state_dict())
    head.load_state_dict(model.head.state_dict())
    optimizer = torch.optim.SGD([*cell.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    h = torch.zeros(20, dtype=torch.float64)
    for t in range(3):
        h = cell(bits[t], h.detach())
        optimizer.zero_grad()
        (head(h).sigmoid() - bits[t + 1]).square().mean().backward()
        optimizer.step()
    losses = []
    elman.train(model, bits, 1, 1, lambda n, loss: losses.append((n, loss)))
    torch.testing.assert_close(dict(model.hidden.named_parameters()), dict(cell.named_parameters()), rtol=1e-10, atol=0)
    assert [n for n, _ in losses] == [0] and 0.1 < losses[0][1] < 0.5


def test_the_feed_forward_network_sees_one_letter_and_the_others_more():
    heard = elman.sentences(150, 0, 1)
    for cell in (None, "rnn"):
        by_pair = {}
        error = elman.errors(trained(cell, 1, words=20, passes=1), heard.bits)
        for pair, value in zip(zip(heard.letters, heard.letters[1:], strict=False), error, strict=True):
            by_pair.setdefault(pair, set()).add(round(float(value), 9))
        assert (max(map(len, by_pair.values())) == 1) == (cell is None)


def test_the_error_falls_inside_words_of_a_new_text_only_with_memory():
    learned, heard = elman.sentences(250, 0, 0), elman.sentences(200, 0, 1)
    table = elman.measured(elman.pair_errors(learned, heard), heard)
    blind = elman.measured(elman.errors(trained(None, 1), heard.bits), heard)
    bptt = elman.measured(elman.errors(trained("rnn", 3), heard.bits), heard)
    assert table["fall"] < 1.1 and blind["fall"] < 1.2
    assert bptt["ratio"] > 1.3
    assert bptt["fall"] > 1.1 * max(blind["fall"], table["fall"])


def test_a_run_is_written_repeated_and_loaded(tmp_path, capsys):
    tiny = ("--words", 15, "--heard", 30, "--epochs", 1)
    assert run(*tiny, "--seed", 3, "--out", tmp_path / "a") == run(*tiny, "--seed", 3, "--out", tmp_path / "b") == 0
    assert "first" in capsys.readouterr().out
    first, again = ((tmp_path / name / "metrics.json").read_bytes() for name in "ab")
    assert first == again
    assert (tmp_path / "a" / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert "squared_error" in (tmp_path / "a" / "logs" / "BPTT" / "metrics.csv").read_text()
    assert run("--load", tmp_path / "a", "--heard", 30, "--out", tmp_path / "c") == 0
    assert (tmp_path / "c" / "metrics.json").read_bytes() == first
    assert "trained" not in capsys.readouterr().out
    assert run(*tiny, "--seed", 3, "--layers", "torch", "--out", tmp_path / "a") == 0
    assert "last runs: torch" in capsys.readouterr().out
    other = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert other["BPTT"] == pytest.approx(json.loads(first)["BPTT"], rel=1e-6)


def test_what_cannot_be_done_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "model.json").write_text('{"example": "another"}')
    (tmp_path / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    for arguments, words in (
        (("--processes", 2), "cannot be shared out"),
        (("--words", 5), "at least 10"),
        (("--load", tmp_path / "nowhere"), "no model.json there"),
        (("--load", tmp_path), "not a model of this example"),
    ):
        assert run(*arguments, "--out", tmp_path / "out") == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1
