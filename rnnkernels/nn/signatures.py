"""The types of options and calls, for type checkers: imported by them alone, so that no import and no call pays for it.

A layer is called through ``nn.Module.__call__``, which type checkers know as ``Callable[..., Any]``. The protocols here
stand in its place: the types of the results follow from those of the arguments.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, overload

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Pair: TypeAlias = tuple[Tensor, Tensor]
States: TypeAlias = Tensor | Sequence[Tensor]
"""The states of any cell: a tensor, or several of them for a cell with several."""
Lengths: TypeAlias = Tensor | Sequence[int] | None
Reset: TypeAlias = Tensor | tuple[Tensor, States | None] | None
"""A mask, or a pair of that and of the states to restart from."""
Activation: TypeAlias = Literal["tanh", "relu", "sigmoid", "hard_sigmoid", "linear"]


class Options(TypedDict, total=False):
    """Options of every layer; see :class:`rnnkernels.RNN`."""

    recurrent_dropout: float
    zoneout: float | Sequence[float]
    layer_norm: bool
    recompute: bool
    heads: int


class LSTMOptions(Options, total=False):
    """Options of :class:`rnnkernels.LSTM`."""

    activation: Activation
    recurrent_activation: Activation


class GRUOptions(LSTMOptions, total=False):
    """Options of :class:`rnnkernels.GRU`."""

    reset_after: bool


class OneState(Protocol):
    """The call of an RNN or a GRU."""

    @overload
    def __call__(
        self, input: Tensor, hx: Tensor | None = None, lengths: Lengths = None, reset: Reset = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def __call__(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...


class TwoStates(Protocol):
    """The call of an LSTM."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Pair | None = None,
        lengths: Lengths = None,
        reset: Reset = None,
        return_cell_states: Literal[False] = False,
    ) -> tuple[Tensor, Pair]: ...

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Pair | None = None,
        lengths: Lengths = None,
        reset: Reset = None,
        *,
        return_cell_states: Literal[True],
    ) -> tuple[Tensor, Pair, Tensor]: ...

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Pair | None = None,
        lengths: Lengths = None,
        reset: Reset = None,
        *,
        return_cell_states: bool,
    ) -> tuple[Tensor, Pair] | tuple[Tensor, Pair, Tensor]: ...

    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Pair | None = None,
        lengths: None = None,
        reset: None = None,
        return_cell_states: Literal[False] = False,
    ) -> tuple[PackedSequence, Pair]: ...

    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Pair | None = None,
        lengths: None = None,
        reset: None = None,
        *,
        return_cell_states: Literal[True],
    ) -> tuple[PackedSequence, Pair, PackedSequence]: ...


class OwnStates(Protocol):
    """The call of a layer of a cell of one's own, whose states are one tensor or several."""

    @overload
    def __call__(
        self, input: Tensor, hx: States | None = None, lengths: Lengths = None, reset: Reset = None, **inputs: Tensor
    ) -> tuple[Tensor, Any]: ...

    @overload
    def __call__(
        self, input: PackedSequence, hx: States | None = None, **inputs: Tensor
    ) -> tuple[PackedSequence, Any]: ...


class OwnStep(Protocol):
    """The call of :class:`rnnkernels.RecurrentCell`."""

    def __call__(self, input: Tensor, hx: States | None = None, **inputs: Tensor) -> tuple[Tensor, Any]: ...


class CellOfOneState(Protocol):
    """The call of an RNNCell or a GRUCell."""

    def __call__(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...


class CellOfTwoStates(Protocol):
    """The call of an LSTMCell."""

    def __call__(self, input: Tensor, hx: Pair | None = None) -> Pair: ...
