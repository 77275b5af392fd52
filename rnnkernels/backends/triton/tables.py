"""The tiles that each schedule may choose from, by the chip's matrix instructions and by arithmetic."""

from typing import NamedTuple


class Limit(NamedTuple):
    """Tiles for hidden sizes up to H, where all of a direction's recurrent weights stay on chip."""

    H: int
    BB: int
    warps: int
    passes: str = "both"
    registers: int | None = None
    """Registers that the compiler may use for a cell with two products in a step; None: it decides."""


class Share(NamedTuple):
    """Tiles of a cooperative launch, for products from ``least`` to K wide forward and up to K_back wide backward. With
    16 units a program stepwise was faster forward below that, as measured on an H200 (benchmarks/results): 256 units
    and 128 rows took 9.7 µs a step, stepwise 8.0; 1024 and 32 took 10.4 and 12.9."""

    BH: int
    BB: int
    warps: int
    K: int
    K_back: int
    registers: int | None = None
    """Registers that the compiler may use; None: it decides, and spills a few at some sizes to fit two programs."""
    least: int = 0


class Step(NamedTuple):
    """Tiles of a stepwise launch: hidden units and rows per program, width of a piece of the product."""

    BH: int
    BB: int
    BK: int
    warps: int
    registers: int | None = None
    """Registers that the compiler may use, but with layer norms; None: it decides."""


# The tables were found by compiling: no spills, and the fewest instructions a step (tests of the compiled kernels
# assert both). They go by the chip's matrix instructions and by arithmetic: "half"
# is bf16 and fp16, "ieee" is float32 whose products are not rounded to tf32. A warp of mma takes 16 units: more warps
# would do the same work twice. wgmma (sm_90) reads the weights from shared memory by itself from 64 units and 16 rows
# on; elsewhere 8 rows take half the registers, and keep tcgen05 (sm_100) from a detour through tensor memory.
SMALL, SMALL_TF32 = (Limit(16, 8, 1), Limit(32, 8, 4)), (Limit(16, 8, 1), Limit(32, 8, 2))
RESIDENT = {
    ("wgmma", "half"): (*SMALL, Limit(64, 16, 4), Limit(128, 16, 8)),
    ("wgmma", "tf32"): (*SMALL_TF32, Limit(64, 16, 8)),
    ("tcgen05", "half"): (*SMALL, Limit(64, 8, 4), Limit(128, 8, 8)),
    ("tcgen05", "tf32"): (*SMALL, Limit(64, 8, 8, registers=128)),
    ("mma", "half"): (*SMALL, Limit(64, 8, 4), Limit(128, 8, 8)),
    ("mma", "tf32"): (*SMALL_TF32, Limit(64, 8, 4)),
    ("mfma", "half"): (Limit(64, 16, 4), Limit(128, 16, 4, "forward")),
    ("mfma", "ieee"): (Limit(64, 16, 4),),
    "ieee": (Limit(16, 16, 4), Limit(32, 16, 8)),
}
SHARES = (
    Share(8, 16, 4, 512, 256, 192), Share(8, 16, 8, 1024, 1024, 192), Share(16, 16, 8, 0, 384, 255),
    Share(16, 16, 8, 1024, 1024, least=640),
)  # fmt: skip
COOPERATIVE = {  # the first row whose programs can all run at once is taken: less work per program makes a step shorter
    ("tcgen05", "half"): (*SHARES[:3], Share(16, 16, 8, 1024, 640, least=640)),
    "half": (*SHARES, Share(16, 32, 8, 0, 256, 255)),
    "tf32": (Share(8, 16, 8, 1024, 1024, 255), Share(16, 16, 8, 640, 640, 255)),
    "tf32x3": (Share(8, 16, 8, 320, 320, 255),),
    "ieee": (Share(8, 16, 8, 512, 512, 255),),
}
PIECE = 8192  # bytes of a piece of a cooperative product's vector: wider pieces need more registers than there are
STEPWISE = {  # the row with the least traffic of weights and vectors a step is taken
    ("wgmma", "half"): (Step(64, 32, 64, 8), Step(64, 16, 64, 4), Step(32, 16, 32, 4, 255)),
    ("wgmma", "tf32"): (Step(64, 32, 16, 8), Step(64, 16, 32, 8), Step(32, 16, 16, 4, 255)),
    ("tcgen05", "half"): (Step(64, 32, 32, 8), Step(64, 16, 64, 8), Step(32, 16, 32, 4, 255)),
    ("tcgen05", "tf32"): (Step(64, 32, 32, 8), Step(64, 16, 32, 8, 192), Step(32, 16, 16, 4, 224)),
    ("mma", "half"): (Step(64, 16, 32, 4), Step(32, 16, 32, 4, 255)),
    ("mma", "tf32"): (Step(64, 16, 16, 8), Step(32, 16, 16, 4, 255)),
    ("mfma", "half"): (Step(64, 16, 64, 4), Step(32, 16, 32, 2)),
    ("mfma", "ieee"): (Step(32, 16, 16, 8),),
    ("mfma", "double"): (Step(16, 8, 16, 4),),
    "tf32x3": (Step(32, 16, 16, 4, 255),),
    "ieee": (Step(32, 16, 16, 8, 255),),
    "double": (Step(16, 8, 16, 4, 255),),
}
L2_PORTS = 0.36  # L2's bandwidth over that of all processors' ports to it: 5.5 TB/s over 64 bytes a clock each (H100)
BYTES = {"half": 2, "tf32": 4, "tf32x3": 4, "ieee": 4, "double": 8}


def family(chip):
    """The chip's matrix instructions."""
    if chip.backend == "hip":
        return "mfma"
    return {9: "wgmma", 10: "tcgen05"}.get(chip.capability // 10, "mma")


def row(table, kind, chip):
    """The entry of a table for a kind of arithmetic on a chip."""
    return table.get((family(chip), kind), table.get(kind, ()))
