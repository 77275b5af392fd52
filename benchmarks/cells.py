"""Cells of one's own, on the CPU: `python -m benchmarks.cells`.

Each cell of the library as a `Recurrent`, beside the same recurrence as a loop over steps in plain torch: run as it is,
scripted by torch.jit, and compiled by torch.compile (`--compile`: minutes a cell). The loops do outside what can be
done there, the input's product with its biases. All take turns in one run, after their outputs were found equal.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import rnnkernels
from benchmarks import cli, machine
from benchmarks.measure import alternate, wall_time
from benchmarks.providers.cell_loop import loop_of
from benchmarks.rows import summed_up
from rnnkernels.cells.library import __all__ as LIBRARY

EQUAL = 2e-4  # largest difference of outputs over the largest output: loops round otherwise


@dataclass(frozen=True)
class Row:
    cell: str
    T: int
    B: int
    I: int  # noqa: E741 - the letter that the whole library uses
    H: int
    source: str

    @property
    def name(self) -> str:
        return f"{self.cell}, T {self.T}, B {self.B}, I {self.I}, H {self.H}"


OWN_SHAPES = {
    "li_gru": (400, 16, 512, 512, "SpeechBrain's CRDNN, one direction of a layer"),
    "gru_d": (48, 64, 41, 64, "PhysioNet 2012"),
    "ea_lstm": (270, 256, 5, 256, "EA-LSTM paper"),
    "leaky_rnn": (200, 32, 33, 100, "cognitive tasks"),
    "slstm": (256, 16, 256, 256, "xLSTM, a block"),
    "lif": (100, 128, 700, 128, "spoken digits in spikes"),
    "ind_rnn": (784, 32, 1, 128, "sequential MNIST"),
    "sru": (100, 32, 512, 512, "language model"),
    "min_gru": (256, 64, 64, 64, "selective copying"),
    "augru": (100, 128, 36, 36, "click-through prediction"),
}
ROWS = [
    *(Row(name, 100, 64, 50, 128, "the shape of all") for name in LIBRARY),
    *(Row(name, *shape) for name, shape in OWN_SHAPES.items()),
]


def inputs_of(row: Row, layer: rnnkernels.Recurrent) -> dict[str, torch.Tensor]:
    """The cell's extra inputs, from 0 to 1."""
    program = layer.cell.program
    found = {n: torch.rand(row.T, row.B, 1 if n in program.narrow else row.H) for n in program.step}
    return found | {n: torch.rand(row.B, row.H) for n in program.sequence}


def jobs_of(row: Row, mode: str, compiled: bool) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What is timed, by name, and how long a first call took where it compiles something."""
    torch.manual_seed(0)
    layer = rnnkernels.Recurrent(getattr(rnnkernels.cells, row.cell), row.I, row.H)
    x, inputs = torch.randn(row.T, row.B, row.I), inputs_of(row, layer)
    train = mode == "train"
    for t in (x, *inputs.values(), *layer.parameters()):
        t.requires_grad_(train)
    loop, arguments = loop_of(layer, x, inputs)
    runs = {"rnnkernels": lambda: layer(x, **inputs)[0], "loop": lambda: loop(*arguments)}
    scripted = torch.jit.script(loop)
    runs["torch.jit"] = lambda: scripted(*arguments)
    if row.cell in ("lstm", "gru", "rnn"):
        plain = getattr(rnnkernels, row.cell.upper())(row.I, row.H)
        plain.load_state_dict(layer.state_dict())
        runs["built in"] = lambda: plain(x)[0]
    if compiled:
        fast = torch.compile(loop, fullgraph=True)
        runs["torch.compile"] = lambda: fast(*arguments)

    def timed(run):
        if not train:
            return run
        leaves = [t for t in (x, *inputs.values(), *layer.parameters()) if t.requires_grad]
        return lambda: torch.autograd.grad(run().sum(), leaves, allow_unused=True)

    cold, expected = {}, None
    for name, run in runs.items():
        start = time.perf_counter()
        y = run()
        if train and name != "built in":
            timed(run)()
        cold[name] = time.perf_counter() - start
        expected = y if expected is None else expected
        if not (y - expected).abs().max() <= EQUAL * expected.abs().max():
            raise SystemExit(f"{row.name}: the output of {name} differs")
    if train and "built in" in runs:
        own = list(plain.parameters())
        built = runs.pop("built in")
        jobs = {name: timed(run) for name, run in runs.items()}
        jobs["built in"] = lambda: torch.autograd.grad(built().sum(), [x, *own])
        return jobs, cold
    return {name: timed(run) for name, run in runs.items()}, cold


def measured(row: Row, mode: str, asked: argparse.Namespace, threads: int) -> dict:
    torch.set_num_threads(threads)
    with torch.set_grad_enabled(mode == "train"):
        jobs, cold = jobs_of(row, mode, asked.compile)
        times = alternate({n: lambda k, run=run: wall_time(run, k) for n, run in jobs.items()}, asked.seconds, 3)
    found = {name: summed_up(samples) for name, samples in times.items()}
    kept = {"torch.compile": cold["torch.compile"]} if asked.compile else {}
    return {"row": row.name, "source": row.source, "mode": mode, "threads": threads, "times": found, "cold_s": kept}


def table(rows: list[dict]) -> str:
    """Markdown: our time, and for each other way its time over ours."""
    others = [n for n in ("loop", "torch.jit", "torch.compile", "built in") if any(n in r["times"] for r in rows)]
    lines = [
        "| cell | from | threads | mode | ours, ms | " + " | ".join(others) + " |",
        "|---" * (5 + len(others)) + "|",
    ]
    for r in rows:
        own = r["times"]["rnnkernels"]["seconds"]
        ratios = [f"{r['times'][n]['seconds'] / own:.2f}" if n in r["times"] else "" for n in others]
        if "torch.compile" in r["cold_s"]:
            ratios[others.index("torch.compile")] += f" (cold {r['cold_s']['torch.compile']:.0f} s)"
        cells = [r["row"], r["source"], str(r["threads"]), r["mode"], f"{own * 1e3:.2f}", *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(results: dict, out) -> None:
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    m = results["machine"]
    head = f"`{m['command']}` on {m['cpu']}; torch {m['torch']}, float32; commit {m['commit']}, {m['date']}.\n"
    head += f"Load of the machine before the run: {m['load before']}. "
    head += "Each ratio is the time of that way over ours: above 1, ours is faster.\n"
    measured = {(r["row"], r["mode"]) for r in results["rows"]}
    missing = [f"{row.name} ({mode})" for row in ROWS for mode in cli.MODES if (row.name, mode) not in measured]
    head += f"Not measured: {'; '.join(missing)}.\n" if missing else ""
    out.with_suffix(".md").write_text(f"# Cells of one's own\n\n{head}\n{table(results['rows'])}\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    p = cli.parser("cells", __doc__, 1.0, "each row")
    p.add_argument("--threads", type=cli.listed(kind=int), default=[1], help="default: 1")
    p.add_argument("--compile", action="store_true", help="torch.compile of the loop too; its first calls take minutes")
    asked = p.parse_args(arguments)
    asked.out = asked.out or cli.RESULTS / "cells-cpu"
    cli.check(p, asked)
    rows = [r for r in ROWS if not asked.only or r.cell in asked.only]
    if not rows:
        p.error(f"--only: no such cell; there are {', '.join(LIBRARY)}")
    if asked.quick:
        asked.seconds = 0.01
        rows = [Row(r.cell, 3, 2, 4, 8, r.source) for r in rows[: 1 if asked.only else len(rows)]]
    results = {"machine": machine.describe("cpu", cli.command("cells", arguments)), "rows": []}
    for row in rows:
        for threads in asked.threads:
            for mode in asked.modes:
                results["rows"].append(measured(row, mode, asked, threads))
                print(table(results["rows"][-1:]).splitlines()[-1], file=sys.stderr)
        write(results, asked.out)
    print(table(results["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
