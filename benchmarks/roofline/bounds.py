"""The time that a workload cannot beat: its arithmetic over the FMA peak, or its weights over the bandwidth.

T time, B batch, D directions, G gates, H hidden, I input. Counted are the products, 2 operations a multiply-add, and
the reads of the weights; activations, x and y are left out, so the bound is a little below what is possible. The peak
is that of vector units (probe.py): a kernel on matrix units can have a share above 100 %.
"""

from __future__ import annotations

from benchmarks.roofline.probe import LEVELS
from benchmarks.workloads import Workload

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
WEIGHT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
# Which peaks a dtype may use: numbers may be widened to float32, so that its peak is there for the narrow ones too.
PEAKS = {"float64": ("float64",), "float32": ("float32",)}
PEAKS |= {dtype: ("float32", dtype) for dtype in ("bfloat16", "float16", "int8")}


def inputs(w: Workload) -> list[int]:
    """I of each layer, of one head."""
    return [w.I // w.heads if n == 0 else w.D * w.H for n in range(w.L)]


def flops(w: Workload, mode: str) -> float:
    """2 T B D G H (I + H) for each layer and head; a training step is three times that: y, dx and dh, dW."""
    forward = sum(2.0 * w.T * w.B * w.D * GATES[w.cell] * w.H * (size + w.H) for size in inputs(w))
    return w.heads * forward * (3 if mode == "train" else 1)


def weight_reads(w: Workload, dtype: str, mode: str) -> list[tuple[float, float]]:
    """What one call reads, as (bytes read, bytes that have to be held to read them again).

    W_hh is read at each step, and while a layer's direction runs only its own W_hh has to be at hand. W_ih is read
    once, for all steps, and between two calls every weight has to be held; a single step reads W_hh that way too. A
    training step reads all of it twice (forward, backward) and writes as many gradients once.
    """
    itemsize, rows = WEIGHT_BYTES[dtype], w.heads * w.D * GATES[w.cell] * w.H
    w_hh = rows * w.H * w.L * itemsize
    w_ih = rows * sum(inputs(w)) * itemsize
    passes = 2 if mode == "train" else 1
    each_step, each_call = (w_hh * w.T, w_ih) if w.T > 1 else (0, w_hh + w_ih)
    written = w_hh + w_ih if mode == "train" else 0
    found = [(passes * each_step, w_hh / (w.L * w.D * w.heads)), (passes * each_call + written, w_hh + w_ih)]
    return [(float(read), float(held)) for read, held in found if read]


def level_of(held: float, threads: int, sizes: dict[str, int]) -> str:
    """The nearest level that holds the weights: each thread's share in its own L1 or L2, all of them in L3."""
    for level in LEVELS[:-1]:
        if held / (1 if level == "L3" else threads) <= sizes[level]:
            return level
    return LEVELS[-1]


def bound(w: Workload, dtype: str, mode: str, threads: int, roofs: dict | None) -> dict:
    """{"flops", "bytes", "seconds", "by": "FMA peak" or the level}; without roofs {"flops", "bytes", "reason"}."""
    reads = weight_reads(w, dtype, mode)
    found: dict = {"flops": flops(w, mode), "bytes": sum(read for read, _ in reads)}
    count = str(threads)
    if not roofs or "reason" in roofs or count not in roofs["flops"].get("float32", {}):
        return found | {"reason": (roofs or {}).get("reason", "the probe did not run")}
    peak = max(roofs["flops"][kind][count] for kind in PEAKS[dtype] if kind in roofs["flops"])
    arithmetic = found["flops"] / peak
    levels = [level_of(held, threads, roofs["sizes"]) for _, held in reads]
    moved = sum(read / roofs["bandwidth"][level][count] for (read, _), level in zip(reads, levels, strict=True))
    if arithmetic >= moved:
        return found | {"seconds": arithmetic, "by": "FMA peak"}
    return found | {"seconds": moved, "by": levels[0]}
