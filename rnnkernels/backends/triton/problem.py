"""One layer call: its sizes, settings and stages, and its weights by kind.

Letters: T time, B batch, D directions, X input groups, G gates, I input, H hidden, P output of a step.
"""

from typing import Any, NamedTuple

import torch

from ...cells import accumulate_dtype, reference, spec_of
from . import schedules
from .cells import Cell, cell_of


class Problem(NamedTuple):
    cell: Cell
    x: Any
    states: list
    T: int
    B: int
    D: int
    I: int  # noqa: E741 - the letter that the whole library uses
    H: int
    P: int
    reverse: list[bool]
    activation: str
    recurrent_activation: str
    dtype: torch.dtype
    device: torch.device
    chip: schedules.Chip
    precision: str
    w_ih: list
    w_hh: list
    b_ih: list
    b_hh: list
    w_hr: list
    lengths: Any = None
    """int64 (B,) or (X, B), as the next: contiguous and on the device."""
    reset: Any = None
    """uint8 (T, B) or (X, T, B)."""
    reset_states: Any = ()
    h_mask: Any = None
    zone: Any = ()
    ln_x: Any = ()
    """Gains (G*H) of the layer norms of the inputs' products; none without layer norm."""
    ln_h: Any = ()
    """The same for the recurrent ones."""
    ln_c: Any = ()
    """Gains and biases (H), two lists, of the layer norm of c in the output of a cell that has c."""
    eps: float = 0.0
    vectors: Any = ()
    """For every learned vector, those (H) of all directions."""
    inputs: Any = ()
    """Inputs beside x: (B, H) those of a whole sequence, then (T, B, H) or (T, B, 1); or all with a leading X."""
    grouped: bool = False
    """x and inputs have a leading X."""
    given: bool = False
    """x is (T, B, GX*H), the pre-activations."""

    @property
    def norm(self):
        """True with layer norms."""
        return bool(self.ln_x) or bool(self.ln_h)

    @property
    def functions(self):
        """In torch, those of built-in cells that the call chooses, by the names that programs have for them."""
        return dict(zip(("act", "gate"), reference.functions(self.activation, self.recurrent_activation), strict=True))

    @property
    def kept(self):
        """The number of planes that the forward pass keeps."""
        return self.kept_by(self.cell)

    def kept_by(self, cell):
        return cell.kept + (len(cell.own) if self.zone else 0)

    @property
    def accumulate(self):
        return accumulate_dtype(self.dtype)

    def empty(self, *shape, dtype=None):
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def zeros(self, *shape, dtype=None):
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def group(self, d):
        """The input group that direction d belongs to."""
        return d // len(self.reverse)

    def group_reset(self, d):
        """The reset mask (T, B) of direction d."""
        return self.reset if self.reset.dim() == 2 else self.reset[self.group(d)]

    def apart(self, tensor, dims):
        """The stride between the groups' parts of a tensor; 0 if all groups share one."""
        return tensor.stride(0) if tensor is not None and tensor.dim() == dims else 0

    def tiles(self, backward):
        return schedules.choose(
            self.dtype, self.cell, self.B, self.D, self.H, self.P, bool(self.w_hr), self.chip, backward, self.T,
            bool(self.ln_h),
        )  # fmt: skip

    def phases(self, tiles, backward):
        """The launches of one step of the cell, 1, 2, ...: each waits for results of other programs (the vector of a
        second product, or the moments of a layer norm); (0,) for a single launch."""
        second, output, norm = self.cell.first is not None, bool(self.ln_c), bool(self.ln_h)
        launches = 1 + max(second, output) if backward else 1 + norm + output + second * (1 + norm)
        return tuple(range(1, launches + 1)) if tiles.schedule == "stepwise" and launches > 1 else (0,)

    def launches(self, tiles, backward):
        """How many kernels a pass with these tiles launches."""
        steps = self.T if tiles.schedule == "stepwise" else 1
        return steps * (len(self.phases(tiles, backward)) + bool(self.w_hr))

    def recurrent(self):
        """The problem without the tensors that only the products outside the time loop read."""
        return self._replace(x=None, w_ih=[], b_ih=[])

    def named(self, tensors, states, units):
        """The tensors of the given states; a state of None gets zeros, never read. None without tensors."""
        unread = self.zeros(self.D, self.B, units) if tensors and None in states else None
        return tuple(unread if n is None else tensors[n] for n in states) if tensors else None

    def zoneout(self, states, units):
        """The zoneout arguments of the loops for the named states of ``units`` units; for None, no zoneout."""
        if not self.zone:
            return dict(zone=None, zone_at=None, ZONE_J=())
        whole = [self.zeros(1, 1, 1, 1) if n is None else self.zone[n] for n in states]
        whole = [z.expand(self.T, self.D, self.B, units) for z in whole]
        whole = [z if z.stride(3) in (0, 1) else z.contiguous() for z in whole]
        return dict(
            zone=tuple(whole), zone_at=tuple(z.stride()[:3] for z in whole), ZONE_J=tuple(z.stride(3) for z in whole)
        )


def problem_of(call):
    """Sort the tensors of a ``LayerCall``."""
    x, D, lengths, reset, h_mask = call.x, call.D, call.lengths, call.reset, call.h_mask
    spec = spec_of(call.cell)
    ln_c = [call.weight(name) for name in ("ln_c_gain", "ln_c_bias")]
    chip = schedules.chip_of(x.device)
    return Problem(
        cell_of(call.cell, call.H), x, [s.contiguous() for s in call.states], x.size(-3), x.size(-2), D, x.size(-1),
        call.H, call.P, [bool(r) for r in call.reverse],
        call.activation or "tanh", call.recurrent_activation or "sigmoid",
        x.dtype, x.device, chip, schedules.precision(x.dtype, chip),
        *(call.weight(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")),
        None if lengths is None else lengths.to(x.device).clamp(max=x.size(-3)),
        None if reset is None else reset.to(x.device).contiguous().view(torch.uint8),
        [s.contiguous() for s in call.reset_states], None if h_mask is None else h_mask.contiguous(), call.zone,
        call.weight("ln_x_gain"), call.weight("ln_h_gain"), ln_c if ln_c[0] else (), call.eps,
        [call.weight(name) for name in spec.vectors], in_kernel_order(call.extras, spec), x.dim() == 4,
        bool(spec.gates) and not spec.projects_input,
    )  # fmt: skip


def in_kernel_order(extras, spec):
    """Inputs of sequences and then those of steps, from the op's order, which is the other way round."""
    steps = len(spec.program.step)
    return [*extras[steps:], *extras[:steps]]


def stacked(tensors):
    """One contiguous tensor of all directions; no copy for a single one."""
    return tensors[0][None].contiguous() if len(tensors) == 1 else torch.stack(tensors)


def turned(tensors, gates):
    """The weights of all directions, each gate's transposed: (D, G, K, H) from (G*H, K) each."""
    return torch.stack([w.unflatten(0, (gates, -1)).transpose(1, 2) for w in tensors])
