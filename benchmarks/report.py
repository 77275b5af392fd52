"""Results as tables: Markdown for the results folder, a summary for the README, rich for the terminal.

`python -m benchmarks.report benchmarks/results/cpu-....json` writes the summary between the README's markers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
SLOWER = "slower"  # the mark of a losing shape


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


def peers(rows: list[dict]) -> list[str]:
    """The providers in the order of the command line."""
    return list(dict.fromkeys(name for row in rows for name in row["providers"]))


def geometric_means(rows: list[dict]) -> dict[tuple[str, str, int, str], tuple[float, float, int]]:
    """(dtype, mode, threads, provider) to the ratio's geometric mean, the smallest ratio, and how many there are."""
    ratios: dict[tuple[str, str, int, str], list[float]] = {}
    for row in rows:
        for name, result in row["providers"].items():
            if name != "torch" and result.get("ratio"):
                ratios.setdefault((row["dtype"], row["mode"], row["threads"], name), []).append(result["ratio"])
    return {key: (float(np.exp(np.mean(np.log(v)))), min(v), len(v)) for key, v in ratios.items()}


def columns(names: list[str]) -> list[str]:
    fixed = ["workload", "cell", "T", "B", "I→H", "L", "dtype", "mode", "threads"]
    per_provider = [[name, "memory"] if name == "torch" else [name, "ratio", "memory"] for name in names]
    return fixed + sum(per_provider, [])


def cells(row: dict, names: list[str]) -> list[str]:
    """One line of the table, as text. A provider that did not run gives its reason."""
    line = [row["workload"], row["kind"], row["T"], row["B"], f"{row['I']}→{row['H']}", row["L"]]
    line = [str(value) for value in (*line, row["dtype"], row["mode"], row["threads"])]
    for name in names:
        result = row["providers"].get(name, {"reason": "not asked"})
        time = duration(row, result["seconds"]) if "seconds" in result else result.get("reason", "")
        ratio = [] if name == "torch" else [ratio_text(result.get("ratio"))]
        line += [time, *ratio, size(result.get("peak_bytes"))]
    return line


def line(row: dict) -> str:
    """A row in one line, for the log of a running benchmark."""
    times = []
    for name, result in row["providers"].items():
        text = duration(row, result["seconds"]) if "seconds" in result else result["reason"]
        ratio = "" if name == "torch" else ratio_text(result["ratio"])
        times.append(f"{name} {text} ({ratio})" if ratio else f"{name} {text}")
    plural = "s" if row["threads"] > 1 else ""
    return f"{row['workload']}, {row['dtype']}, {row['mode']}, {row['threads']} thread{plural}: {', '.join(times)}"


def means_lines(rows: list[dict]) -> list[str]:
    return [
        f"{name}, {dtype}, {mode}, {threads} thread{'s' if threads > 1 else ''}: "
        f"geometric mean of the ratio to torch {mean:.2f} over {count} workloads, smallest {least:.2f}"
        for (dtype, mode, threads, name), (mean, least, count) in geometric_means(rows).items()
    ]


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    def line(values: list[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

    def mark(value: str) -> str:
        return f"**{value}**" if value.endswith(SLOWER) else value

    return "\n".join([line(head), "|" + "---|" * len(head), *(line([mark(v) for v in values]) for values in lines)])


def markdown(results: dict) -> str:
    """The whole file: machine, every row, geometric means."""
    rows = results["rows"]
    names = peers(rows)
    head = "\n".join(f"- {name}: {value}" for name, value in results["machine"].items() if name != "command")
    means = "\n".join(f"- {line}" for line in means_lines(rows)) or "- no ratio yet"
    return f"""# Benchmark on {results["machine"].get("gpu", results["machine"]["cpu"])}

    {results["machine"]["command"]}

{head}

Medians of alternating runs; "ratio" is torch's time over the provider's (below 1: {SLOWER}); "memory" is the growth of
peak memory during one call, the results included. A provider is timed only if its output, and in training each
gradient, is right against float64; otherwise the reason stands in place of the time.

{means}

{markdown_table(columns(names), [cells(row, names) for row in rows])}
"""


def terminal(results: dict) -> Table:
    rows = results["rows"]
    names = peers(rows)
    lines = [cells(row, names) for row in rows]
    shown = [n for n, column in enumerate(columns(names)) if column != "memory" or any(values[n] for values in lines)]
    title = f"ratio: torch's time over the provider's; below 1 is {SLOWER}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for n in shown:
        table.add_column(columns(names)[n], justify="left" if n < 2 else "right", overflow="fold", max_width=40)
    for values in lines:
        texts = (escape(values[n]) for n in shown)
        table.add_row(*(f"[bold red]{text}[/]" if text.endswith(SLOWER) else text for text in texts))
    return table


def summary(results: dict) -> str:
    """The README's table: a line per workload, a column per mode and thread count, for our library against torch."""
    rows, machine = results["rows"], results["machine"]
    runs = list(dict.fromkeys((row["mode"], row["threads"]) for row in rows))
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        key = (row["workload"], row["dtype"])
        if key not in lines:
            shape = f"{row['kind']}, T {row['T']}, B {row['B']}, {row['I']}→{row['H']}, L {row['L']}"
            lines[key] = [row["workload"], shape, row["dtype"], *([""] * len(runs))]
        ours, torch = (row["providers"].get(name, {}) for name in ("rnnkernels", "torch"))
        if ours.get("ratio"):
            times = f"{duration(row, torch['seconds'])} → {duration(row, ours['seconds'])}"
            text = f"{times}, {ratio_text(ours['ratio'])}"
        else:
            text = ours.get("reason") or torch.get("reason", "")
        lines[key][3 + runs.index((row["mode"], row["threads"]))] = text
    head = ["workload", "shape", "dtype"]
    head += [f"{mode}, {threads} thread{'s' if threads > 1 else ''}" for mode, threads in runs]
    means = "\n".join(f"- {line}" for line in means_lines(rows))
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores ({machine['instruction sets']})"
    return f"""`{machine["command"]}`

{where}; Python {machine["python"]}, torch {machine["torch"]}, rnnkernels {machine["rnnkernels"]}, backends
{machine["backends"]}; commit {machine["commit"]}, {machine["date"]}. Each cell: torch's time → ours, and the ratio.

{means}

{markdown_table(head, list(lines.values()))}"""


def fill(readme: str, text: str) -> str:
    """The README with `text` between its markers."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"needs exactly one {BEGIN} and, after it, one {END}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON files that benchmarks.run wrote")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    asked = parser.parse_args(arguments)
    try:
        parts = [summary(json.loads(path.read_text(encoding="utf-8"))) for path in asked.results]
        text = fill(asked.readme.read_text(encoding="utf-8"), "\n\n".join(parts))
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{type(error).__name__}: {error}")
    asked.readme.write_text(text, encoding="utf-8")
    print(f"wrote {asked.readme}", file=sys.stderr)


if __name__ == "__main__":
    main()
