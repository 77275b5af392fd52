"""The ops' kernels for autograd: what a call of an op does where a gradient is wanted.

They serve whoever calls the ops without the modules: exported and traced programs, and calls by hand. Modules see to
autograd themselves (ops.py), at less cost a call, and then run the plain ops. Everything ends in the functions of
autograd.py, so that no gradient depends on the way by which a call came, and none is dropped.
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
    """``function.apply`` for a ``torch.func`` transform that is at work: it has to be met again, by the function."""
    with torch._C._PreserveDispatchKeyGuard():
        for key in (DispatchKey.FuncTorchDynamicLayerFrontMode, DispatchKey.FuncTorchDynamicLayerBackMode):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
            torch._C._dispatch_tls_set_dispatch_key_included(key, True)
        return function.apply(*args)


def layer(name, *args):
    """``rnnkernels::layer`` and ``rnnkernels::reference_layer``; with ``save`` c has a gradient, gates refuse one."""
    *arguments, save = args
    call = LayerCall(*arguments)
    tensors = call.flat()
    refuse_forward_mode(tensors)
    transform = transforming()
    if not transform and not wants_gradient(tensors):
        return below(name, args)
    S = call.spec.states
    plan = Plan.of(call, backend_of(name), return_cells=save and S > 1, exposed=True, return_saved=save)
    if transform:
        y, *rest = transformed(Transform, plan, *tensors)
        saved = [t.clone() for t in rest[S + 1 :]] if save else []  # after the y of its own
    else:
        y, *rest = Eager.apply(plan, *tensors)
        saved = rest[S:]
    return y, list(rest[:S]), list(saved) if save else []


def layer_backward(name, *args):
    """``rnnkernels::layer_backward`` and ``rnnkernels::reference_layer_backward``.

    y and what is saved are taken as functions of the other arguments, so that the gradients of these are the whole
    derivative, and y's own is none.
    """
    dy, dlast, dcells, *arguments, y, saved, needs = args
    call = LayerCall(*arguments)
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
    """``rnnkernels::stack``: inference has an op of its own, training is ``layers``, one call per layer."""
    x, states, weights, *_ = args
    scales = args[11] if len(args) > 11 and args[11] is not None else ()
    tensors = (x, *states, *weights, *scales)
    refuse_forward_mode(tensors)
    if transforming() or wants_gradient(tensors):
        return layers(*args)
    return below("stack", args)
