"""What torch.nn's layers do not have, on the CPU: `python -m benchmarks.variants`.

Each variant of a workload beside our plain layer and beside the ways to do the same with torch.nn (split and pad at
resets, pack at lengths, a scripted loop of cells) and with Keras, alternating in one run. What is timed was right
against float64 before, with the same masks: torch.nn's, or that of our reference for what torch.nn lacks altogether.
Writes JSON and Markdown (benchmarks/variants_report.py).
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import Progress

from benchmarks import machine, report, variants_report
from benchmarks.measure import alternate, wall_time
from benchmarks.providers import PROVIDERS, TORCH_DTYPES, Case
from benchmarks.providers.case import masks
from benchmarks.providers.ours import schedule_of
from benchmarks.rows import Rows, derive, guarded, head, summed_up
from benchmarks.run import MODES, RESULTS, listed, progress
from benchmarks.worker import Worker
from benchmarks.workloads import WORKLOADS, Workload

PLAIN = {"resets": 0.0, "packed": False, "options": ()}
# What a workload is given for each; Keras says of itself what it has.
VARIANTS: dict[str, dict[str, Any]] = {
    "reset": {"resets": variants_report.RESETS},
    "lengths": {"packed": True},
    "recurrent_dropout": {"options": (("recurrent_dropout", 0.2),)},
    "zoneout": {"options": (("zoneout", 0.1),)},
    "layer_norm": {"options": (("layer_norm", True),)},
    "reset_after=False": {"options": (("reset_after", False),)},
    variants_report.RECOMPUTE: {"options": (("recompute", True),)},
}
PROVIDED = ("torch", "torch_script", "keras", "rnnkernels")
ROUNDS = 5  # of each at least
FAMILIES = {"guide-bench": "cpu", "imdb": "cpu", "legged": "cuda", "rl-bench": "cuda"}
BATCH = {"legged": 64, "rl-bench": 32}  # of GPU workloads on the CPU: at their own, a call of a loop takes seconds


class Task(NamedTuple):
    """A row to be measured."""

    variant: str
    workload: Workload
    mode: str


def shrunk(w: Workload) -> Workload:
    """A workload as it is measured here: plain and on the CPU."""
    return replace(w, device="cpu", B=BATCH.get(w.family, w.B), **PLAIN)


def bases() -> list[Workload]:
    """The plain workloads whose variants are measured."""
    return [shrunk(w) for w in WORKLOADS if FAMILIES.get(w.family) == w.device]


def planned(workloads: list[Workload], variants: list[str], modes: tuple[str, ...]) -> dict[tuple, list[Task]]:
    """The rows of each plain workload and mode. What decides what training keeps has none in inference."""
    found: dict[tuple, list[Task]] = {}
    for w in workloads:
        fitting = [name for name in variants if name != "reset_after=False" or w.cell == "gru"]
        for mode in modes:
            these = [name for name in fitting if name != variants_report.RECOMPUTE or mode == "train"]
            if these:
                found[w, mode] = [Task(name, replace(w, **VARIANTS[name]), mode) for name in these]
    return found


class Drawing:
    """What torch needs to draw the masks of a call, which all sides do the same way: a part of every time."""

    def __init__(self, workload: Workload, dtype: str, threads: int) -> None:
        self.workload, self.like = workload, torch.empty(0, dtype=TORCH_DTYPES[dtype])
        torch.set_num_threads(threads)

    def time(self, calls: int) -> tuple[float, float]:
        with torch.no_grad():
            return wall_time(lambda: masks(self.workload, True, self.like), calls)


def drawing(task: Task, threads: int) -> dict | None:
    """How long the masks alone take, where there are any; apart from the others, who would all be slow beside it."""
    w = task.workload
    if task.mode == "infer" or not {"recurrent_dropout", "zoneout"} & set(dict(w.options)):
        return None
    with Worker(machine.cores(threads), Drawing, w, w.dtype, threads) as worker:
        return summed_up(alternate({"masks": partial(worker.ask, "time")}, 0.0, ROUNDS)["masks"])


def measured(plainly: Rows, task: Task, providers: list[str], threads: int, until: float, rounds: int) -> dict:
    """The row of a variant, with the plain layer between its runs; ``until`` is when to stop, by perf_counter."""
    w, dtype, cores = task.workload, task.workload.dtype, machine.cores(threads)
    with Rows(w, dtype, task.mode, providers, None) as own, ExitStack() as stack:
        with_memory = task.variant == variants_report.RECOMPUTE
        workers, facts = own.admitted(stack, cores, threads, with_memory)
        base, found = plainly.admitted(stack, cores, threads, with_memory)
        facts["plain"] = found["rnnkernels"]
        if "rnnkernels" in base:
            workers["plain"] = base["rnnkernels"]
        runs = {name: guarded(worker, facts[name]) for name, worker in workers.items()}
        samples = alternate(runs, max(0.0, until - time.perf_counter()), rounds)
    for name, values in samples.items():
        if "reason" not in facts[name]:
            facts[name] |= summed_up(values)
    plain = facts.pop("plain")
    row = {**head(w, dtype, task.mode, threads), "variant": task.variant, "providers": facts, "plain": plain}
    mine = facts["rnnkernels"].get("seconds")
    row["over_plain"] = mine / plain["seconds"] if mine and "seconds" in plain else None
    row["masks"], row["schedule"] = drawing(task, threads), schedule_of(Case(w, dtype, task.mode))
    return derive(row)


def run_all(asked: argparse.Namespace, results: dict, bar: Progress) -> None:
    """Every row, each within its share of the time that is left.

    Checking and the fewest runs may take longer than that: after half as much time again the rest is left out, and
    named.
    """
    plan = planned(asked.workloads, asked.variants, asked.modes)
    left = sum(map(len, plan.values()))
    end, at = time.perf_counter() + asked.seconds, bar.add_task("", total=left)
    for (w, mode), tasks in plan.items():
        with Rows(w, w.dtype, mode, ["rnnkernels"], None) as plainly:
            for task in tasks:
                bar.update(at, description=f"{w.name}, {task.variant}, {mode}")
                now = time.perf_counter()
                if not asked.quick and now > end + asked.seconds / 2:
                    results["cut"].append(f"{w.name}, {task.variant}, {mode}")
                    continue
                until = now + max(0.0, end - now) / left
                row = measured(plainly, task, asked.providers, asked.threads, until, 3 if asked.quick else ROUNDS)
                results["rows"].append(row)
                left -= 1
                bar.console.print(variants_report.line(row), soft_wrap=True, markup=False, highlight=False)
                bar.advance(at)
        write(results, asked.out)


def write(results: dict, out: Path) -> list[Path]:
    return report.write_texts(out, report.json_and(variants_report.markdown(results), results))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=__doc__.splitlines()[0])
    p.add_argument("--only", type=listed(), default=[], help=f"workloads or families of {', '.join(FAMILIES)}")
    p.add_argument("--variants", type=listed(list(VARIANTS)), default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    p.add_argument("--mode", choices=(*MODES, "both"), default="both", help="default: both")
    p.add_argument("--threads", type=int, default=1, help="default: 1")
    p.add_argument("--seconds", type=float, default=300.0, help="for everything, about (default: 300)")
    p.add_argument("--quick", action="store_true", help="few runs of each: to see that it works")
    p.add_argument("--out", type=Path, default=RESULTS / "variants-cpu", help="results without suffix")
    asked = p.parse_args(arguments)
    if not (math.isfinite(asked.seconds) and asked.seconds > 0):
        p.error(f"--seconds: not positive: {asked.seconds}")
    if asked.threads < 1 or 0 < len(machine.cores(asked.threads)) < asked.threads:
        p.error(f"--threads {asked.threads}: this process has {len(machine.cores(2**20))} cores")
    known = bases()
    asked.workloads = [w for w in known if not asked.only or {w.name, w.family} & set(asked.only)]
    if not asked.workloads:
        p.error(f"--only {','.join(asked.only)}: no such workload; there are {', '.join(w.name for w in known)}")
    asked.modes = MODES if asked.mode == "both" else (asked.mode,)
    if not planned(asked.workloads, asked.variants, asked.modes):
        p.error("--variants: reset_after=False is for workloads with a GRU, recompute for training")
    asked.providers = [name for name in PROVIDED if not PROVIDERS[name].missing()]
    asked.seconds = 0.01 if asked.quick else asked.seconds
    return asked


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    described = machine.describe("cpu", shlex.join(["python", "-m", "benchmarks.variants", *words]))
    absent = {name: PROVIDERS[name].missing() for name in PROVIDED if name not in asked.providers}
    described["peers"] = ", ".join(f"{name} {machine.version(name)}" for name in ("torch", "keras"))
    results = {"machine": described, "absent": absent, "rows": [], "cut": []}
    finished = False
    try:
        with progress() as bar:
            run_all(asked, results, bar)
        finished = True
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
    if not results["rows"]:
        return 1
    written = write(results, asked.out)
    for target in variants_report.targets(results["rows"]):
        print(f"{target.target}: {target.value}: {'reached' if target.good else 'missed'}")
    if results["cut"]:
        print(f"out of time: {'; '.join(results['cut'])}")
    print(f"written: {', '.join(map(str, written))}")
    red = [r for row in results["rows"] for r in (row["plain"], *row["providers"].values()) if r.get("red")]
    return 0 if finished and not red and not results["cut"] else 1


if __name__ == "__main__":
    sys.exit(main())
