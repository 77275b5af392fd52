"""The launches of a pass: their kernels, number and buffers.

Letters: T time, B batch, D directions, X input groups, G gates, H hidden, S states, P output of a step.

Resident and cooperative: one launch. Stepwise: one launch per step; the states lie in buffers in between, and the
recurrent product reads the output of the step before. A projection is a second launch of the same loop within each
step, with its own cell, which has no input, and which holds the output and the first state. A second product or layer
norm adds launches to each step (``Problem.phases``).
"""

import operator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton.language as tl

from . import backward as backward_loop
from . import forward as forward_loop
from . import norm_products, schedules
from .cells import PROJECTION
from .problem import stacked, turned
from .products import first_step, own_biases, starts_again

PLAIN = dict(between=None, sums=None, gain=None, c_gain=None, c_bias=None, parts=None, OUTPUT=None, EPS=0.0)
PLAIN |= dict(rows=None, ROWS=(0, 0, 0))
PLAIN_BACKWARD = dict.fromkeys(("raw", "gain", "moments", "c_gain", "c_bias", "c_moments", "dnorm", "held", "parts"))
PLAIN_BACKWARD |= dict.fromkeys(("spread", "along", "OUTPUT", "dfixed", "dinputs", "doperand"))
PLAIN_BACKWARD |= dict(x=None, x_d=0, x_t=0, x_b=0, GX=0)
PLAIN_BACKWARD |= dict(READ_NORM=False, EMITS=(), PARTS=1, rows=None, ROWS=(0, 0, 0))
ALONE = dict.fromkeys(("vectors", "inputs", "inputs_at", "OPERAND"))
ALONE |= dict(V=0, SEQUENCES=0, INPUT_J=(), Y=False, FINITE=True)  # of a cell that reads states and products only


class Gradients(NamedTuple):
    """The results of the backward loop."""

    planes: torch.Tensor
    """(D, T, B, planes, H): gradients of the pre-activations."""
    states: list
    """Gradients of the initial states, but for the first one's part through the first step's product."""
    whole: bool
    """True if ``states`` already contains that part."""
    projected: Any
    """(D, T, B, 1, P): gradients of the projected output; None without a projection."""
    reset_states: list
    """Gradients of the states that rows restart from, with the same exception; empty if there are none."""
    dnorm: Any
    """(D, T, B, H): gradients of the layer norm of c; None without one."""
    fixed: tuple
    """(D, B, H) each: gradients of the vectors and of the inputs of a whole sequence, summed over steps."""
    inputs: Any
    """(D, T, B, N, H): gradients of the N inputs of a step; None without any."""
    operand: Any
    """Their parts through the operand, but for the first step, where these are apart; or None."""


class Loop(NamedTuple):
    """A kernel, and the arguments that all launches of a pass share."""

    kernel: Any
    grid: tuple
    arguments: dict
    options: dict
    launched: list
    """The states of the previous launch and the kernel compiled for it, for a next launch with the same states."""

    def __call__(self, begin, end, states):
        """Launch with the ``states`` that are read and written, by name. A launch with the previous states skips
        Triton's search for the kernel, which takes several times as long as the launch."""
        given = self.arguments | states | {"begin": begin, "end": end}
        if self.launched and all(map(operator.is_, self.launched[0].values(), states.values())):
            compiled = self.launched[1]
            compiled[self.grid](*(given[name] for name in self.kernel.arg_names))
            return
        compiled = self.kernel[self.grid](**given, **self.options)
        self.launched[:] = (states, compiled) if compiled is not None else ()  # None: interpreted


def loop_of(problem, kernel, function, cell, tiles, units, width, states, **arguments):
    """A loop for a cell with ``units`` units and a product ``width`` long, whose states are the op's ``states``."""
    grid = (-(-problem.B // tiles.BB), -(-units // tiles.BH), problem.D)
    cooperative = tiles.schedule == "cooperative"
    arguments |= dict(
        lengths=problem.lengths, length_x=problem.apart(problem.lengths, 2),
        reset=problem.reset, reset_x=problem.apart(problem.reset, 3),
        s_reset=problem.named(problem.reset_states, states, units), T=problem.T, B=problem.B, D=problem.D,
        CELL=function, ACTIVATION=problem.activation, GATE=problem.recurrent_activation,
        S=cell.states, KEPT=problem.kept_by(cell), H=units, K=width,
        BH=tiles.BH, BB=tiles.BB, BK=tiles.BK, SPLIT=tiles.warps,
        PIECES=schedules.pieces(width, tiles.warps, tiles.BK) if cooperative else (),
        counters=problem.zeros(problem.D, grid[0], dtype=torch.int32) if cooperative else None,
        REVERSE=-1 if all(problem.reverse) else sum(flag << at for at, flag in enumerate(problem.reverse)),
        DIRECTIONS=len(problem.reverse), SCHEDULE=tiles.schedule,
        ACC=tl.float64 if problem.dtype == torch.float64 else tl.float32, PRECISION=problem.precision,
        STAGES=tiles.stages, **problem.zoneout(states, units),
    )  # fmt: skip
    options = dict(num_warps=tiles.warps, launch_cooperative_grid=cooperative)
    if tiles.registers is not None:
        options["maxnreg"] = tiles.registers
    return Loop(kernel, grid, arguments, options, [])


def carried(problem, first, last, launches, names=("s_in", "s_out")):
    """The states that each launch of a pass reads and writes, by the names of its arguments: the first launch reads
    ``first``, the last writes ``last``; in between a program reads and writes its own tiles only."""
    between = tuple(torch.empty_like(s, dtype=problem.accumulate) for s in last) if launches > 1 else ()
    turns = zip(
        [first and tuple(first), *[between] * (launches - 1)], [*[between] * (launches - 1), tuple(last)], strict=True
    )
    return [dict(zip(names, turn, strict=True)) for turn in turns]


def beside(problem, backward):
    """Arguments of both loops for what a cell reads beside states and products."""
    cell = problem.cell
    if not (cell.vectors or problem.inputs or cell.operand or cell.y or not cell.finite):
        return ALONE
    at = [places(problem, tensor) for tensor in problem.inputs]
    return dict(
        vectors=torch.stack([stacked(v) for v in problem.vectors], 1) if cell.vectors else None, V=cell.vectors,
        inputs=tuple(tensor for tensor, *_ in at) or None, inputs_at=tuple(strides for _, strides, _ in at) or None,
        INPUT_J=tuple(stride for *_, stride in at), SEQUENCES=cell.sequences,
        OPERAND=cell.backward_operand if backward else cell.operand, Y=cell.y, FINITE=cell.finite,
    )  # fmt: skip


def places(problem, tensor):
    """An input (T, B, H), (T, B, 1) or (B, H), or with a leading X, with its strides by x, t and b, and by unit."""
    tensor = tensor if tensor.stride(-1) == 1 or tensor.size(-1) == 1 else tensor.contiguous()
    whole = tensor.dim() - problem.grouped == 2  # of a whole sequence
    x = tensor.stride(0) if problem.grouped else 0
    return tensor, (x, 0 if whole else tensor.stride(-3), tensor.stride(-2)), int(tensor.size(-1) > 1)


def of_states(problem, tensor):
    """The cells (S' * D, T, B, H) as a tuple of one tensor (D, T, B, H) per state; () without any."""
    return () if tensor is None else tuple(tensor.unflatten(0, (-1, problem.D)).unbind(0))


def spans_of(problem, tiles):
    """The steps begin..end-1 of every launch."""
    return [(t, t + 1) for t in range(problem.T)] if tiles.schedule == "stepwise" else [(0, problem.T)]


def walk(spans, *turns):
    """Launch loops over each span of steps, one after the other; each with its ``carried`` states."""
    for launch, (begin, end) in enumerate(spans):
        for loop, states in turns:
            loop(begin, end, states[launch])


def inside(problem, tiles):
    """Arguments of the forward loop for a second product and layer norms: gains, and memory through which the
    programs, or the launches, of a step exchange results."""
    D, B, H, G, out = problem.D, problem.B, problem.H, problem.cell.recurrent_gates, dict(PLAIN)
    shared, wide = tiles.schedule != "resident", dict(dtype=problem.accumulate)
    if problem.cell.first is not None and shared:
        out |= dict(between=problem.empty(D, B, H))
    if len(problem.phases(tiles, False)) > 1:
        out |= dict(sums=problem.empty(D, B, G, H, **wide))
    if problem.norm:
        parts = problem.empty(D, 2, B, 2, -(-H // tiles.BH), **wide) if shared else None
        out |= dict(gain=stacked(problem.ln_h), parts=parts, EPS=problem.eps) if problem.ln_h else {}
    if problem.ln_c:
        c_gain, c_bias = map(stacked, problem.ln_c)
        out |= dict(c_gain=c_gain, c_bias=c_bias, OUTPUT=problem.cell.hidden)
    return out | meetings(problem, tiles, problem.cell.norms[:3])


def meetings(problem, tiles, norms):
    """Arguments of a loop for norms inside the cell's functions, if programs share rows."""
    if not norms or tiles.schedule != "cooperative":
        return {}
    programs, wide = -(-problem.H // tiles.BH), dict(dtype=problem.accumulate)
    return dict(rows=problem.empty(problem.D, sum(norms), 2, problem.B, 2, programs, **wide), ROWS=norms)


def inside_backward(problem, tiles, normed):
    """Arguments of the backward loops for layer norms: those of all, and those of the cell's alone."""
    D, T, B, H = problem.D, problem.T, problem.B, problem.H
    wide, programs = dict(dtype=problem.accumulate), -(-H // tiles.BH)
    own = meetings(problem, tiles, problem.cell.norms[3:]) | dict(PARTS=programs)
    if not problem.ln_h:
        return {}, own
    products = dict(moments=normed.moments)
    if tiles.schedule != "resident":
        parts = problem.empty(2, D, 2, B, 2, programs, **wide)
        products |= dict(parts=parts, PARTS=programs, spread=normed.spread, along=normed.along)
    own |= dict(raw=normed.raw, gain=stacked(problem.ln_h), EMITS=problem.cell.reads)
    if problem.ln_c:
        c_gain, c_bias = map(stacked, problem.ln_c)
        own |= dict(
            c_gain=c_gain, c_bias=c_bias, c_moments=normed.c_moments, dnorm=problem.empty(D, T, B, H),
            held=(problem.empty(D, B, H, **wide),) if tiles.schedule == "stepwise" else None,
            OUTPUT=problem.cell.backward_hidden,
        )  # fmt: skip
    return products, own


def outputs(problem, save):
    """Uninitialised memory for ``y, last, gates, cells``; the last two are None unless they are saved."""
    cell, D, T, B, H, P = problem.cell, problem.D, problem.T, problem.B, problem.H, problem.P
    y, last = problem.empty(T, B, D * P), [problem.empty(D, B, P if k == 0 else H) for k in range(cell.states)]
    gates = problem.empty(D, T, B, problem.kept, H) if save and problem.kept else None
    cells = problem.empty(cell.cells * D, T, B, H, dtype=problem.accumulate) if save and cell.cells else None
    return y, last, gates, cells


def forward(problem, tiles, inputs, save):
    """Run the steps of the layer into its ``outputs``."""
    cell, D, B, H, P = problem.cell, problem.D, problem.B, problem.H, problem.P
    states, project = problem.states, bool(problem.w_hr)
    y, last, gates, cells = outputs(problem, save)
    hidden = problem.empty(D, B, H) if project else None
    own = tuple(range(cell.states)) if not project else (None, *range(1, cell.states))
    first, ring = (None, None) if tiles.schedule == "resident" else exchange(problem)
    x_d, x_t, x_b = (0, 0, 0) if inputs is None else inputs.stride()[:3]
    spans, phases = spans_of(problem, tiles), problem.phases(tiles, backward=False)
    run = partial(
        loop_of, problem, forward_loop.scan_forward, cell.forward, cell, tiles, H, P, own, x=inputs, x_d=x_d, x_t=x_t,
        x_b=x_b, w=stacked(problem.w_hh) if problem.w_hh else None, bias=own_biases(problem), BIASED=cell.biased,
        v_first=first, vector=y if ring is None else ring, RING=ring is not None,
        h_mask=None if project else problem.h_mask, GX=cell.gates, G=cell.recurrent_gates, FIRST=cell.first,
        OWN=cell.own if problem.zone else (), **beside(problem, False), **inside(problem, tiles),
    )  # fmt: skip
    results = dict(
        y=None if project else y, v_out=None if project else ring, h_out=hidden, gates=gates,
        cells=of_states(problem, cells) or None,
    )  # fmt: skip
    s_turns = carried(problem, problem.named(states, own, H), problem.named(last, own, H), len(spans))
    turns = [(run(PHASE=phase, **dict.fromkeys(results)), [turn | {"s_out": None} for turn in s_turns])
             for phase in phases[:-1]]  # fmt: skip
    turns.append((run(PHASE=phases[-1], **results), s_turns))
    if project:
        out = loop_of(
            problem, forward_loop.scan_forward, PROJECTION.forward, PROJECTION, tiles, P, H, (0,), x=None, x_d=0, x_t=0,
            x_b=0, w=stacked(problem.w_hr), bias=None, v_first=hidden, vector=None, RING=False, h_mask=problem.h_mask,
            y=y, v_out=ring, h_out=None, gates=None, cells=None, GX=0, G=1, FIRST=None, BIASED=(),
            PHASE=0, OWN=(), **ALONE, **PLAIN,
        )  # fmt: skip
        turns.append((out, carried(problem, states[:1] or None, last[:1], len(spans))))
    walk(spans, *turns)
    return y, last, gates, cells


def backward(problem, tiles, dy, dlast, dcells, y, gates, cells, normed, x=None):
    """Run the steps of the layer backwards. ``x``: the pre-activations, where the cell reads them again."""
    cell, T, H, P, D, B = problem.cell, problem.T, problem.H, problem.P, problem.D, problem.B
    states, project = problem.states, bool(problem.w_hr)
    own = tuple(range(cell.states)) if not project else (None, *range(1, cell.states))
    planes = problem.empty(D, T, B, cell.planes, H)
    saved = (*((y,) if not cell.y else ()), *of_states(problem, cells))
    widths = [P if k == 0 else H for k in range(cell.states)]
    dfirst = [problem.empty(D, B, n, dtype=problem.accumulate) for n in widths]
    dreset = [problem.zeros(D, B, n, dtype=problem.accumulate) for n in widths] if problem.reset_states else []
    w_hh = norm_products.scaled(problem) if problem.ln_h and tiles.schedule != "resident" else problem.w_hh
    through = dict(
        source=planes, SOURCE=cell.planes, READS=cell.reads, LAG=1, h_mask=problem.h_mask,
        w=turned(w_hh, cell.recurrent_gates) if w_hh else None,
    )  # fmt: skip
    products, of_cell = inside_backward(problem, tiles, normed)

    def loop(of, units, width, states_of, **arguments):
        old = tuple(o or (n and bool(problem.zone)) for n, o in zip(of.new, of.old, strict=True))
        new = tuple(n and not (problem.zone and of.own) for n in of.new)
        return loop_of(
            problem, backward_loop.scan_backward, of.backward, of, tiles, units, width, states_of, RENEW=of.renew,
            FIRST=of.backward_first, FIRST_PLANES=of.first_planes, DQ=of.recurrent[-1] if of.first else None,
            CROSS=of.cross, PLANES=of.planes, NEW=new, OLD=old,
            s_first=problem.named(states, states_of, units), ds_reset=problem.named(dreset, states_of, units),
            **(PLAIN_BACKWARD | ALONE | products | arguments),
        )  # fmt: skip

    spans, phases, projected = spans_of(problem, tiles)[::-1], problem.phases(tiles, backward=True), None
    chained = 1 if problem.ln_c else len(phases)  # a second product adds to the states' gradients, a norm delays them
    names = ("ds_in", "ds_out")
    inner = carried(problem, problem.named(dlast, own, H), problem.named(dfirst, own, H), len(spans) * chained, names)
    wide, single = dict(dtype=problem.accumulate), len(phases) == 1
    fixed = tuple(problem.zeros(D, B, H, **wide) for _ in range(cell.vectors + cell.sequences))
    dinputs = problem.empty(D, T, B, cell.steps, H, **wide) if cell.steps else None
    apart = cell.operand is not None and dinputs is not None and tiles.schedule != "resident"
    doperand = torch.empty_like(dinputs) if apart else None
    held = None if single or not cell.cross else tuple(problem.empty(D, B, H, **wide) for _ in range(cell.cross))
    of_cells = None if dcells is None else of_states(problem, dcells)
    common = dict(dcells=of_cells, gates=gates, saved=saved, planes=planes, held=held) | beside(problem, True) | of_cell
    if x is not None:
        common |= dict(x=x, x_d=x.stride(0), x_t=x.stride(1), x_b=x.stride(2), GX=cell.gates)
    common |= dict(dfixed=fixed or None, dinputs=dinputs, doperand=doperand)
    if project:
        projected = problem.empty(D, T, B, 1, P)
        out = loop(
            PROJECTION, P, H, (0,), **through, dy=dy, dcells=None, gates=None, saved=(y,), planes=projected, PHASE=0,
            READ_NORM=problem.norm,
        )  # fmt: skip
        through = dict(
            source=projected, SOURCE=1, READS=(0,), LAG=0, w=turned(problem.w_hr, 1), h_mask=None, dy=None
        )  # fmt: skip
        turns = [(out, carried(problem, dlast[:1] or None, dfirst[:1], len(spans), names))]
    else:
        through, turns = through | dict(dy=dy, READ_NORM=problem.norm), []
    for n, phase in enumerate(phases):
        run = loop(cell, H, P, own, **through, **common, PHASE=phase)
        if problem.ln_c:
            turns.append((run, [turn | {"ds_out": None} for turn in inner] if phase == 1 else inner))
        else:
            turns.append((run, inner[n :: len(phases)]))
    walk(spans, *turns)
    return Gradients(
        planes, dfirst, tiles.schedule == "resident", projected, dreset, of_cell.get("dnorm"), fixed, dinputs, doperand
    )  # fmt: skip


def exchange(problem):
    """The operand of the first step's product, and a pair of buffers for the later ones; None if those are outputs."""
    D, B, P, cell = problem.D, problem.B, problem.P, problem.cell
    first = problem.states[0] if problem.states else problem.zeros(D, B, P)
    if problem.reset is None and problem.h_mask is None and cell.operand is None and not cell.y:
        return first, None
    if cell.operand is not None:
        first = torch.stack([cell.operands(*first_step(problem, d)) for d in range(D)])
    elif problem.reset is not None:
        first = torch.where(starts_again(problem), problem.reset_states[0] if problem.reset_states else 0, first)
    first = first if problem.h_mask is None else first * problem.h_mask
    return first.to(problem.dtype), problem.empty(2, B, D, P)
