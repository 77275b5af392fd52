"""The time that a workload cannot beat: its arithmetic over the FMA peak, or its weights over the bandwidth; and the
probe that measures these roofs of a machine, before anything is timed.

T time, B batch, D directions, G gates, H hidden, I input. Counted are the products, 2 operations a multiply-add, and
the reads of the weights; activations, x and y are left out, so the bound is a little below what is possible. The peak
is that of vector units: kernels on matrix units (AMX, measured for the plot) can have a share above 100 %.

roofs.cpp, built with the system's compiler ($CXX, else c++), measures multiply-adds a second in each number format and
bytes read a second from each level of cache and from memory, on the cores that the providers get.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from benchmarks import worker
from benchmarks.workloads import Workload

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
WEIGHT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
# Which peaks a dtype may use: numbers may be widened to float32, so that its peak is there for the narrow ones too.
PEAKS = {"float64": ("float64",), "float32": ("float32",)}
PEAKS |= {dtype: ("float32", dtype) for dtype in ("bfloat16", "float16", "int8")}
SOURCE = Path(__file__).with_name("roofs.cpp")
KINDS = ("float64", "float32", "bfloat16", "float16", "int8", "amx_bfloat16")  # in the order of roofs.cpp
LEVELS = ("L1", "L2", "L3", "memory")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def inputs(w: Workload) -> list[int]:
    """I of each layer, of one head."""
    return [w.I // w.heads, *[w.D * w.H] * (w.L - 1)]


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
    rows = WEIGHT_BYTES[dtype] * w.heads * w.D * GATES[w.cell] * w.H
    w_hh, w_ih = rows * w.H * w.L, rows * sum(inputs(w))
    each_step, each_call = (w_hh * w.T, w_ih) if w.T > 1 else (0, w_hh + w_ih)
    passes, written = (2, w_hh + w_ih) if mode == "train" else (1, 0)
    found = [(passes * each_step, w_hh / (w.L * w.D * w.heads)), (passes * each_call + written, w_hh + w_ih)]
    return [(float(read), float(held)) for read, held in found if read]


def level_of(held: float, threads: int, sizes: dict[str, int]) -> str:
    """The nearest level that holds the weights: each thread's share in its own L1 or L2, all of them in L3."""
    share = {"L1": held / threads, "L2": held / threads, "L3": held}
    return next((level for level in share if share[level] <= sizes[level]), "memory")


def bound(w: Workload, dtype: str, mode: str, threads: int, roofs: dict | None) -> dict:
    """{"flops", "bytes", "seconds", "by": "FMA peak" or the level}; without roofs {"flops", "bytes", "reason"}."""
    count = str(threads)
    if w.own:  # of those without any product: x is read and y written once, and in backward x, dy and dx
        if not w.streamed or not roofs or "reason" in roofs:
            return {}
        moved = w.streamed * (3 if mode == "train" else 1)
        return {"bytes": moved, "seconds": moved / roofs["bandwidth"]["memory"][count], "by": "memory"}
    reads = weight_reads(w, dtype, mode)
    found: dict = {"flops": flops(w, mode), "bytes": sum(read for read, _ in reads)}
    if not roofs or "reason" in roofs or count not in roofs["flops"].get("float32", {}):
        return found | {"reason": (roofs or {}).get("reason", "the probe did not run")}
    arithmetic = found["flops"] / max(roofs["flops"][k][count] for k in PEAKS[dtype] if k in roofs["flops"])
    levels = [level_of(held, threads, roofs["sizes"]) for _, held in reads]
    moved = sum(read / roofs["bandwidth"][level][count] for (read, _), level in zip(reads, levels, strict=True))
    by = "FMA peak" if arithmetic >= moved else levels[0]
    return found | {"seconds": max(arithmetic, moved), "by": by}


def cache_sizes() -> dict[str, int]:
    """Bytes of each level of data cache, of a core for L1 and L2; what Linux says, else a common processor's."""
    sizes = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
    for index in CACHES.glob("index*"):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        found = re.fullmatch(r"(\d+)([KM])", size)
        if kind != "Instruction" and found and f"L{level}" in sizes:
            sizes[f"L{level}"] = int(found[1]) << {"K": 10, "M": 20}[found[2]]
    return sizes


def buffer_sizes(sizes: dict[str, int], threads: int) -> dict[str, int]:
    """Bytes that each thread reads to see a level: well inside it, and well outside the one before."""
    l3 = min(sizes["L3"] // 2, 16 * sizes["L2"] * threads)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = min(max(2 * sizes["L3"], 256 << 20), physical // 8)
    return {"L1": sizes["L1"] // 2, "L2": sizes["L2"] // 2, "L3": l3 // threads, "memory": memory // threads}


def build(folder: str) -> str:
    """The library of roofs.cpp, built for this machine. Raises OSError with the reason."""
    library = f"{folder}/roofs.so"
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    flags = ["-O3", "-march=native", "-std=gnu++17", "-shared", "-fPIC", "-pthread"]
    try:
        made = subprocess.run([*compiler, *flags, str(SOURCE), "-o", library], capture_output=True, text=True)
    except OSError as error:
        raise OSError(f"no C++ compiler: {error}") from None
    if made.returncode:
        raise OSError(f"{compiler[0]}: {(made.stderr.strip().splitlines() or ['failed'])[0]}")
    return library


def _measure(library: str, threads: int, buffers: dict[str, int], seconds: float) -> dict:
    """In a process that is pinned to as many cores as threads."""
    roofs, clock = ctypes.CDLL(library), ctypes.c_double(seconds)
    roofs.roofs_flops.restype = roofs.roofs_bandwidth.restype = ctypes.c_double
    flops = {kind: roofs.roofs_flops(n, threads, clock) for n, kind in enumerate(KINDS)}
    bandwidth = {level: roofs.roofs_bandwidth(ctypes.c_int64(size), threads, clock) for level, size in buffers.items()}
    return {"flops": {kind: value for kind, value in flops.items() if value}, "bandwidth": bandwidth}


def probe(threads: list[int], seconds: float = 0.1) -> dict:
    """{"flops": {kind: {threads: a second}}, "bandwidth": {level: ...}, "sizes": {level: bytes}}, or {"reason"}."""
    found: dict = {"flops": {}, "bandwidth": {}, "sizes": cache_sizes()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = build(folder)
            for count in threads:
                buffers = buffer_sizes(found["sizes"], count)
                for group, values in worker.call(count, _measure, library, count, buffers, seconds).items():
                    for name, value in values.items():
                        found[group].setdefault(name, {})[str(count)] = value  # keys as JSON has them
    except (OSError, RuntimeError) as error:
        return {"reason": str(error)}
    return found
