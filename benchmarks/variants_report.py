"""The variants benchmark's results as Markdown, and its targets, reached or missed."""

from __future__ import annotations

from benchmarks.stats import ours
from benchmarks.tables import Reasons, duration, machine_lines, markdown_table, ratio_text, size
from benchmarks.targets import Reached, extreme, without_threads

TITLES = {"infer": "Inference", "train": "Training step: forward and backward"}
SECOND_PASS = ("layer_norm", "reset_after=False")  # those need a second pass over the units inside a step
MOST = {False: 1.1, True: 1.4}  # of the plain layer's time, without and with such a pass
# variant: (provider, what it does, the least ratio of its time to ours)
LOOP = ("torch_script", "the scripted loop", 5.0)
LEAST = {"reset": ("torch", "split and pad", 3.0)}
LEAST |= dict.fromkeys(("recurrent_dropout", "zoneout", *SECOND_PASS), LOOP)
RECOMPUTE = "recompute"  # is for memory, and has no target in time
RESETS = 0.03  # the share of steps, as in the workloads that have them
OTHERS = {"torch": "torch.nn: split and pad, or pack", "torch_script": "scripted loop", "keras": "Keras"}
HEAD = ["workload", "cell", "T", "B", "I→H", "variant", "runs on", "plain layer", "with the variant", "over plain"]
HEAD += ["of that drawing masks"]


def over(row: dict, name: str) -> float | None:
    """A provider's time over ours."""
    theirs, mine = row["providers"].get(name, {}).get("seconds"), ours(row).get("seconds")
    return theirs / mine if theirs and mine else None


def targets(rows: list[dict]) -> list[Reached]:
    """Each target for each variant and mode. A row of ours without a time is a miss."""
    found = []
    for variant in dict.fromkeys(row["variant"] for row in rows if row["variant"] != RECOMPUTE):
        for mode in TITLES:
            these = [row for row in rows if row["variant"] == variant and row["mode"] == mode]
            untimed = [row["workload"] for row in these if not row["over_plain"]]
            most = MOST[variant in SECOND_PASS]
            pairs = [(row["workload"], row["over_plain"]) for row in these if row["over_plain"]]
            reached = extreme(f"{variant}, {mode}: ≤ {most} of the plain layer's time", 1, pairs, most, "{:.2f}", True)
            if variant in LEAST:
                name, words, least = LEAST[variant]
                pairs = [(row["workload"], value) for row in these if (value := over(row, name))]
                reached += extreme(f"{variant}, {mode}: ≥ {least:g} x as fast as {words}", 1, pairs, least, "{:.2f}")
            if untimed:
                value = f"not timed: {', '.join(untimed)}"
                reached = [r._replace(value=f"{r.value}; {value}", good=False) for r in reached] or [
                    Reached(f"{variant}, {mode}: ≤ {most} of the plain layer's time", 1, value, False)
                ]
            found += reached
    return found


def cells(row: dict, others: list[str], reasons: Reasons) -> list[str]:
    """One line of the table, as text."""
    kind, drawn = row["kind"].split(",")[0], row["masks"]
    line = [row["workload"], kind, str(row["T"]), str(row["B"]), f"{row['I']}→{row['H']}", row["variant"]]
    line += [row["schedule"].split(":")[0], reasons.cell(row, "plain layer", row["plain"])]
    line += [reasons.cell(row, "rnnkernels", ours(row)), f"{row['over_plain']:.2f}" if row["over_plain"] else ""]
    line.append(duration(row, drawn["seconds"]) if drawn and "seconds" in drawn else "")
    for name in others:
        line += [reasons.cell(row, name, row["providers"][name]), ratio_text(over(row, name))]
    return line


def line(row: dict) -> str:
    """A row in one line, for the log of a running benchmark."""
    head = f"{row['workload']}, {row['variant']}, {row['mode']} ({row['schedule'].split(':')[0]})"
    mine = ours(row)
    if "seconds" not in mine:
        return f"{head}: {mine['reason']}"
    times = [duration(row, mine["seconds"])]
    times += [f"{row['over_plain']:.2f} of plain"] if row["over_plain"] else []
    for name in OTHERS:
        value, result = over(row, name), row["providers"].get(name, {})
        times += [f"{name} {ratio_text(value)}"] if value else [f"{name} {result['reason']}"] if "red" in result else []
    return f"{head}: {', '.join(times)}"


def memory_section(rows: list[dict]) -> str:
    """What `recompute` saves: peak memory beside that of the plain layer."""
    lines = []
    for row in rows:
        pair = [result.get("peak_bytes") for result in (row["plain"], ours(row))]
        if all(pair):
            shape = f"T {row['T']}, B {row['B']}, {row['I']}→{row['H']}"
            lines.append(
                [row["workload"], row["kind"].split(",")[0], shape, *map(size, pair), f"{pair[1] / pair[0]:.2f}"]
            )
    if not lines:
        return ""
    head = ["workload", "cell", "shape", "plain layer", "with recompute", "over plain"]
    return f"## Peak memory of a training step, results included\n\n{markdown_table(head, lines)}\n"


def markdown(results: dict) -> str:
    """The whole file: machine, targets, rows, reasons."""
    rows, parts = results["rows"], []
    others = [name for name in OTHERS if any(name in row["providers"] for row in rows)]
    columns = [*HEAD, *(text for name in others for text in (OTHERS[name], "its time over ours"))]
    for mode, title in TITLES.items():
        reasons, these = Reasons(), [row for row in rows if row["mode"] == mode]
        if these:
            parts.append(f"## {title}\n\n{markdown_table(columns, [cells(row, others, reasons) for row in these])}\n")
            if reasons.numbers:
                parts.append("Not timed:\n\n" + "\n".join(reasons.lines()) + "\n")
    parts.append(memory_section(rows))
    lines = without_threads(targets(rows))
    absent = "".join(f"\nLeft out: {name} {why}.\n" for name, why in results["absent"].items())
    cut = f"\nOut of time: {'; '.join(results['cut'])}.\n" if results["cut"] else ""
    threads = ", ".join(str(count) for count in sorted({row["threads"] for row in rows}))
    return f"""# What torch.nn does not have, on {results["machine"]["cpu"]}

    {results["machine"]["command"]}

{machine_lines(results["machine"])}
- threads: {threads}

Medians of alternating runs, each provider in its own process. A provider is timed only if its output, and in training
each gradient, is right against float64: for recurrent dropout, zoneout, layer norm and the GRU that resets before its
product against our reference in plain torch, with the same masks; else against torch.nn. A layer norm magnifies
rounding: where torch's error shows that, right is also what is off by no more than twice what changes in the last digit
of input and weights make of the result in float64. Masks are drawn inside the
timed call on all sides, by torch in the same way; how long that alone takes has a column. *runs on* is the backend that
`explain` names for the variant: the reference is plain torch, slow. `legged` and `rl-bench` are GPU workloads, here on
the CPU with the smaller batch of column B. The recurrent dropout of Keras is not compared: it takes no masks, and draws
one for each gate. {RESETS:.0%} of the steps are resets, lengths are uniform from 1 to T.
{absent}{cut}
## Targets

{markdown_table(["target", "reached (the worst)", ""], lines)}

{chr(10).join(filter(None, parts))}"""
