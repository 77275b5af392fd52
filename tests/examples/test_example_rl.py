"""The example of reinforcement learning: three agents play alike, the loop is one call, and the weights play again."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from common import refused

import rnnkernels
from examples import rl

with_packages = pytest.mark.filterwarnings("ignore")  # of other projects


@pytest.fixture
def parts():
    return pytest.importorskip(
        "examples.recurrent_ppo", reason="sb3-contrib is not installed (extra rl)", exc_type=ImportError
    )


@with_packages
def test_the_agents_play_alike_and_what_they_learned_plays_again(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rl, "STEPS", 16)
    monkeypatch.setattr(rl, "GAMES", 2)
    assert (
        rl.main(["--out", str(tmp_path / "a"), "--epochs", "3", "--batch", "64", "--hidden", "8", "--seed", "3"]) == 0
    )
    plain, *others = json.loads((tmp_path / "a/rl.json").read_text())
    assert [row["kind"] for row in others] == ["converted", "one_call"]
    assert all(row["episodes"] == plain["episodes"] and row["seconds"] > 0 for row in others)
    assert (tmp_path / "a/rl.png").read_bytes().startswith(b"\x89PNG")
    assert "times as fast" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "a/metrics.json").read_text())
    assert metrics["return_one_call"] == metrics["return_plain"] > 0
    assert rl.main(["--out", str(tmp_path / "b"), "--load", str(tmp_path / "a"), "--seed", "3"]) == 0
    assert json.loads((tmp_path / "b/metrics.json").read_text())["return_played"] == metrics["return_played"]


@with_packages
@pytest.mark.parametrize("layers", (1, 2))
def test_the_policy_needs_one_call_and_gives_what_the_loop_gives(parts, layers):
    """3 sequences of 5 steps, of which some begin with an episode, and one has another inside."""
    torch.manual_seed(0)
    ours = rnnkernels.LSTM(2, 4, layers)
    theirs = rnnkernels.revert(rnnkernels.LSTM(2, 4, layers))
    theirs.load_state_dict(ours.state_dict())
    starts = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.float32).flatten()
    calls = []
    results = []
    for policy, lstm in ((parts.OneCallPolicy, ours), (parts.RecurrentActorCriticPolicy, theirs)):
        lstm.register_forward_hook(lambda module, *_: calls.append(module))
        x = torch.linspace(-1, 1, 30).reshape(15, 2).requires_grad_()
        states = tuple(torch.linspace(-1, 1, layers * 12).reshape(layers, 3, 4).add(n).requires_grad_() for n in (0, 1))
        y, last = policy._process_sequence(x, states, starts, lstm)
        inputs = (x, *states, *lstm.parameters())
        results.append((y, *last, *torch.autograd.grad(y.square().sum() + last[0].sum() + last[1].sum(), inputs)))
    assert calls == [ours] + [theirs] * 5
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_episodes_are_remembered_and_lines_say_where_training_is(parts, capsys):
    said, silent = parts.Episodes("plain: of 20,480 steps", every=0), parts.Episodes(every=0)
    for episodes in (said, silent):
        episodes.model, episodes.locals = SimpleNamespace(num_timesteps=1024), {"infos": [{}, {"episode": {"r": 9.0}}]}
        assert episodes.on_step() and episodes.ends == [(1024, 9.0)]
    assert capsys.readouterr().out == "plain: of 20,480 steps 1,024 played, 1 episodes\n"


def test_without_sb3_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "examples.recurrent_ppo", None)
    assert rl.main(["--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and 'pip install --no-build-isolation -e ".[rl]"' in printed


def test_one_process_only(tmp_path, capsys):
    assert rl.main(["--out", str(tmp_path), "--processes", "2"]) == 2
    assert "one process" in capsys.readouterr().err
    assert "--batch" in refused(rl.main, ["--batch", "0"], capsys)
