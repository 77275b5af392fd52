"""Models of Keras 3 run by our layers: the same outputs, from its weights, and back.

    python -m examples.keras_models                        # ten models: forecasts and reviews, as two texts have them
    python -m examples.keras_models --epochs 5 --only forecast-lstm
    python -m examples.keras_models --load runs/keras_models

Keras builds the models, with its own random weights, and trains the first one; a walk over its layers builds the same
model of torch's modules and of rnnkernels' layers (`rnnkernels.keras.load_weights`). Both read the same rows, and their
outputs stand side by side. Then ours is trained on, its weights go back into Keras (`export_weights`), and the
outputs agree again. Keras runs on torch here (KERAS_BACKEND), on whichever backend it was imported before otherwise.

Mended, against the guides:
- models of TensorFlow's notebooks are rewritten by hand for torch, with other initial weights, other gate orders and
  another GRU (Keras has two, `reset_after`): here weights are taken over, and outputs compared;
- a relu LSTM is said to be out of torch's reach: it is an argument;
- counts of parameters differ between libraries without a word: torch's layers have two biases, Keras's LSTM one.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import rnnkernels
from examples import common
from examples.common import BadData, Threshold

TIME = "about 40 s"
WINDOW, ROWS = 50, 8
STEPS = {"course": 200, "notebook": 50}  # words of a review
ACTIVATIONS = {"linear": nn.Identity, "sigmoid": nn.Sigmoid, "softmax": lambda: nn.Softmax(-1), "relu": nn.ReLU}


def keras_itself() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        raise BadData(f"Keras 3 is needed: pip install 'keras>=3.5' ({error})") from error
    return keras


def models(keras: Any) -> dict[str, Any]:
    """The models of the texts by name, built, with the texts' sizes."""
    L, found = keras.layers, {}
    for name, layers in {
        "forecast-lstm": [L.LSTM(50, activation="relu")],
        "forecast-gru": [L.GRU(50, activation="relu")],
        "forecast-stack": [L.LSTM(128, return_sequences=True), L.LSTM(64)],
    }.items():
        found[name] = keras.Sequential([keras.Input((WINDOW, 1)), *layers, L.Dense(1)])
    course = {"dropout": 0.2, "recurrent_dropout": 0.2}
    for name, layer in {
        "imdb-lstm": L.LSTM(64, **course),
        "imdb-bilstm": L.Bidirectional(L.LSTM(64, **course)),
    }.items():
        read = [keras.Input((STEPS["course"],), dtype="int32"), L.Embedding(10_000, 128)]
        found[name] = keras.Sequential([*read, layer, L.Dense(1, activation="sigmoid")])
    notebook = {"dropout": 0.3, "recurrent_dropout": 0.3}
    for name, layers in {
        "reviews-rnn": [L.SimpleRNN(128, **notebook)],
        "reviews-lstm": [L.LSTM(128, **notebook)],
        "reviews-gru": [L.GRU(128, **notebook)],
        "reviews-bilstm": [L.Bidirectional(L.LSTM(128, **notebook))],
        "reviews-stack": [L.LSTM(128, return_sequences=True, **notebook), L.LSTM(128, **notebook)],
    }.items():
        read = [keras.Input((STEPS["notebook"],), dtype="int32"), L.Embedding(1000, 100)]
        found[name] = keras.Sequential([*read, *layers, L.Dense(2, activation="softmax")])
    return found


class Imported(lightning.LightningModule):
    """A Sequential of Keras as torch's modules: embedding, recurrent layers, linear layer with its activation."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embedding: nn.Module = nn.Identity()
        self.dropouts, self.layers, features = nn.ModuleList(), nn.ModuleList(), model.input_shape[-1]
        for layer in model.layers:
            kind, config = type(layer).__name__, layer.get_config()
            if kind == "Embedding":
                weights = torch.from_numpy(layer.get_weights()[0].copy())
                self.embedding, features = nn.Embedding.from_pretrained(weights, freeze=False), weights.shape[1]
            elif kind == "Dense":
                weight, bias = (torch.from_numpy(array.copy()) for array in layer.get_weights())
                self.head = nn.Linear(*weight.shape)
                self.head.load_state_dict({"weight": weight.T, "bias": bias})
                self.activation = ACTIVATIONS[config["activation"]]()
            else:
                self.layers.append(recurrent(layer, features))
                inner = config["layer"]["config"] if kind == "Bidirectional" else config
                self.dropouts.append(nn.Dropout(inner["dropout"]))
                features = layer.output.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 1) numbers or (B, T) words to (B, outputs)."""
        y = self.embedding(x)
        for dropout, layer in zip(self.dropouts, self.layers, strict=True):
            y, state = layer(dropout(y))
        h_DBH = state[0] if isinstance(state, tuple) else state
        return self.activation(self.head(h_DBH.transpose(0, 1).flatten(1)))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-4)  # a tenth of Keras's: its moments begin anew


def recurrent(layer: Any, features: int) -> nn.Module:
    """Our layer with the settings and the weights of Keras's."""
    config, both = layer.get_config(), type(layer).__name__ == "Bidirectional"
    kind, config = (
        (config["layer"]["class_name"], config["layer"]["config"]) if both else (type(layer).__name__, config)
    )
    options = {"recurrent_dropout": config["recurrent_dropout"]}
    if kind == "SimpleRNN":
        options["nonlinearity"] = config["activation"]
    else:
        options |= {
            name: config[name] for name in ("activation", "recurrent_activation", "reset_after") if name in config
        }
    ours = {"SimpleRNN": rnnkernels.RNN, "LSTM": rnnkernels.LSTM, "GRU": rnnkernels.GRU}[kind]
    made = ours(features, config["units"], bias=config["use_bias"], batch_first=True, bidirectional=both, **options)
    return rnnkernels.keras.load_weights(made, layer)


def give_back(ours: Imported, model: Any) -> None:
    """Our weights into the model of Keras that they came from."""
    layers = iter(ours.layers)
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "Embedding":
            layer.set_weights([ours.embedding.weight.detach().numpy()])
        elif kind == "Dense":
            layer.set_weights([ours.head.weight.detach().numpy().T, ours.head.bias.detach().numpy()])
        else:
            layer.set_weights(rnnkernels.keras.export_weights(next(layers)))


def series() -> tuple[np.ndarray, np.ndarray]:
    """The sine of the course: 1000 values from 0 to 100, in windows of 50, and the value after each."""
    values = np.sin(np.linspace(0, 100, 1000)).astype("float32")
    windows = np.lib.stride_tricks.sliding_window_view(values, WINDOW + 1)
    return windows[:, :-1, None].copy(), windows[:, -1:].copy()


def rows(name: str, model: Any, seed: int) -> np.ndarray:
    """What a model reads: windows of the sine, or words drawn at random."""
    if name.startswith("forecast"):
        x = series()[0]
        return x[:: len(x) // ROWS][:ROWS]
    words = model.layers[0].input_dim
    return np.random.default_rng(seed).integers(0, words, (ROWS, model.input_shape[1]))


@torch.no_grad()
def outputs(ours: Imported, x: np.ndarray) -> np.ndarray:
    return ours.cpu().eval()(torch.from_numpy(x)).numpy()


def learned(asked: argparse.Namespace, name: str, model: Any, ours: Imported | None = None) -> None:
    """Train on the sine, one step ahead: the model of Keras, or ours."""
    x, y = series()
    if ours is None:
        model.compile(optimizer="adam", loss="mse")
        with tqdm(range(asked.epochs), desc=f"{name}: Keras trains", disable=None) as epochs:
            for _ in epochs:
                epochs.set_postfix(loss=model.fit(x, y, batch_size=32, verbose=0).history["loss"][-1])
        return
    data = DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), 32, shuffle=True)
    common.note_time(asked, common.fit(common.trainer(asked, name=name), ours, data))


def draw(path: Path, model: Any, ours: Imported) -> None:
    x, y = series()
    with common.plot(path) as axes:
        axes.plot(y[:200], "0.7", linewidth=4, label="true")
        axes.plot(model.predict(x[:200], verbose=0), label="Keras")
        axes.plot(outputs(ours, x[:200]), "--", label="rnnkernels")
        axes.set(title="one step ahead, with the weights that Keras learned", xlabel="step")
        axes.legend(loc="lower left")


def parser() -> argparse.ArgumentParser:
    made = common.parser("keras_models", __doc__, epochs=20)
    made.add_argument("--only", nargs="+", metavar="NAME", help="of the models (default: all)")
    return made


def work(asked: argparse.Namespace) -> tuple[dict[str, Any], list[Threshold]]:
    if asked.processes > 1 or asked.layers == "torch":
        raise BadData("--processes, --layers torch: Keras's models are for one process, and for rnnkernels' layers")
    weights, _ = common.earlier(asked, "keras_models")
    keras = keras_itself()
    keras.utils.set_random_seed(asked.seed)
    every = models(keras)
    if unknown := set(asked.only or ()) - set(every):
        raise BadData(f"--only {' '.join(sorted(unknown))}: there are {', '.join(every)}")
    names = [name for name in every if not asked.only or name in asked.only]
    forecasts = [name for name in names if name.startswith("forecast")]
    if forecasts and not asked.load:
        learned(asked, forecasts[0], every[forecasts[0]])
    saved = nn.ModuleDict({name: Imported(every[name]) for name in names})
    if asked.load:
        common.restore(saved, weights, asked.load)
        for name in names:
            give_back(saved[name], every[name])
    metrics: dict[str, Any] = {"parameters": {}, "parameters_of_keras": {}, "difference": {}}
    table = Table("model", "parameters: Keras", "ours", "first outputs: Keras", "ours", "largest difference")
    for name in common.progress(names, "side by side"):
        model, ours, x = every[name], saved[name], rows(name, every[name], asked.seed)
        theirs, mine = model.predict(x, verbose=0), outputs(ours, x)
        metrics["difference"][name] = float(abs(theirs - mine).max())
        metrics["parameters_of_keras"][name] = model.count_params()
        metrics["parameters"][name] = sum(parameter.numel() for parameter in ours.parameters())
        shown = (" ".join(f"{value:.5f}" for value in values[:3, 0]) for values in (theirs, mine))
        counts = (f"{metrics[key][name]:,}" for key in ("parameters_of_keras", "parameters"))
        table.add_row(name, *counts, *shown, f"{metrics['difference'][name]:.1e}")
    common.console().print(table)
    metrics["largest_difference"] = max(metrics["difference"].values())
    wanted = [Threshold("largest_difference", "<=", 2e-5)]
    if forecasts:
        name = forecasts[0]
        draw(asked.out / "forecast.png", every[name], saved[name])
        if not asked.load:
            learned(argparse.Namespace(**vars(asked) | {"epochs": 1}), name, every[name], saved[name])
            give_back(saved[name], every[name])
            x, y = series()
            theirs, mine = every[name].predict(x, verbose=0), outputs(saved[name], x)
            apart = float(abs(theirs - mine).max())
            metrics |= {"difference_after_return": apart, "mse": float(((mine - y) ** 2).mean())}
            print(f"{name}, trained on by torch and given back: outputs differ by {apart:.1e}")
            wanted += [Threshold("difference_after_return", "<=", 2e-5), Threshold("mse", "<=", 0.1)]
    common.save(asked.out, saved, example="keras_models", arguments={"only": asked.only, "seed": asked.seed})
    return metrics, wanted


def main(arguments: list[str] | None = None) -> int:
    return common.run("keras_models", parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
