"""lengths, reset and return_cell_states of the modules: against packing, pieces and torch.nn; and wrong arguments."""

import pytest
import torch
from common import assert_close
from test_modules import LAYERS, B, H, I, T, both, flat, states
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnkernels

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
LENGTHS = torch.tensor([2, T, 3])
OPTIONS = {"zoneout": 0.3, "layer_norm": True, "recurrent_dropout": 0.2}


def map_states(f, hx):
    return tuple(map(f, hx)) if isinstance(hx, tuple) else f(hx)


@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("bidirectional", (False, True))
@pytest.mark.parametrize("cell", LAYERS)
def test_lengths_equal_packing_in_torch(cell, bidirectional, batch_first):
    """Outputs and every gradient; lengths as a tensor of either kind and as a list."""
    name, extra = LAYERS[cell]
    theirs, ours = both(
        name, I, H, 2, bidirectional=bidirectional, batch_first=batch_first, dtype=torch.float64, **extra
    )
    x = torch.randn((B, T, I) if batch_first else (T, B, I), dtype=torch.float64)
    hx = states(name, 2 * (1 + bidirectional), B, h=extra.get("proj_size", H))

    def packed(module):
        y, last = module(pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False), hx)
        return [pad_packed_sequence(y, batch_first)[0], *flat(last)]

    expected = packed(theirs)
    loss = lambda outputs: sum(o.sin().sum() for o in outputs)  # noqa: E731
    wanted = torch.autograd.grad(loss(expected), [*flat(hx), *theirs.parameters()])
    for given in (LENGTHS, LENGTHS.int(), LENGTHS.tolist()):
        found = flat(ours(x, hx, lengths=given))
        for k, (a, e) in enumerate(zip(found, expected, strict=True)):
            assert_close(f"output {k}", a, e)
        grads = torch.autograd.grad(loss(found), [*flat(hx), *ours.parameters()])
        names = [f"hx {k}" for k in range(len(flat(hx)))] + [n for n, _ in ours.named_parameters()]
        for n, a, e in zip(names, grads, wanted, strict=True):
            assert_close(f"gradient of {n}", a, e)
    with torch.no_grad():
        for k, (a, e) in enumerate(zip(flat(ours(x, hx, lengths=LENGTHS)), packed(ours), strict=True)):
            assert torch.equal(a, e), f"output {k} without grad"


@pytest.mark.parametrize("cell", LAYERS)
def test_rows_of_length_zero(cell):
    name, extra = LAYERS[cell]
    _, ours = both(name, I, H, 2, bidirectional=True, dtype=torch.float64, **extra)
    hx = states(name, 4, B, h=extra.get("proj_size", H))
    x = torch.randn(T, B, I, dtype=torch.float64)
    y, last = ours(x, hx, lengths=[0, 4, 0])
    assert not y[:, [0, 2]].any() and not y[4:].any() and y[:4, 1].any(1).all()
    for s, h in zip(flat(last), flat(hx), strict=True):
        assert torch.equal(s[:, [0, 2]], h[:, [0, 2]])
    again = torch.where(torch.arange(T)[:, None, None] < torch.tensor([0, 4, 0])[:, None], x, float("nan"))
    assert torch.equal(ours(again, hx, lengths=[0, 4, 0])[0], y)  # what lies past the end is not looked at


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_packed_equals_lengths_with_options(name, options):
    module = getattr(rnnkernels, name)(I, H, 2, bidirectional=True, dtype=torch.float64, **options).eval()
    x, cells = torch.randn(T, B, I, dtype=torch.float64), {"return_cell_states": True} if name == "LSTM" else {}
    y, last, *c = module(x, lengths=LENGTHS, **cells)
    for order in (False, True):
        rows = [1, 2, 0] if order else [0, 1, 2]
        packed, packed_last, *packed_c = module(
            pack_padded_sequence(x[:, rows], LENGTHS[rows], enforce_sorted=order), **cells
        )
        assert isinstance(packed, PackedSequence)
        assert_close("y", pad_packed_sequence(packed)[0], y[:, rows])
        for a, e in zip(flat(packed_last), flat(last), strict=True):
            assert_close("last", a, e[:, rows])
        for a, e in zip(packed_c, c, strict=True):
            assert_close("c", pad_packed_sequence(a)[0], e[:, rows])
    whole, *rest = module(pack_padded_sequence(x, [T] * B), **cells)  # no row is shorter
    assert_close("y", whole.data, module(x)[0].flatten(0, 1))
    assert not rest[1:] or isinstance(rest[1], PackedSequence)


@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("restart", (False, True))
@pytest.mark.parametrize("cell", LAYERS)
def test_resets_equal_separate_pieces(cell, restart, batch_first):
    """And no gradient crosses a reset."""
    name, extra = LAYERS[cell]
    _, ours = both(name, I, H, 2, batch_first=batch_first, dtype=torch.float64, **extra)
    turn = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    x = torch.randn(T, B, I, dtype=torch.float64).requires_grad_()
    hx, fresh = (states(name, 2, B, h=extra.get("proj_size", H)) for _ in range(2))
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 0] = reset[4, 0] = reset[0, 1] = True
    y, last = ours(turn(x), hx, reset=(turn(reset), fresh) if restart else turn(reset))
    y = turn(y)
    zeros = map_states(torch.zeros_like, hx)
    for n, pieces in enumerate(([(0, 2), (2, 4), (4, T)], [(0, T)], [(0, T)])):
        for start, stop in pieces:
            begin = (fresh if restart else zeros) if reset[start, n] else hx
            part, end = ours(turn(x[start:stop, n : n + 1]), map_states(lambda s, n=n: s[:, n : n + 1], begin))
            assert_close(f"row {n} from {start}", y[start:stop, n : n + 1], turn(part))
        for a, e in zip(flat(last), flat(end), strict=True):
            assert_close(f"state of row {n}", a[:, n : n + 1], e)
    dx, *dhx = torch.autograd.grad(y[4:, 0].sum(), [x, *flat(hx)], retain_graph=True)
    assert not dx[:4].any() and dx[4:, 0].all() and not any(d.any() for d in dhx)
    found = torch.autograd.grad(y[4:, 0].sum(), flat(fresh), allow_unused=True)
    assert all((d is not None and d[:, 0].any() and not d[:, 1:].any()) if restart else d is None for d in found)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_unbatched_reset(name):
    module = getattr(rnnkernels, name)(I, H, 2, batch_first=True, dtype=torch.float64)
    x, reset = torch.randn(T, I, dtype=torch.float64), torch.arange(T) == 3
    fresh = map_states(lambda s: s.detach(), states(name, 2))
    for given, alone in (
        (reset, reset[None]),
        ((reset, fresh), (reset[None], map_states(lambda s: s[:, None], fresh))),
    ):
        y, last = module(x, reset=given)
        batched, batched_last = module(x[None], reset=alone)
        assert torch.equal(y, batched[0]) and y.shape == (T, H)
        assert all(torch.equal(a, e[:, 0]) for a, e in zip(flat(last), flat(batched_last), strict=True))


@pytest.mark.parametrize("extra", [{}, {"proj_size": 3}, {"zoneout": (0.1, 0.5)}, {"layer_norm": True}])
def test_cell_states(extra):
    """c after every step is the final c of the sequence up to there, in every layout; gradients pass through it."""
    module = rnnkernels.LSTM(I, H, 2, dtype=torch.float64, **extra).eval()
    x = torch.randn(T, B, I, dtype=torch.float64).requires_grad_()
    y, last, c = module(x, return_cell_states=True)
    assert c.shape == (T, B, H) and c.dtype == y.dtype
    for t in range(T):
        assert_close(f"c after {t}", c[t], module(x[: t + 1])[1][1][1])
    assert torch.equal(y, module(x)[0])
    (dx,) = torch.autograd.grad(c[2].sum(), x)
    (expected,) = torch.autograd.grad(module(x[:3])[1][1][1].sum(), x)
    assert_close("dx", dx, expected)
    assert_close("unbatched", module(x[:, 0], return_cell_states=True)[2], c[:, 0])
    module.batch_first = True
    assert_close("batch_first", module(x.transpose(0, 1), return_cell_states=True)[2], c.transpose(0, 1))
    both = rnnkernels.LSTM(I, H, bidirectional=True, dtype=torch.float64)
    y, (_, c_n), c = both(x, lengths=LENGTHS, return_cell_states=True)
    for b, n in enumerate(LENGTHS):
        assert torch.equal(c[n - 1, b, :H], c_n[0, b]) and torch.equal(c[0, b, H:], c_n[1, b])
        assert not c[n:, b].any()


def test_cell_states_in_low_precision():
    module = rnnkernels.LSTM(I, H, dtype=torch.bfloat16)
    y, (_, c_n), c = module(torch.randn(T, B, I).bfloat16(), return_cell_states=True)
    assert c.dtype == torch.bfloat16 and torch.equal(c[-1], c_n[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.float()(torch.randn(T, B, I), return_cell_states=True)[2].dtype == torch.bfloat16


r = torch.randn
MASK = torch.zeros(6, 3, dtype=torch.bool)
PACKED = pack_padded_sequence(r(6, 3, 4), [6, 4, 1])
BAD_CALLS = {
    "lengths of others": (lambda m: m(r(6, 3, 4), lengths=[1, 2]), ValueError, "got 2 .batch_size=3"),
    "lengths 2D": (lambda m: m(r(6, 3, 4), lengths=torch.ones(3, 1).long()), ValueError, "got 2D Long"),
    "lengths dtype": (lambda m: m(r(6, 3, 4), lengths=torch.ones(3)), ValueError, "got 1D Float tensor"),
    "lengths bool": (lambda m: m(r(6, 3, 4), lengths=torch.ones(3).bool()), ValueError, "got 1D Bool tensor"),
    "lengths complex": (lambda m: m(r(6, 3, 4), lengths=torch.ones(3).cdouble()), ValueError, "1D torch.complex128"),
    "lengths, not whole": (lambda m: m(r(6, 3, 4), lengths=[1, 2.5, 3]), ValueError, "got 1D Float tensor"),
    "lengths, a number": (lambda m: m(r(6, 3, 4), lengths=6), TypeError, "'lengths' to be a tensor or a list.*got int"),
    "lengths, nowhere": (
        lambda m: m(r(6, 3, 4), lengths=torch.ones(3, device="meta").long()), ValueError,
        "on the CPU or on the device of the input, cpu, but got meta",
    ),
    "negative": (lambda m: m(r(6, 3, 4), lengths=[1, -1, 2]), ValueError, "at least 0, but found -1"),
    "too long": (lambda m: m(r(6, 3, 4), lengths=[1, 7, 2]), ValueError, "at most 6, .*, but found 7"),
    "lengths, unbatched": (lambda m: m(r(6, 4), lengths=[6]), ValueError, "expected input to be 3D, got 2D tensor"),
    "lengths, packed": (lambda m: m(PACKED, lengths=[6, 4, 1]), ValueError, "lengths is for padded input"),
    "reset, packed": (lambda m: m(PACKED, reset=MASK), ValueError, "reset is for padded input"),
    "reset dtype": (lambda m: m(r(6, 3, 4), reset=MASK.float()), ValueError, "a bool tensor of shape .6, 3., but got"),
    "reset shape": (lambda m: m(r(6, 3, 4), reset=MASK.T), ValueError, r"of shape \(6, 3\), but got .* \(3, 6\)"),
    "reset unbatched": (lambda m: m(r(6, 4), reset=MASK), ValueError, r"of shape \(6,\)"),
    "reset device": (lambda m: m(r(6, 3, 4), reset=MASK.to("meta")), ValueError, "Expected 'reset' on cpu"),
    "reset of three": (lambda m: m(r(6, 3, 4), reset=[MASK, MASK, MASK]), ValueError, "a mask or a pair"),
    "reset number": (lambda m: m(r(6, 3, 4), reset=3), TypeError, "Expected 'reset' to be a bool tensor, but got int"),
    "reset state shape": (
        lambda m: m(r(6, 3, 4), reset=(MASK, r(1, 2, 5))), RuntimeError,
        r"Expected reset state size \(1, 3, 5\), got \[1, 2, 5\]",
    ),
    "reset state dims": (lambda m: m(r(6, 3, 4), reset=(MASK, r(3, 5))), RuntimeError, "should also be 3-D but got"),
    "reset state dtype": (
        lambda m: m(r(6, 3, 4), reset=(MASK, r(1, 3, 5).double())), RuntimeError,
        "same dtype, but got Double and Float",
    ),
    "reset state device": (
        lambda m: m(r(6, 3, 4), reset=(MASK, torch.empty(1, 3, 5, device="meta"))), RuntimeError,
        "Input and reset state tensors are not at the same device",
    ),
    "4D": (lambda m: m(r(2, 2, 2, 4), lengths=[1]), ValueError, "GRU: Expected input to be 2D or 3D, got 4D"),
    "input size": (lambda m: m(r(6, 3, 3), lengths=[1, 2, 3]), RuntimeError, "must be equal to input_size"),
    "cells of a GRU": (lambda m: m(r(6, 3, 4), return_cell_states=True), ValueError, "gru has no cell state"),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.1}], ids=["plain", "zoneout"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_wrong_calls(name, options):
    call, kind, words = BAD_CALLS[name]
    module = rnnkernels.GRU(4, 5, **options)
    before = torch.get_rng_state()
    module.register_forward_pre_hook(lambda *_: torch.set_rng_state(before))  # the input of the call draws too
    with pytest.raises(kind, match=words):
        call(module)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn, so nothing was computed


def test_a_pair_without_states_restarts_from_zero():
    for module in (rnnkernels.GRU(4, 5), rnnkernels.LSTM(4, 5)):
        x, mask = r(6, 3, 4), torch.rand(6, 3) < 0.4
        expected = module(x, reset=mask)[0]
        assert torch.equal(module(x, reset=(mask, None))[0], expected)
        function = getattr(rnnkernels.functional, module._rk_kind[0])
        assert torch.equal(function(x, None, list(module.parameters()), reset=(mask, None))[0], expected)


def test_other_wrong_calls():
    weights = list(rnnkernels.LSTM(4, 5).parameters())
    with pytest.raises(RuntimeError, match="lstm expects 2 states to restart from, got 1"):
        rnnkernels.functional.lstm(r(6, 3, 4), None, weights, reset=(MASK, r(1, 3, 5)))
    module = rnnkernels.GRU(4, 5, bidirectional=True)
    with pytest.raises(ValueError, match="reset is not defined for a bidirectional RNN"):
        module(r(6, 3, 4), reset=MASK)
    module = rnnkernels.LSTM(4, 5)
    with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
        module(r(6, 3, 4), reset=(MASK, (r(1, 3, 5), r(1, 3, 5), r(1, 3, 5))))
    with pytest.raises(RuntimeError, match=r"Expected reset state\[1\] size \(1, 3, 5\)"):
        module(r(6, 3, 4), reset=(MASK, (r(1, 3, 5), r(1, 2, 5))))
