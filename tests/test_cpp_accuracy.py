"""The C++ backend's rounding as a number, on the benchmarks' shapes: its error against float64 beside torch.nn's."""

import copy
import sys

import pytest
import torch
from common import error
from cpp_worker import WORKER, in_process, instruction_sets

import rnnkernels

SET = instruction_sets()[0]  # what this machine runs; the others' arithmetic is that of test_cpp.long_sums
SHAPES = {  # T, B, I, H: benchmarks/workloads.py, some with fewer steps
    "guide-bench": (("RNN", "GRU", "LSTM"), 100, 64, 50, 128),
    "sentiment": (("LSTM",), 50, 32, 100, 128),
    "imdb": (("LSTM",), 200, 64, 128, 64),
    "camels": (("LSTM",), 30, 256, 32, 256),
    "speech": (("GRU",), 20, 16, 512, 512),
    "wide": (("GRU", "LSTM"), 4, 128, 1024, 1024),
}
LEAST = 1.5e-6  # allowed at least: a sum that happens to round well is no measure. Two parts instead of three give 1e-5


def errors(name, T, B, I, H):  # noqa: E741 - the letter of ops.py
    """Of y and of each gradient: name, the error of torch.nn, ours."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(I, H)
    ours = rnnkernels.convert(copy.deepcopy(theirs))
    x, dy = torch.randn(T, B, I), torch.randn(T, B, H)
    results = []
    for module, dtype in ((copy.deepcopy(theirs).double(), torch.float64), (theirs, x.dtype), (ours, x.dtype)):
        leaf = x.to(dtype).requires_grad_()
        y = module(leaf)[0]
        results.append([y, *torch.autograd.grad(y, [leaf, *module.parameters()], dy.to(dtype))])
    names = ["y", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh"]
    return [(n, error(t, e), error(o, e)) for n, e, t, o in zip(names, *results, strict=True)]


def rounding():
    """For a process of cpp_worker.py: no more than twice the error of torch.nn."""
    torch.set_num_threads(2)
    for shape, (cells, *sizes) in SHAPES.items():
        for cell in cells:
            for what, theirs, ours in errors(cell, *sizes):
                print(f"{shape:12} {cell:4} {what:5}  torch.nn {theirs:.1e}  ours {ours:.1e}", file=sys.stderr)
                if ours > max(2 * theirs, LEAST):
                    yield f"{shape} {cell} {what}: {ours:.1e}, torch.nn {theirs:.1e}"


@pytest.mark.parametrize("isa", [SET])
def test_no_more_than_twice_the_rounding_of_torch(isa):
    output, trouble = in_process(str(WORKER), "test_cpp_accuracy.rounding", RNNKERNELS_ISA=isa)
    assert not trouble, trouble
    assert '"failed": []' in output, output
