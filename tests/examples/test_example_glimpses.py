"""Numbers by glimpses: windows, what is said, the targets, learning, and weights that come back."""

import json

import pytest
import torch
from sklearn.datasets import load_digits

from examples import caption, common, glimpses

TINY = ("--pictures", "130", "--epochs", "2", "--hidden", "12")


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize(
    "said, wanted", [([0, 0, 0], ""), ([0, 3, 3, 0, 3, 10, 10], "229"), ([1], "0"), ([2, 1, 2], "101")]
)
def test_repeated_words_count_once_and_silence_separates(said, wanted):
    assert glimpses.number(said) == wanted


@pytest.mark.parametrize("stride, steps", [(1, 25), (2, 13), (4, 7)])
def test_a_glimpse_sees_its_window_only(stride, steps):
    torch.manual_seed(0)
    model = glimpses.Reader(common.LAYERS["torch"], None, 12, stride).eval()
    pixels = torch.rand(2, 1, caption.HEIGHT, caption.WIDTH)
    changed = pixels.clone()
    changed[..., stride * 2 + caption.DIGIT :] = 0  # past the third window
    with torch.no_grad():
        seen, other = model(pixels), model(changed)
    assert seen.shape == (2, steps, 11)
    torch.testing.assert_close(seen[:, :3], other[:, :3])
    assert (seen[:, 3:] - other[:, 3:]).abs().amax((0, 2)).min() > 0


def test_the_targets_are_the_digits():
    digits = load_digits()
    made = caption.compose(9, digits.images, digits.target, caption.split_digits(digits.target, 0)["train"], [], 0)
    _, targets, lengths = glimpses.dataset(made).tensors
    for row, length, value in zip(targets.tolist(), lengths.tolist(), made.numbers, strict=True):
        assert "".join(str(word - 1) for word in row[:length]) == str(value) and row[length:] == [0] * (3 - length)


def test_a_run_repeats_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(glimpses, "TEST", 120)
    monkeypatch.setattr(glimpses, "VALIDATION", 60)
    for name in "ab":
        assert glimpses.main([*TINY, "--out", str(tmp_path / name)]) == 0
    assert glimpses.main(["--load", str(tmp_path / "a"), "--out", str(tmp_path / "c")]) == 0
    first, again, loaded = (metrics(tmp_path / name) for name in "abc")
    assert first == again == loaded and 0 <= first["right"] <= 1
    assert (tmp_path / "c" / "glimpses.png").read_bytes().startswith(b"\x89PNG")


def test_it_learns(tmp_path):
    """The loss of a few pictures, learned by heart, falls to where most of them are read."""
    torch.manual_seed(0)
    digits = load_digits()
    made = caption.compose(12, digits.images, digits.target, caption.split_digits(digits.target, 0)["train"], [], 0)
    model = glimpses.Reader(common.LAYERS["rnnkernels"], "lstm", 32, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(90):
        optimizer.zero_grad()
        model.loss(*glimpses.dataset(made).tensors).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    found, _ = glimpses.judge(model, made, set(made.numbers), "cpu")
    assert found["right"] == found["right_of_new_numbers"] >= 0.9
