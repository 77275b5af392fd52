"""Checks of the C++ ops against the reference in float64, in a process of its own, which a fault may end.

    PYTHONPATH=.:tests python tests/cpu/cpp_worker.py [name of a check, or name@instruction set,instruction set ...]

Prints one JSON object per check and instruction set: their names, how many cases it ran and what failed in which.
Without a set it is the one that this machine, or RNNKERNELS_ISA, chooses. Letters as in op/schema.py.
"""

import importlib
import inspect
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from functools import cache
from pathlib import Path

import fresh
import pytest
import torch
from common import TOLERANCES
from cpp_cases import BOTH, HALVES, ONE_PHASE, OPS, Shape, build_with_expectation, cells, compare
from cpp_stages import activations, masks, norms
from cpp_tiles import tiles
from pairwise import ALL, thinned

import rnnkernels
from rnnkernels import backends
from rnnkernels.cells import CELLS


def sizes(dtype):
    """Every remainder of every dimension, for every cell."""
    few = dtype in HALVES
    for B in range(1, 21, 3 if few else 1):
        yield from cells(dtype=dtype, T=2, B=B, reverse=BOTH if B % 2 else (False,))
    for H in (1, 7, 16, 20, 33, 40, 127) if few else (*range(1, 71), 127):
        yield from cells(dtype=dtype, T=2, H=H, reverse=(H % 3 == 0,), states=H % 4 > 0)
        yield from cells(dtype=dtype, T=1, B=1, I=8, H=H, bias=H % 2 == 0)
    for I in (1, 8, 19, 50) if few else (*range(1, 21), 33, 50):  # noqa: E741
        yield from cells(dtype=dtype, T=5, B=I % 7 + 1, I=I, H=17)
    for T in (1, 2, 3, 4, 5, 63):
        yield from cells(dtype=dtype, T=T, B=2, H=16, reverse=BOTH, lengths="ragged")
    for I, H in ((16, 32), (128, 128), (64, 160)):  # noqa: E741 - weights read where they lie, whole panels
        for T, B in ((1, 1), (3, 1), (2, 4), (9, 1)):
            yield from cells(dtype=dtype, T=T, B=B, I=I, H=H, reverse=(B == 4,))
    for B in (3,) if few else (3, 8, 20):  # the same for as many rows as that pays for
        yield from cells(dtype=dtype, T=1, B=B, I=18 * (B + 1) + 1, H=18 * (B + 1) + B, reverse=(B == 8,))
    for B in () if few else (23, 24):  # packed on the way, where sums are long
        yield from cells(dtype=dtype, T=1, B=B, I=256, H=260 + B)
    for H, P in ((20, 7), (33, 16), (70, 69), (8, 1), (40, 40)):
        yield from cells("lstm", dtype=dtype, H=H, P=P, B=P % 5 + 1, T=4, reverse=BOTH, lengths="ragged")


def stages(dtype):
    """Directions, biases, lengths, groups, states, projections, activations, in products."""
    for lengths in (None, "ragged", "zeros"):
        for reverse in ((False,), (True,), BOTH):
            for states in BOTH:
                yield from cells(dtype=dtype, T=5, B=7, H=25, reverse=reverse, lengths=lengths, states=states)
                yield Shape("lstm", dtype, 4, 5, 3, 18, 6, reverse=reverse, lengths=lengths, states=states, bias=states)
                yield Shape("rnn", dtype, 4, 5, 3, 18, reverse=reverse, lengths=lengths, activation="relu", bias=False)
    for lengths in (None, "ragged", "grouped"):
        for reverse in ((True,), BOTH):
            yield from cells(dtype=dtype, T=3, B=5, H=9, X=2, reverse=reverse, lengths=lengths)
            yield from cells("lstm", dtype=dtype, T=3, B=2, H=9, P=4, X=3, reverse=reverse, lengths=lengths)
    for T in (1, 4):
        yield from cells(dtype=dtype, T=T, B=0, reverse=BOTH)
        yield from cells("lstm", dtype=dtype, T=T, B=0, P=4, lengths="ragged", states=False)


def arguments(dtype):
    """How tensors lie in memory, which gradients are wanted, which are given."""
    for layout in ("transposed", "batch first", "sliced", "padded", "expanded", "scalar"):
        # in 16 bits equal terms may cancel out until rounding is all that is left
        names = ONE_PHASE if layout == "scalar" and dtype in HALVES else CELLS
        for T, B in ((4, 6), (2, 1), (30, 3)):
            yield from cells(*names, dtype=dtype, T=T, B=B, I=6, H=12, layout=layout, reverse=BOTH)
        yield from cells("lstm", dtype=dtype, T=3, B=4, H=12, P=5, layout=layout)
        yield from cells(*names, dtype=dtype, T=3, B=4, H=12, X=2, layout=layout)
        yield from cells(*names, dtype=dtype, T=3, B=4, H=12, layout=layout, lengths="ragged")
    for needs in ((a, b, c) for a in BOTH for b in BOTH for c in BOTH):
        for T, states in ((1, True), (4, True), (4, False)):
            yield from cells(dtype=dtype, T=T, B=4, I=16, H=32, needs=needs, states=states, reverse=BOTH)
        yield from cells("lstm", dtype=dtype, T=4, H=12, P=5, needs=needs)
    for dlast in BOTH:
        for lengths in (None, "ragged"):
            yield from cells("lstm", dtype=dtype, T=4, dlast=dlast, dcells=True, lengths=lengths, reverse=BOTH)
            yield from cells(dtype=dtype, T=4, dlast=dlast, lengths=lengths, reverse=(True,))


def large(dtype):
    """Sizes that need several chunks of steps, forward and backward."""
    yield from cells(dtype=dtype, T=63, B=20, I=33, H=127, reverse=BOTH, lengths="ragged")
    yield from cells(dtype=dtype, T=63, B=1, I=50, H=130)
    yield from cells(dtype=dtype, T=150, B=5, I=3, H=40, reverse=(True,))
    yield Shape("lstm", dtype, 63, 10, 20, 70, 30, reverse=BOTH, lengths="ragged")
    if dtype == torch.float32:
        yield from cells("lstm", "gru", "gru_reset_before", dtype=dtype, T=45, B=20, I=70, H=300)


def at_random(dtype, n=120 if ALL else 60):
    r, more = random.Random(str(dtype)), random.Random(f"stages {dtype}")
    for _ in range(n):
        stages = more.choice(["", "", "reset zone", "restart h_mask", "h_mask zone_mask"])
        cell, H, X = (
            r.choice(ONE_PHASE),
            r.choice([1, 3, 8, 16, 20, 25, 33, 40, 64, 70, 127]),
            r.choice([0, 0, 0, 2]),
        )
        shape = Shape(
            cell, dtype, r.choice([1, 2, 3, 5, 7, 20]), r.choice([1, 2, 3, 4, 5, 7, 8, 13, 20, 33]),
            r.choice([1, 3, 5, 16, 20, 33, 50]), H, r.choice([0, 0, r.randint(1, H)]) if cell == "lstm" else 0, X,
            r.choice([(False,), (True,), BOTH]), r.random() < 0.8, r.choice([None, "relu"]) if cell == "rnn" else None,
            r.choice([None, None, "ragged", "grouped" if X else "zeros"]), r.random() < 0.7,
            r.choice([None, None, "batch first", "transposed", "padded"]), r.random() < 0.6, r.random() < 0.3,
            (r.random() < 0.9, r.random() < 0.9, r.random() < 0.9),
            stages="" if cell == "rnn" and dtype in HALVES else stages,  # see build: 16 bits go astray at relu's corner
        )  # fmt: skip
        yield shape
        if cell == "gru":
            yield shape._replace(cell="gru_reset_before")


GRIDS = {
    "sizes": sizes, "stages": stages, "masks": masks, "activations": activations, "arguments": arguments,
    "large": large, "random": at_random, "tiles": tiles, "norms": norms,
}  # fmt: skip
CHECKS = {
    f"{name}-{dtype}".replace("torch.", ""): (grid, dtype)
    for name, grid in GRIDS.items()
    for dtype in TOLERANCES
    if not (name == "large" and dtype in HALVES) and not (name == "tiles" and dtype == torch.float64)
}


WORKER = Path(__file__)


def in_process(*command, timeout=240, **variables):
    """Runs this file, or other arguments of python, in a process of its own; returns its output and how it ended. It is
    a fork of one that has imported torch, unless there are variables that are read when libraries are loaded."""
    tests, package = Path(__file__).parents[1], Path(rnnkernels.__file__).parents[1]
    folders = [package, tests, *(path for path in sorted(tests.iterdir()) if path.is_dir())]
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path} | variables
    if not any(name.startswith(("OMP_", "GLIBC_", "LD_")) for name in variables):
        done = fresh.python(*command, env=env, timeout=timeout)
        output, said, status, late = done.stdout, done.stderr, done.returncode, done.returncode == -signal.SIGALRM
    else:
        process = subprocess.Popen(
            [sys.executable, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        late = False
        try:
            output, said = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, signal.SIGKILL)  # with what it has forked
            output, said = process.communicate()
        status = process.returncode
    how = f"still running after {timeout} s" if late else f"exit status {status}"
    return output, f"{how}, last words:\n{said[-1500:]}" if status else None


@cache
def results(checks, sets, **variables):
    """Runs checks (a tuple) on instruction sets, in one process; {(check, set): failures} and how the process ended."""
    names = [f"{check}@{','.join(sets)}" for check in checks]
    output, trouble = in_process(str(WORKER), *names, timeout=900, **variables)
    return {(r["check"], r["set"]): r["failed"] for r in map(json.loads, output.splitlines())}, trouble


def assert_passes(checks, isa, sets, **variables):
    """That checks have nothing to say of an instruction set: one of those of a process of ``results``."""
    found, trouble = results(tuple(checks), tuple(sets), **variables)
    for check in checks:
        assert (check, isa) in found, f"the process ended before {check}: {trouble}"
        assert not found[check, isa], "\n".join([f"{len(found[check, isa])} failures", *found[check, isa][:20]])


def instruction_sets():
    """Those of this machine, best first, but for that whose floats are computed as those of avx512 are: see
    test_quantize.py for its int8. Without the extension the tests of a file are skipped."""
    if backends.EXTENSION_ERROR is not None:
        pytest.skip(f"the C++ extension is not there: {backends.EXTENSION_ERROR}", allow_module_level=True)
    try:
        return [name for name in OPS.instruction_sets().split(",") if name != "avx512_vnni"]
    except RuntimeError as e:  # RNNKERNELS_ISA names none
        pytest.skip(str(e), allow_module_level=True)


def in_turn(shapes):
    """Of cases that differ in the cell only, one by chance: all cells have the same loops."""
    chance = random.Random(0)
    for _, group in itertools.groupby(shapes, key=lambda case: case[0]._replace(cell="")):
        group = list(group)
        yield from [chance.choice(group)] if len(group) > 2 else group


def run_grid(name, sets):
    """Each case of a grid on every set, with one expectation for all; how many cases, and each set's failures."""
    grid, dtype = CHECKS[name]
    failed, count = {isa: [] for isa in sets}, 0
    seeds = defaultdict(itertools.count)  # a cell that is added leaves the numbers of the others as they were
    shapes = [(shape, 1 + next(seeds[CELLS[shape.cell].phases])) for shape in grid(dtype)]
    if grid in (masks, norms, activations) and not ALL:  # sizes, of which the other grids are, matter less to them
        shapes = thinned(shapes, lambda case: case[0].features())[:: 2 if dtype in HALVES else 1]
    elif not ALL:
        shapes = in_turn(shapes)
    for shape, seed in shapes:
        count += 1
        built = build_with_expectation(shape, seed)
        for isa in sets:
            print(f"{name} on {isa or 'the default'}: {shape}", file=sys.stderr, flush=True)  # should the process die
            OPS.use_instruction_set(isa)
            failed[isa] += [f"{failure} in: {shape}" for failure in compare(shape, built)]
    return count, failed


def run_function(name, sets):
    """Each set's failures: of a function that yields them, or of one of all sets that yields pairs of set and text."""
    module, function = name.split(".")
    function, failed = getattr(importlib.import_module(module), function), {isa: [] for isa in sets}
    print(f"{name} on {sets}", file=sys.stderr, flush=True)
    if inspect.signature(function).parameters:
        for isa, failure in function(sets):
            failed[isa].append(failure)
        return failed
    for isa in sets:
        OPS.use_instruction_set(isa)
        failed[isa] = list(function())
    return failed


def main(names):
    """Runs checks: names out of ``CHECKS``, or "module.function" for one that returns what failed. Whether any did."""
    torch.set_num_threads(1)
    trouble = False
    for text in names or CHECKS:
        name, _, sets = text.partition("@")
        sets, begin = sets.split(","), time.process_time()
        count, failed = run_grid(name, sets) if name in CHECKS else (0, run_function(name, sets))
        OPS.use_instruction_set("")
        took = round(time.process_time() - begin, 2)  # seconds, of all sets
        for isa in sets:
            result = {"check": name, "set": isa, "cases": count, "seconds": took, "failed": failed[isa]}
            print(json.dumps(result), flush=True)
            trouble |= bool(failed[isa])
    return trouble


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
