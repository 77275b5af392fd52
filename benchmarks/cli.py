"""What the commands of the benchmarks share: arguments, results to go on with, and rows one after the other."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import machine, report
from benchmarks.providers import PROVIDERS
from benchmarks.workloads import Workload, named

RESULTS = machine.ROOT / "benchmarks" / "results"
MODES = ("infer", "train")


def listed(known: list[str] | None = None, kind: Callable = str) -> Callable[[str], list]:
    """An argparse type: a list with commas, of known names or of positive numbers."""

    def parse(text: str) -> list:
        words = list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
        for word in words:
            if known is not None and word not in known:
                raise argparse.ArgumentTypeError(f"unknown {word!r}; known: {', '.join(known)}")
            if kind is int and not (word.isdecimal() and int(word)):
                raise argparse.ArgumentTypeError(f"not a positive number: {word!r}")
        if not words:
            raise argparse.ArgumentTypeError("an empty list")
        return list(map(kind, words))

    return parse


def parser(name: str, description: str, seconds: float, of: str) -> argparse.ArgumentParser:
    """A parser with the arguments of every command that measures. ``of``: what the seconds are for."""
    p = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description.splitlines()[0])
    p.set_defaults(parser=p)
    p.add_argument("--only", type=listed(), default=[], help="names or shell patterns of workloads, as wide,guide-*")
    p.add_argument("--mode", choices=(*MODES, "both"), default="both", help="default: both")
    p.add_argument("--seconds", type=float, default=seconds, help=f"time to spend on {of} (default: {seconds:g})")
    p.add_argument("--quick", action="store_true", help="few runs and small: to see that it works")
    p.add_argument("--out", type=Path, help="results without suffix (default: under benchmarks/results)")
    p.add_argument("--resume", action="store_true", help="go on with the results in --out; rows there are kept")
    return p


def add_providers(p: argparse.ArgumentParser, dtypes: list[str], known: list[str]) -> None:
    p.add_argument("--dtype", type=listed(dtypes), help=f"of {', '.join(dtypes)} (default: each workload's own)")
    p.add_argument("--providers", type=listed(known), help=f"of {', '.join(known)} (default: all that are installed)")


def command(name: str, arguments: list[str] | None) -> str:
    """What to type to run it again."""
    return shlex.join(["python", "-m", f"benchmarks.{name}", *(sys.argv[1:] if arguments is None else arguments)])


def workloads_of(p: argparse.ArgumentParser, asked: argparse.Namespace, known: list[Workload]) -> list[Workload]:
    """Those that are named, at least one."""
    found = [w for w in known if named(w.name, asked.only, w.family)]
    if not found:
        names = ", ".join(dict.fromkeys(w.name for w in known))
        p.error(f"--only {','.join(asked.only)}: no such workload; there are {names}")
    return found


def check(p: argparse.ArgumentParser, asked: argparse.Namespace, name: str, known: list[Workload]) -> None:
    """What is wrong with the arguments ends the process with status 2. Sets ``asked.modes``, ``asked.workloads``, and
    what was not given: ``asked.providers`` to all that are installed, ``asked.out`` to a name in RESULTS."""
    if not (math.isfinite(asked.seconds) and asked.seconds > 0):
        p.error(f"--seconds: not positive: {asked.seconds}")
    cores = len(machine.cores(max(asked.threads)))
    if 0 < cores < max(asked.threads):
        p.error(f"--threads {max(asked.threads)}: this process has {cores} cores")
    asked.out = asked.out or RESULTS / name
    try:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        p.error(f"--out: {error}")
    for name in asked.providers or ():
        if PROVIDERS[name].missing():
            p.error(f"--providers {name}: {PROVIDERS[name].missing()}")
    here = (name for name, p in PROVIDERS.items() if p.default and asked.device in p.devices and not p.missing())
    asked.providers = asked.providers or list(here)
    asked.workloads = workloads_of(p, asked, known)
    asked.modes = MODES if asked.mode == "both" else (asked.mode,)


def resumed(asked: argparse.Namespace, fresh: dict) -> dict:
    """Fresh results, or with ``--resume`` those that are there, of the same machine, commit and providers."""
    path = asked.out.with_name(f"{asked.out.name}.json")
    if not (asked.resume and path.exists()):
        return fresh
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["providers"] != fresh["providers"]:
            raise ValueError(f"{path} is of other providers: {','.join(old['providers'])}")
        for name in ("cpu", "gpu", "torch", "rnnkernels", "commit"):
            was, now = old["machine"].get(name), fresh["machine"].get(name)
            if was != now:
                raise ValueError(f"{path} is of another {name}: {was}, now {now}")
    except (OSError, ValueError, KeyError) as error:
        asked.parser.error(f"--resume: {error}")
    old["machine"]["command"] += f" && {fresh['machine']['command']}"
    return fresh | old | {"cut": []}


def carried_out(results: dict, out: Path, rows: Iterator[dict], total: int, with_plots: bool) -> int:
    """Log and write each row as soon as it is there, then a table on the terminal and the rest; the status of the
    process, 0 where all rows are there and right."""
    from tqdm import tqdm

    finished = False
    try:
        with tqdm(total=total, unit="row", disable=None) as bar:
            for row in rows:
                results["rows"].append(row)
                bar.write(report.line(row), file=sys.stderr)
                bar.update()
                report.write(results, out)
        finished = True
    except KeyboardInterrupt:
        print("stopped; what was measured is kept, --resume goes on", file=sys.stderr)
    if not results["rows"]:
        return 1
    print(report.terminal(results["rows"]))
    if results["cut"]:
        print(f"out of time: {'; '.join(results['cut'])}")
    print(f"written: {', '.join(map(str, report.write(results, out, with_plots)))}")
    return 0 if finished and not report.red(results["rows"]) and not results["cut"] else 1
