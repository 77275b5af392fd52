"""Compile the Triton kernels for a GPU that is not there, and read what came out: registers, spills, machine code."""

import os
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BIN = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA|DMMA|UTC[A-Z]*MMA)\b|v_mfma_")


def target_of(arch):
    """A target from "sm_90" or "gfx942"."""
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch[3:]), 32)
    return GPUTarget("hip", arch, 64)


def compile_kernel(kernel, arguments, constexprs, arch, aligned=(), **options):
    """Compile ``kernel``; arguments maps its run-time arguments to types (None: the argument is None)."""
    signature, values, attributes = {}, {}, {}
    for at, name in enumerate(kernel.arg_names):
        if name in constexprs or arguments[name] is None:
            signature[name], values[(at,)] = "constexpr", constexprs.get(name)
        elif isinstance(arguments[name], tuple):
            signature[name] = arguments[name]
            attributes.update({(at, n): [["tt.divisibility", 16]] for n in range(len(arguments[name]))})
        else:
            signature[name] = arguments[name]
            if arguments[name].startswith("*") or name in aligned:
                attributes[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=target_of(arch), options=options)


def disassemble(tool, compiled, *options):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        with open(path, "wb") as file:
            file.write(compiled.asm["cubin"])
        return subprocess.run([os.path.join(BIN, tool), *options, path], capture_output=True, text=True).stdout


def listing(compiled):
    """The machine code as text."""
    return compiled.asm["amdgcn"] if "amdgcn" in compiled.asm else disassemble("nvdisasm", compiled, "-c")


def loops(lines):
    """Line ranges (first, last) of the loops in SASS: the spans of its backward branches."""
    labels, found = {}, []
    for at, line in enumerate(lines):
        label = re.match(r"\s*(\.L\w+):", line)
        branch = re.search(r"BRA.*`\((\.L\w+)\)", line)
        if label:
            labels[label.group(1)] = at
        if branch and branch.group(1) in labels:
            found.append((labels[branch.group(1)], at))
    return found


def opcodes(lines):
    """How often each opcode occurs, without its modifiers."""
    counts = {}
    for line in lines:
        code = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", line)
        if code:
            counts[code.group(1)] = counts.get(code.group(1), 0) + 1
    return counts


def facts(compiled):
    """Registers, stack (spills), shared memory, whether tensor cores are used, and the opcodes of the longest loop."""
    text = listing(compiled)
    found = {"shared": compiled.metadata.shared, "warps": compiled.metadata.num_warps}
    found["tensor"] = bool(TENSOR_CORE.search(text))
    if "cubin" in compiled.asm:
        usage = disassemble("cuobjdump", compiled, "-res-usage")
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
        lines = text.splitlines()
        longest = max(loops(lines), key=lambda span: span[1] - span[0], default=(0, -1))
        loop = opcodes(lines[longest[0] : longest[1] + 1])
        return found | {"registers": int(registers), "stack": int(stack), "loop": loop}
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text).group(1))
    spills = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text).group(1))
    stack = int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text).group(1))
    return found | {"registers": registers, "stack": max(stack, spills), "loop": {}}
