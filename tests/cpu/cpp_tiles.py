"""The grid of cases that are large enough for products of bf16 parts. Letters as in schema.py.

Smaller ones, in cpp_worker.py, run in numbers everywhere. ``test_tiles_are_reached`` shows the forms these take.
"""

import torch
from cpp_cases import BOTH, HALVES, Shape, cells
from pairwise import ALL

CELLS = ("lstm", "gru", "rnn")


def inputs(n, dtype):
    """Floats are split in three parts where sums are long only."""
    return n + 192 if dtype == torch.float32 else n


def remainders(dtype):
    """Rows mod 16 and 32, hidden units mod 64, inputs mod 32; with threads, directions and lengths in turn."""
    for n in range(0, 77, 3 if dtype == torch.float16 else 1):
        if not ALL and n % 5 > 1:  # with all values of n % 3, n % 4 and n % 7
            continue
        sizes = dict(dtype=dtype, T=2 + n % 4, B=16 + 7 * n % 55, I=inputs(32 + 5 * n % 39, dtype), H=64 + n)
        ways = dict(reverse=BOTH if n % 3 == 0 else (n % 3 == 1,), lengths="ragged" if n % 4 == 1 else None)
        more = dict(bias=n % 5 > 0, states=n % 7 > 0, threads=n % 4 + 1)
        yield from cells(CELLS[n % 3], **sizes, **ways, **more)
        if n % 4 == 0:
            yield Shape("lstm", P=1 + 11 * n % (sizes["H"]), **sizes, **ways, **more)
        if n % 7 in (0, 3):
            yield Shape("gru_reset_before", **sizes, **ways, **more)
    for n in range(32 if dtype == torch.bfloat16 else 0):  # bf16 itself begins at smaller sizes, and needs no AMX
        sizes = dict(dtype=dtype, T=3 + n % 3, B=4 + n, I=32 + 3 * n % 32, H=32 + n)
        yield from cells(CELLS[n % 3], **sizes, reverse=BOTH if n % 2 else (True,))


def stretches(dtype):
    """Long sums: hidden units, inputs and rows of a chunk in several stretches, and more than one chunk."""
    for I, H in ((129, 130), (40, 200), (257, 257), (300, 70), (33, 300), (161, 385)):  # noqa: E741 - as in op/schema.py
        for B in (17, 33, 52):
            yield from cells(CELLS[(B + H) % 3], dtype=dtype, T=2, B=B, I=I, H=H, reverse=(B == 33,), threads=B % 3 + 1)
    yield from cells(dtype=dtype, T=63, B=37, I=inputs(40, dtype), H=64, reverse=BOTH, lengths="ragged", threads=2)
    yield from cells(dtype=dtype, T=29, B=41, I=inputs(33, dtype), H=100)
    yield from cells(
        dtype=dtype, T=29, B=20, I=inputs(70, dtype), H=128, lengths="ragged", threads=3
    )  # chunks of 13 steps
    yield from cells("lstm", dtype=dtype, T=33, B=33, I=inputs(64, dtype), H=90, P=70, reverse=BOTH, threads=2)
    yield from cells("gru", "lstm", dtype=dtype, T=3, B=35, I=300, H=320)  # W_ih from afar: chunks of many rows
    yield from cells("rnn", "gru", dtype=dtype, T=2, B=131, I=33, H=600)  # W_hh from afar: blocks of 128 rows
    yield from cells(dtype=dtype, T=2, B=33, I=40, H=1024, threads=2)
    yield from cells("rnn", dtype=dtype, T=2, B=35, I=1030, H=1030)


def threads(dtype):
    """Batch and hidden units split, over more threads than there are cores."""
    for n in (2, 3, 4, 6):
        yield from cells(
            dtype=dtype, T=13, B=5, I=inputs(40, dtype), H=140, reverse=(n == 3,), threads=n
        )  # units, and W_ih in parts
        yield from cells(
            dtype=dtype, T=5, B=16 + n % 2, I=inputs(50, dtype), H=150, threads=n
        )  # six: units, and W_hh in parts
        yield from cells(dtype=dtype, T=4, B=70, I=inputs(33, dtype), H=97, reverse=BOTH, lengths="ragged", threads=n)
        yield Shape("lstm", dtype, 5, 17, inputs(40, dtype), 150, 61, reverse=BOTH if n == 3 else (True,), threads=n)


def calls(dtype):
    """What is given, what is wanted and how it lies in memory; rows too few for W_hh but enough for the products."""
    yield from cells(dtype=dtype, T=11, B=7, I=inputs(40, dtype), H=70, reverse=BOTH, threads=2)
    yield from cells(dtype=dtype, T=40, B=2, I=inputs(40, dtype), H=70, needs=(True, False, False))
    for needs in ((a, b, c) for a in BOTH for b in BOTH for c in BOTH):
        yield from cells(
            CELLS[sum(needs) % 3], dtype=dtype, T=3, B=24, I=inputs(36, dtype), H=66, needs=needs, reverse=BOTH
        )
    for layout in ("transposed", "batch first", "sliced", "padded", "expanded"):
        yield from cells(dtype=dtype, T=4, B=22, I=inputs(40, dtype), H=72, layout=layout, reverse=BOTH, threads=2)
    for lengths in ("ragged", "grouped", "zeros"):
        yield from cells(dtype=dtype, T=4, B=18, I=inputs(33, dtype), H=65, X=2, reverse=BOTH, lengths=lengths)
    yield from cells("lstm", dtype=dtype, T=4, B=33, I=inputs(33, dtype), H=65, dcells=True, dlast=False, reverse=BOTH)
    yield Shape("rnn", dtype, 4, 21, inputs(40, dtype), 70, activation="relu", reverse=BOTH)


def tiles(dtype):
    yield from remainders(dtype)
    if dtype not in HALVES or dtype == torch.bfloat16:
        yield from stretches(dtype)
    yield from threads(dtype)
    yield from calls(dtype)
