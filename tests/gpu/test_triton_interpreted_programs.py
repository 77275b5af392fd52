"""Interpreted Triton kernels as programs of a grid: any order, barriers, graphs; what is refused; and the interpreter.

Needs a process of its own (triton_cases.py).
"""

import fake_graphs
import pytest
import torch
import triton
import triton.language as tl
import triton_shim
from common import assert_close
from pairwise import ALL, in_turn
from triton_cases import BOTH, CELLS, arguments, check, interpreter, running  # noqa: F401 - used by every test

from rnnkernels import backends
from rnnkernels.backends.triton import backward, dots, forward, graphs, launch, schedules


@pytest.mark.parametrize("seed", range(3 if ALL else 2))
def test_programs_do_not_depend_on_each_other(seed):
    """The programs of a launch in any order, interleaved at every memory access: the same bits."""
    args = arguments("gru", T=2, B=18, H=40, reverse=BOTH, dtype=torch.float32)
    for schedule in ("resident", "stepwise"):
        with schedules.force(schedule):
            expected = launch.layer(*args, True)[0]
            with triton_shim.concurrent_grid(seed) as grid:
                assert torch.equal(launch.layer(*args, True)[0], expected)
        assert grid.switches > 0


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_launches_of_a_step_do_not_depend_on_the_order_of_programs(cell):
    """Those of a layer norm, forward and backward: none reads what another program of the same launch writes."""
    with triton_shim.concurrent_grid(0):
        check(cell, "stepwise", T=3, B=2, H=40, layer_norm=True, dtype=torch.float32)


@pytest.mark.parametrize("cell, seed, norm", in_turn(CELLS, range(5), [False, True]))
def test_programs_that_wait_for_each_other(cell, seed, norm):
    """Five interleavings of programs that share units, in two batch tiles and two directions."""
    options = dict(T=3, B=17, H=20, reverse=BOTH, dtype=torch.float32, stages=["reset", "h_mask"])
    check(cell, "cooperative", seed, layer_norm=norm, **options)


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_layer_norms_have_the_same_bits_in_any_order(cell):
    """Sums over programs are in one order, whichever of them comes first."""
    args, found = arguments(cell, T=3, B=3, H=40, layer_norm=True, dtype=torch.float32), []
    for seed in range(3):
        with running("cooperative", seed):
            y, last, saved = launch.layer(*args, True)
            dx, dstates, dweights, *_ = launch.layer_backward(y, last, None, *args, y, saved, [True] * 4)
        found.append([y, *last, *saved, dx, *dstates, *dweights])
    assert all(map(torch.equal, found[0], found[1])) and all(map(torch.equal, found[0], found[2]))


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


SABOTAGES = {
    "no wait": ("wait", no_wait),
    "short wait": ("wait", short_wait),
    "two arrivals": ("arrive", double_arrival),
}
LOOPS = {"forward": forward, "backward": backward}


@pytest.mark.parametrize(
    "loop, cell, sabotage, norm", in_turn(LOOPS, ["lstm", "gru_reset_before"], SABOTAGES, [False, True])
)
def test_a_sabotaged_barrier_is_found(loop, cell, sabotage, norm, monkeypatch):
    """The test of the test: without the barrier, or with one that opens too early, some interleaving shows it."""
    monkeypatch.setattr(LOOPS[loop], *SABOTAGES[sabotage])
    with pytest.raises(AssertionError):
        for seed in range(5):
            check(cell, "cooperative", seed, T=4, B=3, H=40, layer_norm=norm, dtype=torch.float32)


@pytest.mark.parametrize("cell, P, norm", [("lstm", 0, False), ("lstm", 7, False), ("gru_reset_before", 0, True)])
def test_passes_replayed_from_a_graph(cell, P, norm, monkeypatch):
    """Other numbers at the same places: results of the recorded call must not come back."""
    recorded = fake_graphs.install(monkeypatch)
    for seed in range(2):
        options = dict(T=3, B=2, H=20, P=P, reverse=BOTH, seed=seed, dtype=torch.float32, stages=["restart", "zone"])
        check(cell, "stepwise", inference=True, lengths=[3, seed], layer_norm=norm, **options)
    assert len(recorded) == 3  # training and inference forward, backward
    graphs.clear()


def call(**changes):
    facts = dict(
        cell="lstm", device=torch.device("cpu"), dtype=torch.float32, T=3, B=2, I=4, H=20, P=20, D=1, training=True
    )  # fmt: skip
    return backends.Facts(**(facts | changes))


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"device": torch.device("meta")}, "it runs on GPUs, and the input is on meta"),
        ({"dtype": torch.int64}, "dtype torch.int64 is not one of"),
        ({"stages": frozenset({"reset", "one of tomorrow"})}, "it has no stage for one of tomorrow yet"),
        ({"cell": "gru", "stages": frozenset({"project"})}, "gru has no projection"),
    ],
)
def test_unsupported(changes, reason):
    assert launch.unsupported(call()) is None
    assert launch.unsupported(call(**changes)).startswith(reason)


def test_without_triton(monkeypatch):
    monkeypatch.setattr(launch, "HAS_TRITON", False)
    assert launch.unsupported(call()) == "triton is not installed"


def test_what_is_missing_is_refused():
    args = arguments("gru", H=20, dtype=torch.float32)
    args[6] = True
    with pytest.raises(NotImplementedError, match="cannot run this layer: gru has no projection"):
        launch.layer(*args, False)


def test_states_elsewhere_are_refused():
    """The dispatcher does not look into lists that may be None."""
    args = arguments("gru", H=20, dtype=torch.float32)
    args[2] = [torch.empty(1, args[1].size(1), 20, device="meta")]
    with pytest.raises(RuntimeError, match="expected all tensors on cpu, the device of x, but got meta"):
        launch.layer(*args, False)


def test_schedule_says_why():
    said = launch.schedule(call(H=1100, P=1100))
    assert "forward stepwise" in said and "backward stepwise" in said and "up to 64 units" in said
    assert "no registers for a product 1100 wide" in said
    assert "keep 64 KB of weights each" in launch.schedule(call(H=512, P=512))
    assert "stay in shared memory" in launch.schedule(call(training=False))
    normed = launch.schedule(call(H=512, P=512, stages=frozenset({"layer_norm"})))
    assert normed.count("cooperative") == 2


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
