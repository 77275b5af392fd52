"""Run the benchmarks: `python -m benchmarks.run --device cpu --threads 1,2`.

A table on the terminal, and JSON, Markdown and plots under benchmarks/results/. JSON and Markdown are written after
each row; `--resume` goes on with a run that was stopped. How it is timed is in benchmarks/worker.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import datetime, timezone

import torch

from benchmarks import cli, machine
from benchmarks.providers import PROVIDERS, TORCH_DTYPES
from benchmarks.roofline import probe
from benchmarks.rows import Rows
from benchmarks.workloads import Workload, select

Plan = list[tuple[Workload, str, str, list[int]]]  # dtype, mode, thread counts


def parse(arguments: list[str] | None) -> argparse.Namespace:
    p = cli.parser("run", __doc__, 2.0, "each row")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=cli.listed(kind=int), default=[1], help="thread counts, as 1,2 (default: 1)")
    p.add_argument("--dtype", type=cli.listed(list(TORCH_DTYPES)), help="default: each workload's own; int8: inference")
    names = f"of {', '.join(PROVIDERS)} (default: all that are installed)"
    p.add_argument("--providers", type=cli.listed(list(PROVIDERS)), help=names)
    p.add_argument("--busy", action="store_true", help="time rnnkernels also with a busy process on one of its cores")
    p.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    p.add_argument("--list", action="store_true", help="list the workloads and stop")
    p.add_argument("--resume", action="store_true", help="go on with the results in --out; rows there are kept")
    asked = p.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available() and not asked.list:
        p.error("no CUDA device here (torch.cuda.is_available() is False)")
    if asked.resume and asked.out is None:
        p.error("--resume: name the results with --out")
    cli.check(p, asked, f"{asked.device}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}")
    asked.providers = cli.providers_of(p, asked)
    asked.workloads = cli.workloads_of(p, asked, select(asked.device, []))
    if asked.dtype == ["int8"] and asked.mode == "train":
        p.error("--dtype int8: for inference only")
    if asked.quick:
        asked.seconds, asked.no_memory = min(asked.seconds, 0.2), True
    return asked


def started(asked: argparse.Namespace, command: str) -> dict:
    """Results without rows, or those that are resumed; with the roofs of this machine for each thread count."""
    described = machine.describe(asked.device, command)
    results = cli.resumed(asked, {"machine": described, "providers": asked.providers, "roofs": None, "rows": []})
    known = (results["roofs"] or {}).get("flops", {}).get("float32", {})
    if asked.device == "cpu" and not all(str(count) in known for count in asked.threads):
        results["roofs"] = probe(asked.threads, 0.01 if asked.quick else 0.1)
    return results


def planned(asked: argparse.Namespace, rows: list[dict]) -> Plan:
    """What is not among the rows yet."""
    there = {(row["workload"], row["dtype"], row["mode"], row["threads"]) for row in rows}
    plan = [
        (w, dtype, mode, [n for n in asked.threads if (w.name, dtype, mode, n) not in there])
        for w in asked.workloads
        for dtype in asked.dtype or [w.dtype]
        for mode in asked.modes
        if dtype != "int8" or mode == "infer"
    ]
    return [task for task in plan if task[-1]]


def measured(plan: Plan, asked: argparse.Namespace, roofs: dict | None) -> Iterator[dict]:
    """The rows, each as soon as it is measured."""
    for workload, dtype, mode, counts in plan:
        with Rows(workload, dtype, mode, asked.providers, roofs) as measuring:
            for threads in counts:
                rounds = 3 if asked.quick else 5
                yield measuring.measure(threads, asked.seconds, rounds, not asked.no_memory, asked.busy)


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    if asked.list:
        for w in asked.workloads:
            print(f"{w.name:17} {w.kind:24} T {w.T:<5} B {w.B:<4} {f'{w.I}→{w.H}':9} L {w.L}  {w.dtype}  {w.source}")
        return 0
    try:
        results = started(asked, cli.command("run", arguments))
    except (OSError, ValueError, KeyError) as error:
        print(f"python -m benchmarks.run: error: --resume: {error}", file=sys.stderr)
        return 2
    plan = planned(asked, results["rows"])
    rows = measured(plan, asked, results["roofs"])
    return cli.carried_out(results, asked.out, rows, sum(len(task[-1]) for task in plan), with_plots=True)


if __name__ == "__main__":
    sys.exit(main())
