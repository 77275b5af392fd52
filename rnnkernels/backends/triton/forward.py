"""The time loop forward, of every cell, stage and schedule.

Letters: T time, B batch, D directions, G gates of the recurrent product and GX of the input, H hidden units of the
cell, S states, V learned vectors, K width of the vector that the recurrent product reads (H again, except next to a
projection). A program owns BH hidden units of BB rows of the batch
in one direction and walks the steps begin..end-1. Tiles are (units, batch).

*resident*     one program owns all hidden units; weights and states stay on chip from the first step to the last, and
               loads from memory are in flight STAGES-1 steps ahead.
*cooperative*  programs own a few units each and keep their weights; they read the vector from the output of the step
               before, when all programs with the same rows have arrived at a barrier.
*stepwise*     one launch per step; weights are streamed, and the vector is read from the output of the step before.

A generated cell (``cells/generated.py``) may have more: learned vectors and inputs beside x, which follow the states
among what the cell reads; an operand of the recurrent product that is not h, and an output that is not h.

The vector of a second product and the moments of a layer norm need the units of other programs. Resident programs own
all units, cooperative ones wait once more, and a stepwise launch ends there: the next launch (PHASE) loads the products
that the earlier ones have stored, and computes the rest again. The n-th wait within a step is where launch n ends.

A row of length n is live at steps 0..n-1; a dead row keeps its states and writes zeros. A reverse direction stands at
time n-1-i at its live step i, and at time i at a dead one: so every time is written exactly once.
"""

import triton
import triton.language as tl

from .dots import (
    arrive,
    kept_weights,
    product_cooperative,
    product_resident,
    product_streamed,
    wait,
)
from .norms import load_gains, meeting, normed, store_moments
from .stages import biased, entering, load_inputs, load_keep, load_vectors, masked, resets_at, zoned
from .tiles import (
    chosen,
    live_only,
    load_states,
    load_tiles,
    place,
    replaced,
    state_offset,
    store_states,
    store_tiles,
    time_at,
)

PLAIN = ["begin", "end", "T", "B", "length_x", "reset_x"]  # numbers for which kernels are not specialised


@triton.jit(do_not_specialize=PLAIN)
def scan_forward(
    x,  # (D, T, B, GX, H) by the strides x_d, x_t, x_b: input pre-activations with their biases; or None
    w,  # (D, G, H, K); None for a cell without a recurrent product
    bias,  # (D, gates in BIASED, H): the biases of recurrent products that are not merged with those of x; or None
    lengths,  # (B,) or (X, B) by the stride length_x; or None
    reset,  # (T, B) or (X, T, B) by the stride reset_x, uint8: the stages of stages.py; or None
    s_reset,  # S states (D, B, H) that rows restart from, or None for zeros
    h_mask,  # (D, B, H), or None
    zone, zone_at,  # per state (T, D, B, H), and its strides by t, d and b; or None
    s_in, s_out,  # S states (D, B, H); s_in may be None for zeros, s_out in all launches of a step but the last
    v_first,  # (D, B, K): the vector of step 0; not read if resident
    vector,  # (T, B, D, K): outputs, each the vector of the next step; (2, B, D, K) if RING; None: v_first is for all
    v_out,  # (2, B, D, H): alternating buffers for the next step's vector, if that is not the output; or None
    h_out,  # (D, B, H): h of a step, for a projection; or None
    y,  # (T, B, D, H), or None
    gates, cells,  # (D, T, B, KEPT, H), and of the last states (D, T, B, H) each: kept for the backward pass, or None
    vectors,  # (D, V, H), or None
    inputs, inputs_at,  # inputs beside x, those of a sequence first: (X, T, B, H), and the strides by x, t and b; or ()
    between,  # (D, B, H): the vector of a second product, for other programs or PHASE 2; or None
    sums,  # (D, B, G, H): the products of earlier launches of a step; or None
    gain,  # (D, G, H): of the layer norm of the recurrent products; or None
    c_gain, c_bias,  # (D, H): of the layer norm of the last state in the output; or None
    parts,  # (D, 2, B, 2, programs): parts of rows' sums, as in norms.py; or None
    rows,  # (D, norms of the cell, 2, B, 2, programs): memory of cells/rows.py, if cooperative; or None
    counters,  # (D, batch tiles) zeros: the barriers, if cooperative
    begin, end, T, B, D, x_d, x_t, x_b, length_x, reset_x,
    CELL: tl.constexpr,
    FIRST: tl.constexpr, OUTPUT: tl.constexpr,  # a second product's operand; h from kept values and the normed c
    OPERAND: tl.constexpr,  # the operand of the product, where it is not h
    Y: tl.constexpr,  # the cell gives its output after the new states; else it is the first state
    OWN: tl.constexpr,  # the states that are kept as the cell made them, before zoneout
    FINITE: tl.constexpr,  # the cell gives numbers where all that it reads is zero, as for units that do not exist
    ROWS: tl.constexpr,  # norms in OPERAND, FIRST and CELL that meet other programs
    BIASED: tl.constexpr, V: tl.constexpr, SEQUENCES: tl.constexpr, INPUT_J: tl.constexpr,
    PHASE: tl.constexpr,  # 1, 2, ...: the number of the launch in its step; 0: the only one
    EPS: tl.constexpr,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, GX: tl.constexpr, G: tl.constexpr, S: tl.constexpr,
    KEPT: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
    PIECES: tl.constexpr, SPLIT: tl.constexpr, ZONE_J: tl.constexpr, REVERSE: tl.constexpr, DIRECTIONS: tl.constexpr,
    RING: tl.constexpr, SCHEDULE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    LENGTHS: tl.constexpr = lengths is not None
    RESIDENT: tl.constexpr = SCHEDULE == "resident"
    COOPERATIVE: tl.constexpr = SCHEDULE == "cooperative"
    N: tl.constexpr = G if FIRST is None else G - 1  # gates of the first product
    INPUTS: tl.constexpr = len(INPUT_J)
    NORM: tl.constexpr = gain is not None
    SECOND: tl.constexpr = 2 if NORM else 1  # the launch that stores the vector of a second product for the next one
    NORMED: tl.constexpr = SECOND if c_gain is None else SECOND + 1  # launches up to the end, without a second product
    BEFORE: tl.constexpr = (SECOND if FIRST is None else 2 * SECOND) - 1 + ROWS[1]  # arrivals in a step, before CELL
    ARRIVALS: tl.constexpr = (NORMED if FIRST is None else 2 * NORMED) + ROWS[0] + ROWS[1] + ROWS[2]
    PARTS: tl.constexpr = (H + BH - 1) // BH
    d, reverse, j, b, mask, n, vb, vn = place(
        lengths, length_x, T, B, H, BH, BB, REVERSE, DIRECTIONS, SCHEDULE
    )  # fmt: skip
    if w is not None:
        w += d * (G * H * K)
    weights = kept_weights(w, j, G, H, K, BH, BK, PIECES, SPLIT, SCHEDULE, PRECISION)
    if COOPERATIVE:
        counters += d * tl.num_programs(0) + tl.program_id(0)
    biases = load_gains(bias, len(BIASED), H, j, d, ACC) if bias is not None else ()
    if NORM:
        gains = load_gains(gain, G, H, j, d, ACC)
    if c_gain is not None:
        c_gains, c_biases = load_gains(c_gain, 1, H, j, d, ACC), load_gains(c_bias, 1, H, j, d, ACC)
    if parts is not None:
        parts += d * 4 * PARTS * B
        more_parts = parts + 2 * PARTS * B
    else:
        more_parts = None
    if rows is not None:
        rows += d * ((ROWS[0] + ROWS[1] + ROWS[2]) * 4 * PARTS) * B
    keep = load_keep(h_mask, H, mask, j, b, d, B, ACC) if h_mask is not None else None
    s = load_states(s_in, S, H, mask, j, b, d, B, BH, BB, ACC)
    if x is not None:
        x += d * x_d
    fixed = load_vectors(vectors, V, H, j, d, BH, BB, ACC)
    group = d // DIRECTIONS
    fixed = fixed + load_inputs(inputs, inputs_at, 0, SEQUENCES, INPUT_J, group, 0, b, j, mask, ACC)
    for i in tl.range(begin, end, num_stages=STAGES if RESIDENT else 1):
        t = time_at(i, n, reverse, LENGTHS)
        xs = load_tiles(x + t * x_t + (b * x_b + j), H, mask, GX, ACC) if x is not None else ()
        given = fixed + load_inputs(inputs, inputs_at, SEQUENCES, INPUTS, INPUT_J, group, t, b, j, mask, ACC)
        again = resets_at(reset, reset_x, t, b, d, B, DIRECTIONS) if reset is not None else None
        old = entering(s, again, s_reset, S, H, mask, j, b, d, B)
        h = masked(old[0], keep)
        operand = masked(OPERAND(old + given), keep) if RESIDENT and OPERAND is not None else h
        if sums is not None:
            at_sums = sums + ((d * B + b) * (G * H) + j)
        if PHASE > 1:
            r = load_tiles(at_sums, H, mask, N, ACC)
        elif RESIDENT:
            if not FINITE and H % BH != 0:
                operand = tl.where(j < H, operand, 0.0)
            r = product_resident(weights, operand, N, ACC, PRECISION)
        else:
            read = v_first + (d * B + vb) * K
            if vector is not None:
                slot = i % 2 if RING else time_at(i - 1, vn, reverse, LENGTHS)
                base, row = vector, slot * (B * D * K) + (vb * D + d) * K
                if i == 0:  # no tl.where of the two: Triton 3.8 loads what that gives two bytes at a time
                    base, row = v_first, tl.zeros_like(row) + (d * B + vb) * K
                read = base + row
            if COOPERATIVE:
                wait(counters, ARRIVALS * i * tl.num_programs(1))
                r = product_cooperative(weights, read, vb < B, N, K, BH, BB, PIECES, SPLIT, ACC, PRECISION)
            else:
                r = product_streamed(w, read, j, b < B, N, H, K, BH, BB, BK, ACC, PRECISION, STAGES)
        if PHASE == 1:
            store_tiles(at_sums, H, r, mask, N, BH, BB, False)
        if NORM:
            if COOPERATIVE or PHASE == 1:
                store_moments(r, parts, N, H, BH, j, b, B)
            if COOPERATIVE:
                arrive(counters)
                wait(counters, (ARRIVALS * i + 1) * tl.num_programs(1))
            r = normed(r, gains, parts, N, H, BH, j, b, B, EPS, COOPERATIVE or PHASE > 1, COOPERATIVE)
        r = biased(r, biases, BIASED, 0, N)
        if FIRST is not None:
            read = between + (d * B + vb) * K if between is not None else None
            meet = meeting(rows, counters, ARRIVALS * i + SECOND - 1, 0, PARTS, b, B)
            second, crossing = FIRST(xs, r, replaced(old, 0, h, S) + given + meet, ACTIVATION, GATE)
            given = given + crossing
            if COOPERATIVE or PHASE == SECOND:
                tl.store(between + (d * B + b) * H + j, second.to(between.dtype.element_ty), mask=mask)
            if RESIDENT:
                if not FINITE and H % BH != 0:
                    second = tl.where(j < H, second, 0.0)
                q = product_resident((weights[N],), second, 1, ACC, PRECISION)
            elif COOPERATIVE:
                arrive(counters)
                wait(counters, (ARRIVALS * i + SECOND + ROWS[1]) * tl.num_programs(1))
                q = product_cooperative((weights[N],), read, vb < B, 1, K, BH, BB, PIECES, SPLIT, ACC, PRECISION)
            elif PHASE == SECOND + 1:
                q = product_streamed(w + N * H * K, read, j, b < B, 1, H, K, BH, BB, BK, ACC, PRECISION, STAGES)
                if NORM:
                    store_tiles(at_sums + N * H, H, q, mask, 1, BH, BB, False)
            elif PHASE > SECOND:
                q = load_tiles(at_sums + N * H, H, mask, 1, ACC)
            else:  # the results below are not used, and the compiler removes them
                q = (tl.zeros((BH, BB), ACC),)
            if NORM:
                if COOPERATIVE or PHASE == 3:
                    store_moments(q, more_parts, 1, H, BH, j, b, B)
                if COOPERATIVE:
                    arrive(counters)
                    wait(counters, (ARRIVALS * i + 3 + ROWS[1]) * tl.num_programs(1))
                q = normed(q, (gains[N],), more_parts, 1, H, BH, j, b, B, EPS, COOPERATIVE or PHASE > 3, COOPERATIVE)
            r = biased(r + q, biases, BIASED, N, G)
        meet = meeting(rows, counters, ARRIVALS * i + BEFORE, ROWS[1], PARTS, b, B)
        new, kept = CELL(xs, r, old + given + meet, ACTIVATION, GATE)
        if c_gain is not None:
            c = (new[S - 1],)
            if COOPERATIVE or PHASE == 2:
                store_moments(c, more_parts, 1, H, BH, j, b, B)
            if COOPERATIVE:
                arrive(counters)
                wait(counters, (ARRIVALS * i + 2) * tl.num_programs(1))
            c = normed(c, c_gains, more_parts, 1, H, BH, j, b, B, EPS, COOPERATIVE or PHASE > 2, COOPERATIVE)
            new = replaced(new, 0, OUTPUT(kept, c[0] + c_biases[0], ACTIVATION, GATE), S)
        for v in tl.static_range(len(OWN)):
            kept = kept + (new[OWN[v]],)
        out = new[S] if Y else new[0]
        new = new[:S] if Y else new
        new = zoned(new, old, zone, zone_at, S, ZONE_J, t, b, j, d, mask, ACC)
        if not Y:
            out = new[0]
        if LENGTHS:
            out = tl.where(i < n, out, 0.0)
            new = chosen(i < n, new, s, S)
            kept = live_only(i < n, kept, KEPT)
        s = new
        if y is not None:
            tl.store(y + state_offset(0, t, b, j, d, B, D, T, H), out.to(y.dtype.element_ty), mask=mask)
        if v_out is not None:
            again = None
            if reset is not None:
                after = time_at(tl.minimum(i + 1, T - 1), n, reverse, LENGTHS)
                again = resets_at(reset, reset_x, after, b, d, B, DIRECTIONS)
            if OPERAND is None:
                h = masked(entering(s, again, s_reset, 1, H, mask, j, b, d, B)[0], keep)
            else:
                after = time_at(tl.minimum(i + 1, T - 1), n, reverse, LENGTHS)
                given = load_inputs(inputs, inputs_at, SEQUENCES, INPUTS, INPUT_J, group, after, b, j, mask, ACC)
                meet = meeting(rows, counters, ARRIVALS * i + BEFORE + ROWS[2], ROWS[1] + ROWS[2], PARTS, b, B)
                h = masked(OPERAND(entering(s, again, s_reset, S, H, mask, j, b, d, B) + fixed + given + meet), keep)
            at = v_out + (i + 1) % 2 * (B * D * H) + ((b * D + d) * H + j)
            tl.store(at, h.to(v_out.dtype.element_ty), mask=mask)
        if COOPERATIVE:
            arrive(counters)
        row_kept = (d * T + t) * B + b
        if gates is not None:
            store_tiles(gates + (row_kept * (KEPT * H) + j), H, kept, mask, KEPT, BH, BB, True)
        if cells is not None:
            for v in tl.static_range(len(cells)):
                tl.store(cells[v] + row_kept * H + j, s[S - len(cells) + v], mask=mask)
    if s_out is not None:
        store_states(s_out, s, S, H, mask, j, b, d, B)
    if h_out is not None:
        tl.store(h_out + (d * B + b) * H + j, s[0].to(h_out.dtype.element_ty), mask=mask)
