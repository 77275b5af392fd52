"""The targets of the CPU kernels, and what the rows reach of them. Each is over the workloads in their own dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from benchmarks.stats import against_float32, busy_ratio, mean_of, ours, threads_text

COUNTED = 2**20  # bytes: the kernel counts resident memory to a few hundred KiB
STREAMS = ("stream-gru", "stream-tiny")


class Reached(NamedTuple):
    """A target, on how many threads, what was reached and at which workload, and whether that is enough."""

    target: str
    threads: int
    value: str
    good: bool


def extreme(
    target: str, threads: int, pairs: Iterable[tuple[str, float]], limit: float, form: str, most: bool = False
) -> list[Reached]:
    """The worst of (workload, value) pairs against a least value (or the most that is allowed)."""
    pairs = list(pairs)
    if not pairs:
        return []
    name, worst = (max if most else min)(pairs, key=lambda pair: pair[1])
    good = worst <= limit if most else worst >= limit
    reach = sum(value <= limit if most else value >= limit for _, value in pairs)
    return [Reached(target, threads, f"{form.format(worst)} ({name}); {reach} of {len(pairs)} workloads", good)]


def _ratios(rows: list[dict], threads: int) -> list[Reached]:
    found = []
    for mode, of, against, mean, least in (
        ("infer", "ratio", "torch.nn", 3.0, 1.1),
        ("train", "ratio", "torch.nn", 2.5, 1.05),
        ("infer", "ratio_best", "the best peer", 1.5, 1.0),
        ("train", "ratio_best", "the best peer", 1.5, 1.0),
    ):
        pairs = [(r["workload"], ours(r)[of]) for r in rows if r["mode"] == mode and ours(r).get(of)]
        if pairs:
            m = mean_of(pairs)
            text = f"{mode}, ratio to {against}: geometric mean ≥ {mean}"
            found.append(Reached(text, threads, f"{m.mean:.2f} over {m.count} workloads", m.mean >= mean))
            text = f"{mode}, ratio to {against}: no workload < {least}"
            found += extreme(text, threads, pairs, least, "{:.2f}")
    return found


def _shares(rows: list[dict], threads: int) -> list[Reached]:
    def shares(wanted: Callable[[dict], bool]) -> list[tuple[str, float]]:
        infer = (r for r in rows if r["mode"] == "infer" and wanted(r) and ours(r).get("share"))
        return [(r["workload"], 100 * ours(r)["share"]) for r in infer]

    batch = shares(lambda r: r["B"] >= 16 and r["H"] >= 128)
    single = shares(lambda r: r["B"] == 1 and r["H"] <= 512 and r["T"] > 1)  # single steps have a target of their own
    return [
        *extreme("infer, B ≥ 16, H ≥ 128: share of the bound ≥ 85 %", threads, batch, 85, "{:.0f} %"),
        *extreme("infer, B = 1, H ≤ 512, T > 1: share of the bound ≥ 70 %", threads, single, 70, "{:.0f} %"),
    ]


def _steps(rows: list[dict], threads: int) -> list[Reached]:
    steps = [r for r in rows if r["workload"] in STREAMS and r["mode"] == "infer"]

    def above(name: str) -> list[tuple[str, float]]:
        results = ((r, r["providers"].get(name, {})) for r in steps if "seconds" in r.get("bound", {}))
        return [(r["workload"], 1e6 * (p["seconds"] - r["bound"]["seconds"])) for r, p in results if "seconds" in p]

    ratios = [(r["workload"], ours(r)["ratio"]) for r in steps if ours(r).get("ratio")]
    return [
        *extreme(
            "one step through the module: ≤ 12 µs above the bound", threads, above("rnnkernels"), 12, "{:.1f} µs", True
        ),
        *extreme("one step through the module: ratio to torch.nn ≥ 2.5", threads, ratios, 2.5, "{:.2f}"),
        *extreme("one step through Stepper: ≤ 3 µs above the bound", threads, above("stepper"), 3, "{:.1f} µs", True),
    ]


def _memory_and_neighbour(rows: list[dict], all_rows: list[dict], threads: int) -> list[Reached]:
    memory = []
    for r in rows:
        mine, torchs = ours(r).get("peak_bytes"), r["providers"].get("torch", {}).get("peak_bytes")
        if r["mode"] == "train" and mine and torchs and max(mine, torchs) >= COUNTED:
            memory.append((r["workload"], mine / torchs))
    busy = [(f"{r['workload']}, {r['mode']}", ratio) for r in rows if (ratio := busy_ratio(r, all_rows))]
    return [
        *extreme("train, peak memory over torch's ≤ 1 (from 1 MiB on)", threads, memory, 1.0, "{:.2f}", True),
        *extreme("busy neighbour: time over the undisturbed one-thread time ≤ 3", threads, busy, 3.0, "{:.2f}", True),
    ]


def _narrow(rows: list[dict], threads: int) -> list[Reached]:
    infer = [p for p in against_float32(rows) if p.row["mode"] == "infer" and p.row["threads"] == threads]

    def bf16(wanted: Callable[[dict], bool]) -> list[tuple[str, float]]:
        return [(p.row["workload"], p.ratio) for p in infer if p.row["dtype"] == "bfloat16" and wanted(p.row)]

    batch = bf16(lambda r: r["B"] >= 16 and r["H"] >= 256)
    single = bf16(lambda r: r["B"] == 1 and r["H"] >= 512)
    int8 = [r for r in rows if r["dtype"] == "int8" and r["threads"] == threads]
    ratios = [(r["workload"], ours(r)["ratio_best"]) for r in int8 if ours(r).get("ratio_best")]
    errors = []
    for r in int8:
        peer = r["providers"].get(r.get("best_peer"), {}).get("rms_error")
        if peer and "rms_error" in ours(r):
            errors.append((r["workload"], ours(r)["rms_error"] / peer))
    return [
        *extreme("infer, bfloat16 over our float32, B ≥ 16, H ≥ 256: ≥ 1.6", threads, batch, 1.6, "{:.2f}"),
        *extreme("infer, bfloat16 over our float32, B = 1, H ≥ 512: ≥ 1.5", threads, single, 1.5, "{:.2f}"),
        *extreme("int8, ratio to the fastest int8 peer ≥ 1.0", threads, ratios, 1.0, "{:.2f}"),
        *extreme("int8, error (rms) over that peer's ≤ 1", threads, errors, 1.0, "{:.2f}", True),
    ]


def reached(rows: list[dict]) -> list[Reached]:
    """Each target that can be computed from the rows, for each thread count."""
    found = []
    for threads in sorted({row["threads"] for row in rows if row["device"] == "cpu"}):
        own = [row for row in rows if row["threads"] == threads and row["own_dtype"] and row["device"] == "cpu"]
        found += _ratios(own, threads) + _shares(own, threads) + _steps(own, threads)
        found += _memory_and_neighbour(own, rows, threads) + _narrow(rows, threads)
    return found


def without_threads(found: list[Reached]) -> list[list[str]]:
    """Targets as lines of a table, where there is but one number of threads."""
    return [[r.target, r.value, "reached" if r.good else "**missed**"] for r in found]


def lines(rows: list[dict]) -> list[list[str]]:
    """The targets as lines of a table."""
    return [[r.target, threads_text(r.threads), r.value, "yes" if r.good else "**no**"] for r in reached(rows)]
