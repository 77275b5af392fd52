"""``quantize_dynamic``: a model for inference whose recurrent layers have int8 weights.

Letters: T time, B batch, D directions, G gates, H hidden, I input, L layers, P output of a step.
"""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from . import backends, ops
from .checks import DTYPE_NAMES, check_inference, check_sizes, check_steps
from .convert import TO_OURS
from .functional import BOTH, FORWARD, layers
from .modules import GRU, LSTM, RNN
from .options import refuse_options
from .recurrent import MODES, Recurrent
from .reference import dequantized
from .tracers import Leaf


def quantize_dynamic(model: nn.Module) -> nn.Module:
    """A copy of a model for inference, in which every RNN, LSTM and GRU multiplies with weights in int8.

    ``weight_ih`` and ``weight_hh`` (G*H, I or P) become ``q * scale`` with int8 ``q`` and a float32 ``scale`` for each
    row: the largest magnitude in it over 127. Where the processor multiplies bytes (AVX512_VNNI, AMX), every row of the
    input and of h becomes int8 in the same way at each step ("dynamic"), and the sums are exact; elsewhere, GPUs
    included, they are multiplied as floats with ``q * scale``. Biases, ``weight_hr`` and all else stay float32. After
    Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference".

    Quantised layers take and return what the layers they stand for do, apply no dropout, and know no gradients. A row
    of the batch in which NaN or infinity turns up gives NaN from then on (infinity may saturate, where floats are
    multiplied), and the other rows do not notice.

    Args:
        model: any module; a recurrent module itself is quantised as well. Its recurrent layers are torch.nn's or
            rnnkernels', parametrized or not, in float32. It is left as it was. Cells (``LSTMCell`` ...) stay as they
            are, and so do, with a UserWarning, modules whose class derives from a layer's. Forward hooks on the
            recurrent modules themselves do not come along.

    Returns:
        A copy, with a :class:`QuantizedRNN`, :class:`QuantizedLSTM` or :class:`QuantizedGRU` for each layer.

    Raises:
        ValueError: for weights that are not float32, or not finite, and for a layer with an option that torch.nn does
            not have and that counts in inference.
    """
    quantized, left = {}, []
    for name, module in model.named_modules():
        base = type(module).__base__ if is_parametrized(module) else type(module)
        if base in QUANTIZED:
            try:
                quantized[id(module)] = QUANTIZED[base](module)
            except ValueError as error:
                raise ValueError(f"quantize_dynamic: {name + '.' if name else ''}{error}") from None
        elif isinstance(module, tuple(QUANTIZED)):
            left.append(f"{name or 'the model itself'} ({base.__name__})")
    if left:
        warnings.warn(f"quantize_dynamic left subclasses alone: {', '.join(left)}", stacklevel=2)
    return copy.deepcopy(model, quantized)  # wherever the model refers to one of these, the copy has the quantised one


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) as ``q`` int8 (N, K) and ``scale`` float32 (N,): ``q * scale`` is off by half a scale at most."""
    largest = weight.abs().amax(1) if weight.size(1) else weight.new_zeros(weight.size(0))
    scale = largest / 127
    q = (weight.double() / scale.double().clamp(min=1e-300)[:, None]).round().clamp(-127, 127)
    return q.to(torch.int8), scale


class QuantizedRecurrent(Leaf, nn.Module):
    """What the three have in common. The weights are buffers, named as those of the layer, with ``_scale`` beside them.

    Made by :func:`quantize_dynamic`.
    """

    forward, _forward_more, _forward_packed = Recurrent.forward, Recurrent._forward_more, Recurrent._forward_packed
    extra_repr = nn.RNNBase.extra_repr
    dropout = 0.0

    def __init__(self, module: nn.RNNBase):
        refuse_options(f"a {type(self).__name__}", module)
        super().__init__()
        for name in (
            "mode", "input_size", "hidden_size", "proj_size", "num_layers", "bias", "batch_first", "bidirectional"
        ):  # fmt: skip
            setattr(self, name, getattr(module, name))
        self._weights, self._scales = [name for names in module._all_weights for name in names], []
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
        self.train(module.training)

    def __prepare_scriptable__(self):
        """What ``torch.jit.script`` calls first."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__} of rnnkernels, which rnnkernels.revert does not "
            "turn into torch.nn's: script the model that was quantised, after rnnkernels.revert(model)"
        )

    def _layers(self, x, states, lengths=None, drop=None, reset=None, more=None):
        """Check and run all layers on x (T, B, I)."""
        if reset is not None or more:
            raise ValueError(f"a {type(self).__name__} has no reset and no return_cell_states")
        for name, t in zip(("input", "h_0", "c_0"), (x, *states), strict=False):
            if t.dtype != torch.float32:
                raise ValueError(f"{type(self).__name__} takes float32, but got {DTYPE_NAMES.get(t.dtype, t.dtype)}")
            check_inference(f"a {type(self).__name__}", name, t)
        L, D, H, P = self.num_layers, 1 + self.bidirectional, self.hidden_size, self.proj_size
        check_sizes(x, states, L, D, self.input_size, H, P or H)
        check_steps(x)
        cell, activation = MODES[self.mode]
        buffers = self._buffers
        weights, scales = [buffers[name] for name in self._weights], [buffers[name] for name in self._scales]
        if backends.forced() in (None, "cpp" if x.is_cpu and backends.EXTENSION_ERROR is None else None):
            return ops.stack(
                x, states, weights, cell, L, self.bidirectional, self.bias, H, P, activation, lengths, scales
            )  # fmt: skip
        return layers(  # the forced backend, in floats
            cell, x, states, dequantized(weights, scales), L, BOTH if self.bidirectional else FORWARD, self.bias, P > 0,
            self.input_size, H, P or H, activation, lengths=lengths,
        )  # fmt: skip


class QuantizedRNN(QuantizedRecurrent):
    """An :class:`rnnkernels.RNN` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    _wrong_input, _states, _hidden = RNN._wrong_input, RNN._states, staticmethod(RNN._hidden)


class QuantizedLSTM(QuantizedRecurrent):
    """An :class:`rnnkernels.LSTM` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    _wrong_input, _states, _hidden = LSTM._wrong_input, LSTM._states, staticmethod(LSTM._hidden)


class QuantizedGRU(QuantizedRecurrent):
    """A :class:`rnnkernels.GRU` with int8 weights, for inference; see :func:`quantize_dynamic`."""

    _wrong_input, _states, _hidden = GRU._wrong_input, GRU._states, staticmethod(GRU._hidden)


QUANTIZED = {RNN: QuantizedRNN, LSTM: QuantizedLSTM, GRU: QuantizedGRU}
QUANTIZED |= {theirs: QUANTIZED[ours] for theirs, ours in TO_OURS.items() if ours in QUANTIZED}
