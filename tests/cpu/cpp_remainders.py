"""Any sizes at all against the reference, drawn and, where a case fails, made small by hypothesis.

For the processes of cpp_worker.py: functions of the instruction sets that yield which failed, and what. Letters as in
schema.py.
"""

import torch
from common import TOLERANCES
from cpp_cases import BOTH, HALVES, ONE_PHASE, OPS, TWO_PHASE, Shape, build_with_expectation, compare
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairwise import ALL

DIRECTIONS = st.sampled_from([(False,), (True,), BOTH])


@st.composite
def shapes(draw, dtype, cells, T, B, I, H, threads):  # noqa: E741 - the letter of schema.py
    """Any case of these cells whose sizes lie in these ranges."""
    cell, n, hidden = draw(st.sampled_from(cells)), draw(st.integers(1, threads)), draw(st.integers(*H))
    relu = cell == "rnn" and dtype not in HALVES  # see build: 16 bits go astray at relu's corner
    return Shape(
        cell, dtype, draw(st.integers(*T)), draw(st.integers(*B)), draw(st.integers(*I)), hidden,
        P=draw(st.integers(0, hidden)) if cell == "lstm" else 0, reverse=draw(DIRECTIONS), bias=draw(st.booleans()),
        activation=draw(st.sampled_from([None, "relu"])) if relu else None,
        lengths=draw(st.sampled_from([None, "ragged"])), states=draw(st.booleans()), dlast=draw(st.booleans()),
        threads=n,
    )  # fmt: skip


def failures(sets, dtype, examples, **ranges):
    """What hypothesis finds: at most one pair of an instruction set and a text."""

    @settings(
        max_examples=examples if ALL else examples // 4, deadline=None, derandomize=True, database=None,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(shape=shapes(dtype, **ranges), seed=st.integers(0, 99))
    def agrees(shape, seed):
        built = build_with_expectation(shape, seed)
        for isa in sets:
            OPS.use_instruction_set(isa)
            found = compare(shape, built)
            assert not found, (isa, f"{found} in: {shape}, seed {seed}")

    try:
        agrees()
    except AssertionError as e:
        return [e.args[0]]
    return []


def small(sets):
    """Every remainder of rows, units, inputs and steps (16 bits: gradients of a few units alone may cancel out)."""
    for dtype in TOLERANCES:
        sizes = dict(T=(1, 5), B=(1, 20), I=(1, 20), H=(8 if dtype in HALVES else 1, 70), threads=1)
        yield from failures(sets, dtype, 120, cells=ONE_PHASE, **sizes)
        yield from failures(sets, dtype, 40, cells=TWO_PHASE, **sizes)


def large(sets):
    """The same for sizes that are multiplied in bf16 parts, where the machine does that, on up to four threads."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        sizes = dict(T=(1, 5), B=(4, 70), I=(32, 70), H=(32, 140), threads=4)
        yield from failures(sets, dtype, 60, cells=ONE_PHASE, **sizes)
        yield from failures(sets, dtype, 20, cells=TWO_PHASE, **sizes)
