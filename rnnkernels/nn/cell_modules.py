"""``RNNCell``, ``LSTMCell`` and ``GRUCell``: torch.nn's cells, one step of the same op as the layers.

In eager mode on the CPU torch's own op computes a step in float32 or float64 where it is faster: torchs_step.py.
Letters: B batch, G gates, H hidden, I input.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.types import Device

from ..cells.call import LayerCall
from ..cells.weights import names_of
from ..op import precision
from ..op import run as op
from ..op.autograd import autocast_enabled, eager, may_change, wants_gradient
from ..op.schema import STEP
from ..recorders.tracers import Leaf
from . import torchs_step
from .checks import aside, check_dtype, check_placement, check_weights, refuse_nested

if TYPE_CHECKING:
    from .signatures import CellOfOneState, CellOfTwoStates


class CellBase(Leaf, nn.RNNCellBase):
    """The base class of the three cells: one step from x (B, I) and the states (B, H), all of them checked."""

    _rk_packed = None  # see tools/freeze.py

    def _rk_step(self, cell, activation, input, hx):
        """The states after one step, each (B, H), or (H,) for an input without a batch.

        Args:
            input: (B, I) or (I,).
            hx: the states, each (B, H) or (H,); none for zeros.
        """
        parameters, H = () if self._rk_own_reads else self._parameters, self.hidden_size
        bias = parameters["bias_ih"] is not None if "bias_ih" in parameters else self.bias
        weights = [parameters[name] if name in parameters else getattr(self, name) for name in names_of(cell, bias)]
        if input.dim() == 1:
            new = self._rk_step(cell, activation, input[None], [s[None] for s in hx])
            return [s.squeeze(0) for s in new]
        if input.layout != torch.strided:
            input = input.to_dense(masked_grad=False)
        training, here = torch.is_grad_enabled() and wants_gradient((input, *hx, *weights)), input.is_cpu and eager()
        if here and torchs_step.why_for_cell(cell, input.dtype, input.size(0), H, training):
            return torchs_step.step(cell, activation, input, hx, weights, H)
        parts, packed, refused = precision.parts(input), self._rk_packed.of(weights) if self._rk_packed else 0, None
        if here and not training and H and STEP is not None:
            rare = (activation,) if activation else ()
            try:  # the op checks the same as `check_step`, which has torch's error messages
                return STEP(input, op.resolved(hx), weights, cell, bias, H, *rare, **op.rare(parts, packed))
            except RuntimeError as error:
                refused = error
        check_step(cell, input, hx, weights, bias, H)
        if refused is not None:
            raise refused
        x, states = input.unsqueeze(0), [s.unsqueeze(0) for s in hx]
        call = LayerCall(cell, x, states, weights, bias=bias, activation=activation, parts=parts, packed=packed)
        if cell != "rnn" and input.is_cpu and autocast_enabled("cpu"):
            y, last = with_autocast(call, hx[-1] if hx else input)
        else:
            y, last = op.layer(call)
        return [s.squeeze_(0) if may_change(s) else s.squeeze(0) for s in (y, *last[1:])]

    def _rk_single_state(self, input, hx):
        """``hx`` as a tuple of states, for the cells that have one; the number of dimensions is checked."""
        name = self._rk_name
        dims = input.dim()
        if input.is_nested:
            refuse_nested(name)
        if dims not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {dims}D instead")
        if hx is None:
            return ()
        if hx.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        return (hx,)


def with_autocast(call, last):
    """``op.layer`` of a GRU's or LSTM's step under autocast on the CPU. As those of torch.nn's cells there, and unlike
    those of layers, its states have the dtype of the last one (or of x) where that has more digits than autocast's."""
    dtype = torch.promote_types(last.dtype, torch.get_autocast_dtype("cpu"))
    with torch.autocast("cpu", enabled=False):
        return op.layer(call.cast(dtype))


@aside
def check_step(cell, input, hx, weights, bias, H):
    """Check that the tensors of a step fit together."""
    I = weights[0].size(1)  # noqa: E741
    check_cell_sizes(input, hx, I, H)
    check_placement(input.dtype, input.device, hx, weights)
    check_dtype("the input and the weights", input.dtype)
    check_weights(weights, cell, 1, 1, I, H, H, bias=bias)


@aside
def check_cell_sizes(input, hx, I, H):  # noqa: E741
    """Check that an input (B, I) and states (B, H) fit a cell; the errors are torch's."""
    B = input.size(0)
    if input.size(1) != I:
        raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {I}")
    for k, s in enumerate(hx):
        if s.shape != (B, H):
            raise_wrong_state(k, s, B, H)


def raise_wrong_state(k, state, B, H):
    """Raise torch's error for the wrong shape of state ``k``."""
    if state.size(0) != B:
        raise RuntimeError(f"Input batch size {B} doesn't match hidden{k} batch size {state.size(0)}")
    if state.size(1) != H:
        raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {state.size(1)}, expected {H}")
    raise RuntimeError(f"Expected hidden{k} of shape {(B, H)}, got {tuple(state.shape)}")


class RNNCell(CellBase, nn.RNNCell):
    """One step of an Elman network, ``h' = act(W_ih x + b_ih + W_hh h + b_hh)``, a drop-in for ``torch.nn.RNNCell``.

    Args:
        input_size: I.
        hidden_size: H.
        bias: False for no ``bias_ih`` and ``bias_hh``. Default: True
        nonlinearity: ``"tanh"`` or ``"relu"``. Default: ``"tanh"``
        device, dtype: of the parameters: float64, float32, bfloat16 or float16.

    ``forward(input, hx=None)``: input (B, I) or (I,), hx (B, H) or (H,), by default zeros; returns h' like hx.
    """

    if TYPE_CHECKING:
        __call__: CellOfOneState

    _rk_name = "RNNCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step; see the class."""
        states = self._rk_single_state(input, hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._rk_step("rnn", None if self.nonlinearity == "tanh" else "relu", input, states)[0]


class GRUCell(CellBase, nn.GRUCell):
    """One step of a gated recurrent unit, a drop-in for ``torch.nn.GRUCell``; the equations are those of ``GRU``.

    Args:
        input_size, hidden_size, bias, device, dtype: as for :class:`RNNCell`.

    ``forward(input, hx=None)``: input (B, I) or (I,), hx (B, H) or (H,), by default zeros; returns h' like hx.
    """

    if TYPE_CHECKING:
        __call__: CellOfOneState

    _rk_name = "GRUCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step; see the class."""
        return self._rk_step("gru", None, input, self._rk_single_state(input, hx))[0]


class LSTMCell(CellBase, nn.LSTMCell):
    """One step of a long short-term memory, a drop-in for ``torch.nn.LSTMCell``; the equations are those of ``LSTM``.

    Args:
        input_size, hidden_size, bias, device, dtype: as for :class:`RNNCell`.

    ``forward(input, hx=None)``: input (B, I) or (I,), hx a pair (h, c) of (B, H) or (H,), by default zeros; returns
    the pair after the step.
    """

    if TYPE_CHECKING:
        __call__: CellOfTwoStates

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """One step; see the class."""
        dims = input.dim()
        if input.is_nested:
            refuse_nested("LSTMCell")
        if dims not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {dims}D instead")
        if hx is None:
            hx = ()
        else:
            for k, s in enumerate(hx):
                if s.dim() not in (1, 2):
                    raise ValueError(f"LSTMCell: Expected hx[{k}] to be 1D or 2D, got {s.dim()}D instead")
            if isinstance(hx, Tensor):
                raise TypeError("lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor")
            if len(hx) != 2:
                raise RuntimeError("lstm_cell expects two hidden states")
        h, c = self._rk_step("lstm", None, input, hx)
        return h, c


def kind_of_cell(module):
    """``cell, activation`` of the op for a cell of ``torch.nn`` or ours; None for any other module."""
    for cell, kind in (("rnn", nn.RNNCell), ("gru", nn.GRUCell), ("lstm", nn.LSTMCell)):
        if isinstance(module, kind):
            activation = getattr(module, "nonlinearity", "tanh")
            if activation not in ("tanh", "relu"):
                raise RuntimeError(f"Unknown nonlinearity: {activation}")
            return cell, None if activation == "tanh" else activation
    return None
