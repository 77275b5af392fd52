"""The Triton backend: ``layer`` and ``layer_backward`` of the op, and what it can and cannot run.

Torch does the products that do not recur (products.py), one per direction before the time loop or after it, in the
precision of torch's switch for matrix products; the loops of forward.py and backward.py do the rest, launched by
passes.py with the tiles that schedules.py chooses, in the precision of torch's switch for RNNs.
"""

import functools
import importlib.util
import os
from contextlib import nullcontext

import torch

from ..cells import CELLS
from . import schedules

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STAGES = frozenset({"lengths", "project", "reset", "h_mask", "zone"})


def unsupported(call):
    """The reason why this backend cannot run the call, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if call.device.type != "cuda" and not (call.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"it runs on GPUs, and the input is on {call.device} (TRITON_INTERPRET=1 would interpret it)"
    chip = schedules.chip_of(call.device)
    if chip.backend == "cuda" and chip.capability < 80:
        return f"{chip.name} has compute capability {chip.capability / 10}, it needs 8.0"
    if call.dtype not in DTYPES:
        return f"dtype {call.dtype} is not one of {', '.join(map(str, DTYPES))}"
    return missing(call.cell, call.stages)


def missing(cell, stages):
    """What the kernels lack for a layer on any chip, or None."""
    if stages - STAGES:
        return f"it has no stage for {', '.join(sorted(stages - STAGES))} yet"
    if "project" in stages and cell_of(cell).output is None:
        return f"{cell} has no projection"
    return None


def cell_of(name):
    from .cells import CELLS  # imports triton

    return CELLS[name]


def schedule(call):
    """The schedule of the forward pass and, in training, of the backward pass, with the reasons."""
    said = []
    for backward in (False, True) if call.training else (False,):
        tiles = schedules.choose(
            call.dtype, cell_of(call.cell), call.B, call.D, call.H, call.P, "project" in call.stages,
            schedules.chip_of(call.device), backward, call.T,
        )  # fmt: skip
        name = "backward" if backward else "forward"
        often = ", a CUDA graph once a shape repeats" if tiles.schedule == "stepwise" and call.T > 1 else ""
        said.append(f"{name} {tiles.schedule}{often}, {tiles.BH} units x {tiles.BB} rows a program ({tiles.reason})")
    return "; ".join(said)


def refuse(cell, reset, reset_states, h_mask, zone, layer_norm):
    """Raise for what ``unsupported`` would have said: the dispatcher may call a backend without asking it."""
    stages = {"reset": reset is not None or reset_states, "h_mask": h_mask is not None, "zone": zone}
    stages |= {"layer_norm": layer_norm, "second_product": CELLS[cell].phases > 1}
    reason = missing(cell, {name for name, there in stages.items() if there})
    if reason is not None:
        raise NotImplementedError(f"rnnkernels: the Triton backend cannot run this layer: {reason}")


def on_device(function):
    """Run without autograd, on the tensors' GPU."""

    @functools.wraps(function)
    def run(*args):
        x = next(a for a in args if isinstance(a, torch.Tensor))
        with torch.no_grad(), torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            return function(*args)

    return run


@on_device
def layer(
    cell, x, states, weights, reverse, bias, project, activation, recurrent_activation,
    lengths, reset, reset_states, h_mask, zone, layer_norm, eps, save,
):  # fmt: skip
    """``rnnkernels::layer``: returns ``y, last, saved``."""
    from . import graphs, passes, products
    from .problem import problem_of

    refuse(cell, reset, reset_states, h_mask, zone, layer_norm)
    problem = problem_of(
        cell, x, weights, reverse, bias, project, activation, recurrent_activation,
        lengths, reset, reset_states, h_mask, zone,
    )  # fmt: skip
    if problem.B == 0:
        y, last, gates, cells = passes.outputs(problem, save)
    else:
        y, last, gates, cells = graphs.run(
            passes.forward, problem.launches(backward=False), problem.recurrent(),
            products.project_inputs(problem, x), [s.contiguous() for s in states], bool(save),
        )  # fmt: skip
    return y, last, [tensor for tensor in (gates, cells) if tensor is not None]


@on_device
def layer_backward(
    dy, dlast, dcells, cell, x, states, weights, reverse, bias, project, activation, recurrent_activation,
    lengths, reset, reset_states, h_mask, zone, layer_norm, eps, y, saved, needs,
):  # fmt: skip
    """``rnnkernels::layer_backward``: returns ``dx, dstates, dweights, dreset_states``."""
    from . import graphs, passes, products
    from .problem import problem_of

    refuse(cell, reset, reset_states, h_mask, zone, layer_norm)
    problem = problem_of(
        cell, x, weights, reverse, bias, project, activation, recurrent_activation,
        lengths, reset, reset_states, h_mask, zone,
    )  # fmt: skip
    if problem.B == 0:
        zeros = [[torch.zeros_like(t) for t in tensors] if need else [] for tensors, need in
                 zip(((x,), states, weights, reset_states), (*needs, needs[1]), strict=True)]  # fmt: skip
        return (zeros[0][0] if needs[0] else x.new_empty(0)), *zeros[1:]
    states = [s.contiguous() for s in states]
    gates = saved[0] if problem.cell.kept else None
    cells = saved[-1] if problem.cell.states > 1 else None
    found = graphs.run(
        passes.backward, problem.launches(backward=True), problem.recurrent(), dy.contiguous(),
        [g.contiguous() for g in dlast], None if dcells is None else dcells.contiguous(), states, y, gates, cells,
    )  # fmt: skip
    dx = products.input_gradient(problem, x, found) if needs[0] else x.new_empty(0)
    dstates, dreset = products.state_gradients(problem, found) if needs[1] else ([], [])
    dweights = products.weight_gradients(problem, x, states, y, gates, cells, found) if needs[2] else []
    return dx, dstates if states else [], dweights, dreset
