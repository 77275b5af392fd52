"""``rnn``, ``lstm``, ``gru`` and ``recurrent`` as functions of tensors: the loop over layers, and dropout between them.

Letters: T time, B batch, D directions, G gates, H hidden, S states, I input, L layers, P output of a step (H, or
proj_size where there is one).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..cells import spec_of
from ..cells.call import LayerCall
from ..cells.definition import Cell
from ..cells.reference import zero_past
from ..cells.weights import names_of
from ..op import precision
from ..op import run as op
from ..op.autograd import may_change
from ..op.schema import over_layers
from . import masks, torchs_step
from .checks import (
    check,
    check_lengths,
    check_matrices,
    check_params,
    check_reset,
    check_tensor,
    refuse_nested,
    wrong_count,
)
from .options import PLAIN, check_heads, take_options
from .own_cells import (
    check_cell,
    check_extras,
    check_heads_of,
    extras_of,
    kernel_of,
    states_of,
    take_constants,
    take_extras,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .signatures import GRUOptions, Lengths, LSTMOptions, Options, Reset, States

FORWARD, BOTH = (False,), (False, True)  # the op's ``reverse``: one time direction per direction of a layer


def rnn(
    input: Tensor,
    hx: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    *,
    nonlinearity: str = "tanh",
    lengths: "Lengths" = None,
    reset: "Reset" = None,
    **options: "Unpack[Options]",
) -> tuple[Tensor, Tensor]:
    """Elman network (Elman 1990, "Finding structure in time"): ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``.

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``; float64, float32, bfloat16 or float16.
        hx: the initial state (L*D, B, H) in the dtype of ``input``; None stands for zeros.
        params: for every layer, and in it for every direction: w_ih (H, I or D*H), w_hh (H, H), and with ``has_biases``
            b_ih (H,), b_hh (H,). This is the order of ``torch.nn.RNN(...).parameters()``.
        has_biases: ``params`` holds biases.
        num_layers: L.
        dropout: probability of zeroing an element of the output of every layer but the last.
        train: True applies dropout.
        bidirectional: D = 2 directions instead of 1, the second from the end to the start.
        batch_first: the batch comes first in ``input``, ``output`` and ``reset``; costs no copy in inference, and in
            training one of ``input``, as in torch.nn, so that it may be refilled before the backward pass.
        nonlinearity: "tanh" or "relu".
        lengths: integers (B,) from 0 to T: row b ends after lengths[b] steps. ``output`` is zero from there on, and
            ``h_n`` is the state after the last step of the row (the initial one for length 0). Default: all T.
        reset: bool (T, B), or (B, T) with ``batch_first``: the state that enters a flagged step is zero, in every
            layer; or a pair of that and of the states to restart from, like ``hx``. Not with ``bidirectional``.
        **options: ``recurrent_dropout``, ``zoneout``, ``layer_norm``, ``recompute`` and ``heads`` of
            :class:`rnnkernels.RNN`, with masks drawn where ``train``. With ``layer_norm`` every direction in ``params``
            ends with ln_x_gain and ln_h_gain (H,); with N heads w_hh is (N, H/N, H/N).

    Returns:
        ``output`` (T, B, D*H), or (B, T, D*H) with ``batch_first``, and ``h_n`` (L*D, B, H).

    Raises:
        ValueError: for an input whose dtype is not that of the weights, a wrong ``nonlinearity`` or option, wrong
            ``lengths`` or ``reset`` (wrong values of ``lengths`` that lie on a GPU: a device-side assertion, see
            :func:`rnnkernels.checks.device_assertions`).
        RuntimeError: for shapes, devices and dtypes that do not fit together, and for T = 0.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    activation = None if nonlinearity == "tanh" else nonlinearity
    return _run(
        "rnn", input, () if hx is None else (hx,), params, has_biases, num_layers, dropout, train,
        bidirectional, batch_first, lengths, reset, options, activation,
    )  # fmt: skip


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    params: Sequence[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    *,
    lengths: "Lengths" = None,
    reset: "Reset" = None,
    **options: "Unpack[LSTMOptions]",
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
        **options: those of :class:`rnnkernels.LSTM`. With ``layer_norm`` every direction in ``params`` ends with
            ln_x_gain, ln_h_gain (4*H,), ln_c_gain, ln_c_bias (H,); with N heads w_hh is (N, 4*H/N, H/N).

    Returns:
        ``output`` (T, B, D*P), or (B, T, D*P) with ``batch_first``; ``h_n`` (L*D, B, P); ``c_n`` (L*D, B, H).

    Raises:
        ValueError, RuntimeError: as for :func:`rnn`.
    """
    return _run(
        "lstm", input, () if hx is None else hx, params, has_biases, num_layers, dropout, train,
        bidirectional, batch_first, lengths, reset, options,
    )  # fmt: skip


def gru(
    input: Tensor,
    hx: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    *,
    lengths: "Lengths" = None,
    reset: "Reset" = None,
    **options: "Unpack[GRUOptions]",
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit (Cho et al. 2014, in the variant of cuDNN and torch: the reset comes after the product).

    ``r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)``, ``z`` likewise, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``,
    ``h' = (1 - z) n + z h``; gate order r, z, n.

    Args:
        input, hx: as for :func:`rnn`.
        params: for every layer, and in it for every direction: w_ih (3*H, I or D*H), w_hh (3*H, H), and with
            ``has_biases`` b_ih (3*H,), b_hh (3*H,).
        has_biases, num_layers, dropout, train, bidirectional, batch_first, lengths, reset: as for :func:`rnn`.
        **options: those of :class:`rnnkernels.GRU`. With ``layer_norm`` every direction in ``params`` ends with
            ln_x_gain and ln_h_gain (3*H,); with N heads w_hh is (N, 3*H/N, H/N).

    Returns:
        ``output`` (T, B, D*H), or (B, T, D*H) with ``batch_first``, and ``h_n`` (L*D, B, H).

    Raises:
        ValueError, RuntimeError: as for :func:`rnn`.
    """
    return _run(
        "gru", input, () if hx is None else (hx,), params, has_biases, num_layers, dropout, train,
        bidirectional, batch_first, lengths, reset, options,
    )  # fmt: skip


def recurrent(
    cell: Cell,
    input: Tensor,
    hx: "States | None",
    params: Sequence[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    *,
    lengths: "Lengths" = None,
    reset: "Reset" = None,
    **more: Any,
) -> tuple[Tensor, Any]:
    """Layers of a cell of one's own, as a function of tensors.

    Args:
        cell: made by :func:`rnnkernels.cell`, or one of ``rnnkernels.cells``.
        input: (T, B, I), or (B, T, I) with ``batch_first``.
        hx: the initial states (L*D, B, H), S of them in a tuple for a cell with several, the first (L*D, B, P) with a
            projection; None stands for zeros.
        params: for every layer, and in it for every direction, in the order of ``Recurrent(...).parameters()``; with
            a weight_hr among them it is a projection.
        has_biases, num_layers, dropout, train, bidirectional, batch_first, lengths, reset: as for :func:`rnn`.
        **more: the cell's extra inputs and constants, by name, and the options of :class:`rnnkernels.Recurrent`.

    Returns:
        ``output`` (T, B, D*H or D*P), or (B, T, ...) with ``batch_first``, and the final states like ``hx``.
    """
    check_cell(cell)
    cell = take_constants(cell, more)
    options = take_options(cell.program.text, more)
    program, reverse = cell.program, BOTH if bidirectional else FORWARD
    normed, heads = options is not None and options.layer_norm, 1 if options is None else options.heads
    spec = spec_of(program.text)
    check_batched("recurrent", input)
    states = states_of(program, hx)
    params = check_params(params, num_layers)
    per_direction, odd = divmod(len(params), num_layers * len(reverse))
    plain = len(names_of(program.text, has_biases, False, normed))
    project = per_direction == plain + 1 and cell.projected is not None
    if odd or per_direction != plain + project:
        raise wrong_count(params, num_layers, bidirectional, has_biases)
    text = kernel_of(cell, project, normed)
    names = names_of(text, has_biases, project, normed)
    check_matrices(names, params)
    own = dict(zip(names, params, strict=False))
    if "weight_hh" in own:
        w = own["weight_hh"]
        H, P = w.size(0) // spec.recurrent_gates if project else w.size(-1) * heads, w.size(-1)
    elif program.vectors:
        H = own[program.vectors[0]].size(0)
    elif "weight_ih" in own:
        H = own["weight_ih"].size(0) // spec.gates
    elif spec.gates:
        H = input.size(2) // spec.gates
    else:  # nothing but states and extra inputs
        wide = [u for name, u in more.items() if name in extras_of(program) and name not in program.narrow]
        H = next((t.size(-1) for t in (*states, *wide) if isinstance(t, Tensor)), input.size(2))
    x = input.transpose(0, 1) if batch_first else input
    extras = take_extras(cell.program, more, input, batch_first, 3, "recurrent")
    check_extras(program, extras, x, H)
    check_heads_of(program, heads, H, project)
    lengths = None if lengths is None else check_lengths(lengths, x)
    reset, restart = restarts(reset, input, batch_first, bidirectional, spec)
    I = own["weight_ih"].size(1) if "weight_ih" in own else input.size(2)  # noqa: E741
    y, last = layers(
        text, x, states, params, num_layers, reverse, has_biases, project, I, H, P if project else H, None,
        dropout if train else 0.0, lengths, reset, options=options, train=train, reset_states=restart, extras=extras,
    )  # fmt: skip
    return batch_major(y) if batch_first else y, last[0] if spec.states == 1 else tuple(last)


def _run(
    cell, input, states, params, bias, num_layers, dropout, train, bidirectional, batch_first, lengths, reset, given,
    activation=None,
):  # fmt: skip
    """The body of the three functions: read H, P and the projection off the weights, check, run."""
    spec, reverse = spec_of(cell), BOTH if bidirectional else FORWARD
    options = take_options(cell, given) if given else None
    if given:
        raise TypeError(f"{cell}() got an unexpected keyword argument {next(iter(given))!r}")
    check_batched(cell, input)
    if len(states) not in (0, spec.states) or isinstance(states, Tensor):
        raise RuntimeError(f"{cell} expects {('one hidden state', 'two hidden states')[spec.states - 1]}")
    params = check_params(params, num_layers)
    per_direction, odd = divmod(len(params), num_layers * len(reverse))
    norms = options is not None and options.layer_norm
    project = spec.has_projection and per_direction == len(names_of(cell, bias, True, norms))
    if odd or per_direction != len(names_of(cell, bias, project, norms)):
        raise wrong_count(params, num_layers, bidirectional, bias)
    check_matrices(names_of(cell, bias, project, norms), params)
    x = input.transpose(0, 1) if batch_first else input
    w_hh = params[1]
    H, P = (w_hh.size(0) // spec.gates, w_hh.size(1)) if w_hh.dim() != 3 else (w_hh.size(0) * w_hh.size(2),) * 2
    lengths = None if lengths is None else check_lengths(lengths, x)
    reset, restart = restarts(reset, input, batch_first, bidirectional, spec)
    I, P, dropout = params[0].size(1), P if project else H, dropout if train else 0.0  # noqa: E741
    if options is not None:
        check_heads(options.heads, H, project)
    y, last = layers(
        cell, x, states, params, num_layers, reverse, bias, project, I, H, P, activation, dropout, lengths, reset,
        options=options, train=train, reset_states=restart,
    )  # fmt: skip
    return batch_major(y) if batch_first else y, *last


def check_batched(name, input):
    """Check that the input of a function is a tensor of three dimensions."""
    check_tensor(f"functional.{name}", input)
    if input.is_nested:
        refuse_nested(f"functional.{name}")
    if input.dim() != 3:
        raise RuntimeError(f"input must have 3 dimensions, got {input.dim()}")


def restarts(reset, input, batch_first, bidirectional, spec):
    """``reset`` as a mask (T, B) or None, and the S states to restart from, none for zeros."""
    if reset is None:
        return None, ()
    reset, restart = check_reset(reset, input, batch_first, bidirectional)
    restart = (restart,) if isinstance(restart, Tensor) else restart
    if len(restart) not in (0, spec.states):
        raise RuntimeError(f"{spec.name} expects {spec.states} states to restart from, got {len(restart)}")
    return reset, restart


def layers(
    cell, x, states, weights, num_layers, reverse, bias, project, I, H, P, activation=None, dropout=0.0,  # noqa: E741
    lengths=None, reset=None, drop=torch.dropout, options=None, train=False, reset_states=(), return_cells=False,
    call=None, extras=(), packed=0,
):  # fmt: skip
    """Check that all tensors fit together, and run the layers.

    Args:
        x: (T, B, I).
        states: S tensors (L*D, B, H or P), or none for zeros.
        weights: flat, layer by layer and in it direction by direction.
        lengths, reset: as from :func:`check_lengths` and :func:`check_reset`.
        dropout: probability; 0 outside training.
        drop: called as ``drop(y, dropout, True)`` on the output of every layer but the last.
        options: ``Options``, or None.
        train: True draws the masks of the options.
        reset_states: S tensors as ``states``, from which rows restart where ``reset`` is set; none for zeros.
        return_cells: True returns the cell states of the last layer too.
        call: runs a ``LayerCall``; called as ``op.layer``, the default.
        extras: the inputs of steps (T, B, H or 1), then those of sequences (B, H), for every layer.
        packed: the number of the packed weights of a frozen module (tools/freeze.py), or 0.

    Returns:
        ``y`` (T, B, D*P) and the S final states (L*D, B, H or P); with ``return_cells`` also c (T, B, D*H).
    """
    D, top, refused, found = len(reverse), num_layers - 1, None, []
    spec = spec_of(cell)
    plain = options is None and not return_cells and call is None and not spec.extras
    parts = precision.parts(x)
    stack = op.inference_op(x, states, weights, I) if plain and H and not dropout and reset is None else None
    if stack is not None:
        states = op.resolved(states)
        rare = (P if project else 0, activation, lengths) if project or activation or lengths is not None else ()
        more = op.rare(parts, packed)
        try:  # the op checks all that ``check`` does, but the words of torch for what is wrong are there
            return stack(x, states, weights, cell, num_layers, D == 2, bias, H, *rare, **more)
        except RuntimeError as error:
            refused = error
    elif (
        plain
        and not (project or parts or lengths is not None or reset is not None)
        and (drop is torch.dropout or not dropout)
        and torchs_step.suits_layers(cell, activation, x, states, weights, num_layers * D, H)
    ):
        try:  # torch's ops check their arguments, in other words
            return torchs_step.layers(cell, activation, x, states, weights, num_layers, D, H, dropout)
        except RuntimeError as error:
            refused = error
    if return_cells and spec.states < 2:
        raise ValueError(f"return_cell_states is for LSTM: {cell} has no cell state")
    check(cell, x, states, weights, num_layers, D, bias, project, I, H, P, options or PLAIN, reset_states)
    if refused is not None:
        raise refused
    call = call or op.layer

    def run(i, x, states, weights):
        restart = [s[i * D : (i + 1) * D] for s in reset_states]
        x = drop(x, dropout, True) if dropout and i else x
        layer = LayerCall(
            cell, x, states, weights, reverse, bias, project, activation, None, lengths, reset, restart, hidden_size=H,
            extras=extras, parts=parts, packed=packed,
        )  # fmt: skip
        ways = {"return_cells": return_cells and i == top, "exposed": i == top}
        if options is not None:
            layer = masks.with_options(layer, options, train)
            ways["recompute"] = options.recompute
        y, last, *cells = call(layer, **ways)
        if options is not None and options.heads > 1:
            last, cells = masks.joined(last, cells, D, options.heads)
        found.extend(cells)
        return y, last

    y, last = over_layers(run, x, states, weights, num_layers, D)
    if not return_cells:
        return y, last
    c = zero_past(found[0].permute(1, 2, 0, 3).flatten(2), lengths)  # backends may leave any value past the lengths
    return y, last, c.to(y.dtype)


def batch_major(y):
    """y (T, B, ...), just computed, as (B, T, ...)."""
    return y.transpose_(0, 1) if may_change(y) else y.transpose(0, 1)
