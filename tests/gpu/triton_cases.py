"""What the tests of interpreted Triton kernels share: calls of the op, and how they are compared with the reference.

The kernels look at a variable when they are defined, so these tests need a process of their own:

    TRITON_INTERPRET=1 python -m pytest tests/gpu/test_triton_interpreted*.py
"""

import os
from contextlib import contextmanager, nullcontext

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "runs in a process of its own: TRITON_INTERPRET=1 python -m pytest tests/gpu/test_triton_interpreted*.py",
        allow_module_level=True,
    )
pytest.importorskip("triton", reason="triton is not installed")

import triton_shim
from common import assert_close, make_case
from pairwise import ALL

from rnnkernels.backends.triton import launch, schedules
from rnnkernels.backends.triton.cells import CELLS
from rnnkernels.cells import reference, spec_of
from rnnkernels.cells.call import LayerCall
from rnnkernels.cells.reference import zero_past
from rnnkernels.cells.weights import names_of

BOTH = (False, True)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """The shimmed interpreter; all new memory is filled with NaN, so that nothing is right by chance."""
    triton_shim.install()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def stages_of(cell, x, states, weights, D, stages):
    """Random ``reset, reset_states, h_mask, zone`` where the stages name them, with zeros and ones among the zones."""
    (T, B), P, H = x.shape[-3:-1], weights[1].size(1), weights[1].size(0) // CELLS[cell].gates
    random = torch.Generator().manual_seed(9)
    shapes = [(D, B, P), (D, B, H)][: CELLS[cell].states]
    chance = lambda *shape: torch.rand(*shape, generator=random)  # noqa: E731
    reset = chance(*x.shape[:-1]) < 0.4 if {"reset", "restart"} & set(stages) else None
    given = [torch.randn(s, generator=random).to(x.dtype) for s in shapes] if "restart" in stages else []
    h_mask = ((chance(D, B, P) < 0.6) / 0.8).to(x.dtype) if "h_mask" in stages else None
    zone = []
    if "zone" in stages:
        zone = [(chance(T, *s).mul(3).floor() / 2).clamp(max=1).to(x.dtype) for s in shapes]
    if "zone_mask" in stages:  # as zoneout draws them in training
        zone = [chance(T, *s) < 0.5 for s in shapes]
    if "expected_zone" in stages:
        zone = [torch.tensor(p, dtype=x.dtype).view(1, 1, 1, 1) for p in (0.25, 0.5)][: len(shapes)]
    return reset, given, h_mask, zone


def arguments(
    cell, lengths=None, groups=0, activation=None, recurrent_activation=None, batch_first=False, stages=(), **shape
):  # fmt: skip
    """The op's arguments up to eps, as a list."""
    case = make_case(cell, **shape)
    x, states, weights = case.split(case.detached())
    if groups:
        shape = dict(shape, T=shape.get("T", 3), seed=1)
        more = [make_case(cell, **dict(shape, seed=seed)) for seed in range(1, groups)]
        parts = [case.split(case.detached())] + [other.split(other.detached()) for other in more]
        x = torch.stack([part[0] for part in parts])
        states = [torch.cat(s) for s in zip(*(part[1] for part in parts), strict=True)]
        weights = [w for part in parts for w in part[2]]
    if x.dtype in (torch.bfloat16, torch.float16):  # larger weights make the recurrence chaotic: it magnifies rounding
        weights = [w / 4 for w in weights]
    if batch_first:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    if lengths is not None:  # nobody knows what lies past them; NaN in bf16 spoils other rows of torch.mm on the CPU
        poison = torch.nan if x.dtype.itemsize > 2 else 10.0
        x = torch.where(zero_past(torch.ones_like(x), torch.tensor(lengths)) > 0, x, poison)
    settings = case.settings
    D = len(settings["reverse"]) * max(1, groups)
    reset, given, h_mask, zone = stages_of(cell, x, states, weights, D, stages)
    return [
        cell, x, states, weights, list(settings["reverse"]), settings["bias"], settings["project"], activation,
        recurrent_activation,
        lengths if lengths is None else torch.tensor(lengths), reset, given, h_mask, zone, settings["layer_norm"], 1e-5,
        0, [], 0, 0,
    ]  # fmt: skip


def doubled(value):
    if isinstance(value, list):
        return [doubled(v) for v in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@contextmanager
def running(schedule=None, seed=0):
    """Force a schedule; programs that wait for each other run at once, in an order that the seed decides."""
    with schedules.force(schedule) if schedule else nullcontext():
        with triton_shim.concurrent_grid(seed) if schedule == "cooperative" else nullcontext():
            yield


def check(cell, schedule=None, seed=0, inference=ALL, **options):
    """Outputs, saved cell states and every gradient of a call, each by its name, against the reference in float64.

    ``inference``: that what is given without saving has the same bits; it takes as long as the forward pass.
    """
    compare(arguments(cell, **options), schedule, seed, inference)


def compare(args, schedule=None, seed=0, inference=ALL):
    """The same of a call with the op's arguments."""
    call, spec = LayerCall(*args), spec_of(args[0])
    x, lengths, D = call.x, call.lengths, call.D
    T, B = x.shape[-3:-1]
    y64, last64, saved64 = reference.layer(*doubled(args), True)
    random = torch.Generator().manual_seed(3)
    dy, *dlast = [torch.randn(t.shape, generator=random).to(x.dtype) for t in (y64, *last64)]
    dcells = None
    if spec.apart:
        dcells = torch.randn(saved64[-1].shape, generator=random).to(saved64[-1].dtype)
        if x.dtype != torch.float64:
            dcells = dcells.float()
        if lengths is not None:  # beyond its length a row has no cell states
            live = torch.arange(T)[:, None] < lengths.view(-1, 1, B)
            dcells *= live.repeat_interleave(D // live.size(0), 0).repeat(spec.apart, 1, 1)[..., None]
    with running(schedule, seed):
        y, last, saved = launch.layer(*args, True)
        inferred = launch.layer(*args, False) if inference else (y, last, [])
        grads = launch.layer_backward(dy, dlast, dcells, *args, y, saved, [True] * 4)
    expected = reference.layer_backward(
        dy.double(), doubled(dlast), doubled(dcells), *doubled(args), y64, saved64, [True] * 4
    )  # fmt: skip
    assert torch.equal(y, inferred[0]) and all(map(torch.equal, last, inferred[1])) and inferred[2] == []
    assert_close("y", y, y64)
    names = names_of(call.cell, call.bias, call.project, call.layer_norm)
    states = spec.program.states
    compared = [
        *zip([f"{s}_n" for s in states], last, last64, strict=False),
        ("dx", grads[0], expected[0]),
        *zip([f"d{s}0" for s in states][: len(call.states)], grads[1], expected[1], strict=True),
        *zip([f"d{name} {d}" for d in range(D) for name in names], grads[2], expected[2], strict=True),
        *zip([f"dreset_states[{n}]" for n in range(len(call.reset_states))], grads[3], expected[3], strict=True),
        *zip([f"d{name}" for name in spec.extras], grads[4], expected[4], strict=True),
    ]
    for name, actual, wanted in compared:
        assert actual.dtype == x.dtype, name
        assert_close(name, actual, wanted)
    assert all(tensor.isfinite().all() for tensor in saved)
    assert [t.shape for t in (y, *last, *saved)] == [t.shape for t in (y64, *last64, *saved64)]
