"""Triton kernels generated from programs, interpreted on the CPU: outputs and every gradient against float64.

Needs a process of its own (triton_cases.py).
"""

import pytest
import torch
from common import assert_close
from generated_cases import CELLS, Cell, scan
from pairwise import cases, in_turn
from triton_cases import BOTH, DTYPES, interpreter, running  # noqa: F401 - used by every test

from rnnkernels.backends.triton import launch, schedules
from rnnkernels.backends.triton.cells import generated
from rnnkernels.backends.triton.problem import Problem


def tensors(cell, T, B, I, H, D, X, stages, bias, layer_norm, states, dtype, seed):  # noqa: E741
    """All tensors of a call by name; those that have gradients in float64, with values that ``dtype`` has."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=0.6):
        return (scale * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype).double()

    chance = lambda *shape: torch.rand(*shape, generator=random)  # noqa: E731
    group, S = (X,) if X else (), len(cell.states)
    out = {"x": normal(*group, T, B, len(cell.inputs) * H if cell.given else I)}
    out |= {f"states.{n}": normal(D, B, H) for n in range(S if states else 0)}
    scale = 0.6 if dtype.itemsize > 2 else 0.15
    for d in range(D):
        shapes = cell.weights(I, H, bias, layer_norm)
        out |= {f"weights.{d}.{name}": normal(*shape, scale=scale) for name, shape in shapes.items()}
    out |= {f"extras.{name}": normal(*group, T, B, 1 if narrow else H) for name, narrow in cell.steps.items()}
    out |= {f"extras.{name}": normal(*group, B, H) for name in cell.sequences}
    out |= {f"reset_states.{n}": normal(D, B, H) for n in range(S if "restart" in stages else 0)}
    fixed = {"reset": chance(*group, T, B) < 0.4} if {"reset", "restart"} & set(stages) else {}
    fixed |= {"h_mask": ((chance(D, B, H) < 0.6) / 0.8).to(dtype)} if "h_mask" in stages else {}
    zone = [(chance(T, D, B, H).mul(3).floor() / 2).clamp(max=1).to(dtype) for _ in range(S)]
    return out, fixed | ({"zone": zone} if "zone" in stages else {})


def part(values, kind):
    """The values whose names begin with a kind, without it."""
    return {name.partition(".")[2]: v for name, v in values.items() if name.partition(".")[0] == kind}


def expected(cell, values, fixed, lengths, reverse, D, X):
    """y and the last states, of all directions."""
    x = values["x"]
    of = lambda v, d: v if v is None or not X else v[d // len(reverse)]  # noqa: E731
    ys, lasts = [], []
    for d in range(D):
        given = [v[d] for v in part(values, "states").values()]
        weights = part(part(values, "weights"), str(d))
        extras = {name: of(v, d) for name, v in part(values, "extras").items()}
        mask, zone = fixed.get("h_mask"), [z[:, d].double() for z in fixed.get("zone", ())]
        y, last = scan(
            cell, of(x, d), given or [x.new_zeros(x.size(-2), fixed["H"])] * len(cell.states), weights, extras,
            reverse[d % len(reverse)], of(lengths, d), of(fixed.get("reset"), d),
            [v[d] for v in part(values, "reset_states").values()], None if mask is None else mask[d].double(), zone,
        )  # fmt: skip
        ys.append(y)
        lasts.append(last)
    return torch.cat(ys, -1), [torch.stack(s) for s in zip(*lasts, strict=True)]


def problem_of(cell, values, fixed, lengths, reverse, D, X):
    """The same call of the kernels."""
    x, chip = values["x"], schedules.chip_of(values["x"].device)
    named = lambda name: [values[f"weights.{d}.{name}"] for d in range(D) if f"weights.{d}.{name}" in values]  # noqa: E731
    reset = fixed.get("reset")
    return Problem(
        generated.cell_of(cell.text), x, list(part(values, "states").values()), x.size(-3), x.size(-2), D, x.size(-1),
        fixed["H"], fixed["H"], list(reverse), "tanh", "sigmoid", x.dtype, x.device, chip,
        schedules.precision(x.dtype, chip), named("weight_ih"), named("weight_hh"), named("bias_ih"), named("bias_hh"),
        [], lengths, None if reset is None else reset.view(torch.uint8), list(part(values, "reset_states").values()),
        fixed.get("h_mask"), fixed.get("zone", ()), named("ln_x_gain"), named("ln_h_gain"), (), 1e-5,
        [named(name) for name in cell.vectors],
        [values[f"extras.{name}"] for name in (*cell.sequences, *cell.steps)], X > 0, cell.given,
    )  # fmt: skip


def check(
    name, schedule=None, T=3, B=2, I=3, H=20, reverse=(False,), groups=0, stages=(), lengths=None, bias=True,  # noqa: E741
    layer_norm=False, states=True, dtype=torch.float32, seed=0,
):  # fmt: skip
    cell = Cell(CELLS[name])
    D = len(reverse) * max(1, groups)
    values, fixed = tensors(cell, T, B, I, H, D, groups, stages, bias, layer_norm, states, dtype, seed)
    fixed["H"] = H
    lengths = None if lengths is None else torch.tensor(lengths)
    wide = {name: v.requires_grad_() for name, v in values.items()}
    y64, last64 = expected(cell, wide, fixed, lengths, reverse, D, groups)
    random = torch.Generator().manual_seed(3)
    dy, *dlast = [torch.randn(t.shape, generator=random, dtype=torch.float64).to(dtype) for t in (y64, *last64)]
    wanted = torch.autograd.grad(
        [y64, *last64], wide.values(), [dy.double(), *(d.double() for d in dlast)], materialize_grads=True,
        allow_unused=True,
    )  # fmt: skip
    narrow = {name: v.detach().to(dtype) for name, v in values.items()}
    if lengths is not None:  # nobody knows what lies past them
        live = torch.arange(T)[:, None] < (lengths if lengths.dim() == 1 else lengths[:, None])
        poison = torch.nan if dtype.itemsize > 2 else 10.0
        for key in ("x", *(f"extras.{name}" for name in cell.steps)):
            narrow[key] = torch.where(live[..., None], narrow[key], poison)
    problem = problem_of(cell, narrow, fixed, lengths, reverse, D, groups)
    with running(schedule, seed):
        y, last, saved = launch.forward(problem, True)
        inferred = launch.forward(problem, False)
        dx, dstates, dweights, dreset, dextras = launch.backward(problem, dy, dlast, None, y, saved, [True] * 4)
    assert torch.equal(y, inferred[0]) and all(map(torch.equal, last, inferred[1])) and inferred[2] == []
    assert all(t.isfinite().all() for t in saved)
    assert_close("y", y, y64)
    for n, (actual, want) in enumerate(zip(last, last64, strict=True)):
        assert_close(f"last {n}", actual, want)
    names = (*cell.sequences, *cell.steps)
    found = {"x": dx} | dict(zip((n for n in values if n.startswith("states")), dstates, strict=True))
    found |= dict(zip((n for n in values if n.startswith("weights")), dweights, strict=True))
    found |= {f"extras.{n}": d for n, d in zip(names, dextras, strict=True)}
    found |= dict(zip((n for n in values if n.startswith("reset_states")), dreset, strict=True))
    assert set(found) == set(values)
    for name, want in zip(wide, wanted, strict=True):
        assert found[name].dtype == dtype, name
        assert_close(f"gradient of {name}", found[name], want)


VARIANTS = {
    "plain": dict(T=4, B=2, H=20),
    "reverse, no bias": dict(T=4, B=3, H=40, reverse=(True,), bias=False),
    "both directions from zero": dict(T=3, B=1, H=16, reverse=BOTH, states=False),
    "lengths": dict(T=5, B=4, H=20, reverse=BOTH, lengths=[5, 0, 3, 1]),
}


def has(cell, schedule):
    """True if a cell has a schedule: without a recurrent product there is only one."""
    return "recurrent" in CELLS[cell] or schedule == "resident"


@pytest.mark.parametrize(
    "cell, schedule, variant", cases(CELLS, schedules.NAMES, VARIANTS, exists=lambda cell, schedule, v: has(cell, schedule))
)
def test_equals_definition(cell, schedule, variant):
    check(cell, schedule, **VARIANTS[variant])
