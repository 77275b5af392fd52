"""A small probe of the machine: the roofs that no kernel can pass, measured before anything is timed.

Multiply-adds a second in each number format ("FMA peak": vector instructions, in bfloat16 and int8 the vector dot
products), and bytes read a second from each level of cache and from memory, for each thread count, on the cores that
the providers get. roofs.cpp is built for this machine with the system's compiler ($CXX, else c++) into a temporary
folder; without a compiler there are no roofs, and the reason stands in their place.

Matrix units (AMX) are measured too, for the plot, but are no part of the bound: fp32 kernels that split numbers into
bfloat16 parts on such a unit can exceed 100 % of it.
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

SOURCE = Path(__file__).with_name("roofs.cpp")
KINDS = ("float64", "float32", "bfloat16", "float16", "int8", "amx_bfloat16")  # in the order of roofs.cpp
LEVELS = ("L1", "L2", "L3", "memory")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def cache_sizes() -> dict[str, int]:
    """Bytes of each level of data cache, of a core for L1 and L2; what Linux says, else a common processor's."""
    sizes = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
    for index in CACHES.glob("index*") if CACHES.exists() else ():
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        found = re.fullmatch(r"(\d+)([KM])", size)
        if kind != "Instruction" and found and f"L{level}" in sizes:
            sizes[f"L{level}"] = int(found[1]) << {"K": 10, "M": 20}[found[2]]
    return sizes


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def buffer_sizes(sizes: dict[str, int], threads: int) -> dict[str, int]:
    """Bytes that each thread reads to see a level: well inside it, and well outside the one before."""
    l3 = min(sizes["L3"] // 2, 16 * sizes["L2"] * threads)
    memory = min(max(2 * sizes["L3"], 256 << 20), _memory() // 8)
    return {"L1": sizes["L1"] // 2, "L2": sizes["L2"] // 2, "L3": l3 // threads, "memory": memory // threads}


def build(folder: str) -> Path:
    """The library of roofs.cpp, built for this machine. Raises OSError with the reason."""
    library = Path(folder) / "roofs.so"
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    flags = ["-O3", "-march=native", "-std=gnu++17", "-shared", "-fPIC", "-pthread"]
    try:
        made = subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(library)], capture_output=True, text=True)
    except OSError as error:
        raise OSError(f"no C++ compiler: {error}") from None
    if made.returncode:
        raise OSError(f"{compiler[0]}: {(made.stderr.strip().splitlines() or ['failed'])[0]}")
    return library


def _measure(library: str, threads: int, buffers: dict[str, int], seconds: float) -> dict:
    """In a process that is pinned to as many cores as threads."""
    roofs = ctypes.CDLL(library)
    for function in (roofs.roofs_flops, roofs.roofs_bandwidth):
        function.restype = ctypes.c_double
    clock = ctypes.c_double(seconds)
    flops = {kind: roofs.roofs_flops(n, threads, clock) for n, kind in enumerate(KINDS)}
    bandwidth = {level: roofs.roofs_bandwidth(ctypes.c_int64(size), threads, clock) for level, size in buffers.items()}
    return {"flops": {kind: value for kind, value in flops.items() if value}, "bandwidth": bandwidth}


def probe(threads: list[int], seconds: float = 0.1) -> dict:
    """{"flops": {kind: {threads: a second}}, "bandwidth": {level: ...}, "sizes": {level: bytes}}, or {"reason"}."""
    sizes = cache_sizes()
    found: dict = {"flops": {}, "bandwidth": {}, "sizes": sizes}
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = str(build(folder))
            for count in threads:
                seen = worker.call(count, _measure, library, count, buffer_sizes(sizes, count), seconds)
                for group, values in seen.items():
                    for name, value in values.items():
                        found[group].setdefault(name, {})[str(count)] = value  # keys as JSON has them
    except (OSError, RuntimeError) as error:
        return {"reason": str(error)}
    return found
