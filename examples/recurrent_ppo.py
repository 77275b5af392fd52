"""For examples.rl: CartPole without velocities, sb3-contrib's policy, and the policy whose loop is one call.

`OneCallPolicy` is the recipe for other programs: it derives from sb3-contrib's policy and may be passed to
`RecurrentPPO` in the place of "MlpLstmPolicy". Needs stable-baselines3, sb3-contrib and gymnasium (the extra `rl`).
"""

from __future__ import annotations

import time

import gymnasium
import numpy
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

import rnnkernels


class OneCallPolicy(RecurrentActorCriticPolicy):
    """sb3-contrib's recurrent policy, with layers of rnnkernels and one call for a batch of sequences.

    sb3-contrib steps through a batch in Python as soon as one episode begins in it, to zero the states there; and when
    it trains, one begins with nearly every sequence. `reset` zeroes them inside the call.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        rnnkernels.convert(self)

    @staticmethod
    def _process_sequence(features, lstm_states, episode_starts, lstm):
        """Features (S*T, I) of S sequences, h and c (L, S, H), starts (S*T,): outputs (S*T, H) and the last states."""
        S = lstm_states[0].shape[1]
        x_TSI = features.reshape(S, -1, lstm.input_size).transpose(0, 1)
        starts_TS = episode_starts.reshape(S, -1).transpose(0, 1).bool()
        y_TSH, last = lstm(x_TSI, lstm_states, reset=starts_TS)
        return y_TSH.transpose(0, 1).flatten(0, 1), last


class Positions(gymnasium.ObservationWrapper):
    """CartPole that shows where cart and pole are (2), and not how fast they move: a policy has to remember."""

    def __init__(self, environment: gymnasium.Env):
        super().__init__(environment)
        limits = numpy.array([4.8, 0.42], dtype=numpy.float32)
        self.observation_space = gymnasium.spaces.Box(-limits, limits)

    def observation(self, observation: numpy.ndarray) -> numpy.ndarray:
        return observation[[0, 2]]


def environment() -> gymnasium.Env:
    return Positions(gymnasium.make("CartPole-v1"))


class Timed(RecurrentPPO):
    """RecurrentPPO that adds up how long its training phases take, without the playing between them."""

    seconds = 0.0

    def train(self) -> None:
        start = time.perf_counter()
        super().train()
        self.seconds += time.perf_counter() - start


class Episodes(BaseCallback):
    """Remembers every episode that ends: the steps played until then, by all environments, and its return.

    ``saying``: how a line every two seconds begins, where there is no terminal for sb3's bar; "" for none.
    """

    def __init__(self, saying: str = "", every: float = 2.0):
        super().__init__()
        self.ends: list[tuple[int, float]] = []
        self.saying, self.every, self.last = saying, every, time.monotonic()

    def _on_step(self) -> bool:
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.ends += [(self.num_timesteps, float(value)) for value in ended]
        if self.saying and time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            print(f"{self.saying} {self.num_timesteps:,} played, {len(self.ends)} episodes", flush=True)
        return True


def played(policy: RecurrentActorCriticPolicy, episodes: int, seed: int) -> float:
    """The mean return of episodes in which the likeliest action is always taken."""
    game, total = environment(), 0.0
    with torch.no_grad():
        for n in range(episodes):
            observation, _ = game.reset(seed=seed + n)
            state, ended = None, False
            start: numpy.ndarray | Tensor = numpy.ones(1)
            while not ended:
                action, state = policy.predict(observation, state, start, deterministic=True)
                observation, reward, over, cut, _ = game.step(action.item())
                total, ended, start = total + float(reward), over or cut, numpy.zeros(1)
    return total / episodes
