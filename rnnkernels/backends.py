"""The choice of the backend that runs a call, with the reasons against the others.

PyTorch's dispatcher chooses wherever it can (CPU: C++, CUDA: Triton, anything else: the reference). This file chooses
where a backend is forced, or where a call uses a stage that the device's backend does not have.
"""

import importlib
import importlib.util
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from . import reference
from .cells import CELLS

ENVIRONMENT_VARIABLE = "RNNKERNELS_BACKEND"
HAS_TRITON = importlib.util.find_spec("triton") is not None
_forced = os.environ.get(ENVIRONMENT_VARIABLE) or None


class Call(NamedTuple):
    """The facts of one layer call that decide which backend can run it."""

    cell: str
    device: torch.device
    dtype: torch.dtype
    T: int
    B: int
    I: int  # noqa: E741 - the letter of the whole library
    H: int
    P: int
    D: int
    training: bool = False
    stages: frozenset = frozenset()
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"


class Reference:
    """The definition in plain torch operations: any device, any dtype, any stage; slow."""

    name = "reference"
    layer, layer_backward = staticmethod(reference.layer), staticmethod(reference.layer_backward)

    @staticmethod
    def unsupported(call):
        return None

    @staticmethod
    def schedule(call):
        return "scan: a Python loop over time steps"


class Cpp:
    """The C++ extension: fused loops on the CPU."""

    name = "cpp"
    STAGES = frozenset({"lengths", "project", "reset", "h_mask", "zone", "layer_norm", "second_product"})
    DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

    @staticmethod
    def layer(*args):
        return torch.ops.rnnkernels.plain_layer(*args)

    @staticmethod
    def layer_backward(*args):
        return torch.ops.rnnkernels.plain_layer_backward(*args)

    @classmethod
    def unsupported(cls, call):
        if EXTENSION_ERROR is not None:
            return f"the C++ extension is not there ({EXTENSION_ERROR})"
        if call.device.type != "cpu":
            return f"it runs on the CPU, and the input is on {call.device}"
        if call.dtype not in cls.DTYPES:
            return f"dtype {call.dtype} is not one of {', '.join(map(str, cls.DTYPES))}"
        return lacking(call, cls.STAGES)

    @staticmethod
    def schedule(call):
        return torch.ops.rnnkernels.schedule(
            call.cell, call.dtype, call.T, call.B, call.I, call.H, call.P, call.D, call.training,
            "layer_norm" in call.stages,
        )  # fmt: skip


class Triton:
    """Triton kernels: GPUs."""

    name = "triton"

    @staticmethod
    def layer(*args):
        from .triton import launch

        return launch.layer(*args)

    @staticmethod
    def layer_backward(*args):
        from .triton import launch

        return launch.layer_backward(*args)

    @classmethod
    def unsupported(cls, call):
        if not HAS_TRITON:
            return "triton is not installed"
        if call.device.type == "cpu" and _forced != cls.name:
            return "it runs on GPUs (on the CPU interpreted, for tests, where it is forced)"
        from .triton import launch

        return launch.unsupported(call)

    @staticmethod
    def schedule(call):
        from .triton import launch

        return launch.schedule(call)


def lacking(call, stages):
    """The reason why a backend with these stages cannot run the call, or None."""
    missing = sorted(call.stages - stages)
    if missing:
        return f"it has no stage for {', '.join(missing)} yet"
    return None


BACKENDS = {backend.name: backend for backend in (Cpp, Triton, Reference)}  # in order of preference


def load_extension():
    """Load the C++ extension; None, or the reason why it is missing, which is also a warning."""
    try:
        importlib.import_module(f"{__package__}._C")  # importing it registers the kernels
    except ImportError as error:
        failed = Path(__file__).with_name("_C_error.txt")  # written by setup.py
        reason = f"it could not be built: {failed.read_text()}" if failed.exists() else str(error)
        warnings.warn(
            f"rnnkernels: the C++ extension is not there, the CPU runs on the slow reference backend ({reason})",
            RuntimeWarning,
            stacklevel=3,
        )
        return reason
    return None


EXTENSION_ERROR = load_extension()


def names():
    """The names of all backends, in order of preference."""
    return list(BACKENDS)


def available():
    """The backends that can run on this machine, in order of preference."""
    found = [] if EXTENSION_ERROR is not None else ["cpp"]
    runs_triton = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    if runs_triton and HAS_TRITON:
        found.append("triton")
    return [*found, "reference"]


def forced():
    """The name of the backend that is forced now, or None."""
    return _forced


@contextmanager
def force(name):
    """Within this context every call runs on the named backend ("cpp", "triton" or "reference") or raises.

    The environment variable ``RNNKERNELS_BACKEND`` does the same for a whole process.

    Raises:
        ValueError: for a name that is no backend.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"Expected a backend out of {', '.join(BACKENDS)}, but got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def reasons(call):
    """For every backend in order of preference: its name, and the reason why it cannot run the call, or None."""
    return [(name, backend.unsupported(call)) for name, backend in BACKENDS.items()]


def choose(call):
    """The name of the backend that runs the call.

    Raises:
        RuntimeError: if the forced backend cannot run it, with the reason of every backend that cannot.
    """
    if _forced is None:
        return next(name for name, reason in reasons(call) if reason is None)
    if _forced not in BACKENDS:
        raise RuntimeError(f"{ENVIRONMENT_VARIABLE}={_forced} is none of the backends {', '.join(BACKENDS)}")
    if BACKENDS[_forced].unsupported(call) is not None:
        why = "\n".join(f"  {name}: {reason or 'could run it'}" for name, reason in reasons(call))
        raise RuntimeError(f"backend {_forced!r} is forced but cannot run this call:\n{why}")
    return _forced


def facts(cell, x, weights, reverse, project, activation, recurrent_activation,
          lengths, reset, h_mask, zone, layer_norm, training=False):  # fmt: skip
    """The ``Call`` of an op call."""
    spec = CELLS[cell]
    stages = {
        "lengths": lengths is not None, "reset": reset is not None, "h_mask": h_mask is not None,
        "zone": bool(zone), "layer_norm": layer_norm, "project": project, "second_product": spec.phases > 1,
    }  # fmt: skip
    return Call(
        cell, x.device, x.dtype, x.size(-3), x.size(-2), x.size(-1), weights[1].size(0) // spec.gates,
        weights[1].size(1), len(reverse) * (x.size(0) if x.dim() == 4 else 1), training,
        frozenset(name for name, used in stages.items() if used),
        activation or "tanh", recurrent_activation or "sigmoid",
    )  # fmt: skip


def route(*call):
    """The backend of an op call, or "dispatch" if PyTorch's dispatcher would choose the same one."""
    call = facts(*call)
    chosen = choose(call)
    own = {"cpu": "cpp" if EXTENSION_ERROR is None else "reference", "cuda": "triton"}.get(
        call.device.type, "reference"
    )
    return "dispatch" if chosen == own else chosen
