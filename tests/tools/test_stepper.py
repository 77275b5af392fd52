"""``Stepper``: against the module and torch.nn, bits under every cut, reset and state, snapshot, processes."""

import copy
import gc
import json
import sys
import threading
import tracemalloc

import pytest
import torch
from common import TOLERANCES, error
from conftest import CPU_BACKENDS
from cpp_worker import assert_passes, in_process, instruction_sets
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import cases
from torch import nn

import rnnkernels
from rnnkernels import Stepper, backends

HAS_CPP = "cpp" in CPU_BACKENDS
SETS = instruction_sets() if HAS_CPP else []
NEEDS_CPP = pytest.mark.skipif(not HAS_CPP, reason="the C++ extension is not there")
KINDS = {"rnn": ("RNN", {}), "relu": ("RNN", {"nonlinearity": "relu"}), "gru": ("GRU", {}), "lstm": ("LSTM", {}),
         "projected": ("LSTM", {"proj_size": 3})}  # fmt: skip
few = settings(deadline=None, derandomize=True, max_examples=30, database=None)


def build(kind, I=5, H=20, L=2, dtype=torch.float32, bias=True, where=rnnkernels, seed=0):  # noqa: E741
    name, more = KINDS[kind]
    torch.manual_seed(seed)
    more = more if H > 3 else {}
    return getattr(where, name)(I, H, L, dtype=dtype, bias=bias, **more).requires_grad_(False)


def states_of(hx):
    return hx if isinstance(hx, tuple) else (hx,)


def same(a, b):
    """Two states, bit by bit."""
    return all(torch.equal(s, t) for s, t in zip(states_of(a), states_of(b), strict=True))


def compare(kind, dtype, B, H, n):
    """One case of the grid; what differs."""
    L, bias, T, I = 1 + n % 2, n % 3 > 0, 5, (1, 7, 40)[n % 3]  # noqa: E741
    theirs = build(kind, I, H, L, dtype, bias, nn, n)
    x = torch.randn(T, B, I).to(dtype)
    if n % 4 == 1:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif n % 4 == 2:
        x = torch.randn(T, B, 2 * I).to(dtype)[..., ::2]
    exact, last = copy.deepcopy(theirs).double()(x.double())
    stepper = Stepper(theirs, B)
    y = stepper.step(x)
    state = stepper.state
    ours, ours_last = rnnkernels.convert(copy.deepcopy(theirs))(x)
    for name, actual, wanted, module in zip(
        "yhc", (y, *states_of(state)), (exact, *states_of(last)), (ours, *states_of(ours_last)), strict=False
    ):
        for what, e, allowed in (  # the module rounds too, between layers above all
            ("torch.nn in float64", error(actual, wanted), TOLERANCES[dtype] + 2 * error(module, wanted)),
            ("the module", error(actual, module), TOLERANCES[dtype]),
        ):
            if not e <= allowed or actual.shape != wanted.shape:
                yield f"{name} and {what}: error {e:.1e} of {allowed:.1e}, shape {tuple(actual.shape)}"
    stepper.reset()
    if not torch.equal(torch.stack([stepper.step(v) for v in x]), y) or not same(stepper.state, state):
        yield "step by step differs from all at once"
    out = torch.full((B, T, 2 * stepper.step(x[0]).size(-1)), float("nan"), dtype=dtype)
    rows = out[..., : y.size(-1)].transpose(0, 1)
    stepper.reset()
    if stepper.step_(x, rows) is not rows or not torch.equal(rows, y) or not out[..., y.size(-1) :].isnan().all():
        yield "strided out differs"


def grid():
    for n, (kind, dtype, B, H) in enumerate(cases(KINDS, TOLERANCES, (1, 2, 3, 8, 20, 50), (1, 20, 40, 127, 256)), 1):
        case = f"{kind} {dtype} B={B} H={H} n={n}"
        print(case, file=sys.stderr, flush=True)
        yield from [f"{case}: {failure}" for failure in compare(kind, dtype, B, H, n)]


def threads():
    """The same bits on one thread, on two and on three, and in a fork."""
    for kind, dtype, H, T in (("lstm", torch.float32, 300, 9), ("gru", torch.bfloat16, 260, 40),
                              ("projected", torch.float64, 300, 9), ("rnn", torch.float32, 500, 20)):  # fmt: skip
        stepper, x, found = Stepper(build(kind, 64, H, 2, dtype), 2), torch.randn(T, 2, 64).to(dtype), []
        for n in (1, 2, 3, 2):
            torch.set_num_threads(n)
            stepper.reset()
            found.append((torch.cat([stepper.step(x[:5]), stepper.step(x[5:])]), stepper.state))
        if not all(torch.equal(y, found[0][0]) and same(state, found[0][1]) for y, state in found):
            yield f"{kind}: threads make a difference"
        stepper.load_state(stepper.state)
        context = torch.multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=lambda q, s, x: q.put(s.step(x).tolist()), args=(queue, stepper, x))
        child.start()
        if queue.get() != stepper.step(x).tolist():
            yield f"{kind}: a fork makes a difference"
        child.join()


@pytest.mark.parametrize("isa", SETS)
def test_against_module_and_torch(isa):
    poison = "glibc.malloc.perturb=1:glibc.malloc.tcache_count=0"  # as in test_cpp.py
    assert_passes(["test_stepper.grid"], isa, SETS, OMP_NUM_THREADS="1", GLIBC_TUNABLES=poison)


@NEEDS_CPP
def test_threads_and_forks():
    code = "import json, test_stepper; print(json.dumps(list(test_stepper.threads())))"
    output, trouble = in_process("-c", code, OMP_NUM_THREADS="2")
    assert not trouble and json.loads(output) == []


@pytest.mark.parametrize("kind", KINDS)
def test_reference(kind):
    with backends.force("reference"):
        failures = [f for dtype in TOLERANCES for n in range(4) for f in compare(kind, dtype, 1 + n, 5, n)]
    assert not failures


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8), B=st.integers(1, 9), H=st.integers(1, 40),
       dtype=st.sampled_from(list(TOLERANCES)), data=st.data())  # fmt: skip
@few
def test_every_cut_reset_and_state(kind, cuts, B, H, dtype, data):
    """Cut anywhere, with the state taken out and back, or another Stepper's; rows reset anywhere are fresh rows."""
    module, x = build(kind, 6, H, dtype=dtype), torch.randn(sum(cuts), B, 6).to(dtype)
    whole, pieces = Stepper(module, B), Stepper(module, B)
    y, found = whole.step(x), []
    for chunk in x.split(cuts):
        found.append(pieces.step(chunk))
        state = pieces.state
        if data.draw(st.booleans()):
            pieces.step(chunk)  # away from there and back
        if data.draw(st.booleans()):
            pieces = Stepper(module, B)
        pieces.load_state(state)
        assert same(pieces.state, state)
    assert torch.equal(torch.cat(found), y) and same(pieces.state, whole.state)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=B, max_size=B)))
    pieces.reset(mask)
    fresh, again, kept = Stepper(module, B).step(x), pieces.step(x), whole.step(x)
    assert torch.equal(again[:, mask], fresh[:, mask]) and torch.equal(again[:, ~mask], kept[:, ~mask])


def test_takes_any_module(backend):
    x = torch.randn(3, 2, 5)
    for module in (build("lstm"), build("lstm", where=nn), nn.LSTM(5, 20, 2, batch_first=True, dropout=0.5)):
        stepper = Stepper(module, batch_size=2)
        assert stepper.backend == backend and backend in repr(stepper) and stepper.batch_size == 2
        assert error(stepper.step(x), build_like(module)(x)[0]) < 1e-5
        assert [s.shape for s in stepper.state] == [(2, 2, 20)] * 2
    normed = nn.utils.parametrizations.weight_norm(build("gru", where=nn), "weight_hh_l0")
    assert error(Stepper(normed, 2).step(x), build_like(normed)(x)[0]) < 1e-5


def build_like(module):
    """torch.nn's with the same weights, without dropout, time first."""
    plain = getattr(nn, type(module).__name__.removeprefix("Parametrized"))(5, 20, 2)
    plain.load_state_dict({name: getattr(module, name).detach() for name in module._flat_weights_names})
    return plain


CELLS = {"rnn": ("RNNCell", {}), "relu": ("RNNCell", {"nonlinearity": "relu", "bias": False}), "gru": ("GRUCell", {}),
         "lstm": ("LSTMCell", {}), "lstm without bias": ("LSTMCell", {"bias": False})}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("where", (nn, rnnkernels))
@pytest.mark.parametrize("kind", CELLS)
def test_takes_cells(backend, kind, where):
    """The state has the form of the cell's, and a call is a call of the cell."""
    name, more = CELLS[kind]
    for dtype in TOLERANCES:
        torch.manual_seed(0)
        module, x = getattr(where, name)(5, 20, dtype=dtype, **more), torch.randn(6, 3, 5).to(dtype)
        exact, h, found = copy.deepcopy(module).double(), None, []
        for v in x.double():
            h = exact(v, h)
            found.append(states_of(h)[0])
        stepper, allowed = Stepper(module, 3), 5 * TOLERANCES[dtype]
        y = torch.cat([stepper.step(x[:2]), stepper.step(x[2])[None], stepper.step(x[3:])])
        assert y.dtype == dtype and error(y, torch.stack(found)) < allowed
        state = stepper.state
        assert isinstance(state, tuple) == isinstance(h, tuple)
        for s, wanted in zip(states_of(state), states_of(h), strict=True):
            assert s.shape == (3, 20) and error(s, wanted) < allowed
        kept = stepper.step(x[0])
        stepper.load_state(state)
        assert torch.equal(stepper.step(x[0]), kept)
        h = None
        for v in x:
            h = stepper(v, h)
        wanted = states_of(copy.deepcopy(module).double()(x[0].double()))
        assert all(s.shape == (3, 20) and s.dtype == dtype for s in states_of(h))
        assert all(error(s, w) < allowed for s, w in zip(states_of(h), states_of(state), strict=True))
        assert all(error(s, w) < allowed for s, w in zip(states_of(stepper(x[0])), wanted, strict=True))
    single, row = Stepper(module, 1), x[0, 0]
    assert [s.shape for s in states_of(single(row, single(row)))] == [(20,)] * len(wanted)


@torch.no_grad()
def test_a_model_written_with_cells(backend):
    """Its own code hands the states on, to and fro between two streams."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.out = nn.LSTMCell(5, 20), rnnkernels.GRUCell(20, 20), nn.Linear(20, 4)

        def forward(self, x, states=(None, None)):
            h, c = self.first(x, states[0])
            h2 = self.second(h, states[1])
            return self.out(h2), ((h, c), h2)

    model, streams = Model(), torch.randn(6, 2, 5)
    plain, state = copy.deepcopy(model), [(None, None), (None, None)]
    model.first.forward, model.second.forward = Stepper(model.first, 1), Stepper(model.second, 1)
    for x in streams:
        for k in (0, 1):
            expected, after = plain(x[k, None], state[k])
            y, own = model(x[k, None], state[k])
            assert error(y, expected) < 1e-5 and error(own[0][1], after[0][1]) < 1e-5
            state[k] = own
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(streams[0, :1], state[0])[0], model(streams[0, :1], state[0])[0])


def test_parametrized_cells_and_bits(backend):
    cell = nn.utils.parametrizations.weight_norm(nn.GRUCell(5, 20), "weight_hh").requires_grad_(False)
    x = torch.randn(2, 5)
    assert error(Stepper(cell, 2).step(x), cell(x)) < 1e-5
    layer = nn.GRU(5, 20).requires_grad_(False)
    layer.load_state_dict(
        {f"{name}_l0": getattr(cell, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    )
    assert torch.equal(Stepper(cell, 2).step(x), Stepper(layer, 2).step(x))


def test_is_a_snapshot(backend):
    module, x = build("gru"), torch.randn(4, 2, 5)
    stepper, y = Stepper(module, 2), Stepper(module, 2).step(x)
    for p in module.parameters():
        p.data.zero_()
    assert torch.equal(stepper.step(x), y)
    del module
    gc.collect()
    stepper.reset()
    assert torch.equal(stepper.step(x), y)


def test_state_is_a_copy(backend):
    stepper, x = Stepper(build("lstm", dtype=torch.bfloat16), 2), torch.randn(2, 5).bfloat16()
    stepper.step(x)
    h, c = stepper.state
    assert h.dtype == c.dtype == torch.float32
    kept = h.clone()
    h.zero_()
    assert same(stepper.state, (kept, c))
    stepper.load_state((kept.bfloat16(), c.bfloat16()))  # as the module returns it
    stepper.load_state([kept.expand(2, 2, 20), c])
    assert same(stepper.state, (kept, c))


def test_infinity_and_nan():
    """They go where they go in the module, and a reset row forgets them."""
    for kind in KINDS:
        module, x = build(kind), torch.randn(3, 3, 5)
        x[1, 0, 2], x[1, 2, 1] = float("nan"), float("inf")
        stepper, (y, _) = Stepper(module, 3), module(x)
        assert error(stepper.step(x).nan_to_num(), y.nan_to_num()) < 1e-5
        stepper.reset(torch.tensor([True, False, True]))
        assert stepper.step(x[:1])[0, 0].isfinite().all()


@NEEDS_CPP
def test_step_into_out_allocates_nothing():
    stepper, x, out = Stepper(build("lstm"), 2), torch.randn(2, 5), torch.empty(2, 20)
    stepper.step_(x, out)
    version = out._version
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(5):
            assert stepper.step_(x, out) is out
    assert not [e for e in profile.events() if e.self_cpu_memory_usage], "torch allocates"
    assert out._version > version  # so that autograd notices
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(1000):
        stepper.step_(x, out)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 500, f"{grown} bytes more"


@NEEDS_CPP
def test_a_second_thread_is_refused():
    stepper, x, errors = Stepper(build("lstm", 256, 512), 1), torch.randn(2000, 1, 256), []
    worker = threading.Thread(target=stepper.step, args=(x,))
    worker.start()
    while worker.is_alive() and not errors:
        try:
            stepper.reset()
        except RuntimeError as e:
            errors.append(str(e))
    worker.join()
    assert errors == ["this Stepper is in use by another thread"]


@pytest.mark.filterwarnings("ignore")
def test_under_compile(backend):
    stepper, x = Stepper(build("gru"), 2), torch.randn(3, 2, 5)
    expected = Stepper(build("gru"), 2).step(x)
    compiled = torch.compile(lambda v, out: stepper.step(v + 0) + stepper.step_(v, out) * 0, backend="eager")
    assert torch.equal(compiled(x, torch.empty(3, 2, 20)), expected)
