"""Compile the kernels that the GPU workloads launch, without a GPU: `python -m benchmarks.offline`.

Writes benchmarks/results/offline.md and .json: a row for each pass of a workload, with what came out of the compiler.
`--check` exits with 1 where a budget is broken that is not explained. Nothing runs; no time is measured. The compiling,
the table and the explanations are tests/gpu/offline_rows.py.

To compile a kernel takes 2 to 4 s, and to compile all workloads for all chips in all arithmetics over an hour:
`--full`. Without it every two of a workload, a chip, an arithmetic, and training or inference go together once at
least; the training of DEAREST is whole.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import offline_rows
import triton_offline
from triton_offline import ARCHS, ARITHMETICS

from benchmarks import cli, machine, report


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
    rows = offline_rows.merged(offline_rows.compiled(tasks, asked.processes))
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
