"""GRU-D, EA-LSTM and Li-GRU as whole layers, beside loops after their papers."""

import copy
import re

import numpy as np
import pytest
import torch
from common import assert_close
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

import rnnkernels

T, B, I, H = 7, 4, 3, 5  # noqa: E741
double = {"dtype": torch.float64}


def grud_loop(layer, values, mask, times):
    """GRU-D step by step, (T, B, I), after section 2.4 of the paper, with torch.nn's reset."""
    gru = layer.gru
    h, last, since, ys = values.new_zeros(B, H), layer.mean.expand(B, I), torch.zeros(B, I, **double), []
    for t in range(T):
        if t:
            step = (times[t] - times[t - 1])[:, None]
            since = torch.where(mask[t - 1], step, step + since)
        gamma_x = torch.exp(-F.relu(layer.weight_decay_x * since + layer.bias_decay_x))
        x = torch.where(mask[t], values[t], gamma_x * last + (1 - gamma_x) * layer.mean)
        last = torch.where(mask[t], values[t], last)
        h = torch.exp(-F.relu(layer.decay_h(since))) * h
        given = torch.cat([x, mask[t].double()], 1)
        h = torch.gru_cell(given, h, gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
        ys.append(h)
    return torch.stack(ys)


def gradients(y, module, *leaves):
    """By name, for a sum of y with different weights."""
    weights = torch.linspace(-1, 1, y.numel(), **double).view_as(y)
    names = [name for name, _ in module.named_parameters()]
    grads = torch.autograd.grad(y, [*module.parameters(), *leaves], weights)
    return dict(zip([*names, *range(len(leaves))], grads, strict=True))


@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("timed", (False, True))
def test_grud(batch_first, timed):
    torch.manual_seed(0)
    layer = rnnkernels.GRUD(I, H, mean=torch.randn(I), batch_first=batch_first, **double)
    values, mask = torch.randn(T, B, I, **double, requires_grad=True), torch.rand(T, B, I) < 0.4
    mask[:, 0], mask[:, 1] = False, True
    times = torch.rand(T, B, **double).cumsum(0) if timed else torch.arange(T, **double)[:, None].expand(T, B)
    expected = grud_loop(layer, values, mask, times)
    turn = (lambda v: v.transpose(0, 1)) if batch_first else (lambda v: v)
    with_gaps = torch.where(mask, values, torch.nan)
    y, h = layer(turn(with_gaps), turn(mask), turn(times) if timed else None)
    assert_close("y", turn(y), expected)
    assert torch.equal(h[0], turn(y)[-1])
    got, wanted = gradients(turn(y), layer, values), gradients(expected, layer, values)
    for name, value in got.items():
        assert_close(f"gradient of {name}", value, wanted[name])


def test_grud_takes_lengths_resets_and_states():
    """As ``Recurrent`` does: rows that end, and a state that begins anew."""
    layer = rnnkernels.GRUD(I, H, batch_first=True, zoneout=0.3).eval()
    values, mask = torch.randn(B, T, I), torch.rand(B, T, I) < 0.5
    lengths, reset = torch.tensor([T, 2, 0, 5]), torch.zeros(B, T, dtype=torch.bool)
    reset[0, 3] = True
    y, h = layer(values, mask, lengths=lengths, reset=reset)
    assert not y[1, 2:].any() and not y[2].any() and torch.equal(h[0, 1], y[1, 1])
    x, gamma = layer.filled(values, mask)
    rest, _ = layer.gru(torch.cat([x, mask.float()], 2)[:1, 3:], gamma=gamma[:1, 3:])
    assert_close("after a reset", y[0, 3:], rest[0])
    again, _ = layer(values[:, :3], mask[:, :3])
    assert_close("before a reset", y[0, :3], again[0])


@pytest.mark.parametrize("call, message", (
    (lambda layer, v, m: layer(v, m.float()), "mask should be a bool tensor, got torch.float32"),
    (lambda layer, v, m: layer(v, m[:2]), "expected values and mask of the same three dimensions"),
    (lambda layer, v, m: layer(v, m, torch.zeros(2)), r"times should have shape \(7, 4\), got \(2,\)"),
    (lambda layer, v, m: rnnkernels.GRUD(I, H, mean=[0.0]), r"mean should have shape \(3,\), got \(1,\)"),
    (lambda layer, v, m: rnnkernels.LiGRU(I, H, norm="group"), "norm should be 'batch', 'layer' or None, got 'group'"),
    (lambda layer, v, m: rnnkernels.LiGRU(I, H)(v[0]), "Expected input to be 3D, got 2D"),
    (lambda layer, v, m: rnnkernels.LiGRU(I, H)(v, lengths=[1, 2, 3]), r"`len\(lengths\)` to be equal to batch_size"),
    (lambda layer, v, m: layer(pack_sequence([v[0]]), m), "GRUD does not take a PackedSequence: pad the input and"),
    (lambda layer, v, m: rnnkernels.LiGRU(I, H)(pack_sequence([v[0]])), "LiGRU does not take a PackedSequence"),
))  # fmt: skip
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(rnnkernels.GRUD(I, H), torch.randn(T, B, I), torch.ones(T, B, I, dtype=torch.bool))


@pytest.mark.parametrize("kind", (list, np.array, lambda numbers: torch.tensor(numbers, **double)))
@pytest.mark.parametrize("dtype", (None, torch.float64))
def test_means_have_the_dtype_of_the_parameters(kind, dtype):
    mean = kind([1.0, 2.0, 3.0])
    layer = rnnkernels.GRUD(I, H, mean=mean, dtype=dtype)
    assert layer.mean.tolist() == [1.0, 2.0, 3.0] and layer.mean.dtype == layer.decay_h.weight.dtype
    values = torch.randn(T, B, I, dtype=dtype)
    y, _ = layer(values, torch.zeros_like(values, dtype=torch.bool))
    assert y.dtype == values.dtype
    mean[0] = 5.0
    assert layer.mean[0] == 1.0


def test_ealstm():
    """Against a loop; the attributes get their gradients."""
    torch.manual_seed(0)
    layer = rnnkernels.EALSTM(I, 6, H, batch_first=True, num_layers=2, **double)
    x, static = torch.randn(B, T, I, **double), torch.randn(B, 6, **double, requires_grad=True)
    gate, seen = torch.sigmoid(layer.input_gate(static)), x.transpose(0, 1)
    for at in ("l0", "l1"):
        w_ih, w_hh, b_ih, b_hh = (
            getattr(layer.lstm, f"{name}_{at}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = torch.zeros(B, H, **double)
        ys = []
        for step in seen:
            f, g, o = (F.linear(step, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(3, 1)
            c = f.sigmoid() * c + gate * g.tanh()
            h = o.sigmoid() * c.tanh()
            ys.append(h)
        seen = torch.stack(ys)
    y, (h_n, c_n) = layer(x, static)
    assert_close("y", y, seen.transpose(0, 1))
    assert_close("h_n", h_n[1], h)
    assert_close("c_n", c_n[1], c)
    got, wanted = gradients(y, layer, static), gradients(seen.transpose(0, 1), layer, static)
    for name, value in got.items():
        assert_close(f"gradient of {name}", value, wanted[name])


def ligru_loop(layer, x, lengths):
    """Li-GRU step by step and row by row, (T, B, I), after section III of the paper."""
    inside = torch.arange(T)[:, None] < lengths
    last = []
    for n in range(0, len(layer.layers), layer.D):
        ys = []
        for k in range(layer.D):
            wx = layer.products[n + k](x)
            at = wx[inside]
            if isinstance(layer.norms[n + k], torch.nn.BatchNorm1d):
                at = (at - at.mean(0)) / torch.sqrt(at.var(0, correction=0) + 1e-5)
            elif isinstance(layer.norms[n + k], torch.nn.LayerNorm):
                at = F.layer_norm(at, at.shape[-1:])
            wx = torch.zeros_like(wx).masked_scatter(inside[..., None], at)
            rows, h_n = [], []
            for b, length in enumerate(lengths.tolist()):
                h, steps = x.new_zeros(H), {}
                for t in reversed(range(length)) if k else range(length):
                    z, n_ = (wx[t, b] + layer.layers[n + k].weight_hh_l0 @ h).chunk(2)
                    h = z.sigmoid() * h + (1 - z.sigmoid()) * n_.relu()
                    steps[t] = h
                rows.append(torch.stack([steps.get(t, x.new_zeros(H)) for t in range(T)]))
                h_n.append(h)
            ys.append(torch.stack(rows, 1)), last.append(torch.stack(h_n))
        x = torch.cat(ys, 2)
    return x, torch.stack(last)


@pytest.mark.parametrize("norm", ("batch", "layer", None))
@pytest.mark.parametrize("ragged", (False, True))
def test_ligru(norm, ragged):
    torch.manual_seed(1)
    layer = rnnkernels.LiGRU(I, H, 2, bidirectional=True, batch_first=True, norm=norm, **double)
    x = torch.randn(B, T, I, **double, requires_grad=True)
    lengths = torch.tensor([T, 3, 0, 5]) if ragged else torch.full((B,), T)
    expected, expected_h = ligru_loop(layer, x.transpose(0, 1), lengths)
    y, h = layer(x, lengths=lengths if ragged else None)
    assert_close("y", y, expected.transpose(0, 1))
    assert_close("h_n", h, expected_h)
    used = torch.nn.ModuleList([layer.products, layer.layers])
    got, wanted = gradients(y, used, x), gradients(expected.transpose(0, 1), used, x)
    for name, value in got.items():
        assert_close(f"gradient of {name}", value, wanted[name])


def test_ligru_in_pieces():
    """With the state handed on, in evaluation, which normalises by running statistics."""
    layer = rnnkernels.LiGRU(I, H, 2)
    x = torch.randn(T, B, I)
    layer(x)
    layer.eval()
    y, h = layer(x)
    first, middle = layer(x[:3])
    second, last = layer(x[3:], middle)
    assert_close("y", torch.cat([first, second]), y)
    assert_close("h_n", last, h)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")  # Dynamo does
def test_they_compile_and_pickle(tmp_path):
    layer = rnnkernels.EALSTM(I, 2, H)
    x, static = torch.randn(T, B, I), torch.randn(B, 2)
    y = layer(x, static)[0]
    assert_close("compiled", torch.compile(layer, fullgraph=True, backend="eager")(x, static)[0], y)
    torch.save(layer, tmp_path / "layer.pt")
    assert torch.equal(torch.load(tmp_path / "layer.pt", weights_only=False)(x, static)[0], y)
    grud = rnnkernels.GRUD(I, H)
    mask = torch.rand(T, B, I) < 0.5
    assert_close("compiled", torch.compile(grud, fullgraph=True, backend="eager")(x, mask)[0], grud(x, mask)[0])


def test_grud_at_times_far_from_zero():
    """Seconds since 1970 as integers, and float32 beyond its integers' distances: only differences count."""
    torch.manual_seed(0)
    layer, values, mask = rnnkernels.GRUD(I, H), torch.randn(T, B, I), torch.rand(T, B, I) < 0.4
    times = torch.randint(1, 9, (T, B)).cumsum(0)
    expected = layer(values, mask, times)[0]
    for shifted in (times + 1_700_000_000, (times + 1_700_000_000).double()):
        assert torch.equal(layer(values, mask, shifted)[0], expected)


class ByIndex(rnnkernels.LiGRU):
    """Li-GRU whose batch norm is torch's module on the rows that count."""

    @staticmethod
    def normed(norm, wx, inside):
        if inside is None:
            return norm(wx.flatten(0, 1)).view_as(wx)
        return torch.zeros_like(wx).masked_scatter(inside[..., None], norm(wx[inside]))


@pytest.mark.parametrize("train", (True, False))
@pytest.mark.parametrize("settings", ({}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}))
def test_batch_norm_of_the_rows_inside(train, settings):
    torch.manual_seed(0)
    layers = rnnkernels.LiGRU(I, H, 2, bidirectional=True, **double), ByIndex(I, H, 2, bidirectional=True, **double)
    for layer in layers:
        layer.norms = torch.nn.ModuleList(torch.nn.BatchNorm1d(2 * H, **settings, **double) for _ in layer.norms)
    layers[1].load_state_dict(layers[0].state_dict())
    found, x, lengths = [], torch.randn(T, B, I, **double), torch.tensor([T, 1, 0, 4])
    for layer in layers:
        layer.train()(x, lengths=lengths)  # running statistics
        layer.train(train)
        leaf = x.clone().requires_grad_()
        y, h = layer(leaf, lengths=lengths)
        found.append(
            {"y": y, "h": h, **gradients(y, layer, leaf), **{name: b.double() for name, b in layer.named_buffers()}}
        )
    for name, value in found[0].items():
        assert_close(str(name), value, found[1][name])


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")  # of Dynamo
@pytest.mark.parametrize("train", (True, False))
def test_ligru_has_no_nan_of_the_padding_and_is_one_graph(train):
    torch.manual_seed(0)
    layer, lengths = rnnkernels.LiGRU(I, H, bidirectional=True).train(train), torch.tensor([T, 2, 3, 5])
    x = torch.randn(T, B, I)
    padding = torch.arange(T)[:, None] >= lengths
    x[padding] = torch.nan
    y, _ = layer(x, lengths=lengths)
    y.sum().backward()
    assert not y[padding].any() and all(p.grad.isfinite().all() for p in layer.parameters())
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    other = copy.deepcopy(layer)
    assert_close("y", compiled(x, lengths=lengths)[0], other(x, lengths=lengths)[0])
    if train:
        with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training, got .* \[1, 10\]"):
            layer(x[:1], lengths=[1, 0, 0, 0])


X = torch.randn(T, B, I)
MASK = torch.ones(T, B, I, dtype=torch.bool)
ERRORS = {
    "Li-GRU's states": (lambda: rnnkernels.LiGRU(I, H)(X, torch.zeros(2, B, H)),
                        RuntimeError, "Expected hidden size (1, 4, 5), got [2, 4, 5]"),
    "of two layers": (lambda: rnnkernels.LiGRU(I, H, 2)(X, torch.zeros(1, B, H)),
                      RuntimeError, "Expected hidden size (2, 4, 5), got [1, 4, 5]"),
    "a tuple": (lambda: rnnkernels.LiGRU(I, H)(X, (X, X)), TypeError, "argument 'hx' must be Tensor, not tuple"),
    "Li-GRU's input": (lambda: rnnkernels.LiGRU(I, H)(X[..., :2]), RuntimeError, "Expected 3, got 2"),
    "no layers": (lambda: rnnkernels.LiGRU(I, H, 0), ValueError, "num_layers must be greater than zero"),
    "no size": (lambda: rnnkernels.LiGRU(I, -4), ValueError, "hidden_size must be greater than zero"),
    "biases": (lambda: rnnkernels.LiGRU(I, H, bias=True), TypeError, "LiGRU has no biases but those of its norm"),
    "no steps": (lambda: rnnkernels.LiGRU(I, H)(X[:0]), RuntimeError, "Expected sequence length to be larger than 0"),
    "GRU-D without steps": (lambda: rnnkernels.GRUD(I, H)(X[:0], MASK[:0]),
                            RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
    "GRU-D's input": (lambda: rnnkernels.GRUD(I, H)(X[..., :2], MASK[..., :2]), RuntimeError, "Expected 3, got 2"),
    "no mask": (lambda: rnnkernels.GRUD(I, H)(X, None), TypeError, "Expected mask to be a tensor, got NoneType"),
    "two directions": (lambda: rnnkernels.GRUD(I, H, bidirectional=True), ValueError, "GRUD has one direction"),
    "a list": (lambda: rnnkernels.LiGRU(I, H)([1]), TypeError, "LiGRU: Expected input to be a tensor, got list"),
    "GRU-D's list": (lambda: rnnkernels.GRUD(I, H)([1], MASK), TypeError, "GRUD: Expected input to be a tensor"),
    "times": (lambda: rnnkernels.GRUD(I, H)(X, MASK, [1, 2]), TypeError, "Expected times to be a tensor, got list"),
    "no attributes": (lambda: rnnkernels.EALSTM(I, 2, H)(X, None),
                      TypeError, "Expected static to be a tensor, got NoneType"),
    "attributes": (lambda: rnnkernels.EALSTM(I, 2, H)(X, torch.zeros(B + 1, 2)),
                   RuntimeError, "Expected static size (4, 2), got [5, 2]"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_came(case):
    call, kind, text = ERRORS[case]
    with pytest.raises(kind, match=re.escape(text)):
        call()
