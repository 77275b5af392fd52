"""Properties that hold for any sizes: chunks, padding, packing, direction, batch, unbatched."""

import pytest
import torch
from common import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from test_modules import LAYERS, flat
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkernels
from rnnkernels import functional

FUNCTIONS = {"RNN": functional.rnn, "GRU": functional.gru, "LSTM": functional.lstm}
few = settings(deadline=None, derandomize=True, max_examples=12, database=None)
small = st.integers(1, 7)
sizes = st.fixed_dictionaries({"T": st.integers(1, 12), "B": small, "I": small, "H": st.integers(4, 19)})


def build(cell, size, seed, **kwargs):
    """A module and its input x (T, B, I), float64."""
    torch.manual_seed(seed)
    name, extra = LAYERS[cell]
    module = getattr(rnnkernels, name)(size["I"], size["H"], dtype=torch.float64, **extra, **kwargs)
    return module, torch.randn(size["T"], size["B"], size["I"], dtype=torch.float64)


def call(module, x, hx, lengths):
    """The module's own function, with lengths."""
    extra = {"nonlinearity": module.nonlinearity} if isinstance(module, rnnkernels.RNN) else {}
    return FUNCTIONS[type(module).__name__](
        x, hx, list(module.parameters()), module.bias, module.num_layers, 0.0, False, module.bidirectional,
        lengths=lengths, **extra,
    )  # fmt: skip


def assert_all_close(name, actual, expected):
    for n, (a, e) in enumerate(zip(flat(actual), flat(expected), strict=True)):
        assert_close(f"{name} {n}", a, e)


@pytest.mark.parametrize("cell", LAYERS)
@given(size=sizes, layers=st.integers(1, 2), cut=st.integers(1, 11), seed=st.integers(0, 99))
@few
def test_whole_equals_chunks_with_carried_state(cell, size, layers, cut, seed):
    module, x = build(cell, size, seed, num_layers=layers)
    parts, hx = [], None
    for chunk in x.split(cut):
        y, hx = module(chunk, hx)
        parts.append(y)
    assert_all_close("chunks", (torch.cat(parts), hx), module(x))


@pytest.mark.parametrize("cell", LAYERS)
@given(size=sizes, more=st.integers(1, 5), seed=st.integers(0, 99), data=st.data(), both=st.booleans())
@few
def test_padding_does_not_matter(cell, size, more, seed, data, both):
    """Neither how much of it there is nor what is in it, for results and for gradients."""
    module, x = build(cell, size, seed, bidirectional=both, num_layers=2)
    T, B = size["T"], size["B"]
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    dead = torch.arange(T + more)[:, None] >= lengths
    junk = torch.randn(T + more, B, size["I"], dtype=torch.float64) * 100
    found = []
    for padded in (x, torch.where(dead[..., None], junk, torch.cat([x, x.new_zeros(more, B, size["I"])]))):
        padded = padded.detach().requires_grad_()
        y, *last = call(module, padded, None, lengths)
        loss = y.square().sum() + sum(s.square().sum() for s in last)
        dx, *dweights = torch.autograd.grad(loss, [padded, *module.parameters()])
        assert not y[dead[: len(y)]].any() and not dx[dead[: len(y)]].any()
        found.append([y[:T], *last, dx[:T], *dweights])
    assert_all_close("padded", found[1], found[0])


@pytest.mark.parametrize("cell", LAYERS)
@given(size=sizes, seed=st.integers(0, 99), data=st.data(), both=st.booleans(), in_order=st.booleans())
@few
def test_packed_equals_padded(cell, size, seed, data, both, in_order):
    module, x = build(cell, size, seed, bidirectional=both, num_layers=2)
    T, B = size["T"], size["B"]
    lengths = data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
    lengths = torch.tensor(sorted(lengths, reverse=True) if in_order else lengths)
    y, hidden = module(pack_padded_sequence(x, lengths, enforce_sorted=in_order))
    padded, found = pad_packed_sequence(y, total_length=T)
    assert torch.equal(found, lengths)
    assert_all_close("packed", (padded, hidden), call(module, x, None, lengths))


@pytest.mark.parametrize("cell", LAYERS)
@given(size=sizes, seed=st.integers(0, 99))
@few
def test_reversed_input_equals_reverse_direction(cell, size, seed):
    """The second direction is the first one, with its weights, on the reversed input."""
    both, x = build(cell, size, seed, bidirectional=True)
    one, _ = build(cell, size, seed)
    for name, p in one.named_parameters():
        p.data = getattr(both, name + "_reverse").data
    (y, last), (y_one, last_one) = both(x), one(x.flip(0))
    P = y.size(2) // 2
    assert_close("y", y[..., P:], y_one.flip(0))
    for a, e in zip(flat(last), flat(last_one), strict=True):
        assert_close("state", a[1:], e)


@pytest.mark.parametrize("cell", LAYERS)
@given(size=sizes, seed=st.integers(0, 99), data=st.data())
@few
def test_rows_do_not_see_each_other(cell, size, seed, data):
    """A permuted batch gives permuted results, and a row alone, batched or not, what it gives among others."""
    module, x = build(cell, size, seed, num_layers=2, bidirectional=True)
    order = torch.tensor(data.draw(st.permutations(range(size["B"]))))
    y, last = module(x)
    assert_all_close("permuted", module(x[:, order]), (y[:, order], [s[:, order] for s in flat(last)]))
    assert_all_close("alone", module(x[:, 0]), (y[:, 0], [s[:, 0] for s in flat(last)]))
