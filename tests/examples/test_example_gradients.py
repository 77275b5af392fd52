"""The gradients example: norms and Jacobians are the ones of autograd, rates those of eigenvalues, clipping bounds."""

import json
import math

import pytest
import torch

from examples import common, gradients

TINY = ("--hidden", "12", "--steps", "60", "--epochs", "1")


@pytest.fixture(autouse=True)
def shorter(monkeypatch):
    monkeypatch.setitem(gradients.TRAINED, "batches", 6)


def run(out, *arguments):
    return gradients.main(["--out", str(out), *arguments])


def network(name, hidden=12, layers="rnnkernels"):
    torch.manual_seed(1)
    return gradients.network(common.LAYERS[layers], *gradients.NETWORKS[name], hidden)


@pytest.mark.parametrize("layers", common.LAYERS)
@pytest.mark.parametrize("name", gradients.NETWORKS)
def test_the_norms_are_products_of_the_jacobians(name, layers):
    cell = network(name, layers=layers)
    x, target = torch.randn(7, gradients.INPUTS).double(), torch.randn(12).double()
    norms = gradients.backward(cell, x, target)
    jacobians, state = gradients.jacobians(cell, x), None
    with torch.no_grad():
        for x_I in x:
            state = cell(x_I, state)
    h = state[0] if isinstance(state, tuple) else state
    gradient = torch.zeros(jacobians.shape[-1], dtype=torch.float64)
    gradient[:12] = h - target
    for n, norm in enumerate(norms):
        assert gradient[:12].norm().item() == pytest.approx(norm, rel=1e-10), f"{n} steps back"
        gradient = jacobians[len(x) - 1 - n].T @ gradient


@pytest.mark.parametrize("radius", [0.9, 1.0, 1.1])
def test_an_rnn_at_rest_has_the_eigenvalue_that_was_asked_for(radius):
    cell = network(f"RNN, radius {radius:g}")
    assert gradients.rate(gradients.jacobians(cell, torch.zeros(1, gradients.INPUTS).double())) == pytest.approx(radius)


def test_the_forget_bias_is_what_both_biases_add_up_to():
    biases = [network(f"LSTM, forget bias {bias}") for bias in (0, 1)]
    sums = [(cell.bias_ih + cell.bias_hh).detach().view(4, 12) for cell in biases]
    assert sums[0].count_nonzero() == 0
    assert torch.equal(sums[1], torch.tensor([0.0, 1, 0, 0]).double()[:, None].expand(4, 12))


def test_a_rate_is_recovered_from_a_known_decay():
    assert gradients.fitted([7 * 0.8**k * (1 + 5 * 0.3**k) for k in range(200)]) == pytest.approx(0.8, abs=1e-6)


def test_clipping_bounds_every_step_and_changes_nothing_that_is_small():
    rest, target = torch.zeros(80, gradients.INPUTS).double(), torch.full((12,), 0.1).double()
    growing, fading = network("RNN, radius 1.1"), network("GRU")
    free, clipped = (gradients.backward(growing, rest, target, clip) for clip in (None, 1.0))
    assert max(free) > 10 and max(clipped) <= 1 + 1e-12
    assert gradients.backward(fading, rest, target, 1.0) == gradients.backward(fading, rest, target)


def test_everything_is_written_once_and_again_by_load(tmp_path, capsys):
    assert run(tmp_path / "a", *TINY) == 0
    printed = capsys.readouterr().out
    assert "factor per step back" in printed and "trained in" in printed
    assert run(tmp_path / "c", "--load", str(tmp_path / "a"), "--steps", "60") == 0
    assert "trained in" not in capsys.readouterr().out
    first, again = ((tmp_path / folder / "metrics.json").read_bytes() for folder in "ac")
    assert first == again
    metrics = json.loads(first)
    assert list(metrics["rates"]) == list(gradients.NETWORKS) and metrics["largest_error_of_rate"] < 0.1
    explodes, _, vanishes = metrics["demonstration"].values()
    assert explodes > 1e6 and vanishes < 1e-9
    for name in ("norms.png", "training.png", "demonstration.png"):
        assert (tmp_path / "c" / name).read_bytes().startswith(b"\x89PNG")


def test_a_seed_repeats_its_run(tmp_path):
    for folder in "ab":
        assert run(tmp_path / folder, *TINY, "--cell", "gru") == 0
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()


@pytest.mark.long
def test_torch_gives_the_same_rates(tmp_path):
    for layers in common.LAYERS:
        assert run(tmp_path / layers, *TINY, "--cell", "lstm", "--layers", layers) == 0
    a, b = (json.loads((tmp_path / layers / "metrics.json").read_text())["driven_rates"] for layers in common.LAYERS)
    assert a.keys() == b.keys() == {"LSTM, forget bias 0", "LSTM, forget bias 1"}
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-9)


def test_a_loss_that_left_the_numbers_is_null(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients.Memory, "configure_optimizers", lambda m: torch.optim.SGD(m.parameters(), lr=1e3))
    monkeypatch.setitem(gradients.TRAINED, "batches", 40)
    assert run(tmp_path, *TINY, "--cell", "gru") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["loss_without_clipping"] is None and math.isfinite(metrics["loss_with_clipping"])


@pytest.mark.parametrize("steps", ["0", "49", "501"])
def test_steps_out_of_range_are_one_clear_line(steps, tmp_path, capsys):
    assert run(tmp_path, "--steps", steps) == 2
    assert capsys.readouterr().err == f"gradients: --steps {steps}: 50 to 500 are wanted\n"


def test_a_model_of_another_example_is_one_clear_line(tmp_path, capsys):
    common.save(tmp_path, torch.nn.Linear(2, 3), vocabulary=["a"])
    assert run(tmp_path / "out", "--load", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"gradients: --load {tmp_path}: a model of another example\n"


def test_a_folder_without_a_model_is_one_clear_line(tmp_path, capsys):
    assert run(tmp_path / "out", "--load", str(tmp_path)) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and "model.json" in printed
