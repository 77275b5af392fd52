"""Recipes, one at a time: clipping, first weights, layer norm, dropout, 16 bits; what does each bring?

    python -m examples.recipes
    python -m examples.recipes --only base layer-norm-in-cell --cell gru
    python -m examples.recipes --seed 1              # is it the recipe, or the luck of the first weights?
    python -m examples.recipes --load runs/recipes   # the same table again

A character model reads Python's library (as in `char_lm`, but smaller), once with the settings that the guides call
typical (but for a rate of ten times theirs, for training is short), and again with one thing changed: nothing else
differs, neither data nor order nor seed. The table shows bits per character on text that was not trained on, beside the
base's, and the time of training.

Mended, where guides give recipes without a measure:
- "clipping is critical": it is against explosions, of which an LSTM has few; both are tried, also at five times
  the rate;
- "xavier_uniform_ for weights, zeros for biases" also empties the forget gate's bias, and half of c is lost per step:
  the same with a forget bias of 1 stands beside it (Gers et al. 2000; Jozefowicz et al. 2015);
- nn.LayerNorm on a layer's output is called layer normalisation of an LSTM: it does not reach the recurrence. In the
  cell it does (Ba et al. 2016), which is `layer_norm=True` here;
- one run, one number: the base is run again with other first weights, and only what is farther than that counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning
import torch
from rich.table import Table
from torch import Tensor, nn

from examples import common, text
from examples.char_lm import HELD_OUT, Learner
from examples.common import BadData, Threshold
from examples.language_model import CharLM

TIME = "about 60 s"
HIDDEN, EMBEDDING, LAYERS, STEPS, BATCH = 64, 32, 2, 50, 32


class Normed(nn.Module):
    """A recurrent layer, and layer norm on what comes out of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.LayerNorm(layer.hidden_size)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.layer(x, state)
        return self.norm(y), state


def xavier(model: CharLM) -> None:
    """Of matrices, as the guides have it: each gate's block is not seen as a matrix of its own."""
    for name, parameter in model.named_parameters():
        if "weight" in name:
            nn.init.xavier_uniform_(parameter)
        elif "bias" in name:
            nn.init.zeros_(parameter)


def remembering(model: CharLM) -> None:
    """The same, and a forget bias of 1; of a GRU, z's bias, which says how much of h stays."""
    xavier(model)
    H = model.rnn.hidden_size
    with torch.no_grad():
        for layer in range(model.rnn.num_layers):
            getattr(model.rnn, f"bias_ih_l{layer}")[H : 2 * H] = 1.0


def orthogonal(model: CharLM) -> None:
    """Recurrent matrices of each gate that keep lengths (Saxe et al. 2014)."""
    for name, parameter in model.rnn.named_parameters():
        if "weight_hh" in name:
            for gate in parameter.data.chunk(parameter.shape[0] // parameter.shape[1]):
                nn.init.orthogonal_(gate)


def normed(model: CharLM) -> None:
    model.rnn = Normed(model.rnn)


def others(model: CharLM) -> None:
    """Other first weights: how far apart two runs of the base are."""
    torch.manual_seed(12345)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


class Recipe(NamedTuple):
    """What differs from the base."""

    prepare: Callable[[CharLM], None] = lambda model: None
    options: dict[str, Any] = {}  # of the recurrent layer
    dropout: float = 0.2
    rate: float = 1e-2
    clip: float | None = 5.0
    precision: str = "32-true"


RECIPES = {
    "base": Recipe(),
    "other-weights": Recipe(others),
    "no-clipping": Recipe(clip=None),
    "rate-over-10": Recipe(rate=1e-3),
    "rate-times-5": Recipe(rate=5e-2),
    "rate-times-5-no-clipping": Recipe(rate=5e-2, clip=None),
    "no-dropout": Recipe(dropout=0.0),
    "xavier-zeros": Recipe(xavier),
    "xavier-forget-1": Recipe(remembering),
    "orthogonal": Recipe(orthogonal),
    "layer-norm-on-output": Recipe(normed),
    "layer-norm-in-cell": Recipe(options={"layer_norm": True}),
    "recurrent-dropout": Recipe(options={"recurrent_dropout": 0.2}),
    "bf16-mixed": Recipe(precision="bf16-mixed"),
}


def trained(asked: argparse.Namespace, name: str, tokens: tuple[Tensor, Tensor], vocabulary: int) -> dict[str, Any]:
    """Bits per character and seconds of one recipe."""
    recipe = RECIPES[name]
    lightning.seed_everything(asked.seed, verbose=False)
    library = common.LAYERS[asked.layers]
    model = CharLM(library, asked.cell, vocabulary, HIDDEN, LAYERS, EMBEDDING, recipe.dropout)
    if recipe.options:
        layer = getattr(library, asked.cell.upper())
        model.rnn = layer(EMBEDDING, HIDDEN, LAYERS, dropout=recipe.dropout, **recipe.options)
    recipe.prepare(model)
    lightning.seed_everything(asked.seed, verbose=False)  # the same masks of dropout, whatever was drawn before
    settings = argparse.Namespace(**vars(asked) | {"steps": STEPS, "batch": BATCH, "lr": recipe.rate})
    learner = Learner(model, *tokens, settings)
    trainer = common.trainer(
        asked,
        monitor="bits",
        name=name,
        gradient_clip_val=recipe.clip,
        precision=recipe.precision,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        val_check_interval=learner.between,
    )
    seconds = common.fit(trainer, learner)
    return {"bits": round(min(bits for _, bits in learner.checks), 4), "seconds": seconds, "losses": learner.losses}


def draw(found: dict[str, dict[str, Any]], path) -> None:
    base = found.get("base", next(iter(found.values())))["bits"]
    with common.plot(path, size=(8, 0.32 * len(found) + 1.2)) as axes:
        names = list(found)
        bars = axes.barh(names, [found[name]["bits"] - base for name in names])
        axes.bar_label(bars, fmt="%+.3f", fontsize=8, padding=2)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.set(xlabel=f"bits per character more than the base's {base:.3f}", title="one thing changed at a time")


def parser() -> argparse.ArgumentParser:
    made = common.parser("recipes", __doc__, epochs=4)
    made.add_argument("--only", nargs="+", choices=RECIPES, metavar="RECIPE", help=f"of {', '.join(RECIPES)}")
    made.add_argument(
        "--characters", type=common.positive(int), default=300_000, help="of the text (default: %(default)s)"
    )
    return made


def read_table(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What an earlier run found."""
    try:
        return json.loads(common.read_text(asked.load / "recipes.json"))
    except ValueError as error:
        raise BadData(f"{asked.load}: no table of this example") from error


def work(asked: argparse.Namespace) -> tuple[dict[str, Any], list[Threshold]]:
    if asked.processes > 1:
        raise BadData("--processes: the models are too small to be shared out")
    source = text.read("python")[: asked.characters]
    split = int(len(source) * (1 - HELD_OUT))
    pieces = text.learn_pieces(source[:split], "char", 1000)
    tokens = text.encode(pieces, source[:split]), text.encode(pieces, source[split:])
    if len(tokens[0]) < STEPS * BATCH + 1:
        raise BadData(f"--characters {asked.characters}: at least {2 * STEPS * BATCH} are needed")
    vocabulary = pieces.get_vocab_size()
    bigram = text.bigram_bits(*tokens, vocabulary)
    found = read_table(asked) if asked.load else {}
    for name in () if asked.load else asked.only or RECIPES:
        if asked.layers == "torch" and RECIPES[name].options:
            print(f"left out: {name}, which torch.nn's layers do not have")
            continue
        found[name] = trained(asked, name, tokens, vocabulary)
        print(f"{name}: {found[name]['bits']:.3f} bits per character in {found[name]['seconds']:.1f} s", flush=True)
    (asked.out / "recipes.json").write_text(json.dumps(found, indent=1) + "\n")
    base = found.get("base", {}).get("bits")
    table = Table("recipe", "bits per character", "less the base's", "seconds", title=f"a bigram table: {bigram:.3f}")
    for name, facts in sorted(found.items(), key=lambda item: item[1]["bits"]):
        apart = f"{facts['bits'] - base:+.3f}" if base else ""
        table.add_row(name, f"{facts['bits']:.3f}", apart, f"{facts['seconds']:.1f}")
    common.console().print(table)
    draw(found, asked.out / "recipes.png")
    metrics: dict[str, Any] = {
        "bigram": round(bigram, 4),
        "bits": {name: facts["bits"] for name, facts in found.items()},
    }
    if base is None:
        return metrics, []
    metrics["base_over_bigram"] = base / bigram
    return metrics, [Threshold("base_over_bigram", "<=", 0.9)]


def main(arguments: list[str] | None = None) -> int:
    return common.run("recipes", parser(), work, arguments, quick={"characters": 150_000, "epochs": 2})


if __name__ == "__main__":
    sys.exit(main())
