"""Layer norms inside a cell's function, over the H units of a row: tiles (units, batch).

Programs that share rows meet within the function. ``rows`` is then a tuple: the memory of the function's norms (norms,
2, B, 2, programs), the barrier, the number of arrivals before the function, the rows b and B; else it is empty. AT is
the number of the norm in its function.
"""

import triton
import triton.language as tl

from ..dots import arrive, wait
from ..norms import load_parts, store_parts, whole_moments
from .math import divide, square_root


@triton.jit
def over_rows(a, d, eps, UNITS: tl.constexpr, rows, AT: tl.constexpr):
    """``a`` minus its rows' means, one over the deviations; and the sums of ``d``, gradients of the norm, and of their
    products with the normal values, zeros if d is None. Units that do not exist have zeros."""
    BH: tl.constexpr = a.shape[0]
    SHARED: tl.constexpr = len(rows) > 0
    first = tl.program_id(1) * BH if SHARED else 0
    there = first + tl.arange(0, BH)[:, None] < UNITS
    a = tl.where(there, a, 0.0)
    count = tl.minimum(-first + UNITS, BH).to(a.dtype) if SHARED else UNITS
    mean = tl.sum(a, 0)[None, :] / count
    apart = tl.where(there, a - mean, 0.0)
    square = tl.sum(apart * apart, 0)[None, :]
    total, products = tl.zeros_like(square), tl.zeros_like(square)
    if d is not None:
        d = tl.where(there, d, 0.0)
        total, products = tl.sum(d, 0)[None, :], tl.sum(d * apart, 0)[None, :]
    if SHARED:
        PARTS: tl.constexpr = (UNITS + BH - 1) // BH
        b, B = rows[3], rows[4]
        parts = rows[0] + AT * (4 * PARTS) * B
        store_parts(parts, mean, square, PARTS, b, B)
        if d is not None:
            store_parts(parts + 2 * PARTS * B, total, products, PARTS, b, B)
        arrive(rows[1])
        wait(rows[1], (rows[2] + AT + 1) * tl.num_programs(1))
        means, squares, part = load_parts(parts, b < B, PARTS, b, True)
        mean, square, apart_parts = whole_moments(means, squares, part, 1, UNITS, BH)
        apart = tl.where(there, a - mean, 0.0)
        if d is not None:
            totals, along, _ = load_parts(parts + 2 * PARTS * B, b < B, PARTS, b, True)
            total = tl.sum(totals, 0)[None, :]
            products = tl.sum(along + apart_parts * totals, 0)[None, :]
    else:
        square = square / UNITS
    scale = divide(tl.full((1, a.shape[1]), 1.0, a.dtype), square_root(square + eps))
    return apart, scale, total, products * scale


@triton.jit
def layer_norm(a, eps, UNITS: tl.constexpr, rows, AT: tl.constexpr):
    apart, scale, _, _ = over_rows(a, None, eps, UNITS, rows, AT)
    return apart * scale


@triton.jit
def layer_norm_back(d, a, eps, UNITS: tl.constexpr, rows, AT: tl.constexpr):
    """The gradient of ``a``, from that of its norm."""
    apart, scale, total, products = over_rows(a, d, eps, UNITS, rows, AT)
    first = tl.program_id(1) * a.shape[0] if len(rows) > 0 else 0
    there = first + tl.arange(0, a.shape[0])[:, None] < UNITS
    return tl.where(there, (d - total / UNITS - apart * scale * (products / UNITS)) * scale, 0.0)
