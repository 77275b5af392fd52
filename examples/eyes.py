"""Open or closed eyes, frame by frame, from EEG: the other half of the tagging example.

A CSV file with a header, a column per channel and the state in the last column, a row per frame, in order of time: the
EEG Eye State data (Roesler 2013, UCI) is 117 s of 14 channels. The first 60 % train, the next 15 % say when to stop,
the last 25 % are judged. Published accuracies of 95 % and more on this recording come of frames split at random: then a
frame's neighbours, a hundredth of a second away, stand in training, and finding the nearest one is enough, which
`shuffled_nearest_neighbour` shows. Split by time, the question is the one that a user would ask, and far harder;
balanced accuracy, of which a constant answer has 0.5, says how far from answered it is.

B windows, T frames of a window, C channels, H hidden.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import RobustScaler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from examples import common
from examples.common import BadData

PARTS = (0.6, 0.75)  # where training and validation end
WINDOW = 128  # frames; a second of the EEG Eye State data
STRIDE = 32  # between the starts of training windows
CLIP = 5.0  # in interquartile ranges: electrodes lose contact for single frames


class Recording(NamedTuple):
    frames_TC: np.ndarray
    state_T: np.ndarray  # 0 and 1
    names: list[str]  # of the two states


def read(path: Path) -> Recording:
    """A recording from a CSV file, or what is wrong with it."""
    header, *lines = common.read_text(path).splitlines()
    columns = len(header.split(","))
    if columns < 2:
        raise BadData(
            f"{path}: at least a channel and the state expected, separated by commas; the header is {header!r}"
        )
    rows = [line.split(",") for line in lines if line.strip()]
    for number, row in enumerate(rows, 2):
        if len(row) != columns:
            raise BadData(f"{path}, line {number}: {len(row)} columns, the header has {columns}")
    if len(rows) < 8 * WINDOW:
        raise BadData(f"{path}: {len(rows)} frames; at least {8 * WINDOW} are needed")
    try:
        frames = np.array([row[:-1] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise BadData(f"{path}: {error}") from error
    if not np.isfinite(frames).all():
        raise BadData(f"{path}, line {2 + np.flatnonzero(~np.isfinite(frames).all(1))[0]}: not a finite number")
    names, state = np.unique([row[-1].strip() for row in rows], return_inverse=True)
    if len(names) != 2:
        raise BadData(f"{path}: two states expected in column {header.split(',')[-1]!r}, found {len(names)}")
    for part, some in zip(("training", "validation", "test"), split(state), strict=True):
        if len(set(some.tolist())) < 2:
            raise BadData(f"{path}: the {part} part, by time, has one state only")
    return Recording(frames, state, names.tolist())


def split(rows: np.ndarray) -> list[np.ndarray]:
    """Training, validation and test, in this order of time."""
    return np.split(rows, [int(share * len(rows)) for share in PARTS])


def windows(frames_TC: np.ndarray, state_T: np.ndarray, stride: int) -> TensorDataset:
    starts = range(0, len(frames_TC) - WINDOW + 1, stride)
    x, y = (np.stack([rows[start : start + WINDOW] for start in starts]) for rows in (frames_TC, state_T))
    return TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))


class Eyes(lightning.LightningModule):
    """A bidirectional layer and, at each frame, one logit: many to many in step."""

    def __init__(self, library, cell: str, channels: int, hidden: int) -> None:
        super().__init__()
        self.rnn = getattr(library, cell.upper())(channels, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(2 * hidden, 1)

    def forward(self, x_BTC: Tensor) -> Tensor:
        y_BTH, _ = self.rnn(x_BTC)
        return self.head(self.dropout(y_BTH)).squeeze(-1)

    def training_step(self, batch, _) -> Tensor:
        loss = binary_cross_entropy_with_logits(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, _) -> None:
        self.log("val_loss", binary_cross_entropy_with_logits(self(batch[0]), batch[1]), prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.01)


@torch.no_grad()
def probabilities(model: Eyes, frames_TC: np.ndarray, device: str) -> np.ndarray:
    """Of the second state, for each frame; windows follow each other, the last one is shorter."""
    model = model.to(device).eval()
    cut = torch.tensor(frames_TC, dtype=torch.float32, device=device).split(WINDOW)
    return torch.cat([model(window.unsqueeze(0))[0].sigmoid() for window in cut]).cpu().numpy()


def baselines(scaled: list[np.ndarray], state: list[np.ndarray], seed: int) -> dict[str, float]:
    """The state that training shows most, models of single frames, and the flaw: neighbours in training and test."""
    constant = np.full(len(state[2]), np.bincount(state[0]).argmax())
    regression = LogisticRegression(max_iter=1000).fit(scaled[0], state[0])
    mixed = train_test_split(np.concatenate(scaled), np.concatenate(state), test_size=0.25, random_state=seed)
    nearest = KNeighborsClassifier(1).fit(mixed[0], mixed[2])
    return {
        "majority_accuracy": accuracy_score(state[2], constant),
        "majority_balanced_accuracy": balanced_accuracy_score(state[2], constant),
        "logistic_balanced_accuracy": balanced_accuracy_score(state[2], regression.predict(scaled[2])),
        "nearest_neighbour_balanced_accuracy": balanced_accuracy_score(
            state[2], KNeighborsClassifier(1).fit(scaled[0], state[0]).predict(scaled[2])
        ),
        "shuffled_nearest_neighbour": balanced_accuracy_score(mixed[3], nearest.predict(mixed[1])),
    }


def draw(p_T: np.ndarray, state_T: np.ndarray, names: list[str], path: Path) -> None:
    with common.plot(path, size=(10, 3.5)) as axis:
        axis.fill_between(range(len(state_T)), state_T, step="mid", alpha=0.3, label=f"state is {names[1]}")
        axis.plot(p_T, color="tab:red", linewidth=0.8, label=f"probability of {names[1]}")
        axis.axhline(0.5, color="black", linewidth=0.5)
        axis.set(xlabel="frame of the test part", ylim=(-0.02, 1.02), title="the last quarter of the recording")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def work(asked: argparse.Namespace, weights: dict, facts: dict) -> tuple[dict, list[common.Threshold]]:
    if asked.path is None:
        raise BadData("--data eeg needs --path FILE: a CSV of the EEG Eye State data (UCI 264, OpenML 1471) or alike")
    recording = read(asked.path)
    frames, state = split(recording.frames_TC), split(recording.state_T)
    scaler = RobustScaler().fit(frames[0])  # of training alone; quartiles, which outliers do not move
    if facts:
        scaler.center_, scaler.scale_ = (np.array(facts[name]) for name in ("center", "scale"))
        if len(scaler.center_) != frames[0].shape[1]:
            raise BadData(f"{asked.path}: {frames[0].shape[1]} channels, the model knows {len(scaler.center_)}")
    scaled = [scaler.transform(part).clip(-CLIP, CLIP) for part in frames]
    model = Eyes(common.LAYERS[asked.layers], asked.cell, scaled[0].shape[1], asked.hidden)
    if asked.load:
        common.restore(model, weights, asked.load)
    else:
        data = (
            DataLoader(windows(scaled[0], state[0], STRIDE), 32, shuffle=True),
            DataLoader(windows(scaled[1], state[1], WINDOW), 32),
        )
        trainer = common.trainer(asked, monitor="val_loss", patience=5, gradient_clip_val=1.0)
        common.note_time(asked, common.fit(trainer, model, *data))
        arguments = {name: getattr(asked, name) for name in ("data", "cell", "hidden", "seed")} | {
            "path": str(asked.path)
        }
        center, scale = scaler.center_.tolist(), scaler.scale_.tolist()
        common.save(asked.out, model, example="tagging", arguments=arguments, center=center, scale=scale)
    if rank_zero_only.rank:  # another process of a distributed run has no more to do
        return {}, []
    p_T = probabilities(model, scaled[2], asked.device)
    metrics = {
        "accuracy": accuracy_score(state[2], p_T > 0.5),
        "balanced_accuracy": balanced_accuracy_score(state[2], p_T > 0.5),
        **baselines(scaled, state, asked.seed),
    }
    metrics = {name: round(float(value), 6) for name, value in metrics.items()}
    for name, value in metrics.items():
        print(f"{name.replace('_', ' ')}: {value:.3f}")
    draw(p_T, state[2], recording.names, asked.out / "eyes.png")
    return metrics, []
