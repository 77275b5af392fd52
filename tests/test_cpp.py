"""The C++ backend on every instruction set of this machine: the grid of cpp_worker.py against the reference, accuracy,
long sequences, repeated runs. Everything runs in processes of its own."""

import copy
import json
import os
import sys
from functools import cache
from pathlib import Path

import cpp_worker
import pytest
import torch
from common import error

import rnnkernels
from rnnkernels import backends, reference

if backends.EXTENSION_ERROR is not None:
    pytest.skip(f"the C++ extension is not there: {backends.EXTENSION_ERROR}", allow_module_level=True)

OPS = torch.ops.rnnkernels
WORKER = Path(cpp_worker.__file__)
# New memory is full of 0xFE: NaN in float16, about -1e38 in bfloat16 and float32, -5e303 in float64. What torch has for
# this fills only what comes through its dispatcher, and the extension's outputs do not.
POISON = "glibc.malloc.perturb=1:glibc.malloc.tcache_count=0"
try:
    INSTRUCTION_SETS = OPS.instruction_sets().split(",")
except RuntimeError as e:  # RNNKERNELS_ISA names none
    pytest.skip(str(e), allow_module_level=True)


def op(cell, x, weights, save=False, activation=None):
    return OPS.layer(
        cell, x, [], weights, [False], False, False, activation, None, None, None, [], None, [], False, 1e-5, save
    )


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
    for cell, G in (("rnn", 1), ("lstm", 4), ("gru", 3)):
        for dtype in cpp_worker.TOLERANCES:
            for activation in (None, "relu") if cell == "rnn" else (None,):
                x = torch.randn(4, 3, 5).to(dtype)
                x[1, 0, 2], x[1, 2, 1] = float("nan"), float("inf") if activation is None else 1
                weights = [torch.full((G * 20, 5), 0.1, dtype=dtype), torch.full((G * 20, 20), 0.1, dtype=dtype)]
                y = op(cell, x, weights, activation=activation)[0]
                expected = reference.layer(
                    cell, x.double(), [], [w.double() for w in weights], [False], False, False, activation, None,
                    None, None, [], None, [], False, 1e-5, False,
                )[0]  # fmt: skip
                if not torch.equal(y.isnan(), expected.isnan()):
                    yield f"{cell} {activation} {dtype}: NaN in {y.isnan().sum()} places, not {expected.isnan().sum()}"
                elif error(y.nan_to_num(), expected.nan_to_num()) > cpp_worker.TOLERANCES[dtype]:
                    yield f"{cell} {activation} {dtype}: wrong beside NaN or infinity"


def long_sums():
    """Sums over tens of thousands of rows: no more than twice the error of torch.nn, both against float64."""
    for T, B, I, H in ((400, 64, 16, 32), (200, 128, 32, 64)):  # noqa: E741 - the letter of ops.py
        for name in ("RNN", "LSTM", "GRU"):
            torch.manual_seed(0)
            theirs = getattr(torch.nn, name)(I, H)
            ours = rnnkernels.convert(copy.deepcopy(theirs))
            x, dy = torch.randn(T, B, I), torch.randn(T, B, H)
            results = []
            for module, dtype in ((copy.deepcopy(theirs).double(), torch.float64), (theirs, x.dtype), (ours, x.dtype)):
                leaf = x.to(dtype).requires_grad_()
                y = module(leaf)[0]
                results.append([y, *torch.autograd.grad(y, [leaf, *module.parameters()], dy.to(dtype))])
            for what, exact, torchs, own in zip(["y", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh"], *results, strict=True):
                allowed = max(2 * error(torchs, exact), 5e-7)  # a sum that happens to round well is no measure
                if error(own, exact) > allowed:
                    yield f"{name} T={T} B={B} I={I} H={H} {what}: {error(own, exact):.1e} of {allowed:.1e} allowed"


def repeated():
    """The same bits, run after run, on one thread and on two."""
    shapes = [dict(T=9, B=1, I=40, H=200), dict(T=20, B=48, I=9, H=40, reverse=(False, True), lengths="ragged")]
    shapes += [dict(T=63, B=7, I=20, H=100, dtype=torch.bfloat16), dict(T=300, B=2, I=3, H=20)]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape in (cpp_worker.Shape(cell, **s) for s in shapes for cell in ("rnn", "lstm", "gru")):
            call, dy, dlast, dcells = cpp_worker.build(shape, 0)
            runs = []
            for _ in range(4):
                y, last, saved = OPS.layer(*call, True)
                dx, dstates, dweights, _ = OPS.layer_backward(dy, dlast, dcells, *call, y, saved, [True] * 3)
                runs.append([y, *last, *saved, dx.nan_to_num(), *dstates, *dweights])
            if not all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True)):
                yield f"{threads} threads, {shape}"
    torch.set_num_threads(1)


def very_long():
    """100,000 steps: all at once as in pieces, and float32 as float64."""
    T = 100_000
    for cell in ("rnn", "lstm", "gru"):
        call, dy, dlast, _ = cpp_worker.build(cpp_worker.Shape(cell, torch.float64, T=T, B=1, I=2, H=4), 0)
        y, last, saved = OPS.layer(*call, True)
        states, pieces = call[2], []
        for x in call[1].split(9973):
            piece, states, _ = OPS.layer(cell, x, states, *call[3:], False)
            pieces.append(piece)
        grads = OPS.layer_backward(dy, dlast, None, *call, y, saved, [True] * 3)
        single = [cell, call[1].float(), *([t.float() for t in v] for v in call[2:4]), *call[4:]]
        y32, _, saved32 = OPS.layer(*single, True)
        grads32 = OPS.layer_backward(dy.float(), [d.float() for d in dlast], None, *single, y32, saved32, [True] * 3)
        pairs = [("pieces", torch.cat(pieces), y, 1e-12), ("last", states[0], last[0], 1e-12), ("y", y32, y, 1e-5)]
        pairs += [("dx", grads32[0], grads[0], 1e-5)]
        pairs += [(f"dw{i}", a, b, 1e-5) for i, (a, b) in enumerate(zip(grads32[2], grads[2], strict=True))]
        yield from [f"{cell} {name}: error {error(a, b):.1e}" for name, a, b, most in pairs if not error(a, b) <= most]


NUMERICS = [activations, not_finite, long_sums, repeated, very_long]


@cache
def results(isa):
    """All checks on one instruction set, in one process whose new memory is full of large numbers (with glibc)."""
    output, trouble = cpp_worker.in_process(
        str(WORKER), *cpp_worker.CHECKS, *(f"test_cpp.{f.__name__}" for f in NUMERICS), timeout=400,
        RNNKERNELS_ISA=isa, OMP_NUM_THREADS="1",
        GLIBC_TUNABLES=POISON,
    )  # fmt: skip
    return {r["check"]: r["failed"] for r in map(json.loads, output.splitlines())}, trouble


def failures(isa, check):
    found, trouble = results(isa)
    assert check in found, f"the process ended before: {trouble}"
    return found[check]


@pytest.mark.parametrize("check", cpp_worker.CHECKS)
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_against_reference(isa, check):
    found = failures(isa, check)
    assert not found, "\n".join([f"{len(found)} failures", *found[:20]])


@pytest.mark.parametrize("check", [f.__name__ for f in NUMERICS])
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_numerics(isa, check):
    found = failures(isa, f"test_cpp.{check}")
    assert not found, "\n".join(found)


def test_every_instruction_set_was_really_forced():
    for isa in INSTRUCTION_SETS:
        code = "import torch, rnnkernels; print(torch.ops.rnnkernels.instruction_sets())"
        output, trouble = cpp_worker.in_process("-c", code, RNNKERNELS_ISA=isa)
        assert not trouble and output.split(",")[0].strip() == isa


def test_new_memory_is_poisoned():
    """Otherwise the grid would not notice what is never written."""
    code = "import torch, rnnkernels; print(torch.empty(5000, dtype=torch.uint8).float().mean().item())"
    output, trouble = cpp_worker.in_process("-c", code, GLIBC_TUNABLES=POISON)
    if not sys.platform.startswith("linux") or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("only glibc can fill new memory")
    assert not trouble and float(output) == 0xFE


def test_unknown_instruction_set_is_a_clear_error():
    code = "import torch, rnnkernels; rnnkernels.LSTM(3, 4)(torch.randn(2, 2, 3))"
    _, trouble = cpp_worker.in_process("-c", code, RNNKERNELS_ISA="nonsense")
    assert "RuntimeError: RNNKERNELS_ISA=nonsense is none of this machine's instruction sets: " in trouble
    assert "baseline" in trouble
