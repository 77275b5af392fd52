"""The GPU benchmark's results as Markdown."""

from __future__ import annotations

from benchmarks import gpu_targets
from benchmarks.gpu_experiments import crossovers
from benchmarks.stats import means_lines, ours
from benchmarks.tables import (
    SHAPE,
    Reasons,
    best_text,
    duration,
    machine_lines,
    markdown_table,
    memory_section,
    peers,
    ratio_text,
    shape_cells,
    share_text,
)
from benchmarks.targets import without_threads
from rnnkernels.backends.triton import schedules

TITLES = {"infer": "Forward", "train": "Forward and backward"}


def _tests(found: dict | None) -> str:
    if found is None:
        return "Not run."
    text = f"{found['tests']} tests in {found['seconds']:.0f} s: {found['failures']} failed, {found['errors']} broke, "
    text += f"{found['skipped']} skipped, {found['unfinished']} did not end in time; exit codes {found['exit']}."
    return "\n".join([text, *(f"- {line}" for line in found["failed"])])


def _cases(results: list[dict]) -> str:
    """How many cases are right, the largest errors by dtype, and what is wrong."""
    if not results:
        return "Not run."
    wrong = [found for found in results if "reason" in found]
    refused = [found for found in results if "refused" in found]
    right = [found for found in results if "error" in found and "reason" not in found]
    worst: dict[str, dict] = {}
    for found in right:
        dtype = found["case"].split()[2]
        if found["error"] >= worst.get(dtype, {"error": -1.0})["error"]:
            worst[dtype] = found
    lines = [f"{len(right)} right, {len(wrong)} wrong, {len(refused)} that a forced schedule cannot run.", ""]
    lines += [f"- {f['case']}: {f['reason']}" for f in wrong]
    lines += [f"- largest error in {dtype}: {f['error']:.1e}, {f['of']} of {f['case']}" for dtype, f in worst.items()]
    return "\n".join(lines)


def _number(result: dict, name: str) -> str:
    return f"{result[name]:.2f}" if name in result else ""


def _row(row: dict, names: list[str], reasons: Reasons) -> list[str]:
    mine = ours(row)
    line = [*shape_cells(row)[:-1], *(reasons.cell(row, name, row["providers"].get(name)) for name in names)]
    predicted = row.get("model", {}).get("seconds")
    return [
        *line, ratio_text(mine.get("ratio")), best_text(row), _number(mine, "us_per_step"),
        share_text(row, mine), duration(row, predicted) if predicted else "", row.get("schedule", ""),
    ]  # fmt: skip


def _rows(rows: list[dict]) -> str:
    names, reasons, parts = peers(rows), Reasons(), []
    head = [*SHAPE[:-1], *names, "ratio to torch", "ratio to the best peer", "µs a step", "share of the bound"]
    head += ["the model said", "what explain says"]
    for mode, title in TITLES.items():
        lines = [_row(row, names, reasons) for row in rows if row["mode"] == mode and row["providers"]]
        if lines:
            parts.append(f"## {title}\n\n{markdown_table(head, lines)}\n")
    if reasons.numbers:
        parts.append("Not timed:\n\n" + "\n".join(reasons.lines()) + "\n")
    failed = [f"- {row['workload']}, {row['dtype']}, {row['mode']}: {row['reason']}" for row in rows if "reason" in row]
    return "\n".join([*parts, *failed, memory_section([row for row in rows if row["providers"]], names)])


def _experiments(results: list[dict], lines: list[dict]) -> str:
    parts = []
    barriers = [[str(r["H"]), _number(r, "us_per_step")] for r in results if r["purpose"] == "barrier"]
    if barriers:
        parts.append(markdown_table(["programs", "barrier alone, µs a step"], barriers))
    found = crossovers(results)
    if found:
        names = list(schedules.NAMES)
        rows = [[str(r["H"]), str(r["B"]), *(_number(r, name) for name in names), r["fastest"]] for r in found]
        parts.append(markdown_table(["H", "B", *(f"{name}, µs a step" for name in names), "fastest"], rows))
    if lines:
        keys = ("us_per_call", "us_per_step", "us_model", "us_waiting")
        rows = [[r["schedule"], str(r["H"]), str(r["B"]), *(_number(r, key) for key in keys)] for r in lines]
        head = [
            "schedule",
            "H",
            "B",
            "µs a call",
            "µs a step",
            "the model's step",
            "waiting: step less the model's rest",
        ]
        parts.append("A line through the time over T:\n\n" + markdown_table(head, rows))
    texts = {f"- {r['schedule']}, H {r['H']}, B {r['B']}: {r['reason']}" for r in results if "reason" in r}
    told = {True: "the same bits", False: "**other bits**"}
    texts |= {
        f"- {r['schedule']}, H {r['H']}, B {r['B']}: replayed from a CUDA graph, {told[r['captured']]}"
        for r in results
        if "captured" in r
    }
    return "\n\n".join([*parts, "\n".join(sorted(texts))])


def markdown(results: dict) -> str:
    """The whole file: facts, tests, targets, rows, experiments."""
    measured = [row for row in results["rows"] if row["providers"]]
    means = "\n".join(f"- {line}" for line in means_lines(measured))
    targets = markdown_table(["target", "measured", ""], without_threads(gpu_targets.reached(measured)))
    return f"""# Benchmark on {results["machine"]["device"]}

    {results["machine"]["command"]}

{machine_lines(results["machine"])}

Medians of alternating runs in one process, timed with {results["machine"]["timer"]}. A provider is timed only if its
output, and in training each gradient, is right against float64. A ratio is the other's time over that of rnnkernels;
the best peer is the fastest provider that is not ours. The bound is the largest of: operations over the peak rate,
bytes over the memory's bandwidth, recurrent weights at each step through all shared memories. Steps also wait for each
other, so a small share need not mean that much is left to gain. The model adds assumed latencies (benchmarks/model.py).

{results["done"]} of {results["planned"]} rows. Out of time: {", ".join(results["cut"]) or "nothing"}.

## Every cell, schedule and dtype against float64

{_cases(results["smoke"])}

## Tests

{_tests(results["tests"])}

## The same bits every time

{_cases(results["races"])}

## Targets

{targets}

## Means

{means}

{_rows(results["rows"])}

## Schedules forced: LSTM in bfloat16, forward

{_experiments(results["experiments"], results["lines"])}
"""
