"""Read a number by glimpses: a small CNN moves over the picture, an LSTM reads what it sees, step by step.

    python -m examples.glimpses                    # composes pictures from scikit-learn's digits, as `caption` does
    python -m examples.glimpses --cell gru --stride 4
    python -m examples.glimpses --load runs/glimpses

The picture is no sequence, but it can be read like one: a window of 8 by 12 pixels moves to the right, the same CNN
looks through it at every step, and a recurrent layer says which digit it has just read, or nothing. Where a digit
begins is not told: the loss sums over all ways to say the right digits in the right order (connectionist temporal
classification, Graves et al. 2006). The likeliest word of each step, repeated ones once and without the silences, is
the number (Shi, Bai & Yao 2015, "An end-to-end trainable neural network for image-based sequence recognition").

Mended: the guides name this use and show none. The measure is whole numbers, on pictures of digits that no training
picture holds, of numbers that no training picture shows; a network of the same size that forgets between the
glimpses stands beside it, since a window of the width of a digit could do without memory.

B batch, T glimpses, V digits and silence.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_only
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import ctc_loss
from torch.utils.data import DataLoader, TensorDataset

from examples import common
from examples.caption import DIGIT, HEIGHT, Pictures, compose, new_numbers, split_digits

TIME = "about 40 s"
SILENCE, LONGEST = 0, 3  # digit d is number d + 1
VALIDATION, TEST = 500, 2000  # pictures


class Reader(lightning.LightningModule):
    """A CNN on every window, a recurrent layer (or none) over the windows, and logits of digits and silence from both:
    without the direct way from what is seen, training stays with silence for a long time."""

    def __init__(self, library: Any, cell: str | None, hidden: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.look = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (HEIGHT // 2) * (DIGIT // 2), 64),
            nn.ReLU(),
        )
        self.rnn = getattr(library, cell.upper())(64, hidden, batch_first=True) if cell else None
        self.forget = None if cell else nn.Sequential(nn.Linear(64, hidden), nn.ReLU())
        self.head = nn.Linear(64 + hidden, 11)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        """(B, T, 11)"""
        windows = pixels_BCYX.unfold(3, DIGIT, self.stride).permute(0, 3, 1, 2, 4)  # (B, T, 1, HEIGHT, DIGIT)
        seen_BTF = self.look(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        read_BTH = self.rnn(seen_BTF)[0] if self.rnn else self.forget(seen_BTF)
        return self.head(torch.cat([seen_BTF, read_BTH], -1))

    def loss(self, pixels_BCYX: Tensor, digits_BL: Tensor, lengths_B: Tensor) -> Tensor:
        logp_TBV = self(pixels_BCYX).log_softmax(-1).transpose(0, 1)
        steps_B = torch.full_like(lengths_B, len(logp_TBV))
        return ctc_loss(logp_TBV, digits_BL, steps_B, lengths_B, blank=SILENCE, zero_infinity=True)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = self.loss(*batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_loss", self.loss(*batch), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        return common.one_cycle(self, torch.optim.AdamW(self.parameters(), 3e-3))

    @torch.no_grad()
    def said(self, pixels_BCYX: Tensor) -> Tensor:
        """The likeliest at every glimpse, (B, T)."""
        return torch.cat([self(part).argmax(-1) for part in pixels_BCYX.split(256)])


def number(said: list[int]) -> str:
    """Repeated ones once, and silence left out."""
    kept = [word for word, before in zip(said, [SILENCE, *said], strict=False) if word not in (before, SILENCE)]
    return "".join(str(word - 1) for word in kept)


def dataset(pictures: Pictures) -> TensorDataset:
    """Pixels, digits (B, 3) and how many they are."""
    digits = torch.zeros(len(pictures.numbers), LONGEST, dtype=torch.int64)
    for row, value in zip(digits, pictures.numbers, strict=True):
        row[: len(str(value))] = torch.tensor([int(digit) + 1 for digit in str(value)])
    return TensorDataset(pictures.pixels_BCYX, digits, (digits > 0).sum(1))


def judge(model: Reader, pictures: Pictures, new: set[int], device: str) -> tuple[dict[str, float], list[list[int]]]:
    """Share of numbers without a flaw, of all and of those that were never trained on; and what was said."""
    said = model.to(device).eval().said(pictures.pixels_BCYX.to(device)).tolist()
    right = [number(words) == str(value) for words, value in zip(said, pictures.numbers, strict=True)]
    of_new = [hit for hit, value in zip(right, pictures.numbers, strict=True) if value in new]
    return {"right": sum(right) / len(right), "right_of_new_numbers": sum(of_new) / len(of_new)}, said


def draw(path, pictures: Pictures, said: list[list[int]], stride: int) -> None:
    """Pictures, and under each what is said at every glimpse, at the middle of its window; wrong ones in red."""
    with common.plot(path, 4, 3, size=(11, 6.5)) as axes:
        for n, axis in enumerate(axes.flat):
            axis.imshow(pictures.pixels_BCYX[n, 0].numpy(), cmap="gray_r")
            words = ["·" if word == SILENCE else str(word - 1) for word in said[n]]
            axis.set_xticks([stride * t + DIGIT / 2 - 0.5 for t in range(len(words))], words, fontsize=9)
            axis.set_yticks([])
            wrong = number(said[n]) != str(pictures.numbers[n])
            axis.set_xlabel(f"read: {number(said[n])}", color="tab:red" if wrong else "black")


def parser() -> argparse.ArgumentParser:
    made = common.parser("glimpses", __doc__, epochs=12)
    made.add_argument("--hidden", type=common.positive(int), default=64, help="units (default: %(default)s)")
    made.add_argument("--stride", type=int, choices=(1, 2, 3, 4), default=2, help="pixels of a step (default: 2)")
    made.add_argument(
        "--pictures", type=common.positive(int), default=10_000, help="to train on (default: %(default)s)"
    )
    return made


def work(asked: argparse.Namespace) -> tuple[dict[str, Any], list[common.Threshold]]:
    weights, _ = common.earlier(asked, "glimpses")
    digits = load_digits()
    of, new = split_digits(digits.target, asked.seed), new_numbers(asked.seed)
    sizes = {"train": asked.pictures, "validation": VALIDATION, "test": TEST}
    pictures = {
        part: compose(size, digits.images, digits.target, of[part], [] if part == "test" else new, 3 * asked.seed + n)
        for n, (part, size) in enumerate(sizes.items())
    }
    models = nn.ModuleDict()
    for name, cell in ((asked.cell, asked.cell), ("without_memory", None)):
        lightning.seed_everything(asked.seed, verbose=False)
        models[name] = Reader(common.LAYERS[asked.layers], cell, asked.hidden, asked.stride)
    if asked.load:
        common.restore(models, weights, asked.load)
    else:
        seconds = {}
        for name, model in models.items():
            print(f"training: {name.replace('_', ' ')}", flush=True)
            lightning.seed_everything(asked.seed, verbose=False)
            loaders = (
                DataLoader(dataset(pictures[part]), 64, shuffle=part == "train") for part in ("train", "validation")
            )
            trainer = common.trainer(asked, monitor="val_loss", name=name, gradient_clip_val=1.0)
            seconds[name] = common.fit(trainer, model, *loaders)
        common.note_time(asked, seconds[asked.cell])
        kept = {key: vars(asked)[key] for key in ("cell", "hidden", "stride", "seed")}
        common.save(asked.out, models, example="glimpses", arguments=kept)
    if rank_zero_only.rank:  # another process of a distributed run has no more to do
        return {}, []
    metrics: dict[str, Any] = {}
    for name, model in models.items():
        found, said = judge(model, pictures["test"], set(new.tolist()), asked.device)
        metrics |= {f"{name}_{key}": round(value, 6) for key, value in found.items()}
        shares = ", ".join(f"{key.replace('_', ' ')} {value:.1%}" for key, value in found.items())
        print(f"{name.replace('_', ' ')}: {shares}")
        if name == asked.cell:
            draw(asked.out / "glimpses.png", pictures["test"], said, asked.stride)
    metrics["right"] = metrics[f"{asked.cell}_right"]
    return metrics, [common.Threshold("right", ">=", 0.9)]


def main(arguments: list[str] | None = None) -> int:
    return common.run("glimpses", parser(), work, arguments, quick={"epochs": 5, "pictures": 6000})


if __name__ == "__main__":
    sys.exit(main())
