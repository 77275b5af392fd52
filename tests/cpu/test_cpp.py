"""The C++ backend on every instruction set of this machine: the grid of cpp_worker.py against the reference, accuracy,
long sequences, repeated runs. Everything runs in processes of its own."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import cpp_cases
import cpp_tiles
import cpp_worker
import pytest
import torch
from common import error
from pairwise import ALL
from test_cpp_accuracy import errors
from torch.utils import cpp_extension

from rnnkernels.cells import CELLS, reference
from rnnkernels.cells.call import LayerCall

OPS = torch.ops.rnnkernels
INSTRUCTION_SETS = cpp_worker.instruction_sets()
CORES = os.cpu_count() or 1
POOL = ThreadPoolExecutor(CORES)
# New memory is full of 0xFE: NaN in float16, about -1e38 in bfloat16 and float32, -5e303 in float64. What torch has for
# this fills only what comes through its dispatcher, and the extension's outputs do not.
POISON = "glibc.malloc.perturb=1:glibc.malloc.tcache_count=0"


def op(cell, x, weights, save=False, activation=None):
    return OPS.layer(*LayerCall(cell, x, [], weights, bias=False, activation=activation), save)


def activations():
    """sigmoid and tanh by themselves, out of a cell with one unit: the gates that an LSTM keeps are i, f, g, o."""
    for dtype, sigmoid_error, tanh_error, small_error in (
        (torch.float32, 1.5e-7, 4e-7, 5e-7), (torch.float64, 4e-16, 6e-16, 1e-15)
    ):  # fmt: skip
        x = torch.cat([torch.linspace(-12, 12, 50001), torch.linspace(-1000, 1000, 4001)]).to(dtype)
        small = torch.logspace(-30, 0, 3001, dtype=torch.float64).to(dtype)
        w = [torch.ones(4, 1, dtype=dtype), torch.zeros(4, 1, dtype=dtype)]
        i, _, g, _ = op("lstm", x[None, :, None], w, save=True)[2][0][0, 0, :, :, 0].double().unbind(1)
        e = (i - torch.sigmoid(x.double())).abs().max().item()
        yield from [f"sigmoid, {dtype}: error {e:.1e}"] * (e > sigmoid_error)
        e = (g - torch.tanh(x.double())).abs().max().item()
        yield from [f"tanh, {dtype}: error {e:.1e}"] * (e > tanh_error)
        y = op("rnn", small[None, :, None], [v[:1] for v in w])[0].double().flatten()
        e = (y / torch.tanh(small.double()) - 1).abs().max().item()
        yield from [f"tanh near zero, {dtype}: relative error {e:.1e}"] * (e > small_error)


def not_finite():
    """NaN goes where it goes in the definition, and infinity saturates."""
    for cell, G in ((name, spec.gates) for name, spec in CELLS.items()):
        for dtype in cpp_worker.TOLERANCES:
            for activation in (None, "relu", "hard_sigmoid", "linear"):
                x = torch.randn(4, 3, 5).to(dtype)
                x[1, 0, 2], x[1, 2, 1] = float("nan"), float("inf") if activation is None else 1
                weights = [torch.full((G * 20, 5), 0.1, dtype=dtype), torch.full((G * 20, 20), 0.1, dtype=dtype)]
                y = op(cell, x, weights, activation=activation)[0]
                exact = [w.double() for w in weights]
                call = LayerCall(cell, x.double(), [], exact, bias=False, activation=activation)
                expected = reference.layer(*call, False)[0]
                if not torch.equal(y.isnan(), expected.isnan()):
                    yield f"{cell} {activation} {dtype}: NaN in {y.isnan().sum()} places, not {expected.isnan().sum()}"
                elif error(y.nan_to_num(), expected.nan_to_num()) > cpp_worker.TOLERANCES[dtype]:
                    yield f"{cell} {activation} {dtype}: wrong beside NaN or infinity"


def long_sums():
    """Sums over tens of thousands of rows: no more than twice the error of torch.nn, both against float64."""
    for T, B, I, H in ((400, 64, 16, 32), (200, 128, 32, 64)):  # noqa: E741 - the letter of schema.py
        for name in ("RNN", "LSTM", "GRU"):
            for what, torchs, own in errors(name, T, B, I, H):
                allowed = max(2 * torchs, 5e-7)  # a sum that happens to round well is no measure
                if own > allowed:
                    yield f"{name} T={T} B={B} I={I} H={H} {what}: {own:.1e} of {allowed:.1e} allowed"


def repeated():
    """The same bits, run after run, on one thread and on two."""
    shapes = [dict(T=9, B=1, I=40, H=200), dict(T=20, B=48, I=9, H=40, reverse=(False, True), lengths="ragged")]
    shapes += [dict(T=63, B=7, I=20, H=100, dtype=torch.bfloat16), dict(T=300, B=2, I=3, H=20)]
    shapes += [dict(T=9, B=5, I=40, H=200, stages="restart h_mask zone", lengths="ragged")]
    shapes += [dict(T=9, B=20, I=40, H=70, stages="norm")]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape in (cpp_cases.Shape(cell, **s) for s in shapes for cell in CELLS):
            call, dy, dlast, dcells = cpp_cases.build(shape, 0)
            runs = []
            for _ in range(4):
                y, last, saved = OPS.layer(*call, True)
                dx, *more = OPS.layer_backward(dy, dlast, dcells, *call, y, saved, [True] * 4)
                runs.append([y, *last, *saved, dx.nan_to_num(), *sum(more, [])])
            if not all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True)):
                yield f"{threads} threads, {shape}"
    torch.set_num_threads(1)


def new_memory():
    """Poisoned, or the grids would not notice what is never written. Only glibc can fill it."""
    mean = torch.empty(5000, dtype=torch.uint8).float().mean().item()
    if sys.platform.startswith("linux") and "glibc" in os.confstr("CS_GNU_LIBC_VERSION") and mean != 0xFE:
        yield f"the mean of its bytes is {mean}"


NUMERICS = [f"test_cpp.{f.__name__}" for f in (new_memory, activations, not_finite, long_sums, repeated)]
LONG = ["cpp_long.very_long", "cpp_long.far_apart", "cpp_long.kept_past_caches"]
NUMERICS += ["cpp_remainders.small", "cpp_remainders.large", *LONG]
THREADS = ["test_cpp.repeated"]
LINUX = ["cpp_guard.inputs", "cpp_guard.programs"] * sys.platform.startswith(
    "linux"
)  # comes last: what is wrong here ends the process


def checks(isa):
    """What is worth running on an instruction set: float64 knows no bf16 parts, float32 has them with AMX only."""
    same_as_avx512 = {"amx": ("float64",), "avx512_bf16": ("float64", "float32", "float16")}.get(isa, ())
    grids = [c for c in cpp_worker.CHECKS if not c.endswith(same_as_avx512) or c.startswith("random")]
    if isa != INSTRUCTION_SETS[0]:  # what follows the products is the same code for every dtype but for its vectors
        grids = [c for c in grids if c.endswith("float32") or not c.startswith(("masks", "activations", "norms"))]
    numerics = NUMERICS
    tiles = {"amx": TILES, "avx512_bf16": TILES[1:2], "avx512": TILES[:1]}.get(isa, [])
    if not ALL and isa not in (INSTRUCTION_SETS[0], "baseline"):  # the loop over time and its threads are the same
        numerics = [check for check in NUMERICS if check not in LONG + THREADS]
    return [c for c in grids if c not in TILES] + tiles + numerics + LINUX


TILES = ["tiles-float32", "tiles-bfloat16", "tiles-float16"]
CASES = [(isa, check) for isa in INSTRUCTION_SETS for check in checks(isa)]
# Two processes, of about the same work. What ends a process comes last.
SHARES = ([c for c in cpp_worker.CHECKS if not c.startswith(("masks", "norms"))], NUMERICS)


@cache
def process(share):
    """A share of the checks on every set that has them, in a process whose new memory is full of large numbers (with
    glibc). The expected values are computed once for all sets."""
    sets = {}
    for isa, check in CASES:
        if share_of(check) == share:
            sets.setdefault(check, []).append(isa)
    names = sorted(sets, key=[*cpp_worker.CHECKS, *NUMERICS, *LINUX].index)
    return POOL.submit(
        cpp_worker.in_process, str(cpp_worker.WORKER), *(f"{name}@{','.join(sets[name])}" for name in names),
        timeout=900, OMP_NUM_THREADS="1", GLIBC_TUNABLES=POISON,
    )  # fmt: skip


def share_of(check):
    return next((n for n, names in enumerate(SHARES) if check in names), len(SHARES))


def failures(isa, check):
    for share in range(len(SHARES) + 1):
        process(share)
    output, trouble = process(share_of(check)).result()
    found = {(r["check"], r["set"]): r["failed"] for r in map(json.loads, output.splitlines())}
    assert (check, isa) in found, f"the process ended before: {trouble}"
    return found[check, isa]


@pytest.mark.parametrize("isa, check", CASES)
def test_against_reference(isa, check):
    found = failures(isa, check)
    assert not found, "\n".join([f"{len(found)} failures", *found[:20]])


def test_tiles_are_reached():
    """The grid of cpp_tiles.py takes every form of a product that this machine's best instruction set has for it."""
    best = INSTRUCTION_SETS[0]
    forms = set()
    for dtype in (torch.float32, torch.bfloat16):
        for s in cpp_tiles.tiles(dtype):
            torch.set_num_threads(s.threads)
            text = OPS.schedule(s.cell, dtype, s.T, s.B, s.I, s.H, s.P or s.H, max(s.X, 1) * len(s.reverse), True)
            forms.add((dtype, *(re.sub(r"\d+", "N", part) for part in text.split(", "))))
    torch.set_num_threads(CORES)
    found = {" ".join(form[1:]) for form in forms}
    wanted = "W_ih in N.* W_hh in N" if best in ("amx", "avx512_bf16") else "W_ih packed W_hh packed"
    for how in ("chunks of steps batch split", "chunks of steps hidden units split", "inside the tile batch split"):
        assert any(re.search(f"{wanted}.*{how}", f) for f in found), (wanted, how, found)


def test_every_instruction_set_is_really_used():
    """By the op, which is how the grid gets at them, and by the environment variable."""
    try:
        for isa in INSTRUCTION_SETS:
            OPS.use_instruction_set(isa)
            assert OPS.instruction_sets().split(",")[0] == isa
            text = OPS.schedule("lstm", torch.float32, 9, 1, 5, 20, 20, 1, True)
            assert text.startswith(f"{isa}: "), text
        with pytest.raises(RuntimeError, match="nonsense is none of this machine's instruction sets: .*baseline"):
            OPS.use_instruction_set("nonsense")
    finally:
        OPS.use_instruction_set("")
    assert OPS.instruction_sets().split(",")[0] == INSTRUCTION_SETS[0]
    code = "import torch, rnnkernels; print(torch.ops.rnnkernels.instruction_sets())"
    output, trouble = cpp_worker.in_process("-c", code, RNNKERNELS_ISA="baseline")
    assert not trouble and output.split(",")[0].strip() == "baseline"


def cross_compiler(target):
    """A command that compiles C++ for aarch64: of Debian's g++-aarch64-linux-gnu or of zig, which PyPI has too."""
    if found := shutil.which(f"{target}-g++"):
        return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-target", target]
    if found := shutil.which("zig"):
        return [found, "c++", "-target", target]
    pytest.skip(f"no C++ compiler for {target}: neither g++-{target} nor zig is installed")


SOURCES = sorted(Path(__file__).parents[2].glob("csrc/*/*.cpp"))


@pytest.mark.parametrize("target", ["aarch64-linux-gnu", pytest.param("aarch64-macos", marks=pytest.mark.long)])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_sources_compile_for_aarch64(source, target, tmp_path):
    """Not run, so with this machine's Python.h. GCC looks at the syntax and types only, which zig does not do alone."""
    include = [f"-I{path}" for path in [*cpp_extension.include_paths(), sysconfig.get_path("include")]]
    flags = ["-std=c++17", "-O0", "-w", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000"]
    compiler = cross_compiler(target)
    what = ["-fsyntax-only"] if compiler[0].endswith("g++") else ["-c", "-o", tmp_path / "object.o"]
    command = [*compiler, *flags, *include, *what, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_instruction_set_is_a_clear_error():
    code = "import torch, rnnkernels; rnnkernels.LSTM(3, 4)(torch.randn(2, 2, 3))"
    _, trouble = cpp_worker.in_process("-c", code, RNNKERNELS_ISA="nonsense")
    assert "RuntimeError: RNNKERNELS_ISA=nonsense is none of this machine's instruction sets: " in trouble
    assert "baseline" in trouble
