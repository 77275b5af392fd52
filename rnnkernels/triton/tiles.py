"""The parts of the time loops: where things lie, tiles of states and weights, and the recurrent products.

Letters as in loop.py. Tiles are (units, batch); tuples of them are one tile per gate, plane or state.
"""

import triton
import triton.language as tl


@triton.jit
def time_at(i, n, reverse, LENGTHS: tl.constexpr):
    """The time at which step i happens; n is T, or the lengths (1, BB) of the rows."""
    if LENGTHS:
        return tl.where((i < n) & reverse, n - 1 - i, i)
    else:
        return tl.where(reverse, n - 1 - i, i).to(tl.int64)


@triton.jit
def load_tiles(at, plane, mask, N: tl.constexpr, ACC: tl.constexpr):
    """N tiles, ``plane`` elements apart, in the accumulate dtype."""
    tiles = ()
    for n in tl.static_range(N):
        tiles = tiles + (tl.load(at + n * plane, mask=mask, other=0.0).to(ACC),)
    return tiles


@triton.jit
def load_states(
    at, S: tl.constexpr, H: tl.constexpr, mask, j, b, d, B, BH: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr
):
    """The tiles of the states (D, B, H); zeros where there are none."""
    states = ()
    for k in tl.static_range(S):
        if at is None:
            states = states + (tl.zeros((BH, BB), ACC),)
        else:
            states = states + (tl.load(at[k] + (d * B + b) * H + j, mask=mask, other=0.0).to(ACC),)
    return states


@triton.jit
def store_states(at, states, S: tl.constexpr, H: tl.constexpr, mask, j, b, d, B):
    for k in tl.static_range(S):
        tl.store(at[k] + (d * B + b) * H + j, states[k].to(at[k].dtype.element_ty), mask=mask)


@triton.jit
def state_offset(v: tl.constexpr, t, b, j, d, B, D, T, H: tl.constexpr):
    """Where state v after time t is kept: h in the output (T, B, D, H), any other in (D, T, B, H)."""
    if v == 0:
        return t * (B * D * H) + ((b * D + d) * H + j)
    else:
        return ((d * T + t) * B + b) * H + j


@triton.jit
def replaced(tiles, at: tl.constexpr, tile, N: tl.constexpr):
    """The tuple of N tiles with the one at index ``at`` replaced."""
    out = ()
    for n in tl.static_range(N):
        out = out + (tile if n == at else tiles[n],)
    return out


@triton.jit
def load_weights(
    w, out_stride, in_stride, j, k, OUT: tl.constexpr, IN: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr
):
    """One gate's tile (BH, BK) of weights, zero outside (OUT, IN)."""
    at = w + j * out_stride + k * in_stride
    if OUT % BH == 0 and IN % BK == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=(j < OUT) & (k < IN), other=0.0)


@triton.jit
def product_resident(weights, h, G: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """For every gate: weights[g] @ h, both on chip."""
    r = ()
    h = h.to(weights[0].dtype)
    for g in tl.static_range(G):
        r = r + (tl.dot(weights[g], h, input_precision=PRECISION, out_dtype=ACC),)
    return r


@triton.jit
def product_forward(
    w, h, j, b, B, G: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr,
    BK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """For every gate: w[g, j, :] @ h[b, :], weights and h streamed from memory."""
    r = ()
    for _g in tl.static_range(G):
        r = r + (tl.zeros((BH, BB), ACC),)
    for start in tl.range(0, K, BK, num_stages=STAGES):
        k = start + tl.arange(0, BK)
        inside = (b < B) if K % BK == 0 else (b < B) & (k[:, None] < K)
        part = tl.load(h + b * K + k[:, None], mask=inside, other=0.0)
        longer = ()
        for g in tl.static_range(G):
            tile = load_weights(w + g * H * K, K, 1, j, k[None, :], H, K, BH, BK)
            longer = longer + (tl.dot(tile, part, acc=r[g], input_precision=PRECISION, out_dtype=ACC),)
        r = longer
    return r


@triton.jit
def product_backward(
    w, rows, dh, j, in_batch, stop, READS: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr,
    BB: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dh + the sum over gates of w[g, :, j] @ rows[b, READS[g], :], weights and gradients streamed from memory."""
    for start in tl.range(0, stop, BK, num_stages=STAGES):
        k = start + tl.arange(0, BK)
        inside = in_batch if K % BK == 0 else in_batch & (k[:, None] < K)
        for g in tl.static_range(len(READS)):
            part = tl.load(rows + (READS[g] * K + k[:, None]), mask=inside, other=0.0)
            tile = load_weights(w + g * H * K, 1, H, j, k[None, :], H, K, BH, BK)
            dh = tl.dot(tile, part, acc=dh, input_precision=PRECISION, out_dtype=ACC)
    return dh
