"""Vanishing and exploding gradients: how fast they decay through RNN, LSTM and GRU, beside the largest eigenvalue.

    python -m examples.gradients
    python -m examples.gradients --cell lstm --steps 200 --hidden 128
    python -m examples.gradients --load runs/gradients --steps 300     # the same networks, no training

The gradient of a loss at the last step reaches h_t after T - t products with a Jacobian, so its norm falls or grows by
a constant factor per step, in the long run the largest eigenvalue of the Jacobian (its absolute value). Networks at
rest (no input, state zero) have one Jacobian at all steps: of an RNN it is W_hh. With input every step has another, and
the factor is the T-th root of the largest eigenvalue of their product. Written: norms.png, and training.png: an RNN of
radius 1.2 that learns to repeat the first of 30 inputs, with and without clipping. Norms are measured in float64 on the
CPU; --device, --epochs and --layers are of the training too.

Mended, against the guides:
- 0.9^t and 1.1^t are drawn there as if they were gradients: here they are measured, and fitted beside the eigenvalue;
- "clipping mends vanishing and exploding gradients": it bounds the large ones only, as the pictures show;
- a demonstration that gradients vanish whose weights (100 units, N(0, 0.5^2)) make them explode by 10^10 in 50
  steps: here with those, and with a tenth, which do vanish (demonstration.png);
- a forget bias of 1 set in bias_ih and in bias_hh is one of 2: their sum counts;
- "the LSTM does not forget": with a forget bias of 0 it forgets half of c at every step.

Bengio, Simard & Frasconi 1994, "Learning long-term dependencies with gradient descent is difficult"; Pascanu, Mikolov
& Bengio 2013, "On the difficulty of training recurrent neural networks"; Gers, Schmidhuber & Cummins 2000, "Learning to
forget". T time, H hidden.
"""

from __future__ import annotations

import argparse
import math
import sys
from types import ModuleType

import lightning
import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from examples import common
from examples.common import BadData, Threshold

TIME = "about 10 s"
INPUTS = 4
CLIP = 1.0
NETWORKS = {
    "RNN, radius 0.9": ("RNNCell", 0.9),
    "RNN, radius 1": ("RNNCell", 1.0),
    "RNN, radius 1.1": ("RNNCell", 1.1),
    "LSTM, forget bias 0": ("LSTMCell", 0.0),
    "LSTM, forget bias 1": ("LSTMCell", 1.0),
    "GRU": ("GRUCell", None),
}
LENGTHS = (50, 100, 200, 500)  # of sequences, for the gradients of parameters
TRAINED = {"radius": 1.2, "steps": 30, "rows": 32, "batches": 40}  # what is trained with and without clipping


def of_radius(matrix: Tensor, radius: float) -> Tensor:
    """The matrix, scaled so that its largest eigenvalue has this absolute value."""
    return matrix * (radius / torch.linalg.eigvals(matrix).abs().max())


@torch.no_grad()
def network(library: ModuleType, kind: str, setting: float | None, hidden: int) -> nn.Module:
    """A cell in float64, biases 0 but the LSTM's forget bias; W_hh of an RNN has the spectral radius `setting`."""
    cell = getattr(library, kind)(INPUTS, hidden).double()
    cell.bias_ih.zero_()
    cell.bias_hh.zero_()
    if kind == "RNNCell":
        cell.weight_hh.copy_(of_radius(torch.randn(hidden, hidden, dtype=torch.float64), setting))
    if kind == "LSTMCell":
        cell.bias_ih[hidden : 2 * hidden] = setting  # the gates are i, f, g, o
    return cell


def backward(
    cell: nn.Module, x_TI: Tensor, target_H: Tensor, clip: float | None = None, state: Tensor | None = None
) -> list[float]:
    """Norms of dL/dh_t from the last step to the first, for L = |h_T - target|^2 / 2; gradients of the parameters stay.

    With `clip`, dL/dh_t is shortened to this norm at every step on its way back (Graves 2013, "Generating sequences
    with recurrent neural networks", clips there too).
    """
    cell.zero_grad()
    found = []
    for x_I in x_TI:
        state = cell(x_I, state)
        h = state[0] if isinstance(state, tuple) else state
        if clip is not None:
            h.register_hook(lambda gradient: gradient * (clip / gradient.norm()).clamp(max=1))
        h.retain_grad()
        found.append(h)
    ((h - target_H).square().sum() / 2).backward()
    return [h.grad.norm().item() for h in reversed(found)]


def jacobians(cell: nn.Module, x_TI: Tensor) -> Tensor:
    """d state_{t+1} / d state_t for all steps: (T, S*H, S*H), the state of an LSTM being h and c."""
    lstm, H = isinstance(cell, nn.LSTMCell) or "LSTM" in type(cell).__name__, cell.hidden_size

    def step(state: Tensor, x_I: Tensor) -> Tensor:
        return torch.cat(cell(x_I, (state[:H], state[H:]))) if lstm else cell(x_I, state)

    states = [torch.zeros(2 * H if lstm else H, dtype=x_TI.dtype)]
    with torch.no_grad():
        for x_I in x_TI[:-1]:
            states.append(step(states[-1], x_I))
    return vmap(jacrev(step))(torch.stack(states), x_TI)


def rate(jacobians_T: Tensor) -> float:
    """The factor per step: the T-th root of the largest eigenvalue of the Jacobians' product."""
    product = torch.linalg.multi_dot(list(jacobians_T.flip(0))) if len(jacobians_T) > 1 else jacobians_T[0]
    return torch.linalg.eigvals(product).abs().max().item() ** (1 / len(jacobians_T))


def fitted(norms: list[float]) -> float:
    """The factor per step of a straight line through the logarithms, without the first fifth, where others mix in."""
    start = len(norms) // 5
    return math.exp(np.polyfit(np.arange(start, len(norms)), np.log(norms[start:]), 1)[0])


def demonstration(library: ModuleType, seed: int) -> dict[str, dict]:
    """The lecture's: 100 units without input, from a random state, W_hh drawn from N(0, s^2), 50 steps back."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for s in (0.5, 0.1, 0.05):
        W, h, target = (torch.randn(*shape, generator=generator) for shape in ((100, 100), (100,), (100,)))
        cell = network(library, "RNNCell", 1.0, 100)
        with torch.no_grad():
            cell.weight_hh.copy_(s * W)
        norms = backward(cell, torch.zeros(51, INPUTS, dtype=torch.float64), target.double(), state=h.double())
        radius = torch.linalg.eigvals(cell.weight_hh.detach()).abs().max().item()
        found[f"s = {s:g}"] = {"eigenvalue": radius, "first": norms[0], "last": norms[-1], "norms": norms}
    return found


def draw_demonstration(found: dict[str, dict], path) -> None:
    with common.plot(path) as ax:
        for name, facts in found.items():
            ax.plot(facts["norms"], label=f"{name}, largest eigenvalue {facts['eigenvalue']:.2f}")
        ax.set(
            yscale="log", xlabel="steps back", ylabel="gradient's norm", title="an RNN of 100 units, W from N(0, s²)"
        )
        ax.legend()


def measure(cell: nn.Module, x_TI: Tensor, target_H: Tensor) -> dict:
    """Everything that is said of one network."""
    rest = torch.zeros_like(x_TI)
    found = {"rest": backward(cell, rest, target_H), "driven": backward(cell, x_TI, target_H)}
    found["clipped"] = backward(cell, rest, target_H, clip=CLIP)
    found["parameters"], found["parameters_clipped"] = {}, {}
    for length in (length for length in LENGTHS if length <= len(x_TI)):
        backward(cell, rest[:length], target_H)
        # clip_grad_norm_ returns the norm before clipping.
        found["parameters"][length] = nn.utils.clip_grad_norm_(cell.parameters(), CLIP).item()
        found["parameters_clipped"][length] = nn.utils.get_total_norm([p.grad for p in cell.parameters()]).item()
    found["eigenvalue"], found["driven_eigenvalue"] = rate(jacobians(cell, rest[:1])), rate(jacobians(cell, x_TI))
    found["rate"], found["driven_rate"] = fitted(found["rest"]), fitted(found["driven"])
    return found


class Memory(lightning.LightningModule):
    """An RNN of a large spectral radius, to say at the end what the first input was."""

    def __init__(self, library: ModuleType, hidden: int) -> None:
        super().__init__()
        self.rnn = library.RNN(INPUTS, hidden, batch_first=True)
        self.head = nn.Linear(hidden, INPUTS)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(of_radius(torch.randn(hidden, hidden), TRAINED["radius"]))
        self.losses, self.norms = [], []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = mse_loss(self.head(self.rnn(batch[0])[0][:, -1]), batch[0][:, 0])
        self.losses.append(loss.item())
        return loss

    def on_before_optimizer_step(self, optimizer) -> None:  # Lightning calls it before it clips
        self.norms.append(nn.utils.get_total_norm([p.grad for p in self.parameters()]).item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(asked: argparse.Namespace, clip: float | None) -> tuple[Memory, float]:
    lightning.seed_everything(asked.seed, verbose=False)  # the same network and data for both
    model = Memory(common.LAYERS[asked.layers], asked.hidden)
    data = TensorDataset(torch.randn(TRAINED["batches"] * TRAINED["rows"], TRAINED["steps"], INPUTS))
    trainer = common.trainer(asked, name="clipped" if clip else "free", gradient_clip_val=clip)
    return model, common.fit(trainer, model, DataLoader(data, TRAINED["rows"], shuffle=True))


def draw(found: dict[str, dict], path) -> None:
    titles = {
        "rest": "no input; dashed: largest eigenvalue$^k$",
        "driven": "random input",
        "clipped": f"no input, clipped to {CLIP:g} at every step back",
        "parameters": f"parameters; dashed: after clip_grad_norm_({CLIP:g})",
    }
    with common.plot(path, 2, 2, size=(8, 6.2)) as axes:
        for ax, (key, title) in zip(axes.flat, titles.items(), strict=True):
            for n, (name, facts) in enumerate(found.items()):
                color = f"C{n}"
                if key == "parameters":
                    ax.plot(*zip(*facts[key].items(), strict=True), "o-", color=color, label=name)
                    ax.plot(*zip(*facts["parameters_clipped"].items(), strict=True), ".--", color=color)
                    continue
                ax.plot(facts[key], color=color, label=name)
                if key == "rest":
                    middle = len(facts[key]) // 2
                    line = [facts[key][middle] * facts["eigenvalue"] ** (k - middle) for k in range(len(facts[key]))]
                    ax.plot(line, "--", color="black", linewidth=0.8)
            ax.set_yscale("log")
            if key != "parameters":
                ax.set_ylim(bottom=1e-32)
            ax.set_title(title, fontsize=10)
            ax.set_ylabel("gradient's norm" if key == "parameters" else "norm of $∂L/∂h_{T-k}$")
            ax.set_xlabel("length T of the sequence" if key == "parameters" else "steps back k")
        axes[1, 1].legend(fontsize=7)


def draw_training(curves: dict[str, dict[str, list[float]]], path) -> None:
    with common.plot(path, 1, 2, size=(11, 4)) as axes:
        for ax, (key, title) in zip(
            axes, {"norms": "gradient's norm before clipping", "losses": "loss"}.items(), strict=True
        ):
            for name, curve in curves.items():
                ax.plot(curve[key], label=name, linewidth=1)
            ax.set(yscale="log", xlabel="training step", title=title)
        axes[0].legend()


def show(found: dict[str, dict]) -> None:
    table = Table("network", title="factor per step back")
    for column in ("eigenvalue at rest", "fitted", "eigenvalue with input", "fitted"):
        table.add_column(column, justify="right")
    for name, facts in found.items():
        table.add_row(
            name, *(f"{facts[key]:.4f}" for key in ("eigenvalue", "rate", "driven_eigenvalue", "driven_rate"))
        )
    common.console().print(table)


def parser() -> argparse.ArgumentParser:
    made = common.parser("gradients", __doc__, epochs=10, cells=("all", "rnn", "lstm", "gru"))
    made.add_argument("--hidden", type=common.positive(int), default=64, help="default: %(default)s")
    made.add_argument("--steps", type=int, default=500, help="back, 50 to 500 (default: %(default)s)")
    return made


def work(asked: argparse.Namespace) -> tuple[dict, list[Threshold]]:
    if not 50 <= asked.steps <= 500:
        raise BadData(f"--steps {asked.steps}: 50 to 500 are wanted")
    library = common.LAYERS[asked.layers]
    weights, facts = common.load(asked.load) if asked.load else ({}, {})
    if asked.load and "networks" not in facts:
        raise BadData(f"--load {asked.load}: a model of another example")
    hidden, seed = facts.get("hidden", asked.hidden), facts.get("seed", asked.seed)
    lightning.seed_everything(seed, verbose=False)
    names = facts.get("networks") or [name for name in NETWORKS if asked.cell in ("all", name.split(",")[0].lower())]
    cells = nn.ModuleList(network(library, *NETWORKS[name], hidden) for name in names)
    x_TI = torch.randn(500, INPUTS, dtype=torch.float64)[: asked.steps]
    target_H = torch.randn(hidden, dtype=torch.float64) / math.sqrt(hidden)
    if asked.load:
        cells.load_state_dict(weights)
    pairs = common.progress(zip(names, cells, strict=True), "networks", len(names))
    found = {name: measure(cell, x_TI, target_H) for name, cell in pairs}
    show(found)
    draw(found, asked.out / "norms.png")
    shown = demonstration(library, seed)
    draw_demonstration(shown, asked.out / "demonstration.png")
    for name, one in shown.items():
        print(f"100 units, W from N(0, s²), {name}: 50 steps back from {one['first']:.1e} to {one['last']:.1e}")

    curves = facts.get("training") or {}
    if not asked.load:
        seconds = 0.0
        for name, clip in {"without clipping": None, f"clipped to {CLIP:g}": CLIP}.items():
            model, took = train(asked, clip)
            curves[name], seconds = {"losses": model.losses, "norms": model.norms}, seconds + took
        common.note_time(asked, seconds)
        common.save(asked.out, cells, hidden=hidden, seed=seed, networks=names, training=curves)
    draw_training(curves, asked.out / "training.png")
    free, clipped = (float(np.mean(curve["losses"][-TRAINED["batches"] :])) for curve in curves.values())
    print(f"loss of the last {TRAINED['batches']} steps: {free:.3g} without clipping, {clipped:.3g} with")

    metrics = {
        "rates": {name: [facts["eigenvalue"], facts["rate"]] for name, facts in found.items()},
        "largest_error_of_rate": max(abs(facts["rate"] / facts["eigenvalue"] - 1) for facts in found.values()),
        "driven_rates": {name: [facts["driven_eigenvalue"], facts["driven_rate"]] for name, facts in found.items()},
        "demonstration": {name: one["last"] / one["first"] for name, one in shown.items()},
        "loss_without_clipping": free if math.isfinite(free) else None,
        "loss_with_clipping": clipped,
    }
    return metrics, [Threshold("largest_error_of_rate", "<=", 0.02)]


def main(arguments: list[str] | None = None) -> int:
    return common.run("gradients", parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
