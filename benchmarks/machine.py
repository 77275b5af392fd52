"""What a result was measured on: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
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


def _cpuinfo(*fields: str) -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() in fields:
            return value.strip()
    return ""


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit of the working tree, marked when the tree has changes; "unknown" outside a repository."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def _library() -> dict[str, str]:
    """The library's version and backends, so that a table says whether compiled kernels were there."""
    try:
        import rnnkernels
    except ImportError as error:
        return {"rnnkernels": f"cannot be imported: {error}", "backends": "none"}
    return {"rnnkernels": rnnkernels.__version__, "backends": " ".join(rnnkernels.backends.available())}


def _physical_core(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return path.read_text().strip() if path.exists() else str(cpu)


def cores(threads: int) -> list[int]:
    """The cores for so many threads: the last ones (interrupts prefer the first), of different physical cores if it can
    be. All of them where there are fewer than threads; none where the system does not pin."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    mine = sorted(os.sched_getaffinity(0), reverse=True)
    first_of_each = list({_physical_core(cpu): cpu for cpu in reversed(mine)}.values())
    first_of_each.sort(reverse=True)
    others = [cpu for cpu in mine if cpu not in first_of_each]
    return sorted((first_of_each + others)[:threads])


def instruction_sets() -> list[str]:
    """Those of ``SETS`` that this machine has."""
    flags = _cpuinfo("flags", "Features").split()
    return [name for name in SETS.split() if name in flags]


def describe(device: str, command: str, peers: tuple[str, ...] = ("onnxruntime", "openvino", "jax")) -> dict:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "instruction sets": " ".join(instruction_sets()) or "unknown",
        "load before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "peers": ", ".join(f"{name} {version(name)}" for name in peers),
        **_library(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
