"""What the chooser of schedules has to know of a GPU."""

import functools
from typing import NamedTuple

import torch


class Chip(NamedTuple):
    """What the chooser has to know of a GPU."""

    name: str
    backend: str  # "cuda" or "hip"
    capability: int  # 80, 90, ...; 0 for hip
    shared: int  # bytes of shared memory that one program may have
    processors: int


A100 = Chip("no GPU here, as for an A100", "cuda", 80, 166_912, 108)


@functools.lru_cache
def chip_of(device):
    """The chip of a torch device; figures of an A100 where there is no GPU (the interpreter, offline compilation)."""
    if device.type != "cuda":
        return A100
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Chip(found.name, "hip", 0, 65_536, found.multi_processor_count)
    capability = 10 * found.major + found.minor
    return Chip(found.name, "cuda", capability, found.shared_memory_per_block_optin, found.multi_processor_count)
