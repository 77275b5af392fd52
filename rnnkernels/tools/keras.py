"""Weights of Keras 3 layers and back: ``load_weights`` and ``export_weights``. Keras itself is not needed.

Letters: D directions, G gates, H hidden, I input, L layers. A layer of Keras has, for each direction, kernel (I, G*H),
recurrent_kernel (H, G*H) and with a bias bias (G*H), which for a GRU with ``reset_after`` is (2, G*H), of the input and
of the recurrent product. The gates of an LSTM are in the order of torch, i, f, g, o; those of a GRU are z, r, n.
"""

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..cells.weights import weights_of
from ..nn.base import MODES, check_recurrent
from ..nn.options import PLAIN
from ..nn.recurrent import refuse_own_cell

if TYPE_CHECKING:
    import numpy as np

M = TypeVar("M", bound=nn.Module)

ORDER = {"rnn": (0,), "lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}
"""The position in Keras of each gate of torch, and the other way round."""


def load_weights(module: M, source: Any) -> M:
    """Take the weights of Keras layers: the module then computes the same (given the same activations).

    Where Keras has one bias, ``bias_hh`` becomes zero. In Keras a mask that ends a sequence early corresponds to
    ``lengths``, ``return_sequences`` and ``return_state`` to the two results of the module, and Keras is batch first.

    Past a mask Keras repeats the last output of the sequence, where ``zero_output_for_mask`` is False (its default);
    ours is zero past ``lengths``, as with ``zero_output_for_mask=True``. Final states are the same. Keras's
    repeated outputs come from ``y.gather(1, torch.arange(T).clamp(max=lengths[:, None] - 1)[..., None].expand_as(y))``,
    for an output y (B, T, H) of one direction and lengths from 1 on.

    Args:
        module: an ``rnnkernels.RNN``, ``LSTM`` or ``GRU``, made as the layers are: ``LSTM(I, units)`` for
            ``keras.layers.LSTM(units)``, with its ``activation``, ``recurrent_activation`` and ``reset_after``.
        source: a Keras layer that is built (``SimpleRNN``, ``LSTM``, ``GRU`` or ``Bidirectional`` with
            ``merge_mode="concat"`` around one), a list of L of them, or the arrays (numpy or tensors) of
            ``get_weights()`` of all of them, one after the other.

    Returns:
        ``module``.

    Raises:
        TypeError: for a module of another kind.
        ValueError: for arrays of other shapes or another number of them, and for a layer whose settings are not the
            module's. The module is as it was.
    """
    check_module(module)
    arrays = []
    for s in [source] if hasattr(source, "get_weights") else list(source):
        if hasattr(s, "get_weights"):
            check_layer(module, s)
            arrays += s.get_weights()
        else:
            arrays.append(s)
    arrays = [torch.as_tensor(a) for a in arrays]
    expected = list(shapes(module))
    got = [tuple(a.shape) for a in arrays]
    if got != [shape for _, shape in expected]:
        raise ValueError(f"Expected arrays of the shapes {[shape for _, shape in expected]}, but got {got}")
    state = {}
    for (name, _), array in zip(expected, arrays, strict=True):
        state |= parameters_of(module, name, array)
    module.load_state_dict(state)
    return module


def export_weights(module: nn.Module) -> "list[np.ndarray[Any, Any]]":
    """The inverse of :func:`load_weights`: numpy arrays for ``layer.set_weights``.

    Where Keras has one bias it is ``bias_ih + bias_hh``.

    Args:
        module: as for :func:`load_weights`.

    Returns:
        L*D times 2 arrays, or 3 with a bias, in the module's dtype (float32 for bfloat16, which numpy lacks). Of a
        module with several layers each Keras layer takes its share, ``len(arrays) // L``.

    Raises:
        TypeError, ValueError: for a module of another kind, or one with something that Keras lacks.
    """
    check_module(module)
    cell, arrays = module._rk_kind[0], []
    for name, shape in shapes(module):
        kind, _, suffix = name.partition("_l")
        if kind == "bias":
            ih, hh = (getattr(module, f"bias_{part}_l{suffix}").detach() for part in ("ih", "hh"))
            value = torch.stack([ordered(ih, cell), ordered(hh, cell)]) if len(shape) == 2 else ordered(ih + hh, cell)
        else:
            value = ordered(getattr(module, name).detach(), cell).T
        arrays.append((value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy().copy())
    return arrays


def shapes(module):
    """The names ("bias" stands for both) and shapes of the arrays in Keras's order."""
    cell, H, D = module._rk_kind[0], module.hidden_size, 1 + module.bidirectional
    both = cell == "gru" and (module._rk_options or PLAIN).reset_after
    for i in range(module.num_layers):
        for suffix in ("", "_reverse")[:D]:
            for name, kind, shape in weights_of(cell, D * H if i else module.input_size, H, bias=module.bias):
                if kind != "bias":
                    yield f"{name}_l{i}{suffix}", shape[::-1]
                elif name == "bias_ih":
                    yield f"bias_l{i}{suffix}", (2, *shape) if both else shape


def parameters_of(module, name, array):
    """The parameters of the module, by name, that one array stands for."""
    cell, (kind, _, suffix) = module._rk_kind[0], name.partition("_l")
    if kind != "bias":
        return {name: ordered(array.T, cell)}
    ih, hh = array if array.dim() == 2 else (array, torch.zeros_like(array))
    return {f"bias_ih_l{suffix}": ordered(ih, cell), f"bias_hh_l{suffix}": ordered(hh, cell)}


def ordered(rows, cell):
    """Rows (G*H, ...) with the gates in the other library's order."""
    return torch.cat([rows.chunk(len(ORDER[cell]))[g] for g in ORDER[cell]])


def check_module(module):
    """Raise for a module that Keras has no layer for."""
    check_recurrent(module)
    refuse_own_cell("rnnkernels.keras", module)
    lacking = (module._rk_options or PLAIN).changed("activation", "recurrent_activation", "reset_after", "recompute",
                                                "recurrent_dropout")  # fmt: skip
    if module.proj_size:
        lacking = f"proj_size={module.proj_size}"
    if lacking:
        raise ValueError(f"Keras has no {lacking}")


def check_layer(module, layer):
    """Raise for a Keras layer whose settings are not the module's."""
    config, wrapped = layer.get_config(), type(layer).__name__ == "Bidirectional"
    found, expected = {"bidirectional": wrapped}, {"bidirectional": module.bidirectional}
    if wrapped:
        found["merge_mode"], expected["merge_mode"] = config["merge_mode"], "concat"
        kind, config = config["layer"]["class_name"], config["layer"]["config"]
    else:
        kind = type(layer).__name__
    options = module._rk_options or PLAIN
    found |= {"class": kind} | {name: config[name] for name in ("units", "use_bias", "go_backwards", "activation")}
    expected |= {
        "class": {"rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}[module._rk_kind[0]],
        "units": module.hidden_size, "use_bias": module.bias, "go_backwards": False,
        "activation": MODES[module.mode][1] or options.activation,
    }  # fmt: skip
    for name in ("recurrent_activation", "reset_after"):
        if name in config:
            found[name], expected[name] = config[name], getattr(options, name)
    for name, value in found.items():
        if value != expected[name]:
            raise ValueError(f"Expected a Keras layer with {name}={expected[name]!r}, but got {value!r}")
