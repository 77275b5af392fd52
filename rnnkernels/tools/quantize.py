"""``quantize_dynamic``: a model for inference whose recurrent layers and cells have int8 weights.

Letters: T time, B batch, D directions, G gates, H hidden, I input, L layers, P output of a step.
"""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .. import backends
from ..cells import spec_of
from ..cells.reference import dequantized
from ..cells.weights import names_of
from ..nn.base import MODES, RecurrentBase
from ..nn.cell_modules import (
    CellBase,
    GRUCell,
    LSTMCell,
    RNNCell,
    check_cell_sizes,
    kind_of_cell,
)
from ..nn.checks import DTYPE_NAMES, check_inference, check_sizes, check_steps
from ..nn.functional import BOTH, FORWARD, layers
from ..nn.layers import GRU, LSTM, RNN
from ..nn.options import refuse_options
from ..nn.own_cells import check_extras, extras_of
from ..nn.recurrent import Recurrent, RecurrentCell
from ..op import run as op
from ..op import vmap
from ..op.autograd import eager, transforming
from ..op.schema import STEP
from ..recorders import onnx
from ..recorders.tracers import Leaf
from .convert import TO_OURS, check_module
from .freeze import Packed, pack_anew, weights_of


def quantize_dynamic(model: nn.Module, *, activations: str = "int8") -> nn.Module:
    """A copy of a model for inference, in which every RNN, LSTM, GRU, ``Recurrent`` and cell has weights in int8.

    ``weight_ih`` and ``weight_hh`` (G*H, I or P) become ``q * scale`` with int8 ``q`` and a float32 ``scale`` for each
    row: the largest magnitude in it over 127. On processors that multiply bytes (AVX512_VNNI, AMX), every row of
    the input and of h becomes int8 in the same way at each step ("dynamic"), and the sums are exact; elsewhere, GPUs
    included, and in a cell of one's own with a product inside the step, they are multiplied as floats with
    ``q * scale``. Biases, ``weight_hr`` and all else stay float32. After Jacob et al. 2018, "Quantization and training
    of neural networks for efficient integer-arithmetic-only inference".

    A row has one scale, so that entries below 1/254 of its largest become zero. For rows whose small entries matter
    beside large ones (power spectra, prices beside counts), ``activations="float"`` leaves rows as they are: only the
    weights are int8, and become floats again at every call, which saves memory and no time.

    Quantised modules have the arguments and results of the modules that they replace, apply no dropout, and have no
    gradients. A row of the batch with NaN or infinity gives NaN from that step on (infinity may saturate, where floats
    are multiplied); the other rows are not affected.

    Args:
        model: any module; a recurrent module itself is quantised as well. Its recurrent layers are torch.nn's or
            rnnkernels', parametrized or not, in float32; so are its cells. It is not changed. Modules whose class
            derives from one of these stay as they are, with a UserWarning. Forward hooks on the recurrent modules
            themselves are not copied.
        activations: ``"int8"``, or ``"float"`` for rows of the input and of h that stay float32 on every processor.

    Returns:
        A copy, with a :class:`QuantizedRNN`, :class:`QuantizedLSTM`, :class:`QuantizedGRU` or
        :class:`QuantizedRecurrent` for each layer, and a :class:`QuantizedRNNCell`, :class:`QuantizedLSTMCell`,
        :class:`QuantizedGRUCell` or :class:`QuantizedRecurrentCell` for each cell. Those of a cell of one's own that
        has neither weight stay as they are.

    Raises:
        ValueError: for weights that are not float32, or not finite, for a layer with an option that torch.nn does not
            have and that counts in inference, and for other ``activations``.
    """
    check_module("quantize_dynamic", model)
    if activations not in ("int8", "float"):
        raise ValueError(f"Expected activations to be 'int8' or 'float', but got {activations!r}")
    quantized, left = {}, []
    for name, module in model.named_modules():
        base = type(module).__base__ if is_parametrized(module) else type(module)
        if base in QUANTIZED:
            if isinstance(module, (Recurrent, RecurrentCell)) and not has_matrices(module.cell):
                continue
            try:
                quantized[id(module)] = QUANTIZED[base](module, activations)
            except ValueError as error:
                raise ValueError(f"quantize_dynamic: {name + '.' if name else ''}{error}") from None
        elif isinstance(module, tuple(QUANTIZED)):
            left.append(f"{name or 'the model itself'} ({base.__name__})")
    if left:
        warnings.warn(f"quantize_dynamic left subclasses alone: {', '.join(left)}", stacklevel=2)
    return copy.deepcopy(model, quantized)  # the copy has the quantised module at each reference


def has_matrices(cell):
    """True if a cell of one's own has a weight that becomes int8."""
    return not {"weight_ih", "weight_hh"}.isdisjoint(names_of(cell.program.text))


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) as ``q`` int8 (N, K) and ``scale`` float32 (N,); ``q * scale`` errs by at most scale / 2."""
    largest = weight.abs().amax(1) if weight.size(1) else weight.new_zeros(weight.size(0))
    scale = largest / 127
    q = (weight.double() / scale.double().clamp(min=1e-300)[:, None]).round().clamp(-127, 127)
    return q.to(torch.int8), scale


class Quantized(Leaf, nn.Module):
    """A module with int8 weights: buffers with the names of the original's parameters, and ``_scale`` beside them.

    Made by :func:`quantize_dynamic`.
    """

    activations, _names = "int8", ("h_0", "c_0")  # those of states

    def __init__(self, module: nn.Module, settings, weights, activations):
        refuse_options(f"a {type(self).__name__}", module)
        super().__init__()
        for name in settings:
            setattr(self, name, getattr(module, name))
        if activations != "int8":
            self.activations = activations
        self._weights, self._scales = list(weights), []
        for name in self._weights:
            weight = getattr(module, name).detach()
            if weight.dtype != torch.float32:
                raise ValueError(f"{name} must be float32, but is {str(weight.dtype).removeprefix('torch.')}")
            if name.startswith(("weight_ih", "weight_hh")):
                if not weight.isfinite().all():
                    raise ValueError(f"{name} must be finite, but holds NaN or infinity")
                weight, scale = quantize_rows(weight)
                self._scales.append(f"{name}_scale")
                self.register_buffer(self._scales[-1], scale)
            self.register_buffer(name, weight.clone())
        self._rk_packed = Packed()
        self._rk_packed.of(weights_of(self))
        self.register_load_state_dict_post_hook(pack_anew)
        self.train(module.training)

    def __prepare_scriptable__(self):
        """Refuse ``torch.jit.script``, which calls this first."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__} of rnnkernels, which rnnkernels.revert does not "
            "turn into torch.nn's: script the model that was quantised, after rnnkernels.revert(model)"
        )

    def extra_repr(self):
        """The original's arguments that are not at their defaults, and ``activations``."""
        changed = "" if self.activations == "int8" else f", activations={self.activations!r}"
        return self._like.extra_repr(self) + changed

    def _check(self, x, states, extras=()):
        """Check that input, states and extra inputs are float32 and require no gradient."""
        states = zip(self._names, states, strict=False)
        for name, t in (("input", x), *states, *extras):
            if t.dtype != torch.float32:
                raise ValueError(f"{type(self).__name__} takes float32, but got {DTYPE_NAMES.get(t.dtype, t.dtype)}")
            check_inference(f"a {type(self).__name__}", name, t)

    def _tensors(self):
        """The weights, and the scales of those that are int8."""
        buffers = self._buffers
        return [buffers[name] for name in self._weights], [buffers[name] for name in self._scales]

    def _run(self, cell, activation, x, states, L, bidirectional, P, lengths=None, extras=()):
        """All layers on x (T, B, I), with checked sizes."""
        (weights, scales), H = self._tensors(), self.hidden_size
        if not torch.compiler.is_compiling():
            states, extras = op.resolved(states), op.resolved(extras)
        own = backends.forced() in (None, "cpp" if x.is_cpu and backends.EXTENSION_ERROR is None else None)
        graph = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        if own and not (graph and onnx.exporting()):
            if transforming():
                x = vmap.shown(x, (*states, *extras))
            float_rows = (True,) if self.activations == "float" else ()
            more = op.rare(0, self._rk_packed.of(weights)) | ({"extras": extras} if extras else {})
            return op.plain("stack")(
                x, states, weights, cell, L, bidirectional, self.bias, H, P, activation, lengths, scales, *float_rows,
                **more,
            )  # fmt: skip
        return layers(  # the forced backend or ONNX, in floats
            cell, x, states, dequantized(weights, scales), L, BOTH if bidirectional else FORWARD, self.bias, P > 0,
            self.input_size, H, P or H, activation, lengths=lengths, extras=extras,
        )  # fmt: skip


class QuantizedLayer(Quantized):
    """The base class of the layers."""

    forward, _rk_forward_more, _rk_forward_packed = (
        RecurrentBase.forward,
        RecurrentBase._rk_forward_more,
        RecurrentBase._rk_forward_packed,
    )
    _rk_outside_graphs = staticmethod(RecurrentBase._rk_outside_graphs)
    _rk_overridden = None
    _like, dropout = nn.RNNBase, 0.0

    def __init__(self, module: nn.RNNBase, activations="int8"):
        settings = (
            "mode", "input_size", "hidden_size", "proj_size", "num_layers", "bias", "batch_first", "bidirectional"
        )  # fmt: skip
        super().__init__(module, settings, [name for names in module._all_weights for name in names], activations)

    def _rk_layers(self, x, states, lengths=None, drop=None, reset=None, more=None):
        """Check and run all layers on x (T, B, I)."""
        more = dict(more or {})
        extras = more.pop("extras", ())
        if reset is not None or more:
            raise ValueError(f"a {type(self).__name__} has no reset and no return_cell_states")
        self._check(x, states, extras)
        L, D, H, P = self.num_layers, 1 + self.bidirectional, self.hidden_size, self.proj_size
        check_sizes(x, states, L, D, self.input_size, H, P or H)
        check_steps(x)
        return self._run(*self._rk_kind, x, states, L, self.bidirectional, P, lengths, extras)

    @property
    def _rk_kind(self):
        return MODES[self.mode]


class QuantizedRNN(QuantizedLayer):
    """An :class:`rnnkernels.RNN` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    _rk_wrong_input, _rk_states, _rk_hidden = RNN._rk_wrong_input, RNN._rk_states, staticmethod(RNN._rk_hidden)


class QuantizedLSTM(QuantizedLayer):
    """An :class:`rnnkernels.LSTM` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    _rk_wrong_input, _rk_states, _rk_hidden = LSTM._rk_wrong_input, LSTM._rk_states, staticmethod(LSTM._rk_hidden)


class QuantizedGRU(QuantizedLayer):
    """A :class:`rnnkernels.GRU` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    _rk_wrong_input, _rk_states, _rk_hidden = GRU._rk_wrong_input, GRU._rk_states, staticmethod(GRU._rk_hidden)


class QuantizedOwn(Quantized):
    """What layers and cells of a cell of one's own have besides."""

    def extra_repr(self):
        """The cell, and as for any other."""
        constants = "".join(f", {name}={value}" for name, value in self.cell.constants.items())
        return f"{self.cell.program.name}, {super().extra_repr()}{constants}"

    def _check(self, x, states, extras):
        check_extras(self.cell.program, extras, x, self.hidden_size)
        super()._check(x, states, zip(extras_of(self.cell.program), extras, strict=True))

    @property
    def _names(self):
        return self.cell.program.states


class QuantizedRecurrent(QuantizedOwn, QuantizedLayer):
    """An :class:`rnnkernels.Recurrent` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    forward, _rk_wrong_input, _rk_states, _rk_hidden = (
        Recurrent.forward, Recurrent._rk_wrong_input, Recurrent._rk_states, Recurrent._rk_hidden
    )  # fmt: skip

    def __init__(self, module: Recurrent, activations="int8"):
        super().__init__(module, activations)
        self.cell, self._kernel = module.cell, module._kernel

    @property
    def _rk_kind(self):
        return self._kernel, None


class QuantizedCell(Quantized):
    """The base class of the built-in cells."""

    _like, _rk_single_state = nn.RNNCellBase, CellBase._rk_single_state

    def __init__(self, module: nn.RNNCellBase, activations="int8"):
        settings = ["input_size", "hidden_size", "bias"]
        if hasattr(module, "nonlinearity"):
            settings.append("nonlinearity")
        super().__init__(module, settings, names_of(kind_of_cell(module)[0], module.bias), activations)

    def _rk_step(self, cell, activation, input, hx):
        """The states after one step, each (B, H), or (H,) for an input without a batch."""
        if input.dim() == 1:
            return [s.squeeze(0) for s in self._rk_step(cell, activation, input[None], [s[None] for s in hx])]
        self._check(input, hx)
        check_cell_sizes(input, hx, self.input_size, self.hidden_size)
        if self.hidden_size == 0:  # as torch.nn's: nothing to compute
            return [input.new_zeros(len(input), 0) for _ in range(spec_of(cell).states)]
        if input.is_cpu and STEP is not None and eager():
            (weights, scales), float_rows = self._tensors(), self.activations == "float"
            return STEP(
                input, op.resolved(hx), weights, cell, self.bias, self.hidden_size, activation, scales, float_rows, 0,
                self._rk_packed.of(weights),
            )  # fmt: skip
        _, last = self._run(cell, activation, input[None], [s[None] for s in hx], 1, False, 0)
        return [s.squeeze(0) for s in last]


class QuantizedRNNCell(QuantizedCell):
    """An :class:`rnnkernels.RNNCell` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    forward, _rk_name = RNNCell.forward, RNNCell._rk_name


class QuantizedLSTMCell(QuantizedCell):
    """An :class:`rnnkernels.LSTMCell` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    forward = LSTMCell.forward


class QuantizedGRUCell(QuantizedCell):
    """A :class:`rnnkernels.GRUCell` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    forward, _rk_name = GRUCell.forward, GRUCell._rk_name


class QuantizedRecurrentCell(QuantizedOwn):
    """An :class:`rnnkernels.RecurrentCell` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    forward, _like = RecurrentCell.forward, nn.RNNCellBase

    def __init__(self, module: RecurrentCell, activations="int8"):
        names = names_of(module.cell.program.text, module.bias)
        super().__init__(module, ("cell", "input_size", "hidden_size", "bias"), names, activations)

    def _rk_step(self, x, states, extras):
        """A layer of one step: x (1, B, I), states (1, B, H)."""
        self._check(x, states, extras)
        check_sizes(x, states, 1, 1, self.input_size, self.hidden_size, self.hidden_size)
        return self._run(self.cell.kernel, None, x, states, 1, False, 0, extras=extras)


QUANTIZED = {
    RNN: QuantizedRNN, LSTM: QuantizedLSTM, GRU: QuantizedGRU, Recurrent: QuantizedRecurrent,
    RNNCell: QuantizedRNNCell, LSTMCell: QuantizedLSTMCell, GRUCell: QuantizedGRUCell,
    RecurrentCell: QuantizedRecurrentCell,
}  # fmt: skip
QUANTIZED |= {theirs: QUANTIZED[ours] for theirs, ours in TO_OURS.items()}
