"""``freeze``: a model for inference whose recurrent layers and cells have their weights packed once.

Letters: T time, B batch.
"""

import copy
import weakref

import torch
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from .. import backends
from ..cells.weights import names_of
from ..nn.base import RecurrentBase
from ..nn.cell_modules import CellBase, kind_of_cell
from ..nn.options import refuse_assigned
from ..nn.recurrent import RecurrentCell
from ..op.autograd import recording
from .convert import M, change_class, check_module, class_of, convert


def freeze(model: M) -> M:
    """A copy of a model for inference, whose RNN, LSTM, GRU, ``Recurrent`` and cells keep their weights packed.

    A call of a layer puts its weights into the order in which the kernels on the CPU read them, or reads them in place
    where so few rows and steps do not earn that back. In the copy they are packed once, at the first call of its kind,
    for any T and B: small batches and short sequences get faster, and results are the same up to rounding. (A small
    step of an RNNCell in float32 or float64 is torch's own op, which packs nothing.)

    It is a snapshot: the copy has weights of its own, which must not be changed in place. ``load_state_dict``,
    ``.to()`` and new tensors in their place are noticed, and packed anew. The packed weights take about as much memory
    as the weights, one and a half times as much where they are held in bf16 parts, for each of the one to three forms
    that different T and B want.

    The copy is in evaluation mode, its modules are rnnkernels' own, with the names in ``state_dict`` as before, and its
    parameters require no gradient (an input may). It can be copied, pickled, compiled (after a copy, ``.to()`` or
    pickling, and a call outside of the graph) and exported; exported programs, TorchScript and ONNX do not have the
    packed weights. GPUs: no effect.

    Args:
        model: any module; a recurrent module itself is frozen as well. Parametrizations become plain weights. It is not
            changed. Modules whose class derives from one of torch.nn's stay as they are, with a UserWarning.

    Returns:
        A copy.

    Raises:
        ValueError: for a layer whose calls have other weights than its parameters: with ``heads``, or where others were
            assigned to ``_flat_weights``.
    """
    check_module("freeze", model)
    kinds = (RecurrentBase, CellBase, RecurrentCell)
    for name, module in model.named_modules():
        if isinstance(module, RecurrentBase):
            refuse_assigned("freeze", module)
        options = getattr(module, "_rk_options", None)
        if isinstance(module, RecurrentBase) and options is not None and options.heads > 1:
            raise ValueError(
                f"freeze: expected layers without heads, but {name or 'the model itself'} ({type(module).__name__}) "
                f"has heads={options.heads}"
            )
    frozen = convert(copy.deepcopy(model)).eval()
    for module in frozen.modules():
        if isinstance(module, kinds):
            if is_parametrized(module):
                change_class(module, class_of(module))  # a copy has the original's class, which would lose the weights
                for name in list(module.parametrizations):
                    remove_parametrizations(module, name)
            vars(module)["_rk_packed"] = Packed()
            module._rk_packed.of(weights_of(module))
            module.register_load_state_dict_post_hook(pack_anew)
    return frozen.requires_grad_(False)


class Packed:
    """The packed weights of a module, which the C++ backend keeps as long as this object lives."""

    def __init__(self):
        self.number, self.places, self.held = 0, [], []

    def of(self, weights):
        """Their number for the op; 0 stands for none."""
        if not weights or recording() or not weights[0].is_cpu or backends.EXTENSION_ERROR is not None:
            return 0
        if torch.compiler.is_compiling():
            return self.number
        try:
            places = [w.data_ptr() for w in weights]
        except RuntimeError:  # under a transform of torch.func, or fake ones: they have no data of their own
            return 0
        if places != self.places:
            self.forget()
            self.places, self.held = places, [w.detach() for w in weights]  # no other tensor gets their memory
            self.number = torch.ops.rnnkernels.freeze(self.held)
            self.end = weakref.finalize(self, torch.ops.rnnkernels.unfreeze, self.number)
            self.end.atexit = False
        return self.number

    def forget(self):
        """Free them; the next call packs anew."""
        if self.number:
            self.end()
        self.number, self.places, self.held = 0, [], []

    def __reduce__(self):
        return Packed, ()  # a copy packs for itself


def pack_anew(module, incompatible_keys):
    """After ``load_state_dict``."""
    module._rk_packed.forget()
    module._rk_packed.of(weights_of(module))


def weights_of(module):
    """The weights of a frozen or quantised module in the order in which its calls have them."""
    names = getattr(module, "_weights", None) or getattr(module, "_flat_weights_names", None)
    if names is None:
        cell = module.cell.program.text if isinstance(module, RecurrentCell) else kind_of_cell(module)[0]
        names = names_of(cell, module.bias)
    return [getattr(module, name) for name in names]
