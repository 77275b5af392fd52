"""The launches of a pass: which kernel, how often, on which buffers.

Letters: T time, B batch, D directions, X input groups, G gates, H hidden, S states, P output of a step.

Resident: one launch. Stepwise: one launch per step; what one step leaves for the next (states, and the vector that the
product reads) lies in a pair of buffers that take turns, because a program may still read the old one. A projection is
a second launch of the same loop within each step, with a cell of its own that has no input.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl

from ..cells import accumulate_dtype
from . import loop, schedules
from .cells import CELLS, PROJECTION, Cell


class Problem(NamedTuple):
    """One layer call: its sizes and settings, and the weights by kind."""

    cell: Cell
    T: int
    B: int
    D: int
    H: int
    P: int
    reverse: list[bool]
    activation: str
    lengths: Any
    dtype: torch.dtype
    device: torch.device
    chip: schedules.Chip
    precision: str
    w_ih: list
    w_hh: list
    b_ih: list
    b_hh: list
    w_hr: list

    @property
    def accumulate(self):
        return accumulate_dtype(self.dtype)

    def empty(self, *shape, dtype=None):
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def zeros(self, *shape):
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def group(self, d):
        """The input group that direction d belongs to."""
        return d // len(self.reverse)

    def tiles(self, backward):
        return schedules.choose(
            self.dtype, self.cell, self.B, self.D, self.H, self.P, bool(self.w_hr), self.chip, backward
        )  # fmt: skip

    def run(self, kernel, function, cell, tiles, units, width, begin, end, lengths=True, **arguments):
        """Launch a loop over the steps begin..end-1 for a cell with ``units`` units and a product ``width`` long."""
        shared = self.lengths is not None and lengths
        kernel[(-(-self.B // tiles.BB), -(-units // tiles.BH), self.D)](
            lengths=self.lengths if shared else None,
            length_x=self.B if shared and self.lengths.dim() == 2 else 0,
            begin=begin, end=end, T=self.T, B=self.B, D=self.D, CELL=function, ACTIVATION=self.activation,
            S=cell.states, KEPT=cell.kept, H=units, K=width, BH=tiles.BH, BB=tiles.BB, BK=tiles.BK,
            REVERSE=-1 if all(self.reverse) else sum(flag << at for at, flag in enumerate(self.reverse)),
            DIRECTIONS=len(self.reverse),
            RESIDENT=tiles.schedule == "resident", ACC=tl.float64 if self.dtype == torch.float64 else tl.float32,
            PRECISION=self.precision, STAGES=tiles.stages, num_warps=tiles.warps, **arguments,
        )  # fmt: skip


def problem_of(cell, x, weights, reverse, bias, project, activation, lengths):
    """Sort the arguments of the op."""
    D = len(reverse) * (x.size(0) if x.dim() == 4 else 1)
    kinds, each = CELLS[cell], len(weights) // D
    w_ih, w_hh, *rest = ([weights[d * each + n] for d in range(D)] for n in range(each))
    b_ih, b_hh = (rest.pop(0), rest.pop(0)) if bias else ([], [])
    chip = schedules.chip_of(x.device)
    return Problem(
        kinds, x.size(-3), x.size(-2), D, w_hh[0].size(0) // kinds.gates, w_hh[0].size(1), [bool(r) for r in reverse],
        activation or "tanh", None if lengths is None else lengths.to(x.device).contiguous(), x.dtype, x.device,
        chip, schedules.precision(x.dtype, chip), w_ih, w_hh, b_ih, b_hh, rest.pop(0) if project else [],
    )  # fmt: skip


def stacked(tensors):
    """One contiguous tensor of all directions; no copy for a single one."""
    return tensors[0][None].contiguous() if len(tensors) == 1 else torch.stack(tensors)


class Turns:
    """The states between steps: reads the first, writes the last, and a pair of buffers in between."""

    def __init__(self, problem, first, last, steps, widths, dtype):
        self.first, self.last, self.steps = first, last, steps
        shape = (problem.D, problem.B)
        between = 2 if steps > 1 else 0
        self.pair = [tuple(problem.empty(*shape, n, dtype=dtype) for n in widths) for _ in range(between)]

    def at(self, step):
        """What the step-th step (in the order of execution) reads and writes."""
        read = self.first if step == 0 else self.pair[step % 2]
        return read, self.last if step == self.steps - 1 else self.pair[(step + 1) % 2]


def forward(problem, inputs, states, y, last, gates, cells):
    """Run the steps of the layer, into y, last, gates and cells."""
    cell, T, H, P = problem.cell, problem.T, problem.H, problem.P
    tiles = problem.tiles(backward=False)
    w, bias = stacked(problem.w_hh), None
    if cell.recurrent_bias and problem.b_hh:
        bias = stacked([b[-H:] for b in problem.b_hh])
    x = dict(x=inputs, x_d=inputs.stride(0), x_t=inputs.stride(1), x_b=inputs.stride(2))
    nothing = dict(x=None, x_d=0, x_t=0, x_b=0)

    def run(of, units, width, begin, end, **arguments):
        problem.run(loop.scan_forward, of.forward, of, tiles, units, width, begin, end, G=of.gates, **arguments)

    if tiles.schedule == "resident":
        run(cell, H, P, 0, T, **x, w=w, bias=bias, s_in=tuple(states) or None, s_out=tuple(last),
            h_in=None, h_out=None, y=y, gates=gates, cells=cells)  # fmt: skip
        return
    exchange = Turns(
        problem, (states[0] if states else problem.zeros(problem.D, problem.B, P),), (None,), T, [P], problem.dtype
    )  # fmt: skip
    if not problem.w_hr:
        carried = Turns(problem, tuple(states) or None, tuple(last), T, [H] * cell.states, problem.accumulate)
        for t in range(T):
            (s_in, s_out), ((h_in,), (h_out,)) = carried.at(t), exchange.at(t)
            run(cell, H, P, t, t + 1, **x, w=w, bias=bias, s_in=s_in, s_out=s_out, h_in=h_in, h_out=h_out,
                y=y, gates=gates, cells=cells)  # fmt: skip
        return
    w_hr = stacked(problem.w_hr)
    hidden, unused = problem.empty(problem.D, problem.B, H), problem.zeros(problem.D, problem.B, H)
    first = (unused, *states[1:]) if states else None
    carried = Turns(problem, first, (torch.empty_like(unused), *last[1:]), T, [H] * cell.states, problem.accumulate)
    projected = Turns(problem, tuple(states[:1]) or None, (last[0],), T, [P], problem.accumulate)
    for t in range(T):
        (s_in, s_out), ((h_in,), (h_out,)) = carried.at(t), exchange.at(t)
        run(cell, H, P, t, t + 1, **x, w=w, bias=bias, s_in=s_in, s_out=s_out, h_in=h_in, h_out=hidden,
            y=None, gates=gates, cells=cells)  # fmt: skip
        s_in, s_out = projected.at(t)
        run(PROJECTION, P, H, t, t + 1, **nothing, w=w_hr, bias=None, s_in=s_in, s_out=s_out, h_in=hidden, h_out=h_out,
            y=y, gates=None, cells=None)  # fmt: skip


class Gradients(NamedTuple):
    """What the backward loop found."""

    planes: torch.Tensor
    """(D, T, B, planes, H): gradients of the pre-activations."""
    states: list
    """Gradients of the initial states, but for the first one's part through the first step's product."""
    whole: bool
    """Whether that part is in already."""
    projected: Any
    """(D, T, B, 1, P): gradients of the projected output; None without a projection."""


def backward(problem, dy, dlast, dcells, states, y, gates, cells):
    """Run the steps of the layer backwards."""
    cell, T, H, P, D, B = problem.cell, problem.T, problem.H, problem.P, problem.D, problem.B
    tiles = problem.tiles(backward=True)
    w, planes = stacked(problem.w_hh), problem.empty(D, T, B, cell.planes, H)
    saved = (y, cells)[: cell.states]
    dfirst = [problem.empty(D, B, P if k == 0 else H, dtype=problem.accumulate) for k in range(cell.states)]
    through = dict(source=planes, SOURCE=cell.planes, READS=cell.recurrent, LAG=1, w=w)

    def run(of, units, width, begin, end, **arguments):
        problem.run(
            loop.scan_backward, of.backward, of, tiles, units, width, begin, end,
            PLANES=of.planes, NEW=of.new, OLD=of.old, **arguments,
        )  # fmt: skip

    if tiles.schedule == "resident":
        run(cell, H, P, 0, T, **through, dy=dy, dcells=dcells, gates=gates, saved=saved, s_first=tuple(states) or None,
            ds_in=tuple(dlast) or None, ds_out=tuple(dfirst), planes=planes)  # fmt: skip
        return Gradients(planes, dfirst, True, None)
    if not problem.w_hr:
        carried = Turns(problem, tuple(dlast) or None, tuple(dfirst), T, [H] * cell.states, problem.accumulate)
        for step, t in enumerate(reversed(range(T))):
            ds_in, ds_out = carried.at(step)
            run(cell, H, P, t, t + 1, **through, dy=dy, dcells=dcells, gates=gates, saved=saved,
                s_first=tuple(states) or None, ds_in=ds_in, ds_out=ds_out, planes=planes)  # fmt: skip
        return Gradients(planes, dfirst, False, None)
    w_hr, unused = stacked(problem.w_hr), problem.zeros(D, B, H)
    projected = problem.empty(D, T, B, 1, P)
    outer = Turns(problem, tuple(dlast[:1]) or None, (dfirst[0],), T, [P], problem.accumulate)
    inner = Turns(
        problem, (unused, *dlast[1:]) if dlast else None, (torch.empty_like(unused), *dfirst[1:]), T,
        [H] * cell.states, problem.accumulate,
    )  # fmt: skip
    for step, t in enumerate(reversed(range(T))):
        ds_in, ds_out = outer.at(step)
        run(PROJECTION, P, H, t, t + 1, **through, dy=dy, dcells=None, gates=None, saved=(y,), s_first=None,
            ds_in=ds_in, ds_out=ds_out, planes=projected)  # fmt: skip
        ds_in, ds_out = inner.at(step)
        run(cell, H, P, t, t + 1, source=projected, SOURCE=1, READS=(0,), LAG=0, w=w_hr, dy=None, dcells=dcells,
            gates=gates, saved=saved, s_first=(unused, *states[1:]) if states else None,
            ds_in=ds_in, ds_out=ds_out, planes=planes)  # fmt: skip
    return Gradients(planes, dfirst, False, projected)
