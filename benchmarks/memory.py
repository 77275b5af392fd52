"""Peak memory of one call, the results included. Of use in a process that has done little else: `measure.Subject`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _start() -> int | None:
    """Bytes held now, from where the peak is counted. None where the system has no count."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # free memory that malloc kept would hide the growth
        before = _status_bytes("VmRSS")
        CLEAR.write_text("5")  # the peak starts again from here
    except (OSError, AttributeError, StopIteration):
        return None
    return before


def rss_growth(run: Callable[[], Any]) -> tuple[int | None, Any]:
    """Peak resident memory during one call, less the resident memory before it; and what the call gave."""
    before = _start()
    result = run()
    return None if before is None else max(0, _status_bytes("VmHWM") - before), result


def cuda_growth(run: Callable[[], Any]) -> tuple[int, Any]:
    """The most that torch's allocator held during one call, less what it held before; and what the call gave."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result
