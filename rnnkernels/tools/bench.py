"""The table of ``python -m rnnkernels --bench``: layers of this machine beside torch.nn's, in half a minute.

benchmarks/ measures with more care, and other libraries too. Letters: T time, B batch, H hidden, I input.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .convert import TO_OURS

KINDS = (nn.LSTM, nn.GRU, nn.RNN)
SHAPES = ((1, 1, 128, 256), (100, 1, 128, 256), (50, 32, 64, 128), (30, 64, 256, 512))
"""T, B, I, H: a step of a stream, a sequence, a batch of small layers, and one of wider ones."""
FEWEST = 3
"""Rounds, however long they take."""
BLOCK = 1e-3
"""Seconds; shorter calls are timed several at once."""
LATE = 1.2
"""Of the time that was asked for: no layer is begun later, as on a machine with more threads at work than cores."""


class Row(NamedTuple):
    """The medians of a layer's times, in seconds."""

    layer: str
    mode: str
    ours: float
    torch: float

    @property
    def ratio(self) -> float:
        """torch's time over ours: above 1 ours is faster."""
        return self.torch / self.ours


def count() -> int:
    """How many rows there are."""
    return len(SHAPES) * len(KINDS) * 2


def rows(device: str = "cpu", seconds: float = 20.0) -> Iterator[Row]:
    """Time each kind of layer in each shape, in inference and in training; ours and torch.nn's by turns. Layers that a
    busy machine leaves no time for are left out; with 0 seconds all get the fewest rounds.

    Raises:
        RuntimeError: where the two give different results.
    """
    latest = time.perf_counter() + LATE * seconds
    for T, B, I, H in SHAPES:  # noqa: E741
        for kind in KINDS:
            if seconds and time.perf_counter() > latest:
                return
            torch.manual_seed(0)
            theirs = kind(I, H, device=device)
            ours = TO_OURS[kind](I, H, device=device)
            ours.load_state_dict(theirs.state_dict())
            x = torch.randn(T, B, I, device=device)
            y, expected = ours(x)[0], theirs(x)[0]
            if not torch.allclose(y, expected, rtol=1e-2, atol=1e-2 if x.is_cuda else 1e-4):
                raise RuntimeError(f"{kind.__name__}, T {T}, B {B}: results differ by {(y - expected).abs().max()}")
            for mode, call in (("inference", infer), ("training", train)):
                ours_s, torch_s = alternating([call(ours, x), call(theirs, x)], seconds / count(), x.is_cuda)
                yield Row(f"{kind.__name__}, T {T}, B {B}, {I}→{H}", mode, ours_s, torch_s)


def infer(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return layer(x)

    return run


def train(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        for p in layer.parameters():
            p.grad = None
        return layer(x)[0].sum().backward()

    return run


def alternating(calls: list[Callable[[], object]], seconds: float, cuda: bool = False) -> list[float]:
    """The median time of each call, in seconds; they are timed by turns for about so long."""

    def timed(call: Callable[[], object], times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / times

    end = time.perf_counter() + seconds
    for call in calls:
        timed(call, 1)  # warm
    blocks = [max(1, round(BLOCK / timed(call, 1))) for call in calls]
    found: list[list[float]] = [[] for _ in calls]
    while len(found[0]) < FEWEST or time.perf_counter() < end:
        for times, call, n in zip(found, calls, blocks, strict=True):
            times.append(timed(call, n))
    return [statistics.median(times) for times in found]


def shown(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, with a progress bar of tqdm on a terminal; a line for each without tqdm (extra ``bar``)."""
    try:
        from tqdm import tqdm
    except ImportError:
        for n, row in enumerate(rows, 1):
            print(f"{n}/{count()} {row.layer}, {row.mode}", file=sys.stderr, flush=True)
            yield row
    else:
        yield from tqdm(rows, desc="timing", total=count(), disable=None, leave=False)


def table(rows: Iterable[Row]) -> str:
    """Text with a line for each layer and mode, and the geometric means of the ratios."""
    rows = list(rows)
    width = max(len(row.layer) for row in rows)
    lines = [f"{'layer':{width}}  {'':9}  {'rnnkernels':>10}  {'torch.nn':>10}  {'ratio':>5}"]
    for row in rows:
        ours, theirs = readable(row.ours), readable(row.torch)
        lines.append(f"{row.layer:{width}}  {row.mode:9}  {ours:>10}  {theirs:>10}  {row.ratio:5.2f}")
    for mode in dict.fromkeys(row.mode for row in rows):
        mean = statistics.geometric_mean([row.ratio for row in rows if row.mode == mode])
        lines.append(f"{'geometric mean':{width}}  {mode:9}  {'':10}  {'':10}  {mean:5.2f}")
    lines.append("ratio: torch.nn's time over ours, medians of calls that took turns, float32")
    if len(rows) < count():
        lines.append(f"{count() - len(rows)} of {count()} rows are left out, for lack of time")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 2 * torch.get_num_threads():
        lines.append(f"the machine is busy, and these numbers say little: its load is {os.getloadavg()[0]:.1f}")
    return "\n".join(lines)


def readable(seconds: float) -> str:
    """A time with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
