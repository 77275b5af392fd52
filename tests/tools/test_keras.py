"""Weights of Keras layers: against Keras 3 itself where it is installed, and its equations and layouts where not."""

import os

import pytest
import torch
from common import assert_close
from torch import nn

import rnnkernels
from rnnkernels.keras import export_weights, load_weights

T, B, I, H = 7, 3, 4, 5  # noqa: E741 - the letters of modules.py
PAIRS = {
    "SimpleRNN": ("RNN", {}, {}),
    "SimpleRNN relu": ("RNN", {"activation": "relu"}, {"nonlinearity": "relu"}),
    "LSTM": ("LSTM", {}, {}),
    "LSTM relu": ("LSTM", {"activation": "relu"}, {"activation": "relu"}),
    "LSTM hard_sigmoid": ("LSTM", *[{"activation": "linear", "recurrent_activation": "hard_sigmoid"}] * 2),
    "LSTM no bias": ("LSTM", {"use_bias": False}, {"bias": False}),
    "GRU": ("GRU", {}, {}),
    "GRU before": ("GRU", *[{"reset_after": False}] * 2),
    "GRU before hard": (
        "GRU",
        *[{"reset_after": False, "activation": "relu", "recurrent_activation": "hard_sigmoid"}] * 2,
    ),
    "GRU no bias": ("GRU", {"use_bias": False}, {"bias": False}),
}

# what Keras itself does with tensors of torch
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def keras():
    """Keras 3 on torch."""
    os.environ["KERAS_BACKEND"] = "torch"
    return pytest.importorskip("keras", reason="keras is not installed (pip install keras; extra peers-test)")


def pair(keras, name, wrap=False, **layout):
    """A Keras layer that is built and has random biases, and our module with its weights."""
    ours, theirs, extra = PAIRS[name]
    keras.utils.set_random_seed(0)
    layer = getattr(keras.layers, name.split()[0])(
        H, return_sequences=True, return_state=True, bias_initializer="normal", **theirs
    )
    layer = keras.layers.Bidirectional(layer) if wrap else layer
    layer.build((None, T, I))
    module = getattr(rnnkernels, ours)(I, H, batch_first=True, bidirectional=wrap, **extra, **layout)
    return layer, load_weights(module, layer)


def compare_states(last, states):
    """Our final states with Keras's: forward's h and c, then backward's."""
    last = last if isinstance(last, tuple) else (last,)
    assert len(states) == len(last) * last[0].size(0)
    for k, s in enumerate(states):
        assert_close(f"state {k}", last[k % len(last)][k // len(last)], s.detach().cpu(), 1e-5)


@pytest.mark.parametrize("wrap", (False, True), ids=["one", "Bidirectional"])
@pytest.mark.parametrize("name", PAIRS)
def test_outputs_are_keras_s(keras, name, wrap):
    layer, module = pair(keras, name, wrap)
    x = torch.randn(B, T, I)
    expected, *states = layer(x)
    y, last = module(x)
    assert_close("y", y, expected.detach().cpu(), 1e-5)
    compare_states(last, states)


@pytest.mark.parametrize("wrap", (False, True), ids=["one", "Bidirectional"])
@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM relu", "GRU", "GRU before"])
def test_masks_are_lengths(keras, name, wrap):
    layer, module = pair(keras, name, wrap)
    x, lengths = torch.randn(B, T, I), torch.tensor([3, T, 1])
    mask = torch.arange(T) < lengths[:, None]
    for one in (layer.forward_layer, layer.backward_layer) if wrap else (layer,):
        one.zero_output_for_mask = True
    expected, *states = layer(x, mask=mask)
    y, last = module(x, lengths=lengths)
    assert_close("y", y, expected.detach().cpu(), 1e-5)
    compare_states(last, states)


@pytest.mark.parametrize("wrap", (False, True), ids=["one", "Bidirectional"])
@pytest.mark.parametrize("name", PAIRS)
def test_export_is_the_way_back(keras, name, wrap):
    layer, module = pair(keras, name, wrap)
    x = torch.randn(B, T, I)
    expected = layer(x)[0].detach().cpu()
    for p in layer.weights:
        p.assign(p * 0)
    layer.set_weights(export_weights(module))
    assert_close("y", layer(x)[0].detach().cpu(), expected, 1e-6)


def test_a_stack(keras):
    layers = [keras.layers.GRU(H, return_sequences=True) for _ in range(2)]
    x = torch.randn(B, T, I)
    expected = layers[1](layers[0](x)).detach().cpu()
    module = rnnkernels.GRU(I, H, 2, batch_first=True)
    assert_close("from layers", load_weights(module, layers)(x)[0], expected, 1e-5)
    arrays = [a for layer in layers for a in layer.get_weights()]
    assert_close("from arrays", load_weights(rnnkernels.GRU(I, H, 2, batch_first=True), arrays)(x)[0], expected, 1e-5)
    for layer, share in zip(layers, (export_weights(module)[:3], export_weights(module)[3:]), strict=True):
        for a, e in zip(share, layer.get_weights(), strict=True):
            assert_close("exported", torch.from_numpy(a), torch.from_numpy(e), 1e-6)


def test_layers_that_compute_something_else(keras):
    def built(layer):
        layer.build((None, T, I))
        return layer

    layers, lstm, gru = keras.layers, rnnkernels.LSTM(I, H), rnnkernels.GRU(I, H)
    for module, layer, words in (
        (lstm, layers.LSTM(H, activation="relu"), "with activation='tanh', but got 'relu'"),
        (lstm, layers.LSTM(H, recurrent_activation="relu"), "with recurrent_activation='sigmoid', but got 'relu'"),
        (gru, layers.GRU(H, reset_after=False), "with reset_after=True, but got False"),
        (gru, layers.LSTM(H), "with class='GRU', but got 'LSTM'"),
        (gru, layers.GRU(H, go_backwards=True), "with go_backwards=False, but got True"),
        (gru, layers.GRU(H + 1), "with units=5, but got 6"),
        (gru, layers.GRU(H, use_bias=False), "with use_bias=True, but got False"),
        (gru, layers.Bidirectional(layers.GRU(H)), "with bidirectional=False, but got True"),
        (
            rnnkernels.GRU(I, H, bidirectional=True), layers.Bidirectional(layers.GRU(H), merge_mode="sum"),
            "with merge_mode='concat', but got 'sum'",
        ),
    ):  # fmt: skip
        before = {k: v.clone() for k, v in module.state_dict().items()}
        with pytest.raises(ValueError, match=words):
            load_weights(module, built(layer))
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("cell, extra", [("RNN", {}), ("LSTM", {}), ("GRU", {}), ("GRU", {"reset_after": False})])
def test_round_trip_without_keras(cell, extra, bias):
    module = getattr(rnnkernels, cell)(I, H, 2, bidirectional=True, bias=bias, dtype=torch.float64, **extra)
    twin = getattr(rnnkernels, cell)(I, H, 2, bidirectional=True, bias=bias, dtype=torch.float64, **extra)
    arrays = export_weights(module)
    assert len(arrays) == 4 * (3 if bias else 2)
    assert load_weights(twin, arrays) is twin
    x = torch.randn(T, B, I, dtype=torch.float64)
    assert_close("y", twin(x)[0], module(x)[0])
    for a, e in zip(export_weights(load_weights(twin, map(torch.from_numpy, arrays))), arrays, strict=True):
        assert (a == e).all()


def test_outputs_past_a_mask_as_keras_repeats_them():
    """What ``load_weights`` says: ours are zero there, and a gather repeats the last output: the final state."""
    layer, x, lengths = rnnkernels.GRU(3, 4, batch_first=True), torch.randn(3, 5, 3), torch.tensor([5, 2, 1])
    y, h = layer(x, lengths=lengths)
    steps = torch.arange(5).clamp(max=lengths[:, None] - 1)
    repeated = y.gather(1, steps[..., None].expand_as(y))
    assert not y[1, 2:].any() and "zero_output_for_mask" in rnnkernels.keras.load_weights.__doc__
    for b, n in enumerate(lengths):
        assert torch.equal(repeated[b, :n], y[b, :n])
        assert torch.equal(repeated[b, n - 1 :], h[0, b].expand(6 - n, 4))


def test_layouts_without_keras():
    """A step of Keras's GRU, z before r, one bias for each product or one in all, from its arrays."""
    for after in (True, False):
        module = rnnkernels.GRU(I, H, dtype=torch.float64, reset_after=after)
        kernel, recurrent, bias = map(torch.from_numpy, export_weights(module))
        assert kernel.shape == (I, 3 * H) and recurrent.shape == (H, 3 * H)
        assert bias.shape == ((2, 3 * H) if after else (3 * H,))
        x, h = torch.randn(1, B, I, dtype=torch.float64), torch.randn(1, B, H, dtype=torch.float64)
        b_in, b_rec = bias if after else (bias, torch.zeros_like(bias))
        xz, xr, xn = (x[0] @ kernel + b_in).chunk(3, -1)
        hz, hr, hn = (h[0] @ recurrent + b_rec).chunk(3, -1)
        z, r = (xz + hz).sigmoid(), (xr + hr).sigmoid()
        n = (xn + (r * hn if after else (r * h[0]) @ recurrent[:, 2 * H :])).tanh()
        assert_close("h", module(x, h)[0][0].detach(), z * h[0] + (1 - z) * n)


def test_errors():
    arrays = export_weights(rnnkernels.LSTM(I, H))
    module = rnnkernels.LSTM(I, H)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    for wrong in (arrays[:2], [arrays[0], arrays[1].T, arrays[2]], export_weights(rnnkernels.GRU(I, H))):
        with pytest.raises(
            ValueError, match=r"Expected arrays of the shapes \[\(4, 20\), \(5, 20\), \(20,\)\], but got"
        ):
            load_weights(module, wrong)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    with pytest.raises(TypeError, match="Expected an RNN, LSTM or GRU of rnnkernels, but got LSTM"):
        load_weights(nn.LSTM(I, H), arrays)
    for extra, words in (
        ({"proj_size": 2}, "proj_size=2"), ({"zoneout": 0.1}, "zoneout=0.1"), ({"heads": 5}, "heads=5"),
        ({"layer_norm": True, "activation": "relu"}, "layer_norm=True"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"Keras has no {words}$"):
            export_weights(rnnkernels.LSTM(I, H, **extra))
    half = rnnkernels.LSTM(I, H, dtype=torch.bfloat16)
    assert export_weights(half)[0].dtype.name == "float32"
    assert_close("loaded", load_weights(half, arrays).weight_ih_l0.T.float(), torch.from_numpy(arrays[0]), 1e-2)
