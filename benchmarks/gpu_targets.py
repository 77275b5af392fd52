"""The targets on an H200, and what the rows reach of them. Each is over the workloads that it is about, none twice.

A ratio is the other's time over ours. H hidden, B batch, L layers.
"""

from __future__ import annotations

from benchmarks.stats import ours
from benchmarks.targets import Reached, extreme

MODES = {"infer": "forward", "train": "forward and backward"}
CATEGORIES = {  # name: (which ratio, to whom, the least)
    "resets and packed rows": ("ratio_best", "the best peer", 2.0),
    "LSTM in bf16 and fp32, and any GRU, with H > 192": ("ratio", "cuDNN", 1.5),
    "LSTM in fp16 at cuDNN's persistent shapes": ("ratio", "cuDNN", 0.9),
    "everything else": ("ratio", "cuDNN", 1.0),
}
MEMORY = {"torchrl_triton": ("TorchRL's Triton", 0.6), "torch": ("cuDNN's", 1.0)}


def category(row: dict) -> str:
    """The target that a row belongs to."""
    special, wide, persistent, rest = CATEGORIES
    cell, _, extras = row["kind"].partition(" ")
    cell = cell.rstrip(",")
    if "resets" in extras or "packed" in extras:
        return special
    if cell == "LSTM" and row["dtype"] == "float16":
        plain = not extras and row["L"] == 1
        return persistent if plain and row["H"] % 128 == 0 and row["H"] <= 1024 and row["B"] % 8 == 0 else rest
    return wide if row["H"] > 192 and cell in ("LSTM", "GRU") else rest


def _name(row: dict) -> str:
    return f"{row['workload']}, {row['dtype']}"


def reached(rows: list[dict]) -> list[Reached]:
    """Each target that can be computed from the rows."""
    found = []
    for name, (of, whom, least) in CATEGORIES.items():
        for mode, words in MODES.items():
            these = [r for r in rows if r["mode"] == mode and category(r) == name and ours(r).get(of)]
            pairs = [(_name(r), ours(r)[of]) for r in these]
            found += extreme(f"{name}: {words} ≥ {least} x {whom}", 1, pairs, least, "{:.2f}")
    for peer, (whom, most) in MEMORY.items():
        pairs = []
        for row in rows:
            mine, theirs = ours(row).get("peak_bytes"), row["providers"].get(peer, {}).get("peak_bytes")
            if row["mode"] == "train" and mine is not None and theirs:
                pairs.append((_name(row), mine / theirs))
        found += extreme(f"training memory ≤ {most} x {whom}", 1, pairs, most, "{:.2f}", True)
    return found
