"""The Triton kernels interpreted on the CPU, against the reference in float64.

Needs a process of its own, with the variable that the kernels look at when they are defined:

    TRITON_INTERPRET=1 python -m pytest tests/test_triton_interpreted.py
"""

import os
import sys
from contextlib import contextmanager, nullcontext

import fake_graphs
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "runs in a process of its own: TRITON_INTERPRET=1 python -m pytest tests/test_triton_interpreted.py",
        allow_module_level=True,
    )
pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl
import triton_shim
from common import assert_close, make_case

from rnnkernels import backends, reference
from rnnkernels.cells import ONE_PHASE as CELLS
from rnnkernels.triton import backward, dots, forward, graphs, launch, schedules

BOTH = (False, True)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RAGGED = [7, 0, 3, 1, 5]
VARIANTS = {
    "plain": dict(T=4, B=2, H=20),
    "reverse, no bias": dict(T=4, B=3, H=40, reverse=(True,), bias=False),
    "both directions from zero": dict(T=3, B=1, H=20, reverse=BOTH, states=False),
    "one step": dict(T=1, B=5, H=20, lengths=[1, 0, 1, 1, 0]),
    "lengths": dict(T=7, B=5, H=20, reverse=BOTH, lengths=RAGGED),
    "two batch tiles": dict(T=2, B=17, H=16, lengths=[2, 1, 0] * 5 + [1, 2]),
}
ONCE = {
    "H=127": dict(T=2, B=2, H=127, dtype=torch.bfloat16, reverse=(True,)),
    "float64": dict(T=3, B=2, H=33, dtype=torch.float64, reverse=BOTH, lengths=[1, 3]),
    "empty batch": dict(T=3, B=0, H=20, dtype=torch.float32, reverse=BOTH),
}


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
    if "expected zone" in stages:
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
    settings = case.settings
    D = len(settings["reverse"]) * max(1, groups)
    reset, given, h_mask, zone = stages_of(cell, x, states, weights, D, stages)
    return [
        cell, x, states, weights, list(settings["reverse"]), settings["bias"], settings["project"], activation,
        recurrent_activation,
        lengths if lengths is None else torch.tensor(lengths), reset, given, h_mask, zone, False, 1e-5,
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


def check(cell, schedule=None, seed=0, **options):
    """Outputs, saved cell states and every gradient of a call, each by its name, against the reference in float64."""
    args = arguments(cell, **options)
    x, lengths = args[1], args[9]
    D, T, B = reference.directions_of(x, args[4]), x.size(-3), x.size(-2)
    y64, last64, saved64 = reference.layer(*doubled(args), True)
    random = torch.Generator().manual_seed(3)
    dy, *dlast = [torch.randn(t.shape, generator=random).to(x.dtype) for t in (y64, *last64)]
    dcells = None
    if CELLS[cell].states > 1:
        dcells = torch.randn(saved64[-1].shape, generator=random).to(saved64[-1].dtype)
        if x.dtype != torch.float64:
            dcells = dcells.float()
        if lengths is not None:  # beyond its length a row has no cell states
            live = torch.arange(T)[:, None] < lengths.view(-1, 1, B)
            dcells *= live.repeat_interleave(D // live.size(0), 0)[..., None]
    with running(schedule, seed):
        y, last, saved = launch.layer(*args, True)
        inferred = launch.layer(*args, False)
        grads = launch.layer_backward(dy, dlast, dcells, *args, y, saved, [True] * 3)
    expected = reference.layer_backward(
        dy.double(), doubled(dlast), doubled(dcells), *doubled(args), y64, saved64, [True] * 3
    )  # fmt: skip
    assert torch.equal(y, inferred[0]) and all(map(torch.equal, last, inferred[1])) and inferred[2] == []
    assert_close("y", y, y64)
    names = [f"weights[{n}]" for n in range(len(args[3]))]
    states = ["h", "c"][: len(args[2])]
    compared = [
        *zip(["h_n", "c_n"], last, last64, strict=False),
        ("dx", grads[0], expected[0]),
        *zip([f"d{s}0" for s in states], grads[1], expected[1], strict=True),
        *zip([f"d{n}" for n in names], grads[2], expected[2], strict=True),
        *zip([f"dreset_states[{n}]" for n in (0, 1)], grads[3], expected[3], strict=False),
    ]
    for name, actual, wanted in compared:
        assert actual.dtype == x.dtype, name
        assert_close(name, actual, wanted)
    assert all(tensor.isfinite().all() for tensor in saved) and len(grads[3]) == len(expected[3])
    assert y.shape == (T, B, y64.size(-1)) and len(saved) == len(saved64) and D == last[0].size(0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("schedule", schedules.NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_equals_reference(cell, dtype, schedule, variant):
    check(cell, schedule, dtype=DTYPES[dtype], **VARIANTS[variant])


@pytest.mark.parametrize("variant", ONCE)
@pytest.mark.parametrize("cell", CELLS)
def test_equals_reference_once(cell, variant):
    check(cell, **ONCE[variant])


@pytest.mark.parametrize("schedule", schedules.NAMES)
@pytest.mark.parametrize("cell", CELLS)
def test_groups_with_inputs_of_their_own(cell, schedule):
    """What vmap over the weights asks for: two groups of two directions, each group with its input and lengths."""
    args = dict(T=3, B=2, H=20, reverse=BOTH, groups=2, dtype=torch.float32)
    check(cell, schedule, **args)
    check(cell, schedule, lengths=[[3, 0], [1, 2]], **args)


STAGES = ["reset", "restart", "h_mask", "zone", "expected zone", "reset h_mask", "restart zone", "h_mask zone"]


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("schedule", schedules.NAMES)
@pytest.mark.parametrize("cell", CELLS)
def test_stages(cell, schedule, stages):
    """Every stage alone and in pairs, with lengths and both directions."""
    stages = [stages] if stages == "expected zone" else stages.split()
    check(cell, schedule, T=4, B=3, H=20, dtype=torch.float32, reverse=BOTH, stages=stages, lengths=[4, 0, 3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", schedules.NAMES)
def test_all_stages(schedule, dtype):
    options = dict(T=4, B=3, H=20, dtype=DTYPES[dtype], stages=["restart", "h_mask", "zone"])
    check("lstm", schedule, states=False, **options)
    check("gru", schedule, reverse=BOTH, groups=2, **options)


@pytest.mark.parametrize("stages", STAGES)
def test_stages_of_a_projection(stages):
    stages = [stages] if stages == "expected zone" else stages.split()
    check("lstm", T=4, B=3, H=20, P=7, dtype=torch.float32, reverse=BOTH, stages=stages, lengths=[4, 0, 3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [dict(T=3, H=20, P=7), dict(T=1, H=20, P=17, bias=False), dict(T=5, B=5, H=24, P=9, lengths=[5, 0, 3, 1, 4])],
)
def test_projection(options, dtype):
    check("lstm", reverse=BOTH, dtype=DTYPES[dtype], **options)
    check("lstm", reverse=(False,), states=False, dtype=DTYPES[dtype], **options)


@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "relu", "hard_sigmoid", "linear"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "hard_sigmoid", "linear"])
@pytest.mark.parametrize("cell", CELLS)
def test_activations(cell, activation, gate):
    """Every pair of them, in float64: where rounding near a corner does not matter."""
    check(cell, "stepwise", T=3, B=2, H=5, activation=activation, recurrent_activation=gate, dtype=torch.float64)


def test_activations_on_chip():
    options = dict(T=3, B=2, H=20, activation="relu", recurrent_activation="hard_sigmoid", dtype=torch.float32)
    check("lstm", "resident", **options)
    check("gru", "cooperative", **options)
    check("lstm", P=7, **options)


@pytest.mark.parametrize("cell", CELLS)
def test_batch_first_input_is_read_by_strides(cell):
    check(cell, "resident", T=4, B=3, H=20, batch_first=True, dtype=torch.float32)


@pytest.mark.parametrize("cell", CELLS)
def test_through_the_op_and_autograd(cell):
    case = make_case(cell, T=3, B=2, H=20, dtype=torch.float32, lengths=torch.tensor([1, 3]))
    grads = {}
    for backend in ("triton", "reference"):
        with backends.force(backend):
            out = case(*case.tensors)
            grads[backend] = torch.autograd.grad(sum((o * o).sum() for o in out), case.tensors)
    for n, (actual, wanted) in enumerate(zip(grads["triton"], grads["reference"], strict=True)):
        assert_close(f"gradient {n}", actual, wanted)


def test_only_the_needed_gradients():
    args = arguments("gru", H=20, dtype=torch.float32)
    y, _, saved = launch.layer(*args, True)
    needs = [False, True, False]
    dx, dstates, dweights, _ = launch.layer_backward(torch.ones_like(y), [], None, *args, y, saved, needs)
    assert dx.numel() == 0 and len(dstates) == 1 and dweights == []


@pytest.mark.parametrize("seed", range(3))
def test_programs_do_not_depend_on_each_other(seed):
    """The programs of a launch in any order, interleaved at every memory access: the same bits."""
    args = arguments("gru", T=2, B=18, H=40, reverse=BOTH, dtype=torch.float32)
    for schedule in ("resident", "stepwise"):
        with schedules.force(schedule):
            expected = launch.layer(*args, True)[0]
            with triton_shim.concurrent_grid(seed) as grid:
                assert torch.equal(launch.layer(*args, True)[0], expected)
        assert grid.switches > 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cell", CELLS)
def test_programs_that_wait_for_each_other(cell, seed):
    """Five interleavings of programs that share units, in two batch tiles and two directions."""
    check(cell, "cooperative", seed, T=3, B=17, H=20, reverse=BOTH, dtype=torch.float32, stages=["reset", "h_mask"])


@triton.jit
def no_wait(counter, target):
    pass


@triton.jit
def short_wait(counter, target):
    dots.wait(counter, target - 1)


@triton.jit
def double_arrival(counter):
    dots.arrive(counter)
    dots.arrive(counter)


@pytest.mark.parametrize("part, sabotage", [("wait", no_wait), ("wait", short_wait), ("arrive", double_arrival)])
@pytest.mark.parametrize("loop", [forward, backward])
def test_a_sabotaged_barrier_is_found(loop, part, sabotage, monkeypatch):
    """The test of the test: without the barrier, or with one that opens too early, some interleaving shows it."""
    monkeypatch.setattr(loop, part, sabotage)
    with pytest.raises(AssertionError):
        for seed in range(5):
            check("lstm", "cooperative", seed, T=4, B=3, H=40, dtype=torch.float32)


@pytest.mark.parametrize("P", [0, 7])
def test_passes_replayed_from_a_graph(P, monkeypatch):
    """Other numbers at the same places: results of the recorded call must not come back."""
    recorded = fake_graphs.install(monkeypatch)
    for seed in range(3):
        options = dict(T=3, B=2, H=20, P=P, reverse=BOTH, seed=seed, dtype=torch.float32, stages=["restart", "zone"])
        check("lstm", "stepwise", lengths=[3, seed], **options)
    assert len(recorded) == 3  # training and inference forward, backward
    graphs.clear()


def call(**changes):
    facts = dict(
        cell="lstm", device=torch.device("cpu"), dtype=torch.float32, T=3, B=2, I=4, H=20, P=20, D=1, training=True
    )  # fmt: skip
    return backends.Call(**(facts | changes))


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"device": torch.device("meta")}, "it runs on GPUs, and the input is on meta"),
        ({"dtype": torch.int64}, "dtype torch.int64 is not one of"),
        ({"stages": frozenset({"reset", "layer_norm"})}, "it has no stage for layer_norm yet"),
        ({"cell": "gru_reset_before", "stages": frozenset({"second_product"})}, "it has no stage for second_product"),
        ({"cell": "gru", "stages": frozenset({"project"})}, "gru has no projection"),
    ],
)
def test_unsupported(changes, reason):
    assert launch.unsupported(call()) is None
    assert launch.unsupported(call(**changes)).startswith(reason)


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert launch.unsupported(call()) == "triton is not installed"


def test_a_stage_that_is_missing_is_refused():
    args = arguments("lstm", H=20, dtype=torch.float32)
    args[14] = True
    with pytest.raises(NotImplementedError, match="it has no stage for layer_norm yet"):
        launch.layer(*args, False)


def test_schedule_says_why():
    said = launch.schedule(call(H=1100, P=1100))
    assert "forward stepwise" in said and "backward stepwise" in said and "up to 64 units" in said
    assert "no registers for a product 1100 wide" in said
    assert "keep 64 KB of weights each" in launch.schedule(call(H=512, P=512))
    assert "stay in shared memory" in launch.schedule(call(training=False))


@triton.jit
def dot_kernel(a, b, out, N: tl.constexpr):
    n = tl.arange(0, N)
    at = n[:, None] * N + n[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def test_the_shim_multiplies_bfloat16():
    """The test of the tests: the interpreter as it comes multiplies the bit patterns of bfloat16 as integers."""
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (1, 2))
    out = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, out, N=16)
    assert_close("product", out, a.double() @ b.double(), 1e-6)


def test_the_shim_rounds_to_nearest_even():
    values = torch.cat([torch.randn(1000), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3e38, float("inf"), -0.0])])
    bits = torch.from_numpy(triton_shim.to_bfloat16(values.numpy()).view("int16"))
    assert torch.equal(bits, values.bfloat16().view(torch.int16))


@triton.jit
def racy_kernel(counter, N: tl.constexpr):
    for _ in range(N):
        tl.store(counter, tl.load(counter) + 1)


def test_the_scheduler_finds_races():
    """Programs that add without atomics lose additions under some interleaving, and the same ones for the same seed."""

    def total(seed):
        counter = torch.zeros(1)
        with triton_shim.concurrent_grid(seed):
            racy_kernel[(4,)](counter, N=5)
        return counter.item()

    totals = [total(seed) for seed in range(3)]
    assert min(totals) < 20 and totals == [total(seed) for seed in range(3)]
