"""``convert`` and ``revert``: turn the recurrent modules of a model into rnnkernels' and back, in place.

Ours hold the same state as torch.nn's, so that a module keeps its identity and only its class changes: parameters,
ties, hooks, buffers, ``training``, further attributes and every reference to the module stay as they are.
"""

import warnings

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .cell_modules import GRUCell, LSTMCell, RNNCell
from .modules import GRU, LSTM, RNN
from .recurrent import Recurrent

TO_OURS = {
    nn.RNN: RNN, nn.LSTM: LSTM, nn.GRU: GRU, nn.RNNCell: RNNCell, nn.LSTMCell: LSTMCell, nn.GRUCell: GRUCell
}  # fmt: skip
TO_TORCH = {ours: theirs for theirs, ours in TO_OURS.items()}


def convert(model: nn.Module) -> nn.Module:
    """Turn every ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and cell in ``model`` into rnnkernels' own, in place.

    Parametrized modules (``torch.nn.utils.parametrize``, weight norm, spectral norm) are converted too. Modules whose
    class derives from one of torch.nn's are left alone, with a UserWarning, because their ``forward`` may be their own.
    A converted module is an ``nn.RNNBase`` (or ``nn.RNNCellBase``) as before, and no longer an ``nn.LSTM``.

    Args:
        model: any module; a recurrent module itself is converted as well.

    Returns:
        ``model``, the same object.
    """
    left = _swap(model, TO_OURS)
    if left:
        warnings.warn(f"convert left subclasses alone: {', '.join(left)}", stacklevel=2)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Turn rnnkernels' modules in ``model`` back into torch.nn's, in place: the inverse of :func:`convert`.

    Args:
        model: any module; a recurrent module itself is reverted as well.

    Returns:
        ``model``, the same object.

    Raises:
        ValueError: for a module with an option that torch.nn does not have; nothing is reverted then.
    """
    for name, module in model.named_modules():
        options = isinstance(module, Recurrent) and module._options
        if options:
            raise ValueError(
                f"revert: torch.nn has no {options.changed()}, which {name or 'the model itself'} "
                f"({type(module).__name__}) has"
            )
    left = _swap(model, TO_TORCH)
    if left:
        warnings.warn(f"revert left subclasses alone: {', '.join(left)}", stacklevel=2)
    return model


def _swap(model, classes):
    """Change classes in place; returns the modules that were left alone because their class is a subclass."""
    left = []
    for name, module in model.named_modules():
        old = type(module)
        if old in classes:
            new = classes[old]
        elif is_parametrized(module) and old.__base__ in classes:
            # parametrize gives each module a class of its own, with a property for every parametrized weight
            base = classes[old.__base__]
            body = {key: value for key, value in vars(old).items() if key not in ("__dict__", "__weakref__")}
            new = type(f"Parametrized{base.__name__}", (base,), body)
        else:
            if isinstance(module, tuple(classes)):
                left.append(f"{name or 'the model itself'} ({old.__name__})")
            continue
        module.__class__ = new
        if isinstance(module, nn.RNNBase):
            # torch.nn keeps a list of its weights, ours reads them by name and needs none
            module.__dict__.pop("_flat_weights", None)
            module._flat_weight_refs = []
            module._init_flat_weights()
    return left
