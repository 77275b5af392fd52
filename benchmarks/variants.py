"""What torch.nn's layers do not have, on the CPU: `python -m benchmarks.variants`.

Each variant of a workload beside our plain layer and beside the ways to do the same with torch.nn (split and pad at
resets, pack at lengths, a scripted loop of cells) and with Keras, alternating in one run. What is timed was right
against float64 before, with the same masks: torch.nn's, or that of our reference for what torch.nn lacks altogether.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import groupby

import torch

from benchmarks import cli, machine
from benchmarks.measure import Subject
from benchmarks.providers import PROVIDERS, TORCH_DTYPES, Case, Job
from benchmarks.providers.case import masks
from benchmarks.providers.ours import schedule_of
from benchmarks.rows import Rows
from benchmarks.rows import measured as measured_apart
from benchmarks.workloads import VARIANTS, Workload, variants

PROVIDED = ("torch", "torch_script", "keras", "rnnkernels")
ROUNDS = 5  # of each at least


def parse(arguments: list[str] | None) -> argparse.Namespace:
    p = cli.parser("variants", __doc__, 300.0, "everything")
    known = list(VARIANTS)
    p.add_argument("--variants", type=cli.listed(known), default=known, help=f"of {', '.join(known)}")
    p.add_argument("--threads", type=cli.listed(kind=int), default=[1], help="default: 1")
    asked = p.parse_args(arguments)
    cli.check(p, asked, "variants-cpu")
    workloads = cli.workloads_of(p, asked, variants(known))
    asked.plan = planned([w for w in workloads if w.variant in asked.variants], asked.modes)
    if not asked.plan:
        p.error("--variants: reset_after=False is for workloads with a GRU, recompute for training")
    asked.providers = [name for name in PROVIDED if not PROVIDERS[name].missing()]
    return asked


def planned(workloads: list[Workload], modes: tuple[str, ...]) -> list[tuple[Workload, str]]:
    """The rows, those of one plain workload together. What decides what training keeps has none in inference."""
    return [
        (w, mode) for plain in dict.fromkeys(w.plain for w in workloads) for mode in modes for w in workloads
        if w.plain == plain and (w.variant != "recompute" or mode == "train")
    ]  # fmt: skip


class Drawing(Subject):
    """What torch needs to draw the masks of a call, which all sides do the same way: a part of every time."""

    def _admitted(self, truth: None, with_memory: bool) -> dict:
        like = torch.empty(0, dtype=TORCH_DTYPES[self.dtype])
        self.job = Job(lambda: masks(self.workload, True, like), lambda drawn: {})
        return {}


def drawing(w: Workload, mode: str, threads: int) -> dict | None:
    """How long the masks alone take, where there are any; apart from the others, who would all be slow beside it."""
    if mode == "infer" or w.variant not in ("recurrent_dropout", "zoneout"):
        return None
    asked = {"masks": ((Drawing, None, w, w.dtype, mode, threads), (None,))}
    return measured_apart(asked, threads, 0.0, ROUNDS)["masks"]


def measured(w: Workload, mode: str, plain: Rows, asked: argparse.Namespace, threads: int, seconds: float) -> dict:
    with Rows(w, w.dtype, mode, asked.providers) as own:
        rounds = 3 if asked.quick else ROUNDS
        row = own.measure(threads, seconds, rounds, with_memory=w.variant == "recompute", plain=plain)
    return row | {"masks": drawing(w, mode, threads), "schedule": schedule_of(Case(w, w.dtype, mode))}


def all_rows(asked: argparse.Namespace, cut: list[str]) -> Iterator[dict]:
    """Every row, each within its share of the time that is left.

    Checking and the fewest runs may take longer than that: after half as much time again the rest is left out, and
    named in ``cut``.
    """
    left, seconds = len(asked.plan) * len(asked.threads), 0.01 if asked.quick else asked.seconds
    end = time.perf_counter() + seconds
    for (base, mode), tasks in groupby(asked.plan, key=lambda task: (task[0].plain, task[1])):
        with Rows(base, base.dtype, mode, ["rnnkernels"]) as plain:
            for w, threads in [(w, threads) for w, _ in tasks for threads in asked.threads]:
                now = time.perf_counter()
                if not asked.quick and now > end + seconds / 2:
                    cut.append(f"{w.name}, {w.variant}, {mode}")
                    continue
                yield measured(w, mode, plain, asked, threads, max(0.0, end - now) / left)
                left -= 1


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    described = machine.describe("cpu", cli.command("variants", arguments), ("torch", "keras"))
    absent = {name: PROVIDERS[name].missing() for name in PROVIDED if name not in asked.providers}
    results = {"machine": described, "absent": absent, "rows": [], "cut": []}
    total = len(asked.plan) * len(asked.threads)
    return cli.carried_out(results, asked.out, all_rows(asked, results["cut"]), total)


if __name__ == "__main__":
    sys.exit(main())
