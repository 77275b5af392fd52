"""What compilers make of the kernels that the GPU workloads launch: a row for each pass of a layer, and why a row may
break a budget; and their table in Markdown, the record of it. Used by `benchmarks.offline` and by its tests.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import machine_code
import pairwise
import torch
import triton_offline
from tqdm import tqdm
from triton_offline import ARCHS, ARITHMETICS, arithmetics

from benchmarks import machine, report
from benchmarks.tables import bullets, section
from benchmarks.workloads import VARIANTS, Workload, select
from rnnkernels.cells import library

# Training first: of choices that are as good, the first is taken, and the backward pass needs most registers.
PASSES = {"train": ("training forward", "backward"), "infer": ("inference",)}
CACHE = machine.ROOT / "build" / "machine-code"
Task = tuple[str, str, Workload, str]  # chip, arithmetic, workload, a key of PASSES
# Beside the GPU workloads, by one of the same sizes: layers with layer norm, and cells as users write them.
NORMED = ("amp", "flashrnn-lstm", "flashrnn-gru")
OWN = {"lstm": "flashrnn-lstm", "peephole_lstm": "rl-bench-lstm", "li_gru": "packed", "slstm": "unmix"}
OWN |= {"gru_d": "sample-factory", "min_gru": "camels"}
# Those with most registers and shared memory: the widest product, and layer norms between programs.
DEAREST = ("isaac", "flashrnn-lstm+layer_norm")


# Why a budget stays broken, by the line that says so. None of these bytes are touched at each step.
TAKEN = "All 255 registers are taken; what is needed again after the loop is put away once a call."
SHARED = "The compiler keeps to 128 registers, with which two programs share a processor, and puts away what the loop "
SHARED += "does not need."
ONCE = "{} bytes of stack (0 accesses in the loop)"
EXPLAINED = {
    f"sm_80, rl-bench-lstm+own-peephole_lstm, backward, bf16: {ONCE.format(16)}": TAKEN,
    f"sm_90, rl-bench-lstm+own-peephole_lstm, backward, tf32: {ONCE.format(8)}": TAKEN,
    f"sm_100, unmix+own-slstm, backward, ieee: {ONCE.format(8)}": TAKEN,
    f"sm_100, demucs, training forward, tf32: {ONCE.format(8)}": SHARED,
    f"sm_100, demucs, inference, tf32: {ONCE.format(8)}": SHARED,
    f"sm_100, bonito, inference, tf32: {ONCE.format(16)}": SHARED,
    f"sm_100, bonito, reverse layers, inference, tf32: {ONCE.format(16)}": SHARED,
    f"sm_100, camels, inference, tf32: {ONCE.format(16)}": SHARED,
}


def workloads() -> list[Workload]:
    """Those of the table."""
    found = select("cuda", [])
    of = {w.name: w for w in found}
    normed = [replace(of[name], name=f"{name}+layer_norm", family="layer_norm", **VARIANTS["layer_norm"])
              for name in NORMED]  # fmt: skip
    own = [replace(of[name], name=f"{name}+own-{cell}", family="own", cell=getattr(library, cell).program.text)
           for cell, name in OWN.items()]  # fmt: skip
    return found + normed + own


def chosen(archs: list[str], kinds: list[str], found: list[Workload], full: bool) -> list[Task]:
    """The tasks of some chips, arithmetics and workloads: all that are possible if ``full``; else a choice in which
    every two things that go together do so once at least, and all training of DEAREST."""

    def possible(arch: str, kind: str, w: Workload, mode: str) -> bool:
        return kind in arithmetics(ARCHS[arch])

    every = pairwise.product(archs, kinds, found, PASSES, exists=possible)
    some = every if full else pairwise.cover((archs, kinds, found, PASSES), 2, possible)
    return [task for task in every if task in some or task[2].name in DEAREST and task[3] == "train"]


def facts(compiled) -> dict:
    """The facts of a kernel, kept in a file: to disassemble takes as long as to compile."""
    reader = hashlib.sha256(Path(machine_code.__file__).read_bytes()).hexdigest()[:16]
    path = CACHE / reader / f"{compiled.hash}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        report.replace(path, json.dumps(machine_code.facts(compiled)))
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(arch: str, arithmetic: str, w: Workload, mode: str) -> list[dict]:
    """A row for each pass of each kind of layer that a workload has."""
    torch.set_num_threads(1)
    rows, train = [], mode == "train"
    for reverse in w.walks:
        name = w.name + (", reverse layers" if reverse == (True,) else "")
        sizes = (ARCHS[arch], w.cell, ARITHMETICS[arithmetic], w.T, w.B, w.H, 0, reverse, w.heads, False)
        try:
            note, launched = "", triton_offline.launches(*sizes, w.stages, train, arithmetic)
        except NotImplementedError as error:
            note = f"compiled without {', '.join(w.stages)}: {str(error).rpartition(': ')[2]}"
            launched = triton_offline.launches(*sizes, (), train, arithmetic)
        for backward, this in enumerate(PASSES[mode]):
            these = [each for each in launched if each.backward == bool(backward)]
            norm = "layer_norm" in w.stages
            row, grid = triton_offline.summary(these, w.cell, arithmetic, w.H, facts, norm)
            head = {"arch": arch, "arithmetic": arithmetic, "pass": this, "note": note}
            rows.append(head | {"workloads": {name: {"grid": grid}}} | row)
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


def broken(rows: list[dict]) -> dict[str, str]:
    """For each row that breaks a budget the line that says so, and why it does if that is explained."""
    lines = [
        f"{row['arch']}, {', '.join(row['workloads'])}, {row['pass']}, {row['arithmetic']}: {'; '.join(row['broken'])}"
        for row in rows
        if row["broken"]
    ]
    return {line: EXPLAINED.get(line, "") for line in lines}


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
    rows, found = results["rows"], broken(results["rows"])
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
        return counted(rows_of(*task) for task in tasks)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return counted(pool.map(rows_of, *zip(*tasks, strict=True)))
