"""What a result was measured on: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# The instruction sets that decide the speed of these kernels, as Linux names them (x86, then Arm).
SETS = (
    "avx avx2 fma avx_vnni avx512f avx512bw avx512_bf16 avx512_vnni avx512_fp16 amx_bf16 amx_int8 asimd asimdhp bf16 "
    "sve i8mm"
)


def _read(path: str) -> str:
    """A file of Linux; nothing on other systems."""
    return Path(path).read_text() if Path(path).exists() else ""


def _cpuinfo(*fields: str) -> str:
    found = re.search(rf"^({'|'.join(fields)})\s*:(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[2].strip() if found else ""


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit of the working tree, marked when something else than results has changed; "unknown" outside a
    repository."""

    def git(*command: str) -> str:
        return subprocess.run(("git", *command), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cores(threads: int) -> list[int]:
    """The cores for so many threads: the last ones (interrupts prefer the first), of different physical cores if it can
    be. All of them where there are fewer than threads; none where the system does not pin."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    mine, siblings = sorted(os.sched_getaffinity(0)), "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    first_of_each = {_read(siblings.format(cpu)) or str(cpu): cpu for cpu in mine}.values()
    return sorted(sorted(mine, key=lambda cpu: (cpu in first_of_each, cpu))[-threads:])


def instruction_sets() -> list[str]:
    """Those of ``SETS`` that this machine has."""
    flags = _cpuinfo("flags", "Features").split()
    return [name for name in SETS.split() if name in flags]


def describe(device: str, command: str, peers: tuple[str, ...] = ("onnxruntime", "openvino", "jax")) -> dict:
    """The facts of this machine, of the versions of all that is compared, and of the library's backends."""
    import rnnkernels  # not with this file: workers are forked from a process that has loaded it (worker.py)

    facts = {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction sets": " ".join(instruction_sets()) or "unknown",
        "load before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "peers": ", ".join(f"{name} {version(name)}" for name in peers),
        "rnnkernels": rnnkernels.__version__,
        "backends": " ".join(rnnkernels.backends.available()),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
    return facts | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})
