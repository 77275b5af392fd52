"""``rnn``, ``lstm`` and ``gru`` as functions of tensors: validation in torch's words, the loop over layers, dropout.

Letters: T time, B batch, D directions, G gates, H hidden, S states, I input, L layers, P output of a step (H, or
proj_size where there is one).
"""

from functools import partial

import torch
from torch import Tensor

from . import ops
from .autograd import autocast_enabled
from .cells import CELLS

FORWARD, BOTH = (False,), (False, True)  # the op's ``reverse``: one time direction per direction of a layer
DTYPE_NAMES = {
    torch.float64: "Double", torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16",
    torch.int64: "Long", torch.int32: "Int", torch.bool: "Bool",
}  # fmt: skip


def rnn(
    input: Tensor,
    hx: Tensor | None,
    params: list[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Elman network (Elman 1990, "Finding structure in time"): ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``.

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``; float64, float32, bfloat16 or float16.
        hx: the initial state (L*D, B, H) in the dtype of ``input``; None stands for zeros.
        params: for every layer, and in it for every direction: w_ih (H, I or D*H), w_hh (H, H), and with ``has_biases``
            b_ih (H,), b_hh (H,). This is the order of ``torch.nn.RNN(...).parameters()``.
        has_biases: whether ``params`` holds biases.
        num_layers: L.
        dropout: probability of zeroing an element of the output of every layer but the last.
        train: whether dropout is applied.
        bidirectional: D = 2 directions instead of 1, the second from the end to the start.
        batch_first: the batch comes first in ``input``, ``output`` and ``reset``; costs no copy.
        nonlinearity: "tanh" or "relu".
        lengths: integers (B,) from 0 to T: row b ends after lengths[b] steps. ``output`` is zero from there on, and
            ``h_n`` is the state after the last step of the row (the initial one for length 0). Default: all T.
        reset: bool (T, B), or (B, T) with ``batch_first``: the state that enters a flagged step is zero, in every
            layer. Not with ``bidirectional``.

    Returns:
        ``output`` (T, B, D*H), or (B, T, D*H) with ``batch_first``, and ``h_n`` (L*D, B, H).

    Raises:
        ValueError: for an input whose dtype is not that of the weights, a wrong ``nonlinearity``, wrong ``lengths`` or
            ``reset`` (the values of ``lengths`` are looked at on the CPU only).
        RuntimeError: for shapes, devices and dtypes that do not fit together, and for T = 0.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    activation = None if nonlinearity == "tanh" else nonlinearity
    return _run(
        "rnn", input, () if hx is None else (hx,), params, has_biases, num_layers, dropout if train else 0.0,
        bidirectional, batch_first, lengths, reset, activation,
    )  # fmt: skip


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    params: list[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    ``i, f, o = sigmoid(...)``, ``g = tanh(...)`` of ``W_ih x + b_ih + W_hh h + b_hh`` in the order i, f, g, o;
    ``c' = f c + i g``, ``h' = o tanh(c')``, and with a projection ``h' = W_hr (o tanh(c'))``.

    Args:
        input: as for :func:`rnn`.
        hx: the initial states (h_0 (L*D, B, P), c_0 (L*D, B, H)); None stands for zeros.
        params: for every layer, and in it for every direction: w_ih (4*H, I or D*P), w_hh (4*H, P), with ``has_biases``
            b_ih (4*H,), b_hh (4*H,), and for an LSTM with projections w_hr (P, H).
        has_biases, num_layers, dropout, train, bidirectional, batch_first, lengths, reset: as for :func:`rnn`.

    Returns:
        ``output`` (T, B, D*P), or (B, T, D*P) with ``batch_first``; ``h_n`` (L*D, B, P); ``c_n`` (L*D, B, H).

    Raises:
        ValueError, RuntimeError: as for :func:`rnn`.
    """
    return _run(
        "lstm", input, () if hx is None else hx, params, has_biases, num_layers, dropout if train else 0.0,
        bidirectional, batch_first, lengths, reset,
    )  # fmt: skip


def gru(
    input: Tensor,
    hx: Tensor | None,
    params: list[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit (Cho et al. 2014, in the variant of cuDNN and torch: the reset comes after the product).

    ``r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)``, ``z`` likewise, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``,
    ``h' = (1 - z) n + z h``; gate order r, z, n.

    Args:
        input, hx: as for :func:`rnn`.
        params: for every layer, and in it for every direction: w_ih (3*H, I or D*H), w_hh (3*H, H), and with
            ``has_biases`` b_ih (3*H,), b_hh (3*H,).
        has_biases, num_layers, dropout, train, bidirectional, batch_first, lengths, reset: as for :func:`rnn`.

    Returns:
        ``output`` (T, B, D*H), or (B, T, D*H) with ``batch_first``, and ``h_n`` (L*D, B, H).

    Raises:
        ValueError, RuntimeError: as for :func:`rnn`.
    """
    return _run(
        "gru", input, () if hx is None else (hx,), params, has_biases, num_layers, dropout if train else 0.0,
        bidirectional, batch_first, lengths, reset,
    )  # fmt: skip


def _run(
    cell, input, states, params, bias, num_layers, dropout, bidirectional, batch_first, lengths, reset, activation=None
):
    """What the three functions have in common: read H, P and the projection off the weights, check, run."""
    spec, reverse = CELLS[cell], BOTH if bidirectional else FORWARD
    if input.dim() != 3:
        raise RuntimeError(f"input must have 3 dimensions, got {input.dim()}")
    if len(states) not in (0, spec.states) or isinstance(states, Tensor):
        raise RuntimeError(f"{cell} expects {('one hidden state', 'two hidden states')[spec.states - 1]}")
    per_direction, odd = divmod(len(params), num_layers * len(reverse))
    project = spec.states == 2 and per_direction == (5 if bias else 3)
    if odd or per_direction != (4 if bias else 2) + project:
        raise RuntimeError(
            f"got an incorrect number of RNN parameters: {len(params)} for num_layers={num_layers}, "
            f"bidirectional={bidirectional}, has_biases={bias}"
        )
    x = input.transpose(0, 1) if batch_first else input
    H, P = params[1].size(0) // spec.gates, params[1].size(1)
    lengths = None if lengths is None else check_lengths(lengths, x)
    reset = None if reset is None else check_reset(reset, input, batch_first, bidirectional)
    y, last = layers(
        cell, x, states, params, num_layers, reverse, bias, project, params[0].size(1), H, P if project else H,
        activation, dropout, lengths, reset,
    )  # fmt: skip
    return y.transpose(0, 1) if batch_first else y, *last


def layers(
    cell, x, states, weights, num_layers, reverse, bias, project, I, H, P, activation=None, dropout=0.0,  # noqa: E741
    lengths=None, reset=None, drop=torch.dropout,
):  # fmt: skip
    """Check that all tensors fit together, and run the layers.

    Args:
        x: (T, B, I).
        states: S tensors (L*D, B, H or P), or none for zeros.
        weights: flat, layer by layer and in it direction by direction.
        lengths, reset: as from :func:`check_lengths` and :func:`check_reset`.
        dropout: probability; 0 outside training.
        drop: called as ``drop(y, dropout, True)`` on the output of every layer but the last.

    Returns:
        ``y`` (T, B, D*P) and the S final states (L*D, B, H or P).
    """
    refused = None
    if not dropout and reset is None and ops.takes_stack(x, states, weights) and x.shape[2] == I:
        rare = (P if project else 0, activation, lengths) if project or activation or lengths is not None else ()
        try:  # the op checks all that ``check`` does, but the words of torch for what is wrong are there
            return ops.stack(x, states, weights, cell, num_layers, len(reverse) == 2, bias, H, *rare)
        except RuntimeError as error:
            refused = error
    check(cell, x, states, weights, num_layers, len(reverse), bias, project, I, H, P)
    if refused is not None:
        raise refused
    run = partial(_layer, cell, reverse, bias, project, activation, dropout, lengths, reset, drop)
    return ops.over_layers(run, x, states, weights, num_layers, len(reverse))


def _layer(cell, reverse, bias, project, activation, dropout, lengths, reset, drop, i, x, states, weights):
    """Layer i, after the dropout of the one below."""
    return ops.layer(
        cell, drop(x, dropout, True) if dropout and i else x, states, weights, reverse=reverse, bias=bias,
        project=project, activation=activation, lengths=lengths, reset=reset,
    )  # fmt: skip


def check(cell, x, states, weights, num_layers, D, bias, project, I, H, P):  # noqa: E741
    """Whether all tensors fit together, x (T, B, I) being three-dimensional; the errors are torch's.

    Everything that kernels rely on is checked here, weights included: they can be anything by the time of a call.
    """
    dtype, device, weight = x.dtype, x.device, weights[0]
    if dtype != weight.dtype and not autocast_enabled(device.type):
        raise ValueError(
            f"RNN input dtype ({dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({dtype})"
        )
    check_sizes(x, states, num_layers, D, I, H, P)
    check_placement(dtype, device, states, weights)
    check_weights(weights, num_layers, D, bias, project, CELLS[cell].gates * H, I, H, P)
    check_steps(x)


def check_sizes(x, states, num_layers, D, I, H, P):  # noqa: E741
    """Whether the states fit the input, and the input the layers."""
    if x.size(2) != I:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {I}, got {x.size(2)}")
    for k, s in enumerate(states):
        expected = (num_layers * D, x.size(1), H if k else P)
        if s.shape != expected:
            name = "hidden size" if len(states) == 1 else f"hidden[{k}] size"
            raise RuntimeError(f"Expected {name} {expected}, got {list(s.shape)}")


def check_steps(x):
    """Whether there is a step at all."""
    if x.size(0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_placement(dtype, device, states, weights):
    """Whether states and weights are on the device of the input and, outside autocast, of its dtype."""
    for tensor in (*weights, *states):
        if tensor.dtype != dtype or tensor.device != device:
            break
    else:
        return
    for name, tensors in (("hidden", states), ("parameter", weights)):
        for tensor in tensors:
            if tensor.device != device:
                raise RuntimeError(
                    f"Input and {name} tensors are not at the same device, found input tensor at {device} "
                    f"and {name} tensor at {tensor.device}"
                )
    dtypes = (dtype, *(t.dtype for t in (*states, *weights)))
    if autocast_enabled(device.type) and all(d.is_floating_point and d != torch.float64 for d in dtypes):
        return  # autocast makes all of them the same, but leaves float64 alone
    left = next((s.dtype for s in states if s.dtype != weights[0].dtype), dtype)
    right = next((w.dtype for w in weights if w.dtype != left), weights[0].dtype)
    left, right = (DTYPE_NAMES.get(d, str(d)) for d in (left, right))
    raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {left} and {right}")


def check_weights(weights, num_layers, D, bias, project, rows, I, H, P):  # noqa: E741
    """Whether every weight has the shape that its place in the list asks for."""
    rest = [(rows, P), (rows,), (rows,)] if bias else [(rows, P)]
    if project:
        rest.append((P, H))
    expected = [(rows, I), *rest] * D + [(rows, D * P), *rest] * (D * (num_layers - 1))
    if [w.shape for w in weights] != expected:
        n = next(n for n, w in enumerate(weights) if w.shape != expected[n])
        raise RuntimeError(f"Expected RNN parameter {n} of shape {expected[n]}, got {tuple(weights[n].shape)}")


def check_lengths(lengths, x):
    """``lengths`` as int64 on the device of x (T, B, I)."""
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
    T, B = x.shape[:2]
    if lengths.dim() != 1 or lengths.dtype.is_floating_point or lengths.dtype in (torch.bool, torch.complex64):
        kind = DTYPE_NAMES.get(lengths.dtype, str(lengths.dtype))
        raise ValueError(f"Expected 'lengths' to be a 1D integer tensor, but got {lengths.dim()}D {kind} tensor")
    n = lengths.size(0)
    if n != B:
        raise ValueError(f"Expected `len(lengths)` to be equal to batch_size, but got {n} (batch_size={B})")
    if lengths.device.type == "cpu" and B > 0 and not _symbolic():
        low, high = lengths.min().item(), lengths.max().item()
        if low < 0:
            raise ValueError(f"Length of all samples has to be at least 0, but found {low} in 'lengths'")
        if high > T:
            raise ValueError(f"Length of all samples has to be at most {T}, the number of steps, but found {high}")
    return lengths.to(device=x.device, dtype=torch.int64)


def _symbolic():
    """Whether the values of tensors cannot be looked at: while compiling or exporting, and under ``torch.func``."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def check_reset(reset, input, batch_first, bidirectional):
    """``reset`` as (T, B)."""
    if bidirectional:
        raise ValueError("reset is not defined for a bidirectional RNN: a state cannot restart from both sides")
    if reset.dtype != torch.bool or reset.shape != input.shape[:2]:
        raise ValueError(
            f"Expected 'reset' to be a bool tensor of shape {tuple(input.shape[:2])}, "
            f"but got {reset.dtype} of shape {tuple(reset.shape)}"
        )
    if reset.device != input.device:
        raise ValueError(f"Expected 'reset' on {input.device}, the device of the input, but got {reset.device}")
    return reset.transpose(0, 1) if batch_first else reset
