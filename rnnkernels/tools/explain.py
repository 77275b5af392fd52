"""``explain``: the backend and schedule that would run a module on an input, and the reasons against the others.

Letters: T time, B batch, D directions, H hidden, I input, P output of a step.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .. import backends
from ..cells import spec_of, tangent
from ..cells.call import LayerCall
from ..cells.weights import names_of
from ..nn import torchs_step
from ..nn.base import RecurrentBase
from ..nn.cell_modules import CellBase, GRUCell, LSTMCell, RNNCell
from ..nn.checks import refuse_nested
from ..nn.functional import BOTH, FORWARD
from ..nn.masks import split_weights
from ..nn.options import PLAIN, settings
from ..nn.recurrent import Recurrent, RecurrentCell
from ..op import precision
from ..op.autograd import autocast_enabled
from .convert import TO_OURS

if TYPE_CHECKING:
    from ..nn.signatures import Lengths, Reset, States

CELL_MODES = {RNNCell: "rnn", LSTMCell: "lstm", GRUCell: "gru"}


class Layer(NamedTuple):
    """The backend and schedule that would run one layer."""

    index: int
    call: backends.Facts
    """The facts that decide."""
    backend: str | None
    """The backend, or None where the forced one cannot run the call, which would raise a RuntimeError."""
    schedule: str
    """How that backend would run it; empty without a backend."""
    others: tuple[tuple[str, str], ...]
    """(name, reason) for every other backend, in order of preference."""
    tangents: str | None = None
    """Why forward mode (``jvp``) runs on the reference instead, step by step; None: it runs on the backend too."""


@dataclass(frozen=True, repr=False)
class Explanation:
    """The answer of :func:`explain`; ``str()`` is a table to read."""

    module: str
    forced: str | None
    """The backend that is forced, or None."""
    layers: tuple[Layer, ...]
    program: str | None = None
    """The text of the program of a cell of one's own, with a comment on what training keeps."""

    def __str__(self) -> str:
        first = self.layers[0].call
        kind = "training" if first.training else "inference"
        dtype = str(first.dtype).removeprefix("torch.")
        lines = [f"{self.module}: {kind}, {dtype} on {first.device}, T={first.T}, B={first.B}"]
        if self.forced is not None:
            lines.append(f"forced: {self.forced}")
        width = max(map(len, backends.names()))
        for _, same in groupby(self.layers, key=lambda layer: layer[1:]):
            same = list(same)
            at, call = same[0], same[0].call
            numbers = f"layer {at.index}" if len(same) == 1 else f"layers {at.index}-{same[-1].index}"
            stages = f", stages: {', '.join(sorted(call.stages))}" if call.stages else ""
            lines.append(f"{numbers}: I={call.I}, H={call.H}, P={call.P}, D={call.D}{stages}")
            if at.backend is None:
                lines.append("  no backend: the call would raise a RuntimeError")
            else:
                lines.append(f"  runs on   {at.backend:{width}}  {at.schedule}")
            lines += [f"  not on    {name:{width}}  {reason}" for name, reason in at.others]
            if at.tangents is not None:
                lines.append(f"  forward mode on the reference, step by step: {at.tangents}")
        return "\n".join(lines if self.program is None else [*lines, self.program])

    __repr__ = __str__


def explain(
    module: nn.Module,
    x: torch.Tensor | PackedSequence,
    hx: "States | None" = None,
    *,
    lengths: "Lengths" = None,
    reset: "Reset" = None,
) -> Explanation:
    """Say which backend and schedule would run each layer of a module, and why every other backend would not.

    Nothing is computed. ``torch.no_grad``, autocast, ``backends.force`` and the environment variable
    ``RNNKERNELS_BACKEND`` count as they would in a call now.

    Args:
        module: an ``rnnkernels`` RNN, LSTM, GRU, Recurrent, RNNCell, LSTMCell, GRUCell or RecurrentCell.
        x: an input that the module takes: batched, unbatched or packed.
        hx: the initial states, as for the module; only their ``requires_grad`` counts (training or inference).
        lengths, reset: as for the module; their values do not count.

    Returns:
        An :class:`Explanation`: ``layers`` for programs, ``str()`` (or ``print``) for people.

    Raises:
        TypeError: for a module that is not one of these.
        ValueError: for an input with a wrong number of dimensions.
    """
    if not isinstance(module, (RecurrentBase, CellBase, RecurrentCell)):
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        if isinstance(module, tuple(TO_OURS)):
            hint = "convert it first: explain(rnnkernels.convert(module), x)"
        else:
            hint = "for a model that holds some, call rnnkernels.convert(model) and explain its recurrent modules"
        raise TypeError(f"Expected an rnnkernels RNN, LSTM, GRU or one of their cells, but got {name}; {hint}")
    if not isinstance(x, PackedSequence) and x.is_nested:
        refuse_nested(type(module).__name__)
    if isinstance(module, CellBase):
        calls = cell_calls(module, x, hx)
        why = lambda c: torchs_step.why_for_cell(c.cell, c.dtype, c.B, c.H, c.training)  # noqa: E731
        layers = [describe(0, call, why(call)) for call in calls]
    elif isinstance(module, RecurrentCell):
        layers = [describe(0, call) for call in cell_calls(module, x, hx)]
    else:
        calls = layer_calls(module, x, hx, lengths, reset)
        training = any(call.training for call in calls)
        layers = [describe(n, call, torchs_step.why_for_layers(call, training)) for n, call in enumerate(calls)]
    return Explanation(str(module), backends.forced(), tuple(layers), described(module))


def described(module):
    """The program of a module's cell, and what training keeps of it; None for a built-in cell."""
    if not isinstance(module, (Recurrent, RecurrentCell)):
        return None
    kept, program = list(module.cell.names), module.cell.program
    text = module._text if isinstance(module, Recurrent) else program.text
    if spec_of(text).kept > program.keep:
        kept.append(f"{program.states[0]} before its projection")
    return f"training keeps {', '.join(kept) or 'nothing but the states'}\n{text}"


def cell_calls(module, x, hx):
    """The one call of a cell."""
    if x.dim() not in (1, 2):
        raise ValueError(f"{type(module).__name__}: Expected input to be 1D or 2D, got {x.dim()}D instead")
    if isinstance(module, RecurrentCell):
        cell, names = module.cell.kernel, names_of(module.cell.program.text, module.bias)
    else:
        cell = next(cell for kind, cell in CELL_MODES.items() if isinstance(module, kind))
        names = names_of(cell, module.bias)
    activation = "relu" if getattr(module, "nonlinearity", None) == "relu" else None
    weights = [getattr(module, name) for name in names]
    packed = module._rk_packed.of(weights) if module._rk_packed else 0
    x_1BI = x[None, None] if x.dim() == 1 else x.unsqueeze(0)
    call = LayerCall(
        cell, x_1BI, [], weights, FORWARD, bias=module.bias, activation=activation, hidden_size=module.hidden_size,
        parts=precision.parts(x), packed=packed,
    ).facts()  # fmt: skip
    return calls_of(call, x_1BI, hx, weights, 1, 1)


def layer_calls(module, x, hx, lengths, reset):
    """The calls of all layers of a module."""
    if isinstance(x, PackedSequence):
        data, sizes = x.data, x.batch_sizes
        T, B = sizes.size(0), int(sizes[0])
        x_TBI = data[:1].expand(T, B, -1)
        lengths = None if int(sizes[-1]) == B else sizes  # rows of equal length run without lengths
    elif x.dim() in (2, 3):
        x_TBI = x.unsqueeze(1) if x.dim() == 2 else x.transpose(0, 1) if module.batch_first else x
    else:
        raise ValueError(module._rk_wrong_input.format(x.dim()))
    options, weights = module._rk_options or PLAIN, module._flat_weights
    cell, activation, gate = settings(*module._rk_kind, options)
    D, N = 1 + module.bidirectional, options.heads
    first = weights[: len(weights) // module.num_layers]
    call = LayerCall(
        cell, x_TBI, [], first if N == 1 else split_weights(first, D, N),
        [r for r in (BOTH if D == 2 else FORWARD) for _ in range(N)], project=module.proj_size > 0,
        activation=activation, recurrent_activation=gate, lengths=lengths, reset=reset,
        h_mask=True if module.training and options.recurrent_dropout else None,
        zone=[z for z in options.zones(1) if z], layer_norm=options.layer_norm, hidden_size=module.hidden_size // N,
        parts=precision.parts(x_TBI), packed=module._rk_packed.of(weights) if module._rk_packed else 0,
    ).facts()  # fmt: skip
    return calls_of(call, x_TBI, hx, weights, module.num_layers, call.D * call.P)


def calls_of(call, x_TBI, hx, weights, num_layers, width):
    """The calls of all layers, from that of the first; ``width`` is the I of the others."""
    states = () if hx is None else hx if isinstance(hx, (tuple, list)) else (hx,)
    training = any(t.requires_grad for t in (x_TBI, *states))
    device = x_TBI.device.type
    if autocast_enabled(device) and call.dtype != torch.float64:
        call = call._replace(dtype=torch.get_autocast_dtype(device))
    n = len(weights) // num_layers
    calls = []
    for k in range(num_layers):  # a layer is in training if one below it is
        training = training or any(w is not None and w.requires_grad for w in weights[k * n : (k + 1) * n])
        calls.append(call._replace(training=training and torch.is_grad_enabled()))
        call = call._replace(I=width)
    return calls


def describe(index, call, torchs=None):
    """The ``Layer`` of a call; ``torchs``: why torch's own op computes it in eager mode on the CPU, or None."""
    try:
        chosen = backends.choose(call)
    except RuntimeError:  # the forced backend cannot run it
        chosen = None
    schedule = backends.BACKENDS[chosen].schedule(call) if chosen else ""
    forced = backends.forced()
    instead = f"it could run this, but {forced} is forced" if forced else f"it could run this, but {chosen} comes first"
    others = tuple((name, reason or instead) for name, reason in backends.reasons(call) if name != chosen)
    tangents = None
    if chosen not in (None, "reference"):
        project, normed = "project" in call.stages, "layer_norm" in call.stages
        tangents = tangent.why_not(call.cell, call.activation, call.recurrent_activation, project, normed)
    if torchs is None or call.device.type != "cpu" or forced or autocast_enabled("cpu"):
        return Layer(index, call, chosen, schedule, others, tangents)
    ours = (chosen, "it could run this, but torch's own op comes first")
    return Layer(index, call, "torch", f"its own op: {torchs}", (ours, *others), tangents)
