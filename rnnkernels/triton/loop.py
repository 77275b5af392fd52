"""The time loops, forward and backward, of every cell and every schedule.

Letters: T time, B batch, D directions, G gates, H hidden units of the cell, S states, K width of the vector that the
recurrent product reads (H again, except next to a projection). A program owns BH hidden units of BB rows of the batch in
one direction and walks the steps begin..end-1. Tiles are (units, batch), so that the weights are the first operand of
the product, which is the one that tensor cores of sm_90 and later read in 64 rows straight from shared memory.

RESIDENT: one program owns all hidden units; weights and states stay on chip from the first step to the last.
Otherwise:  the product reads the vector of the step before from memory, BK at a time, and streams the weights; the
            launcher orders the steps (schedule *stepwise*: one launch per step).

A row of length n is live at steps 0..n-1; a dead row keeps its states and writes zeros. A reverse direction stands at
time n-1-i at its live step i, and at time i at a dead one: so every time is written exactly once.
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
def load_states(at, S: tl.constexpr, H: tl.constexpr, mask, BH: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr, d, B):
    """The states (D, B, H) of this program's rows and units; zeros where there are none."""
    b = (tl.program_id(0) * BB + tl.arange(0, BB)).to(tl.int64)[None, :]
    j = (tl.program_id(1) * BH + tl.arange(0, BH))[:, None]
    states = ()
    for k in tl.static_range(S):
        if at is None:
            states = states + (tl.zeros((BH, BB), ACC),)
        else:
            states = states + (tl.load(at[k] + (d * B + b) * H + j, mask=mask, other=0.0).to(ACC),)
    return states


@triton.jit
def store_states(at, states, S: tl.constexpr, H: tl.constexpr, mask, BH: tl.constexpr, BB: tl.constexpr, d, B):
    b = (tl.program_id(0) * BB + tl.arange(0, BB)).to(tl.int64)[None, :]
    j = (tl.program_id(1) * BH + tl.arange(0, BH))[:, None]
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
def load_weights(w, out_stride, in_stride, j, k, OUT: tl.constexpr, IN: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr):
    """One gate's tile (BH, BK) of weights, zero outside (OUT, IN)."""
    at = w + j * out_stride + k * in_stride
    if OUT % BH == 0 and IN % BK == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=(j < OUT) & (k < IN), other=0.0)


@triton.jit
def scan_forward(
    x,  # (D, T, B, G, H) by the strides x_d, x_t, x_b: input pre-activations with their biases; None for a projection
    w,  # (D, G, H, K)
    bias,  # (D, H): bias of the last gate's recurrent product, for the GRU; else None
    lengths,  # (B,) or (X, B) by the stride length_x; or None
    s_in, s_out,  # S states (D, B, H); s_in may be None for zeros
    h_in, h_out,  # (D, B, K), (D, B, H): what the product reads, and leaves for the next step; None if RESIDENT
    y,  # (T, B, D, H), or None
    gates, cells,  # (D, T, B, KEPT, H), (D, T, B, H): kept for the backward pass, or None
    begin, end, T, B, D, x_d, x_t, x_b, length_x,
    CELL: tl.constexpr, ACTIVATION: tl.constexpr, G: tl.constexpr, S: tl.constexpr, KEPT: tl.constexpr,
    H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
    REVERSE: tl.constexpr, DIRECTIONS: tl.constexpr, RESIDENT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    LENGTHS: tl.constexpr = lengths is not None
    d = tl.program_id(2).to(tl.int64)
    reverse = ((REVERSE >> (d % DIRECTIONS)) & 1) != 0
    b = (tl.program_id(0) * BB + tl.arange(0, BB)).to(tl.int64)[None, :]
    j = (tl.program_id(1) * BH + tl.arange(0, BH))[:, None]
    k = tl.arange(0, BK)
    mask = (b < B) if H % BH == 0 else (b < B) & (j < H)
    n = T
    if LENGTHS:
        n = tl.load(lengths + (d // DIRECTIONS) * length_x + b, mask=b < B, other=0)
    w += d * (G * H * K)
    if RESIDENT:
        weights = ()
        for g in tl.static_range(G):
            weights = weights + (load_weights(w + g * H * K, K, 1, j, k[None, :], H, K, BH, BK),)
    if bias is not None:
        last_bias = tl.load(bias + d * H + j, mask=j < H, other=0.0).to(ACC)
    s = load_states(s_in, S, H, mask, BH, BB, ACC, d, B)
    if x is not None:
        x += d * x_d
    if RESIDENT:
        r = product_resident(weights, s[0], G, BH, BB, ACC, PRECISION)
    for i in tl.range(begin, end, num_stages=STAGES if RESIDENT else 1):
        t = time_at(i, n, reverse, LENGTHS)
        xs = load_tiles(x + t * x_t + (b * x_b + j), H, mask, G, ACC) if x is not None else ()
        if not RESIDENT:
            r = product_forward(w, h_in + d * B * K, j, b, B, G, H, K, BH, BB, BK, ACC, PRECISION, STAGES)
        if bias is not None:
            r = replaced(r, G - 1, r[G - 1] + last_bias, G)
        new, kept = CELL(xs, r, s, ACTIVATION)
        out = new[0]
        if LENGTHS:
            live = i < n
            out = tl.where(live, out, 0.0)
            blended = ()
            for v in tl.static_range(S):
                blended = blended + (tl.where(live, new[v], s[v]),)
            new = blended
        s = new
        if RESIDENT:
            r = product_resident(weights, s[0], G, BH, BB, ACC, PRECISION)
        if y is not None:
            tl.store(y + state_offset(0, t, b, j, d, B, D, T, H), out.to(y.dtype.element_ty), mask=mask)
        row = (d * T + t) * B + b
        if gates is not None:
            for v in tl.static_range(KEPT):
                value = tl.where(live, kept[v], 0.0) if LENGTHS else kept[v]
                tl.store(gates + (row * KEPT + v) * H + j, value.to(gates.dtype.element_ty), mask=mask)
        if cells is not None:
            tl.store(cells + row * H + j, s[S - 1], mask=mask)
    store_states(s_out, s, S, H, mask, BH, BB, d, B)
    if h_out is not None:
        tl.store(h_out + (d * B + b) * H + j, s[0].to(h_out.dtype.element_ty), mask=mask)


@triton.jit
def product_resident(weights, h, G: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
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
    for g in tl.static_range(G):
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
def scan_backward(
    dy, dcells,  # gradients of y (T, B, D, H) and of the cell states (D, T, B, H), or None
    w,  # (D, G, K, H): the weights of the product that read this cell's output
    gates, saved,  # as kept by the forward pass; saved: the states after every step: y (T, B, D, H) and, if S = 2, cells
    s_first,  # the S initial states (D, B, H), or None for zeros
    lengths,
    ds_in, ds_out,  # gradients of the S states (D, B, H); ds_in may be None for zeros
    source,  # (D, T, B, SOURCE, K): gradients that the product reads; not read if RESIDENT
    planes,  # (D, T, B, PLANES, H): the gradients of the pre-activations, the result
    begin, end, T, B, D, length_x,
    CELL: tl.constexpr, ACTIVATION: tl.constexpr, S: tl.constexpr, KEPT: tl.constexpr, PLANES: tl.constexpr,
    NEW: tl.constexpr, OLD: tl.constexpr,  # which states after and before the step the cell reads
    SOURCE: tl.constexpr, READS: tl.constexpr, LAG: tl.constexpr,  # planes of the product, LAG steps later
    H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
    REVERSE: tl.constexpr, DIRECTIONS: tl.constexpr, RESIDENT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    LENGTHS: tl.constexpr = lengths is not None
    G: tl.constexpr = len(READS)
    d = tl.program_id(2).to(tl.int64)
    reverse = ((REVERSE >> (d % DIRECTIONS)) & 1) != 0
    b = (tl.program_id(0) * BB + tl.arange(0, BB)).to(tl.int64)[None, :]
    j = (tl.program_id(1) * BH + tl.arange(0, BH))[:, None]
    k = tl.arange(0, BK)
    mask = (b < B) if H % BH == 0 else (b < B) & (j < H)
    n = T
    if LENGTHS:
        n = tl.load(lengths + (d // DIRECTIONS) * length_x + b, mask=b < B, other=0)
    w += d * (G * H * K)
    if RESIDENT:
        weights = ()
        for g in tl.static_range(G):
            weights = weights + (load_weights(w + g * H * K, 1, H, j, k[None, :], H, K, BH, BK),)
    ds = load_states(ds_in, S, H, mask, BH, BB, ACC, d, B)
    first = load_states(s_first, S, H, mask & (begin == 0), BH, BB, ACC, d, B)
    after = ()
    for v in tl.static_range(S):
        at = saved[v] + state_offset(v, time_at(end - 1, n, reverse, LENGTHS), b, j, d, B, D, T, H)
        after = after + (tl.load(at, mask=mask, other=0.0).to(ACC) if NEW[v] and OLD[v] else first[v],)
    for up in tl.range(begin, end, num_stages=STAGES if RESIDENT else 1):
        i = begin + end - 1 - up
        t = time_at(i, n, reverse, LENGTHS)
        row = (d * T + t) * B + b
        kept = load_tiles(gates + (row * (KEPT * H) + j), H, mask, KEPT, ACC) if KEPT > 0 else ()
        new = ()
        old = ()
        for v in tl.static_range(S):
            if OLD[v]:
                at = saved[v] + state_offset(v, time_at(i - 1, n, reverse, LENGTHS), b, j, d, B, D, T, H)
                value = tl.load(at, mask=mask & (i > 0), other=0.0).to(ACC)
                old = old + (tl.where(i > 0, value, first[v]),)
            else:
                old = old + (first[v],)
            if NEW[v] and not OLD[v]:
                at = saved[v] + state_offset(v, t, b, j, d, B, D, T, H)
                new = new + (tl.load(at, mask=mask, other=0.0).to(ACC),)
            else:
                new = new + (after[v],)
        stay = ds
        arriving = ds
        if dy is not None:
            value = tl.load(dy + state_offset(0, t, b, j, d, B, D, T, H), mask=mask, other=0.0)
            arriving = replaced(arriving, 0, arriving[0] + value.to(ACC), S)
        if dcells is not None:
            value = tl.load(dcells + row * H + j, mask=mask, other=0.0)
            arriving = replaced(arriving, S - 1, arriving[S - 1] + value.to(ACC), S)
        if not RESIDENT:
            later = time_at(i + LAG, n, reverse, LENGTHS)
            stop = tl.where(i + LAG < T, K, 0)
            rows = source + ((d * T + later) * B + b) * (SOURCE * K)
            dh = tl.zeros((BH, BB), ACC)
            dh = product_backward(w, rows, dh, j, b < B, stop, READS, H, K, BH, BB, BK, ACC, PRECISION, STAGES)
            arriving = replaced(arriving, 0, arriving[0] + dh, S)
        emitted, earlier = CELL(arriving, new, old, kept, ACTIVATION)
        after = old
        if LENGTHS:
            live = i < n
            blended = ()
            for v in tl.static_range(PLANES):
                blended = blended + (tl.where(live, emitted[v], 0.0),)
            emitted = blended
            blended = ()
            for v in tl.static_range(S):
                blended = blended + (tl.where(live, earlier[v], stay[v]),)
            earlier = blended
        for v in tl.static_range(PLANES):
            tl.store(planes + (row * PLANES + v) * H + j, emitted[v].to(planes.dtype.element_ty), mask=mask)
        if RESIDENT:
            dh = earlier[0]
            for g in tl.static_range(G):
                part = emitted[READS[g]].to(w.dtype.element_ty)
                dh = tl.dot(weights[g], part, acc=dh, input_precision=PRECISION, out_dtype=ACC)
            earlier = replaced(earlier, 0, dh, S)
        ds = earlier
    store_states(ds_out, ds, S, H, mask, BH, BB, d, B)


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
