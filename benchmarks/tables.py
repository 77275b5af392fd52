"""What the report's tables are made of: Markdown, and numbers, times and reasons as text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

SLOWER = "slower"  # the mark of a losing shape


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def text_of(value: object) -> str:
    """A cell of a table."""
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def table(lines: list[dict[str, Any]]) -> str:
    """A Markdown table of lines that name their columns; a column without any text is left out."""
    texts = [{name: text_of(value) for name, value in line.items()} for line in lines]
    names = dict.fromkeys(name for line in texts for name in line)
    head = [name for name in names if any(line.get(name) for line in texts)]

    def joined(values: Iterable[str]) -> str:
        marked = (f"**{value}**" if value.endswith(SLOWER) else value for value in values)
        return "| " + " | ".join(value.replace("|", "\\|") for value in marked) + " |"

    body = (joined(line.get(name, "") for name in head) for line in texts)
    return "\n".join([joined(head), "|" + "---|" * len(head), *body])


def section(title: str, lines: list[dict[str, Any]]) -> str:
    """A table under a title; nothing without lines."""
    return f"## {title}\n\n{table(lines)}\n" if lines else ""


def duration(row: dict, seconds: float) -> str:
    """Microseconds a call for single steps, milliseconds for sequences; three digits."""
    scale, unit = (1e6, "µs") if row["T"] == 1 else (1e3, "ms")
    value = max(seconds * scale, 1e-9)
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f} {unit}"


def ratio_text(value: float | None) -> str:
    if value is None or value >= 1:
        return text_of(value)
    return f"{value:.{2 if value < 0.995 else 4}f} {SLOWER}"  # 0.998 must not read 1.00


def time_text(row: dict, name: str, result: dict | None, reasons: dict[str, int]) -> str:
    """The time of what was measured under a name, or the number of the reason why there is none (None: not asked)."""
    if result and "seconds" in result:
        return duration(row, result["seconds"])
    reason = f"{name}: {result['reason'] if result else 'not asked'}"
    return f"– ({reasons.setdefault(reason, len(reasons) + 1)})"


def numbered(reasons: dict[str, int]) -> list[str]:
    return [f"{number}. {text}" for text, number in reasons.items()]
