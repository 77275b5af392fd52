"""The C++ backend's rounding as a number, on the benchmarks' shapes: its error against float64 beside torch.nn's."""

import copy
import math
import sys
from functools import cache

import mpmath
import pytest
import torch
from common import error, magnitudes, units
from cpp_worker import assert_passes, instruction_sets
from pairwise import ALL

import rnnkernels

SETS = instruction_sets()
SET = SETS[0]  # what this machine runs; the others' arithmetic is that of test_cpp.long_sums
SHAPES = {  # T, B, I, H: benchmarks/workloads.py, some with fewer steps
    "guide-bench": (("RNN", "GRU", "LSTM"), 100, 64, 50, 128),
    "sentiment": (("LSTM",), 50, 32, 100, 128),
    "imdb": (("LSTM",), 200, 64, 128, 64),
    "camels": (("LSTM",), 30, 256, 32, 256),
    "speech": (("GRU",), 20, 16, 512, 512),
    "wide": (("GRU", "LSTM"), 4, 128, 1024, 1024),
}
if not ALL:  # fewer steps and rows: sums over hidden units and inputs, which is what rounding comes from, are as long
    SHAPES = {name: (cells, min(T, 20), min(B, 64), *sizes) for name, (cells, T, B, *sizes) in SHAPES.items()}
LEAST = 1.5e-6  # allowed at least: a sum that happens to round well is no measure. Two parts instead of three give 1e-5


def results(module, x, dy):
    leaf = x.detach().requires_grad_()
    y = module(leaf)[0]
    return [y.detach(), *torch.autograd.grad(y, [leaf, *module.parameters()], dy)]


@cache
def torchs(name, T, B, I, H):  # noqa: E741 - the letter of schema.py
    """A layer of torch.nn, x and dy, what it gives in float64, and in float32: the same for all instruction sets."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(I, H)
    x, dy = torch.randn(T, B, I), torch.randn(T, B, H)
    exact = results(copy.deepcopy(theirs).double(), x.double(), dy.double())
    return theirs, x, dy, exact, results(theirs, x, dy)


def errors(*case):
    """Of y and of each gradient: name, the error of torch.nn, ours."""
    theirs, x, dy, *both = torchs(*case)
    ours = results(rnnkernels.convert(copy.deepcopy(theirs)), x, dy)
    names = ["y", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh"]
    return [(n, error(t, e), error(o, e)) for n, e, t, o in zip(names, *both, ours, strict=True)]


def rounding():
    """For a process of cpp_worker.py: no more than twice the error of torch.nn."""
    torch.set_num_threads(2)
    for shape, (cells, *sizes) in SHAPES.items():
        for cell in cells:
            for what, theirs, ours in errors(cell, *sizes):
                print(f"{shape:12} {cell:4} {what:5}  torch.nn {theirs:.1e}  ours {ours:.1e}", file=sys.stderr)
                if ours > max(2 * theirs, LEAST):
                    yield f"{shape} {cell} {what}: {ours:.1e}, torch.nn {theirs:.1e}"


def tanh_of(x):
    """By an RNN whose other terms are zero."""
    module = rnnkernels.RNN(1, len(x), dtype=x.dtype)
    return biased(module, x, 0)


def sigmoid_of(x):
    """By the update gate of a GRU whose candidate is zero."""
    return biased(rnnkernels.GRU(1, len(x), dtype=x.dtype), x, 1)


def chosen_sigmoid_of(x):
    """The same in a cell whose activations are not all its own."""
    return biased(rnnkernels.GRU(1, len(x), activation="relu", dtype=x.dtype), x, 1)


def biased(module, x, gate):
    H = len(x)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.bias_ih_l0[gate * H : (gate + 1) * H] = x
        return module(x.new_zeros(1, 1, 1), x.new_ones(1, 1, H))[0].flatten()


def exact(function, x):
    """In many digits, which float64 is tested against; NaN and infinities as torch has them."""
    known = {"tanh": mpmath.tanh, "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v))}[function]
    with mpmath.workdps(60):
        return [known(mpmath.mpf(v)) if math.isfinite(v) else getattr(torch, function)(x.new_tensor(v)).item()
                for v in x.tolist()]  # fmt: skip


def activations():
    """For a process of cpp_worker.py: sigmoid and tanh over all magnitudes, in units of the last place."""
    for name, ours in (("tanh", tanh_of), ("sigmoid", sigmoid_of), ("sigmoid", chosen_sigmoid_of)):
        x = magnitudes(torch.float32)
        expected = getattr(torch, name)(x.double()).tolist()
        most = max(units(ours(part), expected[i : i + 500]) for i, part in chunks(x))
        print(f"{ours.__name__} float32 {most:.2f}", file=sys.stderr)
        if not most <= 1.1:
            yield f"{ours.__name__} in float32: {most:.2f} units in the last place"
        x = magnitudes(torch.float64, 800)
        most = max(units(ours(part), exact(name, part)) for _, part in chunks(x))
        print(f"{ours.__name__} float64 {most:.2f}", file=sys.stderr)
        if not most <= 3:
            yield f"{ours.__name__} in float64: {most:.2f} units in the last place"


def chunks(x):
    return [(i, x[i : i + 500]) for i in range(0, len(x), 500)]


GRADIENTS = {"RNN": 3, "GRU": 1, "LSTM": 1}  # layers


def gradient_errors(name, seed, T=12, B=5, I=8, H=40):  # noqa: E741
    """Of all gradients of a layer whose units saturate: the error of torch.nn and ours, against float64."""
    torch.manual_seed(seed)
    theirs = getattr(torch.nn, name)(I, H, GRADIENTS[name])
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.mul_(2)
    x, dy = 3 * torch.randn(T, B, I), torch.randn(T, B, H)
    results = []
    for module in (copy.deepcopy(theirs).double(), theirs, rnnkernels.convert(copy.deepcopy(theirs))):
        dtype = next(module.parameters()).dtype
        leaf = x.to(dtype).requires_grad_()
        results.append(torch.autograd.grad(module(leaf)[0], [leaf, *module.parameters()], dy.to(dtype)))
    expected, *both = results
    return [max(error(a, e) for a, e in zip(r, expected, strict=True)) for r in both]


def gradients():
    """For a process of cpp_worker.py: in the geometric mean over draws at most 1.5 times the error of torch.nn."""
    for name in GRADIENTS:
        logs = []
        for seed in range(12 if ALL else 6):
            theirs, ours = gradient_errors(name, seed)
            logs.append(math.log(ours / theirs))
        ratio = math.exp(sum(logs) / len(logs))
        print(f"gradients of {name}: {ratio:.2f} times the error of torch.nn", file=sys.stderr)
        if ratio > 1.5:
            yield f"gradients of {name}: {ratio:.2f} times the error of torch.nn"


@pytest.mark.parametrize("isa", SETS)
def test_activations_and_gradients(isa):
    assert_passes(["test_cpp_accuracy.activations", "test_cpp_accuracy.gradients"], isa, SETS)


@pytest.mark.parametrize("isa", [SET])
def test_no_more_than_twice_the_rounding_of_torch(isa):
    assert_passes(["test_cpp_accuracy.rounding"], isa, [SET])


def flushed():
    """For a process of cpp_worker.py: with ``set_flush_denormal`` float16 subnormals keep their values, as in torch.nn,
    and any number of threads gives the same bits."""
    if not torch.set_flush_denormal(True):
        return
    tiny = rnnkernels.RNN(4, 8, nonlinearity="relu", bias=False).half()
    decaying = rnnkernels.RNN(64, 64, nonlinearity="relu", bias=False)
    with torch.no_grad():
        tiny.weight_ih_l0.fill_(1e-6)
        y = tiny(torch.full((1, 1, 4), 1000.0, dtype=torch.half))[0]
        if not torch.allclose(y.float(), torch.tensor(0.004), rtol=0.05):
            yield f"float16 subnormals: {y.flatten()[0].item()}, not 0.004"
        decaying.weight_hh_l0.copy_(torch.eye(64) / 2)  # to subnormal numbers
        x, h, found = torch.zeros(160, 64, 64), torch.rand(1, 64, 64), []
        for threads in (1, 2, 2, 2):
            torch.set_num_threads(threads)
            found.append(decaying(x, h)[0])
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)
    if not all(torch.equal(y, found[0]) for y in found):
        yield "other bits on two threads"


@pytest.mark.parametrize("isa", SETS)
def test_flushing_subnormals(isa):
    assert_passes(["test_cpp_accuracy.flushed"], isa, SETS)
