"""One layer call: the only list of its arguments. The op's schema, its flat form, vmap, the chooser of backends and the
backends themselves read them by name.

Letters: T time, B batch, D directions, X input groups, G gates, I input, H hidden, P output of a step.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import spec_of
from .weights import names_of

SCHEMA_TYPES = {
    str: "str", bool: "bool", int: "int", float: "float", Tensor: "Tensor", Tensor | None: "Tensor?",
    str | None: "str?",
    list[Tensor]: "Tensor[]", list[Tensor] | None: "Tensor[]?",
    tuple[bool, ...]: "int[]",  # TorchScript traces no bool[]
}  # fmt: skip


class LayerCall(NamedTuple):
    """The arguments of ``rnnkernels::layer`` up to ``save``, in their order; op/schema.py says what they mean."""

    cell: str
    x: Tensor
    states: list[Tensor] | None
    weights: list[Tensor]
    reverse: tuple[bool, ...] = (False,)
    bias: bool = True
    project: bool = False
    activation: str | None = None
    recurrent_activation: str | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    reset_states: list[Tensor] | None = ()
    h_mask: Tensor | None = None
    zone: list[Tensor] | None = ()
    layer_norm: bool = False
    eps: float = 1e-5
    hidden_size: int = 0
    """H; 0: read it off ``weight_hh``."""
    extras: list[Tensor] | None = ()
    parts: int = 0
    """The bf16 parts of a float32 number in products on the CPU: 3, 2 or 1; 0: 3."""
    packed: int = 0
    """The number of the weights that ``freeze`` keeps packed on the CPU; 0: none."""

    @classmethod
    def of(cls, *arguments):
        """The call of an op's arguments, among which lists may be None: AOTInductor knows no empty ones."""
        call = cls(*arguments)
        lists = {name: [] for name in ("states", "reset_states", "zone", "extras") if getattr(call, name) is None}
        return call._replace(**lists) if lists else call

    @classmethod
    def schema(cls):
        """The arguments as an op's schema has them."""
        return ", ".join(f"{SCHEMA_TYPES[kind]} {name}" for name, kind in cls.__annotations__.items())

    @property
    def spec(self):
        return spec_of(self.cell)

    @property
    def D(self):
        """Directions of all groups."""
        return len(self.reverse) * (self.x.size(0) if self.x.dim() == 4 else 1)

    @property
    def H(self):
        if self.hidden_size:
            return self.hidden_size
        w_hh = self.weight("weight_hh")
        if not w_hh:
            raise ValueError("rnnkernels: expected hidden_size, because the cell has no weight_hh to read it off")
        return w_hh[0].size(0) // self.spec.recurrent_gates

    @property
    def P(self):
        w_hh = self.weight("weight_hh")
        return w_hh[0].size(1) if w_hh else self.H

    def weight(self, name):
        """The weights of this name (weights.py) of all directions; none where the call has no such weight."""
        names = names_of(self.cell, self.bias, self.project, self.layer_norm)
        return self.weights[names.index(name) :: len(names)] if name in names else []

    def sizes(self):
        """How many tensors x, states, weights, reset_states and extras are."""
        return 1, len(self.states), len(self.weights), len(self.reset_states), len(self.extras)

    def flat(self):
        """All tensors: the differentiable ones (x, states, weights, reset_states, extras), then the others."""
        return [
            self.x, *self.states, *self.weights, *self.reset_states, *self.extras, self.lengths, self.reset,
            self.h_mask, *self.zone,
        ]  # fmt: skip

    def settings(self):
        """All that is no tensor, by name; given to ``from_flat`` together with what ``flat`` gives."""
        return (
            self.cell, tuple(map(bool, self.reverse)), self.bias, self.project, self.activation,
            self.recurrent_activation, self.layer_norm, self.eps, self.hidden_size, self.parts,
            self.packed,
        )  # fmt: skip

    @classmethod
    def from_flat(cls, settings, sizes, flat):
        """The call of some ``settings``, ``sizes`` and ``flat`` tensors."""
        cell, reverse, bias, project, activation, recurrent_activation, layer_norm, eps, H, parts, packed = settings
        states, weights, reset, n = sizes[0] + sizes[1], sum(sizes[:3]), sum(sizes[:4]), sum(sizes)
        return cls(
            cell, flat[0], flat[1:states], flat[states:weights], reverse, bias, project, activation,
            recurrent_activation, flat[n], flat[n + 1], flat[weights:reset], flat[n + 2], flat[n + 3 :],
            layer_norm, eps, H, flat[reset:n], parts, packed,
        )  # fmt: skip

    def cast(self, dtype):
        """The call as torch's autocast would have it: every floating tensor but float64 takes the dtype."""

        def to(tensors):
            return [t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]

        return self._replace(
            x=to([self.x])[0], states=to(self.states), weights=to(self.weights), reset_states=to(self.reset_states),
            h_mask=None if self.h_mask is None else self.h_mask.to(dtype), zone=to(self.zone), extras=to(self.extras),
        )  # fmt: skip

    def facts(self, training=False):
        """The ``Facts`` of the call."""
        stages = {
            "lengths": self.lengths is not None, "reset": self.reset is not None, "h_mask": self.h_mask is not None,
            "zone": len(self.zone) > 0, "layer_norm": self.layer_norm, "project": self.project,
            "second_product": self.spec.phases > 1,
        }  # fmt: skip
        x = self.x
        return Facts(
            self.cell, x.device, x.dtype, x.size(-3), x.size(-2), x.size(-1), self.H, self.P, self.D, training,
            frozenset(name for name, used in stages.items() if used), self.activation or "tanh",
            self.recurrent_activation or "sigmoid", self.parts, self.packed,
        )  # fmt: skip


class Facts(NamedTuple):
    """What decides which backend can run a call, and how: sizes, dtype, device and the stages in use."""

    cell: str
    device: torch.device
    dtype: torch.dtype
    T: int
    B: int
    I: int  # noqa: E741 - the letter that the whole library uses
    H: int
    P: int
    D: int
    training: bool = False
    stages: frozenset[str] = frozenset()
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    parts: int = 0
    packed: int = 0

    def lacking(self, stages: frozenset[str]) -> str | None:
        """The reason why a backend with these stages cannot run the call, or None."""
        missing = sorted(self.stages - stages)
        return f"it has no stage for {', '.join(missing)} yet" if missing else None
