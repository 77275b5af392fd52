"""Recipes: each changes what it says and nothing else; the table comes back; refusals in one line."""

import json

import pytest
import torch

from examples import common, recipes, text
from examples.language_model import CharLM

TINY = ("--characters", "9000", "--epochs", "1")


def run(out, *arguments):
    return recipes.main([*TINY, "--out", str(out), *map(str, arguments)])


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def model(prepare, cell="lstm"):
    torch.manual_seed(0)
    made = CharLM(common.LAYERS["rnnkernels"], cell, 9, 8, 2, 5)
    prepare(made)
    return made


def test_first_weights():
    plain, made = model(lambda _: None), model(recipes.remembering)
    assert all((made.rnn.get_parameter(f"bias_hh_l{n}") == 0).all() for n in range(2))
    bias = made.rnn.bias_ih_l1
    assert (bias[8:16] == 1).all() and bias.sum() == 8
    assert (model(recipes.xavier).rnn.bias_ih_l0 == 0).all()
    gates = model(recipes.orthogonal).rnn.weight_hh_l1.chunk(4)
    for gate in gates:
        torch.testing.assert_close(gate @ gate.T, torch.eye(8), rtol=0, atol=1e-5)
    other = model(recipes.others)
    assert all((a != b).any() for a, b in zip(plain.parameters(), other.parameters(), strict=True))


def test_layer_norm_on_the_output():
    made, x = model(recipes.normed), torch.randint(9, (4, 3))
    y, state = made.rnn(made.embedding(x))
    assert y.mean(-1).abs().max() < 1e-5 and len(state) == 2


def test_a_table_of_all_recipes_that_comes_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "HIDDEN", 8)
    source = text.read("python")
    monkeypatch.setattr(text, "read", lambda *_: source)
    assert run(tmp_path / "a") == run(tmp_path / "b", "--load", tmp_path / "a") == 0
    found = metrics(tmp_path / "a")
    assert found == metrics(tmp_path / "b") and set(found["bits"]) == set(recipes.RECIPES)
    alike = {name for name, bits in found["bits"].items() if name != "base" and bits == found["bits"]["base"]}
    assert alike <= {"no-clipping", "bf16-mixed"}  # so early there may be nothing to clip
    assert (tmp_path / "b" / "recipes.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(recipes, "RECIPES", {name: recipes.RECIPES[name] for name in ("base", "layer-norm-in-cell")})
    capsys.readouterr()
    assert run(tmp_path / "c", "--layers", "torch") == 0
    assert "left out: layer-norm-in-cell" in capsys.readouterr().out
    assert metrics(tmp_path / "c")["bits"]["base"] == pytest.approx(found["bits"]["base"], rel=0.02)


def test_refusals_are_one_line(tmp_path, capsys):
    for arguments, words in ((("--characters", 500), "at least"), (("--load", tmp_path), "recipes.json")):
        assert run(tmp_path / "out", *arguments) == 2
        printed = capsys.readouterr().err.splitlines()
        assert len(printed) == 1 and words in printed[0]
