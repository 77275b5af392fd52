"""The Triton backend: ``layer`` and ``layer_backward`` of the op, and the calls that it cannot run.

Torch does the products that do not recur (products.py), one per direction before the time loop or after it, in the
precision of torch's switch for matrix products; the loops of forward.py and backward.py do the rest, launched by
passes.py with the tiles that schedules.py chooses, in the precision of torch's switch for RNNs.
"""

import functools
import os
from contextlib import nullcontext

import torch

from ...cells import spec_of
from ...cells.call import LayerCall
from ...cells.reference import zero_past
from . import HAS_TRITON, schedules

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STAGES = frozenset({"lengths", "project", "reset", "h_mask", "zone", "second_product", "layer_norm"})


def unsupported(call):
    """The reason why this backend cannot run the call, or None."""
    if not HAS_TRITON:
        return "triton is not installed"
    if call.device.type != "cuda" and not (call.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"it runs on GPUs, and the input is on {call.device} (TRITON_INTERPRET=1 would interpret it)"
    chip = schedules.chip_of(call.device)
    if chip.backend == "cuda" and chip.capability < 80:
        return f"{chip.name} has compute capability {chip.capability / 10}, it needs 8.0"
    if call.dtype not in DTYPES:
        return f"dtype {call.dtype} is not one of {', '.join(map(str, DTYPES))}"
    return missing(call) or unfit(call)


def missing(call):
    """The stages that the kernels lack for a layer on any chip, as a reason, or None."""
    spec = spec_of(call.cell)
    if spec.program.inner and cell_of(call).inner is None:
        return f"{spec.name} keeps nothing that gives the operand of its second product"
    if spec.program.inner and spec.recurrent_gates == 1 and "layer_norm" in call.stages:
        return f"{spec.name} has no recurrent product but the one inside its step, and layer_norm is of both"
    if "project" in call.stages and not call.lacking(STAGES) and cell_of(call).output is None:
        return f"{spec.name} has no projection"
    return call.lacking(STAGES)


def unfit(call):
    """The reason why no schedule of the call's chip can run a cell with norms, forward and backward, or None."""
    if not spec_of(call.cell).program.norms:
        return None
    project, norm = (stage in call.stages for stage in ("project", "layer_norm"))
    chip = schedules.chip_of(call.device)
    return schedules.unfit(call.dtype, cell_of(call), call.B, call.D, call.H, call.P, project, chip, norm)


def cell_of(call):
    """The ``Cell`` of a call: of a name or a program."""
    from . import cells  # imports triton

    return cells.cell_of(call.cell, call.H)


def schedule(call):
    """The schedule of the forward pass and, in training, of the backward pass, with the reasons."""
    said, cell = [], cell_of(call)
    for backward in (False, True) if call.training else (False,):
        tiles = schedules.choose(
            call.dtype, cell, call.B, call.D, call.H, call.P, "project" in call.stages,
            schedules.chip_of(call.device), backward, call.T, "layer_norm" in call.stages and cell.recurrent_gates > 0,
        )  # fmt: skip
        name = "backward" if backward else "forward"
        often = ", a CUDA graph once a shape repeats" if tiles.schedule == "stepwise" and call.T > 1 else ""
        said.append(f"{name} {tiles.schedule}{often}, {tiles.BH} units x {tiles.BB} rows a program ({tiles.reason})")
    return "; ".join(said)


def problem_of(call):
    """The ``Problem`` of a ``LayerCall``.

    Raises:
        NotImplementedError: with the reason of ``unsupported``, which the dispatcher does not ask before a call.
    """
    from . import problem  # imports triton

    lists = call.states, call.reset_states, call.zone, call.extras
    for t in (tensor for each in lists for tensor in each):  # the dispatcher does not look into optional lists
        if t.device != call.x.device:
            raise RuntimeError(
                f"rnnkernels: expected all tensors on {call.x.device}, the device of x, but got {t.device}"
            )
    reason = missing(call.facts()) or unfit(call.facts())
    if reason is not None:
        raise NotImplementedError(f"rnnkernels: the Triton backend cannot run this layer: {reason}")
    return problem.problem_of(call)


def on_device(function):
    """Run without autograd, on the tensors' GPU."""

    @functools.wraps(function)
    def run(*args):
        x = next(a for a in args if isinstance(a, torch.Tensor))
        elsewhere = x.is_cuda and x.device.index != torch.cuda.current_device()
        with torch.no_grad(), torch.cuda.device(x.device) if elsewhere else nullcontext():
            return function(*args)

    return run


@on_device
def layer(*arguments):
    """``rnnkernels::layer``: returns ``y, last, saved``."""
    *call, save = arguments
    return forward(problem_of(LayerCall.of(*call)), bool(save))


def forward(problem, save):
    """``y, last, saved`` of a ``Problem``."""
    from . import graphs, passes, products

    if problem.B == 0:
        y, last, gates, cells = passes.outputs(problem, save)
    else:
        tiles = problem.tiles(backward=False)
        y, last, gates, cells = graphs.run(
            passes.forward, problem.launches(tiles, backward=False), problem.recurrent(), tiles,
            products.project_inputs(products.aligned(problem)), save,
        )  # fmt: skip
    return y, last, [tensor for tensor in (gates, cells) if tensor is not None]


def started(problem):
    """The initial states, with zeros in the rows that have no step."""
    if problem.lengths is None:
        return problem.states
    alive = problem.lengths > 0
    if alive.dim() == 2:  # each group of directions has its own lengths
        alive = alive.repeat_interleave(problem.D // alive.size(0), 0)
    return [torch.where(alive[..., None], s, 0.0) for s in problem.states]


@on_device
def layer_backward(dy, dlast, dcells, *arguments):
    """``rnnkernels::layer_backward``: returns ``dx, dstates, dweights, dreset_states, dextras``."""
    *call, y, saved, needs = arguments
    call = LayerCall.of(*call)
    x, states, weights, reset_states = call.x, call.states, call.weights, call.reset_states
    problem = problem_of(call)
    if problem.B == 0:
        kinds = (x,), states, weights, reset_states, call.extras
        zeros = [[torch.zeros_like(t) for t in tensors] if need else [] for tensors, need in
                 zip(kinds, (*needs[:3], needs[1], needs[3]), strict=True)]  # fmt: skip
        return (zeros[0][0] if needs[0] else x.new_empty(0)), *zeros[1:]
    return backward(problem, dy, dlast, dcells, y, saved, needs)


def backward(problem, dy, dlast, dcells, y, saved, needs):
    """``dx, dstates, dweights, dreset_states, dextras`` of a ``Problem``, of which ``needs`` says which are needed."""
    from . import graphs, norm_products, passes, products

    cell, x, states, Q = problem.cell, problem.x, problem.states, problem.cell.sequences
    # Values past the lengths may be NaN, and would be multiplied by gradients of zero.
    problem = products.aligned(problem._replace(x=zero_past(x, problem.lengths), states=started(problem)))
    gates, cells = saved[0] if problem.kept else None, saved[-1] if cell.cells else None
    tiles = problem.tiles(backward=True)
    whole = tiles.schedule == "resident"
    normed = norm_products.normed_of(problem, y, gates, cells, whole) if problem.ln_h else None
    found = graphs.run(
        passes.backward, problem.launches(tiles, backward=True), problem.recurrent(), tiles, dy.contiguous(),
        [g.contiguous() for g in dlast], None if dcells is None else dcells.contiguous(), y, gates, cells, normed,
        products.given_inputs(problem) if cell.again else None,
    )  # fmt: skip
    known = ()
    if problem.norm:
        problem, found, *known = norm_products.through_norms(problem, found, normed, gates, cells)
    dx = products.input_gradient(problem, found) if needs[0] else x.new_empty(0)
    through = products.through_first_operand(problem, found)
    dstates, dreset = products.state_gradients(problem, found, through) if needs[1] else ([], [])
    dvectors, dinputs = products.beside_gradients(problem, found, through)
    dweights = products.weight_gradients(problem, y, gates, cells, found, dvectors, *known) if needs[2] else []
    return dx, dstates if states else [], dweights, dreset, [*dinputs[Q:], *dinputs[:Q]] if needs[3] else []
