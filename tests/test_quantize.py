"""``quantize_dynamic``: against the definition in float64 with the same int8 numbers, on every instruction set; against
float32 and torch.ao; the modules' manners. Letters: T time, B batch, I input, H hidden, L layers, D directions."""

import copy
import itertools
import pickle
import warnings

import cpp_worker
import pytest
import torch
from common import assert_close, error
from test_convert import Model
from test_modules import LAYERS, flat
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkernels
from rnnkernels import backends, ops, quantize, reference
from rnnkernels.modules import MODES

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
OPS = torch.ops.rnnkernels
CPP = backends.EXTENSION_ERROR is None
INSTRUCTION_SETS = OPS.instruction_sets().split(",") if CPP else []
# Whether rows become int8 here, or the weights floats.
DYNAMIC = CPP and "int8" in OPS.schedule("lstm", torch.int8, 50, 16, 64, 64, 64, 1, False)


def make(cell, I, H, seed=0, library=nn, **kwargs):  # noqa: E741 - the letters of ops.py
    """A module, and the same quantised."""
    name, extra = LAYERS[cell]
    torch.manual_seed(seed)
    module = getattr(library, name)(I, H, **extra, **kwargs).eval()
    return module, rnnkernels.quantize_dynamic(module)


def int8_rows(v):
    """What becomes of rows (..., K), in float32 as the kernels compute it."""
    if not DYNAMIC:
        return v.double()
    v = v.float()
    largest = v.abs().amax(-1, keepdim=True) if v.size(-1) else v
    q = (v * torch.where(largest > 1e-36, 127 / largest, 0)).round()
    return q.double() * (largest / 127).double()


def definition(q, x, hx=None):
    """The quantised module in float64: the cells of reference.py, step by step; x (T, B, I). Returns y and h, c."""
    cell, activation = MODES[q.mode]
    act, D, G = reference.ACTIVATIONS[activation or "tanh"], 1 + q.bidirectional, reference.CELLS[cell].gates
    weights = reference.dequantized([q._buffers[n] for n in q._weights], [q._buffers[n].double() for n in q._scales])
    n, last, rows = len(weights) // (q.num_layers * D), [], (q.num_layers * D, x.size(1))
    zeros = (torch.zeros(*rows, q.proj_size or q.hidden_size), torch.zeros(*rows, q.hidden_size))
    states = zeros[: reference.CELLS[cell].states] if hx is None else flat(hx)
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
                s, _ = reference.CELL_FUNCTIONS[cell](x_BGH, r_BGH, s, act, torch.sigmoid, lambda c: c)
                s = (s[0] @ rest[0].T, *s[1:]) if rest else s
                ys[t] = s[0]
            last.append(s)
            directions.append(torch.stack(ys))
        x = torch.cat(directions, -1)
    return [x, *(torch.stack(v) for v in zip(*last, strict=True))]


def sameness(cell):
    """How far apart rows are that are computed together and alone: sums of int8 are exact, W_hr is in float."""
    return 1e-5 if not DYNAMIC else 5e-3 if cell == "projected" else 0


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
    for cell, T, value in itertools.product(("rnn", "relu", "lstm", "gru"), (1, 30), (float("nan"), float("inf"))):
        _, q = make(cell, 5, 70)
        x = torch.randn(T, 20, 5)
        y = q(x)[0]
        x[T // 2, 3, 2] = value
        bad = q(x)[0]
        others = [b for b in range(20) if b != 3]
        if not torch.equal(bad[:, others], y[:, others]) or not torch.equal(bad[: T // 2], y[: T // 2]):
            yield f"{cell} T={T}: {value} left its row"
        if (value != value or DYNAMIC) and not bad[T // 2 :, 3].isnan().all():
            yield f"{cell} T={T}: {value} did not give NaN"


def schedule():
    """int8 where the processor has it."""
    isa = INSTRUCTION_SETS[0] if CPP else "none"
    if isa != "avx512" and DYNAMIC != (isa in ("amx", "avx512_bf16")):
        yield f"{isa}: {DYNAMIC}"


CHECKS = (schedule, remainders, not_finite)


def test_the_definition():
    assert not [failure for check in CHECKS for failure in check()]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS[1:])  # the first is that of this process
def test_instruction_sets(isa):
    checks = [f"test_quantize.{check.__name__}" for check in CHECKS]
    output, trouble = cpp_worker.in_process(cpp_worker.__file__, *checks, RNNKERNELS_ISA=isa, OMP_NUM_THREADS="1")
    assert not trouble and output.count('"failed": []') == len(checks), f"{output}{trouble}"


@torch.no_grad()
@pytest.mark.parametrize("cell", LAYERS)
def test_variants(cell):
    for bias, L, bidirectional in itertools.product((True, False), (1, 3), (False, True)):
        module, q = make(cell, 7, 21, bias=bias, num_layers=L, bidirectional=bidirectional)
        x, hx = torch.randn(6, 5, 7), random_states(q, 5)
        for given in (None, hx):
            y, hidden = q(x, given)
            assert [t.shape for t in flat((y, hidden))] == [t.shape for t in flat(module(x, given))]
            for name, a, b in zip(("y", "h", "c"), flat((y, hidden)), definition(q, x, given), strict=False):
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
            assert torch.equal(*ys) or (not DYNAMIC and error(*ys) < 1e-5), f"{cell} B={B} H={H}"
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


@torch.no_grad()
def test_a_model():
    """Every layer at any depth, shared and tied ones too; the model itself is left as it was."""
    model, tokens = Model().eval(), torch.randint(11, (3, 6))
    state, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    q, y = rnnkernels.quantize_dynamic(model), model(tokens)
    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert error(q(tokens), y) < 0.05 and not torch.equal(q(tokens), y)
    kinds = [type(m).__name__ for m in (q.encoder[1], q.layers["gru"], q.layers["rnn"], q.cells[0])]
    assert kinds == ["QuantizedLSTM", "QuantizedGRU", "QuantizedRNN", "LSTMCell"] and q.again is q.layers["rnn"]
    ours, x = rnnkernels.quantize_dynamic(rnnkernels.convert(copy.deepcopy(model))).encoder, torch.randn(3, 6, 4)
    assert torch.equal(ours(x)[0], q.encoder(x)[0])
    assert repr(q.encoder[1]) == "QuantizedLSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True)"
    assert not [*q.encoder[1].parameters()] and q.encoder[1].weight_hh_l0.dtype == torch.int8
    normed = parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    assert error(rnnkernels.quantize_dynamic(normed)(x)[0], normed(x)[0]) < 0.05


@torch.no_grad()
@pytest.mark.parametrize("cell", LAYERS)
def test_copies_and_state(cell):
    _, q = make(cell, 4, 5, num_layers=2, library=rnnkernels)
    x = torch.randn(6, 3, 4)
    other = make(cell, 4, 5, num_layers=2, seed=1)[1]
    assert not torch.equal(other(x)[0], q(x)[0])
    other.load_state_dict(q.state_dict())
    for twin in (other, copy.deepcopy(q), pickle.loads(pickle.dumps(q)), rnnkernels.quantize_dynamic(q)):
        assert twin is not q and torch.equal(twin(x)[0], q(x)[0])


@torch.no_grad()
@pytest.mark.parametrize("cell", LAYERS)
def test_compile_and_export(cell):
    torch._dynamo.reset()
    _, q = make(cell, 4, 20, num_layers=2, bidirectional=True)
    x = torch.randn(6, 3, 4)
    assert torch.equal(torch.compile(q, fullgraph=True, backend="aot_eager")(x)[0], q(x)[0])
    dims = ({0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}, None)
    program = torch.export.export(q, (x, None), dynamic_shapes=dims)
    longer = torch.randn(9, 5, 4)
    assert torch.equal(program.module()(longer, None)[0], q(longer)[0])


@torch.no_grad()
@pytest.mark.parametrize("cell", LAYERS)
def test_other_backends_multiply_with_floats(cell):
    for L in (1, 2):
        module, q = make(cell, 4, 20, num_layers=L, bidirectional=True, library=rnnkernels)
        for name in q._scales:
            weight = getattr(module, name.removesuffix("_scale"))
            weight.copy_(getattr(q, name.removesuffix("_scale")) * getattr(q, name)[:, None])
        x, hx = torch.randn(6, 3, 4), random_states(q, 3)
        with backends.force("reference"):
            expected = flat(module(x, hx))
            for name, a, b in zip("yhc", flat(q(x, hx)), expected, strict=False):
                assert_close(name, a, b)
        weights, scales = [q._buffers[n] for n in q._weights], [q._buffers[n] for n in q._scales]
        kind = (*MODES[q.mode][:1], L, True, True, 20, q.proj_size, MODES[q.mode][1], None)
        y, _ = ops.stack_of_layers(x, hx if q.mode == "LSTM" else [hx], weights, *kind, scales)
        assert_close("without a kernel", y, expected[0])


def test_errors():
    module, q = make("lstm", 4, 5)
    x, two = torch.randn(6, 3, 4), torch.randn(2, 3, 5)

    class Own(nn.LSTM):
        pass

    with pytest.raises(ValueError, match=r"quantize_dynamic: 1\.weight_ih_l0 must be float32, but is float64"):
        rnnkernels.quantize_dynamic(nn.Sequential(nn.ReLU(), nn.GRU(3, 4).double()))
    module.weight_hh_l0.data[1, 1] = float("inf")
    with pytest.raises(ValueError, match="quantize_dynamic: weight_hh_l0 must be finite"):
        rnnkernels.quantize_dynamic(module)
    with pytest.warns(UserWarning, match=r"quantize_dynamic left subclasses alone: 0 \(Own\)"):
        assert type(rnnkernels.quantize_dynamic(nn.Sequential(Own(3, 4)))[0]) is Own
    with pytest.raises(RuntimeError, match="QuantizedLSTM is for inference and has no gradients"):
        q(x.clone().requires_grad_())
    for wrong, kind, words in (
        ((x.double(),), ValueError, "QuantizedLSTM takes float32, but got Double"),
        ((x[..., :3],), RuntimeError, "input.size\\(-1\\) must be equal to input_size. Expected 4, got 3"),
        ((x, (two, two)), RuntimeError, r"Expected hidden\[0\] size \(1, 3, 5\), got \[2, 3, 5\]"),
        ((x[:0],), RuntimeError, "Expected sequence length to be larger than 0"),
        ((x[None],), ValueError, "LSTM: Expected input to be 2D or 3D, got 4D"),
    ):
        with pytest.raises(kind, match=words):
            q(*wrong)
    if CPP:
        weights, scales = [q._buffers[n] for n in q._weights], [q._buffers[n] for n in q._scales]
        run = lambda w, s, x=x: ops.stack(x, [], w, "lstm", 1, False, True, 5, 0, None, None, s)  # noqa: E731
        for args in (
            (weights, scales[:1]), (weights, [s.double() for s in scales]), (weights, [s[:3] for s in scales]),
            ([weights[0].float(), *weights[1:]], scales), (weights, None), (weights, scales, x.double()),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="rnnkernels: "):
                run(*args)
