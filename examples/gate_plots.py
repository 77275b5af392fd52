"""Heat maps of gates and states, step by step: as PNG, and as an HTML page with values under the pointer."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only
from plotly.graph_objects import Heatmap, Scatter
from plotly.subplots import make_subplots
from torch import Tensor

from examples import common

NAMES = {
    "f": "forget gate f",
    "i": "input gate i",
    "o": "output gate o",
    "r": "reset gate r",
    "z": "update gate z",
    "n": "candidate n",
    "c": "cell state c",
    "h": "hidden state h",
}
INVENTED = {  # over ten steps
    "f": (0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01),
    "i": (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
    "o": (0.5, 0.6, 0.7, 0.8, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65),
    "c": (0.2, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.88, 0.85, 0.82),
}
GATES = ("f", "i", "o", "r", "z")  # between 0 and 1


class Traced(NamedTuple):
    """A sequence, and its gates and states by name, (T, H) each."""

    title: str
    steps: list[str]
    planes: dict[str, Tensor]


def in_order(sequences: list[Traced]) -> tuple[list[Traced], list[int]]:
    """The same units in the same order in all, that of the first's last hidden state; and the numbers of the units."""
    order = sequences[0].planes["h"][-1].argsort(descending=True)
    return [
        sequence._replace(planes={name: sequence.planes[name][:, order] for name in NAMES if name in sequence.planes})
        for sequence in sequences
    ], order.tolist()


def colours(sequences: list[Traced], name: str) -> tuple[str, float, float]:
    """Gates from 0 to 1; states on both sides of 0, as far as all but the most extreme 2 % of their values go."""
    if name in GATES:
        return "viridis", 0.0, 1.0
    values = torch.cat([sequence.planes[name].flatten() for sequence in sequences])
    limit = max(float(values.abs().quantile(0.98)), 1e-6)
    return "RdBu_r", -limit, limit


def lengths(planes: dict[str, Tensor]) -> dict[str, list[float]]:
    """How long the state vectors are, step by step."""
    return {f"|{name}|": planes[name].norm(dim=1).tolist() for name in ("c", "h") if name in planes}


def draw(sequences: list[Traced], title: str, step: str, path: Path) -> None:
    """A column per sequence and a row per gate or state as PNG; the lengths of the states are the last row."""
    sequences, _ = in_order(sequences)
    names = list(sequences[0].planes)
    size = (sum(max(4.5, 0.14 * len(s.steps)) for s in sequences), 1.45 * len(names) + 2)
    with common.plot(path, len(names) + 1, len(sequences), size, squeeze=False, sharex="col") as axes:
        for column, sequence in zip(axes.T, sequences, strict=True):
            for place, name in zip(column, names, strict=False):
                scale, low, high = colours(sequences, name)
                image = place.imshow(
                    sequence.planes[name].T.numpy(),
                    aspect="auto",
                    cmap=scale,
                    vmin=low,
                    vmax=high,
                    interpolation="nearest",
                )
                place.set_ylabel(NAMES[name], fontsize=9)
                place.set_yticks([])
                place.figure.colorbar(image, ax=place, pad=0.01)
            for label, values in lengths(sequence.planes).items():
                column[-1].plot(values, "o-", markersize=3, label=label)
            column[-1].legend(fontsize=8, ncols=2, loc="lower left")
            column[-1].set(xlabel=step, ylabel="length", ylim=(0, None))
            turned = {"rotation": 60, "ha": "right"} if max(map(len, sequence.steps)) > 2 else {}
            column[-1].set_xticks(range(len(sequence.steps)), sequence.steps, fontsize=8, **turned)
            column[0].set_title(textwrap.fill(sequence.title, 60), fontsize=9)
        axes[0, 0].figure.suptitle(title)


def beside_invented(sequence: Traced, step: str, path: Path) -> None:
    """Three gates and the cell state of an LSTM over its first steps: the mean over all units and where four of five of
    them lie, beside the curves that a notebook on LSTM invents for the same figure."""
    with common.plot(path, 2, 2, size=(10, 6.5)) as axes:
        for place, (name, invented) in zip(axes.flat, INVENTED.items(), strict=True):
            plane_TH = sequence.planes[name][: len(invented)]
            low, high = plane_TH.quantile(torch.tensor([0.1, 0.9]), dim=1)
            steps = range(len(plane_TH))
            place.fill_between(steps, low, high, alpha=0.25, label="four of five units")
            place.plot(steps, plane_TH.mean(1), "o-", label="mean of all units")
            place.plot(invented[: len(plane_TH)], "--", color="0.5", label="invented")
            place.set_xticks(steps, sequence.steps[: len(plane_TH)], rotation=40, ha="right", fontsize=8)
            place.set(title=NAMES[name], ylim=(0, 1) if name in GATES else None)
        axes[1, 1].legend(fontsize=8)
        for place in axes[1]:
            place.set_xlabel(step)
        axes[0, 0].figure.suptitle(sequence.title, fontsize=10)


def page(sequences: list[Traced], title: str, step: str, path: Path) -> None:
    """The same as an HTML page that needs no network: the value of each unit at each step under the pointer."""
    sequences, units = in_order(sequences)
    names = list(sequences[0].planes)
    last, titles = len(names) + 1, [sequence.title for sequence in sequences]
    figure = make_subplots(last, len(sequences), shared_xaxes=True, column_titles=titles, vertical_spacing=0.015)
    for column, sequence in enumerate(sequences, 1):
        numbers = list(range(len(sequence.steps)))
        for row, name in enumerate(names, 1):
            scale, low, high = colours(sequences, name)
            heat = Heatmap(
                z=sequence.planes[name].T.tolist(),
                text=[sequence.steps] * len(units),
                customdata=[[unit] * len(numbers) for unit in units],
                hovertemplate=f"%{{text}}<br>{NAMES[name]}, unit %{{customdata}}: %{{z:.3f}}<extra></extra>",
                colorscale=scale,
                zmin=low,
                zmax=high,
                showscale=False,
            )
            figure.add_trace(heat, row, column)
            figure.update_yaxes(title_text=NAMES[name], autorange="reversed", showticklabels=False, row=row, col=column)
        for n, (label, values) in enumerate(lengths(sequence.planes).items()):
            hover = f"%{{text}}<br>{label}: %{{y:.3f}}<extra></extra>"
            style = {"line_color": ("#1f77b4", "#ff7f0e")[n], "showlegend": column == 1}
            line = Scatter(x=numbers, y=values, text=sequence.steps, hovertemplate=hover, name=label, **style)
            figure.add_trace(line, last, column)
        figure.update_xaxes(title_text=step, tickvals=numbers, ticktext=sequence.steps, row=last, col=column)
        figure.update_yaxes(title_text="length", rangemode="tozero", row=last, col=column)
    legend = {"orientation": "h", "y": -0.06}
    figure.update_layout(title_text=title, height=140 * last + 180, width=1250, font_size=11, legend=legend)
    if not rank_zero_only.rank:
        figure.write_html(path, include_plotlyjs=True)
