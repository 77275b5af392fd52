"""The ops' kernels for autograd, for calls that need a gradient.

They serve calls of the ops that do not come from a module: exported and traced programs, and calls by hand. Modules
handle autograd themselves (run.py), at less cost a call, and then run the plain ops. Both ways end in the functions of
autograd.py, so that they give the same gradients, and drop none.
"""

import torch
from torch._C import DispatchKey

from ..cells.call import LayerCall
from .autograd import (
    OPS,
    Eager,
    EagerBackward,
    Transform,
    TransformBackward,
    refuse_forward_mode,
    transforming,
    wants_gradient,
)
from .flat import Plan, Pull


def backend_of(name):
    """The backend of a ``Plan`` for a call of the op."""
    return "reference" if name.startswith("reference_") else "dispatch"


def below(name, args):
    """The op without its kernel for autograd."""
    with torch._C._AutoDispatchBelowAutograd():
        return OPS[name](*args)


def transformed(function, *args):
    """``function.apply`` with the dispatch keys of ``torch.func`` set again, so that its transform sees it."""
    with torch._C._PreserveDispatchKeyGuard():
        for key in (DispatchKey.FuncTorchDynamicLayerFrontMode, DispatchKey.FuncTorchDynamicLayerBackMode):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
            torch._C._dispatch_tls_set_dispatch_key_included(key, True)
        return function.apply(*args)


def layer(name, *args):
    """``rnnkernels::layer`` and ``rnnkernels::reference_layer``; with ``save`` c has a gradient, gates refuse one."""
    *arguments, save = args
    call = LayerCall.of(*arguments)
    tensors = call.flat()
    refuse_forward_mode(tensors)
    transform = transforming()
    if not transform and not wants_gradient(tensors):
        return below(name, args)
    S = call.spec.states
    plan = Plan.of(call, backend_of(name), return_cells=save and call.spec.apart > 0, exposed=True, return_saved=save)
    if transform:
        y, *rest = transformed(Transform, plan, *tensors)
        saved = [t.clone() for t in rest[S + 1 :]] if save else []  # after the copy of y
    else:
        y, *rest = Eager.apply(plan, *tensors)
        saved = rest[S:]
    return y, list(rest[:S]), list(saved) if save else []


def layer_backward(name, *args):
    """``rnnkernels::layer_backward`` and ``rnnkernels::reference_layer_backward``.

    y and the saved tensors count as functions of the other arguments: the gradients of those are the whole derivative,
    and y itself gets none.
    """
    dy, dlast, dcells, *arguments, y, saved, needs = args
    call = LayerCall.of(*arguments)
    inputs = call.flat()
    tensors = (dy, *dlast, *(() if dcells is None else (dcells,)), *inputs, y, *saved)
    refuse_forward_mode(tensors)
    transform = transforming()
    if not transform and not wants_gradient(tensors):
        return below(name, args)
    pull = Pull(Plan.of(call, backend_of(name)), len(dlast), dcells is not None, len(inputs), tuple(map(bool, needs)))
    if transform:
        results = transformed(TransformBackward, pull, *tensors)
    else:
        results = EagerBackward.apply(pull, *tensors)
    dx, *lists = pull.lists(results)
    return (dx[0] if dx else dy.new_empty(0), *lists)


def stack(layers, *args):
    """``rnnkernels::stack``: inference has its own op, training is ``layers``, one call per layer."""
    x, states, weights, *_ = args
    states = states or ()
    scales = args[11] if len(args) > 11 and args[11] is not None else ()
    extras = args[15] if len(args) > 15 and args[15] is not None else ()
    tensors = (x, *states, *weights, *scales, *extras)
    refuse_forward_mode(tensors)
    if transforming() or wants_gradient(tensors):
        return layers(*args)
    return below("stack", args)
