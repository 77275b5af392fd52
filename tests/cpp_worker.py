"""Checks of the C++ ops against the reference in float64, for a process of its own: RNNKERNELS_ISA is read only once.

    RNNKERNELS_ISA=avx2 python tests/cpp_worker.py [name of a check ...]

Prints one JSON object per check: its name, how many cases it ran and what failed in which. Letters as in ops.py.
"""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from common import TOLERANCES, assert_close

import rnnkernels
from rnnkernels import reference
from rnnkernels.cells import CELLS

OPS = torch.ops.rnnkernels
FLOATS = (torch.float32, torch.float64)
HALVES = (torch.bfloat16, torch.float16)
BOTH = (False, True)
ALL = (True, True, True)
NAN = float("nan")


class Shape(NamedTuple):
    """What a case of the grid consists of; its text is what a failure prints."""

    cell: str
    dtype: torch.dtype = torch.float32
    T: int = 3
    B: int = 3
    I: int = 5  # noqa: E741 - the letter of ops.py
    H: int = 20
    P: int = 0  # the size of the projection, 0 for none
    X: int = 0  # how many groups have an input of their own, 0 for a plain input
    reverse: tuple = (False,)
    bias: bool = True
    activation: str | None = None
    lengths: str | None = None  # "ragged" (with zeros), "grouped" (for every group its own), "zeros"
    states: bool = True
    layout: str | None = None  # how tensors lie in memory, see laid_out
    dlast: bool = True
    dcells: bool = False
    needs: tuple = ALL

    def __repr__(self):
        default = Shape(self.cell)
        changed = [f"{k}={v}" for k, v in self._asdict().items() if k in "TBIH" or v != getattr(default, k)]
        return f"{self.cell} {' '.join(changed)}".replace("torch.", "")


def laid_out(tensor, layout):
    """A tensor of the same shape that lies in memory in another way; "expanded" has other values, too."""
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "batch first" and tensor.dim() > 2:
        return tensor.transpose(-2, -3).contiguous().transpose(-2, -3)
    if layout == "sliced":
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.size(-1) + 1), NAN, dtype=tensor.dtype)
        wide[..., 1::2] = tensor
        return wide[..., 1::2]
    if layout == "padded":  # rows with a gap between them
        wide = torch.full((*tensor.shape[:-1], tensor.size(-1) + 3), NAN, dtype=tensor.dtype)
        wide[..., 1:-2] = tensor
        return wide[..., 1:-2]
    if layout == "expanded":  # stride 0 in the first dimension
        return tensor[:1].expand(tensor.shape)
    if layout == "scalar":  # stride 0 everywhere
        return tensor.flatten()[:1].expand(tensor.numel()).view(-1).as_strided(tensor.shape, [0] * tensor.dim())
    return tensor


def build(shape, seed):
    """The arguments of ``layer`` (but ``save``), and ``dy, dlast, dcells``; NaN where nothing may be read."""
    g = torch.Generator().manual_seed(seed)
    spec, k = CELLS[shape.cell], shape.H**-0.5
    T, B, H, P, X = shape.T, shape.B, shape.H, shape.P or shape.H, shape.X
    D = max(X, 1) * len(shape.reverse)

    def new(*sizes, scale=1.0):
        if shape.layout == "scalar":  # many equal terms must not saturate the cell, where digits are lost
            scale *= 0.2
        t = torch.randn(sizes, generator=g, dtype=torch.float64) * scale
        return laid_out(t.to(shape.dtype), shape.layout) if t.numel() else t.to(shape.dtype)

    x = new(*((X,) if X else ()), T, B, shape.I)
    states = [new(D, B, P if i == 0 else H) for i in range(spec.states)] if shape.states else []
    sizes = [(spec.gates * H, shape.I), (spec.gates * H, P)]
    sizes += [(spec.gates * H,)] * (2 * shape.bias) + [(P, H)] * (shape.P > 0)
    weights = [new(*s, scale=0.6 * k) for _ in range(D) for s in sizes]
    if shape.activation == "relu" and shape.dtype in HALVES and shape.bias:
        # every unit well on or well off: next to relu's corner, rounding to 16 bits alone turns gradients on and off
        signs = torch.tensor([6.0, -6.0]).repeat(spec.gates * H)[: spec.gates * H]
        weights = [w + signs.to(w.dtype) if w.dim() == 1 else w for w in weights]
    dy = new(T, B, D * P)
    dlast = [new(D, B, P if i == 0 else H) for i in range(spec.states)] if shape.dlast else []
    acc = torch.float64 if shape.dtype == torch.float64 else torch.float32
    dcells = torch.randn(D, T, B, H, generator=g, dtype=acc) if shape.dcells and spec.states > 1 else None
    lengths = None
    if shape.lengths:
        n = (X, B) if shape.lengths == "grouped" else (B,)
        lengths = torch.randint(0, T + 1, n, generator=g)
        if shape.lengths == "zeros":
            lengths.zero_()
        x, dy = x.clone(), dy.clone()
        after = torch.arange(T)[:, None] >= lengths[..., None, :]  # (T, B) or (X, T, B)
        x[after.expand(x.shape[:-1])] = NAN
        ends = after.repeat_interleave(len(shape.reverse), 0) if after.dim() == 3 else after.expand(D, T, B)
        dy.view(T, B, D, P)[ends.permute(1, 2, 0)] = NAN
        if dcells is not None:
            dcells[ends] = 0
    call = [shape.cell, x, states, weights, list(shape.reverse), shape.bias, shape.P > 0, shape.activation, None,
            lengths, None, [], None, [], False, 1e-5]  # fmt: skip
    return call, dy, dlast, dcells


def in_float64(value):
    if isinstance(value, list):
        return [in_float64(v) for v in value]
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double().nan_to_num(0.0) if floating else value


def weight_names(shape, D):
    names = ["w_ih", "w_hh"] + ["b_ih", "b_hh"] * shape.bias + ["w_hr"] * (shape.P > 0)
    return [f"d{name}[{d}]" for d in range(D) for name in names]


def compare(shape, seed=0):
    """Runs one case on both; the list of what differs."""
    call, dy, dlast, dcells = build(shape, seed)
    y, last, saved = OPS.layer(*call, True)
    plain = OPS.layer(*call, False)
    failures, wanted = [], in_float64(call)
    expected_y, expected_last, _ = reference.layer(*wanted, False)
    if not torch.equal(plain[0], y) or not all(map(torch.equal, plain[1], last)):
        failures.append("inference and training differ")
    if plain[2]:
        failures.append("inference saves something")
    if not all(s.isfinite().all() for s in saved):
        failures.append("what is saved is not finite")
    pairs = [("y", y, expected_y), *zip(["h_n", "c_n"], last, expected_last, strict=False)]

    dx, dstates, dweights, rest = OPS.layer_backward(dy, dlast, dcells, *call, y, saved, list(shape.needs))
    all_dx, all_dstates, all_dweights, _ = reference.layer_backward(
        *in_float64([dy, dlast, dcells]), *wanted, None, None, [True] * 3
    )
    need_x, need_states, need_weights = shape.needs
    names = [["dh_0", "dc_0"][: len(all_dstates)], weight_names(shape, len(last[0]))]
    for need, got, want, name in ((need_states, dstates, all_dstates, names[0]),
                                  (need_weights, dweights, all_dweights, names[1])):  # fmt: skip
        if len(got) != (len(want) if need else 0):
            failures.append(f"{len(got)} gradients like {name}")
        pairs += zip(name, got, want if need else [], strict=False)
    pairs += [("dx", dx, all_dx)] if need_x else []
    if rest or (not need_x and dx.numel()):
        failures.append("gradients that nobody asked for")
    for name, actual, expected in pairs:
        try:
            assert actual.dtype == (shape.dtype), f"{name}: dtype {actual.dtype}"
            assert actual.is_contiguous(), f"{name}: not contiguous"
            assert_close(name, actual, expected)
        except AssertionError as e:
            failures.append(str(e))
    return failures


def cells(*names, **shape):
    return [Shape(cell, **shape) for cell in (names or CELLS)]


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
        for T, B in ((4, 6), (2, 1), (30, 3)):
            yield from cells(dtype=dtype, T=T, B=B, I=6, H=12, layout=layout, reverse=BOTH)
        yield from cells("lstm", dtype=dtype, T=3, B=4, H=12, P=5, layout=layout)
        yield from cells(dtype=dtype, T=3, B=4, H=12, X=2, layout=layout)
        yield from cells(dtype=dtype, T=3, B=4, H=12, layout=layout, lengths="ragged")
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
        yield from cells("lstm", "gru", dtype=dtype, T=45, B=20, I=70, H=300)


def at_random(dtype, n=120):
    r = random.Random(str(dtype))
    for _ in range(n):
        cell, H, X = r.choice(list(CELLS)), r.choice([1, 3, 8, 16, 20, 25, 33, 40, 64, 70, 127]), r.choice([0, 0, 0, 2])
        yield Shape(
            cell, dtype, r.choice([1, 2, 3, 5, 7, 20]), r.choice([1, 2, 3, 4, 5, 7, 8, 13, 20, 33]),
            r.choice([1, 3, 5, 16, 20, 33, 50]), H, r.choice([0, 0, r.randint(1, H)]) if cell == "lstm" else 0, X,
            r.choice([(False,), (True,), BOTH]), r.random() < 0.8, r.choice([None, "relu"]) if cell == "rnn" else None,
            r.choice([None, None, "ragged", "grouped" if X else "zeros"]), r.random() < 0.7,
            r.choice([None, None, "batch first", "transposed", "padded"]), r.random() < 0.6, r.random() < 0.3,
            (r.random() < 0.9, r.random() < 0.9, r.random() < 0.9),
        )  # fmt: skip


GRIDS = {"sizes": sizes, "stages": stages, "arguments": arguments, "large": large, "random": at_random}
CHECKS = {
    f"{name}-{dtype}".replace("torch.", ""): (grid, dtype)
    for name, grid in GRIDS.items()
    for dtype in TOLERANCES
    if not (name == "large" and dtype in HALVES)
}


def in_process(*command, timeout=240, **variables):
    """Runs this file, or other arguments of python, in a process of its own; returns its output and how it ended."""
    here, package = Path(__file__).parent, Path(rnnkernels.__file__).parents[1]
    path = os.pathsep.join([str(package), str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, *command], env=os.environ | {"PYTHONPATH": path} | variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it has forked
        output, said = process.communicate()
        return output, f"still running after {timeout} s, last words:\n{said[-1500:]}"
    trouble = f"exit status {process.returncode}, last words:\n{said[-1500:]}" if process.returncode else None
    return output, trouble


def main(names):
    """Runs checks: names out of ``CHECKS``, or "module.function" for a function that asserts."""
    torch.set_num_threads(1)
    for name in names or CHECKS:
        failed, count = [], 0
        if name in CHECKS:
            grid, dtype = CHECKS[name]
            for count, shape in enumerate(grid(dtype), 1):
                print(f"{name}: {shape}", file=sys.stderr, flush=True)  # what was running, should the process die
                failed += [f"{failure} in: {shape}" for failure in compare(shape, seed=count)]
        else:
            print(name, file=sys.stderr, flush=True)
            module, function = name.split(".")
            failed = list(getattr(importlib.import_module(module), function)())
        print(json.dumps({"check": name, "cases": count, "failed": failed}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
