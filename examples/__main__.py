"""List the examples, or run them all: `python -m examples [--run] [NAME ...]`, the rest of the line goes to each.

`python -m examples --run --quick --check` is `make examples`: quick settings, and status 1 if one fails or misses a
threshold.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

EXAMPLES = (
    "char_lm",
    "sentiment",
    "forecast",
    "elman",
    "tagging",
    "seq2seq",
    "caption",
    "gradients",
    "gates",
    "compare",
    "rl",
    "own_cell",
    "by_hand",
    "glimpses",
    "keras_models",
    "paint",
    "recipes",
)


def described(name: str) -> tuple[str, str]:
    """The first line of an example's docstring and its constant TIME, without importing it."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    times = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["TIME"]
    ]
    return ast.get_docstring(tree).splitlines()[0], times[0]


def listed() -> Table:
    table = Table("command", "what it does", "usual time, --quick")
    table.columns[0].no_wrap = True  # it is there to be copied
    for name in EXAMPLES:
        table.add_row(f"python -m examples.{name}", *described(name))
    return table


def run_all(names: list[str], arguments: list[str], console: Console) -> int:
    """Each in a process of its own, one after the other; a table at the end."""
    table = Table("example", "seconds", "ended")
    worst = 0
    for name in names:
        console.rule(name)
        start = time.perf_counter()
        status = subprocess.run([sys.executable, "-m", f"examples.{name}", *arguments]).returncode
        ended = {0: "well", 1: "missed a threshold"}.get(status, f"with status {status}")
        table.add_row(name, f"{time.perf_counter() - start:.0f}", ended)
        worst = max(worst, abs(status))
    console.print(table)
    return min(worst, 2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--run", action="store_true", help="run them instead of listing them")
    asked, rest = parser.parse_known_args(arguments)
    unknown = sorted(set(asked.names) - set(EXAMPLES))
    if unknown:
        parser.error(f"no such example: {' '.join(unknown)}; there are {', '.join(EXAMPLES)}")
    console = Console()
    if not asked.run:
        if rest or asked.names:
            parser.error(f"without --run it only lists: {' '.join((*asked.names, *rest))}")
        console.print(listed())
        return 0
    return run_all(asked.names or list(EXAMPLES), rest, console)


if __name__ == "__main__":
    sys.exit(main())
