"""The GPUs that kernels are compiled for and predicted on: their figures, in one place for tests and tools.

Published by the vendors (white papers and data sheets of A100, GA102, H100, H200, B200, MI300X; dense rates, boost
clocks, SXM modules): processors, shared memory of one program, clock, memory bandwidth, size of L2, rates of matrix and
vector units. Bandwidth of L2 is not published for all of them: 5.5 TB/s on an H100 and 4.4 TB/s on an A100 are what
public microbenchmarks report, the others are scaled by processors and clock. Nothing here was measured by us.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnkernels.backends.triton.chips import Chip


class Gpu(NamedTuple):
    """One chip; rates in operations per second, a multiply-add being two."""

    arch: str  # as compilers name it
    chip: Chip  # what the chooser of schedules sees
    clock: float  # Hz
    memory: float  # bytes per second
    L2: float  # bytes per second
    L2_size: int
    rates: dict[str, float]  # per kind of arithmetic, as in schedules.arithmetic
    vector: float  # float32 without matrix units

    @property
    def name(self) -> str:
        return self.chip.name


def _gpu(arch, name, capability, shared, processors, clock, memory, l2, l2_mb, half, tf32, vector, double):
    chip = Chip(name, "cuda" if arch.startswith("sm_") else "hip", capability, shared, processors)
    rates = {"half": half, "tf32": tf32, "tf32x3": tf32 / 3, "ieee": vector, "double": double}
    figures = ({kind: rate * 1e12 for kind, rate in rates.items()}, vector * 1e12)
    return Gpu(arch, chip, clock * 1e9, memory * 1e12, l2 * 1e12, l2_mb << 20, *figures)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("sm_80", "A100", 80, 166_912, 108, 1.41, 2.039, 4.4, 40, 312, 156, 19.5, 19.5),
        _gpu("sm_86", "RTX 3090", 86, 101_376, 82, 1.695, 0.936, 2.4, 6, 71, 35.6, 35.6, 0.56),
        _gpu("sm_90", "H100", 90, 232_448, 132, 1.83, 3.35, 5.5, 50, 989, 494, 67, 67),
        _gpu("sm_90", "H200", 90, 232_448, 132, 1.83, 4.8, 5.5, 50, 989, 494, 67, 67),
        _gpu("sm_100", "B200", 100, 232_448, 148, 1.85, 8.0, 6.2, 126, 2250, 1125, 75, 37),
        _gpu("gfx942", "MI300X", 0, 65_536, 304, 2.1, 5.3, 17.2, 256, 1307, 653, 163.4, 163.4),
    )
}
ARCHS: dict[str, Gpu] = {}  # the first chip of each architecture
for _each in GPUS.values():
    ARCHS.setdefault(_each.arch, _each)


def of_device(name: str) -> Gpu | None:
    """The figures of a GPU by the name that its driver gives, None where there are none."""
    return next((gpu for gpu in GPUS.values() if gpu.name in name), None)
