"""The numbers of quantised modules: against the definition in float64 with the same int8 numbers, on every instruction
set; against float32 and torch.ao. Letters: T time, B batch, I input, H hidden, L layers, D directions."""

import copy
import itertools
import warnings

import cpp_worker
import pytest
import torch
from common import assert_close, error
from pairwise import ALL
from test_modules import LAYERS, flat
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkernels
from rnnkernels import backends, functional
from rnnkernels.cells import interpret, reference, spec_of
from rnnkernels.nn.base import MODES
from rnnkernels.tools import quantize

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
OPS = torch.ops.rnnkernels
CPP = backends.EXTENSION_ERROR is None
INSTRUCTION_SETS = OPS.instruction_sets().split(",") if CPP else []


def dynamic():
    """Whether rows become int8 on the instruction set in use, or the weights floats."""
    return CPP and "int8" in OPS.schedule("lstm", torch.int8, 50, 16, 64, 64, 64, 1, False)


def make(cell, I, H, seed=0, library=nn, activations="int8", **kwargs):  # noqa: E741 - the letters of ops.py
    """A module, and the same quantised."""
    name, extra = LAYERS[cell]
    torch.manual_seed(seed)
    module = getattr(library, name)(I, H, **extra, **kwargs).eval()
    return module, rnnkernels.quantize_dynamic(module, activations=activations)


def int8_rows(v):
    """What becomes of rows (..., K), in float32 as the kernels compute it."""
    if not dynamic():
        return v.double()
    v = v.float()
    largest = v.abs().amax(-1, keepdim=True) if v.size(-1) else v
    q = (v * torch.where(largest > 1e-36, 127 / largest, 0)).round()
    return q.double() * (largest / 127).double()


def definition(q, x, hx=None):
    """The quantised module in float64: the cells of reference.py, step by step; x (T, B, I). Returns y and h, c."""
    cell, activation = MODES[q.mode]
    act, D, G = reference.ACTIVATIONS[activation or "tanh"], 1 + q.bidirectional, spec_of(cell).gates
    weights = reference.dequantized([q._buffers[n] for n in q._weights], [q._buffers[n].double() for n in q._scales])
    n, last, rows = len(weights) // (q.num_layers * D), [], (q.num_layers * D, x.size(1))
    zeros = (torch.zeros(*rows, q.proj_size or q.hidden_size), torch.zeros(*rows, q.hidden_size))
    states = zeros[: spec_of(cell).states] if hx is None else flat(hx)
    for layer in range(q.num_layers):
        directions = []
        for d in range(D):
            k = layer * D + d
            w_ih, w_hh, *rest = (w.double() for w in weights[k * n : (k + 1) * n])
            b_ih, b_hh = (rest.pop(0), rest.pop(0)) if q.bias else (0, 0)
            s, ys = tuple(v[k].double() for v in states), [None] * len(x)
            for t in reversed(range(len(x))) if d else range(len(x)):
                x_BGH = (int8_rows(x[t]) @ w_ih.T + b_ih).unflatten(-1, (G, -1))
                r_BGH = (int8_rows(s[0]) @ w_hh.T + b_hh).unflatten(-1, (G, -1))
                functions = {"act": act, "gate": torch.sigmoid, "norm": lambda c: c}
                named = {"v": {}, "u": {}}
                program, first = spec_of(cell).program, lambda h, r=r_BGH: r
                s, _, _ = interpret.step(program, x_BGH, first, None, s, None, named, functions)
                s = (s[0] @ rest[0].T, *s[1:]) if rest else s
                ys[t] = s[0]
            last.append(s)
            directions.append(torch.stack(ys))
        x = torch.cat(directions, -1)
    return [x, *(torch.stack(v) for v in zip(*last, strict=True))]


def sameness(cell):
    """How far apart rows are that are computed together and alone: sums of int8 are exact, W_hr is in float."""
    return 1e-5 if not dynamic() else 5e-3 if cell == "projected" else 0


def random_states(q, B):
    rows = q.num_layers * (1 + q.bidirectional)
    h = torch.randn(rows, B, q.proj_size or q.hidden_size)
    return (h, torch.randn(rows, B, q.hidden_size)) if q.mode == "LSTM" else h


@torch.no_grad()
def remainders():
    """Every remainder of B, H and I: one step from given states, where rounding is the same. After that a number of h
    may be rounded the other way now and then, which has consequences for its row, but not for many rows."""
    rows = off = 0
    for n, (cell, H, k) in enumerate(itertools.product(("rnn", "lstm", "gru"), (1, 20, 40, 127, 256), range(3))):
        if not ALL and k != n // 3 % 3:
            continue
        I = (1, 2, 3, 5, 8, 50, 129)[n * 3 % 7]  # noqa: E741
        _, q = make(cell, I, H, seed=n)
        for B in {(1, 2, 33)[k], 1 + n % 20}:
            for T in (1, 4):
                x, hx = torch.randn(T, B, I), random_states(q, B)
                for name, a, e in zip("yhc", flat(q(x, hx)), definition(q, x, hx), strict=False):
                    errors = (a - e).abs().amax((0, 2)) / e.abs().max()
                    rows, off = rows + B, off + (errors > 3e-6).sum().item()
                    if not errors.max() <= (3e-6 if T == 1 else 0.03):
                        yield f"{cell} H={H} I={I} B={B} T={T} {name}: error {errors.max():.1e}"
        assert q(torch.randn(3, 0, I))[0].shape == (3, 0, H)
    if off > 0.02 * rows:
        yield f"{off} of {rows} rows are off"


@torch.no_grad()
def not_finite():
    """NaN and infinity stay in their rows."""
    values = float("nan"), float("inf")
    for cell, (T, B), value in itertools.product(("rnn", "relu", "lstm", "gru"), ((1, 5), (1, 20), (30, 20)), values):
        _, q = make(cell, 5, 70)
        x = torch.randn(T, B, 5)
        y = q(x)[0]
        x[T // 2, 3, 2] = value
        bad = q(x)[0]
        others = [b for b in range(B) if b != 3]
        if not torch.equal(bad[:, others], y[:, others]) or not torch.equal(bad[: T // 2], y[: T // 2]):
            yield f"{cell} T={T}: {value} left its row"
        if (value != value or dynamic()) and not bad[T // 2 :, 3].isnan().all():
            yield f"{cell} T={T}: {value} did not give NaN"


@torch.no_grad()
def schedule():
    """Rows are int8 in the instruction sets that multiply bytes, and in no other, whatever the processor has."""
    isa = OPS.instruction_sets().split(",")[0] if CPP else "none"
    if dynamic() != (isa in ("amx", "avx512_bf16", "avx512_vnni")):
        yield f"{isa}: {dynamic()}"
    for cell in ("lstm", "rnn"):
        _, q = make(cell, 40, 64)
        x = torch.randn(20, 8, 40)
        if (error(q(x)[0], in_floats(q, x)[0]) > 1e-4) != dynamic():
            yield f"{isa}: {cell} was not run as it says"


def in_floats(q, x, hx=None):
    """What a quantised module gives whose rows stay floats."""
    cell, activation = MODES[q.mode]
    weights = reference.dequantized([q._buffers[n] for n in q._weights], [q._buffers[n] for n in q._scales])
    y, last = functional.layers(
        cell, x, () if hx is None else flat(hx), weights, q.num_layers, (False, True) if q.bidirectional else (False,),
        q.bias, q.proj_size > 0, q.input_size, q.hidden_size, q.proj_size or q.hidden_size, activation,
    )  # fmt: skip
    return [y, *last]


@torch.no_grad()
def float_rows():
    """activations="float": the numbers of the float layers with the same weights."""
    shapes = itertools.product(("rnn", "relu", "lstm", "gru", "projected"), ((1, 1), (1, 33), (9, 3), (30, 20)))
    for n, (cell, (T, B)) in enumerate(shapes):
        L, I, H = 1 + n % 2, (3, 50)[n % 2], (20, 70)[n // 2 % 2]  # noqa: E741
        _, q = make(cell, I, H, seed=n, num_layers=L, bidirectional=n % 3 == 0, bias=n % 5 > 0, activations="float")
        x, hx = torch.randn(T, B, I), random_states(q, B) if n % 2 else None
        for name, a, e in zip("yhc", flat(q(x, hx)), in_floats(q, x, hx), strict=False):
            if not error(a, e) < 1e-6:
                yield f"{cell} T={T} B={B} {name}: error {error(a, e):.1e}"


CHECKS = (schedule, remainders, not_finite, float_rows)


@pytest.mark.skipif(CPP, reason="the instruction sets are compared with it below")
def test_the_definition():
    assert not [failure for check in CHECKS for failure in check()]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_instruction_sets(isa):
    checks = [f"test_quantize.{check.__name__}" for check in CHECKS]
    poison = "glibc.malloc.perturb=1:glibc.malloc.tcache_count=0"  # new memory is full of large numbers
    cpp_worker.assert_passes(checks, isa, INSTRUCTION_SETS, OMP_NUM_THREADS="1", GLIBC_TUNABLES=poison)


@torch.no_grad()
@pytest.mark.parametrize("cell", LAYERS)
def test_variants(cell):
    for bias, L, bidirectional in itertools.product((True, False), (1, 3), (False, True)):
        module, q = make(cell, 7, 21, bias=bias, num_layers=L, bidirectional=bidirectional)
        x, hx = torch.randn(6, 5, 7), random_states(q, 5)
        for given in (None, hx):
            y, hidden = q(x, given)
            assert [t.shape for t in flat((y, hidden))] == [t.shape for t in flat(module(x, given))]
            for name, a, b in zip("yhc", flat((y, hidden)), definition(q, x, given), strict=False):
                assert_close(f"{name} {bias} {L} {bidirectional}", a, b, 5e-3)
        first = make(cell, 7, 21, bias=bias, num_layers=L, bidirectional=bidirectional, batch_first=True)[1]
        assert torch.equal(first(x.transpose(0, 1), hx)[0], q(x, hx)[0].transpose(0, 1))
        alone = q(x[:, 0], tuple(s[:, 0] for s in hx) if q.mode == "LSTM" else hx[:, 0])[0]
        assert_close("unbatched", alone, q(x, hx)[0][:, 0], sameness(cell))


@torch.no_grad()
@pytest.mark.parametrize("cell", LAYERS)
def test_packed_is_padded(cell):
    lengths = torch.tensor([4, 9, 1, 6, 9])
    for bidirectional in (False, True):
        _, q = make(cell, 7, 40, num_layers=2, bidirectional=bidirectional)
        x, hx = torch.randn(9, 5, 7), random_states(q, 5)
        packed, hidden = q(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
        y, _ = pad_packed_sequence(packed)
        for b, T in enumerate(lengths.tolist()):
            alone = q(x[:T, b : b + 1], tuple(s[:, b : b + 1] for s in hx) if q.mode == "LSTM" else hx[:, b : b + 1])
            for name, a, e in zip("yhc", flat((y[:T], hidden)), flat(alone), strict=False):
                assert_close(f"{name} of row {b}", a[:, b : b + 1], e, sameness(cell))


@torch.no_grad()
def test_threads():
    """The same bits on one thread and on two."""
    before = torch.get_num_threads()
    try:
        for cell, B, H in itertools.product(("rnn", "lstm", "gru"), (1, 3, 40), (40, 256)):
            _, q = make(cell, 50, H)
            x, ys = torch.randn(30, B, 50), []
            for n in (1, 2):
                torch.set_num_threads(n)
                ys.append(q(x)[0])
            assert torch.equal(*ys) or (not dynamic() and error(*ys) < 1e-5), f"{cell} B={B} H={H}"
    finally:
        torch.set_num_threads(before)


def test_weights():
    w = torch.randn(300, 77) * torch.logspace(-30, 30, 300)[:, None]
    w[7], w[8, 1:], w[9] = 0, 0, 3e38
    q, scale = quantize.quantize_rows(w)
    assert q.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (300,)
    assert ((q.double() * scale.double()[:, None] - w).abs() <= scale.double()[:, None] * 0.50001).all()
    assert (q[w.abs().amax(1) > 0].abs().amax(1) == 127).all() and not q[7].any() and not scale[7]
    _, q = make("lstm", 3, 4)
    for t in q.state_dict().values():
        t.zero_()
    assert not q(torch.randn(2, 3, 3))[0].any()


@torch.no_grad()
def test_the_longest_sums():
    """127 * 127 * 2^17 is just below 2^31."""
    for I, B in itertools.product((2**17 - 1, 2**17, 2**17 + 1), (1, 16)):  # noqa: E741
        module = nn.RNN(I, 3, nonlinearity="relu", bias=False)
        module.weight_ih_l0.fill_(1.0)
        assert_close(f"{I}, {B}", rnnkernels.quantize_dynamic(module)(torch.ones(1, B, I))[0], torch.full((1, B, 3), I))


@torch.no_grad()
@pytest.mark.parametrize("kind", ("rnn", "relu", "lstm", "gru"))
def test_cells(kind):
    """The numbers of the layer for one step, whatever the activations, and without bias or batch."""
    for activations, bias, B in itertools.product(("int8", "float"), (True, False), (1, 4)):
        module, q = make(kind, 7, 40, bias=bias, activations=activations)
        more = {"nonlinearity": "relu"} if kind == "relu" else {}
        for library in (nn, rnnkernels):
            cell = getattr(library, type(module).__name__ + "Cell")(7, 40, bias=bias, **more)
            cell.load_state_dict({name.removesuffix("_l0"): w for name, w in module.state_dict().items()})
            small = rnnkernels.quantize_dynamic(cell, activations=activations)
            assert type(small).__name__ == f"Quantized{type(cell).__name__}" and not [*small.parameters()]
            x, hx = torch.randn(B, 7), tuple(s[0] for s in flat(random_states(q, B)))
            given = hx if len(hx) == 2 else hx[0]
            stacked = tuple(s[None] for s in hx) if len(hx) == 2 else hx[0][None]
            for state, layer_state in ((given, stacked), (None, None)):
                for a, e in zip(flat(small(x, state)), flat(q(x[None], layer_state)[1]), strict=True):
                    assert_close("state", a, e[0], 0)
                for a, e in zip(flat(small(x, state)), flat(cell(x, state)), strict=True):
                    assert_close("float32", a, e, 0.05)
            if B == 1:
                alone = small(x[0], tuple(s[0] for s in hx) if len(hx) == 2 else hx[0][0])
                for a, e in zip(flat(alone), flat(small(x, given)), strict=True):
                    assert_close("unbatched", a, e[0], 0)


@torch.no_grad()
def test_rows_of_many_magnitudes():
    """What is below 1/254 of the largest entry of a row is lost in int8, and stays with activations="float"."""
    torch.manual_seed(0)
    module = nn.GRU(8, 32).eval()
    module.weight_ih_l0[:, 0], module.weight_ih_l0[:, 1:] = 0, module.weight_ih_l0[:, 1:] * 1000  # small entries count
    x = torch.cat((torch.ones(20, 4, 1), torch.randn(20, 4, 7) * 1e-3), -1)
    expected = copy.deepcopy(module).double()(x.double())[0]
    rows, floats = (
        error(rnnkernels.quantize_dynamic(module, activations=a)(x)[0], expected) for a in ("int8", "float")
    )
    assert floats < 0.05 and (rows > 5 * floats) == dynamic()


@torch.no_grad()
@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_error_against_float32_is_not_larger_than_that_of_torch_ao(cell):
    ao = pytest.importorskip("torch.ao.quantization", reason="this torch has no torch.ao")
    for H, B in ((64, 8), (128, 1), (256, 32)):
        module, q = make(cell, H, H)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that it is deprecated
            theirs = ao.quantize_dynamic(nn.Sequential(module), {nn.LSTM, nn.GRU}, dtype=torch.qint8)[0]
        x = torch.randn(50, B, H)
        y = copy.deepcopy(module).double()(x.double())[0]
        ours, theirs = (f(x)[0].double() - y for f in (q, theirs))
        assert ours.abs().max() <= theirs.abs().max() and ours.square().mean() <= theirs.square().mean(), f"{H}, {B}"
