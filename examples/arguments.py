"""The arguments that all examples have, and types for those of their own."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LAYERS = ("torch", "rnnkernels")


def positive(kind: type) -> Callable[[str], Any]:
    """A type for argparse: a finite number above 0."""

    def parse(word: str):
        value = kind(word)
        if not 0 < value < math.inf:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def seed(word: str) -> int:
    """A type for argparse: what NumPy's generators take."""
    if not 0 <= int(word) < 2**32:
        raise argparse.ArgumentTypeError(f"expected 0 to 2**32 - 1, got {word}")
    return int(word)


def fraction(word: str) -> float:
    """A type for argparse: from 0 to below 1, for dropout and other shares."""
    value = float(word)
    if not 0 <= value < 1:
        raise ValueError
    return value


def parser(
    name: str, doc: str, *, epochs: int, cells: tuple[str, ...] = ("lstm", "gru", "rnn"), sizes: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """The arguments that all examples have; `doc` is the docstring of the example, the first cell is the default,
    `sizes` names the texts whose own sizes are a setting of it."""
    made = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=doc.splitlines()[0])
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    made.add_argument("--processes", type=positive(int), default=1, help="train on so many (DistributedDataParallel)")
    made.add_argument("--cell", choices=cells, default=cells[0], help="default: %(default)s")
    made.add_argument("--layers", choices=LAYERS, default="rnnkernels", help="whose (default: %(default)s)")
    made.add_argument("--epochs", type=positive(int), default=epochs, help="at most (default: %(default)s)")
    made.add_argument("--seed", type=seed, default=0)
    made.add_argument("--out", type=Path, default=Path("runs") / name, help=f"a folder (default: runs/{name})")
    made.add_argument("--load", type=Path, metavar="DIR", help="use the model of an earlier run's --out; do not train")
    made.add_argument("--logger", choices=("csv", "tensorboard"), default="csv")
    made.add_argument("--quick", action="store_true", help="settings that take a minute or two; given arguments win")
    if sizes:
        made.add_argument("--sizes", choices=tuple(sizes), help="those of a text (docs/texts.md); given arguments win")
    made.add_argument("--check", action="store_true", help="end with status 1 where a threshold is missed")
    return made
