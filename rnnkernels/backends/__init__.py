"""The choice of the backend that runs a call, with the reasons against the others.

PyTorch's dispatcher chooses wherever it can (CPU: C++, CUDA: Triton, anything else: the reference). This file chooses
where a backend is forced, or where a call uses a stage that the device's backend does not have.
"""

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..cells import reference
from ..cells.call import Facts as Facts  # of a call, which the functions below take
from .triton import HAS_TRITON

ENVIRONMENT_VARIABLE = "RNNKERNELS_BACKEND"
_forced = os.environ.get(ENVIRONMENT_VARIABLE) or None


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
        return call.lacking(cls.STAGES)

    @staticmethod
    def schedule(call):
        return torch.ops.rnnkernels.schedule(
            call.cell, call.dtype, call.T, call.B, call.I, call.H, call.P, call.D, call.training,
            "layer_norm" in call.stages, call.parts, call.packed > 0,
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


BACKENDS = {backend.name: backend for backend in (Cpp, Triton, Reference)}  # in order of preference


def load_extension() -> str | None:
    """Load the C++ extension; None, or the reason why it is missing, which is also a warning."""
    try:
        importlib.import_module("rnnkernels._C")  # importing it registers the kernels
    except ImportError as error:
        failed = Path(__file__).parents[1] / "_C_error.txt"  # written by setup.py
        reason = f"it could not be built: {failed.read_text()}" if failed.exists() else str(error)
        warnings.warn(
            f"rnnkernels: the C++ extension is not there, the CPU runs on the slow reference backend ({reason})",
            RuntimeWarning,
            stacklevel=3,
        )
        return reason
    return None


EXTENSION_ERROR = load_extension()


def names() -> list[str]:
    """The names of all backends, in order of preference."""
    return list(BACKENDS)


def available() -> list[str]:
    """The backends that can run on this machine, in order of preference."""
    found = [] if EXTENSION_ERROR is not None else ["cpp"]
    runs_triton = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    if runs_triton and HAS_TRITON:
        found.append("triton")
    return [*found, "reference"]


def forced() -> str | None:
    """The name of the backend that is forced now, or None."""
    return _forced


@contextmanager
def force(name: str) -> Iterator[None]:
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


def reasons(call: Facts) -> list[tuple[str, str | None]]:
    """For every backend in order of preference: its name, and the reason why it cannot run the call, or None."""
    return [(name, backend.unsupported(call)) for name, backend in BACKENDS.items()]


def choose(call: Facts) -> str:
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


def route(call: Facts) -> str:
    """The backend of a call, or "dispatch" where PyTorch's dispatcher would take the same."""
    chosen = choose(call)
    own = {"cpu": "cpp" if EXTENSION_ERROR is None else "reference", "cuda": "triton"}.get(
        call.device.type, "reference"
    )
    return "dispatch" if chosen == own else chosen
