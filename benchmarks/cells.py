"""Cells of one's own, on the CPU: `python -m benchmarks.cells`.

Each cell of the library as a `Recurrent`, beside the same recurrence as a loop over steps in plain torch (as it is,
scripted by torch.jit, and for the cells named by `--compile` compiled: minutes each), as `jax.lax.scan` under jit,
beside our built-in layer and beside the cell's public implementation, where these are installed. The loops do outside
what can be done there, the input's product with its biases. Each side runs in a process of its own (worker.py); it is
timed only where its output, in training dx too, was found equal to ours. Where rounding decides over hundreds of steps
which relu units pass, that is found out in float64. All take turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from itertools import product

import torch

from benchmarks import cli, machine, report
from benchmarks.measure import FLOOR, WRONG, Subject, errors, wall_time
from benchmarks.providers.case import Job
from benchmarks.providers.cell_sides import OWN, SIDES, CellCase, sides_of
from benchmarks.roofline import probe
from benchmarks.rows import measured as measured_apart
from benchmarks.tables import Reasons, ratio_text, table
from rnnkernels.cells.library import __all__ as LIBRARY

EQUAL = 1e-3  # largest difference over the largest value: loops round otherwise, and T is up to 1024
SPIKES = 5  # steps whose mean is compared where rounding can make a spike of none


@dataclass(frozen=True)
class Row:
    cell: str
    T: int
    B: int
    I: int  # noqa: E741 - the letter that the whole library uses
    H: int
    source: str
    rounds: int = 3
    L: int = 1
    D: int = 1

    @property
    def name(self) -> str:
        stack = f", L {self.L}, D {self.D}" if self.L * self.D > 1 else ""
        return f"{self.cell}, T {self.T}, B {self.B}, I {self.I}, H {self.H}{stack}"

    @property
    def streamed(self) -> int:
        """Bytes of x and y of cells without any product, else 0."""
        return 4 * self.T * self.B * (self.I + self.H) * self.cell.endswith("_given")


STREAM = "x is given, in memory"
ROWS = [
    *(Row(name, 100, 64, 50, 128, "the shape of all") for name in ("own_lstm", *LIBRARY)),
    Row("LiGRU", 400, 16, 512, 512, "SpeechBrain's CRDNN", 1, 5, 2),
    Row("li_gru", 400, 16, 512, 512, "the same, one direction of a layer", 1),
    Row("gru_d", 48, 64, 41, 64, "PhysioNet 2012"),
    Row("ea_lstm", 365, 256, 5, 256, "neuralhydrology", 1),
    Row("cfc", 32, 128, 14, 64, "ncps, irregular series"),
    Row("leaky_rnn", 2000, 32, 33, 100, "cognitive tasks, long"),
    Row("peephole_lstm", 1000, 16, 64, 128, "long sequences", 1),
    Row("slstm", 256, 16, 256, 256, "xLSTM, a block", 1),
    Row("lif", 100, 128, 700, 128, "snntorch, spoken digits"),
    Row("ind_rnn", 784, 32, 1, 128, "sequential MNIST"),
    Row("sru", 100, 32, 512, 512, "language model"),
    Row("min_gru", 1024, 32, 64, 64, "selective copying, long"),
    Row("augru", 100, 128, 36, 36, "click-through prediction"),
    Row("min_gru_given", 1024, 64, 512, 256, STREAM, 1),
    Row("sru_given", 1024, 64, 1024, 256, STREAM, 1),
    Row("ind_rnn_given", 1024, 64, 256, 256, STREAM, 1),
]


class Side(Subject):
    """One side of a row, admitted if it gives what our layer gives."""

    def __init__(self, name: str, row: Row, mode: str, threads: int) -> None:
        super().__init__(name, row, "float32", mode, threads, timer=wall_time)

    def _admitted(self, truth: None, with_memory: bool) -> dict:
        job, wrong, cold = self._compared()
        if EQUAL < wrong < WRONG:
            dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                exactly = self._compared()[1]
            finally:
                torch.set_default_dtype(dtype)
            job.run()  # JAX compiles it again after float64 was switched on
            equal = exactly <= FLOOR["float64"]
        else:
            equal = wrong <= EQUAL
        if not equal:
            return {"reason": f"differs by {wrong:.1e}", "red": True}
        self.job = job
        return {"cold_s": cold}

    def _compared(self) -> tuple[Job, float, float]:
        """A job in torch's default dtype, how far it is from ours, and the seconds until its first result."""
        with torch.inference_mode(self.mode == "infer"):
            case, start = CellCase(self.workload, self.mode), time.perf_counter()
            job = SIDES[self.provider](case)
            found = job.read(job.run())
            cold = time.perf_counter() - start
            ours = SIDES["rnnkernels"](case)
            expected = ours.read(ours.run())
        spikes = (found["y"] - expected["y"])[:SPIKES].abs().mean().item()
        return job, spikes if case.spikes else max(errors(found, expected).values()), cold


def measured(row: Row, mode: str, asked: argparse.Namespace, threads: int, roofs: dict) -> dict:
    makes = {name: (Side, name, row, mode, threads) for name in sides_of(row.cell, asked.compile)}
    subjects = {name: (make, (None,)) for name, make in makes.items()}
    facts = measured_apart(subjects, threads, asked.seconds, row.rounds)
    cold = {n: f.pop("cold_s") for n, f in facts.items() if "cold_s" in f}
    found = {"row": row.name, "source": row.source, "T": row.T, "mode": mode, "threads": threads}
    found |= {"times": {n: f for n, f in facts.items() if "seconds" in f}}
    found |= {"cold_s": {n: cold[n] for n in cold if n == "torch.compile"}}
    found |= {"reasons": {n: f for n, f in facts.items() if "reason" in f}}
    if "rnnkernels" in found["times"] and row.streamed and "bandwidth" in roofs:
        moved = row.streamed * (3 if mode == "train" else 1)
        seconds = found["times"]["rnnkernels"]["seconds"]
        found["share"] = moved / roofs["bandwidth"]["memory"][str(threads)] / seconds
    return found


def lines(rows: list[dict], reasons: Reasons) -> list[dict]:
    """A line for each row: our time, and for each other side its time over ours."""
    found = []
    for r in rows:
        times, mine = r["times"], r["times"].get("rnnkernels", {}).get("seconds")
        line = {"cell": r["row"], "from": r["source"], "threads": r["threads"], "mode": r["mode"]}
        line["ours"] = reasons.cell(r, "ours", times.get("rnnkernels") or r["reasons"].get("rnnkernels"))
        for name in list(SIDES)[1:]:
            cold = f"cold {r['cold_s'][name]:.0f} s, then " if name in r["cold_s"] else ""
            line[name] = cold + ratio_text(times[name]["seconds"] / mine) if mine and name in times else ""
            if name in r["reasons"]:
                line[name] = reasons.cell(r, name, r["reasons"][name])
        line["share of memory's bandwidth"] = f"{100 * r['share']:.0f} %" if r.get("share") else ""
        found.append(line)
    return found


HOW = """Each ratio is the time of that side over ours: above 1 ours is faster. own_lstm is an LSTM as a user writes it;
the cells named *given* have no product at all, and their share of the memory's bandwidth is that of reading x and
writing y once (in training three times: backward reads them again and dy, and writes dx)."""


def terminal(rows: list[dict]) -> str:
    return table(lines(rows, Reasons()))


def markdown(results: dict) -> str:
    reasons = Reasons()
    shown = table(lines(results["rows"], reasons))
    there = {r["row"] for r in results["rows"]}
    missing = "; ".join(row.name for row in ROWS if row.name not in there) or "nothing"
    parts = [report.heading("Cells of one's own", results["machine"]) + HOW, shown, *reasons.lines()]
    return "\n\n".join([*parts, f"Not measured: {missing}."]) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    p = cli.parser("cells", __doc__, 0.3, "each row")
    p.add_argument("--threads", type=cli.listed(kind=int), default=[1], help="default: 1")
    p.add_argument("--compile", type=cli.listed([*OWN, *LIBRARY]), default=[], help="cells whose loop it gets too")
    asked = p.parse_args(arguments)
    cli.check(p, asked, "cells-cpu")
    asked.rows = [r for r in ROWS if not asked.only or r.cell in asked.only]
    if not asked.rows:
        p.error(f"--only: no such cell; there are {', '.join(dict.fromkeys(r.cell for r in ROWS))}")
    if asked.quick:
        asked.seconds = 0.01
        small = [replace(r, T=3, B=2, I=8 * r.I // r.H if r.streamed else 4, H=8, rounds=1) for r in asked.rows]
        asked.rows = small[: 1 if asked.only else None]
    return asked


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    peers = ("jax", "speechbrain", "neuralhydrology", "ncps", "snntorch")
    described = machine.describe("cpu", cli.command("cells", arguments), peers)
    roofs = probe(asked.threads, 0.01 if asked.quick else 0.1)
    plan = list(product(asked.rows, asked.threads, asked.modes))
    rows = (measured(row, mode, asked, threads, roofs) for row, threads, mode in plan)
    results = {"machine": described, "roofs": roofs, "rows": []}
    return cli.carried_out(results, asked.out, rows, len(plan), lambda row: terminal([row]).splitlines()[-1], terminal)


if __name__ == "__main__":
    sys.exit(main())
