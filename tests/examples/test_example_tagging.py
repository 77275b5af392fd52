"""The tagging example: unseen names, CoNLL files, F1 of names, the tagger, and EEG split by time."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import common, entities, eyes, tagging
from examples.common import BadData
from examples.entities import Name

EEG = Path(os.environ.get("RNNKERNELS_DATA", "does-not-exist")) / "eeg-eye-state.csv"


def run(*arguments):
    return tagging.main([str(argument) for argument in arguments])


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_test_sentences_have_names_that_training_never_saw():
    train, validation, test = entities.grammar([400, 100, 200], 0)
    seen = {word for part in (train, validation) for sentence in part for word, tag in sentence if tag != "O"}
    fixed = {"Jean", "Léa", "Luc", "Zoé", "Saint", "et", "Fils"}
    assert not {word for sentence in test for word, tag in sentence if tag != "O"} & seen - fixed
    words = {tuple(word for word, _ in sentence) for part in (train, validation) for sentence in part}
    assert not words & {tuple(word for word, _ in sentence) for sentence in test}
    assert {tag for sentence in train for _, tag in sentence} == {
        "O",
        *(f"{p}-{kind}" for p in "BI" for kind in entities.ENDINGS),
    }
    assert not any(entities.impossible([tag for _, tag in sentence]) for sentence in train)
    assert entities.grammar([400, 100, 200], 0)[2] == test != entities.grammar([400, 100, 200], 1)[2]


def test_names_and_their_scores():
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-ORG", "I-ORG", "O", "I-PER"]
    assert entities.names_in(tags) == {
        Name(0, 2, "PER"), Name(3, 4, "LOC"), Name(4, 5, "LOC"), Name(5, 7, "ORG"), Name(8, 9, "PER"),
    }  # fmt: skip
    assert entities.impossible(tags) == 2
    wanted = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "B-ORG", "O", "O", "O"]
    assert entities.scores([tags, []], [wanted, []]) == {"precision": 3 / 5, "recall": 3 / 4, "f1": 6 / 9}
    assert entities.scores([["O"]], [["O"]])["f1"] == 0
    follow, first = entities.possible(["B-LOC", "I-LOC", "I-PER", "O"])
    assert follow.tolist() == [[True, True, False, True]] * 2 + [[True, False, True, True], [True, False, False, True]]
    assert first.tolist() == [True, False, False, True]


def test_conll_files_of_both_schemes(tmp_path):
    path = tmp_path / "file"
    path.write_text(
        "-DOCSTART- -X- O O\n\nJean NNP B-NP I-PER\nLuc NNP I-NP B-PER\nMorel NNP I-NP I-PER\n. . O O\r\n\n\n"
        "Lyon x I-LOC\nsur x I-ORG"
    )
    assert entities.read_conll(path) == [
        [("Jean", "B-PER"), ("Luc", "B-PER"), ("Morel", "I-PER"), (".", "O")],
        [("Lyon", "B-LOC"), ("sur", "B-ORG")],
    ]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (b"Jean\nB-PER\n", "line 1: a word and a tag expected"),
        (b"Jean B-PER\nLuc PER\n", "line 2: a tag is O, B-TYPE or I-TYPE, not PER"),
        ("Zo\xe9 B-PER\n".encode("latin-1"), "not UTF-8"),
        (b"Jean B-PER\n\n" * 50, "1 different sentences; at least 10"),
        (b"\n\n", "0 different sentences"),
        ("\n\n".join(f"mot{n} O" for n in range(20)).encode(), "every tag is O"),
        (None, "No such file"),
    ],
)
def test_unusable_conll_files_end_in_one_line(content, said, tmp_path, capsys):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert run("--path", path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and said in error


def test_equal_sentences_of_a_file_are_in_one_part(tmp_path):
    sentences = entities.grammar([40, 0, 0], 0)[0] * 3
    parts = entities.divided(sentences, tmp_path, 0)
    words = [tuple(word for word, _ in sentence) for part in parts for sentence in part]
    assert len(words) == len(set(words)) == 40 and [len(part) for part in parts] == [28, 6, 6]


@pytest.mark.parametrize("layers", ["torch", "rnnkernels"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("crf", [True, False])
def test_neighbours_in_a_batch_have_no_influence(crf, cell, layers):
    """Emissions and loss of a sentence alone are those of the same sentence among longer ones, words and letters."""
    sentences = sorted(entities.grammar([30, 0, 0], 0)[0], key=len)
    known = tagging.Known.of(sentences)
    torch.manual_seed(0)
    model = tagging.Tagger(common.LAYERS[layers], cell, known, 10, crf).double().eval()
    together = model(next(iter(tagging.batched(sentences, known))))
    for n in (0, 10):
        alone = model(next(iter(tagging.batched([sentences[n]], known))))
        torch.testing.assert_close(together[n, : len(sentences[n])], alone[0])


def test_words_seen_once_are_unknown_and_their_letters_are_not():
    sentences = [[("Ab", "B-PER"), ("dit", "O")], [("dit", "O"), ("Cd", "B-PER")]]
    known = tagging.Known.of(sentences)
    assert known == (["dit"], ["A", "C", "b", "d", "i", "t"], ["B-PER", "O"])
    batch = next(iter(tagging.batched([[("Xb", "O"), ("dit", "O")], [("dit", "O")]], known)))
    assert batch.words_BT.tolist() == [[1, 2], [2, 0]] and batch.lengths_B.tolist() == [2, 1]
    assert batch.letters_NL.tolist() == [[1, 4, 0], [5, 6, 7], [5, 6, 7]]
    assert batch.letter_lengths_N.tolist() == [2, 3, 3]


def test_it_learns_and_loads(monkeypatch, tmp_path):
    monkeypatch.setattr(tagging, "SIZES", [320, 30, 60])
    monkeypatch.setattr(entities, "TEMPLATES", ["Mme PER travaille chez ORG .", "on attend PER à LOC ."])
    assert run("--epochs", 8, "--hidden", 24, "--out", tmp_path / "a") == 0
    assert run("--load", tmp_path / "a", "--out", tmp_path / "b") == 0
    found = metrics(tmp_path / "a")
    assert found == metrics(tmp_path / "b")
    assert (tmp_path / "b" / "tagging.png").read_bytes().startswith(b"\x89PNG")
    assert found["impossible_tags"] == 0 and found["f1"] > 0.6  # tagging nothing has 0
    assert found["f1_gained_by_crf"] == pytest.approx(found["f1"] - found["f1_without_crf"], abs=1e-5)


@pytest.mark.long
def test_it_repeats(monkeypatch, tmp_path):
    monkeypatch.setattr(tagging, "SIZES", [64, 20, 20])
    for folder in ("a", "b"):
        assert run("--epochs", 1, "--hidden", 8, "--seed", 3, "--out", tmp_path / folder) == 0
    a, b = (tmp_path / folder for folder in "ab")
    assert (a / "metrics.json").read_bytes() == (b / "metrics.json").read_bytes()
    assert common.weights(a).read_bytes() == common.weights(b).read_bytes()


def test_a_conll_file_is_learned_with_torchs_layers(tmp_path, capsys):
    lines = "\n\n".join(
        "\n".join(f"{word} x {tag}" for word, tag in sentence) for sentence in entities.grammar([60, 0, 0], 0)[0]
    )
    (tmp_path / "file").write_text(lines, encoding="utf-8")
    small = ("--path", tmp_path / "file", "--epochs", 1, "--hidden", 8, "--cell", "gru", "--out", tmp_path / "out")
    assert run(*small, "--layers", "torch", "--check") == run(*small) == 0
    assert "times as fast" in capsys.readouterr().out
    assert run("--load", tmp_path / "out", "--out", tmp_path / "out2") == 0  # it knows the file
    assert metrics(tmp_path / "out") == metrics(tmp_path / "out2")


def recording(path, T=3000, seed=0, informative=True):
    """States of random lengths, and two channels: noise around the state, and noise, with outliers."""
    random = np.random.default_rng(seed)
    state = np.repeat(np.arange(200) % 2, random.integers(20, 120, 200))[:T]
    frames = random.normal(size=(T, 2)) + 100
    frames[:, 0] += 2 * state * informative
    frames[[50, T - 50], 1] = 1e6
    rows = "".join(
        f"{a},{b},{'open' if s else 'shut'}\n" for (a, b), s in zip(frames.tolist(), state.tolist(), strict=True)
    )
    path.write_text("c1,c2,eyes\n" + rows)
    return path


def test_eyes_are_learned_loaded_and_repeated(tmp_path, capsys):
    path = recording(tmp_path / "eeg.csv")
    for folder, layers in (("a", "rnnkernels"), ("b", "rnnkernels"), ("t", "torch")):
        arguments = ("--data", "eeg", "--path", path, "--epochs", 10, "--hidden", 16, "--layers", layers)
        assert run(*arguments, "--out", tmp_path / folder) == 0
    assert run("--load", tmp_path / "a", "--out", tmp_path / "c") == 0
    a, b, c = ((tmp_path / folder / "metrics.json").read_bytes() for folder in "abc")
    assert a == b == c
    found = metrics(tmp_path / "a")
    assert (
        found["balanced_accuracy"]
        > found["logistic_balanced_accuracy"]
        > 0.75
        > 0.5
        == found["majority_balanced_accuracy"]
    )
    assert (tmp_path / "c" / "eyes.png").read_bytes().startswith(b"\x89PNG")


def test_eyes_are_split_by_time_and_scaled_by_training(tmp_path):
    found = eyes.read(recording(tmp_path / "eeg.csv"))
    parts = eyes.split(np.arange(3000))
    assert [(part[0], part[-1]) for part in parts] == [(0, 1799), (1800, 2249), (2250, 2999)]
    assert found.names == ["open", "shut"] and found.frames_TC.shape == (3000, 2)
    x, y = eyes.windows(found.frames_TC, found.state_T, 64).tensors
    assert x.shape == (45, eyes.WINDOW, 2) and torch.equal(
        x[2, :, 0], torch.tensor(found.frames_TC[128:256, 0]).float()
    )
    assert torch.equal(y[1], torch.tensor(found.state_T[64:192]).float())


def test_every_frame_gets_a_probability(tmp_path):
    torch.manual_seed(0)
    model = eyes.Eyes(torch.nn, "gru", 2, 4).eval()
    frames = np.random.default_rng(0).normal(size=(2 * eyes.WINDOW + 7, 2))
    p = eyes.probabilities(model, frames, "cpu")
    assert p.shape == (2 * eyes.WINDOW + 7,) and ((p > 0) & (p < 1)).all()
    last = model(torch.tensor(frames[-7:]).float()[None])[0].sigmoid().detach().numpy()
    np.testing.assert_allclose(p[-7:], last, rtol=1e-5)


def changed(text, line, new):
    lines = text.splitlines()
    lines[line - 1] = new
    return "\n".join(lines)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda text: "", "is empty"),
        (lambda text: changed(text, 7, "1,2"), "line 7: 2 columns, the header has 3"),
        (lambda text: changed(text, 7, "1,x,open"), "could not convert string to float"),
        (lambda text: changed(text, 7, "1,nan,open"), "line 7: not a finite number"),
        (lambda text: changed(text, 7, "1,2,asleep"), "two states expected in column 'eyes', found 3"),
        (lambda text: "\n".join(text.splitlines()[:500]), "499 frames; at least"),
        (lambda text: text.replace(",", ";"), "separated by commas"),
        (
            lambda text: (
                text.splitlines()[0] + "\n" + "\n".join(sorted(text.splitlines()[1:], key=lambda row: row[-4:]))
            ),
            "one state only",
        ),
    ],
)
def test_unusable_recordings_end_in_one_line(change, said, tmp_path, capsys):
    path = recording(tmp_path / "eeg.csv")
    path.write_text(change(path.read_text()))
    assert run("--data", "eeg", "--path", path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and said in error


def test_eeg_needs_a_path(tmp_path, capsys):
    assert run("--data", "eeg", "--out", tmp_path) == 2
    assert "needs --path FILE" in capsys.readouterr().err


@pytest.mark.skipif(not EEG.exists(), reason="no eeg-eye-state.csv in a folder RNNKERNELS_DATA")
def test_the_real_recording_is_read_whole():
    found = eyes.read(EEG)
    assert found.frames_TC.shape == (14980, 14) and found.names == ["1", "2"]
    assert math.isclose(found.state_T.mean(), 6723 / 14980, rel_tol=1e-9)
    with pytest.raises(BadData, match="No such file"):
        eyes.read(EEG.with_name("none"))
