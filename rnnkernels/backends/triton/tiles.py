"""The tiles of the time loops: their places in memory, and loading and storing them.

Letters as in forward.py. Tiles are (units, batch); tuples of them are one tile per gate, plane or state.
"""

import triton
import triton.language as tl


@triton.jit
def time_at(i, n, reverse, LENGTHS: tl.constexpr):
    """The time at which step i happens; n is T, or the lengths of the rows in the shape of a tile."""
    if LENGTHS:
        return tl.where((i < n) & reverse, n - 1 - i, i)
    else:
        return tl.where(reverse, n - 1 - i, i).to(tl.int64)


@triton.jit
def lengths_of(lengths, length_x, T, B, b, d, DIRECTIONS: tl.constexpr):
    """The lengths of rows b: T where there are none."""
    if lengths is None:
        return T
    else:
        return tl.load(lengths + (d // DIRECTIONS) * length_x + b, mask=b < B, other=0)


@triton.jit
def place(
    lengths, length_x, T, B, H: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr, REVERSE: tl.constexpr,
    DIRECTIONS: tl.constexpr, SCHEDULE: tl.constexpr,
):  # fmt: skip
    """A program's direction d, true for a reverse one, its units j and rows b, the mask of those that exist, the
    lengths n of the rows, and both rows and lengths as axes of the recurrent product's operand."""
    d = tl.program_id(2).to(tl.int64)
    reverse = ((REVERSE >> (d % DIRECTIONS)) & 1) != 0
    rows = (tl.program_id(0) * BB + tl.arange(0, BB)).to(tl.int64)
    j = (tl.program_id(1) * BH + tl.arange(0, BH))[:, None]
    b = rows[None, :]
    mask = (b < B) if H % BH == 0 else (b < B) & (j < H)
    n = lengths_of(lengths, length_x, T, B, b, d, DIRECTIONS)
    if SCHEDULE == "cooperative":
        vb = rows[None, :, None]
        return d, reverse, j, b, mask, n, vb, lengths_of(lengths, length_x, T, B, vb, d, DIRECTIONS)
    else:
        return d, reverse, j, b, mask, n, b, n


@triton.jit
def load_tiles(at, plane, mask, N: tl.constexpr, ACC: tl.constexpr):
    """N tiles, ``plane`` elements apart, in the accumulate dtype."""
    tiles = ()
    for n in tl.static_range(N):
        tiles = tiles + (tl.load(at + n * plane, mask=mask, other=0.0).to(ACC),)
    return tiles


@triton.jit
def store_tiles(at, plane, tiles, mask, N: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr, JOIN: tl.constexpr):
    """N tiles, ``plane`` elements apart; JOIN: four of them as one, in one trip through shared memory and not four."""
    if JOIN and N == 4:
        four = tl.join(tl.join(tiles[0], tiles[2]), tl.join(tiles[1], tiles[3]))
        four = tl.reshape(four, (BH, BB, 4)).to(at.dtype.element_ty)
        tl.store(at[:, :, None] + tl.arange(0, 4)[None, None, :] * plane, four, mask=mask[:, :, None])
    else:
        for n in tl.static_range(N):
            tl.store(at + n * plane, tiles[n].to(at.dtype.element_ty), mask=mask)


@triton.jit
def load_states(
    at, S: tl.constexpr, H: tl.constexpr, mask, j, b, d, B, BH: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr
):
    """The tiles of the states (D, B, H); zeros where there are none."""
    states = ()
    for v in tl.static_range(S):
        if at is None:
            states = states + (tl.zeros((BH, BB), ACC),)
        else:
            states = states + (tl.load(at[v] + (d * B + b) * H + j, mask=mask, other=0.0).to(ACC),)
    return states


@triton.jit
def store_states(at, states, S: tl.constexpr, H: tl.constexpr, mask, j, b, d, B):
    for v in tl.static_range(S):
        tl.store(at[v] + (d * B + b) * H + j, states[v].to(at[v].dtype.element_ty), mask=mask)


@triton.jit
def state_offset(v: tl.constexpr, t, b, j, d, B, D, T, H: tl.constexpr):
    """The offset of state v after time t: h in the output (T, B, D, H), any other in (D, T, B, H)."""
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
def chosen(condition, yes, no, N: tl.constexpr):
    """``tl.where`` of N tiles each."""
    out = ()
    for n in tl.static_range(N):
        out = out + (tl.where(condition, yes[n], no[n]),)
    return out


@triton.jit
def added(a, b, N: tl.constexpr):
    """The sums of N tiles each."""
    out = ()
    for n in tl.static_range(N):
        out = out + (a[n] + b[n],)
    return out


@triton.jit
def live_only(live, tiles, N: tl.constexpr):
    """The N tiles with zeros in rows that are not live."""
    out = ()
    for n in tl.static_range(N):
        out = out + (tl.where(live, tiles[n], 0.0),)
    return out


@triton.jit
def load_weights(w, j, k, H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr):
    """One gate's tile (BH, BK) of weights, zero outside (H, K)."""
    at = w + j * K + k
    if H % BH == 0 and K % BK == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=(j < H) & (k < K), other=0.0)
