"""Cells of one's own in a call: their checks, constants and extra inputs.

Letters: T time, B batch, H hidden, I input.
"""

import torch
from torch import Tensor

from ..cells import spec_of
from ..cells.definition import Cell
from ..cells.parts import no_projection
from ..op.autograd import autocast_enabled
from .checks import aside
from .options import check_heads


def check_cell(cell):
    """Raise for anything but a cell."""
    if not isinstance(cell, Cell):
        hint = "; decorate it with rnnkernels.cell" if callable(cell) and not isinstance(cell, type) else ""
        raise TypeError(f"cell should be a cell of rnnkernels, got: {type(cell).__name__}{hint}")


def check_heads_of(program, heads, H, project):
    """Check that a layer of a cell of one's own can be cut into so many heads."""
    check_heads(heads, H, project)
    if heads > 1 and (program.extras or program.given or not program.recurrent):
        raise ValueError("heads is for a cell with both products (no project_input=False) and without extra inputs")


def check_given(program, input_size, hidden_size):
    """Check the input's size for a cell with ``project_input=False``."""
    gates = len(program.inputs)
    if program.given and input_size != gates * hidden_size:
        raise ValueError(
            f"{program.name} has project_input=False: expected input_size = {gates} * hidden_size = "
            f"{gates * hidden_size}, got {input_size}"
        )


def states_of(program, hx):
    """``hx`` as a tuple of the cell's states, none for zeros.

    Raises:
        TypeError, RuntimeError: for what is no tensor, and where there are more or fewer than the cell has.
    """
    S = len(program.states)
    if hx is None:
        return ()
    if not isinstance(hx, (tuple, list) if S > 1 else (Tensor, tuple, list)):
        kind = "tuple of Tensors" if S > 1 else "Tensor"
        raise TypeError(f"{program.name}: argument 'hx' must be {kind}, not {type(hx).__name__}")
    states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    if odd := [s for s in states if not isinstance(s, Tensor)]:
        raise TypeError(f"{program.name}: argument 'hx' must have Tensors, not {type(odd[0]).__name__}")
    if len(states) not in (0, S):
        raise RuntimeError(f"{program.name} expects {S} hidden states, got {len(states)}")
    return states


def extras_of(program):
    """``program.extras`` out of fields: TorchDynamo of torch 2.10 does not go over what a property gives."""
    return (*program.step, *program.sequence)


def text_of(cell, project):
    """The text of the cell's program in a layer with or without a projection.

    Raises:
        ValueError: for a cell that has no projection, with the reason.
    """
    if project and cell.projected is None:
        raise ValueError(
            f"proj_size is not possible for the cell {cell.program.name}: it {no_projection(cell.program)}"
        )
    return cell.projected if project else cell.program.text


def kernel_of(cell, project, layer_norm):
    """The op's ``cell``: the built-in one that computes the same and has all that the layer wants, or the text.

    The built-in LSTM's layer norm is also one of c.
    """
    built_in = not layer_norm and (not project or spec_of(cell.kernel).has_projection)
    return cell.kernel if built_in else text_of(cell, project)


def take_constants(cell, keywords):
    """The cell with the constants that a layer's keywords give."""
    return cell.with_constants(**{name: keywords.pop(name) for name in cell.constants if name in keywords})


def refuse_unknown(cell, keywords):
    """Raise for a keyword that is neither an option nor a constant of the cell."""
    if keywords:
        constants = ", ".join(cell.constants) or "none"
        name = next(iter(keywords))
        raise TypeError(f"got an unexpected keyword argument {name!r} ({cell.program.name} has constants: {constants})")


def take_extras(program, given, x, batch_first, dims, who="forward", single=False):
    """The extra inputs as the op wants them, in the order of the program, from those of a call by name.

    Args:
        given: tensors by name, laid out like the input: (T, B, H or 1), (B, T, H or 1) with ``batch_first``, or without
            a batch (T, H or 1); sequence inputs (B, H) or (H,).
        x: the input as the user gave it.
        dims: 3, 2 for an input without a batch.
        who: the function that is called.
        single: step inputs are those of one step, without a dimension of time, which they get.
    """
    names = extras_of(program)
    unknown = [name for name in given if name not in names]
    missing = [name for name in names if given.get(name) is None]
    known = ", ".join(names) or "none"
    if unknown:
        raise TypeError(f"{who}() got an unexpected input {unknown[0]!r}; extra inputs of {program.name}: {known}")
    if missing:
        raise TypeError(f"{who}() missing the input {missing[0]!r}; extra inputs of {program.name}: {known}")
    return [laid_out(program, name, given[name], x, batch_first, dims, single) for name in names]


def laid_out(program, name, u, x, batch_first, dims, single):
    step = name in program.step
    expected = dims if step and not single else dims - 1
    if not isinstance(u, Tensor):
        raise TypeError(f"Expected {name} to be a tensor, got {type(u).__name__}")
    if u.is_nested or u.layout != torch.strided:
        raise TypeError(f"Expected {name} to be a dense tensor, got {'a nested one' if u.is_nested else u.layout}")
    if u.dim() != expected:
        kind = "batched" if dims == 3 else "unbatched"
        raise RuntimeError(f"For {kind} input, {name} should be {expected}-D but got {u.dim()}-D tensor")
    kinds = {u.dtype, x.dtype}
    cast = autocast_enabled(x.device.type) and torch.float64 not in kinds and all(k.is_floating_point for k in kinds)
    if u.device != x.device or (u.dtype != x.dtype and not cast):  # autocast gives all of a call one dtype
        raise RuntimeError(
            f"Expected {name} of dtype {x.dtype} on {x.device}, as the input, but got {u.dtype} on {u.device}"
        )
    u = u.unsqueeze(0) if step and single else u
    u = u.unsqueeze(-2) if dims == 2 else u
    return u.transpose(0, 1) if step and batch_first and dims == 3 else u


@aside
def check_extras(program, extras, x, H, single=False):
    """Check the sizes of extra inputs against x (T, B, I); of a single step the errors are without T."""
    T, B = x.shape[:2]
    for name, u in zip(extras_of(program), extras, strict=True):
        width = 1 if name in program.narrow else H
        expected = (T, B, width) if name in program.step else (B, width)
        if u.shape != expected:
            start = 1 if single and name in program.step else 0
            raise RuntimeError(f"Expected {name} size {expected[start:]}, got {list(u.shape[start:])}")
