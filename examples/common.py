"""Shared by the examples: command line, data, Lightning's Trainer, the folder a run writes, times and thresholds.

An example hands its parser and its work to `run`; the work calls the rest:

    def work(asked) -> tuple[dict, list[Threshold]]: ...
    def main(arguments=None) -> int:
        return common.run("name", parser(), work, arguments, quick={"epochs": 2})

`--out` then holds metrics.json (no times: the same seed writes the same file twice), times.json, plots, and what `save`
writes: weights.safetensors and model.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import lightning
import matplotlib
import pooch
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from tqdm import tqdm

import rnnkernels
from examples.arguments import fraction as fraction
from examples.arguments import parser as parser
from examples.arguments import positive as positive
from examples.streams import BadData as BadData
from examples.streams import read_text as read_text

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

LAYERS: dict[str, ModuleType] = {"torch": torch.nn, "rnnkernels": rnnkernels}


class Threshold(NamedTuple):
    """The bound that a metric must keep."""

    metric: str
    relation: str  # ">=" or "<="
    bound: float

    def holds(self, metrics: dict[str, Any]) -> bool:
        value = metrics[self.metric]
        return value >= self.bound if self.relation == ">=" else value <= self.bound


def run(
    name: str,
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], tuple[dict[str, Any], list[Threshold]]],
    arguments: list[str] | None = None,
    quick: dict[str, Any] | None = None,
    sizes: dict[str, dict[str, Any]] | None = None,
) -> int:
    """Parse, work, write metrics.json and say which thresholds hold; the exit status (2: unusable data or folder).

    `quick` are the defaults of --quick, `sizes` those of each choice of --sizes, which win; given arguments win.
    """
    asked = parser.parse_args(arguments)
    if asked.quick:
        parser.set_defaults(**(quick or {}))
    if sizes and asked.sizes:
        parser.set_defaults(**sizes[asked.sizes])
    asked = parser.parse_args(arguments)
    try:
        torch.zeros(1, device=asked.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device {asked.device}: {str(error).splitlines()[0]}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)  # Lightning's advice on workers and log intervals
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 with torch 2.13
    lightning.seed_everything(asked.seed, verbose=False)
    try:
        try:
            asked.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadData(f"--out {asked.out}: {error.strerror}") from error
        metrics, thresholds = work(asked)
    except BadData as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    if rank_zero_only.rank:  # another process of a distributed run
        return 0
    (asked.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    missed = [wanted for wanted in thresholds if not wanted.holds(metrics)]
    for wanted in thresholds:
        value = metrics[wanted.metric]
        print(f"{wanted.metric} {value:.4g}, wanted {wanted.relation} {wanted.bound:g}", end="")
        print(": missed" if wanted in missed else "")
    print(f"written: {asked.out}/")
    return 1 if missed and asked.check else 0


def progress(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """The items, with a bar on a terminal where they take longer than two seconds."""
    return tqdm(items, what, total, disable=None, delay=2, leave=False)


class Lines(Callback):
    """A line every two seconds of training, where there is no terminal for Lightning's bar."""

    def __init__(self, name: str, every: float = 2.0) -> None:
        self.name, self.every, self.last = name or "training", every, time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        if trainer.is_global_zero and time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
            loss = float(outputs["loss"])
            print(
                f"{self.name}: {epoch}, step {number + 1} of {trainer.num_training_batches}, loss {loss:.4g}",
                flush=True,
            )


def outputs(layer: nn.Module, x_BTI: Tensor, lengths_B: Tensor) -> tuple[Tensor, Any]:
    """A batch_first layer on rows of different lengths: y_BTH, zero past each length, and the last valid states."""
    if type(layer).__module__.startswith("rnnkernels"):
        return layer(x_BTI, lengths=lengths_B)
    packed = pack_padded_sequence(x_BTI, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
    y, state = layer(packed)
    return pad_packed_sequence(y, batch_first=True, total_length=x_BTI.shape[1])[0], state


def trainer(
    asked: argparse.Namespace,
    *,
    monitor: str | None = None,
    patience: int | None = None,
    max_time: timedelta | None = None,
    callbacks: tuple[Callback, ...] = (),
    name: str = "",
    **options: Any,
) -> lightning.Trainer:
    """Lightning's Trainer as `asked`. With `monitor` (less is better) the best weights are kept for `fit` to restore,
    with `patience` training stops after so many epochs without a better one, and in any case after `max_time`. `name`
    tells models of one run apart."""
    logs, checkpoints = (asked.out / kind / name for kind in ("logs", "checkpoints"))
    if not rank_zero_only.rank:  # an earlier run's
        for folder in (logs, checkpoints):
            shutil.rmtree(folder, ignore_errors=True)
    logger = CSVLogger if asked.logger == "csv" else TensorBoardLogger
    device = torch.device(asked.device)
    devices: Any = asked.processes if device.index is None else [device.index]
    terminal = sys.stderr.isatty()
    # Lightning ignores its own max_time beside a Timer
    watching: list[Callback] = [Timer(max_time), *callbacks, *([] if terminal else [Lines(name)])]
    if monitor:
        watching.append(ModelCheckpoint(checkpoints, "best", monitor=monitor, enable_version_counter=False))
    if monitor and patience:
        watching.append(EarlyStopping(monitor, patience=patience))
    return lightning.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=devices,
        strategy="ddp" if asked.processes > 1 else "auto",
        max_epochs=asked.epochs,
        logger=logger(logs, name="", version=""),
        callbacks=watching,
        enable_checkpointing=monitor is not None,
        enable_progress_bar=terminal,
        enable_model_summary=False,
        **options,
    )


def fit(trainer: lightning.Trainer, model: lightning.LightningModule, *data: Any) -> float:
    """Train, restore the best weights where they were kept, and return the seconds that training took."""
    trainer.fit(model, *data)
    timer = next(callback for callback in trainer.callbacks if isinstance(callback, Timer))
    kept = trainer.checkpoint_callback
    if kept and kept.best_model_path:
        model.load_state_dict(torch.load(kept.best_model_path, map_location="cpu", weights_only=False)["state_dict"])
    return timer.time_elapsed("train")


def one_cycle(model: lightning.LightningModule, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser whose rate rises to its own and falls to nothing over the training (Smith & Topin 2018)."""
    steps = int(model.trainer.estimated_stepping_batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps=steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def note_time(asked: argparse.Namespace, seconds: float) -> None:
    """Remember how long this run trained, and print the last run of each library's layers, if both were run."""
    if rank_zero_only.rank:
        return
    path = asked.out / "times.json"
    times = json.loads(path.read_text()) if path.exists() else {}
    ignored = ("layers", "out", "check", "load", "logger")
    settings = {key: str(value) for key, value in vars(asked).items() if key not in ignored}
    times[asked.layers] = {"seconds": seconds, "settings": settings}
    path.write_text(json.dumps(times, indent=1) + "\n")
    print(f"trained in {seconds:.1f} s with {asked.layers}'s layers")
    if len(times) == 2:
        p, q = (times[name] for name in LAYERS)
        same = "" if p["settings"] == q["settings"] else " (with other settings)"
        ratio = p["seconds"] / q["seconds"]
        print(
            f"last runs: torch {p['seconds']:.1f} s, rnnkernels {q['seconds']:.1f} s: {ratio:.2f} times as fast{same}"
        )


def earlier(asked: argparse.Namespace, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and facts of the run that --load names, of example `name`; its arguments replace those asked. Nothing
    without --load."""
    if not asked.load:
        return {}, {}
    found, facts = load(asked.load)
    if not isinstance(facts, dict) or facts.get("example") != name:
        raise BadData(f"--load {asked.load}: not a run of {name}")
    vars(asked).update(facts["arguments"])
    return found, facts


def save(folder: Path, model: nn.Module, **facts: Any) -> None:
    """Everything needed to use the model again: weights, and `facts` (arguments, vocabulary, ...) as JSON."""
    if rank_zero_only.rank:
        return
    save_file({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}, weights(folder))
    (folder / "model.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def weights(folder: Path) -> Path:
    return folder / "weights.safetensors"


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the facts that `save` wrote."""
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return load_file(weights(folder)), facts
    except FileNotFoundError as error:
        raise BadData(f"--load {folder}: no {Path(error.filename or weights(folder)).name} there") from error
    except (OSError, ValueError) as error:
        raise BadData(f"--load {folder}: {str(error).splitlines()[0]}") from error


def restore(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Give a model the weights that `load` found."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BadData(f"--load {folder}: the weights are not those of the model that model.json describes") from error


def fetch(url: str, sha256: str | None, processor: Any = None) -> Any:
    """A public file, downloaded once into pooch's cache, held to its checksum: its path, or what `processor` makes."""
    try:
        return pooch.retrieve(
            url, sha256, path=pooch.os_cache("rnnkernels"), processor=processor, progressbar=sys.stderr.isatty()
        )
    except (OSError, ValueError) as error:  # no network (requests' errors are OSErrors), or another file than expected
        raise BadData(f"{url} cannot be had ({str(error).splitlines()[0]}); name a file with --path") from error


def console() -> Console:
    """Where tables are printed: as wide as the terminal, and wide enough for them where there is none."""
    return Console(width=None if sys.stdout.isatty() else 132)


@contextmanager
def plot(path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (8, 4.5), **options: Any) -> Iterator:
    """Axes to draw on, written to a PNG file at the end."""
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", **options)
    try:
        yield axes
        for axis in figure.axes:
            if axis.get_xlabel() == "epoch":  # whole ones, also where there is one
                axis.locator_params(axis="x", integer=True, min_n_ticks=1)
        if not rank_zero_only.rank:
            figure.savefig(path, dpi=110)
    finally:
        pyplot.close(figure)
