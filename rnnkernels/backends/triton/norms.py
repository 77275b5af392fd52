"""Layer norm in the time loops (Ba, Kiros & Hinton 2016): of the recurrent products of a row, and of the cell state.

Letters as in forward.py. A row holds the values of all N gates of all H units for a batch row. If programs share its
units, each stores its part of the sums over units in ``parts`` (B, 2, programs), and adds up all of them when all are
there: after a barrier, or in the next launch. Beside a tile (units, batch) a number per unit is (units, 1), and one per
row (1, batch). In a difference the tensor comes first: Triton 3.8, interpreted, takes a constant minus a tensor for a
constant.
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
def store_parts(parts, first, second, PARTS: tl.constexpr, b, B):
    at = parts + (b * 2 * PARTS + tl.program_id(1))
    tl.store(at, first, mask=b < B)
    tl.store(at + PARTS, second, mask=b < B)


@triton.jit
def load_parts(parts, there, PARTS: tl.constexpr, b, COOPERATIVE: tl.constexpr):
    """The two numbers that each program stored, in rows, and the numbers of the programs."""
    part = tl.arange(0, triton.next_power_of_2(PARTS))[:, None]
    at, there = parts + (b * 2 * PARTS + part), (part < PARTS) & there
    CACHE: tl.constexpr = ".cg" if COOPERATIVE else ""  # stored by programs that run now: not from this processor's L1
    first = tl.load(at, mask=there, other=0.0, cache_modifier=CACHE)
    return first, tl.load(at + PARTS, mask=there, other=0.0, cache_modifier=CACHE), part


@triton.jit
def add_parts(parts, there, PARTS: tl.constexpr, b, COOPERATIVE: tl.constexpr):
    """The sums over programs of the two numbers that each stored, always in the same order; zero where not there."""
    first, second, _ = load_parts(parts, there, PARTS, b, COOPERATIVE)
    return tl.sum(first, 0)[None, :], tl.sum(second, 0)[None, :]


@triton.jit
def moments_of(tiles, N: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, j):
    """Of a program's part of rows: the mean, the sum of squared distances from it, and the count of values."""
    count = (N * tl.minimum(-tl.program_id(1) * BH + H, BH)).to(tiles[0].dtype)
    total = tl.where(j < H, tiles[0], 0.0)
    for g in tl.static_range(1, N):
        total += tl.where(j < H, tiles[g], 0.0)
    mean = tl.sum(total, 0)[None, :] / count
    squares = tl.zeros_like(total)
    for g in tl.static_range(N):
        apart = tl.where(j < H, tiles[g] - mean, 0.0)
        squares += apart * apart
    return mean, tl.sum(squares, 0)[None, :], count


@triton.jit
def store_moments(tiles, parts, N: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, j, b, B):
    """The moments of a program's part, for all programs that share the rows."""
    mean, square, _ = moments_of(tiles, N, H, BH, j)
    PARTS: tl.constexpr = (H + BH - 1) // BH
    store_parts(parts, mean, square, PARTS, b, B)


@triton.jit
def whole_moments(means, squares, part, N: tl.constexpr, H: tl.constexpr, BH: tl.constexpr):
    """The mean of rows and that of squared distances from it, and how far the means of parts are apart from it."""
    units = tl.minimum(tl.maximum(-part * BH + H, 0), BH)
    count = (N * units).to(means.dtype)
    mean = tl.sum(count * means, 0)[None, :] / (N * H)
    apart = tl.where(units > 0, means - mean, 0.0)
    return mean, tl.sum(squares + count * apart * apart, 0)[None, :] / (N * H), apart


@triton.jit
def meeting(rows, counter, met, FROM: tl.constexpr, PARTS: tl.constexpr, b, B):
    """What a cell's function has after its states if norms in it meet other programs (cells/rows.py): ``met``
    arrivals before it, and FROM norms before its own in the memory of all."""
    if rows is None:
        return ()
    else:
        return (rows + FROM * (4 * PARTS) * B, counter, met, b, B)


@triton.jit
def normed(
    tiles, gains, parts, N: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, j, b, B, EPS: tl.constexpr,
    STORED: tl.constexpr, COOPERATIVE: tl.constexpr,
):  # fmt: skip
    """The N tiles minus their rows' means, over their deviations, times the gains. STORED: all programs have stored the
    moments of their parts; else a program has whole rows."""
    if STORED:
        PARTS: tl.constexpr = (H + BH - 1) // BH
        means, squares, part = load_parts(parts, b < B, PARTS, b, COOPERATIVE)
        mean, square, _ = whole_moments(means, squares, part, N, H, BH)
    else:
        mean, square, count = moments_of(tiles, N, H, BH, j)
        square = square / count
    scale = 1 / tl.sqrt(square + EPS)
    out = ()
    for g in tl.static_range(N):
        out = out + ((tiles[g] - mean) * scale * gains[g],)
    return out


@triton.jit
def load_moments(moments, row, there):
    """The mean of rows and one over their deviation, from memory (rows, 2)."""
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


@triton.jit
def unnormed_product(
    product, moments, parts, spread, along, row, norm, mask, there, PARTS: tl.constexpr, H: tl.constexpr, j, b,
    COUNT: tl.constexpr, COOPERATIVE: tl.constexpr,
):  # fmt: skip
    """``unnormed`` of COUNT values a row and then their product with weights, where that is linear: from the product of
    their gradients with the weights times the gains, and, of the weights themselves, the sums ``spread`` (norms, H) and
    the products ``along`` (rows, H) with the normal values. So a row's sums are needed after the product only."""
    _, scale = load_moments(moments, row, there)
    total, products = add_parts(parts, there, PARTS, b, COOPERATIVE)
    normal = tl.load(along + row * H + j, mask=mask, other=0.0).to(product.dtype)
    weights = tl.load(spread + norm * H + j, mask=j < H, other=0.0)
    return scale * (product - (total * weights + products * normal) / COUNT)
