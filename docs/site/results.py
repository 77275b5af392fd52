"""Tables for the site, computed from benchmarks/results/*.json: no number on a page is typed in."""

import json
import statistics

MODES = {"infer": "inference", "train": "training"}
DTYPES = ("bfloat16", "float32", "float16")


def read(root, name):
    return json.loads((root / "benchmarks/results" / f"{name}.json").read_text("utf-8"))


def came_from(results, link):
    """The command of the results, the machine, versions and commit; a link to all rows."""
    machine = results["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    commit = f"commit {machine['commit']}, {machine['date'][:10]}"
    return f"`{machine['command']}` on {where}; torch {machine['torch']}; {commit} ([all rows]({link}.md)).\n"


def ratio(value):
    """How many times as long the other takes; bold where ours is slower."""
    return "–" if value is None else f"{value:.2f}" if value >= 0.995 else f"**{value:.2f}**"


def table(lines):
    """Markdown of a list of rows, the head first."""
    head, *rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, f"|{'---|' * len(lines[0])}", *rows]) + "\n"


def ours(row):
    return row["providers"].get("rnnkernels", {})


def duration(row, seconds):
    """In microseconds for single steps and in milliseconds for sequences, three digits at least."""
    value, unit = (1e6 * seconds, "µs") if row["T"] == 1 else (1e3 * seconds, "ms")
    return (f"{value:.0f}" if value >= 100 else f"{value:#.3g}") + f" {unit}"


def columns(rows):
    """Mode and threads, in the order in which tables have them."""
    found = {(row["mode"], row["threads"]) for row in rows}
    return {(m, n): f"{MODES[m]}, {n} thread{'s' if n > 1 else ''}" for m, n in sorted(found)}


def means(results, link):
    """Geometric mean and least of torch's time over ours, and of the best peer's where there is one."""
    lines = [["dtype", "mode", "workloads", "torch's time over ours", "least", "the best other's", "least"]]
    dtypes = dict.fromkeys(row["dtype"] for row in results["rows"])
    for dtype in dtypes:
        for (mode, threads), text in columns(results["rows"]).items():
            rows = [r for r in results["rows"] if (r["dtype"], r["mode"], r["threads"]) == (dtype, mode, threads)]
            line, counted = [], 0
            for key in ("ratio", "ratio_best"):
                found = [(ours(row)[key], row["workload"]) for row in rows if ours(row).get(key)]
                counted = max(counted, len(found))
                mean = statistics.geometric_mean(value for value, _ in found) if found else None
                line += [ratio(mean), f"{ratio(min(found)[0])} ({min(found)[1]})" if found else "–"]
            lines.append([dtype, text, str(counted), *line])
    peers = any(set(row["providers"]) - {"torch", "rnnkernels", "stepper"} for row in results["rows"])
    return table(lines if peers else [line[:5] for line in lines]) + "\n" + came_from(results, link)


def workloads(results, link):
    """A line per workload: our time, torch's over ours, the best peer and its time over ours."""
    lines = {}
    for row in results["rows"]:
        if row["dtype"] != "float32" or "seconds" not in ours(row):
            continue
        shape = f"{row['kind']}, T {row['T']}, B {row['B']}, {row['I']}→{row['H']}, L {row['L']}"
        said = [duration(row, ours(row)["seconds"]), ratio(ours(row)["ratio"])]
        if row["best_peer"] not in ("torch", None):
            said.append(f"{row['best_peer']} {ratio(ours(row)['ratio_best'])}")
        found = lines.setdefault((row["workload"], shape), {})
        found[row["mode"], row["threads"]] = ", ".join(said)
    head = columns(results["rows"])
    body = [[name, shape, *(found.get(key, "–") for key in head)] for (name, shape), found in lines.items()]
    return table([["workload", "shape", *head.values()], *body])


def steps(results, link):
    """Inference a step at a time on one thread: torch's time, ours, a Stepper's and the fastest other's."""
    lines = [["workload", "shape", "torch.nn", "the layer or cell", "`Stepper`", "the fastest of the others"]]
    for row in results["rows"]:
        if row["T"] > 1 or row["mode"] != "infer" or row["threads"] > 1:
            continue
        times = {name: found["seconds"] for name, found in row["providers"].items() if "seconds" in found}
        mine = [times.pop(name, None) for name in ("torch", "rnnkernels", "stepper")]
        best = min(times, key=times.get, default=None)
        shape = f"{row['kind']}, B {row['B']}, {row['I']}→{row['H']}, L {row['L']}, {row['dtype']}"
        texts = [duration(row, value) if value else "–" for value in (*mine, times.get(best))]
        lines.append([row["workload"], shape, *texts[:3], f"{texts[3]} ({best})" if best else "–"])
    return table(lines) + "\n" + came_from(results, link)


def over_plain(results, link):
    """For each option of layers, our time over that of our plain layer: geometric mean and most."""
    groups = {}
    for row in results["rows"]:
        if row.get("over_plain"):
            groups.setdefault(row["variant"], {}).setdefault(row["mode"], []).append(
                (row["over_plain"], row["workload"])
            )
    lines = [["option", *(f"{text}{more}" for text in MODES.values() for more in (", mean", ", most"))]]
    for variant, modes in groups.items():
        line = [variant]
        for mode in MODES:
            found = modes.get(mode)
            most = max(found) if found else None
            line += [
                f"{statistics.geometric_mean(value for value, _ in found):.2f}" if found else "–",
                f"{most[0]:.2f} ({most[1]})" if most else "–",
            ]
        lines.append(line)
    return table(lines) + "\n" + came_from(results, link)


def over_others(results, link):
    """For each option, the other ways' time over ours: geometric mean, least and most."""
    groups = {}
    for row in results["rows"]:
        mine = ours(row).get("seconds")
        for name, found in row["providers"].items():
            if mine and name != "rnnkernels" and "seconds" in found:
                key = row["variant"], {"torch": "torch.nn", "torch_script": "scripted loop"}.get(name, name)
                groups.setdefault(key, {}).setdefault(row["mode"], []).append(found["seconds"] / mine)
    lines = [["option", "the other way", *MODES.values()]]
    for (variant, name), modes in groups.items():
        lines.append([variant, name, *(spread(modes.get(mode)) for mode in MODES)])
    return table(lines)


def spread(values):
    """Geometric mean of ratios, with least and most."""
    if not values:
        return "–"
    return f"{ratio(statistics.geometric_mean(values))} ({ratio(min(values))} to {ratio(max(values))})"


def cells(results, link):
    """Cells of one's own: the time of each other way over ours, by mode, over all cells and shapes."""
    lines = [["the other way", *MODES.values()]]
    others = {
        "loop": "a loop over steps in plain torch", "torch_script": "the same, scripted", "torch_compile": "compiled",
        "jax": "`jax.lax.scan` under `jit`", "public": "the cell's public implementation",
        "built_in": "our built-in layer of the same cell",
    }  # fmt: skip
    for name, text in others.items():
        line = [text]
        for mode in MODES:
            found = [row["providers"] for row in results["rows"] if row["mode"] == mode]
            times = [(by[name], by["rnnkernels"]) for by in found if "seconds" in by.get(name, {})]
            line.append(spread([theirs["seconds"] / mine["seconds"] for theirs, mine in times]))
        lines += [line] if set(line[1:]) != {"–"} else []
    return table(lines) + "\n" + came_from(results, link)


def gpu(results, link):
    """cuDNN's time over ours: forward, then forward and backward, by workload and dtype."""
    lines = {}
    for row in results["rows"]:
        shape = f"{row['workload']} ({row['kind']}, T {row['T']}, B {row['B']}, {row['I']}→{row['H']}, L {row['L']})"
        found = lines.setdefault(shape, {})
        found[row["dtype"], row["mode"]] = "not right" if "reason" in ours(row) else ratio(ours(row).get("ratio"))
    body = [
        [shape, *(" &nbsp; ".join(found.get((dtype, mode), "–") for mode in MODES) for dtype in DTYPES)]
        for shape, found in lines.items()
    ]
    return table([["workload", *DTYPES], *body]) + "\n" + came_from(results, link)


KINDS = {
    "means": means, "workloads": workloads, "over-plain": over_plain, "over-others": over_others, "cells": cells,
    "gpu": gpu, "steps": steps,
}  # fmt: skip
