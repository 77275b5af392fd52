"""Run the benchmarks: `python -m benchmarks.run --device cpu --threads 1,2`.

A table on the terminal, and JSON and Markdown under benchmarks/results/, written after each workload.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine, report
from benchmarks.measure import Bench
from benchmarks.providers import PACKAGES, PROVIDERS, TORCH_DTYPES
from benchmarks.workloads import WORKLOADS, Workload, select

RESULTS = Path(__file__).resolve().parent / "results"
MODES = ("infer", "train")


def listed(known: list[str] | None = None, kind: Callable = str) -> Callable[[str], list]:
    """An argparse type: a list with commas, of known names or of positive numbers."""

    def parse(text: str) -> list:
        found = []
        for word in filter(None, (word.strip() for word in text.split(","))):
            if known is not None and word not in known:
                raise argparse.ArgumentTypeError(f"unknown {word!r}; known: {', '.join(known)}")
            try:
                value = kind(word)
            except ValueError:
                raise argparse.ArgumentTypeError(f"not a number: {word!r}") from None
            if kind is int and value < 1:
                raise argparse.ArgumentTypeError(f"not positive: {word!r}")
            found.append(value)
        if not found:
            raise argparse.ArgumentTypeError("an empty list")
        return list(dict.fromkeys(found))

    return parse


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=listed(kind=int), default=[1], help="thread counts, as 1,2 (default: 1)")
    parser.add_argument("--only", type=listed(), default=[], help="names or shell patterns, as wide,guide-*")
    parser.add_argument("--mode", choices=(*MODES, "both"), default="both")
    parser.add_argument("--providers", type=listed(list(PROVIDERS)), default=["torch", "rnnkernels"])
    parser.add_argument("--dtype", type=listed(list(TORCH_DTYPES)), help="default: each workload's own")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to spend on each row (default: 2)")
    parser.add_argument("--quick", action="store_true", help="few runs and no memory: to see that it works")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--out", type=Path, help="results without suffix (default: benchmarks/results/<device>-<time>)")
    parser.add_argument("--list", action="store_true", help="list the workloads and stop")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available() and not asked.list:
        parser.error("no CUDA device here (torch.cuda.is_available() is False)")
    if not asked.seconds > 0:
        parser.error(f"--seconds: not positive: {asked.seconds}")
    for name in asked.providers:
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError as error:
            parser.error(f"--providers {name}: cannot be imported: {error}")
    asked.workloads = select(asked.device, asked.only)
    if not asked.workloads:
        names = ", ".join(w.name for w in WORKLOADS if w.device == asked.device)
        parser.error(f"--only {','.join(asked.only)}: no such {asked.device} workload; there are {names}")
    if asked.out is None:
        asked.out = RESULTS / f"{asked.device}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    if not asked.list:
        try:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: {error}")
    asked.modes = MODES if asked.mode == "both" else (asked.mode,)
    if asked.quick:
        asked.seconds, asked.no_memory = min(asked.seconds, 0.2), True
    return asked


def rows_of(asked: argparse.Namespace, workload: Workload) -> list[dict]:
    """Every row of one workload: dtypes, modes, thread counts."""
    rows = []
    for dtype in asked.dtype or [workload.dtype]:
        for mode in asked.modes:
            torch.set_num_threads(max(asked.threads))
            bench = Bench(workload, dtype, mode, asked.providers)
            if not asked.no_memory:
                bench.measure_memory(max(asked.threads))
            rounds = 3 if asked.quick else 5
            rows += [bench.measure_time(threads, asked.seconds, rounds) for threads in asked.threads]
    return rows


def write(results: dict, out: Path) -> None:
    """JSON and Markdown, each replaced in one go: a killed run leaves whole files."""
    texts = {".json": json.dumps(results, indent=1) + "\n", ".md": report.markdown(results)}
    for suffix, text in texts.items():
        part = out.with_name(f"{out.name}{suffix}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, out.with_name(out.name + suffix))


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    console = Console()
    if asked.list:
        for w in asked.workloads:
            print(f"{w.name:17} {w.kind:24} T {w.T:<5} B {w.B:<4} {f'{w.I}→{w.H}':9} L {w.L}  {w.dtype}  {w.source}")
        return 0
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.run", *words])
    results = {"machine": machine.describe(asked.device, command), "rows": []}
    bar = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    threads = torch.get_num_threads()
    try:
        with Progress(*bar, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(asked.workloads))
            for workload in asked.workloads:
                progress.update(task, description=workload.name)
                rows = rows_of(asked, workload)
                results["rows"] += rows
                write(results, asked.out)
                for row in rows:
                    progress.console.print(report.line(row), soft_wrap=True, markup=False, highlight=False)
                progress.advance(task)
    except KeyboardInterrupt:
        console.print("stopped; what was measured is kept", style="bold")
    finally:
        torch.set_num_threads(threads)
    wide = console if console.is_terminal else Console(width=160)
    wide.print(report.terminal(results))
    for line in report.means_lines(results["rows"]):
        console.print(line, soft_wrap=True)
    if results["rows"]:
        console.print(f"written: {asked.out}.json, {asked.out}.md", soft_wrap=True)
    red = [r for r in results["rows"] for p in r["providers"].values() if p.get("red")]
    return 1 if red or len({r["workload"] for r in results["rows"]}) < len(asked.workloads) else 0


if __name__ == "__main__":
    sys.exit(main())
