"""Peak memory of one call: on the CPU in a fresh process (`python -m benchmarks.memory`), where nothing else counts."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.providers import PROVIDERS, Case
from benchmarks.workloads import Workload

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cuda_growth(run: Callable) -> int:
    """The most that torch's allocator held during one call, less what it held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def rss_growth(run: Callable) -> int | None:
    """Peak resident memory during one call, less the resident memory before it. None where the system has no count."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # free memory that malloc kept would hide the growth
        before = _status_bytes("VmRSS")
        CLEAR.write_text("5")  # the peak starts again from here
    except (OSError, AttributeError, StopIteration):
        return None
    kept = run()
    peak = _status_bytes("VmHWM")
    del kept
    return max(0, peak - before)


def of_child(case: Case, provider: str, threads: int) -> int | None:
    """`rss_growth` of one call of the provider, in a process that has done nothing but the same with one time step."""
    ask = {"workload": asdict(case.workload), "dtype": case.dtype, "mode": case.mode}
    ask |= {"provider": provider, "threads": threads}
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(ask)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the same packages as here
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        print(f"memory of {provider} on {case.workload.name} not measured:\n{child.stderr}", file=sys.stderr)
        return None
    return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    ask = json.loads(sys.argv[1])
    torch.set_num_threads(ask["threads"])
    w = Workload(**ask["workload"])
    for shape in (replace(w, T=1), w):  # one step first: it loads libraries and starts threads
        run = PROVIDERS[ask["provider"]](Case(shape, ask["dtype"], ask["mode"])).run
        with torch.inference_mode(ask["mode"] == "infer"):
            growth = rss_growth(run)
    print(json.dumps(growth))


if __name__ == "__main__":
    main()
