"""Compile every kernel that the GPU workloads launch, without a GPU: `python -m benchmarks.offline`.

Writes benchmarks/results/offline.md and .json: a row for each kernel, with the schedule and tiles that were chosen, and
what came out of the compiler: registers, stack, shared memory, and of the time loop tensor-core instructions, loads
from global memory, barriers. `--check` exits with 1 where a budget is broken. Nothing runs; no time is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.chips import ARCHS, Gpu
from benchmarks.model import ARITHMETICS, Layer, arithmetics, kind_of, layers, step
from benchmarks.report import replace, write_texts
from benchmarks.run import RESULTS, listed, progress
from benchmarks.tables import machine_lines, markdown_table
from benchmarks.workloads import Workload, select
from rnnkernels.backends.triton import schedules

PASSES = ("inference", "training forward", "backward")
PROCESSES = 2
CACHE = machine.ROOT / "build" / "machine-code"


def reloads(cell, tiles: schedules.Tiles, kind: str, H: int, K: int, backward: bool, found: dict) -> bool:
    """Whether the time loop loads the weights of a program that should have loaded them before.

    It does if less than the weights was loaded before the loop, or if the loop loads more than it needs, plus the
    weights. What it needs is what a step reads per unit and row, which the compiler may have up to four threads load,
    and, where units are spread over programs, the vector of the product.
    """
    size, threads = schedules.BYTES[kind], 32 * found["warps"]
    weights = cell.gates * min(tiles.BH, H) * K * size
    planes = -(-schedules.bytes_read(cell, kind, backward) // size)
    needed = 4 * planes * max(tiles.BH * tiles.BB, threads) * size
    if tiles.schedule != "resident":
        parts = 16 * found["warps"]  # each warp takes a part of the vector, at least 16 wide
        needed += -(-K // parts) * parts * tiles.BB * size * (len(cell.recurrent) if backward else 1)
    return found["bytes_before"] < weights or found["load_bytes"] >= needed + weights


def problems(row: dict, gpu: Gpu) -> list[str]:
    """The budgets that a row breaks."""
    found = []
    if row["stack"]:
        found.append(f"{row['stack']} bytes of stack ({row['spills']} accesses in the loop)")
    if row["shared"] > gpu.chip.shared:
        found.append(f"{row['shared']} bytes of shared memory, {gpu.chip.shared} are there")
    if kind_of(row["arithmetic"]) in ("half", "tf32") and not row["tensor"]:
        found.append("no tensor-core instruction")
    if row["weights"] == "loaded again":
        found.append("weights are loaded again in the loop")
    return found


def facts(compiled) -> dict:
    """The facts of a kernel, kept in a file: to disassemble takes as long as to compile."""
    from benchmarks import machine_code

    reader = hashlib.sha256(Path(machine_code.__file__).read_bytes()).hexdigest()[:16]
    path = CACHE / reader / f"{compiled.hash}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(machine_code.facts(compiled)))
    return json.loads(path.read_text(encoding="utf-8"))


def row_of(gpu: Gpu, launched: list, layer: Layer) -> tuple[dict, dict]:
    """What the launches of one pass of one layer show, and what depends on the workload: grid and prediction."""
    from benchmarks.machine_code import resources

    kernels = {each.compiled.hash: each for each in launched}
    most = kernels[Counter(each.compiled.hash for each in launched).most_common(1)[0][0]]
    tiles, main, taken = most.tiles, facts(most.compiled), [resources(each.compiled) for each in kernels.values()]
    spilling = [each for each in kernels.values() if resources(each.compiled)["stack"]]
    streamed, predicted = tiles.schedule == "stepwise", step(gpu, layer, tiles)
    own = {"grid": list(most.grid), "predicted_us": round(1e6 * predicted.seconds, 2), "limited_by": predicted.by}
    again = not streamed and reloads(layer.cell, tiles, layer.kind, layer.H, layer.K, layer.backward, main)
    return {
        "schedule": tiles.schedule, "tiles": [tiles.BH, tiles.BB, tiles.BK], "warps": tiles.warps,
        "stages": tiles.stages, "reason": tiles.reason, "kernels": sorted(kernels),
        **{name: max(each[name] for each in taken) for name in ("registers", "stack", "shared")},
        "spills": max((facts(each.compiled)["spills"] for each in spilling), default=0),
        **{name: main[name] for name in ("tensor", "instructions", "loads", "load_bytes", "barriers", "atomics")},
        "weights": "streamed" if streamed else "loaded again" if again else "on chip",
    }, own  # fmt: skip


def rows_of(arch: str, arithmetic: str, w: Workload) -> list[dict]:
    """A row for each pass of each kind of layer that a workload has."""
    from benchmarks import dry

    torch.set_num_threads(1)
    rows = []
    for reverse in w.walks:
        name = w.name + (", reverse layers" if reverse == (True,) else "")
        sizes = (ARCHS[arch], w.cell, ARITHMETICS[arithmetic], w.T, w.B, w.H, 0, reverse, w.heads, False)
        for mode, passes in (("infer", PASSES[:1]), ("train", PASSES[1:])):
            try:
                note, launched = "", dry.launches(*sizes, w.stages, mode == "train", arithmetic)
            except NotImplementedError as error:
                note = f"compiled without {', '.join(w.stages)}: {str(error).rpartition(': ')[2]}"
                launched = dry.launches(*sizes, (), mode == "train", arithmetic)
            for this, layer in zip(passes, layers(w, arithmetic, mode), strict=True):
                these = [each for each in launched if each.backward == layer.backward]
                row, own = row_of(ARCHS[arch], these, layer)
                head = {"arch": arch, "arithmetic": arithmetic, "pass": this, "note": note, "workloads": {name: own}}
                rows.append(head | row)
    return rows


def merged(rows: Iterable[dict]) -> list[dict]:
    """One row where several workloads launch the same kernels."""
    found: dict[tuple, dict] = {}
    for row in rows:
        key = (row["arch"], row["arithmetic"], row["pass"], row["note"], *row["kernels"])
        if key in found:
            found[key]["workloads"] |= row["workloads"]
        else:
            found[key] = row
    return list(found.values())


HEAD = ["workloads", "pass", "dtype", "schedule", "units x rows x K", "warps, stages", "grid", "registers", "stack"]
HEAD += ["shared", "weights", "tensor-core", "loads", "KiB", "barriers", "atomics", "kernels", "model: µs a step"]


def line(row: dict) -> list[str]:
    own = list(row["workloads"].values())
    broken = "; ".join(row["broken"])

    def each(texts: list[str]) -> str:
        return texts[0] if len(set(texts)) == 1 else ", ".join(texts)

    values = [
        ", ".join(row["workloads"]) + (" (1)" if row["note"] else ""), row["pass"], row["arithmetic"], row["schedule"],
        " x ".join(map(str, row["tiles"])), f"{row['warps']}, {row['stages']}",
        each([" x ".join(map(str, o["grid"])) for o in own]), row["registers"], row["stack"],
        f"{row['shared'] / 1024:.0f} KiB", row["weights"] + (f" **{broken}**" if broken else ""), row["tensor"],
        row["loads"], f"{row['load_bytes'] / 1024:.1f}", row["barriers"], row["atomics"], len(row["kernels"]),
        each([f"{o['predicted_us']:.2f} ({o['limited_by']})" for o in own]),
    ]  # fmt: skip
    return [str(value) for value in values]


def broken_lines(rows: list[dict]) -> list[str]:
    """A line for each row that breaks a budget."""
    return [
        f"{row['arch']}, {', '.join(row['workloads'])}, {row['pass']}, {row['arithmetic']}: {'; '.join(row['broken'])}"
        for row in rows
        if row["broken"]
    ]


def markdown(results: dict) -> str:
    """The whole file: a section for each chip."""
    rows, parts = results["rows"], []
    for arch, gpu in ARCHS.items():
        these = [row for row in rows if row["arch"] == arch]
        if these:
            title = f"\n## {arch} ({gpu.name}): {gpu.chip.shared // 1024} KiB of shared memory a program\n"
            parts.append(f"{title}\n{markdown_table(HEAD, [line(row) for row in these])}\n")
    notes = sorted({row["note"] for row in rows if row["note"]})
    broken = [f"- {text}" for text in broken_lines(rows)]
    return f"""# Kernels of the GPU workloads, compiled without a GPU

    {results["machine"]["command"]}

{machine_lines(results["machine"])}

Each launch that the launcher makes for a workload's layer, compiled for the chip named, not run. A row is a pass; where
the launches of a pass are several kernels (the first and the last step differ from the others), registers, stack and
shared memory are the largest of them, and the rest is that of the most frequent one. Stack is spilled registers, often
ones that wait for the end of the loop: accesses to it in the loop are counted where there are any bytes. Of the
time loop, as its instructions stand there (those of a loop inside it once): tensor-core instructions, loads from global
memory and what all threads of a program ask for with them in KiB, barriers of a program, atomics. *weights*: on chip
(loaded before the loop, which has no room for them among its loads), or streamed at each step. The last column is a
model with assumed latencies (benchmarks/model.py), not a measurement, and names the largest part of a step.
{"".join(f"{chr(10)}(1) {note}" for note in notes)}

{len(rows)} rows, {len({kernel for row in rows for kernel in row["kernels"]})} kernels; budgets broken: {len(broken)}.
{chr(10).join(broken)}
{"".join(parts)}"""


def write(results: dict, out: Path) -> list[Path]:
    """JSON with a row a line, and Markdown."""
    rows = ",\n".join(json.dumps(row) for row in results["rows"])
    text = f'{{"machine": {json.dumps(results["machine"])},\n"rows": [\n{rows}\n]}}\n'
    return write_texts(out, {".json": text, ".md": markdown(results)})


def compiled(tasks: list[tuple[str, str, Workload]], processes: int) -> list[dict]:
    """The rows of all tasks; in this process where one is asked for."""
    with progress() as bar:
        at = bar.add_task("compiling", total=len(tasks))

        def advance(rows: list[dict]) -> list[dict]:
            bar.advance(at)
            return rows

        if processes == 1:
            return [row for task in tasks for row in advance(rows_of(*task))]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            return [row for rows in pool.map(rows_of, *zip(*tasks, strict=True)) for row in advance(rows)]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__.splitlines()[0])
    p.add_argument("--arch", type=listed(list(ARCHS)), default=list(ARCHS), help=f"of {', '.join(ARCHS)}")
    p.add_argument("--only", type=listed(), default=[], help="names or shell patterns of GPU workloads")
    p.add_argument(
        "--dtype", type=listed(list(ARITHMETICS)), default=list(ARITHMETICS), help=f"of {', '.join(ARITHMETICS)}"
    )
    p.add_argument("--check", action="store_true", help="exit with 1 where a budget is broken")
    p.add_argument("--processes", type=int, choices=(1, 2), default=PROCESSES)
    p.add_argument("--out", type=Path, default=RESULTS / "offline", help="results without suffix")
    asked = p.parse_args(arguments)
    asked.workloads = select("cuda", asked.only)
    if not asked.workloads:
        p.error(f"--only: no such workload; there are {', '.join(w.name for w in select('cuda', []))}")
    return asked


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    tasks = [(arch, arithmetic, w) for arch in asked.arch for arithmetic in arithmetics(ARCHS[arch])
             if arithmetic in asked.dtype for w in asked.workloads]  # fmt: skip
    rows = merged(compiled(tasks, asked.processes))
    for row in rows:
        row["broken"] = problems(row, ARCHS[row["arch"]])
    described = machine.describe("cpu", shlex.join(["python", "-m", "benchmarks.offline", *words]))
    kept = ("python", "torch", "triton", "rnnkernels", "commit", "date", "command")
    results = {"machine": {name: described[name] for name in kept}, "rows": rows}
    written = write(results, asked.out)
    for text in broken_lines(rows):
        print(text)
    print(f"{len(rows)} rows, {len(broken_lines(rows))} with a broken budget; written: {', '.join(map(str, written))}")
    return 1 if asked.check and broken_lines(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
