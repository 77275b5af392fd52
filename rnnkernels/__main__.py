"""What this installation and machine have; with ``--bench`` also how fast they are."""

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from . import __version__, backends
from .nn import checks
from .tools import bench

ENVIRONMENT_VARIABLES = (
    backends.ENVIRONMENT_VARIABLE, checks.ENVIRONMENT_VARIABLE, "RNNKERNELS_ISA", "TRITON_INTERPRET"
)  # fmt: skip


def version(distribution: str) -> str:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu() -> str:
    """The name of the processor, and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def extension() -> str:
    """The file of the C++ extension, or the reason why there is none."""
    if backends.EXTENSION_ERROR is not None:
        return f"not there ({backends.EXTENSION_ERROR})"
    from . import _C

    return str(_C.__file__)


def instruction_sets() -> str:
    """The instruction sets that the C++ extension can use here, best first; the first is the one in use."""
    if backends.EXTENSION_ERROR is not None:
        return "none: the C++ extension is not there"
    best, *others = torch.ops.rnnkernels.instruction_sets().split(",")
    return ", ".join([f"{best} (in use)", *others])


def gpus() -> str:
    """The names of the GPUs that torch sees."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ", ".join(torch.cuda.get_device_name(k) for k in range(n)) or "none"


def report() -> list[tuple[str, str]]:
    """Pairs of a name and a value, in the order in which they are printed."""
    forced = backends.forced()
    return [
        ("rnnkernels", __version__),
        ("torch", torch.__version__),
        ("triton", version("triton")),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("CPU", cpu()),
        ("extension", extension()),
        ("instruction sets", instruction_sets()),
        ("threads", str(torch.get_num_threads())),
        ("GPUs", gpus()),
        ("backends", ", ".join(backends.available()) + (f" ({forced} is forced)" if forced else "")),
        *[(name, os.environ[name]) for name in ENVIRONMENT_VARIABLES if name in os.environ],
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m rnnkernels", description=__doc__)
    parser.add_argument("--bench", action="store_true", help="time layers beside torch.nn's")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"of --bench (default: {device})")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing by --bench, about (default: 20)")
    asked = parser.parse_args(argv)
    rows = report()
    width = max(len(what) for what, _ in rows)
    for what, value in rows:
        print(f"{what:{width}}  {value}")
    if asked.bench:
        print(flush=True)
        print(bench.table(bench.shown(bench.rows(asked.device, asked.seconds))))


if __name__ == "__main__":
    main()
