"""``Recurrent`` and ``RecurrentCell``: layers of a cell that the user gives.

Letters: T time, B batch, D directions, G gates of the input, H hidden, S states, I input, L layers, N heads,
P projection.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from ..cells.definition import Cell
from ..cells.weights import names_of, weights_of
from ..recorders.tracers import LEAF, Leaf
from .base import RecurrentBase
from .cell_modules import check_cell_sizes
from .checks import check_tensor, refuse_nested
from .functional import FORWARD, layers
from .options import take_options
from .own_cells import (
    check_cell,
    check_extras,
    check_given,
    check_heads_of,
    kernel_of,
    refuse_unknown,
    states_of,
    take_constants,
    take_extras,
    text_of,
)

if TYPE_CHECKING:
    from .signatures import Lengths, OwnStates, OwnStep, Reset, States


def check_size(name, value):
    """torch.nn's checks of a size."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be greater than zero")


def check_projection(proj_size, hidden_size):
    """torch.nn's checks of proj_size."""
    if not isinstance(proj_size, int) or isinstance(proj_size, bool):
        raise TypeError(f"proj_size should be of type int, got: {type(proj_size).__name__}")
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if proj_size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")


NO_SCRIPT = ", which torch.nn does not have: torch.jit.trace records it, and torch.export"


class Init:
    """A user's ``init``. A pickle has None in its place: where it is loaded, the function may not be."""

    def __init__(self, function):
        if not callable(function):
            kind = type(function).__name__
            raise TypeError(f"init should be a function of the name and the parameter, got: {kind}")
        self.function = function

    def __call__(self, name, parameter):
        return self.function(name, parameter)

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return type(None), ()


class Recurrent(RecurrentBase):
    """Layers of a cell of one's own, on the kernels of the built-in ones.

    Args:
        cell: made by :func:`rnnkernels.cell`, or one of ``rnnkernels.cells``.
        input_size: I; for a cell with ``project_input=False``, H times the number of its gates.
        hidden_size: H.
        num_layers: L, layers on top of each other. Default: 1
        bias: False for no ``bias_ih`` and ``bias_hh``. Default: True
        batch_first: input, output and step inputs are (B, T, ...) instead of (T, B, ...). Default: False
        dropout: probability of zeroing an element of the output of every layer but the last, in training. Default: 0
        bidirectional: D = 2 directions instead of 1. Default: False
        proj_size: P, the size of the first state where it is a projection of the one that the cell makes, ``weight_hr``
            times that (Sak et al. 2014), as of :class:`rnnkernels.LSTM`: for a cell with a recurrent product that has
            this state nowhere else. 0 for none. Default: 0
        device, dtype: of the parameters: float64, float32, bfloat16 or float16.
        init: ``init(name, parameter)``, called on every parameter after the default, which is that of torch.nn (uniform
            from -1/sqrt(H) to 1/sqrt(H), vectors too), and again by ``reset_parameters``. A pickled layer is without.
        recurrent_dropout, zoneout, layer_norm, recompute, heads: as for :class:`rnnkernels.RNN`; zoneout may have a
            probability for each state. The layer norms are those of the products.
        **constants: the cell's constants, where they differ from its own.

    Parameters are ``weight_ih_l0`` (G*H, I), ``weight_hh_l0`` (gates of the recurrent product * H, H or P),
    ``bias_ih_l0``, ``bias_hh_l0``, with ``proj_size`` ``weight_hr_l0`` (P, H), gains of layer norms, and the cell's
    vectors by their names, ``NAME_l0`` (H,); those of the second direction end with ``_reverse``, as in torch.nn.

    ``forward(input, hx=None, lengths=None, reset=None, **inputs)``: as for :class:`rnnkernels.RNN`; ``inputs`` are the
    cell's step inputs (T, B, H or 1) and sequence inputs (B, H), by name, the same for all layers and directions. hx is
    one tensor (L*D, B, H), or a tuple of S of them, for a cell with several states; with ``proj_size`` the first is
    (L*D, B, P).

    Returns:
        ``output`` (T, B, D*H or D*P) in the layout of the input, and ``h_n`` like ``hx``.

    Example::

        layer = rnnkernels.Recurrent(rnnkernels.cells.li_gru, 40, 512, num_layers=5, bidirectional=True)
        y, h = layer(x, lengths=lengths)
    """

    if TYPE_CHECKING:
        __call__: OwnStates

    _rk_instead = NO_SCRIPT
    _rk_wrong_input = "Recurrent: Expected input to be 2D or 3D, got {}D tensor instead"

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        init: Callable[[str, nn.Parameter], Any] | None = None,
        **more: Any,
    ) -> None:
        check_cell(cell)
        nn.Module.__init__(self)
        cell = take_constants(cell, more)
        options = take_options(cell.program.text, more)
        refuse_unknown(cell, more)
        for name, value in (("hidden_size", hidden_size), ("num_layers", num_layers), ("input_size", input_size)):
            check_size(name, value)
        if not isinstance(dropout, (int, float)) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        check_projection(proj_size, hidden_size)
        program, D, P = cell.program, 1 + bool(bidirectional), proj_size or hidden_size
        gates = len(program.inputs)
        check_given(program, input_size, hidden_size)
        if program.given and num_layers > 1 and D * P != gates * hidden_size:
            raise ValueError(f"{program.name} has project_input=False, its output cannot be the input of another layer")
        heads = 1 if options is None else options.heads
        check_heads_of(program, heads, hidden_size, proj_size > 0)
        normed = options is not None and options.layer_norm
        self._text, self._kernel = text_of(cell, proj_size > 0), kernel_of(cell, proj_size > 0, normed)
        self.cell, self.init, self._rk_options = cell, Init(init) if init else None, options
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, float(dropout), D == 2
        self.mode, self.proj_size, self._all_weights, self._flat_weight_refs = "CELL", proj_size, [], []  # as torch.nn
        for layer in range(num_layers):
            for direction in range(D):
                suffix = f"_l{layer}{'_reverse' if direction else ''}"
                table = weights_of(
                    self._text, D * P if layer else input_size, hidden_size, P, bias=bias, project=proj_size > 0,
                    layer_norm=normed, heads=heads,
                )  # fmt: skip
                for weight in table:
                    value = nn.Parameter(torch.empty(weight.shape, device=device, dtype=dtype))
                    setattr(self, weight.name + suffix, value)
                self._all_weights.append([weight.name + suffix for weight in table])
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self.__module__ = LEAF
        self.reset_parameters()

    def __setstate__(self, state):
        """Without nn.RNNBase's, which looks at the first weight: a cell may have none."""
        nn.Module.__setstate__(self, state)
        self._flat_weight_refs, self.__module__ = [], LEAF

    def reset_parameters(self) -> None:
        """Initial values: those of torch.nn, gains of layer norms are 1; then ``init``."""
        super().reset_parameters()
        if self.init is not None:
            with torch.no_grad():
                for name, parameter in self.named_parameters(recurse=False):
                    self.init(name, parameter)

    def extra_repr(self) -> str:
        """The cell, the sizes, and the arguments that are not at their defaults."""
        constants = "".join(f", {name}={value}" for name, value in self.cell.constants.items())
        return f"{self.cell.program.name}, {super().extra_repr()}{constants}"

    @property
    def _rk_kind(self):
        return self._kernel, None

    def _rk_states(self, hx, dims=None):
        """``hx`` as a tuple of states, checked to have as many dimensions."""
        program = self.cell.program
        if len(program.states) == 1 and not isinstance(hx, Tensor):
            raise TypeError(f"{program.name}: argument 'hx' must be Tensor, not {type(hx).__name__}")
        states = states_of(program, hx)
        for s in states if dims else ():
            RecurrentBase._rk_states(self, s, dims)
        return states

    def _rk_hidden(self, last):
        return last[0] if len(last) == 1 else tuple(last)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: "States | None" = None,
        lengths: "Lengths" = None,
        reset: "Reset" = None,
        **inputs: Tensor,
    ) -> tuple[Any, Any]:
        """Run the layers over a sequence; see the class."""
        program = self.cell.program
        if not isinstance(input, PackedSequence):
            check_tensor("Recurrent", input)
        if not program.extras and not inputs:
            return RecurrentBase.forward(self, input, hx, lengths, reset)
        if isinstance(input, PackedSequence):
            if program.step:
                raise ValueError(
                    f"{program.name} has step inputs: pad the input and give lengths= instead of a PackedSequence"
                )
            given = dict(inputs)
            if input.sorted_indices is not None:
                given = {name: u.index_select(0, input.sorted_indices) for name, u in given.items()}
            extras = take_extras(program, given, input.data, False, 3)
            return self._rk_forward_more(input, hx, lengths, reset, False, extras=extras)
        if input.is_nested:
            refuse_nested("Recurrent")
        if input.dim() not in (2, 3):
            raise ValueError(self._rk_wrong_input.format(input.dim()))
        extras = take_extras(program, inputs, input, self.batch_first, input.dim())
        return self._rk_forward_more(input, hx, lengths, reset, False, extras=extras)

    def _rk_layers(self, x, states, lengths=None, drop=torch.dropout, reset=None, more=None):
        extras = (more or {}).get("extras", ())
        check_extras(self.cell.program, extras, x, self.hidden_size)
        return super()._rk_layers(x, states, lengths, drop, reset, more)


class RecurrentCell(Leaf, nn.Module):
    """One step of a cell of one's own.

    Args:
        cell, input_size, hidden_size, bias, device, dtype, init, **constants: as for :class:`Recurrent`.

    Parameters are ``weight_ih`` (G*H, I), ``weight_hh``, ``bias_ih``, ``bias_hh``, and the cell's vectors (H,).

    ``forward(input, hx=None, **inputs)``: input (B, I) or (I,), hx (B, H) or (H,), or a tuple of S of them, by default
    zeros; the cell's step and sequence inputs by name, (B, H or 1). Returns the output and the states, like hx.
    """

    _rk_packed = None  # see tools/freeze.py
    _rk_instead = NO_SCRIPT

    if TYPE_CHECKING:
        __call__: OwnStep

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        init: Callable[[str, nn.Parameter], Any] | None = None,
        **constants: float,
    ) -> None:
        check_cell(cell)
        super().__init__()
        cell = take_constants(cell, constants)
        refuse_unknown(cell, constants)
        check_size("input_size", input_size), check_size("hidden_size", hidden_size)
        check_given(cell.program, input_size, hidden_size)
        self.cell, self.init = cell, Init(init) if init else None
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        for weight in weights_of(cell.program.text, input_size, hidden_size, bias=bias):
            setattr(self, weight.name, nn.Parameter(torch.empty(weight.shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial values, uniform from -1/sqrt(H) to 1/sqrt(H); then ``init``."""
        bound = self.hidden_size**-0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                nn.init.uniform_(parameter, -bound, bound)
                if self.init is not None:
                    self.init(name, parameter)

    def extra_repr(self) -> str:
        constants = "".join(f", {name}={value}" for name, value in self.cell.constants.items())
        return f"{self.cell.program.name}, {self.input_size}, {self.hidden_size}{constants}" + (
            "" if self.bias else ", bias=False"
        )

    def forward(self, input: Tensor, hx: "States | None" = None, **inputs: Tensor) -> tuple[Tensor, Any]:
        """One step; see the class."""
        check_tensor("RecurrentCell", input)
        if input.is_nested:
            refuse_nested("RecurrentCell")
        dims, program = input.dim(), self.cell.program
        if dims not in (1, 2):
            raise ValueError(f"RecurrentCell: Expected input to be 1D or 2D, got {dims}D instead")
        S = len(program.states)
        states = states_of(program, hx)
        for k, s in enumerate(states):
            if s.dim() != dims:
                name = "hidden" if S == 1 else f"hx[{k}]"
                raise ValueError(f"RecurrentCell: Expected {name} to be {dims}D, as the input, got {s.dim()}D instead")
        extras = take_extras(program, inputs, input, False, dims + 1, single=True)
        if dims == 1:
            input, states = input.unsqueeze(0), [s.unsqueeze(0) for s in states]
        check_cell_sizes(input, states, self.input_size, self.hidden_size)
        x = input.unsqueeze(0)
        check_extras(program, extras, x, self.hidden_size, single=True)
        y, last = self._rk_step(x, [s.unsqueeze(0) for s in states], extras)
        y, *last = (v.squeeze(0).squeeze(0) if dims == 1 else v.squeeze(0) for v in (y, *last))
        return y, last[0] if S == 1 else tuple(last)

    def _rk_step(self, x, states, extras):
        """Check and run a layer of one step: x (1, B, I), states (1, B, H)."""
        weights = [getattr(self, name) for name in names_of(self.cell.program.text, self.bias)]
        return layers(
            self.cell.kernel, x, states, weights, 1, FORWARD, self.bias, False, self.input_size, self.hidden_size,
            self.hidden_size, extras=extras, packed=self._rk_packed.of(weights) if self._rk_packed else 0,
        )  # fmt: skip


def refuse_own_cell(who, module):
    """Raise for a layer of a cell of one's own, on behalf of a tool that knows only the built-in ones."""
    if isinstance(module, (Recurrent, RecurrentCell)):
        raise TypeError(
            f"{who} takes rnnkernels.RNN, LSTM, GRU and their cells, not {type(module).__name__} of "
            f"{module.cell.program.name}"
        )
