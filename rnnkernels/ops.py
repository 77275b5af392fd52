"""The ops ``rnnkernels::layer``, ``layer_backward`` and ``stack``: schema, kernels by device, shapes. No arithmetic.

One call of ``layer`` is one layer with all its directions. Letters: T time, B batch, D directions, X input groups,
G gates, H hidden, S states, I input, L layers, P output of a step, K planes kept for the backward pass.

    x             (T, B, I), or (X, T, B, I) where groups of directions have an input of their own (vmap over weights)
    states        [h0 (D, B, P), c0 (D, B, H) for cells that have one], or [] for zeros
    weights       per direction: w_ih (G*H, I), w_hh (G*H, P), b_ih, b_hh (G*H) if bias, w_hr (P, H) if project,
                  ln_x_gain, ln_h_gain (G*H) if layer_norm, and for lstm ln_c_gain, ln_c_bias (H)
    reverse       the time direction of each direction of a group
    activation    of candidates and outputs: tanh (None), relu, sigmoid, hard_sigmoid (x / 6 + 1/2, clamped) or linear
    recurrent_activation  of gates, the same ones: sigmoid (None)
    lengths       int64 (B,): y is zero and the states are frozen from step lengths[b] on
    reset         bool (T, B): the state that enters the step is zero, or reset_states (shaped like states)
    h_mask        (D, B, P): multiplies h before the recurrent product (recurrent dropout)
    zone          per state, broadcastable to (T, D, B, H or P): where the old state stays (bool), or the fraction of it
                  that stays (zoneout)
    y             (T, B, D*P), directions side by side
    last          the final states, shaped like states
    saved         with save: gates (D, T, B, K, H) in x's dtype if K > 0, cells (D, T, B, H) in the accumulate dtype if
                  S > 1

With groups, lengths and reset have a leading X too. All strides are allowed. ``reverse`` and ``needs`` are bools in an
int[], because TorchScript traces no bool[].

``stack`` is inference through L layers on top of each other, so that what a call costs beside its arithmetic is paid
once. x is (T, B, I), states and last are (L*D, B, H or P), weights are those of the layers one after the other. With
scales, float32 (G*H) per layer and direction for w_ih and w_hh, these two are int8 and their row n stands for w[n] *
scale[n]. Where the processor multiplies bytes, rows of x and h become int8 too, unless float_rows.

Each op is there twice. ``layer``, ``layer_backward`` and ``stack`` have kernels for autograd (autograd_kernels.py):
their gradients are right wherever they are called, in exported and traced programs too. ``plain_layer`` and so on are
the same without: the modules call them, because they see to autograd themselves, which costs less (autograd.py).
"""

from functools import partial

import torch
from torch.autograd import forward_ad

from . import autograd_kernels, backends, batching, onnx, reference
from .autograd import (
    OPS,
    PLAIN,
    Eager,
    Transform,
    autocast_enabled,
    differentiating,
    implementation,
    jit_tracing,
    plain,
    recording,
    refuse_forward_mode,
    transform_in_graph,
    wants_gradient,
    without_autocast,
)
from .cells import CELLS, accumulate_dtype
from .plan import Plan

ARGUMENTS = (
    "str cell, Tensor x, Tensor[] states, Tensor[] weights, int[] reverse, bool bias, bool project, "
    "str? activation, str? recurrent_activation, Tensor? lengths, Tensor? reset, Tensor[] reset_states, "
    "Tensor? h_mask, Tensor[] zone, bool layer_norm, float eps"
)
LIB = torch.library.Library("rnnkernels", "DEF")
SCHEMAS = {
    # the arguments with defaults are rare: each that is left out makes a call 0.1 to 0.2 microseconds shorter
    "stack": "(Tensor x, Tensor[] states, Tensor[] weights, str cell, int num_layers, bool bidirectional, bool bias, "
    "int hidden_size, int proj_size=0, str? activation=None, Tensor? lengths=None, Tensor[]? scales=None, "
    "bool float_rows=False)"
    " -> (Tensor y, Tensor[] last)",
    "layer": f"({ARGUMENTS}, bool save) -> (Tensor y, Tensor[] last, Tensor[] saved)",
    "layer_backward": "(Tensor dy, Tensor[] dlast, Tensor? dcells, "
    f"{ARGUMENTS}, Tensor y, Tensor[] saved, int[] needs)"
    " -> (Tensor dx, Tensor[] dstates, Tensor[] dweights, Tensor[] dreset_states)",
}

LIB.define(
    "schedule(str cell, ScalarType dtype, int T, int B, int I, int H, int P, int D, bool training, "
    "bool layer_norm=False) -> str"
)
LIB.define("instruction_sets() -> str")
LIB.define("use_instruction_set(str name) -> ()")  # for tests: for the whole process, "" for the default


def layer_shapes(cell, x, states, weights, reverse, *settings):
    spec, D = CELLS[cell], len(reverse) * (x.size(0) if x.dim() == 4 else 1)
    T, B, P, H = x.size(-3), x.size(-2), weights[1].size(1), weights[1].size(0) // spec.gates
    last = [x.new_empty(D, B, P if k == 0 else H) for k in range(spec.states)]
    saved = [x.new_empty(D, T, B, spec.kept, H)] if spec.kept else []
    saved += [x.new_empty(D, T, B, H, dtype=accumulate_dtype(x.dtype))] if spec.states > 1 else []
    return x.new_empty(T, B, D * P), last, saved if settings[-1] else []


def layer_backward_shapes(dy, dlast, dcells, cell, x, states, weights, *rest):
    reset_states, needs = rest[7], rest[-1]
    shaped = lambda tensors, need: [t.new_empty(t.shape) for t in tensors] if need else []  # noqa: E731
    dx = x.new_empty(x.shape if needs[0] else (0,))
    return dx, shaped(states, needs[1]), shaped(weights, needs[2]), shaped(reset_states, needs[1])


def stack_shapes(x, states, weights, cell, num_layers, bidirectional, bias, hidden_size, proj_size=0, *rest):
    check_devices(x, states, weights)
    (T, B, _), D, P = x.shape, 1 + bidirectional, proj_size or hidden_size
    last = [x.new_empty(num_layers * D, B, hidden_size if k else P) for k in range(CELLS[cell].states)]
    return x.new_empty(T, B, D * P), last


def stack_of_layers(
    x, states, weights, cell, num_layers, bidirectional, bias, hidden_size, proj_size=0, activation=None, lengths=None,
    scales=None, float_rows=False,
):  # fmt: skip
    """``stack`` where there is no kernel for it: a call of ``layer`` per layer, with weights in float."""
    check_devices(x, states, weights)
    reverse = (False, True) if bidirectional else (False,)
    if scales:
        weights = reference.dequantized(weights, scales)

    def run(i, x, states, weights):
        return OPS["layer"](
            cell, x, states, weights, reverse, bias, proj_size > 0, activation, None,
            lengths, None, [], None, [], False, 0.0, False,
        )[:2]  # fmt: skip

    return over_layers(run, x, states, weights, num_layers, len(reverse))


def over_layers(run, x, states, weights, num_layers, D):
    """``y, last`` of layers on top of each other: ``run(i, x, states, weights)`` gives those of layer i."""
    n, lasts = len(weights) // num_layers, []
    if num_layers == 1:
        return run(0, x, states, weights)
    for i in range(num_layers):
        x, last = run(i, x, [s[i * D : (i + 1) * D] for s in states], weights[i * n : (i + 1) * n])
        lasts.append(last)
    return x, [torch.cat(s) for s in zip(*lasts, strict=True)]


def check_devices(x, states, weights):
    """``stack`` may be called with tensors that nobody has checked: where they are decides who gets the call."""
    for t in (*states, *weights):
        if t.device != x.device:
            raise RuntimeError(f"rnnkernels: expected all tensors on {x.device}, the device of x, but got {t.device}")


def define(name, fake, vmap, autograd, **kernels):
    """An op by its schema, with its kernels by dispatch key, and the plain op, which has no autograd."""
    for full in (name, f"plain_{name}"):
        LIB.define(full + SCHEMAS[name.removeprefix("reference_")], tags=(torch.Tag.pt2_compliant_tag,))
        for key, kernel in kernels.items():
            LIB.impl(full, without_autocast(kernel), key)
        torch.library.register_fake(f"rnnkernels::{full}", fake, lib=LIB)
        if vmap is not None:
            torch.library.register_vmap(f"rnnkernels::{full}", partial(vmap, full), lib=LIB)
    OPS[name] = getattr(torch.ops.rnnkernels, name).default
    PLAIN[name] = getattr(torch.ops.rnnkernels, f"plain_{name}").default
    LIB.impl(name, autograd, "Autograd")


for name, fake, vmap, autograd in (
    ("layer", layer_shapes, batching.layer_op, autograd_kernels.layer),
    ("layer_backward", layer_backward_shapes, batching.layer_backward_op, autograd_kernels.layer_backward),
):
    triton, eager = getattr(backends.Triton, name), getattr(backends.Reference, name)
    # the CPU's are in csrc/ops.cpp
    define(name, fake, vmap, partial(autograd, name), CUDA=triton, CompositeExplicitAutograd=eager)
    # where the reference runs in spite of a kernel for the device: an op too, so that no compiler looks inside
    reference_name = f"reference_{name}"
    define(reference_name, fake, vmap, partial(autograd, reference_name), CompositeExplicitAutograd=eager)
# the CPU's is in csrc/ops.cpp
define(
    "stack", stack_shapes, None, partial(autograd_kernels.stack, stack_of_layers),
    CompositeExplicitAutograd=stack_of_layers,
)  # fmt: skip


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


def autocast_to(dtype, tensors):
    """As torch does for its own RNNs under autocast: every floating tensor but float64 takes the autocast dtype."""
    return [t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def layer(
    cell,
    x,
    states,
    weights,
    *,
    reverse=(False,),
    bias=True,
    project=False,
    activation=None,
    recurrent_activation=None,
    lengths=None,
    reset=None,
    reset_states=(),
    h_mask=None,
    zone=(),
    layer_norm=False,
    eps=1e-5,
    return_cells=False,
    recompute=False,
    exposed=True,
):
    """One layer through the backend that fits, with autograd, vmap and autocast; arguments as in the op.

    With ``recompute`` the gates are not kept for the backward pass, which computes them again. Unless y is ``exposed``,
    nobody writes into it before the backward pass. x may be refilled where torch.nn allows it: see below.

    Returns:
        ``y, last``, or ``y, last, cells`` with ``return_cells`` (cells (D, T, B, H), for cells with two states).
    """
    device = x.device.type
    if autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        (x,), states, weights = autocast_to(dtype, [x]), autocast_to(dtype, states), autocast_to(dtype, weights)
        reset_states, zone = autocast_to(dtype, reset_states), autocast_to(dtype, zone)
        h_mask = None if h_mask is None else h_mask.to(dtype)
    if not jit_tracing() and not any(weights[1].shape):  # no hidden units: no backend has anything to compute
        return reference.no_units(x, states, weights, len(reverse), CELLS[cell].states, return_cells)
    traced = torch.compiler.is_compiling()
    if (traced or jit_tracing()) and onnx.exporting():
        return onnx.node_of_layer(
            cell, x, states, weights, reverse, bias, project, activation, recurrent_activation, lengths, reset,
            reset_states, h_mask, zone, layer_norm, eps, return_cells,
        )  # fmt: skip
    if device == "cpu" and backends.forced() is None:
        backend = "dispatch"  # the extension has all that such a call needs
    else:
        backend = backends.route(
            cell, x, weights, reverse, project, activation, recurrent_activation,
            lengths, reset, h_mask, zone, layer_norm,
        )  # fmt: skip
    tensors = (x, *states, *weights, *reset_states, lengths, reset, h_mask, *zone)
    transform = differentiating() if traced else torch._C._are_functorch_transforms_active()
    recorded = not transform and recording()
    if not traced:
        refuse_forward_mode(tensors)
    if not recorded and (transform or wants_gradient(tensors)):
        plan = Plan(
            backend, cell, len(states), len(weights), len(reset_states), tuple(reverse), bias, project,
            activation, recurrent_activation, layer_norm, eps, return_cells, recompute, exposed,
        )  # fmt: skip
        if transform:
            y, *rest = transform_in_graph(*plan, *tensors) if traced else Transform.apply(plan, *tensors)
        elif traced or x.size(0) == 1 or x.is_contiguous() or not any(w.requires_grad for w in weights):
            y, *rest = Eager.apply(plan, *tensors)
        else:  # as torch.nn does, so that whoever has batch_first may refill a buffer of inputs after the call
            y, *rest = Eager.apply(plan, x.contiguous(), *tensors[1:])
        S = CELLS[cell].states
        last = tuple(rest[:S])
        cells = rest[-1].clone() if transform and return_cells else rest[-1]  # as y: others may write into it
    else:
        y, last, saved = implementation(backend, "layer", OPS.get if recorded else plain)(
            cell, x, states, weights, reverse, bias, project, activation, recurrent_activation,
            lengths, reset, reset_states, h_mask, zone, layer_norm, eps, return_cells,
        )  # fmt: skip
        last, cells = tuple(last), saved[-1] if return_cells else None
    return (y, last, cells) if return_cells else (y, last)
