"""Find words in a stream of letters, after Elman 1990: the prediction error is high where a word starts.

    python -m examples.elman
    python -m examples.elman --cell gru --epochs 20
    python -m examples.elman --load runs/elman --heard 5000     # the same networks on a longer new text

The first 16 words of La Fontaine's "Le Héron" are drawn at random, again and again, and written without spaces. Each
letter is five bits, and a network predicts the next letter. Inside a word the next letter is known, once the word is;
the next word is not. So a network with memory errs at word starts, although no input marks the words. Three
networks of 20 hidden units learn it, letter by letter:

    feed-forward     sees one letter, remembers nothing: the baseline
    Elman            RNNCell: the context is copied back, gradients stop there (back-propagation through one step)
    BPTT             the same with gradients through the last letters (truncated back-propagation through time)

Mended, where the lesson is usually left to the eye:
- The errors are those of a new text, of words drawn afresh, not of the letters that were learned.
- The pattern is a number. First letters are harder than later ones even for a table of letter pairs, which has no
  memory at all ("ratio"). Only memory makes the error fall inside words ("fall": second letters against those after).
- The words that the error's peaks cut out have an F1, beside those of the table and of calling each letter a start.

Papers: Elman 1990, "Finding structure in time", Cognitive Science 14; Rumelhart, Hinton & Williams 1986 (momentum);
Williams & Peng 1990 (truncated BPTT).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from scipy.signal import find_peaks
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from examples import common
from examples.common import BadData, Threshold

TIME = "about 45 s"
POEM = "un jour sur ses longs pieds allait je ne sais ou le heron au long bec"  # first lines, without accents
WORDS = POEM.split()
BITS, HIDDEN = 5, 20
NETWORKS = ("feed-forward", "Elman", "BPTT")


class Text(NamedTuple):
    """Words in a row. T letters."""

    letters: str
    bits: Tensor  # (T, 5)
    starts: np.ndarray  # (T,) bool
    places: np.ndarray  # (T,) place of a letter in its word, from 0


def sentences(words: int, seed: int, part: int) -> Text:
    """Words drawn at random, without spaces. A letter's bits are its number in the alphabet, from 1. Parts differ."""
    drawn = np.random.default_rng([seed, part]).choice(WORDS, words)
    letters = "".join(drawn)
    numbers = torch.tensor([ord(letter) - ord("a") + 1 for letter in letters])
    bits = (numbers[:, None] >> torch.arange(BITS - 1, -1, -1) & 1).double()
    places = np.concatenate([np.arange(len(word)) for word in drawn])
    return Text(letters, bits, places == 0, places)


class Predictor(nn.Module):
    """The next letter's bits, each between 0 and 1, from this letter's bits and from the state."""

    def __init__(self, library: str, cell: str | None) -> None:
        super().__init__()
        layers = common.LAYERS[library]
        self.remembers = cell is not None
        names = {"rnn": "RNNCell", "gru": "GRUCell", "lstm": "LSTMCell"}
        self.hidden = getattr(layers, names[cell])(BITS, HIDDEN) if cell else nn.Linear(BITS, HIDDEN)
        self.head = nn.Linear(HIDDEN, BITS)
        self.double()

    def forward(self, bits: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One letter, (5,)."""
        if not self.remembers:
            return self.head(self.hidden(bits).tanh()).sigmoid(), None
        state = self.hidden(bits, state)
        h = state[0] if isinstance(state, tuple) else state
        return self.head(h).sigmoid(), state


def detached(state: Any) -> Any:
    """The state without its history; an LSTM's is a pair."""
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def train(model: Predictor, bits: Tensor, passes: int, span: int, note: Callable[[int, float], Any]) -> None:
    """Elman's training: a step of SGD for every `span` letters, and no gradient from before them.

    By hand, since Lightning's bookkeeping of so small steps more than doubles the time.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for n in range(passes):
        state, total = None, 0.0
        for inputs, targets in zip(bits[:-1].split(span), bits[1:].split(span), strict=True):
            state = detached(state) if state is not None else None
            guesses = []
            for letter in inputs:
                guess, state = model(letter, state)
                guesses.append(guess)
            loss = mse_loss(torch.stack(guesses), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(inputs)
        note(n, total / (len(bits) - 1))


@torch.no_grad()
def errors(model: Predictor, bits: Tensor) -> np.ndarray:
    """(T - 1,): root mean square over the bits of every letter but the first, predicted from those before it."""
    state, guesses = None, []
    for letter in common.progress(bits[:-1], "letters"):
        guess, state = model(letter, state)
        guesses.append(guess)
    return (torch.stack(guesses) - bits[1:]).square().mean(1).sqrt().cpu().numpy()


def pair_errors(learned: Text, heard: Text) -> np.ndarray:
    """The same for a table of the mean next letter after each letter: a prediction without memory."""
    followers: dict[str, list[Tensor]] = {}
    for letter, bits in zip(learned.letters, learned.bits[1:], strict=False):
        followers.setdefault(letter, []).append(bits)
    unknown = learned.bits.mean(0)
    means = {letter: torch.stack(found).mean(0) for letter, found in followers.items()}
    guesses = torch.stack([means.get(letter, unknown) for letter in heard.letters[:-1]])
    return (guesses - heard.bits[1:]).square().mean(1).sqrt().numpy()


def peaks(error: np.ndarray) -> np.ndarray:
    """The peaks of the error above its mean, taken for word starts. The rule was chosen without looking at words."""
    found = np.zeros(len(error), bool)
    found[find_peaks(error, height=error.mean())[0]] = True
    return found


def measured(error: np.ndarray, heard: Text) -> dict[str, float]:
    """`ratio`: first letters of words against later ones. `fall`: second letters against those that follow."""
    places = heard.places[1:]
    first, later, second, rest = (
        float(error[which].mean()) for which in (places == 0, places > 0, places == 1, places > 1)
    )
    f1 = float(f1_score(places == 0, peaks(error)))
    return {"first": first, "later": later, "ratio": first / later, "fall": second / rest, "f1": f1}


def draw(path: Path, found: dict[str, np.ndarray], heard: Text) -> None:
    """The error over the first letters of the text, and by place in the word."""
    shown = 56
    with common.plot(path, 2, size=(11, 7)) as (top, bottom):
        for name in NETWORKS:
            top.plot(range(1, shown), found[name][: shown - 1], ".-", linewidth=1, label=name)
        for start in np.flatnonzero(heard.starts[:shown]):
            top.axvline(start, color="0.85", linewidth=6, zorder=0)
        top.set_xticks(range(shown), list(heard.letters[:shown]))
        top.set(
            title="error of each letter of a new text; grey: a word starts",
            ylabel="RMS over five bits",
            xlim=(-1, shown),
        )
        places = range(heard.places.max() + 1)
        for name, error in found.items():
            means = [error[heard.places[1:] == place].mean() for place in places]
            bottom.plot([place + 1 for place in places], means, ".-" if name in NETWORKS else "k:", label=name)
        bottom.set(title="mean error by place in the word", xlabel="letter of the word", ylabel="RMS over five bits")
        bottom.set(ylim=(0, None), xticks=[place + 1 for place in places])
        bottom.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        top.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def parser() -> argparse.ArgumentParser:
    made = common.parser("elman", __doc__, epochs=10, cells=("rnn", "gru", "lstm"))
    made.add_argument("--words", type=common.positive(int), default=1400, help="of the text to learn (default: 1400)")
    made.add_argument("--heard", type=common.positive(int), default=1000, help="words of the new text (default: 1000)")
    made.add_argument("--span", type=common.positive(int), default=4, help="letters that BPTT goes back (default: 4)")
    return made


def work(asked: argparse.Namespace) -> tuple[dict[str, Any], list[Threshold]]:
    if asked.processes > 1:
        raise BadData("--processes: one text that is read letter by letter cannot be shared out")
    if asked.heard < 10 or asked.words < 10:
        raise BadData("--words and --heard: at least 10 words are needed")
    weights, facts = common.load(asked.load) if asked.load else ({}, {})
    if asked.load:
        if facts.get("example") != "elman":
            raise BadData(f"--load {asked.load}: not a model of this example")
        vars(asked).update(facts["arguments"])
    learned, heard = sentences(asked.words, asked.seed, 0), sentences(asked.heard, asked.seed, 1)
    models = nn.ModuleDict()
    for name in NETWORKS:
        torch.manual_seed(asked.seed)
        models[name] = Predictor(asked.layers, None if name == "feed-forward" else asked.cell)
    models.to(asked.device)
    if asked.load:
        models.load_state_dict(weights)
    else:
        start, bits = time.perf_counter(), learned.bits.to(asked.device)
        with tqdm(total=len(NETWORKS) * asked.epochs, desc="passes", disable=None) as bar:
            for name, model in models.items():
                logger = common.trainer(asked, name=name).logger

                def note(n: int, loss: float, logger=logger) -> None:
                    logger.log_metrics({"squared_error": loss}, n)
                    bar.update()

                train(model, bits, asked.epochs, asked.span if name == "BPTT" else 1, note)
                logger.save()
        common.note_time(asked, time.perf_counter() - start)
        arguments = {key: vars(asked)[key] for key in ("cell", "seed", "words", "span", "epochs")}
        common.save(asked.out, models, example="elman", arguments=arguments, words=WORDS)

    found = {name: errors(model, heard.bits.to(asked.device)) for name, model in models.items()}
    found["pairs (table)"] = pair_errors(learned, heard)
    metrics: dict[str, Any] = {"letters": len(learned.letters), "heard": len(heard.letters)}
    table = Table("error of", "first", "later", "ratio", "fall", "F1 of starts", title="a new text: letters of words")
    for name, error in found.items():
        metrics[name] = measured(error, heard)
        table.add_row(name, *(f"{value:.3f}" for value in metrics[name].values()))
    share = heard.starts[1:].mean()
    metrics["f1_all_letters"] = float(2 * share / (1 + share))
    table.add_row("always a start", *[""] * 4, f"{metrics['f1_all_letters']:.3f}")
    common.console().print(table)
    cut = "".join(
        " " * int(peak) + letter for letter, peak in zip(heard.letters[1:61], peaks(found["BPTT"]), strict=False)
    )
    print(f"cut at the peaks of BPTT's error: {heard.letters[0]}{cut}")
    draw(asked.out / "errors.png", found, heard)

    for name, key in zip(NETWORKS, ("feed_forward", "elman", "bptt"), strict=True):
        metrics |= {f"{key}_{what}": metrics[name][what] for what in ("ratio", "fall", "f1")}
    metrics["elman_fall_over_feed_forward"] = metrics["elman_fall"] / metrics["feed_forward_fall"]
    return metrics, [
        Threshold("elman_ratio", ">=", 1.3),
        Threshold("bptt_ratio", ">=", 1.3),
        Threshold("bptt_fall", ">=", 1.5),
        Threshold("feed_forward_fall", "<=", 1.2),
        Threshold("elman_fall_over_feed_forward", ">=", 1.1),
        Threshold("bptt_f1", ">=", metrics["pairs (table)"]["f1"]),
    ]


def main(arguments: list[str] | None = None) -> int:
    return common.run("elman", parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
