"""A layer call in the flat form of ``autograd.Function``: a list of tensors, and a tuple of the other arguments.

Forward: ``x, *states, *weights, *reset_states`` (differentiable), then ``lengths, reset, h_mask, *zone``; the rest is
the ``Plan``. Backward: ``dy, *dlast, [dcells]``, the forward's list, ``y, *saved``; the ``Pull`` holds their counts.
"""

from itertools import islice
from typing import NamedTuple


class Plan(NamedTuple):
    """The arguments of a layer call that are not tensors."""

    backend: str
    cell: str
    n_states: int
    n_weights: int
    n_reset: int
    reverse: tuple
    bias: bool
    project: bool
    activation: str | None
    recurrent_activation: str | None
    layer_norm: bool
    eps: float
    return_cells: bool
    recompute: bool
    """The gates are not saved, and computed again in the backward pass: see recompute.py."""
    exposed: bool
    """The caller may write into y before the backward pass, which then needs a copy of y."""
    return_saved: bool = False
    """All saved tensors are results too, as with the op's ``save``."""

    def sizes(self):
        """The numbers of tensors of x, states, weights and reset_states in the flat list."""
        return 1, self.n_states, self.n_weights, self.n_reset

    def arguments(self, tensors):
        """The op's arguments (without ``save``) from the flat list."""
        states = 1 + self.n_states
        weights = states + self.n_weights
        reset = weights + self.n_reset
        return (
            self.cell, tensors[0], tensors[1:states], tensors[states:weights], self.reverse, self.bias, self.project,
            self.activation, self.recurrent_activation, tensors[reset], tensors[reset + 1], tensors[weights:reset],
            tensors[reset + 2], tensors[reset + 3 :], self.layer_norm, self.eps,
        )  # fmt: skip


class Pull(NamedTuple):
    """The counts by which the backward's flat list is cut, and the needed gradients (of x, of states, of weights)."""

    plan: Plan
    n_last: int
    has_cells: bool
    n_in: int
    needs: tuple

    def split(self, tensors):
        """``grads`` (dy, *dlast, [dcells]), the inputs, and (y, *saved)."""
        n = 1 + self.n_last + self.has_cells
        return tensors[:n], tensors[n : n + self.n_in], tensors[n + self.n_in :]

    def wanted(self):
        """For every differentiable input: true if its gradient is among the results."""
        x, states, weights = self.needs
        _, n_states, n_weights, n_reset = self.plan.sizes()
        return [x, *[states] * n_states, *[weights] * n_weights, *[states] * n_reset]

    def spread(self, grads):
        """The results in the order of all inputs, with None for gradients that were not needed."""
        grads, wanted = iter(grads), self.wanted()
        return [next(grads) if want else None for want in wanted] + [None] * (self.n_in - len(wanted))

    def lists(self, grads):
        """The results as four lists: of x, states, weights and reset_states."""
        grads, wanted = iter(grads), iter(self.wanted())
        return [[next(grads) for want in islice(wanted, n) if want] for n in self.plan.sizes()]
