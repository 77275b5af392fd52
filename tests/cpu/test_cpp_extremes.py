"""Numbers that have no bf16 parts, or none that are any good: infinite, huge, tiny, NaN. Letters as in op/schema.py.

An instruction set whose products are of bf16 parts must give what the vectors give: NaN, infinity and zero in the same
places, other numbers to rounding. All run the same cases in one process.
"""

import pairwise
import pytest
import torch
from common import TOLERANCES
from cpp_cases import OPS, Shape, build, in_float64
from cpp_worker import assert_passes, instruction_sets

from rnnkernels.cells import CELLS, reference

INF, NAN = float("inf"), float("nan")
SETS = instruction_sets()
WITH_PARTS = [isa for isa in SETS if isa in ("amx", "avx512_bf16")]
PLAIN = "avx512"  # the same kernels, all in vectors
if not WITH_PARTS:
    pytest.skip("no instruction set of this machine has products of bf16 parts", allow_module_level=True)
SIZES = dict(T=4, B=34, I=40, H=229, reverse=(False, True))  # float32 in parts, of x too
FEW = dict(T=4, B=18, I=33, H=65, reverse=(False, True))  # 16 bits in parts, x as numbers
VALUES = {
    "inf": INF, "-inf": -INF, "NaN": NAN, "largest": 3.4e38, "-3.39e38": -3.39e38, "2^63": 2.0**63, "2^62": 2.0**62,
    "denormal": 1e-40, "smallest normal": 1.2e-38,
}  # fmt: skip


def put(shape, place, value, seed=0):
    """The tensors of a case with a value in three places of one of them."""
    call, dy, dlast, _ = build(shape, seed)
    tensors = {"x": call[1], "h0": call[2][0], "c0": call[2][-1], "dy": dy, "dh_n": dlast[0]}
    tensors |= dict(
        zip(["w_ih", "w_hh", "b_ih"], call[3][len(call[3]) // 2 :], strict=False)
    )  # of the second direction
    flat = tensors[place].view(-1)
    flat[torch.tensor([3, flat.numel() // 2, flat.numel() - 2])] = value
    return call, dy, dlast


def results(call, dy, dlast):
    y, last, saved = OPS.layer(*call, True)
    dx, dstates, dweights, *_ = OPS.layer_backward(dy, dlast, None, *call, y, saved, [True] * 4)
    return [y, *last, dx, *dstates, *dweights]


PLACES = ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "dy", "dh_n")


def makes_sense(cell, name, place):
    return name != "2^62" or place in ("x", "dy", "dh_n")  # as a weight it makes rounding large


def cases():
    """The name and the tensors of each."""
    for cell, name, place in pairwise.cases(CELLS, VALUES, PLACES, exists=makes_sense):
        yield f"{cell} {name} in {place}", put(Shape(cell, **SIZES), place, VALUES[name])
    for cell in CELLS:
        for dtype in (torch.bfloat16, torch.float16):
            for name in ("inf", "NaN"):
                yield f"{cell} {dtype} {name} in x", put(Shape(cell, dtype, **FEW), "x", VALUES[name])
                yield f"{cell} {dtype} {name} in dy", put(Shape(cell, dtype, **FEW), "dy", VALUES[name])
        yield f"{cell} inf in an x of few numbers", put(Shape(cell, **(SIZES | {"I": 7})), "x", INF)
        # Products beyond the largest number: their parts' products are infinities of both signs.
        call, dy, dlast = put(Shape(cell, **SIZES), "x", 1e30)
        call[3][0] *= 1e15
        yield f"{cell} infinite products", (call, dy, dlast)
        call, dy, dlast = put(Shape(cell, **SIZES), "dy", 1e25)
        yield f"{cell} huge gradients", (call, dy * 1e10, [d * 1e36 for d in dlast])
        # What lies behind the end of a sequence is not looked at.
        call, dy, dlast, _ = build(Shape(cell, **SIZES, lengths="ragged"), 1)
        call[1].nan_to_num_(INF), dy.nan_to_num_(-INF)
        yield f"{cell} infinity behind the end", (call, dy, dlast)
    for rate in (30.0, 1e4, 1e7):  # beyond all numbers after many steps, after some, and soon
        for shape in (Shape("rnn", **SIZES), Shape("rnn", B=17, I=33, H=64)):
            shape = shape._replace(T=30, activation="relu", bias=False)
            call, dy, dlast, _ = build(shape, 2)
            call[3][1] *= rate  # of the first direction only
            yield f"relu that explodes by {rate:g}, {shape}", (call, dy, dlast)


def same_as_in_vectors(sets):
    """For a process of cpp_worker.py: all cases, on one thread and on two in turn, against the same in vectors."""
    for n, (name, tensors) in enumerate(cases()):
        torch.set_num_threads(n % 2 + 1)
        OPS.use_instruction_set(PLAIN)
        expected = results(*tensors)
        for isa in sets:
            OPS.use_instruction_set(isa)
            for i, (a, e) in enumerate(zip(results(*tensors), expected, strict=True)):
                if text := differs(a, e):
                    yield isa, f"{name}, {n % 2 + 1} threads: result {i}: {text}"


def small_numbers():
    """In a process of cpp_worker.py: no digits are lost down to 1e-30, then 1e-37 in a sum's term: docs/accuracy.md."""
    terms = max(SIZES["I"] + SIZES["H"], SIZES["T"] * SIZES["B"])
    for exponent in range(-28, -46, -2):
        scale = 10.0**exponent
        call, dy, dlast, _ = build(Shape("rnn", bias=False, **SIZES), 3)
        call[1] *= scale
        call[2] = [h * scale for h in call[2]]
        found = results(call, dy, dlast)  # y, h_n: small by what goes in; gradients: as large as ever
        found += results(call, dy * scale, [d * scale for d in dlast])[2:4]  # dx, dh_0: small
        exact = in_float64(call)
        y, last, _ = reference.layer(*exact, False)
        expected = [y, *last]
        for factor in (1, scale):
            given = [dy.double() * factor, [d.double() * factor for d in dlast], None]
            dx, dstates, dweights, *_ = reference.layer_backward(*given, *exact, None, None, [True] * 4)
            expected += [dx, *dstates, *dweights] if factor == 1 else [dx, *dstates]
        for n, (a, e) in enumerate(zip(found, expected, strict=True)):
            most, wrong = e.abs().max().item(), (a - e).abs().max().item()
            allowed = max(2e-6 * most, 0 if exponent >= -30 else 1e-37 * terms)
            if not wrong <= allowed:
                yield f"1e{exponent}, result {n} of up to {most:.1e}: error {wrong:.1e} of {allowed:.1e} allowed"


@pytest.mark.parametrize("isa", WITH_PARTS)
def test_small_numbers(isa):
    assert_passes(["test_cpp_extremes.small_numbers"], isa, WITH_PARTS)


def differs(actual, expected):
    """What is different, or None."""
    for name, test in (("NaN", torch.isnan), ("inf", torch.isposinf), ("-inf", torch.isneginf)):
        if not torch.equal(test(actual), test(expected)):
            return f"{name} in {int(test(actual).sum())} places, not {int(test(expected).sum())}"
    a, e = (t.double().nan_to_num(0, 0, 0) for t in (actual, expected))
    # Row by row, so that a huge number does not hide others; both sides round, so both may err by the tolerance. What
    # AMX takes for zero is below 2^-126.
    e_most = e.abs().amax(-1)
    excess = (a - e).abs().amax(-1) - 2 * TOLERANCES[actual.dtype] * e_most
    return None if (excess <= 1e-36).all() else f"relative error {(excess / e_most).max():.1e}"


@pytest.mark.parametrize("isa", WITH_PARTS)
def test_same_as_in_vectors(isa):
    assert_passes(["test_cpp_extremes.same_as_in_vectors"], isa, WITH_PARTS)
