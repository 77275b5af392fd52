"""Balance a pole without seeing speeds: RecurrentPPO of sb3-contrib, its layers converted, its loop one call.

    pip install --no-build-isolation -e ".[examples,rl]"    # rl: stable-baselines3, sb3-contrib, gymnasium
    python -m examples.rl                            # 100 rounds of 1024 steps, three times
    python -m examples.rl --load runs/rl             # plays with what an earlier run learned

Three agents learn from the same seed: `plain` is sb3-contrib's as it comes (`--layers torch` runs it alone),
`converted` has been given to `rnnkernels.convert`, and `one_call` has the policy of examples/recurrent_ppo.py, which
replaces the loop over steps by one call with `reset=`. All three play the same episodes until, after some
hundred updates, rounding turns a drawn action over; how long they train is what differs. An epoch is here a round: 128
steps of 8 environments, and ten passes over them. Written to --out: rl.json (the returns of all episodes, and times),
rl.png, and the weights of the last agent; with --load an agent plays with these.

Mended, against guides:
- CartPole with velocities is no task for a recurrent network: here it is shown positions only;
- a curve over the agent's own noisy actions alone: at the end it also plays episodes with its likeliest actions;
- times of a whole program, of which the games are a large part: here the training phases are timed alone.

Schulman et al. 2017, "Proximal policy optimization algorithms"; Hausknecht & Stone 2015, "Deep recurrent Q-learning for
partially observable MDPs"; gamma, lambda and rate are those of RL Baselines3 Zoo.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from itertools import takewhile
from pathlib import Path

import torch

import rnnkernels
from examples import common
from examples.common import BadData, Threshold

TIME = "about 3 min"
KINDS = {"torch": ("plain",), "rnnkernels": ("converted", "one_call"), "both": ("plain", "converted", "one_call")}
COLORS = {"plain": "tab:orange", "converted": "tab:cyan", "one_call": "tab:blue"}
ENVIRONMENTS, STEPS = 8, 128
LAST = 30  # episodes that count for the return at the end
GAMES = 20  # that are played with the likeliest actions


def needed():
    """The module that needs other packages, or an error that names them."""
    try:
        return importlib.import_module("examples.recurrent_ppo")
    except ImportError as error:
        brings = 'pip install --no-build-isolation -e ".[rl]" brings stable-baselines3, sb3-contrib and gymnasium'
        raise BadData(f"{error}: {brings}") from error


def agent(kind: str, asked: argparse.Namespace):
    """A new agent and its 8 environments."""
    from stable_baselines3.common.env_util import make_vec_env

    parts = needed()
    made = parts.Timed(
        parts.OneCallPolicy if kind == "one_call" else "MlpLstmPolicy",
        make_vec_env(parts.environment, ENVIRONMENTS, seed=asked.seed),
        n_steps=STEPS,
        batch_size=asked.batch,
        learning_rate=asked.lr,
        gamma=0.98,
        gae_lambda=0.8,
        policy_kwargs={"lstm_hidden_size": asked.hidden},
        seed=asked.seed,
        device=asked.device,
    )
    if kind == "converted":
        rnnkernels.convert(made.policy)
    return made


def learned(kind: str, asked: argparse.Namespace) -> tuple[dict, torch.nn.Module]:
    """An agent's episodes and times while it learned, and its policy."""
    steps, terminal = asked.epochs * ENVIRONMENTS * STEPS, sys.stderr.isatty()
    episodes, made = needed().Episodes("" if terminal else f"{kind}: of {steps:,} steps"), agent(kind, asked)
    made.learn(steps, callback=episodes, progress_bar=terminal)
    if not episodes.ends:
        raise BadData("no episode ended: more --epochs are needed")
    return {"kind": kind, "seconds": made.seconds, "episodes": episodes.ends}, made.policy


def same(episodes: list, others: list) -> int:
    """The number of episodes that two agents played alike, to the step, before the first that differs."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(episodes, others, strict=False))))


def draw(rows: list[dict], path: Path) -> None:
    with common.plot(path, 1, 2, size=(11, 3.8), width_ratios=(2, 1)) as (curves, times):
        for row, style in zip(rows, ("-", "--", ":"), strict=False):
            steps, returns = zip(*row["episodes"], strict=True)
            means = [sum(returns[max(0, n - LAST) : n]) / min(n, LAST) for n in range(1, len(returns) + 1)]
            curves.plot(steps, means, style, label=row["kind"], color=COLORS[row["kind"]])
            times.bar_label(times.bar(row["kind"], row["seconds"], color=COLORS[row["kind"]]), fmt="%.1f")
        curves.set(title=f"mean return of {LAST} episodes", xlabel="steps played")
        curves.legend()
        times.set(title="training phases, s")
        times.margins(y=0.12)


def parser() -> argparse.ArgumentParser:
    made = common.parser("rl", __doc__, epochs=100, cells=("lstm",))
    made.set_defaults(layers="both")
    made.add_argument("--hidden", type=common.positive(int), default=64, help="units (default: %(default)s)")
    made.add_argument("--batch", type=common.positive(int), default=256, help="steps of a batch (default: %(default)s)")
    made.add_argument("--lr", type=common.positive(float), default=1e-3, help="default: %(default)s")
    return made


def work(asked: argparse.Namespace) -> tuple[dict, list[Threshold]]:
    if asked.processes > 1:
        raise BadData("--processes: an agent learns in one process")
    parts = needed()
    if asked.load:
        weights, _ = common.earlier(asked, "rl")
        policy = agent("one_call", asked).policy
        common.restore(policy, weights, asked.load)
        value = parts.played(policy, GAMES, asked.seed)
        print(f"mean return of {GAMES} games with the likeliest actions: {value:.1f}")
        return {"return_played": value}, []
    rows = []
    for kind in KINDS[asked.layers]:
        row, policy = learned(kind, asked)
        rows.append(row)
        print(f"{kind}: {len(row['episodes'])} episodes, trained in {row['seconds']:.1f} s", flush=True)
    (asked.out / "rl.json").write_text(json.dumps(rows) + "\n")
    draw(rows, asked.out / "rl.png")
    common.save(asked.out, policy, example="rl", arguments={"hidden": asked.hidden})
    for row in rows:
        if row["kind"] != "converted":
            name = "torch" if row["kind"] == "plain" else "rnnkernels"
            common.note_time(argparse.Namespace(**{**vars(asked), "layers": name}), row["seconds"])
    metrics: dict = {"return_played": parts.played(policy, GAMES, asked.seed)}
    for row in rows:
        returns = [value for _, value in row["episodes"][-LAST:]]
        metrics[f"return_{row['kind']}"] = sum(returns) / len(returns)
        metrics[f"episodes_{row['kind']}"] = len(row["episodes"])
        if row is not rows[0]:
            metrics[f"same_episodes_{row['kind']}"] = same(rows[0]["episodes"], row["episodes"])
    alike = [Threshold(name, ">=", 100) for name in metrics if name.startswith("same_episodes")]
    return metrics, [Threshold("return_played", ">=", 60), *alike]


def main(arguments: list[str] | None = None) -> int:
    return common.run("rl", parser(), work, arguments, quick={"epochs": 20})


if __name__ == "__main__":
    sys.exit(main())
