"""The stages of the loop against a plain loop written out here, and their gradients."""

import pytest
import torch
import torch.nn.functional as F
from common import assert_close, make_case
from pairwise import cases
from torch.autograd import gradcheck, gradgradcheck

from rnnkernels.cells import CELLS
from rnnkernels.nn.masks import random_bools

T, B, H = 4, 3, 4
ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": lambda x: F.relu6(x + 3) / 6,
}
EPS = 1e-3


def step(cell, x, h, state, w, act, gate, norm):
    """One step; h is what enters the recurrent product, ``state`` what was kept."""
    gx, gh = x @ w[0].T, h @ w[1].T
    normed = lambda v, ln: F.layer_norm(v, v.shape[-1:], ln, None, EPS) if norm else v  # noqa: E731
    if cell == "gru_reset_before":  # two products, normalised apart
        rz, n = normed(h @ w[1][: 2 * H].T, norm and w[5][: 2 * H]) + w[3][: 2 * H], slice(2 * H, None)
        xr, xz, xn = (normed(gx, norm and w[4]) + w[2]).chunk(3, -1)
        r, z = gate(xr + rz[:H]), gate(xz + rz[H:])
        return ((1 - z) * act(xn + normed((r * h) @ w[1][n].T, norm and w[5][n]) + w[3][n]) + z * state[0],)
    gx, gh = normed(gx, norm and w[4]) + w[2], normed(gh, norm and w[5]) + w[3]
    if cell == "rnn":
        return (act(gx + gh),)
    if cell == "lstm":
        i, f, g, o = (gx + gh).chunk(4, -1)
        c = gate(f) * state[1] + gate(i) * act(g)
        inner = F.layer_norm(c, c.shape[-1:], w[6], w[7], EPS) if norm else c
        h = gate(o) * act(inner)
        return (h, c)
    (xr, xz, xn), (hr, hz, hn) = gx.chunk(3, -1), gh.chunk(3, -1)
    z = gate(xz + hz)
    return ((1 - z) * act(xn + gate(xr + hr) * hn) + z * state[0],)


def plain(case, tensors, lengths=None, reset=None, reset_states=(), h_mask=None, zone=()):
    """``(y, *last)`` of a case, all directions, by loops over directions, rows of the batch and steps."""
    x, states, weights = case.split(tensors)
    reverse, norm = case.settings["reverse"], case.settings["layer_norm"]
    act = ACTIVATIONS[case.settings.get("activation") or "tanh"]
    gate = ACTIVATIONS[case.settings.get("recurrent_activation") or "sigmoid"]
    n = len(weights) // len(reverse)
    y = [[[None] * B for _ in range(T)] for _ in reverse]
    last = [[[None] * B for _ in reverse] for _ in states]
    for d, backward in enumerate(reverse):
        w = weights[d * n : (d + 1) * n]
        for b in range(B):
            length = T if lengths is None else int(lengths[b])
            s = tuple(v[d, b] for v in states)
            for t in range(T):
                y[d][t][b] = torch.zeros_like(s[0])
            for t in reversed(range(length)) if backward else range(length):
                if reset is not None and reset[t, b]:
                    s = tuple(v[d, b] for v in reset_states) if reset_states else tuple(map(torch.zeros_like, s))
                h = s[0] if h_mask is None else s[0] * h_mask[d, b]
                new = step(case.cell, x[t, b], h, s, w, act, gate, norm)
                zones = [z.expand(T, len(reverse), B, H)[t, d, b] for z in zone] or [0.0] * len(s)
                s = tuple(k * old + (1 - k) * v for k, old, v in zip(zones, s, new, strict=True))
                y[d][t][b] = s[0]
            for k, v in enumerate(s):
                last[k][d][b] = v
    y = torch.cat([torch.stack([torch.stack(row) for row in rows]) for rows in y], -1)
    return (y, *(torch.stack([torch.stack(rows) for rows in k]) for k in last))


def random(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def stage_arguments(stage, S, D):
    """The arguments of a stage, and whether the call also gets reset states."""
    made = {}
    if "reset" in stage:
        made["reset"] = random(T, B) < 0.4
    if "h_mask" in stage:
        made["h_mask"] = (random(D, B, H) < 0.7) / 0.7
    if "zone" in stage:
        made["zone"] = [random(T, D, B, H), random(T, 1, B, 1)][:S]
    if "lengths" in stage:
        made["lengths"] = torch.tensor([3, 0, 4])
    return made


STAGES = {
    "none": {},
    "lengths": {},
    "reset": {},
    "reset to states": {},
    "h_mask": {},
    "zone": {},
    "layer_norm": {"layer_norm": True, "eps": EPS},
    "activation": {"activation": "relu"},
    "recurrent_activation": {"recurrent_activation": "hard_sigmoid"},
    "lengths reset h_mask zone layer_norm": {"layer_norm": True, "eps": EPS, "recurrent_activation": "hard_sigmoid"},
}


@pytest.mark.parametrize("cell, stage, reverse", cases(CELLS, STAGES, [(False,), (False, True)]), ids=str)
def test_stage_equals_a_plain_loop(cell, stage, reverse):
    case = make_case(cell, T=T, B=B, H=H, reverse=reverse, **STAGES[stage])
    D, n = len(reverse), len(case.tensors)
    arguments = stage_arguments(stage, case.states, D)
    tensors = list(case.tensors)
    if stage == "reset to states":
        tensors += [random(D, B, H).requires_grad_() for _ in range(case.states)]

    def run(*tensors):
        return case(*tensors[:n], reset_states=tensors[n:], **arguments)

    actual, expected = run(*tensors), plain(case, tensors[:n], reset_states=tensors[n:], **arguments)
    dy = [random(*o.shape) for o in actual]
    settings = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(actual, tensors, dy, **settings)
    wanted = torch.autograd.grad(expected, tensors, dy, **settings)
    for k, (a, e) in enumerate(zip((*actual, *found), (*expected, *wanted), strict=True)):
        assert_close(f"output or gradient {k}", a, e)
    with torch.no_grad():
        for k, (a, e) in enumerate(zip(run(*tensors), expected, strict=True)):
            assert_close(f"output {k} without grad", a, e)


@pytest.mark.parametrize("stage", [s for s in STAGES if s not in ("none", "lengths", "activation")])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_a_stage(cell, stage):
    case = make_case(cell, T=T, B=B, I=2, H=H, **STAGES[stage])
    arguments, n = stage_arguments(stage, case.states, 1), len(case.tensors)
    tensors = list(case.tensors)
    if stage == "reset to states":
        tensors += [random(1, B, H).requires_grad_() for _ in range(case.states)]
    run = lambda *tensors: case(*tensors[:n], reset_states=tensors[n:], **arguments)  # noqa: E731
    assert gradcheck(run, tensors, fast_mode=True)
    assert gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_is_a_new_sequence(cell):
    case = make_case(cell, T=T, B=B)
    x, states, weights = case.split(case.detached())
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2] = True
    y, *last = case(*case.detached(), reset=reset)
    start = [torch.zeros_like(s) for s in states]
    y0, *_ = case(x[:2], *states, *weights)
    y1, *last1 = case(x[2:], *start, *weights)
    assert_close("y", y, torch.cat((y0, y1)))
    for s, e in zip(last, last1, strict=True):
        assert_close("last", s, e)


@pytest.mark.parametrize("cell", CELLS)
def test_zone_of_one_keeps_the_state_and_of_zero_does_nothing(cell):
    case = make_case(cell, T=T, B=B)
    one, zero = ([f(1, 1, 1, 1, dtype=torch.float64)] * case.states for f in (torch.ones, torch.zeros))
    y, *last = case(*case.detached(), zone=one)
    assert torch.equal(y, case.detached()[1].expand_as(y)) and all(map(torch.equal, last, case.detached()[1:]))
    for a, e in zip(case(*case.detached(), zone=zero), case(*case.detached()), strict=True):
        assert_close("zone 0", a, e)


@pytest.mark.parametrize("weights", ["shared", "stacked"])
@pytest.mark.parametrize("stage", ["reset", "h_mask", "zone", "layer_norm", "reset to states"])
def test_vmap_with_a_stage(stage, weights):
    case = make_case("lstm", T=T, B=B, reverse=(False, True), **STAGES[stage])
    arguments, n, N = stage_arguments(stage, case.states, 2), len(case.tensors), 3
    tensors = case.detached()
    if stage == "reset to states":
        tensors += [random(2, B, H) for _ in range(case.states)]
    dims = [None if 3 <= k < n and weights == "shared" else 0 for k in range(len(tensors))]
    tensors = [
        t if d is None else torch.stack([t * (1 + 0.1 * k) for k in range(N)])
        for t, d in zip(tensors, dims, strict=True)
    ]
    extra = {k: v for k, v in arguments.items() if k != "zone"} | dict(enumerate(arguments.get("zone", ())))

    def run(extra, *tensors):
        zone = [v for k, v in extra.items() if isinstance(k, int)]
        named = {k: v for k, v in extra.items() if isinstance(k, str)}
        return case(*tensors[:n], reset_states=tensors[n:], zone=zone, **named)

    def loss(extra, *tensors):
        return sum(o.sin().sum() for o in run(extra, *tensors))

    derivative = torch.func.grad(loss, argnums=tuple(range(1, 1 + len(tensors))))
    several = {k: torch.stack([v.roll(n, 0) for n in range(N)], -1) for k, v in extra.items()}
    for given, at in ((extra, None), (several, -1)):  # the stage's own arguments: shared, and one for each sample
        for f in (run, derivative):
            batched = torch.func.vmap(f, in_dims=(at, *dims))(given, *tensors)
            single = []
            for k in range(N):
                mine = extra if at is None else {name: v[..., k] for name, v in several.items()}
                single.append(f(mine, *[t if d is None else t[k] for t, d in zip(tensors, dims, strict=True)]))
            for k, (a, e) in enumerate(zip(batched, zip(*single, strict=True), strict=True)):
                assert_close(f"{f is run and 'output' or 'gradient'} {k}", a, torch.stack(e))


@pytest.mark.parametrize("stage", ["h_mask", "zone"])
def test_a_stage_without_gradient_says_so(stage):
    case = make_case("gru", T=T, B=B)
    value = stage_arguments(stage, 1, 1)[stage]
    (value[0] if stage == "zone" else value).requires_grad_()
    y, _ = case(*case.tensors, **{stage: value})
    with pytest.raises(NotImplementedError, match="h_mask and zone have no gradient"):
        y.sum().backward()
    with torch.no_grad():
        case(*case.tensors, **{stage: value})


@pytest.mark.parametrize("p", (1e-5, 0.05, 0.5, 0.9999, 0.999995))
def test_random_bools_have_their_probability_even_where_it_is_no_multiple_of_their_resolution(p):
    torch.manual_seed(0)
    draws = torch.stack([random_bools(p, (3, 2**14 + 1), "cpu").count_nonzero() for _ in range(200)]).double()
    expected, rest = p * 3 * (2**14 + 1), min(p, 1 - p) * 3 * (2**14 + 1)
    assert abs(draws.mean() - expected) < 5 * max(rest, 1) ** 0.5 / 200**0.5
    assert draws.std() > 0.5 * rest**0.5


@pytest.mark.parametrize("cell", CELLS)
def test_states_to_restart_from_have_a_gradient_where_nothing_else_has(backend, cell):
    case, found = make_case(cell, T=T, B=B, H=H), []
    reset, restart = random(T, B) < 0.4, [random(1, B, H).requires_grad_() for _ in range(case.states)]
    for tensors in (case.tensors, case.detached()):
        outputs = case(*tensors, reset=reset, reset_states=restart)
        found.append(torch.autograd.grad(sum(o.sin().sum() for o in outputs), restart))
    for k, (expected, alone) in enumerate(zip(*found, strict=True)):
        assert expected.any()
        assert_close(f"gradient {k}", alone, expected)
