"""Run the benchmarks: `python -m benchmarks.run --device cpu --threads 1,2`.

A table on the terminal, and JSON, Markdown and plots under benchmarks/results/. JSON and Markdown are written after
each workload; `--resume` goes on with a run that was stopped. How it is timed is in benchmarks/worker.py.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine, report, tables
from benchmarks.probe import probe
from benchmarks.providers import PROVIDERS, TORCH_DTYPES
from benchmarks.rows import Rows
from benchmarks.stats import means_lines
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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    what = p.add_argument_group("what to measure")
    what.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    what.add_argument("--only", type=listed(), default=[], help="names or shell patterns of workloads, as wide,guide-*")
    what.add_argument("--mode", choices=(*MODES, "both"), default="both", help="default: both")
    what.add_argument("--threads", type=listed(kind=int), default=[1], help="thread counts, as 1,2 (default: 1)")
    what.add_argument("--dtype", type=listed(list(TORCH_DTYPES)), help="default: each workload's own; int8: inference")
    names = ", ".join(PROVIDERS)
    what.add_argument("--providers", type=listed(list(PROVIDERS)), help=f"of {names} (default: all that are installed)")
    what.add_argument(
        "--busy", action="store_true", help="time rnnkernels also with a busy process on one of its cores"
    )
    what.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    what.add_argument("--list", action="store_true", help="list the workloads and stop")
    how = p.add_argument_group("how")
    how.add_argument("--seconds", type=float, default=2.0, help="time to spend on each row (default: 2)")
    how.add_argument("--quick", action="store_true", help="few runs and no memory: to see that it works")
    how.add_argument("--out", type=Path, help="results without suffix (default: benchmarks/results/<device>-<time>)")
    how.add_argument("--resume", action="store_true", help="go on with the results in --out; rows there are kept")
    return p


def providers_of(p: argparse.ArgumentParser, asked: argparse.Namespace) -> list[str]:
    """Those that are named, all of which have to be installed; or all that are, for the device."""
    for name in asked.providers or ():
        if PROVIDERS[name].missing():
            p.error(f"--providers {name}: {PROVIDERS[name].missing()}")
    here = (name for name, p in PROVIDERS.items() if p.default and asked.device in p.devices and not p.missing())
    return asked.providers or list(here)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    p = parser()
    asked = p.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available() and not asked.list:
        p.error("no CUDA device here (torch.cuda.is_available() is False)")
    if not (math.isfinite(asked.seconds) and asked.seconds > 0):
        p.error(f"--seconds: not positive: {asked.seconds}")
    cores = len(machine.cores(max(asked.threads)))
    if 0 < cores < max(asked.threads):
        p.error(f"--threads {max(asked.threads)}: this process has {cores} cores")
    asked.providers = providers_of(p, asked)
    asked.workloads = select(asked.device, asked.only)
    if not asked.workloads:
        names = ", ".join(w.name for w in WORKLOADS if w.device == asked.device)
        p.error(f"--only {','.join(asked.only)}: no such {asked.device} workload; there are {names}")
    if asked.resume and asked.out is None:
        p.error("--resume: name the results with --out")
    if asked.out is None:
        asked.out = RESULTS / f"{asked.device}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    if not asked.list:
        try:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            p.error(f"--out: {error}")
    asked.modes = MODES if asked.mode == "both" else (asked.mode,)
    if asked.dtype == ["int8"] and asked.mode == "train":
        p.error("--dtype int8: for inference only")
    if asked.quick:
        asked.seconds, asked.no_memory = min(asked.seconds, 0.2), True
    return asked


def progress() -> Progress:
    """What runs, and how far it is; away when it is done. Two refreshes a second: more would disturb what is timed."""
    bar = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*bar, console=Console(stderr=True), transient=True, refresh_per_second=2)


def key_of(row: dict) -> tuple:
    """What makes a row: no two rows of a file have the same."""
    return tuple(row[name] for name in ("workload", "dtype", "mode", "threads"))


def resumed(path: Path, fresh: dict) -> dict:
    """The results in the file, to go on with. Raises ValueError where they are of something else."""
    old = json.loads(path.read_text(encoding="utf-8"))
    for name in ("cpu", "gpu", "torch", "rnnkernels", "commit"):
        was, now = old["machine"].get(name), fresh["machine"].get(name)
        if was != now:
            raise ValueError(f"{path} is of another {name}: {was}, now {now}")
    if old["providers"] != fresh["providers"]:
        raise ValueError(f"{path} is of other providers: {','.join(old['providers'])}")
    old["machine"]["command"] += f" && {fresh['machine']['command']}"
    return old


def started(asked: argparse.Namespace, command: str) -> dict:
    """Results without rows, or those that are resumed; with the roofs of this machine for each thread count."""
    fresh = {
        "machine": machine.describe(asked.device, command),
        "providers": asked.providers,
        "roofs": None,
        "rows": [],
    }
    path = asked.out.with_name(f"{asked.out.name}.json")
    results = resumed(path, fresh) if asked.resume and path.exists() else fresh
    measured = (results["roofs"] or {}).get("flops", {}).get("float32", {})
    if asked.device == "cpu" and not all(str(count) in measured for count in asked.threads):
        results["roofs"] = probe(asked.threads, 0.01 if asked.quick else 0.1)
    return results


def measured(asked: argparse.Namespace, workload: Workload, results: dict) -> list[dict]:
    """Every row of one workload that the results do not have yet: dtypes, modes, thread counts."""
    there = {key_of(row) for row in results["rows"]}
    rows = []
    for dtype in asked.dtype or [workload.dtype]:
        for mode in asked.modes if dtype != "int8" else [m for m in asked.modes if m == "infer"]:
            missing = [n for n in asked.threads if (workload.name, dtype, mode, n) not in there]
            if not missing:
                continue
            with Rows(workload, dtype, mode, asked.providers, results["roofs"]) as measuring:
                how = (asked.seconds, 3 if asked.quick else 5, not asked.no_memory, asked.busy)
                rows += [measuring.measure(threads, *how) for threads in missing]
    return rows


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    console = Console()
    if asked.list:
        for w in asked.workloads:
            print(f"{w.name:17} {w.kind:24} T {w.T:<5} B {w.B:<4} {f'{w.I}→{w.H}':9} L {w.L}  {w.dtype}  {w.source}")
        return 0
    words = sys.argv[1:] if arguments is None else arguments
    try:
        results = started(asked, shlex.join(["python", "-m", "benchmarks.run", *words]))
    except (OSError, ValueError, KeyError) as error:
        parser().error(f"--resume: {error}")
    finished = False
    try:
        with progress() as bar:
            task = bar.add_task("", total=len(asked.workloads))
            for workload in asked.workloads:
                bar.update(task, description=workload.name)
                rows = measured(asked, workload, results)
                results["rows"] += rows
                report.write(results, asked.out)
                for row in rows:
                    bar.console.print(tables.line(row), soft_wrap=True, markup=False, highlight=False)
                bar.advance(task)
        finished = True
    except KeyboardInterrupt:
        console.print("stopped; what was measured is kept, --resume goes on", style="bold")
    if not results["rows"]:
        return 1
    wide = console if console.is_terminal else Console(width=160)
    wide.print(tables.terminal(results))
    for line in means_lines(results["rows"]):
        console.print(line, soft_wrap=True)
    written = report.write(results, asked.out, with_plots=True)
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    red = [r for r in results["rows"] for p in r["providers"].values() if p.get("red")]
    return 0 if finished and not red else 1


if __name__ == "__main__":
    sys.exit(main())
