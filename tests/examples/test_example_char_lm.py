"""The language model example: the state is carried, it learns and writes, NumPy agrees, bad input is one line."""

import argparse
import hashlib
import itertools
import json
import math
import re

import numpy as np
import pooch
import pytest
import torch
from common import UNUSABLE_TEXTS, unusable
from torch import nn
from torch.nn.functional import cross_entropy

from examples import char_lm, common, language_model, numpy_rnn, text
from examples.streams import Streams

TINY = ("--hidden", "24", "--layers-deep", "2", "--steps", "16", "--batch", "8", "--epochs", "1", "--lr", "0.01")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A text that is quickly learned: lines of a small language."""
    path = tmp_path_factory.mktemp("text") / "source.txt"
    path.write_text("".join(f"line {n % 10}: für n in range({n * 7 % 100})\n" for n in range(600)), encoding="utf-8")
    return path


def run(out, *arguments):
    return char_lm.main(["--out", str(out), *map(str, arguments)])


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    assert run(out, "--path", source, *TINY, "--length", 30, "--check") == 0
    return out


def test_it_learns_more_than_pairs_of_characters(trained):
    found = metrics(trained)
    assert 0.1 < found["bits_per_character"] < 0.7 * found["bigram_bits_per_character"]
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (trained / "sample.txt").read_text(encoding="utf-8").startswith("temperature 0.7:\n")
    on_the_way = re.findall(
        r"^after ([0-9,]+) chars:\n(line 0.+?)\n$",
        (trained / "samples.txt").read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    assert [read for read, _ in on_the_way] == ["0", "7,168", "14,336"] and len({*on_the_way}) == 3


def test_the_same_seed_gives_the_same_metrics(source, trained, tmp_path):
    assert run(tmp_path, "--path", source, *TINY, "--length", 30) == 0
    for name in ("metrics.json", "sample.txt"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_minutes_end_the_training_with_a_validation(source, tmp_path):
    assert run(tmp_path, "--path", source, *TINY, "--epochs", 10**6, "--minutes", 0.01, "--length", 2) == 0
    assert 0 < metrics(tmp_path)["bits_per_character"] < 10


@pytest.mark.parametrize("layers", common.LAYERS)
def test_load_judges_the_same_without_training(layers, trained, tmp_path, capsys):
    """With either library's layers: the weights have the same names."""
    asked = ("--load", trained, "--layers", layers, "--prompt", "line", "--temperature", 0.1, 2, "--length", 20)
    assert run(tmp_path, *asked) == 0
    first, second = (metrics(folder) for folder in (trained, tmp_path))
    assert second == pytest.approx(first, rel=1e-5)
    if layers == "rnnkernels":
        assert second == first
    printed = capsys.readouterr().out
    assert (
        "trained in" not in printed and "--- temperature 0.1\nline" in printed and "--- temperature 2\nline" in printed
    )


def test_both_libraries_learn_the_same_but_for_rounding(source, trained, tmp_path):
    assert run(tmp_path, "--path", source, *TINY, "--dropout", 0.2, "--layers", "torch", "--length", 3) == 0
    assert metrics(tmp_path)["bits_per_character"] == pytest.approx(metrics(trained)["bits_per_character"], rel=0.05)


def test_hello_is_learned_by_heart(tmp_path, capsys):
    assert run(tmp_path, "--data", "hello", "--check", "--epochs", 120) == 0
    printed = capsys.readouterr().out
    assert "hello: 5 characters" in printed and "\nhello\n" in printed
    assert metrics(tmp_path)["bits_per_character"] < 0.1


def test_a_sentence_is_learned_by_heart_with_the_sizes_of_the_overview(tmp_path, capsys):
    assert run(tmp_path, "--sizes", "overview", "--epochs", 12, "--temperature", 0.1, "--length", 77, "--check") == 0
    printed = capsys.readouterr().out
    assert "1-layer GRU, hidden 64" in printed and text.LESSONS["sentence"][-20:] in printed
    assert metrics(tmp_path)["bits_per_character"] < 0.5


def test_words_of_reviews_after_three_prompts(tmp_path, monkeypatch):
    """The notebook's sizes and prompts; the model and its words are saved, and write the same again."""
    made = text.read("products")
    monkeypatch.setattr(text, "read", lambda *_: made[:8000])
    assert run(tmp_path / "a", "--sizes", "notebook", "--epochs", 1) == 0
    assert run(tmp_path / "b", "--load", tmp_path / "a", "--sizes", "notebook") == 0
    written = [(tmp_path / name / "sample.txt").read_text("utf-8") for name in "ab"]
    assert written[0] == written[1] and written[0].count("temperature 0.8:") == 3
    for prompt in ("ce produit", "très bon", "je recommande"):
        assert f"\n{prompt}" in written[0]


def test_words_with_a_seed_phrase(source, tmp_path, capsys):
    asked = ("--path", source, *TINY, "--level", "word", "--prompt", "line 3: zebra", "--length", 12, "--epochs", 3)
    assert run(tmp_path, *asked) == 0
    found = metrics(tmp_path)
    assert found["bits_per_word"] > found["bits_per_character"] > 0 and found["unknown_words"] == 0
    written = (tmp_path / "sample.txt").read_text(encoding="utf-8")
    assert "line 3: zebra" in written and text.UNKNOWN not in written


@pytest.mark.parametrize("level", text.PIECES)
def test_the_pieces_are_the_text_again_and_come_from_the_training_text(level):
    whole = "Ein  Satz, noch ein\tSatz.\r\n\n  Ende: naïve Größe_2 — «fin»\n"
    pieces = text.learn_pieces(whole, level, 1000)
    assert "".join(pieces.id_to_token(n) for n in text.encode(pieces, whole)) == whole
    assert text.encode(pieces, "Ω").tolist() == [0] and pieces.id_to_token(0) == text.UNKNOWN


def test_the_vocabulary_has_nothing_of_the_validation_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abc" * 600 + "zab" * 60)
    assert run(tmp_path / "out", "--path", path, *TINY, "--length", 2) == 0
    assert metrics(tmp_path / "out")["vocabulary"] == 4  # a, b, c and the unknown one


def test_streams_continue_and_targets_are_one_ahead():
    tokens = torch.arange(5 * 23 + 1)
    streams, rest = Streams(tokens, 10, 5), Streams(tokens, 10, 5, whole=True)
    assert len(streams) == 2 and len(rest) == 3
    for n, (x, y) in enumerate(rest):
        assert torch.equal(y, x + 1) and x[0].tolist() == [23 * b + 10 * n for b in range(5)]
    assert rest[2][0].shape == (3, 5)
    parts = [Streams(tokens, 10, 5, which=which, of=2)[1][0] for which in (0, 1)]
    assert torch.equal(parts[0], streams[1][0][:, ::2]) and torch.equal(parts[1], streams[1][0][:, 1::2])


def learner(layers="rnnkernels", cell="lstm"):
    torch.manual_seed(0)
    model = language_model.CharLM(common.LAYERS[layers], cell, 7, 9, 2, embedding=5)
    asked = argparse.Namespace(steps=6, batch=3, processes=1, lr=1e-3)
    made = char_lm.Learner(model, torch.randint(7, (100,)), torch.randint(7, (40,)), asked)
    made.log = lambda *_, **__: None
    return made


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_state_is_carried_and_detached(cell):
    made = learner(cell=cell)
    streams = Streams(made.learned, 6, 3)
    losses = [made.training_step(streams[n]) for n in range(2)]
    x, y = (torch.cat([streams[n][k] for n in range(2)]) for k in range(2))
    whole = cross_entropy(made.model(x)[0].flatten(0, 1), y.flatten())
    assert sum(loss.item() for loss in losses) / 2 == pytest.approx(whole.item(), rel=1e-5)
    states = made.state if isinstance(made.state, tuple) else (made.state,)
    assert not any(state.requires_grad for state in states)
    made.on_train_epoch_start()
    assert made.training_step(streams[0]).item() == losses[0].item()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_stepper_writes_what_the_module_writes(cell):
    ours, torchs = (learner(layers, cell).model for layers in common.LAYERS)
    prompt = torch.tensor([1, 2, 3])
    a, b = (list(itertools.islice(language_model.generate(model, prompt, 1.0, 5), 50)) for model in (ours, torchs))
    assert a == b and len(set(a)) > 2


def test_temperature_and_what_is_never_drawn():
    model, prompt = learner().model, torch.tensor([1, 2, 3])
    best = model.eval()(prompt[:, None])[0][-1, 0].argmax().item()
    assert next(language_model.generate(model, prompt, 1e-4, 0)) == best
    drawn = list(itertools.islice(language_model.generate(model, prompt, 100.0, 0, never=best), 300))
    assert set(drawn) == set(range(7)) - {best}


def test_numpy_and_the_library_agree(source, tmp_path, capsys):
    assert run(tmp_path, "--check-numpy", "--path", source, "--check") == 0
    found = metrics(tmp_path)
    names = {"numpy_loss_difference", "numpy_gradient_difference", "numpy_other_letters"}
    assert found.keys() == names and max(found.values()) < 1e-10
    printed = capsys.readouterr().out
    assert "both then write the same 200 letters, but for 0" in printed
    assert all(f"of {name}:" in printed for name in ("loss", "rnn.weight_hh_l0", "head.bias", "h0"))


def test_a_wrong_derivative_would_be_seen(source, tmp_path, monkeypatch):
    right = numpy_rnn.forward_backward

    def wrong(weights, x, y, h0):
        loss, gradients, h = right(weights, x, y, h0)
        gradients["rnn.weight_hh_l0"] = gradients["rnn.weight_hh_l0"] * (1 + 1e-6)
        return loss, gradients, h

    monkeypatch.setattr(numpy_rnn, "forward_backward", wrong)
    assert run(tmp_path, "--check-numpy", "--path", source, "--check") == 1


def test_the_gradients_by_hand_are_numerical_derivatives():
    generator = np.random.default_rng(0)
    model = numpy_rnn.Model(nn, 5)
    weights = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    h0, x, y = generator.normal(size=numpy_rnn.HIDDEN), np.array([0, 3, 1, 4]), np.array([3, 1, 4, 2])
    _, gradients, _ = numpy_rnn.forward_backward(weights, x, y, h0)
    for name, values in {**weights, "h0": h0}.items():
        place, step = tuple(generator.integers(values.shape)), 1e-6
        losses = []
        for sign in (1, -1):
            values[place] += sign * step
            losses.append(numpy_rnn.forward_backward(weights, x, y, h0)[0])
            values[place] -= sign * step
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(gradients[name][place], abs=1e-8), name


def test_bigram_bits_are_those_of_counting():
    learned, judged = torch.tensor([0, 1, 0, 1, 2, 0]), torch.tensor([0, 1, 2, 2])
    single, pairs = [4, 3, 2], {(0, 1): 2, (1, 0): 1, (1, 2): 1, (2, 0): 1}
    chances = [
        0.9 * pairs.get((p, q), 0) / single[p] + 0.1 * single[q] / sum(single) for p, q in ((0, 1), (1, 2), (2, 2))
    ]
    bits = -sum(map(math.log2, chances)) / 3
    assert text.bigram_bits(learned, judged, 3) == pytest.approx(bits)


def test_what_is_wanted_of_shakespeare_and_of_other_texts(monkeypatch):
    usual = {"level": "char", "cell": "lstm", "hidden": 256, "layers_deep": 2, "data": "shakespeare", "path": None}
    poem = "Shall I compare thee to a summer's day?"
    asked = argparse.Namespace(**usual)
    assert char_lm.bound(asked, poem, 3.5) == 3.5
    assert char_lm.bound(argparse.Namespace(**usual | {"data": "python"}), poem, 3.5) == 2.35
    monkeypatch.setattr(text, "SHAKESPEARE_SHA256", hashlib.sha256(poem.encode()).hexdigest())
    assert char_lm.bound(asked, poem, 3.5) == 2.35
    assert char_lm.bound(argparse.Namespace(**usual | {"hidden": 64}), poem, 3.5) == 3.5


def one_line(capsys):
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and printed.startswith("char_lm: ")
    return printed


@pytest.mark.parametrize("name", UNUSABLE_TEXTS)
def test_an_unusable_file_is_one_clear_line_and_status_2(name, tmp_path, capsys):
    path, word = unusable(name, tmp_path)
    assert run(tmp_path / "out", "--path", path) == 2
    assert word in one_line(capsys)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("--prompt", "Ωmega"), "'Ω'"),
        (("--prompt", ""), "it is empty"),
        (("--dropout", "1"), "--dropout 1.0"),
        (("--embedding", "-1"), "--embedding -1"),
    ],
)
def test_a_bad_argument_is_one_clear_line(arguments, word, source, tmp_path, capsys):
    assert run(tmp_path, "--path", source, *TINY, *arguments) == 2
    assert word in one_line(capsys)


def test_shakespeare_offline_is_one_clear_line(monkeypatch, tmp_path, capsys):
    def refuse(url, checksum, **_):
        assert "tinyshakespeare" in url and len(checksum) == 64
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    assert run(tmp_path, "--data", "shakespeare") == 2
    assert "cannot be had (no network); name a file with --path" in one_line(capsys)


def test_a_model_of_another_example_is_one_clear_line(tmp_path, capsys):
    common.save(tmp_path, nn.Linear(2, 3), vocabulary=["a"])
    assert run(tmp_path / "out", "--load", tmp_path) == 2
    assert "a model of another example" in one_line(capsys)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path, capsys):
    assert run(tmp_path / "out", "--load", tmp_path) == 2
    assert "model.json" in one_line(capsys)
