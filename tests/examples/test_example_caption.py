"""The caption example: unseen digits, captions that are learned, the same results twice and after --load."""

import json

import numpy as np
import pytest
import torch
from num2words import num2words
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from examples import caption, common

TINY = ("--pictures", 1500, "--epochs", 2, "--hidden", 32)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def few():
    """3000 test pictures take most of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption, "VALIDATION", 60)
        patch.setattr(caption, "TEST", 120)
        yield


def run(*arguments):
    return caption.main([str(argument) for argument in arguments])


def metrics(folder):
    return (folder / "metrics.json").read_bytes()


def test_words_are_the_number_again():
    for number in (0, 21, 71, 80, 81, 97, 100, 200, 201, 999):
        assert caption.joined(caption.spelled(number)) == num2words(number, lang="fr")
    assert caption.spelled(97) == ["quatre", "-vingt", "-dix", "-sept"]
    assert max(len(caption.spelled(number)) for number in range(1000)) + 1 == caption.LONGEST


def test_no_digit_of_a_test_picture_stands_on_a_training_picture(digits):
    of = caption.split_digits(digits.target, 0)
    assert sum(map(len, of.values())) == len(set().union(*map(set, of.values()))) == len(digits.target)
    new = caption.new_numbers(0)
    train = caption.compose(300, digits.images, digits.target, of["train"], new, 0)
    test = caption.compose(300, digits.images, digits.target, of["test"], [], 1)
    assert set().union(*train.used) <= set(of["train"]) and set().union(*test.used) <= set(of["test"])
    pixels = {digits.images[n].tobytes() for n in of["train"]}
    assert not any(digits.images[n].tobytes() in pixels for n in of["test"])  # nor its copy
    assert not set(train.numbers) & set(new.tolist()) and set(test.numbers) & set(new.tolist())


def test_pictures_show_the_digits_of_their_numbers(digits):
    made = caption.compose(60, digits.images, digits.target, np.arange(200), [], 0)
    for n, (number, used) in enumerate(zip(made.numbers, made.used, strict=True)):
        assert "".join(str(digits.target[k]) for k in used) == str(number)
        assert made.pixels_BCYX[n].sum().item() == pytest.approx(digits.images[used].sum() / 16, rel=1e-5)
        assert caption.joined(caption.before_end(made.words_BT[n, 1:].tolist())) == num2words(number, lang="fr")
    assert [len(str(number)) for number in made.numbers] == [1, 2, 3] * 20


def test_padding_of_captions_counts_for_nothing():
    torch.manual_seed(0)
    model = caption.Captioner(torch.nn, "lstm", 8).eval()
    pixels, words = torch.rand(2, 1, caption.HEIGHT, caption.WIDTH), torch.tensor([[1, 9, 2], [1, 7, 2]])
    longer = torch.nn.functional.pad(words, (0, 4), value=caption.PAD)
    torch.testing.assert_close(model.loss(pixels, longer), model.loss(pixels, words))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_writing_word_by_word_is_one_pass_over_the_words(cell):
    """Greedy words, fed back in one pass under teacher forcing, are the likeliest of each step again."""
    torch.manual_seed(1)
    model = caption.Captioner(common.LAYERS["rnnkernels"], cell, 16).eval()
    pixels = torch.rand(4, 1, caption.HEIGHT, caption.WIDTH)
    captions = model.write(pixels)
    for n, text in enumerate(captions):
        words = [caption.START, *(caption.WORDS.index(w) for w in text.replace("-", " -").split())]
        logits, _ = model.step(torch.tensor([words]), *model.look(pixels[n : n + 1]))
        assert logits[0].argmax(-1)[: len(words) - 1].tolist() == words[1:]


def test_it_learns_and_loads(few, tmp_path):
    assert run(*TINY, "--out", tmp_path / "a") == 0
    assert run("--load", tmp_path / "a", "--out", tmp_path / "c") == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "c")
    assert (tmp_path / "c" / "captions.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(metrics(tmp_path / "a"))
    assert found["word_error_rate"] < 1.1 and 0 <= found["exact_match"] <= 1
    losses = np.genfromtxt(tmp_path / "a" / "logs" / "metrics.csv", delimiter=",", names=True)["val_loss"]
    losses = losses[~np.isnan(losses)]
    assert losses[-1] < losses[0] < np.log(len(caption.WORDS))  # below a guess among all words


def test_it_repeats_and_takes_torchs_layers_and_both_times(few, tmp_path, capsys):
    small = ("--pictures", 128, "--epochs", 1, "--hidden", 16, "--cell", "gru", "--out")
    assert run(*small, tmp_path / "a", "--layers", "torch") == run(*small, tmp_path / "a") == 0
    assert "times as fast" in capsys.readouterr().out
    assert run(*small, tmp_path / "b") == 0 and metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_a_missed_threshold_is_status_1(few, tmp_path):
    assert run("--pictures", 64, "--epochs", 1, "--hidden", 8, "--check", "--out", tmp_path) == 1


@pytest.mark.parametrize("content", [None, "{}", "not json", '{"example": "seq2seq"}'])
def test_unusable_models_end_in_one_line(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "model.json").write_text(content)
        save_file({}, common.weights(tmp_path))
    assert run("--load", tmp_path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("caption: --load") and str(tmp_path) in error
