"""The time loop backward: the gradients of the pre-activations of every step, and of the initial states.

Letters, schedules and lengths as in forward.py. Steps are walked from end-1 down to begin. At step i the gradient of
the states after it, which came from step i+1, is joined by that of the output and by the recurrent product: the
weights times the gradients of the recurrent pre-activations of step i+1. Resident programs have these on chip and
multiply at the end of step i+1; the others read them from the result at the beginning of step i. The product of step 0,
which only the initial state needs, is then computed by the launcher.

The gradients of vectors and of inputs of a whole sequence are summed over the steps, row by row; those of inputs of a
step are results of the step. Where the operand of the product is not h, programs that are not resident have the
gradient of step i+1's operand at step i, and load what that operand was computed from again.
"""

import triton
import triton.language as tl

from .dots import (
    arrive,
    gradient_cooperative,
    gradient_streamed,
    kept_weights,
    product_resident,
    rounded,
    wait,
)
from .forward import PLAIN
from .norms import (
    add_parts,
    back_sums,
    load_gains,
    load_moments,
    meeting,
    store_parts,
    unnormed,
    unnormed_product,
)
from .stages import entering, load_inputs, load_keep, load_vectors, masked, resets_at, unzoned
from .tiles import (
    added,
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


@triton.jit(do_not_specialize=PLAIN)
def scan_backward(
    dy, dcells,  # gradients of y (T, B, D, H), and of every step's states apart from y (D, T, B, H) each; or None
    w,  # (D, G, H, K): the weights of the product that read this cell's output, transposed
    gates, saved,  # as kept by the forward pass; saved: the S states after every step, the first perhaps as y
    s_first,  # the S initial states (D, B, H), or None for zeros
    lengths, reset, s_reset, zone, zone_at,  # as in the forward pass
    h_mask,  # (D, B, H): the mask of the product that reads this cell's output, or None
    ds_in, ds_out,  # gradients of the S states (D, B, H); ds_in may be None for zeros
    ds_reset,  # S sums (D, B, H) that the gradients of the states that rows restart from are added to; or None
    source,  # (D, T, B, SOURCE, K): gradients that the product reads; not read if resident
    planes,  # (D, T, B, PLANES, H): the gradients of the pre-activations, the result
    raw, gain,  # (D, T, B, G, H), (D, G, H): the recurrent products that were normed, and the gains; or None
    moments,  # (D, T, B, M, 2): their rows' mean and scale, in one norm per product
    spread, along,  # (D, M, H), (D, T, B, M, H): as in norms.py, of the products that read normed values; or None
    c_gain, c_bias, c_moments,  # (D, H), (D, H), (D, T, B, 2): the same for the last state in the output; or None
    dnorm,  # (D, T, B, H): gradients of that norm, a result; or None
    held,  # (D, B, H) each: gradients that cross from one launch of a step to the next; or None
    x,  # as in the forward pass, where it is the layer's input itself and the cell reads it again; or None
    vectors, inputs, inputs_at,  # as in the forward pass
    dfixed,  # sums (D, B, H) that the gradients of V vectors and of SEQUENCES inputs are added to; or None
    dinputs,  # (D, T, B, INPUTS - SEQUENCES, H): gradients of the other inputs; or None
    doperand,  # (D, T, B, INPUTS - SEQUENCES, H): their part through the operand, if not resident; or None
    parts,  # (2, D, 2, B, 2, PARTS): in turns, sums of the rows' parts as in norms.py; or None
    rows,  # (D, norms of the cell, 2, B, 2, PARTS): memory of cells/rows.py, if cooperative; or None
    counters,  # (D, batch tiles) zeros: the barriers, if cooperative
    begin, end, T, B, D, x_d, x_t, x_b, length_x, reset_x,
    CELL: tl.constexpr, RENEW: tl.constexpr,
    FIRST: tl.constexpr, OUTPUT: tl.constexpr, PHASE: tl.constexpr,  # as in the forward pass, both of them backward
    OPERAND: tl.constexpr,  # the gradients through the operand of the product; or None
    FIRST_PLANES: tl.constexpr,  # for every plane, its number among those that FIRST gives, or -1
    DQ: tl.constexpr,  # the plane of the second product
    CROSS: tl.constexpr,  # gradients that CELL gives to FIRST, after all others
    Y: tl.constexpr, FINITE: tl.constexpr, V: tl.constexpr, SEQUENCES: tl.constexpr, INPUT_J: tl.constexpr,
    GX: tl.constexpr,
    READ_NORM: tl.constexpr, EMITS: tl.constexpr,  # the product reads normed values; the cell's planes that are such
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,  # norms in OPERAND, CELL and FIRST that meet other programs
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, S: tl.constexpr,
    KEPT: tl.constexpr, PLANES: tl.constexpr,
    NEW: tl.constexpr, OLD: tl.constexpr,  # true for states that are read after and before the step
    SOURCE: tl.constexpr, READS: tl.constexpr, LAG: tl.constexpr,  # planes of the product, LAG steps later
    H: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, PIECES: tl.constexpr,
    SPLIT: tl.constexpr, ZONE_J: tl.constexpr, REVERSE: tl.constexpr, DIRECTIONS: tl.constexpr,
    SCHEDULE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    LENGTHS: tl.constexpr = lengths is not None
    RESIDENT: tl.constexpr = SCHEDULE == "resident"
    COOPERATIVE: tl.constexpr = SCHEDULE == "cooperative"
    N: tl.constexpr = len(READS)  # gates of the first product
    G: tl.constexpr = N if FIRST is None else N + 1  # of the recurrent products
    NORMS: tl.constexpr = 1 if FIRST is None else 2
    EMIT_NORM: tl.constexpr = len(EMITS) > 0
    RAWS: tl.constexpr = len(EMITS) + NORMS - 1
    OUTPUT_NORM: tl.constexpr = c_gain is not None
    ARRIVALS: tl.constexpr = (2 if OUTPUT_NORM else NORMS) + ROWS[0] + ROWS[1] + ROWS[2]  # in a step
    BEFORE: tl.constexpr = ROWS[0] + ROWS[1]  # those of OPERAND and CELL
    INPUTS: tl.constexpr = len(INPUT_J)
    FIXED: tl.constexpr = V + SEQUENCES
    MORE: tl.constexpr = V + INPUTS  # gradients that the cell gives after those of the states
    PADDED: tl.constexpr = H % BH != 0 and (RESIDENT or EMIT_NORM)  # planes of units that do not exist are multiplied
    d, reverse, j, b, mask, n, vb, vn = place(
        lengths, length_x, T, B, H, BH, BB, REVERSE, DIRECTIONS, SCHEDULE
    )  # fmt: skip
    if w is not None:
        w += d * (G * H * K)
    weights = kept_weights(w, j, G, H, K, BH, BK, PIECES, SPLIT, SCHEDULE, PRECISION)
    if COOPERATIVE:
        counters += d * tl.num_programs(0) + tl.program_id(0)
    if EMIT_NORM:
        gains = load_gains(gain, RAWS, H, j, d, ACC)
    if OUTPUT_NORM:
        c_gains, c_biases = load_gains(c_gain, 1, H, j, d, ACC), load_gains(c_bias, 1, H, j, d, ACC)
    turn = D * 4 * PARTS * B
    if parts is not None:
        parts += d * 4 * PARTS * B
        more_parts = parts + 2 * PARTS * B
    if rows is not None:
        rows += d * ((BEFORE + ROWS[2]) * 4 * PARTS) * B
    keep = load_keep(h_mask, H, mask, j, b, d, B, ACC) if h_mask is not None else None
    ds = load_states(ds_in, S, H, mask, j, b, d, B, BH, BB, ACC)
    restarted = load_states(ds_reset, S, H, mask, j, b, d, B, BH, BB, ACC)
    group = d // DIRECTIONS
    fixed = load_vectors(vectors, V, H, j, d, BH, BB, ACC)
    fixed = fixed + load_inputs(inputs, inputs_at, 0, SEQUENCES, INPUT_J, group, 0, b, j, mask, ACC)
    summed = load_states(dfixed, FIXED, H, mask, j, b, d, B, BH, BB, ACC)
    first = load_states(s_first, S, H, mask & (begin == 0), j, b, d, B, BH, BB, ACC)
    after = ()
    for v in tl.static_range(S):
        end_at = saved[v] + state_offset(v + Y, time_at(end - 1, n, reverse, LENGTHS), b, j, d, B, D, T, H)
        after = after + (tl.load(end_at, mask=mask, other=0.0).to(ACC) if NEW[v] and OLD[v] else first[v],)
    for up in tl.range(begin, end, num_stages=STAGES if RESIDENT else 1):
        i = begin + end - 1 - up
        t = time_at(i, n, reverse, LENGTHS)
        row = (d * T + t) * B + b
        again = resets_at(reset, reset_x, t, b, d, B, DIRECTIONS) if reset is not None else None
        kept = load_tiles(gates + (row * (KEPT * H) + j), H, mask, KEPT, ACC) if KEPT > 0 else ()
        new = ()
        before = ()
        for v in tl.static_range(S):
            if OLD[v]:
                at = saved[v] + state_offset(v + Y, time_at(i - 1, n, reverse, LENGTHS), b, j, d, B, D, T, H)
                value = tl.load(at, mask=mask & (i > 0), other=0.0).to(ACC)
                before = before + (tl.where(i > 0, value, first[v]),)
            else:
                before = before + (first[v],)
            if NEW[v] and not OLD[v]:
                at = saved[v] + state_offset(v + Y, t, b, j, d, B, D, T, H)
                new = new + (tl.load(at, mask=mask, other=0.0).to(ACC),)
            else:
                new = new + (after[v],)
        old = entering(before, again, s_reset, S, H, mask, j, b, d, B)
        after = before
        given = fixed + load_inputs(inputs, inputs_at, SEQUENCES, INPUTS, INPUT_J, group, t, b, j, mask, ACC)
        xs = load_tiles(x + d * x_d + t * x_t + (b * x_b + j), H, mask & (i < n), GX, ACC) if x is not None else ()
        stay = ds
        arriving = ds
        if dy is not None:
            value = tl.load(dy + state_offset(0, t, b, j, d, B, D, T, H), mask=mask, other=0.0)
            if Y:
                dout = (value.to(ACC),)
            else:
                arriving = replaced(arriving, 0, arriving[0] + value.to(ACC), S)
                dout = ()
        else:
            dout = ()
        if dcells is not None:
            for v in tl.static_range(S - len(dcells), S):
                value = tl.load(dcells[v - (S - len(dcells))] + row * H + j, mask=mask, other=0.0)
                arriving = replaced(arriving, v, arriving[v] + value.to(ACC), S)
        if not RESIDENT and PHASE < 2:
            later = time_at(i + LAG, vn, reverse, LENGTHS)
            read = source + ((d * T + later) * B + vb) * (SOURCE * K)
            if COOPERATIVE:
                tl.static_assert(LAG == 1)
                wait(counters, ARRIVALS * (T - 1 - i) * tl.num_programs(1))
                dh = gradient_cooperative(
                    weights, read, (vb < B) & (i + 1 < T), READS, K, BH, BB, PIECES, SPLIT, ACC, PRECISION
                )  # fmt: skip
            else:
                stop = tl.where(i + LAG < T, K, 0)
                dh = gradient_streamed(w, read, j, b < B, stop, READS, H, K, BH, BB, BK, ACC, PRECISION, STAGES)
            if READ_NORM:
                there, norms = (b < B) & (i + 1 < T), ((d * T + time_at(i + 1, n, reverse, LENGTHS)) * B + b) * NORMS
                at_parts = parts + (i + 1) % 2 * turn
                dh = unnormed_product(
                    dh, moments, at_parts, spread, along, norms, d * NORMS, mask & there, there, PARTS, H, j, b, N * K,
                    COOPERATIVE,
                )  # fmt: skip
            if LAG == 1:
                dh = masked(dh, keep)
                if reset is not None:  # the reset of the product's step
                    earlier_again = (i + 1 < T) & resets_at(
                        reset, reset_x, time_at(tl.minimum(i + 1, T - 1), n, reverse, LENGTHS), b, d, B, DIRECTIONS
                    )  # fmt: skip
                else:
                    earlier_again = None
                if OPERAND is None:
                    through = (dh,)
                else:
                    there = mask & (i + 1 < n)
                    at_time = time_at(tl.minimum(i + 1, T - 1), n, reverse, LENGTHS)
                    later_states = ()
                    for v in tl.static_range(S):
                        at = saved[v] + state_offset(v + Y, t, b, j, d, B, D, T, H)
                        later_states = later_states + (tl.load(at, mask=there, other=0.0).to(ACC),)
                    later_states = entering(later_states, earlier_again, s_reset, S, H, there, j, b, d, B)
                    more = load_inputs(
                        inputs, inputs_at, SEQUENCES, INPUTS, INPUT_J, group, at_time, b, j, there, ACC
                    )  # fmt: skip
                    meet = meeting(rows, counters, ARRIVALS * (T - 1 - i), 0, PARTS, b, B)
                    through = live_only(there, OPERAND(dh, later_states + fixed + more + meet), S + MORE)
                    summed = added(summed, through[S : S + FIXED], FIXED)
                    if doperand is not None:
                        at = doperand + (((d * T + at_time) * B + b) * ((INPUTS - SEQUENCES) * H) + j)
                        store_tiles(at, H, through[S + FIXED :], there, INPUTS - SEQUENCES, BH, BB, False)
                    through = through[:S]
                if reset is not None:
                    for v in tl.static_range(len(through)):
                        restarted = replaced(
                            restarted, v, restarted[v] + tl.where(earlier_again, through[v], 0.0), S
                        )  # fmt: skip
                    through = live_only(~earlier_again, through, len(through))
                for v in tl.static_range(len(through)):
                    arriving = replaced(arriving, v, arriving[v] + through[v], S)
            else:
                arriving = replaced(arriving, 0, arriving[0] + dh, S)
        if OUTPUT_NORM:
            at_held = held[0] + ((d * B + b) * H + j) if held is not None else None
            if PHASE == 1:
                tl.store(at_held, arriving[0], mask=mask)
            elif PHASE == 2:
                arriving = replaced(arriving, 0, tl.load(at_held, mask=mask, other=0.0), S)
        if zone is not None:
            new, arriving, direct = unzoned(new, old, arriving, zone, zone_at, S, NEW, ZONE_J, t, b, j, d, mask, ACC)
            if RENEW is not None:
                new = RENEW(old, kept)
        if OUTPUT_NORM:
            c = (new[S - 1],)
            mean, scale = load_moments(c_moments, row, b < B)
            output = (c[0] - mean) * scale * c_gains[0] + c_biases[0]
            dc = (OUTPUT(arriving[0], kept, output, ACTIVATION, GATE),)
            if PHASE < 2:
                total, products = back_sums(dc, c, c_gains, mean, scale, 1)
            if COOPERATIVE or PHASE == 1:
                store_parts(more_parts, total, products, PARTS, b, B)
            if COOPERATIVE:
                arrive(counters)
                wait(counters, (ARRIVALS * (T - 1 - i) + 1) * tl.num_programs(1))
            if COOPERATIVE or PHASE == 2:
                total, products = add_parts(more_parts, b < B, PARTS, b, COOPERATIVE)
            if PHASE != 1:
                tl.store(dnorm + row * H + j, dc[0].to(dnorm.dtype.element_ty), mask=mask)
            dc_own = unnormed(dc[0], c[0], c_gains[0], mean, scale, total, products, H)
            arriving = replaced(arriving, S - 1, arriving[S - 1] + (dc_own - dc[0]), S)  # the cell adds dc
            new = replaced(new, S - 1, output, S)
        meet = meeting(rows, counters, ARRIVALS * (T - 1 - i) + ROWS[0], ROWS[0], PARTS, b, B)
        emitted, earlier = CELL(arriving + dout, new, old + given + xs + meet, kept, ACTIVATION, GATE)
        more = earlier[S : S + MORE]
        crossing = earlier[S + MORE :]
        earlier = earlier[:S]
        if not FINITE and PADDED:
            emitted = live_only(j < H, emitted, PLANES)
        if LENGTHS:
            emitted = live_only(i < n, emitted, PLANES)
        if EMIT_NORM:
            raws = load_tiles(raw + (row * (RAWS * H) + j), H, mask, RAWS, ACC)
        into = planes + (row * (PLANES * H) + j)
        if FIRST is None:
            if not (OUTPUT_NORM and PHASE == 1):
                store_tiles(into, H, emitted, mask, PLANES, BH, BB, COOPERATIVE)
        else:
            for p in tl.static_range(PLANES):
                if FIRST_PLANES[p] < 0:
                    if PHASE < 2:
                        tl.store(into + p * H, emitted[p].to(planes.dtype.element_ty), mask=mask)
                    elif EMIT_NORM:
                        value = tl.load(into + p * H, mask=mask, other=0.0).to(ACC)
                        emitted = replaced(emitted, p, value, PLANES)
            for v in tl.static_range(CROSS):
                if PHASE == 1:
                    tl.store(held[v] + ((d * B + b) * H + j), crossing[v], mask=mask)
                elif PHASE == 2:
                    value = tl.load(held[v] + ((d * B + b) * H + j), mask=mask, other=0.0)
                    crossing = replaced(crossing, v, value, CROSS)
            dq = emitted[DQ]
            norms = row * NORMS + 1
            if EMIT_NORM and PHASE < 2:
                mean, scale = load_moments(moments, norms, b < B)
                total, products = back_sums((dq,), (raws[N],), (gains[N],), mean, scale, 1)
                if RESIDENT:
                    dq = unnormed(dq, raws[N], gains[N], mean, scale, total, products, H)
                else:
                    store_parts(more_parts, total, products, PARTS, b, B)
            dv = tl.zeros((BH, BB), ACC)
            if RESIDENT:
                dv = product_resident((weights[N],), dq, 1, ACC, PRECISION)[0]
            elif PHASE != 1:
                read = source + ((d * T + time_at(i, vn, reverse, LENGTHS)) * B + vb) * (SOURCE * K)
                if COOPERATIVE:
                    arrive(counters)
                    wait(counters, (ARRIVALS * (T - 1 - i) + BEFORE + 1) * tl.num_programs(1))
                    dv = gradient_cooperative(
                        (weights[N],), read, vb < B, (DQ,), K, BH, BB, PIECES, SPLIT, ACC, PRECISION
                    )  # fmt: skip
                else:
                    dv = gradient_streamed(
                        w + N * H * K, read, j, b < B, K, (DQ,), H, K, BH, BB, BK, ACC, PRECISION, STAGES
                    )  # fmt: skip
                if EMIT_NORM:
                    dv = unnormed_product(
                        dv, moments, more_parts, spread, along, norms, d * NORMS + 1, mask, b < B, PARTS, H, j, b, K,
                        COOPERATIVE,
                    )  # fmt: skip
            if PHASE != 1:
                meet = meeting(rows, counters, ARRIVALS * (T - 1 - i) + BEFORE + 1, BEFORE, PARTS, b, B)
                masked_old = replaced(old, 0, masked(old[0], keep), S) + given + meet
                deltas, through = FIRST(dv, crossing, new, masked_old, kept, ACTIVATION, GATE)
                if not FINITE and PADDED:
                    deltas = live_only(j < H, deltas, len(deltas))
                if not FINITE and LENGTHS:
                    deltas = live_only(i < n, deltas, len(deltas))
                for p in tl.static_range(PLANES):
                    if FIRST_PLANES[p] >= 0:
                        delta = deltas[FIRST_PLANES[p]]
                        emitted = replaced(emitted, p, delta, PLANES)
                        tl.store(into + p * H, delta.to(planes.dtype.element_ty), mask=mask)
                through = replaced(through, 0, masked(through[0], keep), S + MORE)
                earlier = through[:S] if PHASE == 2 else added(earlier, through[:S], S)
                more = through[S:] if PHASE == 2 else added(more, through[S:], MORE)
        later_reads = ()
        for g in tl.static_range(N if RESIDENT else 0):
            later_reads = later_reads + (emitted[READS[g]],)
        if EMIT_NORM:
            dnorms = ()
            for g in tl.static_range(len(EMITS)):
                dnorms = dnorms + (emitted[EMITS[g]],)
            mean, scale = load_moments(moments, row * NORMS, b < B)
            total, products = back_sums(dnorms, raws, gains, mean, scale, len(EMITS))
            if RESIDENT:
                later_reads = ()
                for g in tl.static_range(N):
                    through = unnormed(dnorms[g], raws[g], gains[g], mean, scale, total, products, N * H)
                    later_reads = later_reads + (through,)
            elif PHASE != 1:
                store_parts(parts + i % 2 * turn, total, products, PARTS, b, B)
        if COOPERATIVE:
            arrive(counters)
        if RESIDENT and OPERAND is not None:
            do = tl.zeros((BH, BB), ACC)
            for g in tl.static_range(N):
                part = rounded(later_reads[g].to(w.dtype.element_ty), PRECISION)
                do = tl.dot(weights[g], part, acc=do, input_precision=PRECISION, out_dtype=ACC)
            through = OPERAND(masked(do, keep), old + given)
            earlier = added(earlier, through[:S], S)
            more = added(more, through[S:], MORE)
        elif RESIDENT:
            dh = tl.zeros((BH, BB), ACC) if keep is not None else earlier[0]
            for g in tl.static_range(N):
                part = rounded(later_reads[g].to(w.dtype.element_ty), PRECISION)
                dh = tl.dot(weights[g], part, acc=dh, input_precision=PRECISION, out_dtype=ACC)
            earlier = replaced(earlier, 0, earlier[0] + masked(dh, keep) if keep is not None else dh, S)
        if MORE > 0:
            if LENGTHS:
                more = live_only(i < n, more, MORE)
            summed = added(summed, more[:FIXED], FIXED)
            if dinputs is not None:
                at = dinputs + (row * ((INPUTS - SEQUENCES) * H) + j)
                if PHASE == 2:
                    before_first = load_tiles(at, H, mask, INPUTS - SEQUENCES, ACC)
                    more = more[:FIXED] + added(more[FIXED:], before_first, INPUTS - SEQUENCES)
                store_tiles(at, H, more[FIXED:], mask, INPUTS - SEQUENCES, BH, BB, False)
        if zone is not None and (OUTPUT_NORM or PHASE < 2):
            earlier = added(earlier, direct, S)
        if reset is not None and not (OUTPUT_NORM and PHASE == 1):
            at_once = again & (i < n)
            restarted = added(restarted, live_only(at_once, earlier, S), S)
            earlier = live_only(~at_once, earlier, S)
        if LENGTHS and not FINITE and PHASE == 2 and not OUTPUT_NORM:
            earlier = live_only(i < n, earlier, S)
        if PHASE == 2 and not OUTPUT_NORM:  # `stay` has the other terms, and rows that are not live get none
            earlier = added(earlier, stay, S)
        elif LENGTHS:
            earlier = chosen(i < n, earlier, stay, S)
        ds = earlier
    if ds_out is not None:
        store_states(ds_out, ds, S, H, mask, j, b, d, B)
    if ds_reset is not None:
        store_states(ds_reset, restarted, S, H, mask, j, b, d, B)
    if dfixed is not None:
        store_states(dfixed, summed, FIXED, H, mask, j, b, d, B)
