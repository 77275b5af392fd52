"""What torch.nn's layers do not have, on the CPU: `python -m benchmarks.variants`.

Each variant of a workload beside our plain layer and beside the ways to do the same with torch.nn (split and pad at
resets, pack at lengths, a scripted loop of cells) and with Keras, alternating in one run. What is timed was right
against float64 before, with the same masks: torch.nn's, or that of our reference for what torch.nn lacks altogether.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from itertools import groupby

import torch

from benchmarks import cli, machine, report
from benchmarks.measure import alternate, wall_time
from benchmarks.providers import PROVIDERS, TORCH_DTYPES, Case
from benchmarks.providers.case import masks
from benchmarks.providers.ours import schedule_of
from benchmarks.rows import Rows, summed_up
from benchmarks.worker import Worker
from benchmarks.workloads import VARIANTS, Workload, variants

PROVIDED = ("torch", "torch_script", "keras", "rnnkernels")
ROUNDS = 5  # of each at least


def parse(arguments: list[str] | None) -> argparse.Namespace:
    p = cli.parser("variants", __doc__, 300.0, "everything")
    p.add_argument(
        "--variants", type=cli.listed(list(VARIANTS)), default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}"
    )
    p.add_argument("--threads", type=cli.listed(kind=int), default=[1], help="default: 1")
    asked = p.parse_args(arguments)
    asked.out = asked.out or cli.RESULTS / "variants-cpu"
    cli.check(p, asked)
    workloads = cli.workloads_of(p, asked, variants(list(VARIANTS)))
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


class Drawing:
    """What torch needs to draw the masks of a call, which all sides do the same way: a part of every time."""

    def __init__(self, workload: Workload, threads: int) -> None:
        self.workload, self.like = workload, torch.empty(0, dtype=TORCH_DTYPES[workload.dtype])
        torch.set_num_threads(threads)

    def time(self, calls: int) -> tuple[float, float]:
        with torch.no_grad():
            masks(self.workload, True, self.like)
            return wall_time(lambda: masks(self.workload, True, self.like), calls)


def drawing(w: Workload, mode: str, threads: int) -> dict | None:
    """How long the masks alone take, where there are any; apart from the others, who would all be slow beside it."""
    if mode == "infer" or w.variant not in ("recurrent_dropout", "zoneout"):
        return None
    with Worker(machine.cores(threads), Drawing, w, threads) as worker:
        return summed_up(alternate({"masks": partial(worker.ask, "time")}, 0.0, ROUNDS)["masks"])


def measured(w: Workload, mode: str, plain: Rows, asked: argparse.Namespace, threads: int, seconds: float) -> dict:
    with Rows(w, w.dtype, mode, asked.providers) as own:
        rounds = 3 if asked.quick else ROUNDS
        row = own.measure(threads, seconds, rounds, with_memory=w.variant == "recompute", plain=plain)
    return row | {"masks": drawing(w, mode, threads), "schedule": schedule_of(Case(w, w.dtype, mode))}


def run_all(asked: argparse.Namespace, results: dict) -> None:
    """Every row, each within its share of the time that is left.

    Checking and the fewest runs may take longer than that: after half as much time again the rest is left out, and
    named.
    """
    left, seconds = len(asked.plan) * len(asked.threads), 0.01 if asked.quick else asked.seconds
    end = time.perf_counter() + seconds
    for (base, mode), tasks in groupby(asked.plan, key=lambda task: (task[0].plain, task[1])):
        with Rows(base, base.dtype, mode, ["rnnkernels"]) as plain:
            for w, threads in [(w, threads) for w, _ in tasks for threads in asked.threads]:
                now = time.perf_counter()
                if not asked.quick and now > end + seconds / 2:
                    results["cut"].append(f"{w.name}, {w.variant}, {mode}")
                    continue
                row = measured(w, mode, plain, asked, threads, max(0.0, end - now) / left)
                results["rows"].append(row)
                left -= 1
                print(report.line(row), file=sys.stderr)
        report.write(results, asked.out)


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    described = machine.describe("cpu", cli.command("variants", arguments))
    described["peers"] = ", ".join(f"{name} {machine.version(name)}" for name in ("torch", "keras"))
    absent = {name: PROVIDERS[name].missing() for name in PROVIDED if name not in asked.providers}
    results, finished = {"machine": described, "absent": absent, "rows": [], "cut": []}, False
    try:
        run_all(asked, results)
        finished = True
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
    if not results["rows"]:
        return 1
    print(report.terminal(results["rows"]))
    if results["cut"]:
        print(f"out of time: {'; '.join(results['cut'])}")
    print(f"written: {', '.join(map(str, report.write(results, asked.out)))}")
    return 0 if finished and not report.red(results["rows"]) and not results["cut"] else 1


if __name__ == "__main__":
    sys.exit(main())
