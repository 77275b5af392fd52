"""Plots of results: ratios per workload, and the roofline. PNG, by matplotlib, without a display."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.rows import AGAINST, ours, threads_text

LOOKS = {"ratio": ("o", "#1f77b4"), "ratio_best": ("D", "#d95f02")}
TICKS = (0.01, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


def _panels(keys: list, size: tuple[float, float]):
    """A figure with a panel for each key, on the same y axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(keys), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.grid(color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
    return figure, dict(zip(keys, axes[0], strict=True))


def _save(figure, path: Path) -> bool:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def ratios(results: dict, path: Path) -> bool:
    """Ratio to torch and to the best peer per workload: a panel per mode and thread count. False: nothing to show."""
    rows = [row for row in results["rows"] if ours(row).get("ratio") or ours(row).get("ratio_best")]
    if not rows:
        return False
    names = [row["workload"] + (f", {row['dtype']}" if row["dtype"] != "float32" else "") for row in rows]
    labels = list(dict.fromkeys(names))
    keys = sorted({(row["mode"], row["threads"]) for row in rows})  # inference first
    values = [ours(row)[key] for row in rows for key in AGAINST if ours(row).get(key)]
    low, high = min(0.7, min(values) / 1.3), max(3.0, max(values) * 1.3)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    figure, panels = _panels(keys, (2.0 + 3.0 * len(keys), 1.9 + 0.26 * len(labels)))
    for (mode, threads), axis in panels.items():
        axis.set(xscale="log", xlim=(low, high), title=f"{mode}, {threads_text(threads)}")
        axis.axvspan(low, 1, color="#d62728", alpha=0.08, linewidth=0)
        axis.axvline(1, color="black", linewidth=1)
        for key, (marker, color) in LOOKS.items():
            points = [
                (ours(row).get(key) or math.nan, labels.index(name)) for row, name in zip(rows, names, strict=True)
                if (row["mode"], row["threads"]) == (mode, threads)
            ]  # fmt: skip
            x, y = zip(*points, strict=True)
            axis.plot(x, y, marker, color=color, markersize=6, label=f"to {AGAINST[key]}", linestyle="none", alpha=0.85)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    version = results["machine"].get("rnnkernels", "")
    figure.suptitle(f"rnnkernels {version}: the other's time over ours (left of 1: slower)")
    return _save(figure, path)


def _roofs(axis, roofs: dict, threads: int, low: float, high: float) -> None:
    """The FMA peak, and a slope for each cache that ends at it; the peak of matrix units where there are any."""
    peak = roofs["flops"]["float32"][str(threads)] / 1e9
    for name, color in zip(roofs["bandwidth"], ("#4c78a8", "#54a24b", "#e0a030", "#b04040"), strict=True):
        band = roofs["bandwidth"][name][str(threads)] / 1e9
        ends = [low, min(max(peak / band, low), high)]
        axis.plot(ends, [band * end for end in ends], color=color, linewidth=1.2, label=f"{name} {band:.0f} GB/s")
    axis.axhline(peak, color="black", linewidth=1.2, label=f"FMA peak {peak:.0f} GFLOP/s")
    if "amx_bfloat16" in roofs["flops"]:
        amx = roofs["flops"]["amx_bfloat16"][str(threads)] / 1e9
        axis.axhline(amx, color="black", linewidth=0.9, linestyle=":", label=f"AMX in bfloat16 {amx:.0f} GFLOP/s")


def roofline(results: dict, path: Path) -> bool:
    """Achieved GFLOP/s over arithmetic intensity, with the probe's roofs, a panel per thread count. False: no roofs."""
    roofs = results.get("roofs") or {}
    wanted = [r for r in results["rows"] if r["mode"] == "infer" and r["dtype"] == "float32" and "seconds" in ours(r)]
    if "flops" not in roofs or not wanted:
        return False
    names, counts = list(dict.fromkeys(r["workload"] for r in wanted)), sorted({r["threads"] for r in wanted})
    figure, panels = _panels(counts, (2.2 + 5.0 * len(counts), 5.6))
    points = {}  # by threads and number of the workload
    for r in wanted:
        flops, moved = r["bound"]["flops"], r["bound"]["bytes"]
        points[r["threads"], names.index(r["workload"]) + 1] = flops / moved, flops / ours(r)["seconds"] / 1e9
    low, high = min(x for x, _ in points.values()) / 2.5, max(x for x, _ in points.values()) * 2.5
    for threads, axis in panels.items():
        _roofs(axis, roofs, threads, low, high)
        for (count, number), (x, y) in points.items():
            if count == threads:
                axis.plot(x, y, "o", color="#333333", markersize=11, alpha=0.8, markeredgewidth=0)
                axis.annotate(str(number), (x, y), fontsize=6.5, color="white", ha="center", va="center")
        axis.set(xscale="log", yscale="log", xlim=(low, high), xlabel="operations for each byte of weights read")
        axis.set_ylim(bottom=min(y for _, y in points.values()) / 4)
        axis.set_title(f"inference, float32, {threads_text(threads)}")
        axis.legend(loc="lower right", fontsize=7.5)
    panels[counts[0]].set_ylabel("GFLOP/s reached by rnnkernels")
    key = "\n".join(f"{number:2}  {name}" for number, name in enumerate(names, 1))
    axis.text(1.03, 1, key, transform=axis.transAxes, va="top", fontsize=8.5)
    return _save(figure, path)


PLOTS = {"-ratio.png": ratios, "-roofline.png": roofline}
