"""Compare RNN, LSTM and GRU, of torch.nn and of rnnkernels: parameters, time of 100 calls, memory.

    python -m examples.compare                     # both libraries, all cells: 50 -> 128 -> 10, batch 64, 100 steps
    python -m examples.compare --cell gru --layers rnnkernels --batch 1 --epochs 1000

An epoch is here one forward pass and one training step of every model (100, as in the guides). Written to --out:
compare.json (the table) and compare.png; metrics.json has the numbers that do not depend on the machine: parameters,
and the differences between the two libraries' results. With --load DIR the table of an earlier run is shown again.

Mended, against the guides' benchmark:
- no warm-up: the first call loads libraries and sets up threads (torch.utils.benchmark calls first, then counts);
- a mean over one long loop per model, so that a disturbance hits one model only: here the models take turns, ten times,
  and the median turn counts;
- forward passes only, with autograd recording them: here inference without gradients, and whole training steps apart;
- on a GPU, a clock stopped before the work is done: torch.utils.benchmark waits;
- the textbooks' count of parameters has one bias per gate; torch.nn has two, which the formula below says.

Elman 1990, "Finding structure in time"; Hochreiter & Schmidhuber 1997, "Long short-term memory"; Cho et al. 2014,
"Learning phrase representations using RNN encoder-decoder".
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from rich.table import Table
from torch.utils.benchmark import Timer

from examples import common
from examples.common import BadData, Threshold
from examples.footprint import CLASSES, HIDDEN, INPUTS, Job, measured

TIME = "about 35 s"
CELLS = ("RNN", "LSTM", "GRU")
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
TURNS = 10
COLORS = {"torch": "tab:orange", "rnnkernels": "tab:blue"}


def formula(cell: str) -> int:
    """Parameters: per gate W_ih (H x I), W_hh (H x H) and two biases (H); then the linear layer with its bias."""
    return GATES[cell] * (HIDDEN * INPUTS + HIDDEN * HIDDEN + 2 * HIDDEN) + CLASSES * HIDDEN + CLASSES


def timed(jobs: dict[tuple[str, str], Job], mode: str, calls: int) -> dict[tuple[str, str], float]:
    """Seconds that so many calls take: the jobs take turns, and of each job the median turn counts."""
    turns = min(TURNS, calls)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in jobs}
    timers = {
        key: Timer("call()", globals={"call": getattr(job, mode)}, num_threads=torch.get_num_threads())
        for key, job in jobs.items()
    }
    for _ in common.progress(range(turns), mode):
        for key, timer in timers.items():
            seconds[key].append(timer.timeit(max(1, calls // turns)).mean)
    return {key: calls * torch.tensor(found, dtype=torch.float64).median().item() for key, found in seconds.items()}


def measure(asked: argparse.Namespace) -> list[dict]:
    """A row per model."""
    cells = CELLS if asked.cell == "all" else (asked.cell.upper(),)
    libraries = common.LAYERS if asked.layers == "both" else (asked.layers,)
    jobs = {
        (name, cell): Job(common.LAYERS[name], cell, asked.batch, asked.steps, asked.seed, asked.device)
        for cell in cells
        for name in libraries
    }
    logits = {key: job.forward() for key, job in jobs.items()}
    rows = []
    for (name, cell), job in jobs.items():
        rows.append({"layers": name, "cell": cell, "parameters": sum(p.numel() for p in job.model.parameters())})
        rows[-1]["difference"] = (
            (logits[name, cell] - logits.get(("torch", cell), logits[name, cell])).abs().max().item()
        )
    seconds = {mode: timed(jobs, mode, asked.epochs) for mode in ("forward", "train")}
    for row in common.progress(rows, "memory"):
        key = row["layers"], row["cell"]
        held = measured(*key, asked.batch, asked.steps, asked.device)
        for mode in held:
            row[f"{mode}_seconds"], row[f"{mode}_bytes"] = seconds[mode][key], held[mode]
    return rows


def show(rows: list[dict], facts: dict) -> None:
    shape = f"{INPUTS}→{HIDDEN}→{CLASSES}, batch {facts['batch']}, {facts['steps']} steps"
    table = Table("cell", "layers", title=f"{shape}; times of {facts['epochs']} calls, memory of one")
    for name in ("gates", "states", "parameters", "forward", "memory", "training", "memory"):
        table.add_column(name, justify="right")
    for row in rows:
        gates, states = GATES[row["cell"]] - 1, "h, c" if row["cell"] == "LSTM" else "h"  # one block is a candidate's
        shown = [row["cell"], row["layers"], str(gates), states, f"{row['parameters']:,}"]
        for mode in ("forward", "train"):
            held = row[f"{mode}_bytes"]
            shown += [f"{row[f'{mode}_seconds']:.2f} s", "?" if held is None else f"{held / 2**20:.1f} MiB"]
        table.add_row(*shown)
    common.console().print(table)


def draw(rows: list[dict], facts: dict, path) -> None:
    calls = facts["epochs"]
    panels = (
        ("forward_seconds", 1, f"{calls} forward passes, s"),
        ("train_seconds", 1, f"{calls} training steps, s"),
        ("train_bytes", 2**20, "memory of a training step, MiB"),
    )
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    names = list(dict.fromkeys(row["layers"] for row in rows))
    with common.plot(path, 1, 3, size=(11, 3.8)) as axes:
        for ax, (key, unit, title) in zip(axes, panels, strict=True):
            for n, name in enumerate(names):
                heights = [(row[key] or 0) / unit for row in rows if row["layers"] == name]
                places = [place + 0.4 * n for place in range(len(cells))]
                bars = ax.bar(places, heights, 0.38, label=name, color=COLORS[name])
                ax.bar_label(bars, fmt="%.2f" if unit == 1 else "%.0f", fontsize=8)
            ax.set(
                title=title, xticks=[place + 0.2 * (len(names) - 1) for place in range(len(cells))], xticklabels=cells
            )
            ax.margins(y=0.12)
        axes[0].legend()


def read_table(folder) -> dict:
    """The table of an earlier run."""
    path = folder / "compare.json"
    try:
        found = json.loads(common.read_text(path))
    except ValueError as error:
        raise BadData(f"{path}: {error}") from error
    if not isinstance(found, dict) or not found.get("rows"):
        raise BadData(f"{path}: no table of this example")
    return found


def parser() -> argparse.ArgumentParser:
    made = common.parser("compare", __doc__, epochs=100, cells=("all", "rnn", "lstm", "gru"))
    made.set_defaults(layers="both")
    made.add_argument("--batch", type=common.positive(int), default=64, help="rows (default: %(default)s)")
    made.add_argument("--steps", type=common.positive(int), default=100, help="of a row (default: %(default)s)")
    return made


def work(asked: argparse.Namespace) -> tuple[dict, list[Threshold]]:
    if asked.processes > 1:
        raise BadData("--processes: the comparison is of one process")
    if asked.load:
        found = read_table(asked.load)
    else:
        found = {"epochs": asked.epochs, "batch": asked.batch, "steps": asked.steps, "rows": measure(asked)}
    (asked.out / "compare.json").write_text(json.dumps(found, indent=1) + "\n")
    rows = found["rows"]
    show(rows, found)
    draw(rows, found, asked.out / "compare.png")
    if not asked.load:
        for name in dict.fromkeys(row["layers"] for row in rows):
            seconds = sum(row["train_seconds"] for row in rows if row["layers"] == name)
            common.note_time(argparse.Namespace(**{**vars(asked), "layers": name}), seconds)
    metrics = {f"parameters_{row['cell'].lower()}": row["parameters"] for row in rows}
    metrics["parameters_besides_formula"] = max(abs(row["parameters"] - formula(row["cell"])) for row in rows)
    metrics["difference_of_logits"] = max(row["difference"] for row in rows)
    return metrics, [Threshold("parameters_besides_formula", "<=", 0), Threshold("difference_of_logits", "<=", 1e-5)]


def main(arguments: list[str] | None = None) -> int:
    return common.run("compare", parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
