"""A cell of one's own: GRU-D, whose memory fades with time, on visits with gaps; checked, trained, drawn.

    python -m examples.own_cell                        # GRU-D beside an LSTM
    python -m examples.own_cell --cell gru --units 48  # beside a GRU; with more units
    python -m examples.own_cell --load runs/own_cell   # the same models, judged and drawn again

Three drugs are taken at visits and leave the blood, each at its own rate: their levels fall to 1/e in 0.3, 1 and 4
hours. Visits are irregular, 3 minutes to 3 hours apart. From the doses and the gaps a network says the levels after
each visit. An LSTM gets the gap as an input and has to learn that memory fades with it. GRU-D (Che et al. 2018) is
built so: before a step, h is multiplied by gamma = exp(-relu(W gap + b)), which is learned.

torch.nn has no such layer, and a loop over its GRUCell is slow. Here the step is one Python function, `gru_d`: kernels
and derivatives follow from it. It is held against the loop first, outputs and gradients, in float64.

Mended, where papers and guides compare unfairly:
- both get the same inputs, units, steps, optimiser and seed; the LSTM has more parameters;
- levels are judged on people that training never saw, and on gaps twice as long as any in training.

Paper: Che, Purushotham, Cho, Sontag & Liu 2018, Recurrent neural networks for multivariate time series with missing
values, Scientific Reports 8.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import rnnkernels
from examples import common
from examples.common import BadData, Threshold

TIME = "about 20 s"
HOURS = (0.3, 1.0, 4.0)  # in which the level of each drug falls to 1/e
DRUGS = len(HOURS)


def faded(s, u):
    return u.gamma * s.h


@rnnkernels.cell(inputs="r z n", recurrent="r z n", step_inputs="gamma", operand=faded)
def gru_d(x, r, s, u):
    """x.g and r.g: what the input and the faded h give to gate g; s.h: the state; u.gamma: how much of it is left."""
    h = faded(s, u)
    reset, z = torch.sigmoid(x.r + r.r), torch.sigmoid(x.z + r.z)
    n = torch.tanh(x.n + reset * r.n)
    return n + z * (h - n)


def by_hand(layer: nn.Module, x_BTI: Tensor, gamma_BTH: Tensor) -> Tensor:
    """The same layer as a loop over torch's own functions: h after every step."""
    h, found = torch.zeros_like(gamma_BTH[:, 0]), []
    for x, gamma in zip(x_BTI.unbind(1), gamma_BTH.unbind(1), strict=True):
        h = gamma * h
        from_x = nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0).chunk(3, 1)
        from_h = nn.functional.linear(h, layer.weight_hh_l0, layer.bias_hh_l0).chunk(3, 1)
        reset, z = (from_x[0] + from_h[0]).sigmoid(), (from_x[1] + from_h[1]).sigmoid()
        n = (from_x[2] + reset * from_h[2]).tanh()
        h = (1 - z) * n + z * h
        found.append(h)
    return torch.stack(found, 1)


def difference() -> float:
    """The largest difference between the cell and the loop: outputs, and gradients of inputs and weights."""
    torch.manual_seed(0)
    layer = rnnkernels.Recurrent(gru_d, DRUGS + 1, 7, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 9, DRUGS + 1, dtype=torch.float64, requires_grad=True)
    gamma = torch.rand(2, 9, 7, dtype=torch.float64, requires_grad=True)
    pairs = []
    for y in (layer(x, gamma=gamma)[0], by_hand(layer, x, gamma)):
        pairs.append((y, *torch.autograd.grad(y.square().sum(), (x, gamma, *layer.parameters()))))
    return max((ours - loops).abs().max().item() for ours, loops in zip(*pairs, strict=True))


class People(NamedTuple):
    """T visits of each of N people."""

    gaps: Tensor  # (N, T, 1) hours since the visit before
    doses: Tensor  # (N, T, 3)
    levels: Tensor  # (N, T, 3) after the visit


def people(count: int, visits: int, seed: int, longest: float = 3.0) -> People:
    """Doses at two visits of five; gaps from a sixtieth of the longest on, uniform in the logarithm."""
    random = torch.Generator().manual_seed(seed)
    logs = torch.empty(count, visits, 1).uniform_(math.log(longest / 60), math.log(longest), generator=random)
    taken = torch.rand(count, visits, DRUGS, generator=random) < 0.4
    doses = torch.rand(count, visits, DRUGS, generator=random) * taken
    gaps, level, levels = logs.exp(), torch.zeros(count, DRUGS), []
    for gap, dose in zip(gaps.unbind(1), doses.unbind(1), strict=True):
        level = level * torch.exp(-gap / torch.tensor(HOURS)) + dose
        levels.append(level)
    return People(gaps, doses, torch.stack(levels, 1))


class Reader(lightning.LightningModule):
    """Levels from doses and gaps: GRU-D, or a layer without fading (`cell` of `layers`)."""

    def __init__(self, units: int, cell: str | None = None, layers: str = "rnnkernels") -> None:
        super().__init__()
        if cell is None:
            self.fading = nn.Linear(1, units)
            self.layer = rnnkernels.Recurrent(gru_d, DRUGS + 1, units, batch_first=True)
        else:
            self.layer = getattr(common.LAYERS[layers], cell.upper())(DRUGS + 1, units, batch_first=True)
        self.fades = cell is None
        self.head = nn.Linear(units, DRUGS)

    def gamma(self, gaps: Tensor) -> Tensor:
        """How much of each unit is left after a gap, (N, T, H)."""
        return torch.exp(-torch.relu(self.fading(gaps)))

    def inputs(self, gaps: Tensor, doses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the layer: x, and what GRU-D gets besides."""
        return torch.cat([doses, gaps], 2), {"gamma": self.gamma(gaps)} if self.fades else {}

    def forward(self, gaps: Tensor, doses: Tensor) -> Tensor:
        x, more = self.inputs(gaps, doses)
        return self.head(self.layer(x, **more)[0])

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        gaps, doses, levels = batch
        loss = mse_loss(self(gaps, doses), levels)
        self.log("squared_error", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        return common.one_cycle(self, torch.optim.Adam(self.parameters(), 1e-2))


@torch.no_grad()
def error(model: Reader, seen: People) -> float:
    """Root mean square error of the levels, as a share of their deviation: 1 for whoever always says the mean."""
    return ((model(seen.gaps, seen.doses) - seen.levels).square().mean().sqrt() / seen.levels.std()).item()


@torch.no_grad()
def draw(path: Path, models: dict[str, Reader], person: People) -> None:
    """One person: the levels of the first two drugs, and what GRU-D's gates do at every visit."""
    times = person.gaps.flatten().cumsum(0)
    model = models["gru_d"]
    x, more = model.inputs(person.gaps, person.doses)
    traced = {name.removesuffix("_l0"): plane[0] for name, plane in rnnkernels.trace(model.layer, x, **more).items()}
    order = model.gamma(torch.ones(1, 1, 1)).flatten().argsort()
    planes = {
        "gamma: what the gap leaves": more["gamma"][0],
        "z: what the visit leaves": traced["z"],
        "reset": traced["reset"],
    }
    with common.plot(path, 5, size=(9, 10), sharex=True) as axes:
        for axis, drug in zip(axes, range(2), strict=False):
            axis.plot(times, person.levels[0, :, drug], "k.-", label="level")
            for name, one in models.items():
                axis.plot(times, one(person.gaps, person.doses)[0, :, drug], ".--", linewidth=1, label=name)
            axis.set(ylabel=f"drug of {HOURS[drug]} h")
        axes[0].legend(loc="upper right")
        for axis, (name, plane) in zip(axes[2:], planes.items(), strict=True):
            edges = [0.0, *times.tolist()]  # a column is a visit, as wide as the gap before it
            colours = axis.pcolormesh(edges, range(plane.shape[1] + 1), plane[:, order].T.numpy(), vmin=0, vmax=1)
            axis.set(title=name, ylabel="unit")
            axis.figure.colorbar(colours, ax=axis)
        axes[-1].set(xlabel="hours")


def parser() -> argparse.ArgumentParser:
    made = common.parser("own_cell", __doc__, epochs=60)
    made.add_argument("--people", type=common.positive(int), default=256, help="to learn from (default: 256)")
    made.add_argument("--visits", type=common.positive(int), default=40, help="of each (default: 40)")
    made.add_argument("--units", type=common.positive(int), default=24, help="of both layers (default: 24)")
    return made


def work(asked: argparse.Namespace) -> tuple[dict[str, Any], list[Threshold]]:
    if asked.processes > 1:
        raise BadData("--processes: the models are too small to be shared out")
    weights, _ = common.earlier(asked, "own_cell")
    metrics: dict[str, Any] = {"difference_from_loop": difference()}
    print(f"the cell beside a loop, float64: outputs and gradients differ by {metrics['difference_from_loop']:.1e}")
    models = nn.ModuleDict()
    for name, cell in ((asked.cell, asked.cell), ("gru_d", None)):
        torch.manual_seed(asked.seed)
        models[name] = Reader(asked.units, cell, asked.layers)
    if asked.load:
        common.restore(models, weights, asked.load)
    else:
        data = TensorDataset(*people(asked.people, asked.visits, asked.seed))
        seconds = {}
        for name, model in models.items():
            lightning.seed_everything(asked.seed, verbose=False)
            trainer = common.trainer(asked, name=name, gradient_clip_val=1.0)
            seconds[name] = common.fit(trainer, model, DataLoader(data, 32, shuffle=True))
            print(f"{name}: trained in {seconds[name]:.1f} s")
        common.note_time(asked, seconds[asked.cell])
        kept = {key: vars(asked)[key] for key in ("cell", "layers", "seed", "people", "visits", "units", "epochs")}
        common.save(asked.out, models, example="own_cell", arguments=kept)
    models.cpu().eval()
    new = people(256, asked.visits, asked.seed + 1), people(256, asked.visits, asked.seed + 2, longest=6.0)
    table = Table("error of", "new people", "gaps twice as long", "parameters", title="share of the levels' deviation")
    for name, model in models.items():
        size = sum(parameter.numel() for parameter in model.parameters())
        metrics[name] = {"new": error(model, new[0]), "long_gaps": error(model, new[1]), "parameters": size}
        table.add_row(name, *(f"{metrics[name][key]:.3f}" for key in ("new", "long_gaps")), str(size))
    common.console().print(table)
    draw(asked.out / "gates.png", dict(models.items()), People(*(part[:1] for part in new[0])))
    for key in ("new", "long_gaps"):
        metrics[f"gru_d_over_other_{key}"] = metrics["gru_d"][key] / metrics[asked.cell][key]
    return metrics, [
        Threshold("difference_from_loop", "<=", 1e-12),
        Threshold("gru_d_over_other_new", "<=", 0.85),
        Threshold("gru_d_over_other_long_gaps", "<=", 0.85),
    ]


def main(arguments: list[str] | None = None) -> int:
    return common.run("own_cell", parser(), work, arguments, quick={"epochs": 20})


if __name__ == "__main__":
    sys.exit(main())
