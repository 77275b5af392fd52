"""Compile the kernels that the GPU workloads launch, without a GPU: `python -m benchmarks.offline`.

Writes benchmarks/results/offline.md and .json: a row for each pass of a workload, with the schedule and tiles that were
chosen, and what came out of the compiler: registers, stack, shared memory, and of the time loop tensor-core
instructions, loads from global memory, barriers. `--check` exits with 1 where a budget is broken that is not explained.
Nothing runs; no time is measured. The compiling, and the explanations, are tests/gpu/offline_rows.py.

To compile a kernel takes 2 to 4 s, and to compile all workloads for all chips in all arithmetics over an hour:
`--full`. Without it every two of a workload, a chip, an arithmetic, and training or inference go together once at
least; the training of DEAREST is whole.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import offline_rows
import triton_offline
from offline_rows import Task
from tqdm import tqdm
from triton_offline import ARCHS, ARITHMETICS

from benchmarks import cli, machine, report
from benchmarks.report import bullets, section


def line(row: dict) -> dict[str, object]:
    faults = "; ".join(row["broken"])
    grids = dict.fromkeys(" x ".join(map(str, own["grid"])) for own in row["workloads"].values())
    return {
        "workloads": ", ".join(row["workloads"]) + (" (1)" if row["note"] else ""), "pass": row["pass"],
        "dtype": row["arithmetic"], "schedule": row["schedule"], "units x rows x K": " x ".join(map(str, row["tiles"])),
        "warps, stages": f"{row['warps']}, {row['stages']}", "grid": ", ".join(grids), "registers": row["registers"],
        "stack": row["stack"], "shared": f"{row['shared'] / 1024:.0f} KiB",
        "weights": row["weights"] + (f" **{faults}**" if faults else ""), "tensor-core": row["tensor"],
        "loads": row["loads"], "KiB": f"{row['load_bytes'] / 1024:.1f}", "barriers": row["barriers"],
        "atomics": row["atomics"], "kernels": len(row["kernels"]),
    }  # fmt: skip


HOW = """Each launch that the launcher makes for a workload's layer, compiled for the chip named, not run. A row is a
pass; where its launches are several kernels (the first and the last step differ), registers, stack and shared memory
are the largest of them, and the rest is that of the most frequent one. Stack is spilled registers, often ones that wait
for the end of the loop. Of the time loop, as its instructions stand there: tensor-core instructions, loads from global
memory and what all threads of a program ask for with them in KiB, barriers of a program, atomics. *weights*: on chip
(loaded before the loop, which has no room for them among its loads), streamed at each step, or none."""


def markdown(results: dict) -> str:
    """The whole file: a section for each chip."""
    rows, found = results["rows"], offline_rows.broken(results["rows"])
    kernels = {kernel for row in rows for kernel in row["kernels"]}
    explained = sum(why != "" for why in found.values())
    counts = f"{len(rows)} rows, {len(kernels)} kernels; budgets broken: {len(found)}, of which explained: {explained}."
    notes = [f"(1) {note}" for note in sorted({row["note"] for row in rows if row["note"]})]
    parts = [report.heading("Kernels of the GPU workloads, compiled without a GPU", results["machine"]) + HOW]
    lines = [f"{line}. {why}" if why else line for line, why in found.items()]
    parts += [*notes, counts, *([bullets(lines)] if lines else [])]
    for arch, gpu in ARCHS.items():
        title = f"{arch} ({gpu.chip.name}): {gpu.chip.shared // 1024} KiB of shared memory a program"
        parts.append(section(title, [line(row) for row in rows if row["arch"] == arch]))
    return "\n\n".join(filter(None, parts))


def compiled(tasks: list[Task], processes: int) -> list[dict]:
    """The rows of all tasks; in this process where one is asked for."""

    def counted(found: Iterable[list[dict]]) -> list[dict]:
        bar = tqdm(found, desc="compiling", total=len(tasks), unit="task", disable=None)
        return [row for rows in bar for row in rows]

    if processes == 1:
        return counted(offline_rows.rows_of(*task) for task in tasks)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return counted(pool.map(offline_rows.rows_of, *zip(*tasks, strict=True)))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__.splitlines()[0])
    p.add_argument("--arch", type=cli.listed(list(ARCHS)), default=list(ARCHS), help=f"of {', '.join(ARCHS)}")
    p.add_argument("--only", type=cli.listed(), default=[], help="names or shell patterns of GPU workloads")
    kinds = list(ARITHMETICS)
    p.add_argument("--dtype", type=cli.listed(kinds), default=kinds, help=f"of {', '.join(kinds)}")
    p.add_argument("--full", action="store_true", help="all combinations, not a choice of them")
    p.add_argument("--check", action="store_true", help="exit with 1 where a budget is broken, unexplained")
    p.add_argument("--processes", type=int, choices=(1, 2), default=2)
    p.add_argument("--out", type=Path, default=cli.RESULTS / "offline", help="results without suffix")
    asked = p.parse_args(arguments)
    asked.workloads = cli.workloads_of(p, asked, offline_rows.workloads())
    return asked


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    tasks = offline_rows.chosen(asked.arch, asked.dtype, asked.workloads, asked.full)
    rows = offline_rows.merged(compiled(tasks, asked.processes))
    for row in rows:
        row["broken"] = triton_offline.problems(row, ARCHS[row["arch"]])
    described = machine.describe("cpu", cli.command("offline", arguments))
    kept = ("python", "torch", "triton", "rnnkernels", "commit", "date", "command")
    results = {"machine": {name: described[name] for name in kept}, "rows": rows}
    written, found = report.write(results, asked.out), offline_rows.broken(rows)
    print(*found, sep="\n")
    print(f"{len(rows)} rows, {len(found)} with a broken budget; written: {', '.join(map(str, written))}")
    return 1 if asked.check and not all(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
