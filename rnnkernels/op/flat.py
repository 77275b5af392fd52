"""A layer call in the flat form of ``autograd.Function``: a list of tensors, and a tuple of the other arguments.

Forward: the list is ``LayerCall.flat``, the rest is the ``Plan``. Backward: ``dy, *dlast, [dcells]``, the forward's
list, ``y, *saved``; the ``Pull`` holds their counts.
"""

from itertools import islice
from typing import NamedTuple

from ..cells.call import LayerCall


class Plan(NamedTuple):
    """All of a layer call that is not a tensor, and how it is run."""

    backend: str
    settings: tuple
    """``LayerCall.settings``."""
    n_states: int
    n_weights: int
    n_reset: int
    n_extras: int = 0
    return_cells: bool = False
    recompute: bool = False
    """The gates are not saved, but computed again in the backward pass: see recompute.py."""
    exposed: bool = False
    """Others may write into y before the backward pass, which then needs a y of its own."""
    return_saved: bool = False
    """All that is saved is a result too, as the op's ``save`` wants it."""

    @classmethod
    def of(cls, call, backend="dispatch", **ways):
        _, *counts = call.sizes()
        return cls(backend, call.settings(), *counts, **ways)

    @property
    def cell(self):
        return self.settings[0]

    def sizes(self):
        """How many tensors x, states, weights, reset_states and extras are in the flat list."""
        return 1, self.n_states, self.n_weights, self.n_reset, self.n_extras

    def call(self, tensors):
        """The ``LayerCall`` of the flat list."""
        return LayerCall.from_flat(self.settings, self.sizes(), tensors)


class Pull(NamedTuple):
    """The counts by which the backward's flat list is cut, and the needed gradients (of x, states, weights, extras)."""

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
        x, states, weights, extras = self.needs
        _, n_states, n_weights, n_reset, n_extras = self.plan.sizes()
        return [x, *[states] * n_states, *[weights] * n_weights, *[states] * n_reset, *[extras] * n_extras]

    def spread(self, grads):
        """The results in the order of all inputs, with None for gradients that were not needed."""
        grads, wanted = iter(grads), self.wanted()
        return [next(grads) if want else None for want in wanted] + [None] * (self.n_in - len(wanted))

    def lists(self, grads):
        """The results as lists: of x, states, weights, reset_states and extras."""
        grads, wanted = iter(grads), iter(self.wanted())
        return [[next(grads) for want in islice(wanted, n) if want] for n in self.plan.sizes()]
