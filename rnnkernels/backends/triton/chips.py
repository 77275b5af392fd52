"""The facts of a GPU by which schedules are chosen."""

from typing import NamedTuple

import torch


class Chip(NamedTuple):
    """The facts of a GPU by which schedules are chosen."""

    name: str
    backend: str  # "cuda" or "hip"
    capability: int  # 80, 90, ...; 0 for hip
    shared: int  # bytes of shared memory that one program may have
    processors: int


A100 = Chip("no GPU here, as for an A100", "cuda", 80, 166_912, 108)


_found: dict[torch.device, Chip] = {}


@torch.compiler.assume_constant_result  # so that Dynamo calls it once, and does not trace it
def chip_of(device):
    """The chip of a torch device; figures of an A100 where there is no GPU (the interpreter, offline compilation)."""
    if device.type != "cuda":
        return A100
    if device not in _found:
        _found[device] = described(torch.cuda.get_device_properties(device))
    return _found[device]


def described(properties):
    """The chip that CUDA's or HIP's properties of a device describe."""
    if torch.version.hip:
        return Chip(properties.name, "hip", 0, 65_536, properties.multi_processor_count)
    capability = 10 * properties.major + properties.minor
    shared = properties.shared_memory_per_block_optin
    return Chip(properties.name, "cuda", capability, shared, properties.multi_processor_count)
