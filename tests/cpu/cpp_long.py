"""Many steps, and tensors whose elements lie far apart: for the processes of cpp_worker.py. Letters as in schema.py."""

import mmap

import torch
from common import error
from cpp_cases import OPS, Shape, build
from pairwise import ALL

import rnnkernels
from rnnkernels.cells import CELLS, spec_of
from rnnkernels.cells.call import LayerCall

FAR = 2**31 + 12345  # more elements than 32 bits count


def backward(dy, dlast, call, y, saved):
    dx, dstates, dweights, *_ = OPS.layer_backward(dy, dlast, None, *call, y, saved, [True] * 4)
    return dx, dstates, dweights


def in_pieces(call, dy, dlast, steps):
    """Forward and backward, a piece of the sequence at a time: y, last states, dx, dstates, dweights."""
    pieces, states = [], call[2]
    for x in call[1].split(steps):
        piece = [call[0], x, states, *call[3:]]
        y, last, saved = OPS.layer(*piece, True)
        pieces.append((piece, y, saved))
        states = last
    dx, dstates, dweights = [], dlast, None
    for (piece, y, saved), dy_piece in zip(pieces[::-1], dy.split(steps)[::-1], strict=True):
        d, dstates, more = backward(dy_piece, dstates, piece, y, saved)
        dx.append(d)
        dweights = more if dweights is None else [a + b for a, b in zip(dweights, more, strict=True)]
    return [torch.cat([y for _, y, _ in pieces]), *states, torch.cat(dx[::-1]), *dstates, *dweights]


def very_long():
    """100,000 steps: all at once as in pieces, forward and backward, and float32 as float64."""
    T = 100_000
    for n, cell in enumerate(CELLS):
        for B in (1, 2) if ALL else (1 + n % 2,):
            call, dy, dlast, _ = build(Shape(cell, torch.float64, T=T, B=B, I=2, H=4), 0)
            y, last, saved = OPS.layer(*call, True)
            dx, dstates, dweights = backward(dy, dlast, call, y, saved)
            whole = [y, *last, dx, *dstates, *dweights]
            for i, (a, b) in enumerate(zip(in_pieces(call, dy, dlast, 9973), whole, strict=True)):
                if not error(a, b) <= 1e-11:
                    yield f"{cell}, B = {B}: result {i} in pieces: error {error(a, b):.1e}"
            single = [cell, call[1].float(), *([t.float() for t in v] for v in call[2:4]), *call[4:]]
            y, last, saved = OPS.layer(*single, True)
            dx, dstates, dweights = backward(dy.float(), [d.float() for d in dlast], single, y, saved)
            for i, (a, b) in enumerate(zip([y, *last, dx, *dstates, *dweights], whole, strict=True)):
                if not error(a, b) <= 1e-5:
                    yield f"{cell}, B = {B}: result {i} in float32: error {error(a, b):.1e}"


def kept_past_caches():
    """The gates that training keeps of a large batch, 12 MB written past the caches, are those of its halves: bits."""
    for cell in ("lstm", "gru", "gru_reset_before", rnnkernels.cells.li_gru.program.text):
        for dtype in (torch.float32, torch.float64):
            spec = spec_of(cell)
            T = 12_000_000 // (640 * 64 * len(spec.planes) * dtype.itemsize)
            call = LayerCall(*build(Shape("lstm", dtype, T=T, B=640, I=2, H=64, lengths="ragged"), 0)[0])
            weights = [torch.randn(spec.gates * 64, n, dtype=dtype) for n in (2, 64)]
            call = call._replace(cell=cell, states=[], weights=weights, bias=False)
            _, _, (whole, *_) = OPS.layer(*call, True)
            for rows in (slice(0, 320), slice(320, 640)):
                half = call._replace(x=call.x[:, rows], lengths=call.lengths[rows])
                if not torch.equal(OPS.layer(*half, True)[2][0], whole[:, :, rows]):
                    yield f"{cell}, {dtype}, rows {rows}"


def reserved(count):
    """float32 numbers for which there are addresses, but no memory until it is written to."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return torch.frombuffer(mmap.mmap(-1, 4 * count, flags=flags), dtype=torch.float32)


def far_apart():
    """Steps or rows of x that lie more than 2^31 elements apart. Addresses are all it takes."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return
    memory = reserved(4 * FAR)
    for cell in CELLS:
        for size in (dict(T=3, B=3, I=5, H=20), dict(T=3, B=33, I=5, H=20), dict(T=3, B=34, I=40, H=70)):
            call, dy, dlast, _ = build(Shape(cell, **size), 0)
            y, last, saved = OPS.layer(*call, True)
            expected = [y, *last, *sum(map(list, backward(dy, dlast, call, y, saved)[1:]), [])]
            near = call[1]
            for strides in ((FAR, size["I"], 1), (size["I"], 2 * FAR // size["B"], 1)):
                call[1] = memory.as_strided(near.shape, strides).copy_(near)
                y, last, saved = OPS.layer(*call, True)
                found = [y, *last, *sum(map(list, backward(dy, dlast, call, y, saved)[1:]), [])]
                for i, (a, b) in enumerate(zip(found, expected, strict=True)):
                    if not error(a, b) <= 1e-6:  # rows that are copied may be summed up in another order
                        yield f"{cell}, strides {strides}: result {i}: error {error(a, b):.1e}"
