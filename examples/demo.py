"""Train a character model twice, with torch.nn and with rnnkernels, and compare losses and speed.

    python -m examples.demo                        # a 2-layer LSTM on Python's standard library
    python -m examples.demo --text book.txt --cell gru --seconds 60

Both trainings start from the same seed and see the same characters in the same order, so their loss curves agree up to
rounding, which training slowly amplifies. T time, B batch, V vocabulary, H hidden.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import rnnkernels
from examples.arguments import positive
from examples.language_model import CharLM, detach, generate
from examples.streams import BadData, Streams, read_text, standard_library

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

T, B = 50, 50  # steps of truncated back-propagation, and streams read side by side, as in char-rnn
HELD_OUT = 0.05  # the last part of the text is never trained on
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def batches(tokens: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Without end: inputs (T, B), targets one character later, and whether the text starts anew."""
    streams = Streams(tokens, T, B)
    while True:
        for n in range(len(streams)):
            yield *streams[n], n == 0


class Training:
    """One model on its way: each `step` reads one batch, and notes the loss and the time."""

    def __init__(self, library, asked: argparse.Namespace, vocabulary: int, tokens: Tensor) -> None:
        torch.manual_seed(asked.seed)
        self.model = CharLM(library, asked.cell, vocabulary, asked.hidden, asked.layers).to(asked.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3, fused=True)
        self.batches = batches(tokens)
        self.state = None
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self) -> None:
        x, y, anew = next(self.batches)
        start = time.perf_counter()
        logits, state = self.model(x, None if anew else self.state)
        loss = cross_entropy(logits.flatten(0, 1), y.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.state = detach(state)
        self.losses.append(loss.item())  # .item() waits for the device, so the time is the whole step's
        self.seconds.append(time.perf_counter() - start)

    def characters_per_second(self) -> float:
        """Of whole training steps, by the median step: a few disturbed ones do not count."""
        return T * B / statistics.median(self.seconds)

    @torch.no_grad()
    def held_out_loss(self, tokens: Tensor) -> float:
        logits, _ = self.model(tokens[:-1, None])
        return cross_entropy(logits[:, 0], tokens[1:]).item()


def train(trainings: list[Training], seconds: float, steps: int | None) -> None:
    """The models take turns, step by step, so that a busy machine slows both alike; until time or steps are used up."""
    start = time.perf_counter()
    with tqdm(total=steps or seconds, desc="training", bar_format=BAR, mininterval=0.5) as bar:
        while bar.n < bar.total:
            for training in trainings:
                training.step()
            done, loss = len(training.losses), training.losses[-1]
            bar.set_postfix(steps=done, loss=f"{loss:.3f}", refresh=False)
            bar.update((done if steps else min(bar.total, time.perf_counter() - start)) - bar.n)


def sample(model: CharLM, characters: list[str], prompt: str, length: int, seed: int, temperature: float = 0.7) -> str:
    """Text drawn character by character: each draw is the next input, the state carries what came before."""
    tokens = torch.tensor([characters.index(c) for c in prompt])
    drawn = itertools.islice(generate(model, tokens, temperature, seed), length)
    return prompt + "".join(characters[token] for token in drawn)


class Agreement(NamedTuple):
    digits: int
    steps: int  # the curves agree to so many digits over so many first steps


def agreement(a: list[float], b: list[float]) -> list[Agreement]:
    """How many first steps two curves agree, to each number of digits; whole-length agreement ends the list."""
    found = []
    for digits in range(7, 0, -1):
        allowed = 0.5 * 10.0 ** (1 - digits)
        apart = (n for n, (p, q) in enumerate(zip(a, b, strict=True)) if not abs(p - q) <= allowed * abs(p))
        steps = next(apart, len(a))
        if steps and (not found or steps > found[-1].steps):
            found.append(Agreement(digits, steps))
        if steps == len(a):
            break
    return found


def report(torchs: Training, ours: Training, held_out: Tensor, name: str) -> None:
    """The two curves side by side, how far they agree, and the speeds."""
    steps = len(ours.losses)
    window = max(1, steps // 12)
    print(f"\nloss, mean over {window} steps\n{'step':>8}  {'torch.nn':>10}  {'rnnkernels':>10}  {'difference':>10}")
    for end in range(window, steps + 1, window):
        p, q = (sum(training.losses[end - window : end]) / window for training in (torchs, ours))
        print(f"{end:8}  {p:10.6f}  {q:10.6f}  {q - p:10.1e}")
    p, q = (training.held_out_loss(held_out) for training in (torchs, ours))
    print(f"held out  {p:10.6f}  {q:10.6f}  {q - p:10.1e}   ({math.exp(q):.2f} choices per character)")
    for found in agreement(torchs.losses, ours.losses):
        which = f"all {steps}" if found.steps == steps else f"the first {found.steps}"
        print(f"The curves agree to {found.digits} digits over {which} steps.")
    p, q = torchs.characters_per_second(), ours.characters_per_second()
    print(f"\n{name}, {steps} training steps of {T} x {B} characters, taking turns; by the median step:")
    print(f"torch.nn    {p:10,.0f} characters/s\nrnnkernels  {q:10,.0f} characters/s   {q / p:.2f} times torch.nn")


def plot(torchs: Training, ours: Training, name: str, path: Path) -> None:
    """Loss and speed as a picture."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 1), layout="constrained")
    left.plot(torchs.losses, color="tab:orange", linewidth=4, alpha=0.5, label="torch.nn")
    left.plot(ours.losses, color="tab:blue", linewidth=1, label="rnnkernels")
    left.set(xlabel="step", ylabel="loss (nats per character)", title=f"{name}, on characters")
    left.legend()
    speeds = [training.characters_per_second() / 1000 for training in (torchs, ours)]
    bars = right.bar(["torch.nn", "rnnkernels"], speeds, color=["tab:orange", "tab:blue"])
    right.bar_label(bars, fmt="%.0f")
    right.set(ylabel="1000 characters per second", title=f"training: {speeds[1] / speeds[0]:.2f} times")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a UTF-8 text file (default: Python's standard library, about 2 MB)")
    parser.add_argument("--cell", choices=("lstm", "gru", "rnn"), default="lstm")
    parser.add_argument("--hidden", type=positive(int), default=128)
    parser.add_argument("--layers", type=positive(int), default=2)
    parser.add_argument("--seconds", type=positive(float), default=100, help="for both together (default: 100)")
    parser.add_argument("--steps", type=positive(int), help="train exactly so many steps, whatever the time")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("char_lm.png"), help="the picture (default: char_lm.png)")
    asked = parser.parse_args(arguments)
    try:
        torch.zeros(1, device=asked.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device {asked.device}: {str(error).splitlines()[0]}")
    if not asked.out.resolve().parent.is_dir() or asked.out.is_dir():
        parser.error(f"--out {asked.out}: cannot write a file there")
    return asked


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    source = asked.text or "Python's standard library"
    try:
        learned = read_text(asked.text) if asked.text else standard_library()
        least = math.ceil((B * T + 1) / (1 - HELD_OUT)) + T
        if len(learned) < least:
            raise BadData(f"{source}: too short: {len(learned)} characters, at least {least} are needed")
    except BadData as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    points, numbers = np.unique(np.frombuffer(learned.encode("utf-32-le"), np.uint32), return_inverse=True)
    characters = [chr(point) for point in points]  # the vocabulary
    tokens = torch.as_tensor(numbers, dtype=torch.int64, device=asked.device)
    split = int(len(tokens) * (1 - HELD_OUT))
    name = f"{asked.layers}-layer {asked.cell.upper()}, hidden {asked.hidden}"
    print(f"{source}: {len(learned):,} characters, {len(characters)} different\n{name}, {asked.device}")

    torchs, ours = (Training(library, asked, len(characters), tokens[:split]) for library in (torch.nn, rnnkernels))
    for key, value in torchs.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[key]), f"not the same initial {key}"
    train([torchs, ours], asked.seconds, asked.steps)

    report(torchs, ours, tokens[split : split + 10_000], name)
    prompt = learned[split : split + T]
    print(f"\nsample of rnnkernels' model, after the held-out text's first {T} characters:\n{'-' * 80}")
    print(sample(ours.model, characters, prompt, 500, asked.seed))
    print("-" * 80)
    plot(torchs, ours, name, asked.out)
    print(f"written: {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
