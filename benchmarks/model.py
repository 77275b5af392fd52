"""How long a step of a layer should take on a GPU, from counted bytes and operations: `python -m benchmarks.model`.

T time, B batch, D directions (heads included), G gates, H hidden, K width of the recurrent product, I input.

Two figures. *predict* follows the schedule and tiles that were chosen, with assumed latencies. *bound* assumes none of
it: operations over the peak rate, bytes that have to cross the memory bus, and the recurrent weights once a step
through all shared memories; nothing can be faster. Figures of the chips are in chips.py. What is assumed, not measured,
is in capitals here, and to be replaced by what `benchmarks.gpu` measures.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bounds import GATES, flops, inputs
from benchmarks.chips import GPUS, Gpu
from benchmarks.run import listed
from benchmarks.workloads import Workload, select
from rnnkernels.backends.triton import schedules
from rnnkernels.backends.triton.graphs import MOST_LAUNCHES

BARRIER = 1.2e-6  # seconds between the arrival of the last program and the departure of all, over one counter
NODE = 1.5e-6  # from the end of one kernel of a CUDA graph to the start of the next
LAUNCH = 6e-6  # the same for kernels that are launched one by one
POINTWISE = 0.25e-6  # activations and reductions of a step, and what is exchanged within a program
FETCH = 0.6e-6  # the first byte from L2 in a launch, or after a barrier
REACHED = 0.6  # share of the peak rate that a large product reaches
SHARED_WIDTH, PORT_WIDTH = 128, 64  # bytes a clock of a processor from its shared memory, and from L2
ARITHMETICS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}


def kind_of(arithmetic: str) -> str:
    """The row of the chooser's tables: "half", "tf32" or "ieee"."""
    return "half" if arithmetic in ("bf16", "fp16") else arithmetic


def arithmetics(gpu: Gpu) -> list[str]:
    """Those that the chip has."""
    return [name for name in ARITHMETICS if name != "tf32" or gpu.chip.backend == "cuda"]


class Layer(NamedTuple):
    """One layer in one pass. ``save``: whether the forward pass keeps what the backward pass reads."""

    cell: object  # of rnnkernels.backends.triton.cells
    T: int
    B: int
    D: int
    H: int
    K: int
    kind: str
    backward: bool = False
    save: bool = False

    @property
    def size(self) -> int:
        return schedules.BYTES[self.kind]

    def memory(self) -> float:
        """Bytes of a step that are read and written once: inputs, outputs, what is saved; no weights, no exchange."""
        cell, each = self.cell, schedules.bytes_read(self.cell, self.kind, self.backward)
        if self.backward:
            each += cell.planes * self.size
        else:
            each += self.size + (cell.kept * self.size + 4 * (cell.states - 1) if self.save else 0)
        return float(self.D * self.B * self.H * each)


class Step(NamedTuple):
    """Seconds of a step, of each of its parts, and the name of the largest part."""

    seconds: float
    parts: dict[str, float]

    @property
    def by(self) -> str:
        return max(self.parts, key=self.parts.__getitem__)


def step(gpu: Gpu, layer: Layer, tiles: schedules.Tiles, graph: bool = True) -> Step:
    """The model of one step.

    The programs on a processor share its matrix units and its shared memory. What is exchanged between programs comes
    through L2 and through a processor's port to it, one after the other with the product; input and output of the layer
    flow beside all of it. ``graph``: whether stepwise launches are nodes of a CUDA graph.
    """
    cell, (_, BH, BB, *_) = layer.cell, tiles
    units, rows = -(-layer.H // BH), -(-layer.B // BB)
    programs = units * rows * layer.D
    busy = min(programs, gpu.chip.processors)
    each = -(-programs // gpu.chip.processors)  # programs on the fullest processor
    weights = cell.gates * BH * layer.K * layer.size
    vectors = len(cell.recurrent) if layer.backward else 1
    exchanged = vectors * layer.K * BB * layer.size
    resident, streamed = tiles.schedule == "resident", tiles.schedule == "stepwise"
    rate = gpu.rates[layer.kind] / gpu.chip.processors * REACHED
    through_L2 = (0 if resident else exchanged) + (weights if streamed else 0)
    distinct = cell.gates * layer.H * layer.K * layer.size * layer.D if streamed else 0
    parts = {
        "matrix units": each * 2 * cell.gates * BH * layer.K * BB / rate,
        "shared memory": each * weights / (SHARED_WIDTH * gpu.clock),
        "L2": max(programs * through_L2 / gpu.L2, each * through_L2 / (PORT_WIDTH * gpu.clock)),
        "weights from memory": distinct / gpu.memory if distinct > gpu.L2_size else 0.0,
        "pointwise": POINTWISE,
        "fetch": 0.0 if resident else FETCH,
        "barrier": BARRIER if tiles.schedule == "cooperative" and units > 1 else 0.0,
        "launch": (NODE if graph else LAUNCH) if streamed else 0.0,
        "input and output": layer.memory() / min(gpu.memory, gpu.L2 * busy / gpu.chip.processors),
    }
    product = max(parts["matrix units"], parts["shared memory"])
    moved = max(parts["L2"], parts["weights from memory"])
    waits = parts["pointwise"] + parts["fetch"] + parts["barrier"] + parts["launch"]
    # Streamed weights flow while the product runs; an exchanged vector is there before it starts.
    together = max(product, moved) if streamed else product + moved
    return Step(max(together + waits, parts["input and output"]), parts)


def chosen(gpu: Gpu, arithmetic: str, layer: Layer) -> schedules.Tiles:
    """The chooser's tiles."""
    switch, before = torch.backends.cudnn.rnn, torch.backends.cudnn.rnn.fp32_precision
    switch.fp32_precision = "tf32" if arithmetic == "tf32" else "ieee"
    sizes = layer.B, layer.D, layer.H, layer.K
    try:
        return schedules.choose(ARITHMETICS[arithmetic], layer.cell, *sizes, False, gpu.chip, layer.backward, T=layer.T)
    finally:
        switch.fp32_precision = before


def layers(w: Workload, arithmetic: str, mode: str) -> list[Layer]:
    """The passes of a layer of a workload: forward, and in training backward."""
    from rnnkernels.backends.triton.cells import CELLS  # imports triton

    forward = Layer(CELLS[w.cell], w.T, w.B, w.D * w.heads, w.H, w.H, kind_of(arithmetic), save=mode == "train")
    return [forward, forward._replace(backward=True)] if mode == "train" else [forward]


def products(gpu: Gpu, w: Workload, arithmetic: str, mode: str) -> float:
    """Seconds of the products outside the time loop: inputs before it, in training gradients after it."""
    kind, D, size = kind_of(arithmetic), w.D * w.heads, schedules.BYTES[kind_of(arithmetic)]
    gates, rows = D * GATES[w.cell] * w.H, w.T * w.B
    w_ih, w_hh = gates * sum(inputs(w)), gates * w.H * w.L
    x = rows * w.heads * sum(inputs(w))
    total, moved = 2.0 * rows * w_ih, x + w_ih + rows * gates * w.L
    if mode == "train":  # dx and dW_ih; dW_hh; each reads the gradients of the gates
        total += 4.0 * rows * w_ih + 2.0 * rows * w_hh
        moved += 3 * rows * gates * w.L + 2 * x + 2 * w_ih + w_hh + rows * D * w.H * w.L
    return max(total / (gpu.rates[kind] * REACHED), moved * size / gpu.memory)


def predict(gpu: Gpu, w: Workload, arithmetic: str, mode: str, graph: bool = True) -> dict:
    """What a call should take: {"seconds", "steps": a dict of each pass with its schedule and seconds a step}."""
    passes, total = {}, products(gpu, w, arithmetic, mode)
    for layer in layers(w, arithmetic, mode):
        tiles = chosen(gpu, arithmetic, layer)
        recorded = graph and tiles.schedule == "stepwise" and 1 < w.T <= MOST_LAUNCHES
        found = step(gpu, layer, tiles, recorded)
        passes["backward" if layer.backward else "forward"] = {
            "schedule": tiles.schedule,
            "tiles": [tiles.BH, tiles.BB, tiles.BK],
            "seconds": found.seconds,
            "by": found.by,
        }
        # Weights come from memory once; what a graph reads and writes is copied into its memory and out of it.
        weights = layer.D * layer.cell.gates * layer.H * layer.K * layer.size
        moved = weights + (2 * w.T * layer.memory() if recorded else 0)
        total += w.L * (w.T * found.seconds + moved / gpu.memory)
    return {"seconds": total, "steps": passes}


def bound(gpu: Gpu, w: Workload, arithmetic: str, mode: str) -> dict:
    """The time that nothing can beat: {"flops", "bytes", "seconds", "by"}.

    The largest of: all operations over the peak; x, y, weights and their gradients over the memory's bandwidth; and,
    for every layer and step, the recurrent weights through the shared memories of all processors.
    """
    kind, size, D = kind_of(arithmetic), schedules.BYTES[kind_of(arithmetic)], w.D * w.heads
    passes = 2 if mode == "train" else 1
    w_hh = D * GATES[w.cell] * w.H * w.H * w.L * size
    w_ih = D * GATES[w.cell] * w.H * sum(inputs(w)) * size
    moved = passes * w.T * w.B * (w.I + D * w.H) * size + (w_hh + w_ih) * (3 if mode == "train" else 1)
    on_chip = passes * w.T * w_hh / (gpu.chip.processors * SHARED_WIDTH * gpu.clock) if w.T > 1 else 0.0
    total = flops(w, mode)
    parts = {"peak rate": total / gpu.rates[kind], "memory": moved / gpu.memory, "shared memory": on_chip}
    by = max(parts, key=parts.__getitem__)
    return {"flops": total, "bytes": float(moved), "seconds": parts[by], "by": by}


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__.splitlines()[0])
    p.add_argument("--gpu", choices=list(GPUS), default="H200")
    p.add_argument("--only", type=listed(), default=[], help="names or shell patterns of GPU workloads")
    p.add_argument("--dtype", type=listed(list(ARITHMETICS)), default=list(ARITHMETICS))
    p.add_argument("--no-graph", action="store_true", help="stepwise launches one by one, not as a CUDA graph")
    asked = p.parse_args(arguments)
    workloads, gpu = select("cuda", asked.only), GPUS[asked.gpu]
    if not workloads:
        p.error(f"--only: no such workload; there are {', '.join(w.name for w in select('cuda', []))}")
    title = f"{gpu.name}: a model with assumed latencies, not a measurement"
    table = Table("workload", "dtype", "mode", "pass: schedule, µs a step, limited by", title=title)
    for name in ("ms", "bound ms", "bound by"):
        table.add_column(name, justify="right" if name != "bound by" else "left")
    for w in workloads:
        for arithmetic in (a for a in arithmetics(gpu) if a in asked.dtype):
            for mode in ("infer", "train"):
                said, limit = predict(gpu, w, arithmetic, mode, not asked.no_graph), bound(gpu, w, arithmetic, mode)
                steps = [f"{name}: {at['schedule']} {'x'.join(map(str, at['tiles'][:2]))}, {1e6 * at['seconds']:.2f}, "
                         f"{at['by']}" for name, at in said["steps"].items()]  # fmt: skip
                times = (f"{1e3 * said['seconds']:.3g}", f"{1e3 * limit['seconds']:.3g}", limit["by"])
                table.add_row(w.name, arithmetic, mode, "; ".join(steps), *times)
    console = Console()
    (console if console.is_terminal else Console(width=170)).print(table)


if __name__ == "__main__":
    main()
