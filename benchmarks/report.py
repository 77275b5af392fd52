"""Write results: JSON, Markdown, plots, and the summary in the README.

`python -m benchmarks.report benchmarks/results/cpu-....json` writes Markdown and plots beside the JSON file anew, and
the summary between the README's markers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks import plots, targets
from benchmarks.rows import derive
from benchmarks.stats import against_float32, mean_of, means_lines, ours, threads_text
from benchmarks.tables import SLOWER, best_text, duration, markdown, markdown_table, ratio_text

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PLOTS = {"-ratio.png": plots.ratios, "-roofline.png": plots.roofline}


def replace(path: Path, text: str) -> None:
    """Write a file in one go: a killed run leaves whole files."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_texts(out: Path, texts: dict[str, str]) -> list[Path]:
    """A file for each suffix of a name that has none."""
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [out.with_name(out.name + suffix) for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        replace(path, text)
    return paths


def json_and(markdown: str, results: dict) -> dict[str, str]:
    """The texts of results, by suffix."""
    return {".json": json.dumps(results, indent=1) + "\n", ".md": markdown}


def write(results: dict, out: Path, with_plots: bool = False) -> list[Path]:
    """JSON and Markdown, and the plots where asked for."""
    written = write_texts(out, json_and(markdown(results), results))
    for suffix, draw in PLOTS.items() if with_plots else ():
        path = out.with_name(out.name + suffix)
        if draw(results, path):
            written.append(path)
    return written


def _cell(row: dict) -> str:
    """Our time and how it compares, the losing part marked."""
    mine = ours(row)
    if "seconds" not in mine:
        return mine.get("reason", "")
    texts = [f"{ratio_text(mine['ratio'])}" if mine.get("ratio") else "", best_text(row)]
    texts = [f"**{text}**" if text.endswith(SLOWER) else text for text in texts]
    return ", ".join([duration(row, mine["seconds"]), *filter(None, texts)])


def _narrow_lines(rows: list[dict]) -> list[str]:
    """Means of our narrow dtypes against our own float32."""
    groups: dict[tuple, list[tuple[str, float]]] = {}
    for pair in against_float32(rows):
        key = (pair.row["dtype"], pair.row["mode"], pair.row["threads"])
        groups.setdefault(key, []).append((pair.row["workload"], pair.ratio))
    return [
        f"{dtype} against our float32, {mode}, {threads_text(threads)}: geometric mean {m.mean:.2f} over {m.count} "
        f"workloads, none below {m.least:.2f} ({m.least_name})"
        for (dtype, mode, threads), values in groups.items()
        for m in [mean_of(values)]
    ]


def summary(results: dict, images: str = "") -> str:
    """The README's part: means, targets, and a line per workload with a column per mode and thread count, ours."""
    rows, machine = results["rows"], results["machine"]
    runs = list(dict.fromkeys((row["mode"], row["threads"]) for row in rows))
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        key = (row["workload"], row["dtype"])
        if key not in lines:
            shape = f"{row['kind']}, T {row['T']}, B {row['B']}, {row['I']}→{row['H']}, L {row['L']}"
            lines[key] = [row["workload"], shape, row["dtype"], *([""] * len(runs))]
        lines[key][3 + runs.index((row["mode"], row["threads"]))] = _cell(row)
    head = ["workload", "shape", "dtype", *(f"{mode}, {threads_text(threads)}" for mode, threads in runs)]
    means = "\n".join(f"- {line}" for line in means_lines(rows, ("rnnkernels",)) + _narrow_lines(rows))
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores ({machine['instruction sets']})"
    reached = targets.lines(rows)
    met = markdown_table(["target", "threads", "reached", "met"], reached) + "\n\n" if reached else ""
    return f"""`{machine["command"]}`

{where}; Python {machine["python"]}, torch {machine["torch"]}, rnnkernels {machine["rnnkernels"]}, backends
{machine["backends"]}; commit {machine["commit"]}, {machine["date"]}. Each cell: our time, torch's time over ours, and
the best peer with its time over ours.

{images}{means}

{met}{markdown_table(head, list(lines.values()))}"""


def fill(readme: str, text: str) -> str:
    """The README with `text` between its markers."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"needs exactly one {BEGIN} and, after it, one {END}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def _images(written: list[Path], readme: Path) -> str:
    """The plots as Markdown, by paths from the README's folder."""
    paths = [
        Path(os.path.relpath(path, readme.resolve().parent)).as_posix() for path in written if path.suffix == ".png"
    ]
    return "".join(f"![{Path(path).stem}]({path})\n\n" for path in paths)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON files that benchmarks.run wrote")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    asked = parser.parse_args(arguments)
    try:
        parts = []
        for path in asked.results:
            results = json.loads(path.read_text(encoding="utf-8"))
            results["rows"] = [derive(row) for row in results["rows"]]
            written = write(results, path.resolve().with_suffix(""), with_plots=True)
            parts.append(summary(results, _images(written, asked.readme)))
        text = fill(asked.readme.read_text(encoding="utf-8"), "\n\n".join(parts))
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{type(error).__name__}: {error}")
    asked.readme.write_text(text, encoding="utf-8")
    print(f"wrote {', '.join(map(str, written))} and {asked.readme}", file=sys.stderr)


if __name__ == "__main__":
    main()
