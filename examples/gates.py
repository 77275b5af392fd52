"""Gates at work: every gate and state of a sentiment and of a character model, word by word, as heat maps.

    python -m examples.gates                        # trains both small models, then draws them
    python -m examples.gates --cell gru             # r, z and n instead of forget, input and output gates
    python -m examples.gates --phrase "le film n'est pas raté." --phrase "le film n'est pas réussi."
    python -m examples.gates --load runs/sentiment  # a model of `sentiment`; or an earlier run of gates

`rnnkernels.trace` runs a trained layer and returns its gates and states by name. Each is a heat map, steps across and
units down, with the words or characters on the axis, and below them the lengths of the vectors c and h. A row is the
same unit in all maps, in the order of the last hidden state. The HTML pages show values under the pointer.

Do units mean something? In the character model the unit is sought whose memory follows the place in the line, on one
half of a text, and judged on the other. A gate below 0.1 or above 0.9 counts as shut or open, as in Karpathy et al.

Flaws of the guides and notebooks that this follows, and their remedies here:
- gates are drawn from invented numbers: these come from trained models, from the library's own `trace`, and
  beside_invented.png has both;
- steps of padding are drawn under the words' names: here a sequence is as long as its words;
- layers are run again by hand, weight by weight, to see inside: one call does it, for every cell and option;
- a unit is picked because it looks well, on the text where it is shown: here it is judged where it was not sought.

Papers: Hochreiter and Schmidhuber 1997; Gers et al. 2000 (forget gate); Cho et al. 2014 (GRU); Karpathy, Johnson and
Fei-Fei 2016, Visualizing and understanding recurrent networks.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import rnnkernels
from examples import common, reviews, sentiment
from examples.common import BadData, Threshold
from examples.gate_plots import GATES, NAMES, Traced, beside_invented, draw, page
from examples.reader import Reader, judge
from examples.streams import standard_library

TIME = "about 20 s"
ROW, HELD_OUT = 100, 20_000  # characters of a row of the character model, and those it never trains on


class Characters(lightning.LightningModule):
    """Embedding, one recurrent layer, and logits of the next character."""

    def __init__(self, known: list[str], cell: str, layers: str) -> None:
        super().__init__()
        self.numbers = {character: number for number, character in enumerate(known)}
        self.embedding = nn.Embedding(len(known), 32)
        self.layers = nn.ModuleList([getattr(common.LAYERS[layers], cell.upper())(32, 96, batch_first=True)])
        self.head = nn.Linear(96, len(known))

    def encode(self, characters: str) -> Tensor:
        return torch.tensor([self.numbers.get(character, 0) for character in characters])

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """Nats per character."""
        y, _ = self.layers[0](self.embedding(tokens_BT[:, :-1]))
        return cross_entropy(self.head(y).flatten(0, 1), tokens_BT[:, 1:].flatten())

    def training_step(self, tokens_BT: Tensor, _: int) -> Tensor:
        return self.loss(tokens_BT)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 4e-3)


def trace(model: Reader | Characters, tokens_BT: Tensor) -> dict[str, Tensor]:
    """Gates and states of its first layer, (B, T, H) each; a layer of torch.nn is converted for it."""
    rnnkernels.convert(model.cpu().eval())
    with torch.no_grad():
        return {name[0]: plane for name, plane in rnnkernels.trace(model.layers[0], model.embedding(tokens_BT)).items()}


def source(asked: argparse.Namespace) -> tuple[str, str]:
    """The text to train on, and what follows it."""
    whole = common.read_text(asked.text) if asked.text else standard_library(asked.characters)
    whole = whole[: asked.characters]
    if len(whole) < 3 * HELD_OUT:
        raise BadData(f"{asked.text or 'the text'}: {len(whole)} characters, at least {3 * HELD_OUT} are needed")
    return whole[:-HELD_OUT], whole[-HELD_OUT:]


def characters_model(asked: argparse.Namespace, known: list[str], learned: str) -> tuple[Characters, float]:
    """A model trained on the text, and the seconds it took."""
    lightning.seed_everything(asked.seed, verbose=False)
    model = Characters(known, asked.cell, asked.layers)
    rows = model.encode(learned).unfold(0, ROW + 1, ROW)
    trainer = common.trainer(asked, name="characters", gradient_clip_val=1.0)
    seconds = common.fit(trainer, model, DataLoader(rows, 32, shuffle=True, drop_last=True))
    return model, seconds


def line_unit(model: Characters, held_out: str) -> tuple[int, float]:
    """The unit whose memory follows the place in the line best in one half, and the correlation in the other."""
    places, place = [], 0
    for character in held_out:
        places.append(place)
        place = 0 if character == "\n" else place + 1
    place_NT = torch.tensor(places, dtype=torch.float).view(-1, 500)
    planes = trace(model, model.encode(held_out).view(-1, 500))
    halves = zip(planes.get("c", planes["h"]).chunk(2), place_NT.chunk(2), strict=True)
    found = []
    for memory_NTH, half_NT in halves:
        both = torch.cat([memory_NTH.flatten(0, 1), half_NT.flatten()[:, None]], 1)
        found.append(torch.corrcoef(both.T)[-1, :-1].nan_to_num())
    unit = int(found[0].abs().argmax())
    return unit, float(found[1][unit].abs())


def open_and_shut(planes: dict[str, Tensor]) -> dict[str, float]:
    """How much of its time each gate is open (above 0.9) and shut (below 0.1)."""
    gates = {name: plane for name, plane in planes.items() if name in GATES}
    shares = {f"{name}_open": (plane > 0.9).float().mean().item() for name, plane in gates.items()}
    return shares | {f"{name}_shut": (plane < 0.1).float().mean().item() for name, plane in gates.items()}


def show(sequences: list[Traced], asked: argparse.Namespace, of: str, step: str) -> None:
    """PNG and HTML page."""
    title = f"Gates and states of the {asked.cell.upper()} that reads {of}"
    draw(sequences, title, step, asked.out / f"{of}.png")
    page(sequences, title, step, asked.out / f"{of}.html")


def read_reviews(asked: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Train or load a reader, trace it on the phrases and draw them; its metrics, and the seconds of training."""
    wish = sentiment.parser().parse_args(["--layers", asked.layers, "--device", asked.device, "--cell", asked.cell])
    for name in ("seed", "logger", "processes", "reviews", "epochs"):
        setattr(wish, name, getattr(asked, name))
    wish.out = asked.out / "sentiment"
    wish.out.mkdir(exist_ok=True)
    wish.load = asked.load and (asked.load / "sentiment" if (asked.load / "sentiment").is_dir() else asked.load)
    ready = sentiment.prepare(wish)
    if asked.cell not in ready.models:
        raise BadData(f"--load {asked.load}: no {asked.cell} there, but {', '.join(ready.models)}")
    if rank_zero_only.rank:  # what follows is for one process
        return {}, 0.0
    model, sequences = ready.models[asked.cell], []
    accuracy = sentiment.figures(judge(model, ready.rows[2], asked.device), ready.parts[2])["accuracy"]
    hard = sentiment.HARD.get(wish.data, reviews.HARD)
    for phrase in asked.phrase or [example for example, _ in hard[:2]]:
        if not reviews.words(phrase):
            raise BadData(f"--phrase {phrase!r}: no words")
        tokens = ready.vocabulary.encode(phrase, wish.tokens)
        p = judge(model, [(tokens, 0)], asked.device).item()
        planes = {name: plane[0] for name, plane in trace(model, tokens[None]).items()}
        verdict = f"{phrase}  ({'good' if p > 0.5 else 'bad'}, {p:.2f})"
        sequences.append(Traced(verdict, reviews.words(phrase)[-len(tokens) :], planes))
    show(sequences, asked, "reviews", "word")
    if asked.cell == "lstm":
        beside_invented(sequences[0], "word", asked.out / "beside_invented.png")
    found = [open_and_shut(trace(model, tokens[None])) for tokens, _ in ready.rows[2][:200]]
    shares = {name: mean(share[name] for share in found) for name in found[0]} if found else {}
    return {"accuracy": accuracy} | shares, ready.trained[asked.cell]["seconds"]


def read_characters(asked: argparse.Namespace) -> tuple[dict[str, float], float]:
    """The same with characters of a text; and the unit that follows the place in the line."""
    folder = "characters"
    if asked.load:
        weights, facts = common.load(asked.load / folder)
        asked.text, asked.characters = facts["text"] and Path(facts["text"]), facts["characters"]
    learned, held_out = source(asked)
    if asked.load:
        model, seconds = Characters(facts["known"], facts["cell"], asked.layers), 0.0
        common.restore(model, weights, asked.load / folder)
    else:
        known = ["\N{REPLACEMENT CHARACTER}", *sorted(set(learned))]
        model, seconds = characters_model(asked, known, learned)
        (asked.out / folder).mkdir(exist_ok=True)
        facts = {"known": known, "text": asked.text and str(asked.text), "characters": asked.characters}
        common.save(asked.out / folder, model, cell=asked.cell, **facts)
    if rank_zero_only.rank:
        return {}, 0.0
    model.cpu().eval()
    tokens = model.encode(held_out)
    with torch.no_grad():
        bits = model.loss(tokens.view(-1, ROW)).item() / math.log(2)
    start = held_out.find("\n") + 1
    shown = held_out[start : start + 60]
    planes = trace(model, tokens[None, start : start + 60])
    steps = [{" ": "\N{OPEN BOX}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"}.get(c, c) for c in shown]
    sequence = Traced("text that it never trained on", steps, {name: plane[0] for name, plane in planes.items()})
    show([sequence], asked, "characters", "character")
    unit, correlation = line_unit(model, held_out)
    found = {"bits": bits, "line_unit": unit, "line_correlation": correlation}
    return found | open_and_shut(trace(model, tokens[:2000].view(20, -1))), seconds


def work(asked: argparse.Namespace) -> tuple[dict[str, Any], list[Threshold]]:
    halves = {"characters": read_characters, "reviews": read_reviews}  # a text that cannot be used ends it at once
    if asked.load and not (asked.load / "characters").is_dir():  # a run of sentiment
        del halves["characters"]
    metrics, seconds = {}, 0.0
    for half, read in halves.items():
        found, more = read(asked)
        metrics |= {f"{half}_{name}": round(value, 6) for name, value in found.items()}
        seconds += more
    if rank_zero_only.rank:
        return {}, []
    if not asked.load:
        common.note_time(asked, seconds)
    table = Table("% of the time", *(f"{half}: {side}" for half in halves for side in ("open", "shut")))
    for name in [name for name in GATES if f"reviews_{name}_open" in metrics]:
        shares = (metrics[f"{half}_{name}_{side}"] for half in halves for side in ("open", "shut"))
        table.add_row(NAMES[name], *(f"{100 * share:.1f}" for share in shares))
    if table.row_count:  # an RNN has no gates
        common.console().print(table)
    print(f"reviews: {100 * metrics['reviews_accuracy']:.1f} % of the test part right")
    if "characters" in halves:
        bits, unit, correlation = (metrics[f"characters_{name}"] for name in ("bits", "line_unit", "line_correlation"))
        print(f"characters: {bits:.2f} bits each; unit {unit} follows the place in the line (r = {correlation:.2f})")
    return metrics, [Threshold("reviews_accuracy", ">=", 0.95)] if asked.cell != "rnn" else []


def parser() -> argparse.ArgumentParser:
    made = common.parser("gates", __doc__, epochs=12)
    made.add_argument("--phrase", action="append", metavar="TEXT", help="to be read; can be given several times")
    made.add_argument("--reviews", type=common.positive(int), default=8000, help="to train on (default: 8000)")
    made.add_argument("--text", type=Path, metavar="FILE", help="to read by characters (default: Python's own sources)")
    made.add_argument("--characters", type=common.positive(int), default=400_000, help="at most (default: 400000)")
    return made


def main(arguments: list[str] | None = None) -> int:
    return common.run("gates", parser(), work, arguments, quick={"reviews": 6000, "characters": 200_000, "epochs": 10})


if __name__ == "__main__":
    sys.exit(main())
