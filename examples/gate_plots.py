"""Heat maps of gates and states, step by step: as PNG, and as an HTML page with values under the pointer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_only
from plotly.graph_objects import Heatmap, Scatter
from plotly.subplots import make_subplots
from torch import Tensor

from examples import common

NAMES = {
    "i": "input gate i",
    "f": "forget gate f",
    "o": "output gate o",
    "c": "cell state c",
    "h": "hidden state h",
    "r": "reset gate r",
    "z": "update gate z",
    "n": "candidate n",
}
GATES = ("f", "i", "o", "r", "z")  # between 0 and 1


class Traced(NamedTuple):
    """A sequence, and by name what happened at each of its steps: (T, H)."""

    title: str
    steps: list[str]
    planes: dict[str, Tensor]


def lengths(planes: dict[str, Tensor]) -> dict[str, list[float]]:
    """How long the state vectors are, step by step."""
    return {f"|{name}|": planes[name].norm(dim=1).tolist() for name in ("c", "h") if name in planes}


def draw(sequences: list[Traced], title: str, step: str, path: Path) -> None:
    """A column per sequence and a row per gate or state as PNG; the lengths of the states are the last row."""
    names = list(sequences[0].planes)
    size = (sum(max(4.5, 0.14 * len(s.steps)) for s in sequences), 1.45 * len(names) + 2)
    with common.plot(path, len(names) + 1, len(sequences), size, squeeze=False, sharex="col") as axes:
        for column, sequence in zip(axes.T, sequences, strict=True):
            for place, name in zip(column, names, strict=False):
                low, colours = (0, "viridis") if name in GATES else (-1, "RdBu_r")
                image = place.imshow(sequence.planes[name].T, aspect="auto", cmap=colours, vmin=low, vmax=1)
                place.set_ylabel(NAMES[name], fontsize=9)
                place.set_yticks([])
                place.figure.colorbar(image, ax=place, pad=0.01)
            for label, values in lengths(sequence.planes).items():
                column[-1].plot(values, "o-", markersize=3, label=label)
            column[-1].legend(fontsize=8)
            column[-1].set(xlabel=step, ylabel="length", ylim=(0, None))
            turned = {"rotation": 60, "ha": "right"} if max(map(len, sequence.steps)) > 2 else {}
            column[-1].set_xticks(range(len(sequence.steps)), sequence.steps, fontsize=8, **turned)
            column[0].set_title(sequence.title, fontsize=9)
        axes[0, 0].figure.suptitle(title)


def page(sequences: list[Traced], title: str, step: str, path: Path) -> None:
    """The same as an HTML page that needs no network: the value of each unit at each step under the pointer."""
    names = list(sequences[0].planes)
    titles = [sequence.title for sequence in sequences]
    figure = make_subplots(
        len(names) + 1, len(sequences), shared_xaxes=True, column_titles=titles, vertical_spacing=0.015
    )
    for column, sequence in enumerate(sequences, 1):
        numbers = list(range(len(sequence.steps)))
        for row, name in enumerate(names, 1):
            values = sequence.planes[name].T
            low, colours = (0, "Viridis") if name in GATES else (-1, "RdBu_r")
            figure.add_trace(
                Heatmap(
                    z=values.tolist(),
                    text=[sequence.steps] * len(values),
                    hovertemplate=f"%{{text}}<br>{NAMES[name]}, unit %{{y}}: %{{z:.3f}}<extra></extra>",
                    colorscale=colours,
                    zmin=low,
                    zmax=1,
                    showscale=False,
                ),
                row,
                column,
            )
            figure.update_yaxes(title_text=NAMES[name], row=row, col=column)
        for label, values in lengths(sequence.planes).items():
            hover = f"%{{text}}<br>{label}: %{{y:.3f}}<extra></extra>"
            line = Scatter(x=numbers, y=values, text=sequence.steps, hovertemplate=hover, name=label, showlegend=False)
            figure.add_trace(line, len(names) + 1, column)
        figure.update_xaxes(title_text=step, tickvals=numbers, ticktext=sequence.steps, row=len(names) + 1, col=column)
        figure.update_yaxes(title_text="length", rangemode="tozero", row=len(names) + 1, col=column)
    figure.update_layout(title_text=title, height=150 * (len(names) + 1) + 150, width=1200, font_size=11)
    if not rank_zero_only.rank:
        figure.write_html(path, include_plotlyjs=True)
