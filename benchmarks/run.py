"""Run the benchmarks: `python -m benchmarks.run --device cpu --threads 1,2`.

A table on the terminal, and JSON, Markdown and plots under benchmarks/results/. JSON and Markdown are written after
each row; `--resume` goes on with a run that was stopped. How it is timed is in benchmarks/worker.py. Likewise:

`python -m benchmarks.variants`: what torch.nn's layers do not have, each beside our plain layer, beside the ways to do
the same with torch.nn (split and pad at resets, pack at lengths, a scripted loop of cells) and beside Keras.
`python -m benchmarks.cells`: cells of one's own beside the same recurrence as a loop in plain torch (as it is,
scripted, and for the cells named by `--compile` compiled: minutes each), as `jax.lax.scan`, beside our built-in layer
and beside the cell's public implementation, where these are installed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import groupby

import torch

from benchmarks import cli, machine
from benchmarks.providers import PROVIDERS, TORCH_DTYPES, Case
from benchmarks.providers.ours import schedule_of
from benchmarks.roofline import probe
from benchmarks.rows import Rows
from benchmarks.workloads import VARIANTS, Workload, by_cell, cells, select, variants

SECONDS = {"run": (2.0, "each row"), "variants": (300.0, "everything"), "cells": (0.3, "each row")}
PEERS = {"run": ("onnxruntime", "openvino", "jax"), "variants": ("torch", "keras")}  # whose versions are told
PEERS["cells"] = ("jax", "speechbrain", "neuralhydrology", "ncps", "snntorch")
BESIDE = ("torch", "torch_script", "keras", "rnnkernels")  # variants
Plan = list[tuple[Workload, str, str, list[int]]]  # dtype, mode, thread counts


def parse(arguments: list[str] | None, name: str = "run") -> argparse.Namespace:
    p = cli.parser(name, __doc__, *SECONDS[name])
    p.add_argument("--threads", type=cli.listed(kind=int), default=[1], help="thread counts, as 1,2 (default: 1)")
    p.set_defaults(name=name, device="cpu", dtype=None, providers=None, busy=False, list=False, compile=[])
    if name == "run":
        p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        cli.add_providers(p, list(TORCH_DTYPES), list(PROVIDERS))
        p.add_argument("--busy", action="store_true", help="time ours also with a busy process on one of its cores")
        p.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
        p.add_argument("--list", action="store_true", help="list the workloads and stop")
    elif name == "variants":
        kinds = list(VARIANTS)
        p.add_argument("--variants", type=cli.listed(kinds), default=kinds, help=f"of {', '.join(kinds)}")
    else:
        p.add_argument("--compile", type=cli.listed(), default=[], help="cells whose loop is compiled too")
    asked = p.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available() and not asked.list:
        p.error("no CUDA device here (torch.cuda.is_available() is False)")
    if name == "run":
        if asked.resume and asked.out is None:
            p.error("--resume: name the results with --out")
        cli.check(p, asked, f"{asked.device}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}", select(asked.device, []))
        if asked.dtype == ["int8"] and asked.mode == "train":
            p.error("--dtype int8: for inference only")
    elif name == "variants":
        cli.check(p, asked, "variants-cpu", variants(kinds))
        asked.workloads = [w for w in asked.workloads if w.variant in asked.variants]
        asked.providers = [known for known in BESIDE if not PROVIDERS[known].missing()]
        if not planned(asked, []):
            p.error("--variants: reset_after=False is for workloads with a GRU, recompute for training")
    else:
        cli.check(p, asked, "cells-cpu", cells(asked.quick))
    if asked.quick:
        asked.seconds, asked.no_memory = min(asked.seconds, 0.2 if name == "run" else 0.01), True
    return asked


def started(asked: argparse.Namespace, command: str) -> dict:
    """Results without rows, or those that are resumed; with the roofs of this machine for each thread count."""
    described = machine.describe(asked.device, command, PEERS[asked.name])
    fresh: dict = {"machine": described, "providers": asked.providers, "roofs": None, "rows": [], "cut": []}
    if asked.name == "variants":
        fresh["absent"] = {known: PROVIDERS[known].missing() for known in BESIDE if known not in asked.providers}
    results = cli.resumed(asked, fresh)
    known = (results["roofs"] or {}).get("flops", {}).get("float32", {})
    if asked.device == "cpu" and asked.name != "variants" and not all(str(count) in known for count in asked.threads):
        results["roofs"] = probe(asked.threads, 0.01 if asked.quick else 0.1)
    return results


def planned(asked: argparse.Namespace, rows: list[dict]) -> Plan:
    """What is not among the rows yet; the variants of one workload together. What decides what training keeps has no
    row in inference."""
    there = {(row["workload"], row.get("variant", ""), row["dtype"], row["mode"], row["threads"]) for row in rows}
    plan = [
        (w, dtype, mode, [n for n in asked.threads if (w.name, w.variant, dtype, mode, n) not in there])
        for plain in dict.fromkeys(w.plain for w in asked.workloads)
        for dtype in asked.dtype or [plain.dtype]
        for mode in asked.modes
        if dtype != "int8" or mode == "infer"
        for w in asked.workloads
        if w.plain == plain and (w.variant != "recompute" or mode == "train")
    ]
    return [task for task in plan if task[-1]]


def beside(w: Workload, asked: argparse.Namespace) -> list[str]:
    """The providers of a workload."""
    own = [name for name in by_cell(w) if name != "torch_compile" or w.cell in asked.compile]
    return own if w.own else asked.providers


def measured(plan: Plan, asked: argparse.Namespace, results: dict) -> Iterator[dict]:
    """The rows, each as soon as it is measured.

    Of variants each within its share of the time that is left. Checking and the fewest runs may take longer than that:
    after half as much time again the rest is left out, and named in ``results["cut"]``.
    """
    end, left = time.perf_counter() + asked.seconds, sum(len(task[-1]) for task in plan)
    for how, tasks in groupby(plan, key=lambda task: (task[0].plain, *task[1:3])):
        with Rows(*how, ["rnnkernels"]) as plain:
            for w, dtype, mode, counts in tasks:
                late = time.perf_counter() - end
                if w.variant and late > asked.seconds / 2 and not asked.quick:
                    results["cut"].append(f"{w.name}, {w.variant}, {mode}")
                    continue
                with Rows(w, dtype, mode, beside(w, asked), results["roofs"]) as own:
                    for threads in counts:
                        share = max(0.0, end - time.perf_counter()) / left if w.variant else asked.seconds
                        rounds = min(w.rounds, 3) if asked.quick else w.rounds
                        memory = w.variant == "recompute" or not (w.variant or w.own or asked.no_memory)
                        row = own.measure(threads, share, rounds, memory, asked.busy, plain if w.variant else None)
                        if w.variant:
                            row |= {"masks": own.masks(threads, rounds), "schedule": schedule_of(Case(w, dtype, mode))}
                        yield row
                        left -= 1


def main(arguments: list[str] | None = None, name: str = "run") -> int:
    asked = parse(arguments, name)
    if asked.list:
        for w in asked.workloads:
            print(f"{w.name:17} {w.kind:24} T {w.T:<5} B {w.B:<4} {f'{w.I}→{w.H}':9} L {w.L}  {w.dtype}  {w.source}")
        return 0
    results = started(asked, cli.command(name, arguments))
    plan = planned(asked, results["rows"])
    total = sum(len(task[-1]) for task in plan)
    return cli.carried_out(results, asked.out, measured(plan, asked, results), total, with_plots=name == "run")


if __name__ == "__main__":
    sys.exit(main())
