"""What `char_lm` shows: samples as they are drawn, the letters expected after each letter of hello, training curves."""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from tokenizers import Tokenizer

from examples import common, text
from examples.language_model import CharLM, generate


def write(model: CharLM, pieces: Tokenizer, prompts: list[str], asked: argparse.Namespace) -> str:
    """Samples of every prompt at every temperature, printed as they come."""
    written = []
    for prompt, temperature in itertools.product(prompts, asked.temperature):
        tokens = text.encode(pieces, prompt)
        print(f"\n--- temperature {temperature:g}")
        print(prompt, end="", flush=True)
        start, drawn = time.perf_counter(), []
        for token in itertools.islice(generate(model, tokens, temperature, asked.seed, never=0), asked.length):
            drawn.append(pieces.id_to_token(token))
            print(drawn[-1], end="", flush=True)
        milliseconds = 1000 * (time.perf_counter() - start) / asked.length
        print(f"\n--- {milliseconds:.2f} ms per {asked.level}")
        written.append(f"temperature {temperature:g}:\n{prompt}{''.join(drawn)}\n")
    return "\n".join(written)


def glimpse(model: CharLM, pieces: Tokenizer, prompt: str, asked: argparse.Namespace) -> str:
    """What the model writes after the prompt at this point of its training."""
    drawn = generate(model, text.encode(pieces, prompt), asked.temperature[0], asked.seed, never=0)
    letters = [pieces.id_to_token(token) for token in itertools.islice(drawn, 80)]
    return prompt + "".join(letters)


def on_the_way(samples: list[tuple[int, str]], unit: str) -> str:
    """The samples of the beginning, the middle and the end of training."""
    chosen = [samples[0], samples[len(samples) // 2], samples[-1]] if len(samples) > 2 else samples
    return "\n".join(f"after {read:,} {unit}s:\n{sample}\n" for read, sample in chosen)


def show_hello(model: CharLM, pieces: Tokenizer) -> None:
    """The letters that the model expects after each letter of hello: training and validation text, learned by heart."""
    tokens = text.encode(pieces, "hello")
    with torch.no_grad():
        chances = model.eval()(tokens[:-1, None])[0][:, 0].softmax(-1)
    letters = [pieces.id_to_token(n) for n in range(1, pieces.get_vocab_size())]
    table = Table("after", *letters, title="probability of the next letter")
    for n, row in enumerate(chances):
        table.add_row("hello"[: n + 1], *(f"{chance:.3f}" for chance in row[1:]))
    common.console().print(table)


def draw(losses: list, checks: list, bigram: float, unit: str, path: Path) -> None:
    with common.plot(path) as ax:
        at, bits = np.array(losses).T
        window = max(1, len(bits) // 200)
        many = len(bits) // window * window
        ax.plot(at[:many].reshape(-1, window)[:, -1], bits[:many].reshape(-1, window).mean(1), label="training")
        ax.plot(*zip(*checks, strict=True), "o-", label="validation")
        ax.axhline(bigram, color="gray", linestyle="--", label="bigram table, validation")
        ax.set(xlabel=f"{unit}s read", ylabel=f"bits per {unit}")
        ax.legend()
