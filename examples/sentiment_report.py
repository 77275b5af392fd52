"""Tables and plots of the sentiment example: comparison, phrases, bars, training curves, confusion and attention."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

import torch
from matplotlib.colors import to_rgba
from rich.table import Table
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
from torch import Tensor

from examples import common

Figures = dict[str, dict[str, float]]
Phrases = list[tuple[str, int]]


def comparison(found: Figures, seconds: dict[str, float]) -> Table:
    """A line per model, the best first."""
    kinds = list(
        dict.fromkeys(name[9:] for figure in found.values() for name in figure if name.startswith("accuracy_"))
    )
    table = Table("model", "parameters", "right %", *kinds, "loss", "epochs", "best", "seconds")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for model, figure in sorted(found.items(), key=lambda item: -item[1]["accuracy"]):
        shares = [f"{100 * figure[name]:.1f}" for name in ("accuracy", *(f"accuracy_{kind}" for kind in kinds))]
        epochs = [str(figure.get(key, "")) for key in ("epochs", "best_epoch")]
        time = f"{seconds[model]:.1f}" if model in seconds else ""
        table.add_row(
            model.replace("_", " "), f"{figure['parameters']:,}", *shares, f"{figure['loss']:.3f}", *epochs, time
        )
    return table


def right_and_wrong(phrases: Phrases, judged: dict[str, Tensor]) -> Table:
    """Which model is right about which phrase, and the probability of "good" that it saw."""
    table = Table("phrase", "is", *(name.replace("_of_", "\nof ") for name in judged))
    for column in table.columns[1:]:
        column.no_wrap = True
    for i, (text, label) in enumerate(phrases):
        right = (f"{'✓' if (p[i] > 0.5) == label else '[red]✗'} {p[i]:.2f}" for p in judged.values())
        table.add_row(shorten(text, 100, placeholder=" ..."), "good" if label else "bad", *right)
    return table


def bars(found: Figures, out: Path) -> None:
    """Accuracy on the test part, and on each kind of sentence where there are kinds; and the loss."""
    keys = [name for name in next(iter(found.values())) if name.startswith("accuracy")]
    names = [name.replace("_", " ") for name in found]
    with common.plot(out / "accuracy.png", 1, 2, (13, 4.5), width_ratios=(3, 1)) as (axes, right):
        width = 0.8 / len(keys)
        for k, key in enumerate(keys):
            places = [n + (k - (len(keys) - 1) / 2) * width for n in range(len(found))]
            drawn = axes.bar(
                places, [100 * figure[key] for figure in found.values()], width, label=key.replace("_", ": ")
            )
            axes.bar_label(drawn, fmt="%.0f", fontsize=7)
        axes.axhline(50, color="gray", linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(found)), names)
        axes.set(ylabel="% of test reviews right", ylim=(0, 115), title="Six models and a bag of words")
        axes.legend(ncols=len(keys), loc="upper center", fontsize=8)
        drawn = right.barh(names, [figure["loss"] for figure in found.values()], color="tab:gray")
        right.bar_label(drawn, fmt="%.3f", fontsize=7)
        right.set(xlabel="loss (nats)", title="test part")
        right.invert_yaxis()
        right.margins(x=0.2)


def curves(history: dict[str, list[dict[str, float]]], out: Path) -> None:
    """Loss and accuracy in validation and, with dropout at work, in training, by epoch."""
    with common.plot(out / "curves.png", 1, 2, (10, 4)) as (left, right):
        for n, (kind, epochs) in enumerate(history.items()):
            steps = range(1, len(epochs) + 1)
            left.plot(steps, [epoch["val_loss"] for epoch in epochs], f"C{n}o-", markersize=3, label=kind)
            left.plot(steps, [epoch["loss"] for epoch in epochs], f"C{n}--", linewidth=1)
            right.plot(steps, [100 * epoch["val_accuracy"] for epoch in epochs], f"C{n}o-", markersize=3, label=kind)
            right.plot(steps, [100 * epoch["accuracy"] for epoch in epochs], f"C{n}--", linewidth=1)
        left.set(xlabel="epoch", ylabel="loss (nats)", title="validation, and training (dashed)")
        right.set(xlabel="epoch", ylabel="% right", title="accuracy in validation, and training (dashed)")
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
        right.legend()


def confusion(labels: list[int], judged: dict[str, Tensor], out: Path) -> None:
    """A confusion matrix per model."""
    columns = min(4, len(judged))
    rows = -(-len(judged) // columns)
    with common.plot(out / "confusion.png", rows, columns, (2.6 * columns, 2.7 * rows), squeeze=False) as axes:
        for place in axes.flat[len(judged) :]:
            place.axis("off")
        for place, (name, p) in zip(axes.flat, judged.items(), strict=False):
            matrix = confusion_matrix(labels, p > 0.5, labels=[0, 1])
            drawn = ConfusionMatrixDisplay(matrix, display_labels=["bad", "good"])
            drawn.plot(ax=place, colorbar=False, cmap="Blues", im_kw={"vmin": 0})
            place.set_title(name.replace("_", " "))
            place.label_outer()


@torch.no_grad()
def attention(model: torch.nn.Module, phrases: list[tuple[Tensor, int]], words: list[list[str]], out: Path) -> None:
    """The last words of each phrase on a ground as dark as the attention to them, and what the model made of it."""
    with common.plot(out / "attention.png", size=(10, 0.42 * len(phrases) + 0.8)) as axes:
        axes.set(ylim=(len(phrases) - 0.4, -0.6), title="Attention of the LSTM to each word")
        for row, ((tokens, label), spelled) in enumerate(zip(phrases, words, strict=True)):
            device = next(model.parameters()).device
            logit, weights = model(tokens[None].to(device), torch.tensor([len(tokens)], device=device))
            weights, x = weights[0].cpu() / weights.max().cpu(), 0.0
            for word, weight in list(zip(spelled[-len(tokens) :], weights.tolist(), strict=True))[-24:]:
                width = 1.0 + 0.62 * len(word)
                axes.barh(row, width, 0.8, x, color=to_rgba("tab:orange", weight))
                axes.text(x + width / 2, row, word, ha="center", va="center", fontsize=8, family="monospace")
                x += width
            p = logit.sigmoid().item()
            verdict, colour = f"{'good' if p > 0.5 else 'bad'} ({p:.2f})", "green" if (p > 0.5) == label else "red"
            axes.text(x + 0.6, row, verdict, va="center", fontsize=8, color=colour)
            axes.update_datalim([(0, 0), (x + 9, 0)])
        axes.autoscale_view(scaley=False)
        axes.axis("off")
