"""The time loops, forward and backward, of every cell and every schedule.

Letters: T time, B batch, D directions, G gates, H hidden units of the cell, S states, K width of the vector that the
recurrent product reads (H again, except next to a projection). A program owns BH hidden units of BB rows of the batch
in one direction and walks the steps begin..end-1. Tiles are (units, batch), so that the weights are the first operand
of the product: the one that wgmma reads straight from shared memory.

RESIDENT: one program owns all hidden units; weights and states stay on chip from the first step to the last, and what
the next steps read from memory is on its way STAGES-1 steps ahead.
Otherwise: the product reads the vector of the step before from memory, BK at a time, and streams the weights; the
launcher orders the steps (schedule *stepwise*: one launch per step).

A row of length n is live at steps 0..n-1; a dead row keeps its states and writes zeros. A reverse direction stands at
time n-1-i at its live step i, and at time i at a dead one: so every time is written exactly once.
"""

import triton
import triton.language as tl

from .tiles import (
    load_states,
    load_tiles,
    load_weights,
    product_backward,
    product_forward,
    product_resident,
    replaced,
    state_offset,
    store_states,
    time_at,
)

PLAIN = ["begin", "end", "T", "B", "length_x"]  # numbers that kernels are not compiled anew for


@triton.jit(do_not_specialize=PLAIN)
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
    s = load_states(s_in, S, H, mask, j, b, d, B, BH, BB, ACC)
    if x is not None:
        x += d * x_d
    if RESIDENT:
        r = product_resident(weights, s[0], G, ACC, PRECISION)
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
            r = product_resident(weights, s[0], G, ACC, PRECISION)
        if y is not None:
            tl.store(y + state_offset(0, t, b, j, d, B, D, T, H), out.to(y.dtype.element_ty), mask=mask)
        row = (d * T + t) * B + b
        if gates is not None:
            for v in tl.static_range(KEPT):
                value = tl.where(live, kept[v], 0.0) if LENGTHS else kept[v]
                tl.store(gates + (row * KEPT + v) * H + j, value.to(gates.dtype.element_ty), mask=mask)
        if cells is not None:
            tl.store(cells + row * H + j, s[S - 1], mask=mask)
    store_states(s_out, s, S, H, mask, j, b, d, B)
    if h_out is not None:
        tl.store(h_out + (d * B + b) * H + j, s[0].to(h_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=PLAIN)
def scan_backward(
    dy, dcells,  # gradients of y (T, B, D, H) and of the cell states (D, T, B, H), or None
    w,  # (D, G, K, H): the weights of the product that read this cell's output
    gates, saved,  # as kept by the forward pass; saved: the states after every step, y and, if S = 2, cells
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
    ds = load_states(ds_in, S, H, mask, j, b, d, B, BH, BB, ACC)
    first = load_states(s_first, S, H, mask & (begin == 0), j, b, d, B, BH, BB, ACC)
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
    store_states(ds_out, ds, S, H, mask, j, b, d, B)
