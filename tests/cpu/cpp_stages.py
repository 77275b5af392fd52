"""The grid of the stages reset, recurrent dropout and zoneout, alone and together. Letters as in op/schema.py."""

from itertools import combinations, cycle

import torch
from cpp_cases import BOTH, HALVES, Shape, cells

STAGES = ("reset", "restart", "h_mask", "zone", "zone_mask")
PAIRS = [
    " ".join(pair) for pair in combinations(STAGES, 2) if pair not in (("reset", "restart"), ("zone", "zone_mask"))
]
ALL = ["restart h_mask zone", "restart h_mask zone_mask"]


def small(dtype):
    """Every stage and pair with every cell, direction, length, group and projection."""
    ways = cycle([((False,), "ragged"), ((True,), None), (BOTH, "ragged"), ((False,), None), ((True,), "ragged")])
    for stages in [*STAGES, *PAIRS, *ALL]:
        for _ in range(5 if stages in STAGES else 2):
            reverse, lengths = next(ways)
            more = dict(dtype=dtype, stages=stages, reverse=reverse, lengths=lengths)
            yield from cells(T=5, B=7, H=25, **more)
            yield Shape("lstm", T=4, B=5, I=3, H=18, P=6, dcells=True, **more)
            yield Shape("rnn", T=4, B=5, I=3, H=18, activation="relu", **more)
        yield from cells(dtype=dtype, T=3, B=5, H=9, X=2, reverse=BOTH, lengths="grouped", stages=stages)
        yield from cells(dtype=dtype, T=6, B=3, H=9, states=False, dlast=False, stages=stages)
        for T, B in ((1, 1), (3, 1), (2, 3)):  # weights read where they lie
            yield from cells(dtype=dtype, T=T, B=B, I=16, H=32, stages=stages)
            yield from cells(dtype=dtype, T=T, B=B, I=84, H=86, reverse=(True,), stages=stages)
    for stages in ALL:
        yield from cells(dtype=dtype, T=63, B=2, H=16, reverse=BOTH, lengths="ragged", stages=stages)
        yield from cells(dtype=dtype, T=4, B=0, reverse=BOTH, stages=stages)
        yield Shape("lstm", dtype, 4, 0, P=4, stages=stages)
        for layout in ("transposed", "batch first", "sliced", "padded", "expanded"):
            yield from cells(dtype=dtype, T=4, B=6, I=6, H=12, layout=layout, reverse=BOTH, stages=stages)
        for needs in ((a, b, c) for a in BOTH for b in BOTH for c in BOTH):
            yield from cells(dtype=dtype, T=1 + 3 * needs[0], B=4, I=16, H=32, needs=needs, stages=stages)
            yield Shape("lstm", dtype, T=4, H=12, P=5, needs=needs, stages=stages, states=False)


def large(dtype):
    """Sizes of products of bf16 parts, of several chunks, and of rows or hidden units split over threads."""
    for n, stages in enumerate([*STAGES, *PAIRS, *ALL]):
        more = dict(dtype=dtype, stages=stages, lengths="ragged" if n % 2 else None)
        yield from cells(T=3, B=33 + n, I=40, H=70 + n, reverse=BOTH if n % 3 else (True,), threads=n % 3 + 1, **more)
        yield from cells(T=5, B=5, I=40, H=140, reverse=(n % 2 == 1,), threads=n % 4 + 1, **more)
        yield from cells(T=4, B=17, I=33, H=150, threads=6, **more)
        yield Shape("lstm", T=4, B=20, I=40, H=90, P=70, reverse=BOTH, threads=n % 3 + 1, **more)
    for stages in ALL:
        yield from cells(dtype=dtype, T=63, B=20, I=33, H=127, reverse=BOTH, lengths="ragged", stages=stages)


def activations(dtype):
    """Every function as that of candidates and outputs, and of gates; together with the stages too.

    In 16 bits those without corners only: what rounds to a corner has no gradient.
    """
    acts, gates = (None, "sigmoid", "linear", "relu", "hard_sigmoid"), (None, "tanh", "hard_sigmoid", "linear", "relu")
    if dtype in HALVES:
        acts, gates = acts[:3], gates[:2]
    for n, act in enumerate(acts):
        for gate in gates:
            if act is gate is None:
                continue
            more = dict(
                dtype=dtype, activation=act, gate=gate, reverse=(n % 2 == 0,), lengths="ragged" if n % 3 else None
            )
            for stages in ("", "restart h_mask zone"):
                yield from cells(T=3, B=6, H=21, stages=stages, **more)
                yield Shape("lstm", T=3, B=6, H=20, P=9, stages=stages, **more)
            if act is None or gate is None:
                yield from cells(T=3, B=33, I=40, H=70, threads=n % 3 + 1, **more)
                yield from cells(T=1, B=1, I=16, H=32, **more)


def masks(dtype):
    yield from small(dtype)
    if dtype in (torch.float32, torch.bfloat16):
        yield from large(dtype)


def norms(dtype):
    """Layer norm with every cell, stage, direction and form of the products; in 16 bits without zoneout, see below."""
    ways = cycle([((False,), "ragged"), ((True,), None), (BOTH, "ragged"), ((False,), None), ((True,), "ragged")])
    # c again from gates of 16 bits, and then over its deviation: that is more than rounding
    for stages in ("", "reset", "restart h_mask") + (() if dtype in HALVES else ("zone", *ALL)):
        for _ in range(5):
            reverse, lengths = next(ways)
            more = dict(dtype=dtype, stages=f"norm {stages}", reverse=reverse, lengths=lengths)
            yield from cells(T=5, B=7, H=25, **more)
            yield from cells(T=4, B=5, I=9, H=33, states=False, dlast=False, **more)
            yield from cells(T=3, B=33, I=40, H=70, **more)  # bf16 parts
            yield from cells(T=4, B=20, I=40, H=140, threads=3, **more)  # rows split over threads
            yield from cells(T=3, B=4, I=16, H=32, bias=False, **more)
            yield Shape("lstm", T=4, B=5, I=3, H=18, P=6, dcells=True, **more)
            yield Shape("lstm", T=4, B=20, I=40, H=90, P=70, threads=2, **more)
        yield from cells(dtype=dtype, T=3, B=5, H=19, X=2, reverse=BOTH, lengths="grouped", stages=f"norm {stages}")
        yield from cells(dtype=dtype, T=4, B=0, reverse=BOTH, stages=f"norm {stages}")
    for needs in ((a, b, c) for a in BOTH for b in BOTH for c in BOTH):
        yield from cells(dtype=dtype, T=1 + 3 * needs[0], B=4, I=16, H=32, needs=needs, stages="norm")
    if dtype not in HALVES:  # rounded weights or gates of a row alone may cancel out
        yield from cells(dtype=dtype, T=3, B=1, I=16, H=32, stages="norm")
        for layout in ("transposed", "batch first", "sliced", "padded"):
            yield from cells(dtype=dtype, T=4, B=6, I=6, H=12, layout=layout, reverse=BOTH, stages="norm")
        for act, gate in (("relu", None), ("linear", "hard_sigmoid"), ("sigmoid", "tanh")):
            yield from cells(dtype=dtype, T=3, B=6, H=21, activation=act, gate=gate, stages="norm restart h_mask zone")
    if dtype == torch.float64:  # several chunks of steps
        yield from cells(dtype=dtype, T=63, B=20, I=33, H=127, reverse=BOTH, lengths="ragged", stages="norm")
