"""Lines and tables in Markdown."""

from __future__ import annotations

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

    return "\n".join(
        [joined(head), "|" + "---|" * len(head), *(joined(ln.get(name, "") for name in head) for ln in texts)]
    )
