"""The choice of a layer's schedule on a chip, by three tables, with the reasons. Imports no Triton.

*resident*     one program per batch tile and direction keeps the recurrent weights on chip for the whole sequence;
*cooperative*  programs that run at once share the hidden units, keep their weights on chip for the whole sequence, and
               wait for each other at every step;
*stepwise*     one launch per time step, or a few where a step has a second product or layer norms; its programs share
               the hidden units and stream the weights through shared memory.
"""

import functools
from contextlib import contextmanager
from typing import NamedTuple

import torch

from .chips import Chip, chip_of  # noqa: F401 - schedules has all names of the choice
from .tables import BYTES, COOPERATIVE, L2_PORTS, PIECE, RESIDENT, STEPWISE, Limit, Share, Step, row  # noqa: F401

NAMES = ("resident", "cooperative", "stepwise")
_forced = None
_x3 = False


class Tiles(NamedTuple):
    """How one pass runs: hidden units, batch rows and width of the product per program, warps, loads in flight."""

    schedule: str
    BH: int
    BB: int
    BK: int
    warps: int
    stages: int
    reason: str
    registers: int | None = None


@contextmanager
def force(name):
    """Within this context every layer runs with the named schedule, or raises.

    Raises:
        ValueError: for a name that is none of "resident", "cooperative" and "stepwise".
    """
    global _forced
    if name not in NAMES:
        raise ValueError(f"Expected a schedule out of {', '.join(NAMES)}, but got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def forced():
    """The name of the schedule that is forced now, or None."""
    return _forced


def precision(dtype, chip):
    """How float32 products round their inputs: "tf32" or "ieee" by PyTorch's own switch for RNNs, or "tf32x3"."""
    if dtype != torch.float32 or chip.backend != "cuda" or chip.capability < 80:
        return "ieee"
    if _x3:
        return "tf32x3"
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"


@contextmanager
def tf32x3(enabled=True):
    """Within this context float32 products on the GPU are sums of three of tf32: most of the digits, on tensor cores.

    Only those of the recurrence: the others follow ``torch.backends.cuda.matmul.fp32_precision``.
    """
    global _x3
    before, _x3 = _x3, bool(enabled)
    try:
        yield
    finally:
        _x3 = before


def arithmetic(dtype, precision):
    """The kind of arithmetic in the tables: the operands of the tensor cores."""
    if dtype in (torch.bfloat16, torch.float16):
        return "half"
    return "double" if dtype == torch.float64 else precision


def block(n, least=16):
    """The smallest power of two that holds n; at least 16, the shortest product that Triton takes."""
    return max(least, 1 << (n - 1).bit_length())


def bytes_read(cell, kind, backward, norm=False):
    """The bytes that a step reads from memory per hidden unit and row; ``norm``: with layer norm."""
    if backward and norm:  # the recurrent products
        return bytes_read(cell, kind, backward) + cell.recurrent_gates * BYTES[kind]
    if not backward:
        return (cell.gates + cell.steps) * BYTES[kind]
    states = (cell.new[0] or cell.old[0]) and not cell.y  # y; the cell states, and perhaps their gradients, are float32
    return (cell.kept + cell.steps + 1 + states) * BYTES[kind] + 8 * cell.cells


def resident(kind, cell, H, chip, backward, norm=False):
    """The tiles with which one program keeps all weights, or the reason why it cannot."""
    gates, reads = cell.recurrent_gates, bytes_read(cell, kind, backward, norm)
    size, this = block(H), "backward" if backward else "forward"
    limits = [limit for limit in row(RESIDENT, kind, chip) if limit.passes in ("both", this)]
    limit = next((limit for limit in limits if size <= limit.H), None)
    if limit is None:
        most = max((limit.H for limit in limits), default=0)
        return f"{this}, in {kind} arithmetic, a program can keep the weights of up to {most} units"
    if chip.backend == "hip":  # weights and loads stay in registers; shared memory serves changes of layout only
        return Tiles("resident", size, limit.BB, size, limit.warps, 1, "the weights stay in registers")
    weights = gates * size * size * BYTES[kind] // 1024
    for stages in (3, 2, 1):
        kept = f"the {weights} KB of weights of a direction stay in shared memory"
        wide = kind == "tf32" and size > 32  # operands are rounded too: without a bound the compiler spills
        rows, warps, registers = limit.BB, limit.warps, limit.registers if cell.first else 192 if wide else None
        if norm or crowded(cell):  # more tiles are live at a time, with the same number of registers
            rows, warps = 8, max(warps, 8 if wide else 4) if size > 16 else warps
            registers = 255 if cell.first or warps <= 4 or wide else None
        tiles = Tiles("resident", size, rows, size, warps, stages, kept, registers)
        if shared_bytes(kind, gates, reads, tiles) <= chip.shared:
            return tiles
    return f"the {weights} KB of weights of a direction do not fit the shared memory of {chip.name}"


def shared_bytes(kind, gates, reads, tiles):
    """The most shared memory of a resident program: weights, operands of the product, reads in flight (NVIDIA)."""
    ahead = (tiles.stages - 1) * reads
    return tiles.BH * (gates * tiles.BK * BYTES[kind] + tiles.BB * ((gates + 1) * BYTES[kind] + ahead))


def crowded(cell):
    """True if a program has more tiles alive at a time than those of the built-in cells, of which LSTM has most: 12."""
    beside = cell.vectors + cell.sequences + cell.steps
    return cell.planes + cell.kept + 2 * (cell.states + beside + (cell.first is not None)) > 14


def alone(cell, H):
    """The tiles of a cell without a recurrent product, whose units meet in norms only, or the reason against them."""
    size = block(H) if cell.norms else min(block(H), 64)
    if size > MOST_ROW:
        return f"a norm inside the cell is over more than the {MOST_ROW} units of a program"
    return Tiles("resident", size, max(1, 256 // size), 16, 4, 1, "there is no recurrent product", None)


MOST_ROW = 1024  # units that a program of 128 threads has of a row


def pieces(width, parts, widest):
    """Cut a product's width into (start, width of a part): powers of two from 16 on, the last padded."""
    unit, start, found = 16 * parts, 0, []
    total = -(-width // unit) * unit
    while start < total:
        size = min(widest, 1 << (((total - start) // parts).bit_length() - 1))
        found.append((start, size))
        start += parts * size
    return tuple(found)


def tiles_of(share, kind, norm=False):
    """The tiles of a row of the table of cooperative launches; ``norm``: with layer norm, which takes registers."""
    widest = PIECE // (share.warps * share.BB * BYTES[kind])
    registers = 255 if norm else share.registers
    return Tiles("cooperative", share.BH, share.BB, widest, share.warps, 1, "", registers)


def cooperative(kind, gates, B, D, H, K, chip, backward, norm=False):
    """The tiles with which the programs of a chip together keep all weights, or the reason why they cannot."""
    if chip.backend == "hip":
        return "programs that wait for each other are only proved on NVIDIA's memory model"
    rows = row(COOPERATIVE, kind, chip)
    shares = [share for share in rows if (K <= share.K_back if backward else share.least <= K <= share.K)]
    found = f"in {kind} arithmetic a program has no registers for a product {K} wide"
    for share in shares:
        programs = -(-H // share.BH) * -(-B // share.BB) * D
        tiles = tiles_of(share, kind, norm)
        if programs > chip.processors:
            found = f"{programs} programs do not run at once on {chip.processors} processors"
        elif cooperative_bytes(kind, gates, K, tiles) > chip.shared:
            found = f"a program's share of the weights does not fit the shared memory of {chip.name}"
        else:
            kept = gates * share.BH * K * BYTES[kind] // 1024
            return tiles._replace(reason=f"{programs} programs keep {kept} KB of weights each and wait at every step")
    return found


def cooperative_bytes(kind, gates, K, tiles):
    """The most shared memory of a cooperative program: weights, the vector, and the parts of the product."""
    width = sum(tiles.warps * size for _, size in pieces(K, tiles.warps, tiles.BK))
    rows = gates * tiles.BH + tiles.BB * (2 if kind == "tf32x3" else 1)
    return rows * width * BYTES[kind] + 4 * gates * tiles.warps * tiles.BB * tiles.BH


def traffic(step, gates, B, D, H, chip):
    """The traffic of a step's weights and vectors, through the busiest processor or L2, in rows of the product's width.

    A program reads the weights of its units and the vectors of its rows; programs are shared out evenly.
    """
    each, programs = gates * step.BH + step.BB, -(-H // step.BH) * -(-B // step.BB) * D
    return max(-(-programs // chip.processors) * each, programs * each / (L2_PORTS * chip.processors))


def loads_ahead(kind, chip):
    """The loads of a streamed product that are in flight; with two, Triton 3.6 fails at float64 products for AMD."""
    return 3 if chip.backend == "cuda" else 1 if kind == "double" else 2


def stepwise(kind, gates, B, D, H, K, chip, reason, backward, norm=False):
    """Tiles for one launch per step, or the reason why there are none."""

    def fit(tiles):  # on AMD's chips loads ahead wait in registers
        return chip.backend == "hip" or streamed_bytes(kind, gates, tiles, backward) <= chip.shared

    steps = [step for step in row(STEPWISE, kind, chip) if B > 16 or step.BB <= 16]
    for step in sorted(steps, key=lambda step: traffic(step, gates, B, D, H, chip)):
        tiles = streamed(step, kind, chip, norm)._replace(BK=min(block(K), step.BK), reason=reason)
        while not fit(tiles) and (tiles.stages > 1 or tiles.BK > 16):
            few = tiles.stages == 1
            tiles = tiles._replace(BK=tiles.BK // 2) if few else tiles._replace(stages=tiles.stages - 1)
        if fit(tiles):
            return tiles
    return f"a step of {gates} gates does not fit the shared memory of {chip.name}"


def streamed_bytes(kind, gates, tiles, backward):
    """The shared memory of a stepwise program: the loads in flight, and in the backward pass a gradient (NVIDIA)."""
    rows = gates * (tiles.BH + tiles.BB) if backward else gates * tiles.BH + tiles.BB
    return (tiles.stages * rows * tiles.BK + (tiles.BH * tiles.BB if backward else 0)) * BYTES[kind]


def streamed(step, kind, chip, norm=False):
    """The tiles of a row of the table of stepwise launches; ``norm``: with layer norm, which takes registers."""
    registers = 255 if norm and chip.backend == "cuda" else step.registers
    return Tiles("stepwise", *step[:4], loads_ahead(kind, chip), "", registers)


def choose(dtype, cell, B, D, H, K, project, chip, backward=False, T=2, norm=False):
    """The tiles of one pass of a layer with H units whose recurrent product reads K = P values.

    Raises:
        RuntimeError: if a schedule is forced that cannot run it.
    """
    kind = arithmetic(dtype, precision(dtype, chip))
    tiles = _choose(kind, cell, B, D, H, K, project, chip, backward, T == 1, norm, _forced)
    if isinstance(tiles, str):
        raise RuntimeError(tiles)
    return tiles


def unfit(dtype, cell, B, D, H, P, project, chip, norm):
    """The reason why no schedule can run both passes of a layer, or None."""
    kind = arithmetic(dtype, precision(dtype, chip))
    both = [_choose(kind, cell, B, D, H, P, project, chip, backward, False, norm, None) for backward in (False, True)]
    return next((why for why in both if isinstance(why, str)), None)


@functools.lru_cache(4096)
def _choose(kind, cell, B, D, H, K, project, chip, backward, single, norm, forced):
    ways = {}
    if cell.recurrent_gates == 0:
        ways["resident"] = alone(cell, H)
        ways |= dict.fromkeys(NAMES[1:], "there is no recurrent product to share out")
    elif project:
        ways = dict.fromkeys(NAMES[:2], "a projection stands between the steps")
    else:
        ways["resident"] = resident(kind, cell, H, chip, backward, norm)
        normed = norm or bool(cell.norms)
        ways["cooperative"] = cooperative(kind, cell.recurrent_gates, B, D, H, K, chip, backward, normed)
        if single and forced is None and not cell.norms and isinstance(ways["cooperative"], Tiles):
            ways["cooperative"] = "a single step has nothing to keep weights for"
    if cell.norms and cell.recurrent_gates:
        ways["stepwise"] = "a norm inside the cell is over units of other programs, which a launch does not wait for"
    if forced in ways:
        if isinstance(ways[forced], str):
            return f"the schedule {forced!r} is forced but cannot run this layer: {ways[forced]}"
        return ways[forced]._replace(reason="forced")
    if forced is None:
        fitting = next((tiles for tiles in ways.values() if isinstance(tiles, Tiles)), None)
        if fitting is not None:
            return fitting
    reason = "forced" if forced else "; ".join(f"not {name}: {why}" for name, why in ways.items())
    if "stepwise" in ways:
        return reason
    return stepwise(kind, cell.recurrent_gates, B, D, H, K, chip, reason, backward, norm)
