"""Results as Markdown and plots: the report of whatever was measured, and its tables.

`python -m benchmarks.report benchmarks/results/cpu-....json` writes Markdown and plots beside the JSON file anew; pages
of docs/ read the JSON file itself (docs/site/results.py). All but the terminal's table (pandas) and plots (matplotlib,
plots.py) needs nothing that a GPU machine may lack.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plots
from benchmarks.providers import OURS
from benchmarks.rows import AGAINST, derive, ours, threads_text
from benchmarks.tables import bullets, duration, numbered, ratio_text, section, table, text_of, time_text
from benchmarks.workloads import cells as own_cells

TITLES = {"infer": "Inference", "train": "Training step: forward and backward"}


def best_text(row: dict) -> str:
    """The best peer and our ratio to it, with the mark last."""
    value = ours(row).get("ratio_best")
    return "" if value is None else f"{row['best_peer']} {ratio_text(value)}"


def share_text(row: dict) -> str:
    share = ours(row).get("share")
    return f"{100 * share:.0f} %" + ("" if "own" in row else f" of {row['bound']['by']}") if share else ""


def over_ours(row: dict, name: str) -> float | None:
    theirs, mine = row["providers"].get(name, {}).get("seconds"), ours(row).get("seconds")
    return theirs / mine if theirs and mine else None


def called(row: dict) -> dict[str, Any]:
    """What a row is called in the tables that do not repeat its sizes."""
    return {name: row.get(name) for name in ("workload", "variant", "dtype", "mode", "threads")}


def cells(row: dict, names: list[str], reasons: dict[str, int]) -> dict[str, Any]:
    """One line of the table of rows: the shape, the time of each of the named providers, then how ours compares."""
    if "own" in row:
        return own_cell(row, names, reasons)
    mine, varied = ours(row), "variant" in row
    found = {"workload": row["workload"], "cell": row["kind"].split(",")[0] if varied else row["kind"]}
    found |= {"variant": row["variant"]} if varied else {}
    found |= {"T": row["T"], "B": row["B"], "I→H": f"{row['I']}→{row['H']}", "L": row["L"]}
    found |= {"dtype": row["dtype"], "threads": row["threads"]}
    times = {name: time_text(row, name, row["providers"].get(name), reasons) for name in names}
    if not varied:
        found |= times | {"ratio to torch": ratio_text(mine.get("ratio")), "ratio to the best peer": best_text(row)}
        found |= {"µs a step": mine.get("us_per_step"), "share of the bound": share_text(row)}
        return found | {"what explain says": row.get("schedule")}
    found |= {
        "runs on": row["schedule"].split(":")[0],
        "plain layer": time_text(row, "plain layer", row["plain"], reasons),
    }
    found |= {"with the variant": times.pop("rnnkernels"), "over plain": row["over_plain"]}
    found |= {"of that drawing masks": duration(row, row["masks"]["seconds"]) if row["masks"] else ""}
    for name, text in times.items():
        found |= {name: text, f"{name} over ours": ratio_text(over_ours(row, name))}
    return found


SIDES = {"loop": "loop", "torch_script": "torch.jit", "torch_compile": "torch.compile", "jax": "jax"}
SIDES |= {"built_in": "built in", "public": "public"}


def own_cell(row: dict, names: list[str], reasons: dict[str, int]) -> dict[str, Any]:
    """The line of a cell of one's own: our time, and for each other side its time over ours."""
    found = {"cell": row["workload"], "from": row["source"], "threads": row["threads"], "mode": row["mode"]}
    found["ours"] = time_text(row, "ours", ours(row), reasons)
    for name, side in SIDES.items():
        result = row["providers"].get(name, {})
        cold = f"cold {result['cold']:.0f} s, then " if name == "torch_compile" and "cold" in result else ""
        text = ratio_text(over_ours(row, name))
        found[side] = time_text(row, side, result, reasons) if "reason" in result else text and cold + text
    return found | {"share of memory's bandwidth": share_text(row)}


def line(row: dict) -> str:
    """A row in one line, for the log of a running benchmark."""
    times = []
    for name, result in row["providers"].items():
        time = duration(row, result["seconds"]) if "seconds" in result else result["reason"] if "red" in result else "–"
        ratio = ratio_text(over_ours(row, name)) if name != "rnnkernels" else ""
        times.append(f"{name} {time}" + (f" ({ratio})" if ratio else ""))
    if row.get("over_plain"):
        times.append(f"{row['over_plain']:.2f} of the plain layer's time")
    what = (row["workload"], row.get("variant"), row["dtype"], row["mode"], threads_text(row["threads"]))
    return f"{', '.join(filter(None, what))}: {', '.join(times)}"


def gathered(found: Iterable[tuple[Any, float | None, str]]) -> dict[Any, list[tuple[float, str]]]:
    """From keys, values and workloads, by key the values that there are, each with its workload."""
    groups: dict[Any, list[tuple[float, str]]] = {}
    for key, value, workload in found:
        if value is not None:
            groups.setdefault(key, []).append((value, workload))
    return groups


def mean(found: list[tuple[float, str]]) -> float:
    return statistics.geometric_mean(value for value, _ in found)


def means_lines(rows: list[dict]) -> list[str]:
    """A line for each geometric mean of ratios; the best peer is for ours only."""
    ratios = gathered(
        ((of, name, row.get("variant"), row["dtype"], row["mode"], row["threads"]), result.get(of), row["workload"])
        for of in AGAINST
        for row in rows
        for name, result in row["providers"].items()
        if (name != "torch" if of == "ratio" else name in OURS)
    )
    return [
        f"{', '.join(filter(None, what))}, {threads_text(threads)}: geometric mean of the ratio to {AGAINST[of]} "
        f"{mean(found):.2f} over {len(found)} workload{'s' if len(found) > 1 else ''}, "
        "none below {:.2f} ({})".format(*min(found, key=lambda pair: pair[0]))
        for (of, *what, threads), found in ratios.items()
    ]


def over_plain_lines(rows: list[dict]) -> list[dict[str, Any]]:
    """For each variant and mode, our time over that of the plain layer: the geometric mean, and the most."""
    times = gathered(((row.get("variant"), row["mode"]), row.get("over_plain"), row["workload"]) for row in rows)
    return [
        {"variant": variant, "mode": mode, "workloads": len(found), "over plain, mean": mean(found)}
        | dict(zip(("most", "at"), max(found), strict=True))
        for (variant, mode), found in times.items()
    ]


def beside(row: dict, rows: list[dict], **other: object) -> float | None:
    """Our own time in the row that is the same but for what is given, if there is one."""
    wanted = {name: row[name] for name in ("workload", "dtype", "mode", "threads")} | other
    return next((ours(r).get("seconds") for r in rows if all(r[name] == wanted[name] for name in wanted)), None)


def narrow_lines(rows: list[dict]) -> list[dict[str, Any]]:
    return [
        called(row) | {"our float32 time over ours": ratio_text(wide / mine)}
        for row in rows
        if row["dtype"] in ("bfloat16", "float16", "int8")
        and (wide := beside(row, rows, dtype="float32")) and (mine := ours(row).get("seconds"))
    ]  # fmt: skip


def int8_lines(rows: list[dict]) -> list[dict[str, Any]]:
    heads = {"max_error": "largest error of y", "rms_error": "rms error of y", "relative_error": "rms over rms of y"}
    return [
        called(row) | {"provider": name, **{text: f"{result[key]:.2e}" for key, text in heads.items()}}
        for row in rows for name, result in row["providers"].items() if "rms_error" in result
    ]  # fmt: skip


def busy_lines(rows: list[dict]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        if seconds := ours(row).get("busy_seconds"):
            alone = beside(row, rows, threads=1)
            ratio = {"over one thread undisturbed": seconds / alone if alone else None}
            found.append(called(row) | {"rnnkernels, neighbour busy": duration(row, seconds)} | ratio)
    return found


def memory_lines(rows: list[dict]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        results = ({"plain layer": row["plain"]} if "plain" in row else {}) | row["providers"]
        counts = {name: r["peak_bytes"] for name, r in results.items() if r.get("peak_bytes") is not None}
        if counts:
            mine, plain = counts.get("rnnkernels"), counts.get("plain layer")
            texts = {name: f"{count / 2**20:.1f} MiB" for name, count in counts.items()}
            found.append(called(row) | texts | {"over plain": mine / plain if mine and plain else None})
    return found


def terminal(rows: list[dict]) -> str:
    """The table of rows, the reasons and the means, as plain text."""
    import pandas as pd

    names, reasons = list(dict.fromkeys(name for row in rows for name in row["providers"])), {}
    frame = pd.DataFrame([{"mode": row["mode"], **cells(row, names, reasons)} for row in rows]).map(text_of)
    shown = frame.loc[:, (frame != "").any()].to_string(index=False, line_width=200, max_colwidth=40)
    return "\n".join([shown, *numbered(reasons), *means_lines(rows)])


def red(rows: list[dict]) -> bool:
    """Whether something was wrong, or broke."""
    return any(found.get("red") for row in rows for found in (*row["providers"].values(), row.get("plain", {})))


def rows_text(rows: list[dict]) -> str:
    """All about the rows: the means, each row by mode, why some were not timed, memory, precisions, neighbours."""
    names, reasons = list(dict.fromkeys(name for row in rows for name in row["providers"])), {}
    parts = ["## Means\n\n" + (bullets(means_lines(rows)) or "- no ratio yet") + "\n"]
    parts.append(section("Our time over that of our plain layer", over_plain_lines(rows)))
    parts += [
        section(title, [cells(row, names, reasons) for row in rows if row["mode"] == mode and row["providers"]])
        for mode, title in TITLES.items()
    ]
    if reasons:
        parts.append("Not timed:\n\n" + "\n".join(numbered(reasons)) + "\n")
    failed = [f"{row['workload']}, {row['dtype']}, {row['mode']}: {row['reason']}" for row in rows if "reason" in row]
    parts += [bullets(failed) + "\n" if failed else "", section("Peak memory of one call", memory_lines(rows))]
    parts.append(section("Precision: narrow numbers against our own float32", narrow_lines(rows)))
    parts.append(section("Errors with int8 weights, against float64", int8_lines(rows)))
    parts.append(section("With a busy process on one of the cores", busy_lines(rows)))
    return "\n".join(filter(None, parts))


def roofs_text(roofs: dict | None) -> str:
    if not roofs or "reason" in roofs:
        return f"No share of the bound: {(roofs or {}).get('reason', 'the probe measures CPUs')}."
    lines = []
    for group, unit, prefix in (("flops", "GFLOP/s", "FMA peak "), ("bandwidth", "GB/s", "read ")):
        for name, values in roofs[group].items():
            held = f" ({roofs['sizes'][name] / 2**10:.0f} KiB)" if name in roofs["sizes"] else ""
            label = "AMX bfloat16 (no part of the bound)" if name.startswith("amx") else f"{prefix}{name}{held}"
            texts = {threads_text(count): f"{value / 1e9:.4g} {unit}" for count, value in values.items()}
            lines.append({"measured by the probe": label} | texts)
    return table(lines)


def cases_text(title: str, results: list[dict]) -> str:
    """How many cases of a GPU are right, the largest errors by dtype, and what is wrong."""
    wrong = [found for found in results if "reason" in found]
    right = [found for found in results if "error" in found and "reason" not in found]
    refused = len([found for found in results if "refused" in found])
    worst = {found["case"].split()[2]: found for found in sorted(right, key=lambda found: found["error"])}
    dtypes = dict.fromkeys(found["case"].split()[2] for found in right)
    lines = [f"{f['case']}: {f['reason']}" for f in wrong]
    lines += ["largest error in {}: {error:.1e}, {of} of {case}".format(dtype, **worst[dtype]) for dtype in dtypes]
    text = f"{len(right)} right, {len(wrong)} wrong, {refused} that a forced schedule cannot run."
    return f"## {title}\n\n" + (f"{text}\n\n{bullets(lines)}" if results else "Not run.") + "\n"


def tests_text(found: list[dict] | dict) -> str:
    """Of tests one by one; or, as an earlier version had them, their counts."""
    if isinstance(found, dict):
        text = "{tests} tests in {seconds:.0f} s: {failures} failed, {errors} broke, {skipped} skipped, "
        text, failed = text + "{unfinished} did not end in time; exit codes {exit}.", found["failed"]
        text = text.format(**found)
    else:
        failed = [f"{test['case']}: {test['reason']}" for test in found if "reason" in test]
        counts = f"{len(failed)} failed, {sum(test.get('skipped', False) for test in found)} skipped"
        text = f"{len(found)} tests: {counts}."
    return f"## Tests\n\n{text}\n{bullets(failed)}\n" if found else "## Tests\n\nNot run.\n"


def lines_through(results: list[dict]) -> list[dict]:
    """For each schedule and size: what a call costs by itself and what each step adds, by least squares over T."""
    points: dict[tuple, list[tuple[int, float]]] = {}
    for r in results:
        if r["purpose"] == "scaling" and "seconds" in r:
            points.setdefault((r["schedule"], r["H"], r["B"]), []).append((r["T"], 1e6 * r["seconds"]))
    fits = {of: np.polyfit(*zip(*found, strict=True), 1).tolist() for of, found in points.items() if len(found) > 1}
    return [
        {"schedule": schedule, "H": H, "B": B, "µs a call": offset, "µs a step": slope}
        for (schedule, H, B), (slope, offset) in fits.items()
    ]


def experiments_text(results: list[dict]) -> str:
    """The barrier alone, each schedule forced at several sizes, and what a call and a step of each cost."""
    step = "{}, µs a step"
    barriers = [
        {"programs": r["H"], step.format("barrier alone"): r["us_per_step"]}
        for r in results if r["purpose"] == "barrier" and "us_per_step" in r
    ]  # fmt: skip
    times: dict[tuple, dict[str, float]] = {}
    for r in results:
        if r["purpose"] == "crossover" and "seconds" in r:
            times.setdefault((r["H"], r["B"]), {})[r["schedule"]] = r["us_per_step"]
    schedules = sorted({name for of in times.values() for name in of})
    crossed = [
        {"H": H, "B": B} | {step.format(name): of.get(name) for name in schedules} | {"fastest": min(of, key=of.get)}
        for (H, B), of in times.items()
    ]
    through = lines_through(results)
    told = {True: "replayed from a CUDA graph, the same bits", False: "replayed from a CUDA graph, **other bits**"}
    texts = {
        f"{r['schedule']}, H {r['H']}, B {r['B']}: {r['reason'] if 'reason' in r else told[r['captured']]}"
        for r in results if "reason" in r or "captured" in r
    }  # fmt: skip
    parts = ["## Schedules forced: LSTM in bfloat16, forward", *(table(part) for part in (barriers, crossed) if part)]
    parts += ["A line through the time over T:", table(through)] if through else []
    return "\n\n".join([*parts, bullets(sorted(texts))])


HOW = """Medians of alternating runs, {how}. A provider is timed only if
its output, and in training each gradient, is right against float64. A ratio is the other's time over that of rnnkernels
(below 1: slower); the best peer is the fastest provider that is not ours. Memory is the growth of peak memory during
one call, the results included."""
BOUND = """The bound of a workload is the larger of its operations over the FMA peak (vector instructions) and its
weights' bytes over the bandwidth of the cache that holds them; a kernel on matrix units (AMX) can exceed it."""
VARIED = """Right is, for recurrent dropout, zoneout, layer norm and the GRU that resets before its product, what our
reference in plain torch gives with the same masks; else what torch.nn gives. Masks are drawn inside the timed call on
all sides, by torch in the same way; not by Keras, whose recurrent dropout is not compared. *runs on* is the backend
that `explain` names: the reference is plain torch, slow. torch is torch.nn with split and pad at resets, or packed
rows; torch_script is a scripted loop of cells. `legged` and `rl-bench` are GPU workloads, here on the CPU with the
smaller batch of column B. 3% of the steps are resets, lengths are uniform from 1 to T."""
OWN = """Each ratio is the time of that side over ours: above 1 ours is faster. own_lstm is an LSTM as a user writes it;
the cells named *given* have no product at all, and their share of the memory's bandwidth is that of reading x and
writing y once (in training three times: backward reads them again and dy, and writes dx)."""


def markdown(results: dict) -> str:
    """The whole file, of whatever command the results are."""
    machine, rows = results["machine"], results["rows"]
    command = re.search(r"benchmarks\.(\w+)", machine["command"])[1]
    where = machine.get("gpu", machine.get("cpu"))
    if command == "offline":
        return importlib.import_module("offline_rows").markdown(results)
    if command == "cells":
        reasons, there = {}, {row["workload"] for row in rows}
        shown = table([cells(row, [], reasons) for row in rows])
        missing = "; ".join(w.name for w in own_cells() if w.name not in there) or "nothing"
        parts = [heading("Cells of one's own", machine) + OWN, shown, *numbered(reasons), f"Not measured: {missing}."]
        return "\n\n".join(parts) + "\n"
    gpu = command == "gpu"
    apart = "each provider in a process of its own, on as many cores as threads"
    parts = [HOW.format(how=f"in one process, timed with {machine['timer']}" if gpu else apart) + "\n"]
    if gpu:
        cut = ", ".join(results["cut"]) or "nothing"
        parts.append(f"{len(rows)} of {results['planned']} rows. Out of time: {cut}.\n")
        parts.append(cases_text("Every cell, schedule and dtype against float64", results["smoke"]))
        parts += [tests_text(results["tests"]), cases_text("The same bits every time", results["races"])]
    elif command == "variants":
        parts.append(VARIED + "\n")
        parts += [f"Left out: {name} {why}.\n" for name, why in results["absent"].items()]
        parts += [f"Out of time: {'; '.join(results['cut'])}.\n"] if results["cut"] else []
    else:
        parts.append(f"{BOUND}\n\n{roofs_text(results.get('roofs'))}\n")
    parts.append(rows_text(rows))
    parts += [experiments_text(results["experiments"])] if gpu else []
    title = "What torch.nn does not have, on" if command == "variants" else "Benchmark on"
    return heading(f"{title} {where}", machine) + "\n".join(parts).rstrip() + "\n"


def heading(title: str, machine: dict) -> str:
    """Title, command and machine."""
    facts = bullets(f"{name}: {value}" for name, value in machine.items() if name != "command")
    return f"# {title}\n\n    {machine['command']}\n\n{facts}\n\n"


def replace(path: Path, text: str) -> None:
    """Write a file in one go: a killed run leaves whole files."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def dumped(results: dict) -> str:
    """As JSON, with a line for each row, case or experiment."""

    def text(value: object) -> str:
        many = isinstance(value, list) and value
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if many else json.dumps(value)

    return "{" + ",\n".join(f"{json.dumps(name)}: {text(value)}" for name, value in results.items()) + "}\n"


def write(results: dict, out: Path, with_plots: bool = False) -> list[Path]:
    """JSON and Markdown of a name that has no suffix, and the plots where asked for."""
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [out.with_name(out.name + suffix) for suffix in (".json", ".md")]
    for path, text in zip(paths, (dumped(results), markdown(results)), strict=True):
        replace(path, text)
    drawn = {out.with_name(out.name + suffix): draw for suffix, draw in plots.PLOTS.items() if with_plots}
    return paths + [path for path, draw in drawn.items() if draw(results, path)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON files that a benchmark wrote")
    asked = parser.parse_args(arguments)
    try:
        for path in asked.results:
            results = json.loads(path.read_text(encoding="utf-8"))
            results["rows"] = [derive(row) if "providers" in row else row for row in results["rows"]]
            with_plots = "benchmarks.run" in results["machine"]["command"]
            written = write(results, path.resolve().with_suffix(""), with_plots)
            print(f"wrote {', '.join(map(str, written))}", file=sys.stderr)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
