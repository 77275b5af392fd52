"""Painting: the decoder alone paints what it paints beside the encoder, the bound is one, runs repeat and come back."""

import json

import pytest
import torch

from examples import common, paint

TINY = ("--epochs", "2", "--strokes", "3", "--hidden", "12", "--numbers", "2")


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def painter(cell="lstm", strokes=3):
    torch.manual_seed(0)
    return paint.Painter(common.LAYERS["rnnkernels"], cell, 12, 2, strokes).eval()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_decoder_alone_paints_the_same(cell, monkeypatch):
    """With the z of a picture, step by step and as one sequence."""
    model, x, drawn = painter(cell), torch.rand(4, paint.PIXELS), []
    decoder = model.decoder.forward
    monkeypatch.setattr(model.decoder, "forward", lambda z, *state: (drawn.append(z), decoder(z, *state))[1])
    with torch.no_grad():
        canvas, cost = model(x)
        monkeypatch.undo()
        whole = model.paint(torch.cat(drawn, 1))
    torch.testing.assert_close(whole[:, -1], canvas.sigmoid())
    assert cost.shape == (4,) and cost.min() > 0


def test_the_cost_of_z_is_the_divergence():
    model, x = painter(strokes=1), torch.rand(5, paint.PIXELS)
    with torch.no_grad():
        model.idea.weight.zero_()
        model.idea.bias.copy_(torch.tensor([0.5, -1.0, 0.3, -0.2]))
        _, cost = model(x)
    of = torch.distributions.Normal(torch.tensor([0.5, -1.0]), torch.tensor([0.3, -0.2]).exp())
    wanted = torch.distributions.kl_divergence(of, torch.distributions.Normal(torch.zeros(2), torch.ones(2))).sum()
    torch.testing.assert_close(cost, wanted.expand(5))


def test_a_run_repeats_and_comes_back(tmp_path):
    for name in "ab":
        assert paint.main([*TINY, "--out", str(tmp_path / name)]) == 0
    assert paint.main(["--load", str(tmp_path / "a"), "--out", str(tmp_path / "c")]) == 0
    first, again, loaded = (metrics(tmp_path / name) for name in "abc")
    assert first == again == loaded
    assert first["pixels_known"] < first["bound"] and first["pixels_known"] < first["pixels_alone"]
    assert (tmp_path / "c" / "strokes.png").read_bytes().startswith(b"\x89PNG")
