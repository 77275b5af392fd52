"""Paint digits stroke by stroke: two LSTMs, one that looks and one that paints on a canvas, after DRAW.

    python -m examples.paint
    python -m examples.paint --strokes 1             # the whole picture at once: a variational autoencoder
    python -m examples.paint --load runs/paint

A picture in, a picture out, and a sequence in between (Gregor et al. 2015, "DRAW: a recurrent neural network for image
generation", here without its attention). At each stroke the encoder sees the picture and what the canvas still lacks,
and says in a few noisy numbers z what to do; the decoder reads them and adds to the canvas. Trained is the bound on
the likelihood (Kingma & Welling 2014): the cost of the pixels given the canvas, and of z beside a standard normal. To
paint something new, z is drawn from that normal, and the encoder is not needed: the decoder is then one layer that
reads a sequence, z by z.

Mended: the guides name this use, and show pictures at best. Here the bound is judged in nats per picture, on pictures
that were not trained on, beside what pixels cost that know nothing of each other.

B batch, S strokes, P pixels, Z numbers of a stroke, H hidden.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_only
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from examples import common

TIME = "about 30 s"
SIDE = 8
PIXELS = SIDE * SIDE


class Painter(lightning.LightningModule):
    """Encoder and decoder. The decoder is a layer of one step while it paints after a picture, which the encoder sees
    change; and a layer over all strokes when it paints alone."""

    def __init__(self, library: Any, cell: str, hidden: int, numbers: int, strokes: int) -> None:
        super().__init__()
        layer = getattr(library, cell.upper())
        self.strokes, self.numbers = strokes, numbers
        self.encoder = layer(2 * PIXELS + hidden, hidden, batch_first=True)
        self.decoder = layer(numbers, hidden, batch_first=True)
        self.idea = nn.Linear(hidden, 2 * numbers)  # mean of z, and the logarithm of its deviation
        self.stroke = nn.Linear(hidden, PIXELS)
        self.first = nn.Parameter(torch.zeros(PIXELS))  # the empty canvas

    def forward(self, x_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the canvas after the last stroke, (B, P), and the cost of all z, (B,)."""
        canvas = self.first.expand_as(x_BP)
        y_B1H, looking, painting, cost = x_BP.new_zeros(len(x_BP), 1, self.stroke.in_features), None, None, 0.0
        for _ in range(self.strokes):
            seen = torch.cat([x_BP, x_BP - canvas.sigmoid()], 1)[:, None]
            idea, looking = self.encoder(torch.cat([seen, y_B1H], 2), looking)
            mean, log_deviation = self.idea(idea).chunk(2, -1)
            z_B1Z = mean + log_deviation.exp() * torch.randn_like(mean)
            cost = cost + (0.5 * (mean.square() + (2 * log_deviation).exp() - 1) - log_deviation).sum((1, 2))
            y_B1H, painting = self.decoder(z_B1Z, painting)
            canvas = canvas + self.stroke(y_B1H)[:, 0]
        return canvas, cost

    def bound(self, x_BP: Tensor) -> Tensor:
        """Nats per picture."""
        canvas, cost = self(x_BP)
        return binary_cross_entropy_with_logits(canvas, x_BP, reduction="none").sum(1).add(cost).mean()

    @torch.no_grad()
    def paint(self, z_BSZ: Tensor) -> Tensor:
        """The canvas after each stroke, (B, S, P), from 0 to 1."""
        return (self.first + self.stroke(self.decoder(z_BSZ)[0]).cumsum(1)).sigmoid()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = self.bound(batch[0])
        self.log("train_bound", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_bound", self.bound(batch[0]), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        return common.one_cycle(self, torch.optim.Adam(self.parameters(), 4e-3))


def pictures(seed: int) -> list[Tensor]:
    """To train, to validate and to judge: scikit-learn's digits, (N, 64), from 0 to 1."""
    data = load_digits()
    rest, test = train_test_split(data.images, test_size=0.2, stratify=data.target, random_state=seed)
    train, validation = train_test_split(rest, test_size=0.1, random_state=seed)
    return [torch.from_numpy(part).float().flatten(1) / 16 for part in (train, validation, test)]


def draw(path, canvases_BSP: Tensor) -> None:
    """A row per painting, from the first stroke to the last."""
    rows, strokes = canvases_BSP.shape[:2]
    with common.plot(path, rows, strokes, (strokes, 1.05 * rows), squeeze=False) as axes:
        for place, canvas in zip(axes.flat, canvases_BSP.flatten(0, 1), strict=True):
            place.imshow(canvas.view(SIDE, SIDE).numpy(), cmap="gray_r", vmin=0, vmax=1)
            place.set(xticks=[], yticks=[])
        for n in range(strokes):
            axes[-1, n].set_xlabel(n + 1)


def parser() -> argparse.ArgumentParser:
    made = common.parser("paint", __doc__, epochs=120)
    made.add_argument("--strokes", type=common.positive(int), default=8, help="of a picture (default: %(default)s)")
    made.add_argument("--hidden", type=common.positive(int), default=96, help="units (default: %(default)s)")
    made.add_argument("--numbers", type=common.positive(int), default=6, help="of a stroke (default: %(default)s)")
    return made


def work(asked: argparse.Namespace) -> tuple[dict[str, Any], list[common.Threshold]]:
    weights, _ = common.earlier(asked, "paint")
    train, validation, test = pictures(asked.seed)
    model = Painter(common.LAYERS[asked.layers], asked.cell, asked.hidden, asked.numbers, asked.strokes)
    if asked.load:
        common.restore(model, weights, asked.load)
    else:
        loaders = DataLoader(TensorDataset(train), 64, shuffle=True), DataLoader(TensorDataset(validation), 200)
        trainer = common.trainer(asked, monitor="val_bound", gradient_clip_val=5.0)
        common.note_time(asked, common.fit(trainer, model, *loaders))
        kept = {key: vars(asked)[key] for key in ("cell", "hidden", "numbers", "strokes", "seed")}
        common.save(asked.out, model, example="paint", arguments=kept)
    if rank_zero_only.rank:  # another process of a distributed run has no more to do
        return {}, []
    model.cpu().eval()
    torch.manual_seed(asked.seed)
    with torch.no_grad():
        bound = model.bound(test).item()
        means = train.mean(0).clamp(1e-3, 1 - 1e-3).expand_as(test)
        alone = binary_cross_entropy(means, test, reduction="none").sum(1).mean().item()
        least = binary_cross_entropy(test, test, reduction="none").sum(1).mean().item()
    draw(asked.out / "strokes.png", model.paint(torch.randn(8, asked.strokes, asked.numbers)))
    metrics = {"bound": round(bound, 4), "pixels_alone": round(alone, 4), "pixels_known": round(least, 4)}
    metrics["saved"] = round((alone - bound) / (alone - least), 4)
    print(
        f"{len(test)} new pictures: {bound:.2f} nats each at most; pixels alone {alone:.2f}, pixels known {least:.2f}"
    )
    return metrics, [common.Threshold("saved", ">=", 0.15)]


def main(arguments: list[str] | None = None) -> int:
    return common.run("paint", parser(), work, arguments, quick={"epochs": 40})


if __name__ == "__main__":
    sys.exit(main())
