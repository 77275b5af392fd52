"""Checks that tensors fit together, with torch.nn's error messages. Letters as in functional.py."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import Tensor
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_gradtrackingtensor,
)
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import is_fake
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from ..cells.weights import shapes_of
from ..op.autograd import autocast_enabled, jit_tracing, transforming
from .options import PLAIN

ENVIRONMENT_VARIABLE = "RNNKERNELS_DEVICE_ASSERTIONS"
ASSERTING = ("cpu", "cuda", "xpu", "meta")  # the devices for which torch has an assertion
_assertions = os.environ.get(ENVIRONMENT_VARIABLE) or "1"

DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPE_NAMES = {
    torch.float64: "Double", torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16",
    torch.int64: "Long", torch.int32: "Int", torch.bool: "Bool",
}  # fmt: skip


def aside(function):
    """The function, hidden from torch.jit.trace: it sees sizes as numbers, and its operations are not recorded."""

    @wraps(function)
    def run(*args, **kwargs):
        if not jit_tracing():
            return function(*args, **kwargs)
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)
        try:
            return function(*args, **kwargs)
        finally:
            torch._C._set_tracing_state(state)

    return run


@aside
def check(cell, x, states, weights, num_layers, D, bias, project, I, H, P, options=PLAIN, reset_states=()):  # noqa: E741
    """Check that all tensors fit together; x (T, B, I) has three dimensions. The errors are torch's.

    Everything that kernels rely on is checked here, weights included: users can replace these between calls.
    """
    dtype, device, weight = x.dtype, x.device, weights[0] if weights else x
    if x.layout != torch.strided:
        raise TypeError(f"Expected the input to be a dense tensor, got layout {x.layout}")
    if dtype != weight.dtype and not autocast_enabled(device.type):
        raise ValueError(
            f"RNN input dtype ({dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({dtype})"
        )
    check_sizes(x, states, num_layers, D, I, H, P)
    check_placement(dtype, device, states, weights)
    check_dtype("the input and the weights" if weights else "the input", dtype)
    if reset_states:
        check_sizes(x, reset_states, num_layers, D, I, H, P, "reset state")
        check_placement(dtype, device, reset_states, weights, "reset state")
    check_weights(
        weights, cell, num_layers, D, I, H, P,
        bias=bias, project=project, layer_norm=options.layer_norm, heads=options.heads,
    )  # fmt: skip
    check_steps(x)


def check_dtype(name, dtype):
    """Check that a tensor has one of the dtypes that are computed with."""
    if dtype not in DTYPES:
        raise TypeError(f"Expected {name} of float64, float32, bfloat16 or float16, but got {dtype}")


def check_sizes(x, states, num_layers, D, I, H, P, name="hidden"):  # noqa: E741
    """Check that the states fit the input, and the input the layers."""
    if x.size(2) != I:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {I}, got {x.size(2)}")
    for k, s in enumerate(states):
        expected = (num_layers * D, x.size(1), H if k else P)
        if s.shape != expected:
            name = name if len(states) == 1 else f"{name}[{k}]"
            raise RuntimeError(f"Expected {name} size {expected}, got {list(s.shape)}")


def refuse_nested(who):
    """Raise for a nested tensor, jagged or strided; the message names padding and ``lengths`` instead."""
    raise TypeError(
        f"{who} does not take nested tensors: pad the sequences with torch.nested.to_padded_tensor(input, 0.0) and, "
        "with batch_first=True, give their lengths to a layer as lengths= (of a jagged one: input.offsets().diff())"
    )


def check_tensor(who, input):
    """Check that the input of a call is a tensor."""
    if not isinstance(input, Tensor):
        hint = ": pad it and give lengths=" if isinstance(input, PackedSequence) else ""
        raise TypeError(f"{who}: Expected input to be a tensor, got {type(input).__name__}{hint}")


def check_steps(x):
    """Check that there is at least one step."""
    if x.size(0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_placement(dtype, device, states, weights, role="hidden"):
    """Check that states and weights have the device of the input and, outside autocast, its dtype."""
    for tensor in (*weights, *states):
        if tensor.dtype != dtype or tensor.device != device:
            break
    else:
        return
    for name, tensors in ((role, states), ("parameter", weights)):
        for tensor in tensors:
            if tensor.device != device:
                raise RuntimeError(
                    f"Input and {name} tensors are not at the same device, found input tensor at {device} "
                    f"and {name} tensor at {tensor.device}"
                )
    dtypes = (dtype, *(t.dtype for t in (*states, *weights)))
    if autocast_enabled(device.type) and all(d.is_floating_point and d != torch.float64 for d in dtypes):
        return  # autocast gives all of them one dtype, but does not touch float64
    of_weights = weights[0].dtype if weights else dtype
    left = next((s.dtype for s in states if s.dtype != of_weights), dtype)
    right = next((w.dtype for w in weights if w.dtype != left), of_weights)
    left, right = (DTYPE_NAMES.get(d, str(d)) for d in (left, right))
    raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {left} and {right}")


def check_weights(weights, cell, num_layers, D, I, H, P, **settings):  # noqa: E741
    """Check that every weight has the shape that its position in the list requires; settings as in cells/weights.py."""
    expected = shapes_of(cell, num_layers, D, I, H, P, **settings)
    if len(weights) != len(expected):
        raise wrong_count(weights, num_layers, D == 2, settings["bias"])
    if [w.shape for w in weights] != expected:
        n = next(n for n, w in enumerate(weights) if w.shape != expected[n])
        raise RuntimeError(f"Expected RNN parameter {n} of shape {expected[n]}, got {tuple(weights[n].shape)}")


def wrong_count(params, num_layers, bidirectional, bias):
    """torch's error for a wrong number of parameters."""
    return RuntimeError(
        f"got an incorrect number of RNN parameters: {len(params)} for num_layers={num_layers}, "
        f"bidirectional={bidirectional}, has_biases={bias}"
    )


def check_params(params, num_layers):
    """The weights that a function was given as a list, checked to be tensors; and the number of layers."""
    if not isinstance(num_layers, int) or num_layers <= 0:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    params = params if isinstance(params, (list, tuple)) else list(params)
    for n, p in enumerate(params):
        if not isinstance(p, Tensor) or p.dim() == 0:
            what = "a scalar" if isinstance(p, Tensor) else type(p).__name__
            raise TypeError(f"Expected RNN parameter {n} to be a tensor of 1 to 3 dimensions, got {what}")
    return params


def check_matrices(names, params):
    """Check that those of the first direction whose sizes are read have as many dimensions as weights have."""
    for n, (name, p) in enumerate(zip(names, params, strict=False)):
        if name.startswith(("weight_ih", "weight_hh")) and p.dim() not in (2, 3):
            raise RuntimeError(f"Expected RNN parameter {n} to have 2 dimensions, got shape {tuple(p.shape)}")


def check_lengths(lengths, x):
    """``lengths`` as int64 on the device of x (T, B, I); their values are checked as `device_assertions` says."""
    if not isinstance(lengths, Tensor):
        if not hasattr(lengths, "__len__"):
            raise TypeError(
                f"Expected 'lengths' to be a tensor or a list of integers, but got {type(lengths).__name__}"
            )
        kind = None if len(lengths) else torch.int64  # torch would make a float tensor of an empty list
        lengths = torch.as_tensor(lengths, dtype=kind, device="cpu")
    check_lengths_shape(lengths, x)
    moved = lengths.to(device=x.device, dtype=torch.int64)
    check_values(lengths if lengths.is_cpu else moved, x.size(0))
    return moved


@aside
def check_lengths_shape(lengths, x):
    """Check that ``lengths`` has an integer for every row of x (T, B, I), on the CPU or on x's device."""
    B = x.size(1)
    if lengths.dim() != 1 or lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        kind = DTYPE_NAMES.get(lengths.dtype, str(lengths.dtype))
        raise ValueError(f"Expected 'lengths' to be a 1D integer tensor, but got {lengths.dim()}D {kind} tensor")
    n = lengths.size(0)
    if n != B:
        raise ValueError(f"Expected `len(lengths)` to be equal to batch_size, but got {n} (batch_size={B})")
    if not lengths.is_cpu and lengths.device != x.device:
        raise ValueError(
            f"Expected 'lengths' on the CPU or on the device of the input, {x.device}, but got {lengths.device}"
        )


@contextmanager
def device_assertions(enabled: bool) -> Iterator[None]:
    """Within this context ``lengths`` that lie on a GPU are checked by an assertion there, or not checked at all.

    Each length has to be from 0 to T. Lengths on the CPU are checked at once, with a ValueError. For lengths on a GPU
    the host would have to wait for the values; instead torch's own ``_assert_async`` is queued, four small kernels a
    call. It stops the program with a device-side assertion (after which CUDA cannot be used in that process), and the
    host never waits. Graphs of ``torch.compile`` and ``torch.export`` hold the same assertion, on the CPU too, where it
    raises a RuntimeError. Values under ``vmap`` and ``grad`` of ``torch.func`` are checked in the same way, but not
    under these inside ``torch.compile``, where the assertion has no batching rule.

    The default is True; the environment variable ``RNNKERNELS_DEVICE_ASSERTIONS=0`` switches off for a whole process.
    Wrong lengths on a GPU then have no defined result. Lengths on the CPU in eager mode are always checked.

    Raises:
        TypeError: for anything but a bool.
        RuntimeError: in calls with lengths, if the environment variable is neither 0 nor 1.
    """
    global _assertions
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled should be of type bool, got: {type(enabled).__name__}")
    before, _assertions = _assertions, "1" if enabled else "0"
    try:
        yield
    finally:
        _assertions = before


@aside
def check_values(lengths, T):
    """Check that lengths are from 0 to T: an error at once, or an assertion on the device."""
    if torch.compiler.is_compiling():
        if not transforming():
            assert_values(lengths, T)
    elif transforming():
        while is_batchedtensor(lengths) or is_gradtrackingtensor(lengths):
            lengths = get_unwrapped(lengths)
        if not is_functorch_wrapped_tensor(lengths):
            with temporarily_clear_interpreter_stack():
                check_values(lengths, T)
    elif not on_host(lengths):
        assert_values(lengths, T)
    elif lengths.numel() > 0:
        lengths = lengths.to(torch.int64)  # torch has no minimum of some unsigned integers
        low, high = lengths.min().item(), lengths.max().item()
        if low < 0:
            raise ValueError(f"Length of all samples has to be at least 0, but found {low} in 'lengths'")
        if high > T:
            raise ValueError(f"Length of all samples has to be at most {T}, the number of steps, but found {high}")


def on_host(tensor):
    """True if the values of a tensor can be read without waiting for a device."""
    return tensor.is_cpu and has_values(tensor)


def has_values(tensor):
    """True if the values of a tensor can be read: it is no fake or meta tensor, and make_fx does not look on."""
    modes = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE
    return not (tensor.is_meta or is_fake(tensor) or any(map(torch._C._get_dispatch_mode, modes)))


def assert_values(lengths, T):
    """Queue an assertion on the device of ``lengths``, without waiting for it."""
    if _assertions not in ("0", "1"):
        raise RuntimeError(f"{ENVIRONMENT_VARIABLE}={_assertions} is neither 0 nor 1")
    if _assertions == "1" and lengths.device.type in ASSERTING:
        lengths = lengths.to(torch.int64)  # narrower integers may not hold T
        # the message holds no number: in a graph with dynamic sizes T is unknown
        message = "Length of all samples in 'lengths' has to be at least 0 and at most the number of steps"
        torch._assert_async((lengths == lengths.clamp(0, T)).all(), message)


def check_reset(reset, input, batch_first, bidirectional):
    """``reset`` as a mask (T, B) and the states to restart from, none for zeros; the states are checked later."""
    states = ()
    if isinstance(reset, (tuple, list)):
        if len(reset) != 2:
            raise ValueError(f"Expected 'reset' to be a mask or a pair (mask, states), but got {len(reset)} elements")
        reset, states = reset[0], () if reset[1] is None else reset[1]
        several = states if isinstance(states, (tuple, list)) else (states,)
        if odd := [s for s in several if not isinstance(s, Tensor)]:
            raise TypeError(f"Expected the states of 'reset' to be tensors, but got {type(odd[0]).__name__}")
    if bidirectional:
        raise ValueError("reset is not defined for a bidirectional RNN: a state cannot restart from both sides")
    if not isinstance(reset, Tensor):
        raise TypeError(f"Expected 'reset' to be a bool tensor, but got {type(reset).__name__}")
    check_mask(reset, input)
    return reset.transpose(0, 1) if batch_first else reset, states


@aside
def check_mask(reset, input):
    """Check that ``reset`` has a bool for every row and step of the input."""
    if reset.dtype != torch.bool or reset.shape != input.shape[:-1]:
        raise ValueError(
            f"Expected 'reset' to be a bool tensor of shape {tuple(input.shape[:-1])}, "
            f"but got {reset.dtype} of shape {tuple(reset.shape)}"
        )
    if reset.device != input.device:
        raise ValueError(f"Expected 'reset' on {input.device}, the device of the input, but got {reset.device}")


def check_inference(who, name, tensor):
    """Raise if a tensor requires a derivative of a module that is for inference only."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{who} is for inference only, but {name} requires a gradient; use {name}.detach() or torch.no_grad()"
        )
    if forward_ad._current_level >= 0 and (
        is_functorch_wrapped_tensor(tensor) or forward_ad.unpack_dual(tensor).tangent is not None
    ):
        raise RuntimeError(f"{who} is for inference only, but {name} has a forward-mode tangent")
