"""One layer through the backend that fits, with autograd, vmap, autocast and recorders. Arguments as in schema.py."""

import torch
from torch.autograd import forward_ad

from .. import backends
from ..cells import reference
from ..recorders import onnx
from . import schema, tangent, vmap  # noqa: F401 - schema defines the ops
from .autograd import (
    OPS,
    Eager,
    Transform,
    autocast_enabled,
    differentiating,
    forward_mode,
    functionalizing,
    has_tangent,
    implementation,
    jit_tracing,
    of_old_vmap,
    plain,
    recording,
    transform_in_graph,
    transforming,
    wants_gradient,
)
from .flat import Plan


def inference_op(x, states, weights, I):  # noqa: E741
    """The ``stack`` that runs layers without dropout and reset, in plain inference on the C++ backend; else None."""
    recorded = jit_tracing()  # sizes cannot be compared then; the op that is recorded trains too
    if (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and (recorded or (x.shape[2] == I and not wants_gradient((*weights, x, *states))))
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_any_autocast_enabled()
        and not (recorded and onnx.exporting())
        and forward_ad._current_level < 0
        and backends.forced() is None
        and backends.EXTENSION_ERROR is None
    ):
        return plain("stack")
    return None


def resolved(tensors):
    """Tensors for an optional list of an op, into which the dispatcher does not look: without negative bits."""
    return [t.resolve_neg() for t in tensors] if any(map(torch.Tensor.is_neg, tensors)) else tensors


def rare(parts, packed):
    """The last arguments of a ``stack`` or ``plain_step``, by name: most calls have none, which costs less."""
    given = {"parts": parts} if parts else {}
    if packed:
        given["packed"] = packed
    return given


def layer(call, *, return_cells=False, recompute=False, exposed=True):
    """One layer through the backend that fits, with autograd, vmap and autocast.

    Args:
        call: ``LayerCall``.
        return_cells: all cell states are a result too, for cells with two states.
        recompute: the gates are not kept for the backward pass, which computes them again.
        exposed: others may write into y before the backward pass. (x may be refilled where torch.nn allows it.)

    Returns:
        ``y, last``, or ``y, last, cells`` with ``return_cells`` (cells (D, T, B, H)).
    """
    device = call.x.device.type
    if autocast_enabled(device):
        call = call.cast(torch.get_autocast_dtype(device))
    x, states, weights = call.x, call.states, call.weights
    # no hidden units: no backend has anything to compute
    if call.hidden_size == 0 and not jit_tracing() and not any(weights[1].shape):
        return reference.no_units(x, states, weights, len(call.reverse), call.spec.states, return_cells)
    traced = torch.compiler.is_compiling()
    if (traced or jit_tracing()) and onnx.exporting():
        return onnx.node_of_layer(call, return_cells)
    if device == "cpu" and backends.forced() is None:
        backend = "dispatch"  # the extension has all that such a call needs
    else:
        backend = backends.route(call.facts())
    if not traced:
        lists = {name: resolved(getattr(call, name)) for name in ("states", "reset_states", "zone", "extras")}
        call = call._replace(**lists)
    transform = differentiating() if traced else torch._C._are_functorch_transforms_active()
    if traced and not transform and transforming():
        call = call._replace(x=vmap.shown(x, (*call.states, *call.reset_states, *call.zone, *call.extras)))
    tensors = call.flat()
    functional = transform and not traced and functionalizing()
    transform = transform and not functional
    recorded = functional or (not transform and recording())
    if traced and forward_mode():  # not in the graph: each step unrolled, without derivatives of a user's own
        return torch.compiler.disable(layer)(call, return_cells=return_cells, recompute=recompute, exposed=exposed)
    forward = not traced and has_tangent(tensors)
    if forward and (recorded or backend == "reference" or of_old_vmap(tensors) or tangent.why_not(call)):
        y, last, saved = reference.layer(*call, return_cells)  # a tangent flows through torch's operations
        return (y, tuple(last), saved[-1]) if return_cells else (y, tuple(last))
    transform = transform or forward
    if not recorded and (transform or wants_gradient(tensors)):
        cells = return_cells or (forward and call.spec.apart > 0)  # the tangents of a layer follow from its results
        recompute = recompute or (forward and not tangent.differentiated(tensors))  # gates of no use
        plan = Plan.of(call, backend, return_cells=cells, recompute=recompute, exposed=exposed)
        if transform:
            y, *rest = transform_in_graph(*plan, *tensors) if traced else Transform.apply(plan, *tensors)
        elif traced or x.size(0) == 1 or x.is_contiguous() or not any(w.requires_grad for w in weights):
            y, *rest = Eager.apply(plan, *tensors)
        else:  # as torch.nn does, so that whoever has batch_first may refill a buffer of inputs after the call
            y, *rest = Eager.apply(plan, x.contiguous(), *tensors[1:])
        S = call.spec.states
        last = tuple(rest[:S])
        cells = rest[-1].clone() if transform and return_cells else rest[-1]  # as y: others may write into it
    else:
        y, last, saved = implementation(backend, "layer", OPS.get if recorded else plain)(*call, return_cells)
        last, cells = tuple(last), saved[-1] if return_cells else None
    return (y, last, cells) if return_cells else (y, last)
