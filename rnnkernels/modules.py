"""``RNN``, ``LSTM`` and ``GRU``: torch.nn's layers, with the same parameters, arguments, results and errors.

They derive from ``torch.nn.RNNBase`` and not from ``nn.LSTM``, because TorchDynamo refuses the subclasses of that. They
hold no state beyond what torch.nn's have, so that :func:`rnnkernels.convert` can turn one into the other in place, and
they read their parameters by name at every forward: parametrizations, weight norm, weight drop, tied weights and
``functional_call`` are seen at once. Letters: T time, B batch, D directions, H hidden, I input, L layers, P projection.
"""

import torch
from torch import _VF, nn
from torch.nn.utils.rnn import PackedSequence

from .cell_modules import GRUCell, LSTMCell, RNNCell
from .functional import BOTH, FORWARD, layers

__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell"]

MODES = {"RNN_TANH": ("rnn", None), "RNN_RELU": ("rnn", "relu"), "LSTM": ("lstm", None), "GRU": ("gru", None)}


class Recurrent(nn.RNNBase):
    """What the three have in common: everything but the constructor and the form of ``hx``."""

    _wrong_input: str  # what torch.nn says of an input with a wrong number of dimensions

    __setattr__ = nn.Module.__setattr__  # nn.RNNBase's copies weights into ``_flat_weights``
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    @property
    def _flat_weights(self):
        """The weights as they are now. What other code assigns to this is not kept: the weights are read by name."""
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value):
        pass

    def _init_flat_weights(self):
        """Nothing to do: there is no list of weights to keep."""

    def _update_flat_weights(self):
        """Nothing to do: there is no list of weights to keep."""

    def flatten_parameters(self):
        """Nothing to do: the kernels take the weights wherever they are."""

    def _states(self, hx, dims=None):
        """``hx`` as a tuple of states; where ``dims`` is given, they are checked to have as many dimensions."""
        if dims and hx.dim() != dims:
            kind = "batched 3-D" if dims == 3 else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {hx.dim()}-D tensor")
        return (hx,)

    @staticmethod
    def _hidden(last):
        """The final states in the form that ``hx`` has."""
        return last[0]

    def forward(self, input, hx=None):
        """Run the layers over a sequence; see the class."""
        if isinstance(input, PackedSequence):
            if torch.compiler.is_compiling():  # the sizes are data: a graph break, as with torch.nn
                return torch.compiler.disable(self._forward_packed)(input, hx)
            return self._forward_packed(input, hx)
        dims = input.dim()
        if dims != 3 and dims != 2:
            raise ValueError(self._wrong_input.format(dims))
        states = () if hx is None else self._states(hx, dims)
        batch_first = self.batch_first
        if dims == 2:
            y, last = self._layers(input.unsqueeze(1), [s.unsqueeze(1) for s in states])
            return y.squeeze(1), self._hidden([s.squeeze(1) for s in last])
        y, last = self._layers(input.transpose(0, 1) if batch_first else input, states)
        return y.transpose(0, 1) if batch_first else y, self._hidden(last)

    def _layers(self, x, states, lengths=None, drop=torch.dropout):
        """Check and run all layers on x (T, B, I)."""
        parameters, names, H, P = self._parameters, self._flat_weights_names, self.hidden_size, self.proj_size
        try:
            weights = [parameters[name] for name in names]
        except KeyError:  # something else than a parameter has taken the name
            weights = [getattr(self, name) for name in names]
        cell, activation = MODES[self.mode]
        return layers(
            cell, x, states, weights, self.num_layers, BOTH if self.bidirectional else FORWARD, self.bias, P > 0,
            self.input_size, H, P or H, activation, self.dropout if self.training else 0.0, lengths, None, drop,
        )  # fmt: skip

    def _forward_packed(self, packed, hx):
        """Pad, run with lengths, pack again: the kernels skip the padding, and rows stay in their packed order."""
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        if data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
        T, B = batch_sizes.size(0), int(batch_sizes[0])
        if hx is None:
            states = ()
        else:
            states = self._states(hx)
            if sorted_indices is not None:  # the rows of hx are in the order in which the user gave the sequences
                states = [s.index_select(1, sorted_indices) for s in states]
        if int(batch_sizes[-1]) == B:  # every row has all T steps
            y, last = self._layers(data.view(T, B, data.size(1)), states)
            y = y.flatten(0, 1)
        else:
            x, lengths = _VF._pad_packed_sequence(data, batch_sizes, False, 0.0, T)

            def drop(y, p, train):  # draws for the packed rows only, as torch does
                mask = torch.dropout(y.new_ones(data.size(0), y.size(2)), p, train)
                return y * _VF._pad_packed_sequence(mask, batch_sizes, False, 0.0, T)[0]

            y, last = self._layers(x, states, lengths.to(x.device), drop)
            y = _VF._pack_padded_sequence(y, lengths, False)[0]
        if unsorted_indices is not None:
            last = [s.index_select(1, unsorted_indices) for s in last]
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), self._hidden(last)


class RNN(Recurrent):
    """Elman network (Elman 1990): ``h' = act(W_ih x + b_ih + W_hh h + b_hh)``, a drop-in for ``torch.nn.RNN``.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L, layers on top of each other. Default: 1
        nonlinearity: ``"tanh"`` or ``"relu"``. Default: ``"tanh"``
        bias: whether there are ``bias_ih`` and ``bias_hh``. Default: True
        batch_first: input and output are (B, T, ...) instead of (T, B, ...); costs no copy. Default: False
        dropout: probability of zeroing an element of the output of every layer but the last, in training, with the
            random numbers that torch.nn draws. Default: 0
        bidirectional: D = 2 directions instead of 1. Default: False
        device, dtype: of the parameters: float64, float32, bfloat16 or float16.

    ``forward(input, hx=None)``:
        input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) without a batch, or a ``PackedSequence``.
        hx: (L*D, B, H), or (L*D, H) without a batch. Default: zeros

    Returns:
        ``output`` (T, B, D*H) in the layout of the input (a ``PackedSequence`` for one), and ``h_n`` like ``hx``.

    Raises:
        ValueError, RuntimeError, TypeError: where ``torch.nn.RNN`` does, in its words.
    """

    _wrong_input = "RNN: Expected input to be 2D or 3D, got {}D tensor instead"

    def __init__(self, *args, **kwargs):
        no_projection(kwargs)
        if len(args) > 3:
            self.nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__("RNN_TANH" if self.nonlinearity == "tanh" else "RNN_RELU", *args, **kwargs)


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014), a drop-in for ``torch.nn.GRU``: the reset comes after the product.

    ``r, z = sigmoid(W_i x + b_i + W_h h + b_h)``, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``,
    ``h' = (1 - z) n + z h``.

    Arguments, inputs, outputs and errors are those of :class:`RNN`, without ``nonlinearity``.
    """

    _wrong_input = "GRU: Expected input to be 2D or 3D, got {}D instead"

    def __init__(self, *args, **kwargs):
        no_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), a drop-in for ``torch.nn.LSTM``.

    ``i, f, o = sigmoid(W_i x + b_i + W_h h + b_h)``, ``g = tanh(...)`` likewise, ``c' = f c + i g``,
    ``h' = o tanh(c')``, and with a projection (Sak et al. 2014) ``h' = W_hr (o tanh(c'))``.

    Arguments, inputs, outputs and errors are those of :class:`RNN`, without ``nonlinearity``, and with

    Args:
        proj_size: P, the size of h where it is projected; 0 for none. Default: 0

    ``hx`` and the final state are pairs ``(h (L*D, B, P or H), c (L*D, B, H))``.
    """

    _wrong_input = "LSTM: Expected input to be 2D or 3D, got {}D instead"

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden

    def _states(self, hx, dims=None):
        h, c = hx[0], hx[1]
        if dims and (h.dim() != dims or c.dim() != dims):
            kind = "batched 3-D" if dims == 3 else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {dims}-D but got ({h.dim()}-D, {c.dim()}-D) tensors"
            )
        if not isinstance(hx, (tuple, list)):
            raise TypeError(f"lstm(): argument 'hx' must be tuple of Tensors, not {type(hx).__name__}")
        if len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")
        return h, c

    @staticmethod
    def _hidden(last):
        return tuple(last)


def no_projection(kwargs):
    """Refuse ``proj_size`` in torch.nn's words."""
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
