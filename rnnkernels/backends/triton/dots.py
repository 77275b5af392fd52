"""The recurrent products of the time loops, one per schedule, and the barrier between programs.

Letters as in forward.py. A product gives one tile (units, batch) per gate going forward, and one in all backward.

*resident*     weights and vector are on chip;
*stepwise*     both are streamed from memory, BK at a time;
*cooperative*  weights are on chip, in PIECES of the vector's width; the vector comes from memory, whole. Every piece is
               cut into SPLIT parts, one per warp, whose products are added. The batch is the first operand, of which
               tensor cores take 16 rows at a time, and the units the second, 8 at a time.
"""

import os

import triton
import triton.language as tl

from .tiles import load_weights

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def rounded(tile, PRECISION: tl.constexpr):
    """An operand rounded for the matrix units. These would cut a float32 off after tf32's ten bits, with errors of one
    sign, which add up in sums of gradients. So it is rounded to the nearest, ties away from zero."""
    if PRECISION != "tf32" or INTERPRETED:  # the interpreter's products are exact
        return tile
    else:
        bits = tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,f", [tile], dtype=tl.int32, is_pure=True, pack=1
        )
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def product_resident(weights, h, G: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """For every gate: weights[g] @ h."""
    r = ()
    if G > 0:
        h = rounded(h.to(weights[0].dtype), PRECISION)
    for g in tl.static_range(G):
        r = r + (tl.dot(weights[g], h, input_precision=PRECISION, out_dtype=ACC),)
    return r


@triton.jit
def product_streamed(
    w, vector, j, in_batch, G: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr,
    BK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """For every gate: w[g, j, :] @ vector[b, :]; ``vector`` points to each row's first element."""
    r = ()
    for _g in tl.static_range(G):
        r = r + (tl.zeros((BH, BB), ACC),)
    for start in tl.range(0, K, BK, num_stages=STAGES):
        k = start + tl.arange(0, BK)
        inside = in_batch if K % BK == 0 else in_batch & (k[:, None] < K)
        part = rounded(tl.load(vector + k[:, None], mask=inside, other=0.0), PRECISION)
        longer = ()
        for g in tl.static_range(G):
            tile = rounded(load_weights(w + g * H * K, j, k[None, :], H, K, BH, BK), PRECISION)
            longer = longer + (tl.dot(tile, part, acc=r[g], input_precision=PRECISION, out_dtype=ACC),)
        r = longer
    return r


@triton.jit
def gradient_streamed(
    w, rows, j, in_batch, stop, READS: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr,
    BB: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The sum over gates of w[g, j, :] @ rows[b, READS[g], :]."""
    dh = tl.zeros((BH, BB), ACC)
    for start in tl.range(0, stop, BK, num_stages=STAGES):
        k = start + tl.arange(0, BK)
        inside = in_batch if K % BK == 0 else in_batch & (k[:, None] < K)
        for g in tl.static_range(len(READS)):
            part = tl.load(rows + (READS[g] * K + k[:, None]), mask=inside, other=0.0)
            tile = rounded(load_weights(w + g * H * K, j, k[None, :], H, K, BH, BK), PRECISION)
            dh = tl.dot(tile, rounded(part, PRECISION), acc=dh, input_precision=PRECISION, out_dtype=ACC)
    return dh


@triton.jit
def kept_weights(
    w, j, N: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, PIECES: tl.constexpr,
    SPLIT: tl.constexpr, SCHEDULE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The weights (N, H, K) of a program's units, as kept for the whole sequence; none if streamed."""
    weights = ()
    for g in tl.static_range(N):
        if SCHEDULE == "resident":
            tile = load_weights(w + g * H * K, j, tl.arange(0, BK)[None, :], H, K, BH, BK)
            weights = weights + (rounded(tile, PRECISION),)
        elif SCHEDULE == "cooperative":
            weights = weights + (load_pieces(w + g * H * K, tl.program_id(1) * BH, H, K, BH, PIECES, SPLIT, PRECISION),)
    return weights


@triton.jit
def along_width(START: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr):
    """The places of a piece in the vector, as axes of (SPLIT, batch, width)."""
    return START + tl.arange(0, SPLIT)[:, None, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def load_pieces(
    w, first, H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, PIECES: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One gate's weights of the units from ``first`` on: a tile (SPLIT, width, BH) per piece."""
    tiles = ()
    j = first + tl.arange(0, BH)[None, None, :]
    for n in tl.static_range(len(PIECES)):
        k = tl.trans(along_width(PIECES[n][0], PIECES[n][1], SPLIT), 0, 2, 1)
        at = w + j * K + k
        if H % BH == 0 and PIECES[n][0] + SPLIT * PIECES[n][1] <= K:
            tile = tl.load(at)
        else:
            tile = tl.load(at, mask=(j < H) & (k < K), other=0.0)
        tiles = tiles + (rounded(tile, PRECISION),)
    return tiles


@triton.jit
def product_cooperative(
    weights, vector, in_batch, G: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr,
    PIECES: tl.constexpr, SPLIT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For every gate: weights[g] @ vector[b, :]; all loads of the vector are in flight before the first product."""
    parts = ()
    for n in tl.static_range(len(PIECES)):
        k = along_width(PIECES[n][0], PIECES[n][1], SPLIT)
        inside = in_batch if PIECES[n][0] + SPLIT * PIECES[n][1] <= K else in_batch & (k < K)
        part = tl.load(vector + k, mask=inside, other=0.0, cache_modifier=".cg")
        parts = parts + (rounded(part, PRECISION),)
    r = ()
    for g in tl.static_range(G):
        part = tl.zeros((SPLIT, BB, BH), ACC)
        for n in tl.static_range(len(PIECES)):
            part = tl.dot(parts[n], weights[g][n], acc=part, input_precision=PRECISION, out_dtype=ACC)
        r = r + (part,)
    return over_parts(r, G)


@triton.jit
def gradient_cooperative(
    weights, rows, in_batch, READS: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr,
    PIECES: tl.constexpr, SPLIT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sum over gates of weights[g] @ rows[b, READS[g], :]."""
    dh = tl.zeros((SPLIT, BB, BH), ACC)
    for n in tl.static_range(len(PIECES)):
        k = along_width(PIECES[n][0], PIECES[n][1], SPLIT)
        inside = in_batch if PIECES[n][0] + SPLIT * PIECES[n][1] <= K else in_batch & (k < K)
        for g in tl.static_range(len(READS)):
            part = tl.load(rows + (READS[g] * K + k), mask=inside, other=0.0, cache_modifier=".cg")
            dh = tl.dot(rounded(part, PRECISION), weights[g][n], acc=dh, input_precision=PRECISION, out_dtype=ACC)
    return over_parts((dh,), 1)[0]


@triton.jit
def add(a, b):
    return a + b


@triton.jit
def add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def add_three(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def up_to_four_over_parts(tiles, N: tl.constexpr):
    """``over_parts`` by one reduction for all."""
    if N == 4:
        tiles = tl.reduce(tiles, 0, add_four)
    elif N == 3:
        tiles = tl.reduce(tiles, 0, add_three)
    elif N == 2:
        tiles = tl.reduce(tiles, 0, add_two)
    else:
        tl.static_assert(N == 1)
        tiles = (tl.reduce(tiles[0], 0, add),)
    turned = ()
    for n in tl.static_range(N):
        turned = turned + (tl.trans(tiles[n]),)
    return turned


@triton.jit
def over_parts(tiles, N: tl.constexpr):
    """N products (SPLIT, batch, units) summed over their parts; as tiles (units, batch)."""
    if N == 0:
        return ()
    elif N > 4:
        return up_to_four_over_parts(tiles[:4], 4) + up_to_four_over_parts(tiles[4:], N - 4)
    else:
        return up_to_four_over_parts(tiles, N)


@triton.jit
def arrive(counter):
    """Signal that this program has finished its step; programs that wait for it see the stores of its threads."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target):
    """Wait until ``target`` arrivals since the launch. All programs run at once: the launch is cooperative."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()
