"""Results as tables: Markdown for the results folder, rich for the terminal, a line of a log."""

from __future__ import annotations

import math

from rich import box
from rich.markup import escape
from rich.table import Table

from benchmarks import targets
from benchmarks.stats import against_float32, busy_ratio, means_lines, ours, threads_text

SLOWER = "slower"  # the mark of a losing shape
SHAPE = ["workload", "cell", "T", "B", "I→H", "L", "dtype", "threads"]
TITLES = {"infer": "Inference", "train": "Training step: forward and backward"}


def duration(row: dict, seconds: float) -> str:
    """Microseconds a call for single steps, milliseconds for sequences."""
    scale, unit = (1e6, "µs") if row["T"] == 1 else (1e3, "ms")
    value = max(seconds * scale, 1e-9)
    digits = max(0, 2 - math.floor(math.log10(value)))  # three in all
    return f"{value:.{digits}f} {unit}"


def size(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f} MiB"


def ratio_text(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 1:
        return f"{value:.2f}"
    return f"{value:.{2 if value < 0.995 else 4}f} {SLOWER}"  # 0.998 must not read 1.00


def share_text(row: dict, result: dict) -> str:
    return f"{100 * result['share']:.0f} % of {row['bound']['by']}" if result.get("share") else ""


def best_text(row: dict) -> str:
    """The best peer and our ratio to it, with the mark last."""
    value = ours(row).get("ratio_best")
    return "" if value is None else f"{row['best_peer']} {ratio_text(value)}"


def peers(rows: list[dict]) -> list[str]:
    """The providers in the order of the command line."""
    return list(dict.fromkeys(name for row in rows for name in row["providers"]))


def shape_cells(row: dict) -> list[str]:
    cells = [row["workload"], row["kind"], row["T"], row["B"], f"{row['I']}→{row['H']}", row["L"]]
    return [str(value) for value in (*cells, row["dtype"], row["threads"])]


class Reasons:
    """The reasons of what was not timed, numbered: in a table stands the time, or the number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def cell(self, row: dict, name: str, result: dict | None) -> str:
        """Of what was measured under a name; None: it was not asked."""
        if result and "seconds" in result:
            return duration(row, result["seconds"])
        reason = result["reason"] if result else "not asked"
        return f"– ({self.numbers.setdefault(f'{name}: {reason}', len(self.numbers) + 1)})"

    def lines(self) -> list[str]:
        return [f"{number}. {text}" for text, number in self.numbers.items()]


def columns(names: list[str]) -> list[str]:
    return [*SHAPE, *names, "ratio to torch", "ratio to the best peer", "share of the bound"]


def cells(row: dict, names: list[str], reasons: Reasons) -> list[str]:
    """One line of the table, as text: each provider's time, then how ours compares."""
    line = [*shape_cells(row), *(reasons.cell(row, name, row["providers"].get(name)) for name in names)]
    return [*line, ratio_text(ours(row).get("ratio")), best_text(row), share_text(row, ours(row))]


def line(row: dict) -> str:
    """A row in one line, for the log of a running benchmark."""
    times = []
    for name, result in row["providers"].items():
        text = duration(row, result["seconds"]) if "seconds" in result else result["reason"] if "red" in result else "–"
        ratio = "" if name == "torch" else ratio_text(result.get("ratio"))
        times.append(f"{name} {text} ({ratio})" if ratio else f"{name} {text}")
    head = f"{row['workload']}, {row['dtype']}, {row['mode']}, {threads_text(row['threads'])}"
    tail = "; ".join(filter(None, (best_text(row), share_text(row, ours(row)))))
    return f"{head}: {', '.join(times)}{'; best peer ' + tail if tail else ''}"


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    def line(values: list[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

    def mark(value: str) -> str:
        return f"**{value}**" if value.endswith(SLOWER) else value

    return "\n".join([line(head), "|" + "---|" * len(head), *(line([mark(v) for v in values]) for values in lines)])


def machine_lines(described: dict) -> str:
    """The machine as a list; the command stands apart."""
    return "\n".join(f"- {name}: {value}" for name, value in described.items() if name != "command")


def roofs_section(roofs: dict | None) -> str:
    if not roofs or "reason" in roofs:
        return f"No share of the bound: {(roofs or {}).get('reason', 'the probe measures CPUs')}."
    groups = (("flops", "{} GFLOP/s", "FMA peak "), ("bandwidth", "{} GB/s", "read "))
    counts = list(roofs["flops"]["float32"])
    lines = []
    for group, unit, prefix in groups:
        for name, values in roofs[group].items():
            held = f" ({roofs['sizes'][name] / 2**10:.0f} KiB)" if name in roofs["sizes"] else ""
            label = "AMX bfloat16 (no part of the bound)" if name.startswith("amx") else f"{prefix}{name}{held}"
            lines.append([label, *(unit.format(f"{values[count] / 1e9:.4g}") for count in counts)])
    return markdown_table(["measured by the probe", *(threads_text(int(count)) for count in counts)], lines)


def memory_section(rows: list[dict], names: list[str]) -> str:
    known = [row for row in rows if any(p.get("peak_bytes") is not None for p in row["providers"].values())]
    if not known:
        return ""
    lines = [
        [row["workload"], row["dtype"], row["mode"], str(row["threads"])]
        + [size(row["providers"].get(name, {}).get("peak_bytes")) for name in names]
        for row in known
    ]
    return "\n## Peak memory of one call\n\n" + markdown_table(["workload", "dtype", "mode", "threads", *names], lines)


def narrow_section(rows: list[dict]) -> str:
    pairs = against_float32(rows)
    if not pairs:
        return ""
    lines = [
        [p.row["workload"], p.row["mode"], str(p.row["threads"]), p.row["dtype"], ratio_text(p.ratio)] for p in pairs
    ]
    head = ["workload", "mode", "threads", "dtype", "our float32 time over ours"]
    return "\n## Precision: narrow numbers against our own float32\n\n" + markdown_table(head, lines)


def int8_section(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        for name, p in row["providers"].items():
            if "rms_error" in p:
                errors = [f"{p[key]:.2e}" for key in ("max_error", "rms_error", "relative_error")]
                lines.append([row["workload"], str(row["threads"]), name, *errors])
    if not lines:
        return ""
    head = ["workload", "threads", "provider", "largest error of y", "rms error of y", "rms over rms of y"]
    return "\n## Errors with int8 weights, against float64\n\n" + markdown_table(head, lines)


def busy_section(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        seconds, ratio = ours(row).get("busy_seconds"), busy_ratio(row, rows)
        if seconds:
            head = [row["workload"], row["dtype"], row["mode"], str(row["threads"])]
            lines.append([*head, duration(row, seconds), "" if ratio is None else f"{ratio:.2f}"])
    if not lines:
        return ""
    head = ["workload", "dtype", "mode", "threads", "rnnkernels, neighbour busy", "over one thread undisturbed"]
    return "\n## With a busy process on one of the cores\n\n" + markdown_table(head, lines)


def markdown(results: dict) -> str:
    """The whole file: machine, roofs, targets, means, every row, memory, comparisons, reasons."""
    rows, names, reasons = results["rows"], peers(results["rows"]), Reasons()
    means = "\n".join(f"- {line}" for line in means_lines(rows)) or "- no ratio yet"
    parts = []
    for mode, title in TITLES.items():
        lines = [cells(row, names, reasons) for row in rows if row["mode"] == mode]
        if lines:
            parts.append(f"\n## {title}\n\n{markdown_table(columns(names), lines)}")
    parts += [memory_section(rows, names), narrow_section(rows), int8_section(rows), busy_section(rows)]
    if reasons.numbers:
        parts.append("\n## Why some were not timed\n\n" + "\n".join(reasons.lines()))
    reached = markdown_table(["target", "threads", "reached", "met"], targets.lines(rows))
    return f"""# Benchmark on {results["machine"].get("gpu", results["machine"]["cpu"])}

    {results["machine"]["command"]}

{machine_lines(results["machine"])}

Medians of alternating runs, each provider in its own process on as many cores as threads. A provider is timed only if
its output, and in training each gradient, is right against float64. A ratio is the other's time over that of
rnnkernels (below 1: {SLOWER}); the best peer is the fastest provider that is not ours. The bound of a workload is the
larger of its operations over the FMA peak (vector instructions) and its weights' bytes over the bandwidth of the cache
that holds them; a kernel on matrix units (AMX) can exceed 100 % of it. Memory is the growth of peak memory during one
call, the results included.

{roofs_section(results.get("roofs"))}

## Targets

{reached}

## Means

{means}
{chr(10).join(filter(None, parts))}
"""


def terminal(results: dict) -> Table:
    rows, reasons = results["rows"], Reasons()
    names = peers(rows)
    title = f"ratio: the other's time over that of rnnkernels; below 1 is {SLOWER}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for n, column in enumerate(["mode", *columns(names)]):
        table.add_column(column, justify="left" if n < 3 else "right", overflow="fold", max_width=40)
    for row in rows:
        texts = (escape(value) for value in (row["mode"], *cells(row, names, reasons)))
        table.add_row(*(f"[bold red]{text}[/]" if text.endswith(SLOWER) else text for text in texts))
    table.caption, table.caption_justify = "\n".join(map(escape, reasons.lines())) or None, "left"
    return table
