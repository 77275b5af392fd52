"""``RNN``, ``LSTM`` and ``GRU``: torch.nn's layers, with the same parameters, arguments, results and errors, and more.

base.py runs a call. Arguments of constructors and results of calls are written out for type checkers alone.
Letters: T time, B batch, D directions, G gates, H hidden, I input, L layers, N heads, P projection.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .base import RecurrentBase
from .cell_modules import GRUCell, LSTMCell, RNNCell
from .options import Option

if TYPE_CHECKING:
    import torch
    from torch.types import Device
    from typing_extensions import Unpack

    from .signatures import GRUOptions, LSTMOptions, OneState, Options, TwoStates

__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell"]


class RNN(RecurrentBase, nn.RNN):
    """Elman network (Elman 1990): ``h' = act(W_ih x + b_ih + W_hh h + b_hh)``, a drop-in for ``torch.nn.RNN``.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L, layers on top of each other. Default: 1
        nonlinearity: ``"tanh"`` or ``"relu"``. Default: ``"tanh"``
        bias: False for no ``bias_ih`` and ``bias_hh``. Default: True
        batch_first: input and output are (B, T, ...) instead of (T, B, ...); costs no copy in inference, and in
            training one of the input, as in torch.nn, which may be refilled before the backward pass. Default: False
        dropout: probability of zeroing an element of the output of every layer but the last, in training, with the
            random numbers that torch.nn draws. Default: 0
        bidirectional: D = 2 directions instead of 1. Default: False
        device, dtype: of the parameters: float64, float32, bfloat16 or float16.

    Options that torch.nn does not have, keyword-only. Probabilities are from 0 to below 1, and can be assigned later:
        recurrent_dropout: probability of zeroing an element of h before the recurrent product, in training, with one
            mask per sequence and layer (Gal & Ghahramani 2016, "A theoretically grounded application of dropout in
            recurrent neural networks"); the other elements are scaled by 1 / (1 - p), as in Keras. Default: 0
        zoneout: probability of a state to stay as it was before the step (Krueger et al. 2017, "Zoneout: regularizing
            RNNs by randomly preserving hidden activations"), drawn anew for every step and unit in training; in eval
            ``p * old + (1 - p) * new``. The next step and the output see that state. Default: 0
        layer_norm: normalise the two products (Ba et al. 2016, "Layer normalization"): ``LN(W_ih x) * g_x`` and
            ``LN(W_hh h) * g_h`` in their place, over the G*H units of all gates of a layer and
            direction, before the biases. Adds ``ln_x_gain_l0`` and ``ln_h_gain_l0`` (G*H) and so on. Default: False
        recompute: save only the output (and c) for the backward pass, which computes the gates again, a layer at a
            time, by products over many steps (Chen et al. 2016, "Training deep nets with sublinear memory cost"). It
            saves memory in stacks of layers, not in a single one. Default: False
        heads: N, cuts h into N parts without weights between them in the recurrent product (the block-diagonal
            recurrence of Beck et al. 2024, "xLSTM", and of DreamerV3): ``weight_hh`` is (N, G*H/N, H/N), and all else,
            the order of the gates in ``weight_ih`` (G*H, I) included, is as before: head n has the units n*H/N to
            (n+1)*H/N of each gate. Not with ``layer_norm`` or ``proj_size``. Default: 1

    ``forward(input, hx=None, lengths=None, reset=None, return_cell_states=False)``:
        input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) without a batch, or a ``PackedSequence``.
        hx: (L*D, B, H), or (L*D, H) without a batch. Default: zeros
        lengths: integers (B,) from 0 to T in any order, on the CPU or the input's device: row b ends after lengths[b]
            steps. The output is zero from there on, and the final state is that after the row's last step (the initial
            one for length 0): the results of packing, without packing. Not with a ``PackedSequence``. Default: all T
        reset: bool (T, B), (B, T) with ``batch_first`` or (T,) without a batch: in every layer the state that enters a
            flagged step is zero; or a pair of that and of the states to restart from, like ``hx``. No gradient crosses
            it. Not with ``bidirectional`` or a ``PackedSequence``. Default: none
        return_cell_states: for LSTM.

    Returns:
        ``output`` (T, B, D*H) in the layout of the input (a ``PackedSequence`` for one), and ``h_n`` like ``hx``.

    Raises:
        ValueError, RuntimeError, TypeError: as ``torch.nn.RNN`` does, with its messages, and for the cases above.
            Wrong values of ``lengths`` that lie on a GPU are a device-side assertion, which can be switched off: see
            :func:`rnnkernels.checks.device_assertions`.
    """

    _rk_wrong_input = "RNN: Expected input to be 2D or 3D, got {}D tensor instead"

    if TYPE_CHECKING:
        __call__: OneState
        forward: OneState

        def __init__(
            self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
            batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
            device: Device = None, dtype: torch.dtype | None = None, **options: Unpack[Options],
        ) -> None: ...  # fmt: skip

    else:

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            no_projection(kwargs)
            if len(args) > 3:
                self.nonlinearity, args = args[3], args[:3] + args[4:]
            else:
                self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
            if self.nonlinearity not in ("tanh", "relu"):
                raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
            super().__init__("RNN_TANH" if self.nonlinearity == "tanh" else "RNN_RELU", *args, **kwargs)


class GRU(RecurrentBase, nn.GRU):
    """Gated recurrent unit (Cho et al. 2014), a drop-in for ``torch.nn.GRU``: the reset comes after the product.

    ``r, z = sigmoid(W_i x + b_i + W_h h + b_h)``, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``,
    ``h' = (1 - z) n + z h``.

    Arguments, inputs, outputs and errors are those of :class:`RNN`, without ``nonlinearity``, and with

    Args:
        reset_after: False for the GRU of Cho et al. 2014 and of the textbooks, which resets before the product:
            ``n = tanh(W_in x + b_in + W_hn (r h) + b_hn)``. With ``layer_norm`` its two products are normalised apart,
            r and z together as in Ba et al. 2016. Default: True
        activation: of the candidate n: ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"hard_sigmoid"`` (x/6 + 1/2 between 0
            and 1, as in torch and Keras 3) or ``"linear"``. Default: ``"tanh"``
        recurrent_activation: of the gates r and z: one of the same. Default: ``"sigmoid"``
    """

    reset_after, activation, recurrent_activation = Option(), Option(), Option()
    _rk_wrong_input = "GRU: Expected input to be 2D or 3D, got {}D instead"

    if TYPE_CHECKING:
        __call__: OneState
        forward: OneState

        def __init__(
            self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
            batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
            device: Device = None, dtype: torch.dtype | None = None, **options: Unpack[GRUOptions],
        ) -> None: ...  # fmt: skip

    else:

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            no_projection(kwargs)
            super().__init__("GRU", *args, **kwargs)


class LSTM(RecurrentBase, nn.LSTM):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), a drop-in for ``torch.nn.LSTM``.

    ``i, f, o = sigmoid(W_i x + b_i + W_h h + b_h)``, ``g = tanh(...)`` likewise, ``c' = f c + i g``,
    ``h' = o tanh(c')``, and with a projection (Sak et al. 2014) ``h' = W_hr (o tanh(c'))``.

    Arguments, inputs, outputs and errors are those of :class:`RNN`, without ``nonlinearity``, and with

    Args:
        proj_size: P, the size of h where it is projected; 0 for none. Default: 0
        zoneout: p, or a pair of them for h and for c.
        layer_norm: normalises c on its way to the output too, ``o tanh(LN(c') * g_c + b_c)``, with ``ln_c_gain_l0``
            and ``ln_c_bias_l0`` (H); as in haste and in TorchScript's example.
        activation: of g and of c' in the output; as for :class:`GRU`. Default: ``"tanh"``
        recurrent_activation: of i, f and o; as for :class:`GRU`. Default: ``"sigmoid"``

    ``hx`` and the final state are pairs ``(h (L*D, B, P or H), c (L*D, B, H))``. With ``return_cell_states`` the result
    is ``(output, (h_n, c_n), c)``: c after every step of the last layer, (T, B, D*H) laid out like the output, and zero
    past ``lengths`` (as R2D2 and models of hydrology want it).
    """

    activation, recurrent_activation = Option(), Option()

    _rk_wrong_input = "LSTM: Expected input to be 2D or 3D, got {}D instead"

    if TYPE_CHECKING:
        __call__: TwoStates
        forward: TwoStates

        def __init__(
            self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
            batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
            device: Device = None, dtype: torch.dtype | None = None, **options: Unpack[LSTMOptions],
        ) -> None: ...  # fmt: skip

    else:

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__("LSTM", *args, **kwargs)

    def _rk_states(self, hx: Any, dims: int | None = None) -> tuple[Tensor, Tensor]:
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
    def _rk_hidden(last: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(last)


def no_projection(kwargs: dict[str, Any]) -> None:
    """Refuse ``proj_size`` in torch.nn's words."""
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
