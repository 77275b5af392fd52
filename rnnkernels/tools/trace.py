"""``trace``: every gate and every state of a module over a sequence, by name. Letters as in nn/layers.py."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..cells import reference, spec_of
from ..nn.base import check_recurrent
from ..nn.options import PLAIN, settings
from ..nn.own_cells import take_extras, text_of
from ..op.autograd import without_autocast

if TYPE_CHECKING:
    from ..nn.signatures import Lengths, Reset, States


@torch.no_grad()
def trace(
    module: nn.Module,
    /,
    input: Tensor,
    hx: "States | None" = None,
    *,
    lengths: "Lengths" = None,
    reset: "Reset" = None,
    **inputs: Tensor,
) -> dict[str, Tensor]:
    """Run a module and return all gates and states of all layers and steps, by name, for plots and for debugging.

    It runs on the reference backend, a Python loop over time steps, even if another is forced, and without gradients.
    The module keeps its mode: in training, masks are drawn; call ``eval()`` before to trace it without them.

    Args:
        module: an ``rnnkernels`` RNN, LSTM, GRU or Recurrent, with any options.
        input: (T, B, I), (B, T, I) with ``batch_first``, or (T, I); not a ``PackedSequence``.
        hx, lengths, reset: as for the module.
        **inputs: extra inputs of a cell of one's own.

    Returns:
        A dict in the order of the layers, whose keys end as those of the parameters do: ``"h_l0"``, ``"h_l0_reverse"``,
        ``"h_l1"`` ... Each value is (T, B, H) in the layout of the input, and zero past ``lengths``:

        - RNN: ``h``;
        - LSTM: the gates ``i``, ``f``, ``g``, ``o`` after their activations, ``c``, and ``h`` (T, B, P or H);
        - GRU: the gates ``r``, ``z`` and ``n`` after their activations, ``q = W_hn h + b_hn`` (what r multiplies; not
          with ``reset_after=False``), and ``h``;
        - :class:`rnnkernels.Recurrent`: every value that the cell's function has a name for (32 at most; after
          unpickling, what training keeps), what training keeps besides as ``plane_0`` and so on, the states, and ``y``
          where the output is not the first state.

    Raises:
        TypeError: for a module of another kind, or a ``PackedSequence``.
        ValueError, RuntimeError: as the module does.
    """
    check_recurrent(module)
    if isinstance(input, PackedSequence):
        raise TypeError("Expected a padded input (with lengths), but got a PackedSequence")
    layers = []

    def record(call, **ways):
        if cell is not None:  # by the user's names, even where a built-in cell computes the same
            call = call._replace(cell=text_of(cell, module.proj_size > 0))
        y, last, saved = reference.layer(*call, True)
        layers.append((y.detach(), saved))  # y itself is transposed in place under batch_first
        return y, last

    extras, cell = (), getattr(module, "cell", None)
    if cell is not None:
        cell = cell.named()
        extras = take_extras(cell.program, inputs, input, module.batch_first, input.dim())
    without_autocast(lambda x: module._rk_forward_more(x, hx, lengths, reset, False, record, extras))(input)
    lengths = None if lengths is None else torch.as_tensor(lengths, device=input.device)
    options = module._rk_options or PLAIN
    text = settings(*module._rk_kind, options)[0] if cell is None else text_of(cell, module.proj_size > 0)
    spec, D = spec_of(text), 1 + module.bidirectional
    own = () if cell is None else cell.names  # the user's names of the planes
    states = spec.program.states
    output = "y" if spec.program.own_output else states[0]
    found = {}
    for i, (y, saved) in enumerate(layers):
        planes = [p.unflatten(0, (-1, options.heads)) for p in saved]  # (D, N, T, B, ...)
        outputs = y.unflatten(-1, (D, -1))
        for d in range(D):
            values = {name: planes[0][d, :, :, :, k] for k, name in enumerate(own or spec.planes)}
            apart = saved[-1].to(y.dtype).unflatten(0, (-1, D, options.heads))[:, d] if spec.apart else ()
            values |= dict(zip(states[spec.states - spec.apart :], apart, strict=False))
            values = {name: v.permute(1, 2, 0, 3).flatten(2) for name, v in values.items()} | {output: outputs[:, :, d]}
            for name, v in values.items():
                found[f"{name}_l{i}{'_reverse' if d else ''}"] = laid_out(v, module, input, lengths)
    return found


def laid_out(v, module, input, lengths):
    """(T, B, H) in the layout of the input, with zeros past the lengths."""
    v = reference.zero_past(v, lengths)
    if input.dim() == 2:
        return v.squeeze(1)
    return v.transpose(0, 1) if module.batch_first else v
