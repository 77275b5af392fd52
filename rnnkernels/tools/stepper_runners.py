"""The runners of a ``Stepper``: the C++ extension, or the reference. Letters as in stepper.py."""

import importlib
from functools import partial

import torch

from .. import backends
from ..cells import reference
from ..cells.call import LayerCall
from ..nn.functional import FORWARD
from ..op.schema import over_layers

_C = importlib.import_module("rnnkernels._C") if backends.EXTENSION_ERROR is None else None
run_cpp = getattr(_C, "step", None)
"""``run_cpp(handle, address of x, address of out)``: a step of a cell whose only input is x; False, and nothing done,
if they overlap or are null."""
STORAGE = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # numbered as in csrc/cells/layer_call.h


class Cpp:
    """Packed weights and states behind a handle."""

    name = "cpp"

    def __init__(self, cell, B, I, H, P, num_layers, bias, project, activation, dtype, weights):  # noqa: E741
        weights = [w.contiguous().resolve_neg() for w in weights]
        self.handle = _C.make_stepper(
            cell, STORAGE.index(dtype), B, I, H, P, num_layers, bias, project, activation == "relu",
            [w.data_ptr() for w in weights],
        )  # fmt: skip

    def run(self, x, out, extras):
        """Steps over x (T, B, I), and the cell's other inputs (T, B, H or 1) or (B, H), into out (T, B, P).

        False, and nothing done, if out overlaps one of these, or one has no memory.
        """
        more = (x.size(0), x.stride(0), x.stride(1), out.stride(0), out.stride(1))
        for u in extras:
            more += (u.data_ptr(), u.stride(0) if u.dim() == 3 else 0, u.stride(-2))
        return run_cpp(self.handle, x.data_ptr(), out.data_ptr(), *more)

    def reset(self, mask):
        """Zeros where mask, or everywhere."""
        _C.reset(self.handle, *(() if mask is None else (mask.data_ptr(),)))

    def state(self, k, s, load):
        """Copy state k into s (L, B, H or P) or, with ``load``, from there."""
        _C.state(self.handle, k, s.data_ptr(), s.stride(0) * s.element_size(), load)


class Reference:
    """The reference, in the dtype of the states."""

    name = "reference"

    def __init__(self, cell, num_layers, bias, project, activation, weights, states):
        self.cell, self.num_layers, self.settings = cell, num_layers, (FORWARD, bias, project, activation)
        self.weights, self.states = [w.to(states[0].dtype, copy=True) for w in weights], states

    @torch.no_grad()
    def run(self, x, out, extras):
        """As that of ``Cpp``."""
        if any(overlap(t, out) for t in (x, *extras)):
            return False
        # each step's own and contiguous, because strides and where memory begins can change bits
        to = dict(dtype=self.states[0].dtype, copy=True, memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for t, (x_1BI, out_BP) in enumerate(zip(x.split(1), out, strict=True)):
                now = [(u[t : t + 1] if u.dim() == 3 else u).to(**to) for u in extras]
                layer = partial(self.layer, now)
                y, self.states = over_layers(layer, x_1BI.to(**to), self.states, self.weights, self.num_layers, 1)
                out_BP.copy_(y[0])
        return True

    def layer(self, extras, i, x, states, weights):
        """Layer i for one step."""
        call = LayerCall(
            self.cell, x, states, weights, *self.settings, hidden_size=states[-1].size(-1), extras=extras
        )  # fmt: skip
        return reference.layer(*call, False)[:2]

    def reset(self, mask):
        """Zeros where mask, or everywhere."""
        for s in self.states:
            s[:, slice(None) if mask is None else mask] = 0

    def state(self, k, s, load):
        """Copy state k into s (L, B, H or P) or, with ``load``, from there."""
        to, source = (self.states[k], s) if load else (s, self.states[k])
        to.copy_(source)


def overlap(*tensors):
    """True if two tensors overlap in memory, from the first to the last element of each, or if one has no memory."""
    first = [t.data_ptr() for t in tensors]
    spans = [sum(s * (n - 1) for s, n in zip(t.stride(), t.shape, strict=True)) * t.element_size() for t in tensors]
    return 0 in first or max(first) <= min(at + span for at, span in zip(first, spans, strict=True))
