"""``python -m rnnkernels``: versions, instruction sets, GPUs and backends of this installation and machine."""

import importlib.metadata
import os
import platform

import torch

from . import __version__, backends
from .nn import checks

ENVIRONMENT_VARIABLES = (
    backends.ENVIRONMENT_VARIABLE, checks.ENVIRONMENT_VARIABLE, "RNNKERNELS_ISA", "TRITON_INTERPRET"
)  # fmt: skip


def version(distribution):
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def instruction_sets():
    """The instruction sets that the C++ extension can use here, best first; the first is the one in use."""
    if backends.EXTENSION_ERROR is not None:
        return f"none: the C++ extension is not there ({backends.EXTENSION_ERROR})"
    best, *others = torch.ops.rnnkernels.instruction_sets().split(",")
    return ", ".join([f"{best} (in use)", *others])


def gpus():
    """The names of the GPUs that torch sees."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ", ".join(torch.cuda.get_device_name(k) for k in range(n)) or "none"


def report():
    """Pairs of a name and a value, in the order in which they are printed."""
    forced = backends.forced()
    return [
        ("rnnkernels", __version__),
        ("torch", torch.__version__),
        ("triton", version("triton")),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("instruction sets", instruction_sets()),
        ("threads", str(torch.get_num_threads())),
        ("GPUs", gpus()),
        ("backends", ", ".join(backends.available()) + (f" ({forced} is forced)" if forced else "")),
        *[(name, os.environ[name]) for name in ENVIRONMENT_VARIABLES if name in os.environ],
    ]


if __name__ == "__main__":
    rows = report()
    width = max(len(what) for what, _ in rows)
    for what, value in rows:
        print(f"{what:{width}}  {value}")
