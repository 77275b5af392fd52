"""``Stepper``: a stack of layers, or a cell, that runs on a few steps of input at a time and keeps the state between.

Letters: T time, B batch, H hidden, I input, L layers, S states, P output of a step (H, or proj_size).
"""

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling
from torch.utils._pytree import tree_map

from .. import backends
from ..cells import accumulate_dtype, spec_of
from ..cells.weights import names_of
from ..nn.base import MODES
from ..nn.cell_modules import kind_of_cell
from ..nn.checks import check_inference, check_weights
from ..nn.options import refuse_options
from ..nn.own_cells import check_extras, take_extras
from ..nn.recurrent import Recurrent, RecurrentCell
from .stepper_runners import Cpp, Reference, run_cpp


class Stepper:
    """Runs a recurrent module on a stream: one step, or a few, at a time, for inference on the CPU.

    It packs a copy of the weights once, owns the state, and computes the module's results (to rounding) for the
    sequence of all steps since the last reset, without dropout. The bits are the same however the sequence is cut into
    calls, on any number of threads.

    **It is a snapshot**: the weights are read at construction (parametrizations are evaluated then), and later changes
    of the module have no effect. Make a new one, and hand ``state`` over with ``load_state``.

    Args:
        module: RNN, LSTM, GRU or one of their cells, of ``rnnkernels`` or ``torch.nn``, or a ``Recurrent`` or
            ``RecurrentCell``, on the CPU: any number of layers, with or without bias and projection, float32, float64,
            bfloat16 or float16. ``batch_first`` has no effect here.
        batch_size: B, the number of streams that advance together.

    A Stepper is not for several threads at once: a call while another is running raises RuntimeError. It can be used
    after a fork, but not be copied or pickled. ``torch.compile`` leaves its calls out of the graph.

    The Stepper of a cell can also be called as the cell itself, with the state as argument and result. So a model that
    is written step by step runs on it unchanged: ``model.cell.forward = Stepper(model.cell, batch_size=1)``.

    Raises:
        TypeError: for a module of another kind, and for a cell with an input of the name x or out.
        ValueError: for a bidirectional module, one without hidden units, one with an option that torch.nn does not have
            and that counts in inference, a device or dtype other than those above, a batch size below 1.
        RuntimeError: for weights whose shapes do not fit the module, and if a backend is forced that cannot do this.
    """

    __slots__ = (
        "_B", "_H", "_I", "_P", "_acc", "_dtype", "_handle", "_is_cell", "_name", "_out", "_out_shape", "_program",
        "_runner", "_shapes", "_x_shape",
    )  # fmt: skip

    def __init__(self, module: nn.Module, batch_size: int) -> None:
        kind = kind_of(module)
        if kind is None:
            raise TypeError(
                f"Expected an RNN, LSTM or GRU of rnnkernels or torch.nn, or a cell, but got {type(module).__name__}"
            )
        self._program = module.cell.program if isinstance(module, (Recurrent, RecurrentCell)) else None
        self._is_cell = not isinstance(module, nn.RNNBase)
        if not self._is_cell and module.bidirectional:
            raise ValueError(
                "Expected a module with one direction, but got a bidirectional one: its second direction starts at the "
                "end of the sequence, which a stream does not have yet"
            )
        refuse_options("a Stepper", module)
        B = operator.index(batch_size)
        if B < 1:
            raise ValueError(f"Expected batch_size to be at least 1, but got {B}")
        if module.hidden_size == 0:
            raise ValueError("Expected a module with hidden units, but it has none")
        (cell, activation), bias, I, H = kind, module.bias, module.input_size, module.hidden_size  # noqa: E741
        if self._is_cell:
            names, L, P, project = names_of(cell, bias), 1, H, False
        else:
            names, L, P = module._flat_weights_names, module.num_layers, module.proj_size or H
            project = module.proj_size > 0
        weights = [getattr(module, name).detach() for name in names]
        dtype = weights[0].dtype if weights else torch.get_default_dtype()
        for w in weights:
            if w.device.type != "cpu" or w.dtype != dtype or dtype not in backends.Cpp.DTYPES:
                names = ", ".join(map(str, backends.Cpp.DTYPES))
                raise ValueError(f"Expected weights on the CPU, all of one of {names}, but got {w.dtype} on {w.device}")
        check_weights(weights, cell, L, 1, I, H, P, bias=bias, project=project)
        self._B, self._I, self._H, self._P = B, I, H, P
        self._dtype, self._acc, self._name = dtype, accumulate_dtype(dtype), str(module)
        facts = backends.Facts(
            cell, torch.device("cpu"), dtype, 1, B, I, H, P, 1,
            stages=frozenset({"project"} if project else ()), activation=activation or "tanh",
        )  # fmt: skip
        self._shapes = [(L, B, P), *[(L, B, H)] * (spec_of(cell).states - 1)]
        self._out = torch.empty(B, P, dtype=dtype, device="cpu")  # the template of ``step``'s results
        self._x_shape, self._out_shape, self._handle = None, (B, P), None
        chosen = backends.choose(facts)
        if chosen == "triton":
            raise RuntimeError("backend 'triton' is forced but has no Stepper; cpp and reference have one")
        if chosen == "cpp":
            self._runner = Cpp(cell, B, I, H, P, L, bias, project, activation, dtype, weights)
            self._handle = self._runner.handle
            if self._program is None or not self._program.extras:
                self._x_shape = (B, I)  # step and step_ skip the checks for an x of this shape
        else:
            self._runner = Reference(cell, L, bias, project, activation, weights, self._zeros())

    def step(self, x: Tensor, **inputs: Tensor) -> Tensor:
        """Take one step, or several.

        Args:
            x: (B, I), or (T, B, I) for T steps, in the dtype of the weights; any strides.
            inputs: the step inputs of a cell of one's own, (B, H or 1) or (T, B, H or 1) as x, and its sequence inputs
                (B, H), by name, in every call.

        Returns:
            The output (B, P), or (T, B, P): the same bits as from T calls.

        Raises:
            TypeError, ValueError, RuntimeError: for an x of another type, shape, dtype or device, or one that requires
                a gradient while gradients are enabled, or has a forward-mode tangent; and for such inputs, unknown and
                missing ones. The state is as it was.
        """
        if is_compiling():
            return torch.compiler.disable(outside)(self, x, None, inputs)
        if (
            type(x) is Tensor and x.shape == self._x_shape and x.dtype is self._dtype and x.is_cpu
            and x.is_contiguous() and not x.requires_grad and not x.is_neg() and forward_ad._current_level < 0
            and not inputs
        ):  # fmt: skip
            out = torch.empty_like(self._out)
            if run_cpp(self._handle, x.data_ptr(), out.data_ptr()):
                return out
        x, extras = self._checked(x, inputs, "step")
        out = torch.empty((*x.shape[:-1], self._P), dtype=self._dtype, device="cpu")
        self._run(x, out, extras)
        return out

    def step_(self, x: Tensor, out: Tensor, **inputs: Tensor) -> Tensor:
        """``step`` into an existing tensor: allocates nothing if the rows of x are contiguous.

        Args:
            x, inputs: as for :meth:`step`.
            out: (B, P) or (T, B, P); its rows are contiguous, with any strides between them, and overlap neither each
                other nor x and the inputs.

        Returns:
            ``out``.

        Raises:
            TypeError, ValueError, RuntimeError: as for :meth:`step`, and for such an ``out``. Nothing is written.
        """
        if is_compiling():
            return torch.compiler.disable(outside)(self, x, out, inputs)
        dtype = self._dtype
        if (
            type(x) is Tensor and x.shape == self._x_shape and x.dtype is dtype and x.is_cpu
            and x.is_contiguous() and not x.requires_grad and not x.is_neg()
            and type(out) is Tensor and out.shape == self._out_shape and out.dtype is dtype and out.is_cpu
            and out.is_contiguous() and not out.requires_grad and not out.is_neg() and forward_ad._current_level < 0
            and not inputs and run_cpp(self._handle, x.data_ptr(), out.data_ptr())
        ):  # fmt: skip
            increment_version(out)
            return out
        x, extras = self._checked(x, inputs, "step_")
        self._check_out(x, out)
        self._run(x, out, extras)
        increment_version(out)
        return out

    def __call__(self, input: Tensor, hx: Tensor | tuple[Tensor, ...] | None = None, **inputs: Tensor) -> Any:
        """Take one step from the state ``hx``, as a call of the cell does; for Steppers of cells.

        Args:
            input: (B, I), or (I,) where B is 1.
            hx: what the last call returned: h (B, H), or (h, c) for an LSTMCell, (H,) with (I,). Default: zeros
            inputs: as for the RecurrentCell: its step and sequence inputs by name, (B, H or 1), or (H or 1,) with (I,).

        Returns:
            h' (B, H), or (h', c') for an LSTMCell, in the dtype of the weights; of a RecurrentCell the output and the
            states, as its call does.

        Raises:
            TypeError: for a Stepper of layers, which has :meth:`step`.
            TypeError, ValueError, RuntimeError: as :meth:`step` and :meth:`load_state`.
        """
        if is_compiling():
            return torch.compiler.disable(Stepper._call)(self, input, hx, inputs)
        return self._call(input, hx, inputs)

    def _call(self, input, hx, inputs):
        """``__call__`` outside of graphs."""
        if not self._is_cell:
            raise TypeError(f"A Stepper of {self._name} is not callable: use step, state and load_state")
        states = () if hx is None else (hx,) if isinstance(hx, Tensor) else hx
        if isinstance(input, Tensor) and input.dim() == 1 and self._B == 1:
            rows = [s[None] if isinstance(s, Tensor) and s.dim() == 1 else s for s in states]
            given = {name: u[None] if isinstance(u, Tensor) and u.dim() == 1 else u for name, u in inputs.items()}
            new = self._call(input[None], None if hx is None else rows if len(rows) != 1 else rows[0], given)
            return tree_map(lambda s: s.squeeze(0), new)
        if isinstance(input, Tensor) and input.dim() > 2:
            raise ValueError(f"Stepper: Expected input to be 1D or 2D, got {input.dim()}D instead")
        x, extras = self._checked(input, inputs, "forward")
        for s in states:
            if isinstance(s, Tensor):
                check_inference("a Stepper", "hx", s)
        if hx is None:
            self._runner.reset(None)
        else:
            self.load_state(hx)
        y = torch.empty((self._B, self._P), dtype=self._dtype, device="cpu")
        self._run(x, y, extras)
        if self._program is None and len(self._shapes) == 1:
            return y
        states = tree_map(lambda s: s.to(self._dtype), self.state)
        return (y, states[1]) if self._program is None else (y, states)

    def reset(self, mask: Tensor | None = None) -> None:
        """Set the state to zero: of the rows where ``mask``, bool (B,) on the CPU, is true; of all without a mask.

        Raises:
            TypeError, ValueError: for a mask of another type, dtype, shape or device.
        """
        if mask is not None:
            if not isinstance(mask, Tensor):
                raise TypeError(f"Expected mask to be a Tensor or None, but got {type(mask).__name__}")
            if mask.dtype != torch.bool or mask.shape != (self._B,) or mask.device.type != "cpu":
                raise ValueError(
                    f"Expected mask to be torch.bool of shape ({self._B},) on the CPU, but got {mask.dtype} of shape "
                    f"{tuple(mask.shape)} on {mask.device}"
                )
            mask = mask.contiguous()
        self._runner.reset(mask)

    @property
    def state(self) -> Tensor | tuple[Tensor, ...]:
        """A copy of the state in the form of the module's ``hx``: h (L, B, P), for an LSTM the pair with c (L, B, H).
        For a cell: h (B, H), or the pair with c (B, H).

        Its dtype is that of the computation, float32 for modules of 16 bits, so that ``load_state`` restores the same
        bits.
        """
        states = self._zeros()
        for k, s in enumerate(states):
            self._runner.state(k, s, False)
        if self._is_cell:
            states = [s.squeeze(0) for s in states]
        return states[0] if len(states) == 1 else tuple(states)

    def load_state(self, hx: Tensor | tuple[Tensor, ...]) -> None:
        """Take a state: ``hx`` as from ``state``, or as the module returns it. It is copied.

        Raises:
            TypeError, ValueError, RuntimeError: for another type, number of states, shape, dtype or device.
        """
        expected = self._zeros()
        states = (hx,) if isinstance(hx, Tensor) else hx
        if not isinstance(states, (tuple, list)) or not all(isinstance(s, Tensor) for s in states):
            raise TypeError(f"Expected hx to be a Tensor or a tuple of Tensors, but got {type(hx).__name__}")
        if len(states) != len(expected):
            many = ("one hidden state", *(f"{n} hidden states" for n in ("two", "three", "four")))[len(expected) - 1]
            raise RuntimeError(f"{self._name} expects {many}, but got {len(states)}")
        for k, (s, e) in enumerate(zip(states, expected, strict=True)):
            shape = e.shape[1:] if self._is_cell else e.shape
            if s.shape != shape:
                name = "hidden size" if len(states) == 1 else f"hidden[{k}] size"
                raise RuntimeError(f"Expected {name} {tuple(shape)}, got {list(s.shape)}")
            if s.device.type != "cpu" or s.dtype not in (self._acc, self._dtype):
                allowed = " or ".join(dict.fromkeys(map(str, (self._acc, self._dtype))))
                raise ValueError(f"Expected a state in {allowed} on the CPU, but got {s.dtype} on {s.device}")
        for k, (s, e) in enumerate(zip(states, expected, strict=True)):
            self._runner.state(k, e.copy_(s.detach()), True)

    @property
    def batch_size(self) -> int:
        """B."""
        return self._B

    @property
    def backend(self) -> str:
        """The backend's name: "cpp", or the slow "reference" without the C++ extension or where it was forced."""
        return self._runner.name

    def __repr__(self) -> str:
        return f"Stepper({self._name}, batch_size={self._B}, backend={self.backend!r})"

    def __reduce_ex__(self, protocol):
        raise TypeError(
            "a Stepper cannot be copied or pickled: make another one of the module, and load_state(stepper.state)"
        )

    def _zeros(self):
        """New zeros for the S states."""
        return [torch.zeros(s, dtype=self._acc, device="cpu") for s in self._shapes]

    def _checked(self, x, inputs, who):
        """x and the cell's other inputs, (T, B, H or 1) and (B, H), or copies whose rows are contiguous; raises as
        ``step`` does, in the name of ``who``."""
        self._check_tensor("x", "input", x)
        shape = x.shape
        if len(shape) not in (2, 3):
            raise ValueError(f"Stepper: Expected input to be 2D or 3D, got {len(shape)}D tensor instead")
        if shape[-1] != self._I:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self._I}, got {shape[-1]}")
        if shape[-2] != self._B:
            raise ValueError(f"Expected input.size(-2) to be equal to batch_size. Expected {self._B}, got {shape[-2]}")
        if shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        program = self._program
        if program is None or not program.extras:
            if inputs:
                raise TypeError(f"{who}() got an unexpected keyword argument {next(iter(inputs))!r}")
            return whole_rows(x), ()
        single = len(shape) == 2
        extras = take_extras(program, inputs, x, False, 3, who, single)
        for name, u in zip(program.extras, extras, strict=True):
            self._check_tensor(name, name, u)
        check_extras(program, extras, x.unsqueeze(0) if single else x, self._H, single)
        return whole_rows(x), [whole_rows(u) for u in extras]

    def _check_tensor(self, name, role, t):
        """The checks that x and out share: type, device, dtype, layout, no gradient."""
        if not isinstance(t, Tensor):
            raise TypeError(f"Expected {name} to be a Tensor, but got {type(t).__name__}")
        if t.device.type != "cpu":
            raise RuntimeError(
                f"{role.capitalize()} and parameter tensors are not at the same device, found {role} tensor at "
                f"{t.device} and parameter tensor at cpu"
            )
        if t.dtype != self._dtype:
            raise ValueError(f"RNN {role} dtype ({t.dtype}) does not match weight dtype ({self._dtype})")
        if t.layout != torch.strided:
            raise ValueError(f"Expected {name} to be a dense tensor, but got layout {t.layout}")
        check_inference("a Stepper", name, t)

    def _check_out(self, x, out):
        """Check that out can hold the result of x; ``_run`` checks that they do not overlap."""
        self._check_tensor("out", "output", out)
        shape = (*x.shape[:-1], self._P)
        if out.shape != shape:
            raise ValueError(f"Expected out of shape {shape}, but got {tuple(out.shape)}")
        room, rows = self._P, sorted((s, n) for s, n in zip(out.stride()[:-1], shape[:-1], strict=True) if n > 1)
        whole = out.stride(-1) == 1 or self._P == 1
        for stride, n in rows:
            whole = whole and stride >= room
            room = stride * (n - 1) + room
        if not whole or out.is_neg():
            raise ValueError(
                f"Expected out to have rows of adjoining elements that do not overlap, but got strides {out.stride()} "
                f"for shape {shape}"
            )

    def _run(self, x, out, extras):
        """All steps, on checked tensors."""
        if x.dim() == 2:
            x, out = x.unsqueeze(0), out.unsqueeze(0)
        if not self._runner.run(x, out, extras):
            raise RuntimeError("Expected out and x to have memory of their own, but they overlap or have none")


def whole_rows(t):
    """t, or a copy of it, with elements next to each other in the last dimension, and no negative bit."""
    return t.contiguous().resolve_neg() if t.is_neg() or (t.stride(-1) != 1 and t.size(-1) > 1) else t


def kind_of(module):
    """The cell of a module and its activation; None for a module of another kind."""
    if not isinstance(module, (Recurrent, RecurrentCell)):
        return MODES.get(module.mode) if isinstance(module, nn.RNNBase) else kind_of_cell(module)
    for name in ("x", "out"):
        if name in module.cell.program.extras:
            raise TypeError(f"a Stepper has an argument {name} of its own, which {module.cell.program.name} has too")
    return module._rk_kind if isinstance(module, Recurrent) else (module.cell.kernel, None)


def outside(stepper, x, out, inputs):
    """A step for a compiler to leave out of its graph."""
    return stepper.step(x, **inputs) if out is None else stepper.step_(x, out, **inputs)
