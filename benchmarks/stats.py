"""Means and comparisons over rows: geometric means of ratios, precisions against each other, int8 errors."""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmarks.providers import OURS

AGAINST = {"ratio": "torch", "ratio_best": "the best peer"}


class Mean(NamedTuple):
    mean: float  # geometric
    least: float
    least_name: str  # the workload of the smallest
    count: int


def ours(row: dict) -> dict:
    """Our library's own results of a row, {} where it was not asked."""
    return row["providers"].get("rnnkernels", {})


def mean_of(values: list[tuple[str, float]]) -> Mean:
    """Of (workload, ratio) pairs, at least one."""
    name, least = min(values, key=lambda pair: pair[1])
    return Mean(math.exp(sum(math.log(value) for _, value in values) / len(values)), least, name, len(values))


def means(rows: list[dict], of: str = "ratio") -> dict[tuple[str, str, int, str], Mean]:
    """(dtype, mode, threads, provider) to the mean of its ratios; the best peer is for our providers only."""
    found: dict[tuple[str, str, int, str], list[tuple[str, float]]] = {}
    for row in rows:
        for name, result in row["providers"].items():
            if result.get(of) and name != "torch" and (of == "ratio" or name in OURS):
                key = (row["dtype"], row["mode"], row["threads"], name)
                found.setdefault(key, []).append((row["workload"], result[of]))
    return {key: mean_of(values) for key, values in found.items()}


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def means_lines(rows: list[dict], providers: tuple[str, ...] | None = None) -> list[str]:
    """A line for each mean, of these providers or of all."""
    return [
        f"{name}, {dtype}, {mode}, {threads_text(threads)}: geometric mean of the ratio to {against} {m.mean:.2f} over "
        f"{m.count} workload{'s' if m.count > 1 else ''}, none below {m.least:.2f} ({m.least_name})"
        for of, against in AGAINST.items()
        for (dtype, mode, threads, name), m in means(rows, of).items()
        if providers is None or name in providers
    ]


class Pair(NamedTuple):
    row: dict  # the narrow one
    ratio: float  # our float32 time over our time in the narrow dtype


def against_float32(rows: list[dict]) -> list[Pair]:
    """Our own rows in narrow dtypes, against our own in float32 of the same workload, mode and threads."""

    def key(row: dict) -> tuple:
        return row["workload"], row["mode"], row["threads"]

    wide = {key(row): ours(row) for row in rows if row["dtype"] == "float32"}
    found = []
    for row in rows:
        base, seconds = wide.get(key(row), {}).get("seconds"), ours(row).get("seconds")
        if row["dtype"] in ("bfloat16", "float16", "int8") and base and seconds:
            found.append(Pair(row, base / seconds))
    return found


def busy_ratio(row: dict, rows: list[dict]) -> float | None:
    """Our time with a busy neighbour, over our own undisturbed time with one thread."""
    disturbed = ours(row).get("busy_seconds")
    for other in rows:
        same = all(other[name] == row[name] for name in ("workload", "dtype", "mode"))
        if disturbed and same and other["threads"] == 1 and ours(other).get("seconds"):
            return disturbed / ours(other)["seconds"]
    return None
