"""What came out of a compiled Triton kernel: registers, spills, and the machine code of its time loop.

Letters: T time, B batch, H hidden. Counted are instructions as they stand in the loop: those of a loop inside it once.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections import Counter

import triton
from triton.backends.compiler import GPUTarget

BIN = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
TENSOR_CORE = re.compile(r"^(HGMMA|HMMA|DMMA|UTC[A-Z]*MMA|v_mfma_.*)$")
BARRIER = re.compile(r"^(BAR|s_barrier)$")
ATOMIC = re.compile(r"^(ATOM|ATOMG|RED|REDG|(global|buffer|flat)_atomic\w*)$")
STACK = re.compile(r"^(LDL|STL|scratch_(load|store)\w*)$")
# Bytes that a thread loads from global memory, by a part of the opcode; without any of these it is 4.
SASS_LOADS = {"LDG", "LDGSTS"}
SASS_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
GCN_LOAD = re.compile(r"^(?:global|buffer|flat)_load_(?:lds_)?(\w+)$")
GCN_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "sshort": 2, "short": 2}
GCN_WIDTHS |= {"ubyte": 1, "sbyte": 1}


def target_of(arch):
    """A target from "sm_90" or "gfx942"."""
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch[3:]), 32)
    return GPUTarget("hip", arch, 64)


def disassemble(tool, compiled, *options):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        with open(path, "wb") as file:
            file.write(compiled.asm["cubin"])
        command = [os.path.join(BIN, tool), *options, path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def listing(compiled):
    """The machine code as text."""
    return compiled.asm["amdgcn"] if "amdgcn" in compiled.asm else disassemble("nvdisasm", compiled, "-c", "-ndf")


def loops(lines):
    """Line ranges (first, last) of the loops: the spans of the backward branches."""
    labels, found = {}, []
    for at, line in enumerate(lines):
        label = re.match(r"\s*(\.L\w+):", line)
        branch = re.search(r"\bBRA\b.*`\((\.L\w+)\)|\bs_c?branch\w*\s+(\.L\w+)", line)
        if label:
            labels[label.group(1)] = at
        name = branch and (branch.group(1) or branch.group(2))
        if name in labels:
            found.append((labels[name], at))
    return found


def opcodes(lines):
    """The opcodes of SASS with their modifiers, and of GCN."""
    for line in lines:
        code = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)|\s+([a-z]\w+)(?:\s|$)", line)
        if code:
            yield code.group(1) or code.group(2)


def loaded(opcode):
    """How many bytes a thread loads from global memory with an instruction; 0 for any other instruction."""
    name, *modifiers = opcode.split(".")
    if name in SASS_LOADS:
        return next((SASS_WIDTHS[m] for m in modifiers if m in SASS_WIDTHS), 4)
    gcn = GCN_LOAD.match(name)
    if gcn is None:
        return 0
    return next((size for width, size in GCN_WIDTHS.items() if gcn.group(1).startswith(width)), 4)


@functools.cache
def resources(compiled):
    """Registers of a thread, bytes of its stack (or spilled registers, where those are counted), shared memory; found
    without disassembling."""
    if "cubin" in compiled.asm:
        usage = re.search(r"REG:(\d+) STACK:(\d+)", disassemble("cuobjdump", compiled, "-res-usage"))
        registers, stack = map(int, usage.groups())
    else:
        registers, spilled, private = (
            int(re.search(rf"\.{field}:\s+(\d+)", compiled.asm["amdgcn"]).group(1))
            for field in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        )
        stack = max(private, spilled)
    return {"registers": registers, "stack": stack, "shared": compiled.metadata.shared}


def names_of(codes):
    """How often each opcode occurs, without its modifiers."""
    return Counter(code.split(".")[0] for code in codes)


def count(names, pattern):
    """How many instructions have a name that matches."""
    return sum(n for name, n in names.items() if pattern.match(name))


@functools.cache
def facts(compiled):
    """The resources, warps, and of the longest loop: instructions, those of tensor cores, those that use the stack,
    loads from global memory with the bytes that all threads of the program ask for (and those asked for before it),
    barriers, atomics, all opcodes."""
    lines = listing(compiled).splitlines()
    first, last = max(loops(lines), key=lambda span: span[1] - span[0], default=(0, -1))
    loop = list(opcodes(lines[first : last + 1]))
    names = names_of(loop)
    loads = [size for code in loop if (size := loaded(code))]
    before = sum(map(loaded, opcodes(lines[:first])))
    warps, lanes = compiled.metadata.num_warps, compiled.metadata.target.warp_size
    return resources(compiled) | {
        "warps": warps,
        "tensor": count(names, TENSOR_CORE),
        "loads": len(loads),
        "load_bytes": sum(loads) * warps * lanes,
        "bytes_before": before * warps * lanes,
        "spills": count(names, STACK),
        "barriers": count(names, BARRIER),
        "atomics": count(names, ATOMIC),
        "instructions": len(loop),
        "opcodes": dict(names),
    }
