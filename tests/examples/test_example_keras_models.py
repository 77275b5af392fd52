"""Keras's models: outputs side by side, weights there and back, a wrong gate order is seen, refusals in one line."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("keras", reason="the example needs Keras 3: pip install .[examples]")

from examples import keras_models

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run(out, *arguments):
    return keras_models.main(["--out", str(out), *map(str, arguments)])


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Fewer words: the numbers of words of the texts are a matter of time only. And fewer windows to train on."""
    monkeypatch.setattr(keras_models, "STEPS", {"course": 9, "notebook": 7})
    whole = keras_models.series()
    monkeypatch.setattr(keras_models, "series", lambda: tuple(part[:96] for part in whole))
    monkeypatch.setattr(keras_models, "ROWS", 8)


def test_all_models_say_the_same(tmp_path):
    names = ("forecast-gru", "forecast-stack", "imdb-lstm", "imdb-bilstm")
    reviews = ("reviews-rnn", "reviews-lstm", "reviews-gru", "reviews-bilstm", "reviews-stack")
    assert run(tmp_path, "--epochs", 1, "--only", *names, *reviews) == 0
    found = metrics(tmp_path)
    assert set(found["difference"]) == {*names, *reviews} and found["largest_difference"] < 2e-5
    assert found["difference_after_return"] < 2e-5
    assert found["parameters_of_keras"]["imdb-lstm"] == 1_329_473  # as the text's model has
    assert found["parameters"]["imdb-lstm"] == 1_329_473 + 4 * 64  # torch's second bias
    assert found["parameters_of_keras"]["forecast-gru"] == found["parameters"]["forecast-gru"]


def test_weights_come_back(tmp_path):
    options = ("--only", "reviews-gru", "--epochs", 1)
    assert run(tmp_path / "a", *options) == run(tmp_path / "b", "--load", tmp_path / "a") == 0
    first, again = (load_file(tmp_path / name / "weights.safetensors") for name in "ab")
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert metrics(tmp_path / "b")["largest_difference"] < 2e-5


def test_another_order_of_gates_would_be_seen(tmp_path, monkeypatch):
    def swapped(layer, features):
        made = right(layer, features)
        made.load_state_dict({name: value.flip(0) for name, value in made.state_dict().items()})
        return made

    right = keras_models.recurrent
    monkeypatch.setattr(keras_models, "recurrent", swapped)
    assert run(tmp_path, "--only", "reviews-lstm", "--check") == 1


def test_refusals_are_one_line(tmp_path, capsys):
    for arguments, words in (
        (("--only", "bert"), "there are forecast-lstm"),
        (("--layers", "torch"), "--layers torch"),
    ):
        assert run(tmp_path, *arguments) == 2
        printed = capsys.readouterr().err.splitlines()
        assert len(printed) == 1 and words in printed[0]
