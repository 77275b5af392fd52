"""The seq2seq example: days apart, padding without influence, attention and both searches, the same results twice."""

import datetime
import itertools
import json

import pytest
import torch

from examples import common, dates, seq2seq
from examples.dates import END, START, WRITTEN

TINY = ("--dates", 256, "--epochs", 3, "--hidden", 16)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(seq2seq, "VALIDATION", 64)
    monkeypatch.setattr(seq2seq, "TEST", 128)


def run(*arguments):
    return seq2seq.main([str(argument) for argument in arguments])


def metrics(folder):
    return (folder / "metrics.json").read_bytes()


def reader(attention=True, cell="lstm", layers="rnnkernels", seed=0):
    torch.manual_seed(seed)
    return seq2seq.Reader(common.LAYERS[layers], cell, 40, 12, attention, 0.5).double().eval()


@pytest.fixture
def rows():
    """Three rows of different lengths: characters, and lengths."""
    torch.manual_seed(0)
    lengths = torch.tensor([9, 4, 7])
    read = torch.randint(2, 40, (3, 9))
    return read * (torch.arange(9) < lengths[:, None]), lengths


def test_no_day_is_in_two_parts_and_sentences_say_their_day():
    parts = dates.sentences([300, 200, 2000], seed=3)
    days = [sentence.iso for part in parts for sentence in part]
    assert len(set(days)) == len(days) == 2500
    assert dates.sentences([300], seed=3)[0] == parts[0]  # the test part does not depend on how many are trained on
    for sentence in parts[2]:
        date = datetime.date.fromisoformat(sentence.iso)
        assert str(date.year) in sentence.text and str(date.day) in sentence.text
    assert {sentence.locale for sentence in parts[2]} == {"fr", "en", "en_GB"}


def test_characters_that_training_never_showed_are_unknown():
    read, lengths, written = next(
        iter(dates.batched([dates.Sentence("abz", "2000-01-31", ""), dates.Sentence("a", "1999-12-01", "")], "ab"))
    )
    assert read.tolist() == [[2, 3, 1], [2, 0, 0]] and lengths.tolist() == [3, 1]
    assert seq2seq.texts(written[:, 1:]) == ["2000-01-31", "1999-12-01"]


def test_attention_is_the_formula(rows):
    attention = reader().attention
    query, memory = torch.randn(3, 12, dtype=torch.float64), torch.randn(3, 9, 24, dtype=torch.float64)
    valid = torch.arange(9) < rows[1][:, None]
    context, weights = attention(query, attention.of_memory(memory), memory, valid)
    v, W, U, b = (
        attention.score.weight[0],
        attention.of_query.weight,
        attention.of_memory.weight,
        attention.of_memory.bias,
    )
    for row, length in enumerate(rows[1].tolist()):
        scores = torch.stack([v @ torch.tanh(W @ query[row] + U @ memory[row, t] + b) for t in range(length)])
        wanted = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(weights[row, :length], wanted)
        assert weights[row, length:].eq(0).all()
        torch.testing.assert_close(context[row], sum(w * m for w, m in zip(wanted, memory[row], strict=False)))


@pytest.mark.parametrize("layers", ["torch", "rnnkernels"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("attention", [True, False])
def test_padding_has_no_influence(attention, cell, layers, rows):
    model = reader(attention, cell, layers)
    read, lengths = rows
    together = seq2seq.greedy(model, read, lengths)[0]
    seen, state = model.encode(read, lengths)
    logits = model.step(torch.full((3,), START), state, seen)[0]
    for row, length in enumerate(lengths.tolist()):
        alone = read[row : row + 1, :length], lengths[row : row + 1]
        seen, state = model.encode(*alone)
        torch.testing.assert_close(model.step(torch.tensor([START]), state, seen)[0][0], logits[row])
        assert torch.equal(seq2seq.greedy(model, *alone)[0][0], together[row])


def log_probability(model, read, lengths, written):
    seen, state = model.encode(read, lengths)
    total, before = 0.0, START
    for character in written:
        logits, state, _ = model.step(torch.tensor([before]), state, seen)
        total, before = total + logits[0].log_softmax(-1)[character].item(), character
        if character == END:
            break
    return total


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_beam_wide_enough_finds_the_likeliest_text_of_all(cell, rows):
    """All texts of up to two characters, or one and <end>, by enumeration."""
    model, V = reader(cell=cell, seed=4), len(WRITTEN)
    with torch.no_grad():
        model.head.bias[END] += 1.0  # so that some end early
    found, scores = seq2seq.beam(model, *rows, width=V, longest=2)
    for row, length in enumerate(rows[1].tolist()):
        alone = rows[0][row : row + 1, :length], rows[1][row : row + 1]
        texts = [(END,), *((a, b) for a, b in itertools.product(range(V), repeat=2) if a not in (END, dates.PAD))]
        best = max(texts, key=lambda text: log_probability(model, *alone, text))
        assert seq2seq.texts(found[row : row + 1]) == seq2seq.texts(torch.tensor([best]))
        assert scores[row].item() == pytest.approx(log_probability(model, *alone, best), rel=1e-9)


def test_a_beam_of_one_is_greedy(rows):
    model = reader(seed=2)
    greedily, _ = seq2seq.greedy(model, *rows)
    assert seq2seq.texts(seq2seq.beam(model, *rows, width=1)[0]) == seq2seq.texts(greedily)


def test_the_ratio_of_teacher_forcing_falls_in_a_straight_line(few, tmp_path):
    assert run("--dates", 64, "--epochs", 4, "--hidden", 8, "--last-ratio", 0.2, "--out", tmp_path) == 0
    lines = [
        line.split(",") for line in (tmp_path / "logs" / "with_attention" / "metrics.csv").read_text().splitlines()
    ]
    ratios = [float(row[lines[0].index("ratio")]) for row in lines[1:] if row[lines[0].index("ratio")]]
    assert ratios == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_it_learns_loads_and_repeats(few, tmp_path, capsys):
    for folder in ("a", "b"):
        assert run(*TINY, "--out", tmp_path / folder) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    capsys.readouterr()
    assert run("--load", tmp_path / "a", "--out", tmp_path / "c", "--date", "5 mai 2001") == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "c")
    assert "5 mai 2001: " in capsys.readouterr().out
    assert (tmp_path / "c" / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads(metrics(tmp_path / "a"))) >= {
        "exact_match",
        "exact_match_beam",
        "exact_match_without_attention",
    }
    lines = [
        line.split(",")
        for line in (tmp_path / "a" / "logs" / "with_attention" / "metrics.csv").read_text().splitlines()
    ]
    losses = [float(row[lines[0].index("train_loss")]) for row in lines[1:] if row[lines[0].index("train_loss")]]
    assert losses[-1] < losses[0]


@pytest.mark.long
def test_torchs_layers(few, tmp_path, capsys):
    small = ("--dates", 64, "--epochs", 1, "--hidden", 8, "--cell", "gru", "--out", tmp_path)
    assert run(*small, "--layers", "torch") == run(*small) == 0
    assert "times as fast" in capsys.readouterr().out


def test_bad_arguments_end_in_one_line(tmp_path, capsys):
    assert run("--dates", 10**6, "--out", tmp_path) == 2
    assert run("--load", tmp_path / "none", "--out", tmp_path) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "different dates" in errors[0] and "--load" in errors[1]
    for words in (("--last-ratio", 2), ("--date", " "), ("--beam", 0)):
        with pytest.raises(SystemExit) as ended:
            run(*words, "--out", tmp_path)
        assert ended.value.code == 2
