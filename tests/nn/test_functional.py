"""functional.rnn, lstm, gru: torch.lstm's arguments, and what is more: lengths of any order, and resets."""

import pytest
import torch
from common import assert_close
from pairwise import cases
from test_modules import LAYERS, B, H, I, T, both, states
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnnkernels import functional

FUNCTIONS = {
    "rnn": (functional.rnn, torch.rnn_tanh, {}),
    "relu": (functional.rnn, torch.rnn_relu, {"nonlinearity": "relu"}),
    "gru": (functional.gru, torch.gru, {}),
    "lstm": (functional.lstm, torch.lstm, {}),
    "projected": (functional.lstm, torch.lstm, {}),
}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def case(cell, layers=2, bidirectional=False, bias=True, seed=0):
    """``module, params, x (T, B, I), hx``."""
    name, extra = LAYERS[cell]
    module, _ = both(name, I, H, layers, bias=bias, bidirectional=bidirectional, dtype=torch.float64, **extra)
    torch.manual_seed(seed)
    hx = states(name, layers * (1 + bidirectional), B, h=extra.get("proj_size", H))
    return module, list(module.parameters()), torch.randn(T, B, I, dtype=torch.float64), hx


def tail(out):
    """``output, states`` of a function whose states come one by one."""
    return out[0], out[1:]


@pytest.mark.parametrize("cell, bidirectional, batch_first, bias", cases(FUNCTIONS, *[(True, False)] * 3))
def test_equal_to_torch(cell, bidirectional, batch_first, bias):
    ours, theirs, extra = FUNCTIONS[cell]
    _, params, x, hx = case(cell, 2, bidirectional, bias)
    x = x.transpose(0, 1) if batch_first else x
    settings = (params, bias, 2, 0.3, True, bidirectional, batch_first)
    found = []
    for function, more in ((theirs, {}), (ours, extra)):
        torch.manual_seed(4)
        found.append(function(x, hx, *settings, **more))
    assert len(found[0]) == len(found[1])
    for n, (e, a) in enumerate(zip(*found, strict=True)):
        assert_close(f"output {n}", a, e)
    zeros = tuple(torch.zeros_like(h) for h in hx) if isinstance(hx, tuple) else torch.zeros_like(hx)
    for a, e in zip(ours(x, None, params, bias, 2, 0.0, False, bidirectional, batch_first, **extra),
                    ours(x, zeros, params, bias, 2, 0.0, False, bidirectional, batch_first, **extra),
                    strict=True):  # fmt: skip
        assert torch.equal(a, e)


@pytest.mark.parametrize("bidirectional", (True, False))
@pytest.mark.parametrize("cell", FUNCTIONS)
def test_lengths_equal_packing(cell, bidirectional):
    """Any order; and a row of length 0, which cannot be packed, gives zeros and its initial state."""
    function, _, extra = FUNCTIONS[cell]
    module, params, x, hx = case(cell, 2, bidirectional)
    lengths = torch.tensor([2, T, 3])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    expected, hidden = module(packed, hx)
    expected = pad_packed_sequence(expected)[0]
    y, last = tail(function(x, hx, params, True, 2, 0.0, False, bidirectional, lengths=lengths, **extra))
    assert_close("y", y, expected)
    for n, (a, e) in enumerate(zip(last, hidden if isinstance(hidden, tuple) else (hidden,), strict=True)):
        assert_close(f"state {n}", a, e)
    for given in (lengths.int(), lengths.tolist()):
        assert torch.equal(function(x, hx, params, True, 2, 0.0, False, bidirectional, lengths=given, **extra)[0], y)

    lengths = torch.tensor([2, 0, 3])
    short, last0 = tail(function(x, hx, params, True, 2, 0.0, False, bidirectional, lengths=lengths, **extra))
    assert not short[:, 1].any() and not short[2:, 0].any()
    for a, h in zip(last0, hx if isinstance(hx, tuple) else (hx,), strict=True):
        assert torch.equal(a[:, 1], h[:, 1])


@pytest.mark.parametrize("batch_first", (True, False))
@pytest.mark.parametrize("cell", FUNCTIONS)
def test_reset_restarts_from_zero(cell, batch_first):
    function, _, extra = FUNCTIONS[cell]
    _, params, x, hx = case(cell)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 0] = reset[4, 0] = reset[0, 1] = True
    turn = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    run = lambda x, hx, **more: function(  # noqa: E731
        turn(x), hx, params, True, 2, 0.0, False, False, batch_first, **extra, **more
    )
    y, last = tail(run(x, hx, reset=turn(reset)))
    y = turn(y)
    row = lambda n: tuple(h[:, n : n + 1] for h in hx) if isinstance(hx, tuple) else hx[:, n : n + 1]  # noqa: E731
    for n, pieces in enumerate(([(0, 2), (2, 4), (4, T)], [(0, T)], [(0, T)])):
        for start, stop in pieces:
            fresh = bool(reset[start, n])
            part, end = tail(run(x[start:stop, n : n + 1], None if fresh else row(n)))
            assert_close(f"row {n} from {start}", y[start:stop, n : n + 1], turn(part))
        for a, e in zip(last, end, strict=True):
            assert_close(f"state of row {n}", a[:, n : n + 1], e)


def test_both_stages_and_gradients():
    """Gradients through lengths and resets: nothing comes from padding or from before a reset."""
    _, params, x, hx = case("gru", 1)
    x.requires_grad_()
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3] = True
    y, h = functional.gru(x, hx, params, lengths=torch.tensor([5, 6, 2]), reset=reset)
    h.sum().backward()
    assert not x.grad[5:, 0].any() and not x.grad[2:, 2].any()  # padding
    assert not x.grad[:3, :2].any() and x.grad[3:5, :2].all()  # before the reset of rows that live on
    assert not hx.grad[0, :2].any() and hx.grad[0, 2].all()


BAD_CALLS = {
    "dimensions": (lambda f, p, x, hx: f(x[0], hx, p), RuntimeError, "input must have 3 dimensions, got 2"),
    "input size": (lambda f, p, x, hx: f(x[..., :3], hx, p), RuntimeError, r"input.size\(-1\) must be equal to"),
    "dtype": (lambda f, p, x, hx: f(x.float(), hx, p), ValueError, "RNN input dtype .* does not match weight dtype"),
    "hx shape": (lambda f, p, x, hx: f(x, hx[:, :1], p), RuntimeError, r"Expected hidden size \(1, 3, 5\), got"),
    "hx dtype": (lambda f, p, x, hx: f(x, hx.float(), p), RuntimeError, "same dtype, but got Float and Double"),
    "hx device": (lambda f, p, x, hx: f(x, hx.to("meta"), p), RuntimeError, "not at the same device"),
    "too few": (lambda f, p, x, hx: f(x, hx, p[:3]), RuntimeError, "incorrect number of RNN parameters"),
    "layers": (lambda f, p, x, hx: f(x, hx, p, True, 2), RuntimeError, "incorrect number of RNN parameters"),
    "biases": (lambda f, p, x, hx: f(x, hx, p, False), RuntimeError, "incorrect number of RNN parameters"),
    "weight": (lambda f, p, x, hx: f(x, hx, [*p[:3], p[3][1:]]), RuntimeError, r"parameter 3 of shape \(15,\)"),
    "no steps": (lambda f, p, x, hx: f(x[:0], hx, p), RuntimeError, "Expected sequence length to be larger than 0"),
    "lengths shape": (lambda f, p, x, hx: f(x, hx, p, lengths=[1, 2]), ValueError, "got 2 .batch_size=3"),
    "lengths 2D": (lambda f, p, x, hx: f(x, hx, p, lengths=torch.ones(3, 1).long()), ValueError, "got 2D Long"),
    "lengths dtype": (lambda f, p, x, hx: f(x, hx, p, lengths=torch.ones(3)), ValueError, "got 1D Float tensor"),
    "negative": (lambda f, p, x, hx: f(x, hx, p, lengths=[1, -1, 2]), ValueError, "at least 0, but found -1"),
    "too long": (lambda f, p, x, hx: f(x, hx, p, lengths=[1, 7, 2]), ValueError, "at most 6, .*, but found 7"),
    "reset dtype": (lambda f, p, x, hx: f(x, hx, p, reset=torch.ones(6, 3)), ValueError, "Expected 'reset' to be a"),
    "reset shape": (lambda f, p, x, hx: f(x, hx, p, reset=torch.ones(3, 6) > 0), ValueError, r"of shape \(6, 3\)"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors(name):
    call, kind, words = BAD_CALLS[name]
    _, params, x, hx = case("gru", 1)
    with pytest.raises(kind, match=words):
        call(functional.gru, params, x, hx)


def test_errors_of_single_functions():
    _, params, x, hx = case("gru", 1, bidirectional=True)
    with pytest.raises(ValueError, match="not defined for a bidirectional RNN"):
        functional.gru(x, hx, params, bidirectional=True, reset=torch.zeros(T, B, dtype=torch.bool))
    _, params, x, hx = case("lstm", 1)
    with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
        functional.lstm(x, hx[:1], params)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size"):
        functional.lstm(x, (hx[0], hx[1][:, :1]), params)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sine'"):
        functional.rnn(x, None, params, nonlinearity="sine")
    with pytest.raises(RuntimeError, match="dropout probability has to be between 0 and 1"):
        functional.gru(x, None, list(both("GRU", I, H, 2, dtype=torch.float64)[0].parameters()), True, 2, 1.5, True)


def test_lengths_under_compile_and_vmap():
    _, params, x, hx = case("lstm", 1)
    lengths = torch.tensor([2, T, 3])
    call = lambda x, lengths: functional.lstm(x, hx, params, lengths=lengths)[0]  # noqa: E731
    expected = call(x, lengths)
    with torch.no_grad():
        hx = tuple(h.detach() for h in hx)
        assert_close("compiled", torch.compile(call, fullgraph=True, backend="aot_eager")(x, lengths), expected)
        both_x, both_lengths = torch.stack([x, x]), torch.stack([lengths, lengths.flip(0)])
        y = torch.func.vmap(call)(both_x, both_lengths)
        assert_close("vmap 0", y[0], expected)
        assert_close("vmap 1", y[1], call(x, lengths.flip(0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell, gates", [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_input_without_features(cell, gates, dtype):
    """Layers refuse it, as torch.nn's do; functions compute what the state makes of itself, as torch's do."""
    ours, theirs, _ = FUNCTIONS[cell]
    torch.manual_seed(0)
    params = [torch.randn(gates * H, n, dtype=torch.float64) for n in (0, H)]
    params += [torch.randn(gates * H, dtype=torch.float64) for _ in range(2)]
    x, hx = torch.zeros(T, B, 0, dtype=torch.float64), torch.randn(1, B, H, dtype=torch.float64)
    expected = theirs(x, (hx, hx) if cell == "lstm" else hx, params, True, 1, 0.0, False, False, False)
    hx = hx.to(dtype)
    found = ours(x.to(dtype), (hx, hx) if cell == "lstm" else hx, [p.to(dtype) for p in params])
    for a, b in zip(found, expected, strict=True):
        assert_close(cell, a, b)
