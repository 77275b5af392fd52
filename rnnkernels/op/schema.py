"""The ops of ``torch.ops.rnnkernels``: their schemas, their kernels by device, their shapes. No arithmetic.

One call of ``layer`` is one layer with all its directions. Letters: T time, B batch, D directions, X input groups,
G gates, H hidden, S states, I input, L layers, P output of a step, K planes kept for the backward pass.

    x             (T, B, I), or (X, T, B, I) where groups of directions have an input of their own (vmap over weights)
    states        [h0 (D, B, P), c0 (D, B, H) for cells that have one], or [] for zeros
    weights       per direction: w_ih (G*H, I), w_hh (G*H, P), b_ih, b_hh (G*H) if bias, w_hr (P, H) if project,
                  ln_x_gain, ln_h_gain (G*H) if layer_norm, and for lstm ln_c_gain, ln_c_bias (H); weights.py has the
                  table for cells of one's own
    reverse       the time direction of each direction of a group
    activation    of candidates and outputs: tanh (None), relu, sigmoid, hard_sigmoid (x / 6 + 1/2, clamped) or linear
    recurrent_activation  of gates, the same ones: sigmoid (None)
    lengths       int64 (B,): y is zero and the states are frozen from step lengths[b] on
    reset         bool (T, B): the state that enters the step is zero, or reset_states (shaped like states)
    h_mask        (D, B, P): multiplies h before the recurrent product (recurrent dropout)
    zone          per state, broadcastable to (T, D, B, H or P): true where the old state stays, or the fraction of it
                  that stays (zoneout)
    hidden_size   H; 0: read it off w_hh
    extras        inputs of steps (T, B, H) or (T, B, 1), then of sequences (B, H), for a cell that has them
    parts         bf16 parts of a float32 number in products on the CPU: 3, 2 or 1; 0: 3
    packed        the number of weights that ``freeze`` keeps in the form that the C++ kernels read; 0: none
    y             (T, B, D*P), directions side by side
    last          the final states, shaped like states
    saved         with save: gates (D, T, B, K, H) in x's dtype if K > 0, cells (D, T, B, H) in the accumulate dtype if
                  S > 1; for a cell of one's own, whose y may tell no state, (D times the states apart from y, T, B, H)

``cell`` is the name of a built-in cell or the text of a program (cells/program.py). With groups, lengths, reset and
extras have a leading X too. All strides are allowed. ``reverse`` and ``needs`` are bools in an
int[], because TorchScript traces no bool[].

``stack`` is inference through L layers on top of each other, with the overhead of a single call. x is (T, B, I), states
and last are (L*D, B, H or P), weights are those of the layers one after the other. With scales, float32 (G*H) per layer
and direction for w_ih and w_hh, these two are int8 and their row n stands for w[n] * scale[n]. On processors that
multiply bytes, rows of x and h become int8 too, unless float_rows. A cell without one of the two has no scales for it;
extras are those of every layer.

``plain_step`` is a step of a built-in cell in inference, on x (B, I), states and results (B, H): the C++ extension has
it for the CPU alone, and without autograd. It is for calls that nobody records or watches; those get ``layer``.

The others exist twice. ``layer``, ``layer_backward`` and ``stack`` have kernels for autograd (autograd_kernels.py):
their gradients are right wherever they are called, in exported and traced programs too. ``plain_layer`` and so on have
none: the modules call them, because they handle autograd themselves, which costs less (autograd.py).
"""

from functools import partial

import torch

from .. import backends
from ..cells import accumulate_dtype, reference, spec_of
from ..cells.call import LayerCall
from . import autograd_kernels, vmap
from .autograd import OPS, PLAIN, without_autocast

IN_CPP = backends.EXTENSION_ERROR is None  # csrc/torch/ops.cpp defines them, for programs without Python
LIB = torch.library.Library("rnnkernels", "FRAGMENT" if IN_CPP else "DEF")
SCHEMAS = {
    # arguments with defaults are rarely given: leaving one out makes a call 0.1 to 0.2 microseconds shorter
    "stack": "(Tensor x, Tensor[]? states, Tensor[] weights, str cell, int num_layers, bool bidirectional, bool bias, "
    "int hidden_size, int proj_size=0, str? activation=None, Tensor? lengths=None, Tensor[]? scales=None, "
    "bool float_rows=False, int parts=0, int packed=0, Tensor[]? extras=None)"
    " -> (Tensor y, Tensor[] last)",
    "layer": f"({LayerCall.schema()}, bool save) -> (Tensor y, Tensor[] last, Tensor[] saved)",
    "layer_backward": "(Tensor dy, Tensor[] dlast, Tensor? dcells, "
    f"{LayerCall.schema()}, Tensor y, Tensor[] saved, int[] needs)"
    " -> (Tensor dx, Tensor[] dstates, Tensor[] dweights, Tensor[] dreset_states, Tensor[] dextras)",
}


def layer_shapes(*args):
    *call, save = args
    call = LayerCall.of(*call)
    x, D, H, P, spec = call.x, call.D, call.H, call.P, call.spec
    T, B = x.size(-3), x.size(-2)
    last = [x.new_empty(D, B, P if k == 0 else H) for k in range(spec.states)]
    K, apart = spec.planes_of(len(call.zone) > 0), spec.apart
    saved = [x.new_empty(D, T, B, K, H)] if K else []
    saved += [x.new_empty(apart * D, T, B, H, dtype=accumulate_dtype(x.dtype))] if apart else []
    return x.new_empty(T, B, D * P), last, saved if save else []


def layer_backward_shapes(dy, dlast, dcells, *args):
    *call, y, saved, needs = args
    call = LayerCall.of(*call)
    shaped = lambda tensors, need: [t.new_empty(t.shape) for t in tensors] if need else []  # noqa: E731
    dx = call.x.new_empty(call.x.shape if needs[0] else (0,))
    return (
        dx, shaped(call.states, needs[1]), shaped(call.weights, needs[2]), shaped(call.reset_states, needs[1]),
        shaped(call.extras, needs[3]),
    )  # fmt: skip


def stack_shapes(x, states, weights, cell, num_layers, bidirectional, bias, hidden_size, proj_size=0, *rest):
    check_devices(x, states or [], weights)
    (T, B, _), D, P = x.shape, 1 + bidirectional, proj_size or hidden_size
    last = [x.new_empty(num_layers * D, B, hidden_size if k else P) for k in range(spec_of(cell).states)]
    return x.new_empty(T, B, D * P), last


def step_shapes(x, states, weights, cell, bias, hidden_size, *rest, scales=None, **more):
    check_devices(x, states or [], [*weights, *(scales or [])])
    return [x.new_empty(x.size(0), hidden_size) for _ in range(spec_of(cell).states)]


def stack_of_layers(
    x, states, weights, cell, num_layers, bidirectional, bias, hidden_size, proj_size=0, activation=None, lengths=None,
    scales=None, float_rows=False, parts=0, packed=0, extras=None,
):  # fmt: skip
    """``stack`` on devices without a kernel for it: a call of ``layer`` per layer, with weights in float."""
    states, extras = states or [], extras or []
    check_devices(x, states, [*weights, *extras])
    reverse = (False, True) if bidirectional else (False,)
    if scales:
        weights = reference.dequantized(weights, scales)

    def run(i, x, states, weights):
        call = LayerCall(
            cell, x, states, weights, reverse, bias, proj_size > 0, activation, None, lengths, None, [], None, [],
            hidden_size=hidden_size, extras=extras, parts=parts, packed=packed,
        )  # fmt: skip
        return OPS["layer"](*call, False)[:2]

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
    """Raise unless all tensors of a ``stack`` are on the device of x; its callers have not checked them."""
    for t in (*states, *weights):
        if t.device != x.device:
            raise RuntimeError(f"rnnkernels: expected all tensors on {x.device}, the device of x, but got {t.device}")


def define(name, fake, batched, autograd, **kernels):
    """An op by its schema, with its kernels by dispatch key, and the plain op, which has no autograd."""
    for full in (name, f"plain_{name}"):
        if not IN_CPP or name.startswith("reference_"):
            LIB.define(full + SCHEMAS[name.removeprefix("reference_")], tags=(torch.Tag.pt2_compliant_tag,))
        for key, kernel in kernels.items():
            LIB.impl(full, without_autocast(kernel), key)
        torch.library.register_fake(f"rnnkernels::{full}", fake, lib=LIB)
        if batched is not None:
            torch.library.register_vmap(f"rnnkernels::{full}", partial(batched, full), lib=LIB)
    OPS[name] = getattr(torch.ops.rnnkernels, name).default
    PLAIN[name] = getattr(torch.ops.rnnkernels, f"plain_{name}").default
    LIB.impl(name, autograd, "Autograd")


for name, fake, batched, autograd in (
    ("layer", layer_shapes, vmap.layer_op, autograd_kernels.layer),
    ("layer_backward", layer_backward_shapes, vmap.layer_backward_op, autograd_kernels.layer_backward),
):
    triton, eager = getattr(backends.Triton, name), getattr(backends.Reference, name)
    # the CPU's are in csrc/torch/ops.cpp
    define(name, fake, batched, partial(autograd, name), CUDA=triton, CompositeExplicitAutograd=eager)
    # where the reference runs in spite of a kernel for the device: an op too, so that no compiler looks inside
    reference_name = f"reference_{name}"
    define(reference_name, fake, batched, partial(autograd, reference_name), CompositeExplicitAutograd=eager)
# the CPU's is in csrc/torch/ops.cpp
define(
    "stack", stack_shapes, vmap.stack_op, partial(autograd_kernels.stack, stack_of_layers),
    CompositeExplicitAutograd=stack_of_layers,
)  # fmt: skip
STEP = None
if IN_CPP:
    torch.library.register_fake("rnnkernels::plain_step", step_shapes, lib=LIB)
    STEP = torch.ops.rnnkernels.plain_step.default
