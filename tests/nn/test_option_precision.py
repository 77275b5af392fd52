"""Layer-normed LSTMs with zoneout in 16 bits, against the equations in float64.

A layer norm divides by the spread of what it is given, and so magnifies what is wrong with h, step after step. Kernels
compute in float32, but where their products take numbers of 16 bits (bfloat16 on AMX and AVX512_BF16, as anywhere) h is
rounded before the recurrent product. Seen at H = 64: this 0.2 % of h is 8 % of y after 50 steps; changes of x in
float64, by half a unit in its last place, make 4 to 8 % too. So it is tested that

- each step is right, given the states that came out of the one before: up to the usual tolerance;
- all steps together are no further from the equations than twice what such changes of x and h make of these. That goes
  for gradients too, for which the gates are kept in 16 bits.
"""

import pytest
import torch
import torch.nn.functional as F
from common import TOLERANCES, assert_close, error, run_layer
from conftest import CPU_BACKENDS
from pairwise import cases

from rnnkernels import backends

SIZES = [(4, 3, 2, 4), (20, 3, 8, 20), (20, 8, 16, 40), (50, 8, 32, 64), (63, 5, 20, 127)]  # T, B, I, H
SHORT = [(4, 3, 2, 4), (20, 3, 8, 20), (8, 8, 16, 40), (10, 8, 32, 64), (10, 5, 20, 127)]  # where little is magnified
NAMES = ["y", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh", "dln_x", "dln_h", "dln_c", "dln_c_bias"]
ZONES = {"none": None, "fractions": (0.1, 0.3), "masks": (0.1, 0.3)}
DRAWS = 3


def make(size, zone, dtype):
    """The tensors of a call in its dtype, as leaves; the zoneout of h and c; and the gradient of y."""
    T, B, I, H = size  # noqa: E741
    random = torch.Generator().manual_seed(sum(size))

    def normal(*shape, mean=0.0, spread=1.0):
        return (mean + spread * torch.randn(shape, generator=random)).to(dtype)

    shapes = [(4 * H, I), (4 * H, H), (4 * H,), (4 * H,)]
    weights = [normal(*shape, spread=0.6 * H**-0.5) for shape in shapes]
    weights += [normal(n, mean=1.0, spread=0.1) for n in (4 * H, 4 * H, H)] + [normal(H, spread=0.1)]
    tensors = [normal(T, B, I), *weights]
    zones = [torch.full((1, 1, 1, 1), p, dtype=dtype) for p in ZONES[zone] or ()]
    if zone == "masks":
        zones = [torch.bernoulli(z.float().expand(T, 1, B, H), generator=random).to(dtype) for z in zones]
    return [t.requires_grad_() for t in tensors], zones, normal(T, B, H)


def step(tensors, x, h, c, keep, v):
    """h and c after a step; ``v`` is h as the product takes it."""
    _, w_ih, w_hh, b_ih, b_hh, ln_x, ln_h, ln_c, ln_c_bias = tensors
    r = F.layer_norm(v @ w_hh.T, w_hh.shape[:1], ln_h) + b_hh
    i, f, g, o = (F.layer_norm(x @ w_ih.T, w_ih.shape[:1], ln_x) + b_ih + r).chunk(4, -1)
    c_new = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h_new = o.sigmoid() * F.layer_norm(c_new, c.shape[-1:], ln_c, ln_c_bias).tanh()
    return keep[0] * h + (1 - keep[0]) * h_new, keep[1] * c + (1 - keep[1]) * c_new


def kept(zones, T, B, H):
    """The zoneout of h and c at every step, (T, B, H) in float64."""
    return [z.double().expand(T, 1, B, H)[:, 0] for z in zones] or [torch.zeros(T, B, H, dtype=torch.float64)] * 2


def equations(tensors, zones, by=None):
    """y (T, B, H); where a function ``by`` is given, x and h enter the products as it changes them."""
    by = by or (lambda v: v)
    T, B, H = *tensors[0].shape[:2], tensors[2].size(1)
    keep, h, ys = kept(zones, T, B, H), tensors[0].new_zeros(B, H), []
    c = h
    for t, x in enumerate(by(tensors[0])):
        h, c = step(tensors, x, h, c, [k[t] for k in keep], by(h))
        ys.append(h)
    return torch.stack(ys)


def found(function, tensors, dy):
    """y and all gradients."""
    y = function(tensors)
    return y.detach(), *torch.autograd.grad(y, tensors, dy)


def ours(tensors, zones, **more):
    return run_layer("lstm", tensors[0], [], tensors[1:], zone=zones, layer_norm=True, **more)


@pytest.mark.parametrize("size, zone, dtype", cases(SIZES, ZONES, [torch.bfloat16, torch.float16]), ids=str)
def test_each_step_is_right(backend, size, zone, dtype):
    tensors, zones, _ = make(size, zone, dtype)
    T, B, _, H = size
    with torch.no_grad():
        y, _, cells = ours(tensors, zones, return_cells=True)
        before = [F.pad(s, (0, 0, 0, 0, 1, 0))[:-1].double() for s in (y, cells[0])]
        wide = [t.double() for t in tensors]
        h, c = step(wide, wide[0], *before, kept(zones, T, B, H), before[0])
    assert_close("y", y, h)
    assert_close("c", cells[0], c, TOLERANCES[dtype])


@pytest.mark.parametrize("size, zone, dtype", cases(SHORT, ZONES, [torch.bfloat16, torch.float16]), ids=str)
def test_all_steps_are_as_right_as_their_last_digits(size, zone, dtype):
    tensors, zones, dy = make(size, zone, dtype)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    random = torch.Generator().manual_seed(1)

    def half_a_unit(v):
        by = torch.rand(v.shape, generator=random, dtype=torch.float64) * 2 - 1
        return v * (1 + by * torch.finfo(dtype).eps / 2)

    expected = found(lambda t: equations(t, zones), wide, dy.double())
    limits = [TOLERANCES[dtype]] * len(NAMES)
    for _ in range(DRAWS):
        moved = found(lambda t: equations(t, zones, half_a_unit), wide, dy.double())
        limits = [max(limit, 2 * error(a, e)) for limit, a, e in zip(limits, moved, expected, strict=True)]
    assert max(limits) < 0.25  # more would be no test
    for name in CPU_BACKENDS:
        with backends.force(name):
            results = found(lambda t: ours(t, zones)[0], tensors, dy)
        for n, a, e, limit in zip(NAMES, results, expected, limits, strict=True):
            assert_close(f"{name}: {n}", a, e, limit)
