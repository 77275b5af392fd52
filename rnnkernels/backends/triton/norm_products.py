"""Layer norms in the backward pass outside the time loop, in torch: moments before it, gradients after it.

Letters: T time, B batch, D directions, G gates, H hidden, P output of a step, M norms of recurrent products in a step.
The recurrent products are computed again by one product over all steps; sums are in the accumulate dtype, by chunks.
"""

from typing import Any, NamedTuple

import torch

from .products import biases, entered_vector, inner_vector, of_group, own_cells

CHUNK = 1 << 24  # values at a time


class Normed(NamedTuple):
    """The inputs of a layer's norms, and their moments."""

    raw: torch.Tensor
    """(D, T, B, G, H): the recurrent products."""
    moments: torch.Tensor
    """(D, T, B, M, 2): their rows' mean and one over their deviation; a second product has its own norm."""
    c_moments: Any
    """(D, T, B, 2): the moments of the cell states; None without such a norm."""
    spread: Any
    """(D, M, P): sums of the weights of all values of a norm, for a loop without whole rows (norms.py); or None."""
    along: Any
    """(D, T, B, M, P): the products of the weights and the normal rows, for the same; or None."""


def chunks(rows):
    """Slices of the rows (R, n)."""
    step = max(1, CHUNK // rows.size(1))
    return [slice(at, at + step) for at in range(0, rows.size(0), step)]


def moments_of(problem, rows):
    """For rows (R, n): the rows minus their mean, the mean, and one over the deviation."""
    rows = rows.to(problem.accumulate)
    square, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
    return rows - mean, mean, (square + problem.eps).rsqrt()


def keep_moments(problem, rows, into, w=None, along=None):
    """The moments of rows (R, n) into (R, 2); with weights (n, P), their product with the normal rows too."""
    for at in chunks(rows):
        apart, mean, scale = moments_of(problem, rows[at])
        into[at] = torch.cat([mean, scale], 1)
        if along is not None:
            along[at] = torch.mm(apart.mul_(scale).to(problem.dtype), w)


def unnormed(problem, rows, gain, d_rows, into):
    """The gradient of rows (R, n) into ``into``, from that of their norm; gives the gradient of the gain."""
    dgain, gain = torch.zeros_like(gain, dtype=problem.accumulate), gain.to(problem.accumulate)
    for at in chunks(rows):
        normal, _, scale = moments_of(problem, rows[at])
        normal *= scale
        v = d_rows[at].to(problem.accumulate)
        dgain += (v * normal).sum(0)
        v = v * gain
        into[at] = scale * (v - v.mean(1, keepdim=True) - normal * (v * normal).mean(1, keepdim=True))
    return dgain


def spans(problem):
    """The columns of the recurrent products that share a norm, for each norm in order."""
    first = len(problem.cell.reads) * problem.H
    return [slice(0, first)] + [slice(first, first + problem.H)] * (problem.cell.first is not None)


def scaled(problem):
    """The recurrent weights of all directions, times the gains of their norms."""
    return [w * gain[:, None] for w, gain in zip(problem.w_hh, problem.ln_h, strict=True)]


def normed_of(problem, y, gates, cells, whole):
    """The recurrent products, computed again, and the moments of all rows, for the backward pass. ``whole``: a program
    of the loop has whole rows."""
    D, T, B, H, P, cell = problem.D, problem.T, problem.B, problem.H, problem.P, problem.cell
    raw, columns = problem.empty(D, T, B, cell.recurrent_gates, H), spans(problem)
    moments = problem.empty(D, T, B, len(columns), 2, dtype=problem.accumulate)
    c_moments = problem.empty(D, T, B, 2, dtype=problem.accumulate) if problem.ln_c else None
    spread = None if whole else problem.empty(D, len(columns), P, dtype=problem.accumulate)
    along = None if whole else problem.empty(D, T, B, len(columns), P)
    for d in range(D):
        h = entered_vector(problem, y, cells, d)
        vectors = [h] if cell.first is None else [h, inner_vector(problem, y, gates, cells, h, d)]
        rows = raw[d].view(T * B, cell.recurrent_gates * H)
        for m, (vector, at) in enumerate(zip(vectors, columns, strict=True)):
            w, into = problem.w_hh[d][at], moments[d].view(T * B, len(columns), 2)[:, m]
            rows[:, at] = torch.mm(vector.flatten(0, 1).to(problem.dtype), w.t())
            if whole:
                keep_moments(problem, rows[:, at], into)
            else:
                keep_moments(problem, rows[:, at], into, w, along[d].view(T * B, len(columns), P)[:, m])
                spread[d, m] = w.sum(0, dtype=problem.accumulate)
        if problem.ln_c:
            keep_moments(problem, own_cells(problem, gates, cells, d).flatten(0, 1), c_moments[d].view(T * B, 2))
    return Normed(raw, moments, c_moments, spread, along)


def through_norms(problem, found, normed, gates, cells):
    """``problem, found`` with the gradients of the products in place of those of the norms, and for each direction the
    gradients of its biases and those of its gains."""
    D, T, B, H, cell = problem.D, problem.T, problem.B, problem.H, problem.cell
    GX, GR = cell.gates, cell.recurrent_gates
    planes, dbiases, dgains = problem.empty(D, T, B, GX + GR, H), [], []
    for d in range(D):
        given, into = found.planes[d].flatten(2).flatten(0, 1), planes[d].view(T * B, (GX + GR) * H)
        gains = []
        if problem.ln_x:
            sums = torch.mm(of_group(problem, problem.x, d).reshape(T * B, -1), problem.w_ih[d].t())
            gains.append(unnormed(problem, sums, problem.ln_x[d], given[:, : GX * H], into[:, : GX * H]))
        else:
            into[:, : GX * H] = given[:, : GX * H]
        if problem.ln_h:
            recurrent = torch.cat([given[:, n * H : (n + 1) * H] for n in cell.recurrent], 1)
            gains.append(torch.cat([
                unnormed(problem, normed.raw[d].view(T * B, GR * H)[:, at], problem.ln_h[d][at], recurrent[:, at],
                         into[:, GX * H :][:, at])
                for at in spans(problem)
            ]))  # fmt: skip
        dbiases.append(biases(problem, found, d))
        dgains.append([gain.to(problem.dtype) for gain in gains])
        if problem.ln_c:
            c, dnorm = own_cells(problem, gates, cells, d).to(problem.accumulate), found.dnorm[d].to(problem.accumulate)
            normal = (c - normed.c_moments[d, :, :, :1]) * normed.c_moments[d, :, :, 1:]
            dgains[d] += [(dnorm * normal).sum((0, 1)).to(problem.dtype), dnorm.sum((0, 1)).to(problem.dtype)]
    cell = cell._replace(recurrent=tuple(range(GX, GX + GR)))
    return problem._replace(cell=cell), found._replace(planes=planes), dbiases, dgains
