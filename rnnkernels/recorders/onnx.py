"""ONNX: a layer call as ONNX's own RNN, GRU or LSTM node, in ``torch.onnx.export`` and for exported programs.

``ops.layer`` asks ``exporting()`` and then emits ``node_of_layer`` in the place of its op. Letters: T time, B batch,
D directions, G gates, H hidden, S states, I input.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import _VF

from ..cells import spec_of
from ..cells.call import LayerCall
from ..cells.weights import names_of

NODES = {"rnn": "RNN", "gru": "GRU", "gru_reset_before": "GRU", "lstm": "LSTM"}
GATE_ORDER = {"rnn": (0,), "gru": (1, 0, 2), "gru_reset_before": (1, 0, 2), "lstm": (0, 3, 1, 2)}
"""ONNX's order of the gates in ours: zrh in r, z, n, and iofc in i, f, g, o."""
ACTIVATIONS = {
    "tanh": ("Tanh",), "relu": ("Relu",), "sigmoid": ("Sigmoid",), "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
    "linear": ("Affine", 1.0, 0.0),
}  # fmt: skip
"""ONNX's name of each activation, and its alpha and beta where it has them."""
DIRECTIONS = {(False,): "forward", (True,): "reverse", (False, True): "bidirectional"}


def exporting() -> bool:
    """True while ``torch.onnx.export`` runs. It takes microseconds, so callers ask only while a tracer is active."""
    return torch.onnx.is_in_onnx_export()


exporting._dynamo_marked_constant = True  # torch.compiler.assume_constant_result; Dynamo itself would answer False


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Decompositions for ``ExportedProgram.run_decompositions``, after which ``torch.onnx.export`` takes a program.

    ``torch.onnx.export(model, ..., dynamo=True)`` needs none of this. For a program that has been exported already::

        program = torch.export.export(model, (x,), dynamic_shapes=...)
        program = program.run_decompositions(rnnkernels.onnx.decompositions())
        torch.onnx.export(program, dynamo=True)

    Returns:
        A new dictionary from each op of a layer to a function of the op's arguments.

    Raises:
        NotImplementedError: in ``run_decompositions``, for a layer that ONNX has no operator for.
    """
    from ..op.schema import stack_of_layers  # which imports this file

    ops = torch.ops.rnnkernels
    return {ops.layer.default: decomposed_layer, ops.stack.default: stack_of_layers}


def decomposed_layer(*call):
    """``rnnkernels::layer`` as a node. The saved tensors come from a second op, dropped if nothing reads them."""
    *arguments, save = call
    y, last = node_of_layer(LayerCall.of(*arguments))
    return y, last, torch.ops.rnnkernels.reference_layer(*call)[2] if save else []


def refuse_packed():
    """Raise for a ``PackedSequence`` in a graph of ``torch.onnx.export``: its sizes are data."""
    if exporting():
        raise NotImplementedError("rnnkernels: torch.onnx.export takes no PackedSequence; call the layer with lengths=")


def refuse(call, return_cells):
    """Raise for what ONNX's recurrent operators do not do."""
    for name, given in (
        (f"the cell {call.spec.name}", not call.spec.built_in), ("proj_size", call.project),
        ("heads", call.reverse not in DIRECTIONS), ("reset", call.reset is not None),
        ("recurrent_dropout in training", call.h_mask is not None), ("zoneout", len(call.zone) > 0),
        ("layer_norm", call.layer_norm), ("return_cell_states", return_cells),
        ("an input for each of several weights (vmap)", call.x.dim() == 4),
    ):  # fmt: skip
        if given:
            raise NotImplementedError(f"rnnkernels: ONNX has no recurrent operator with {name}")


def node_of_layer(call, return_cells=False):
    """One layer with all its directions as one node; arguments as in the op.

    Under ``torch.jit.trace`` (the exporter of dynamo=False) it is torch's own layer: that exporter has a node for it.

    Returns:
        ``y`` (T, B, D*H) and a list of the S final states (D, B, H).

    Raises:
        NotImplementedError: for settings without an ONNX operator.
    """
    call = call._replace(reverse=tuple(map(bool, call.reverse)))
    refuse(call, return_cells)
    if torch._C._get_tracing_state() is not None:
        return layer_of_torch(call)
    cell, x, states, reverse, lengths = call.cell, call.x, call.states, call.reverse, call.lengths
    (T, B, _), D, H = x.shape, len(reverse), call.H
    found = {n: reordered(torch.stack(call.weight(n)), cell, H) for n in names_of(cell, call.bias)}
    biases = torch.cat([found["bias_ih"], found["bias_hh"]], 1) if call.bias else None
    ends = None if lengths is None else lengths.to(torch.int32)
    inputs = [x, found["weight_ih"], found["weight_hh"], biases, ends, *states]
    attributes = {
        "hidden_size": H,
        "direction": DIRECTIONS[reverse],
        **activation_attributes(cell, call.activation or "tanh", call.recurrent_activation or "sigmoid", D),
    }
    if NODES[cell] == "GRU":
        attributes["linear_before_reset"] = int(cell == "gru")
    S = spec_of(cell).states
    y, *last = torch.onnx.ops.symbolic_multi_out(
        NODES[cell], inputs, attributes, dtypes=[x.dtype] * (1 + S), shapes=[(T, D, B, H), *[(D, B, H)] * S]
    )
    if lengths is not None and states:  # runtimes return zeros for a row without a step
        empty = (lengths == 0)[None, :, None]
        last = [torch.where(empty, first, s) for first, s in zip(states, last, strict=True)]
    return y.transpose(1, 2).flatten(2), last


def reordered(w, cell, H):
    """The rows of w (D, G*H, ...) in ONNX's order of the gates, by slices: the exporter does not fold ``chunk``."""
    return torch.cat([w[:, g * H : (g + 1) * H] for g in GATE_ORDER[cell]], 1) if len(GATE_ORDER[cell]) > 1 else w


def activation_attributes(cell, activation, gate, D):
    """The attributes for the activations of gates, of the candidate and, in an LSTM, of c, in every direction."""
    names = {"RNN": [activation], "GRU": [gate, activation], "LSTM": [gate, activation, activation]}[NODES[cell]] * D
    found = {"activations": [ACTIVATIONS[name][0] for name in names]}
    parameters = [ACTIVATIONS[name][1:] for name in names if len(ACTIVATIONS[name]) > 1]
    if parameters:  # of the activations that have any, in order
        found["activation_alpha"], found["activation_beta"] = ([p[k] for p in parameters] for k in (0, 1))
    return found


def layer_of_torch(call):
    """The same as a call of torch's own ``rnn_tanh``, ``rnn_relu``, ``gru`` or ``lstm``."""
    cell, x, weights, activation = call.cell, call.x, call.weights, call.activation
    name = f"rnn_{activation or 'tanh'}" if cell == "rnn" else cell
    plain = name in ("rnn_tanh", "rnn_relu") or activation in (None, "tanh")
    for what, given in (
        ("lengths", call.lengths is not None), ("reset_after=False", cell == "gru_reset_before"),
        ("a single reversed direction", call.reverse == (True,)), ("activation", not plain),
        ("recurrent_activation", call.recurrent_activation not in (None, "sigmoid")),
    ):  # fmt: skip
        if given:
            raise NotImplementedError(f"rnnkernels: torch.onnx.export has {what} with dynamo=True only")
    D = len(call.reverse)
    states = call.states or [x.new_zeros(D, x.size(1), call.P) for _ in range(spec_of(cell).states)]
    hx = tuple(states) if cell == "lstm" else states[0]
    y, *last = getattr(_VF, name)(x, hx, weights, call.bias, 1, 0.0, False, D == 2, False)
    return y, last
