"""``freeze``: a model for inference whose recurrent layers and cells have their weights packed once.

Letters: T time, B batch.
"""

import copy
import weakref

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from .. import backends
from ..nn.base import RecurrentBase
from ..nn.cell_modules import CellBase
from ..nn.recurrent import RecurrentCell
from ..op.autograd import recording
from .convert import convert


def freeze(model: nn.Module) -> nn.Module:
    """A copy of a model for inference, whose RNN, LSTM, GRU, ``Recurrent`` and cells keep their weights packed.

    A call of a layer puts its weights into the order in which the kernels on the CPU read them, which is most of the
    time of a short one (a single step, a row or two). In the copy this is done once, at the first call of its kind, for
    any T and B: small batches and short sequences get faster, and results have the same numbers up to rounding.

    It is a snapshot: the copy has weights of its own, which must not be changed in place. ``load_state_dict``,
    ``.to()`` and new tensors in their place are noticed, and packed anew. The packed weights take about as much memory
    as the weights, one and a half times as much where they are held in bf16 parts, for each of the one to three forms
    that different T and B want.

    The copy is in evaluation mode, its modules are rnnkernels' own, with the names in ``state_dict`` as before, and its
    parameters require no gradient (an input may). It can be copied, pickled, compiled and exported; exported programs,
    TorchScript and ONNX do not have the packed weights. GPUs: no effect.

    Args:
        model: any module; a recurrent module itself is frozen as well. Parametrizations become plain weights. It is not
            changed. Modules whose class derives from one of torch.nn's stay as they are, with a UserWarning.

    Returns:
        A copy.

    Raises:
        ValueError: for a layer with ``heads``, whose calls have other weights than its parameters.
    """
    kinds = (RecurrentBase, CellBase, RecurrentCell)
    for name, module in model.named_modules():
        options = getattr(module, "_options", None)
        if isinstance(module, RecurrentBase) and options is not None and options.heads > 1:
            raise ValueError(
                f"freeze: expected layers without heads, but {name or 'the model itself'} ({type(module).__name__}) "
                f"has heads={options.heads}"
            )
    frozen = convert(copy.deepcopy(model)).eval()
    for module in frozen.modules():
        if isinstance(module, kinds):
            for name in list(getattr(module, "parametrizations", ())) if is_parametrized(module) else ():
                remove_parametrizations(module, name)
            vars(module)["_packed"] = Packed()
            module.register_load_state_dict_post_hook(pack_anew)
    return frozen.requires_grad_(False)


class Packed:
    """The packed weights of a module, which the C++ backend keeps as long as this object lives."""

    def __init__(self):
        self.number, self.first = 0, None

    def of(self, weights):
        """Their number for the op; 0 stands for none."""
        if recording() or not weights[0].is_cpu or backends.EXTENSION_ERROR is not None:
            return 0
        if torch.compiler.is_compiling():
            return self.number
        if self.first != weights[0].data_ptr():
            self.forget()
            self.number, self.first = torch.ops.rnnkernels.freeze(weights), weights[0].data_ptr()
            self.end = weakref.finalize(self, torch.ops.rnnkernels.unfreeze, self.number)
            self.end.atexit = False
        return self.number

    def forget(self):
        """Free them; the next call packs anew."""
        if self.number:
            self.end()
        self.number, self.first = 0, None

    def __reduce__(self):
        return Packed, ()  # a copy packs for itself


def pack_anew(module, incompatible_keys):
    """After ``load_state_dict``."""
    module._packed.forget()
