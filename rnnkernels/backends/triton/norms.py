"""Layer norm in the time loops (Ba, Kiros & Hinton 2016): of the recurrent products of a row, and of the cell state.

Letters as in forward.py. A row holds the values of all N gates of all H units for a batch row. If programs share its
units, each stores its part of the sums over units in ``parts`` (programs, B, 2), and the next launch adds them up.
Beside a tile (units, batch) a number per unit is (units, 1), and one per row (1, batch).
"""

import triton
import triton.language as tl


@triton.jit
def load_gains(gain, N: tl.constexpr, H: tl.constexpr, j, d, ACC: tl.constexpr):
    """The gains (D, N, H) of a program's units, per gate; zero where there are no units."""
    gains = ()
    for g in tl.static_range(N):
        gains = gains + (tl.load(gain + (d * N + g) * H + j, mask=j < H, other=0.0).to(ACC),)
    return gains


@triton.jit
def store_parts(parts, first, second, b, B):
    at = parts + (tl.program_id(1) * B + b) * 2
    tl.store(at, first, mask=b < B)
    tl.store(at + 1, second, mask=b < B)


@triton.jit
def add_parts(parts, PARTS: tl.constexpr, b, B):
    """The sums over programs of the two numbers that each stored."""
    part = tl.arange(0, triton.next_power_of_2(PARTS))[:, None]
    at, there = parts + (part * B + b) * 2, (part < PARTS) & (b < B)
    first = tl.load(at, mask=there, other=0.0)
    return tl.sum(first, 0)[None, :], tl.sum(tl.load(at + 1, mask=there, other=0.0), 0)[None, :]


@triton.jit
def moments_of(
    tiles, parts, N: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, j, b, B, EPS: tl.constexpr,
    PHASE: tl.constexpr, AT: tl.constexpr,
):  # fmt: skip
    """The mean of rows, and one over their deviation. Launch AT stores the mean and the squared distances of a
    program's part, later ones combine them; in PHASE 0 a program has whole rows."""
    ACC: tl.constexpr = tiles[0].dtype
    if PHASE > AT:
        part = tl.arange(0, triton.next_power_of_2((H + BH - 1) // BH))[:, None]
        units = tl.minimum(tl.maximum(H - part * BH, 0), BH)
        at, there = parts + (part * B + b) * 2, (units > 0) & (b < B)
        means, squares = tl.load(at, mask=there, other=0.0), tl.load(at + 1, mask=there, other=0.0)
        count = (N * units).to(ACC)
        mean = tl.sum(count * means, 0)[None, :] / (N * H)
        apart = tl.where(there, means - mean, 0.0)
        square = tl.sum(squares + count * apart * apart, 0)[None, :] / (N * H)
    else:
        count = (N * tl.minimum(H - tl.program_id(1) * BH, BH)).to(ACC)
        total = tl.where(j < H, tiles[0], 0.0)
        for g in tl.static_range(1, N):
            total += tl.where(j < H, tiles[g], 0.0)
        mean = tl.sum(total, 0)[None, :] / count
        squares = tl.zeros_like(total)
        for g in tl.static_range(N):
            apart = tl.where(j < H, tiles[g] - mean, 0.0)
            squares += apart * apart
        square = tl.sum(squares, 0)[None, :]
        if PHASE == AT:
            store_parts(parts, mean, square, b, B)
        square = square / count
    return mean, 1 / tl.sqrt(square + EPS)


@triton.jit
def normed(
    tiles, gains, parts, N: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, j, b, B, EPS: tl.constexpr,
    PHASE: tl.constexpr, AT: tl.constexpr,
):  # fmt: skip
    """The N tiles minus their rows' means, over their deviations, times the gains."""
    mean, scale = moments_of(tiles, parts, N, H, BH, j, b, B, EPS, PHASE, AT)
    out = ()
    for g in tl.static_range(N):
        out = out + ((tiles[g] - mean) * scale * gains[g],)
    return out


@triton.jit
def load_moments(moments, row, there):
    """The mean and scale that ``moments_of`` gave, from memory (rows, 2)."""
    return tl.load(moments + row * 2, mask=there, other=0.0), tl.load(moments + row * 2 + 1, mask=there, other=0.0)


@triton.jit
def back_sums(ds, raws, gains, mean, scale, N: tl.constexpr):
    """Sums of the gradients of N norms over a program's units, for the gradient of the normed values."""
    v = ds[0] * gains[0]
    total, products = v, v * (raws[0] - mean) * scale
    for g in tl.static_range(1, N):
        v = ds[g] * gains[g]
        total += v
        products += v * (raws[g] - mean) * scale
    return tl.sum(total, 0)[None, :], tl.sum(products, 0)[None, :]


@triton.jit
def unnormed(d, raw, gain, mean, scale, total, products, COUNT: tl.constexpr):
    """The gradient of the normed values, from that of the norm and from the sums over the row's COUNT values."""
    return scale * (d * gain - total / COUNT - (raw - mean) * scale * (products / COUNT))
