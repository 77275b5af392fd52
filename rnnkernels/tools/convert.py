"""``convert`` and ``revert``: turn the recurrent modules of a model into rnnkernels' and back, in place.

Our modules hold the same state as torch.nn's, so a module keeps its identity and only its class changes: parameters,
ties, hooks, buffers, ``training``, further attributes and every reference to the module stay as they are.
"""

import warnings
from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..nn.base import RecurrentBase
from ..nn.cell_modules import CellBase, GRUCell, LSTMCell, RNNCell
from ..nn.layers import GRU, LSTM, RNN
from ..nn.recurrent import Recurrent
from ..recorders.tracers import LEAF
from .subclasses import obstacle, with_ours

M = TypeVar("M", bound=nn.Module)
TO_OURS = {
    nn.RNN: RNN, nn.LSTM: LSTM, nn.GRU: GRU, nn.RNNCell: RNNCell, nn.LSTMCell: LSTMCell, nn.GRUCell: GRUCell
}  # fmt: skip
TO_TORCH = {ours: theirs for theirs, ours in TO_OURS.items()}


def check_module(who, model):
    """Raise for anything but a module, such as a class of modules or a list of them."""
    if not isinstance(model, nn.Module):
        got = model.__name__ if isinstance(model, type) else f"an object of {type(model).__name__}"
        raise TypeError(f"{who}: expected a module, got {got}")


def convert(model: M, *, subclasses: bool = False) -> M:
    """Turn every ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and cell in ``model`` into rnnkernels' own, in place.

    Parametrized modules (``torch.nn.utils.parametrize``, weight norm, spectral norm) are converted too. Convert last:
    after code that replaces or reloads modules, and before ``torch.compile``. rnnkernels' modules are left as they are.

    Args:
        model: any module; a recurrent module itself is converted as well.
        subclasses: True also converts modules whose class derives from one of torch.nn's: they get a class of the
            same name that derives from their own and has ours before torch.nn's, so that ``super().forward`` is ours;
            a ``nn.LSTM.forward(self, ...)`` by name stays torch.nn's. They stay instances of their old class, by which
            they are pickled, and have no attributes for rnnkernels' options. Subclasses that override something that
            torch.nn's forward calls and ours does not (``check_forward_args``, ``permute_hidden`` ...), or that have
            a name which ours needs, are left alone, with a UserWarning that says why. Default: False, which leaves
            all subclasses alone, with a UserWarning.

    Returns:
        ``model``, the same object.
    """
    check_module("convert", model)
    left = []
    for name, module in model.named_modules():
        if isinstance(module, (RecurrentBase, CellBase)) or not isinstance(module, tuple(TO_OURS)):
            continue
        own = class_of(module)
        new, why = TO_OURS.get(own), None
        if new is None and subclasses:
            ours = next(TO_OURS[base] for base in own.__mro__ if base in TO_OURS)
            why = obstacle(module, own, ours)
            new = None if why else with_ours(own, ours)
        if new is None:
            left.append(f"{name or 'the model itself'} ({own.__name__}{f', {why}' if why else ''})")
        else:
            change_class(module, new)
            vars(module)["__module__"] = LEAF
    if left:
        hint = "" if subclasses else "; subclasses=True converts those that call super().forward"
        warnings.warn(f"convert left subclasses alone: {', '.join(left)}{hint}", stacklevel=2)
    return model


def revert(model: M) -> M:
    """Turn rnnkernels' modules in ``model`` back into torch.nn's, in place: the inverse of :func:`convert`.

    Args:
        model: any module; a recurrent module itself is reverted as well.

    Returns:
        ``model``, the same object.

    Raises:
        ValueError: for a module with an option that torch.nn does not have; nothing is reverted then.
    """
    check_module("revert", model)
    for name, module in model.named_modules():
        options = isinstance(module, RecurrentBase) and module._rk_options
        if options:
            raise ValueError(
                f"revert: torch.nn has no {options.changed()}, which {name or 'the model itself'} "
                f"({type(module).__name__}) has"
            )
    left = []
    for name, module in model.named_modules():
        if not isinstance(module, (RecurrentBase, CellBase)) or isinstance(module, Recurrent):  # torch.nn has none
            continue
        own = class_of(module)
        new = TO_TORCH.get(own) or vars(own).get("_converted_from")
        if new is None:
            left.append(f"{name or 'the model itself'} ({own.__name__})")
        else:
            change_class(module, new)
            vars(module).pop("__module__", None)
    if left:
        warnings.warn(f"revert left subclasses alone: {', '.join(left)}", stacklevel=2)
    return model


def class_of(module):
    """The class of a module, or the one that a parametrized module had before."""
    return type(module).__base__ if is_parametrized(module) else type(module)


def change_class(module, new):
    """Make ``new`` the class of a module, below its parametrizations where it has some."""
    layer, given = isinstance(module, nn.RNNBase), None
    if is_parametrized(module):
        # parametrize gives each module its own class, with a property for every parametrized weight
        body = {key: v for key, v in vars(type(module)).items() if key not in ("__dict__", "__weakref__")}
        new = type(new)(f"Parametrized{new.__name__}", (new,), body)
    elif layer:
        module._update_flat_weights()
        given = module._flat_weights
    module.__class__ = new
    if layer:
        # torch.nn keeps a list of its weights, ours reads them by name and needs none
        vars(module).pop("_flat_weights", None)
        module._flat_weight_refs = []
        module._init_flat_weights()
        if given is not None:  # a program may have put other tensors there
            module._flat_weights = list(given)
