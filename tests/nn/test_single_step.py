"""A single step in training on the CPU, which torch's own ops compute: as torch.nn's layers in results and manners."""

import pytest
import torch
from common import assert_close
from torch import nn

import rnnkernels
from rnnkernels.nn import torchs_step

B, I, H = 3, 5, 7  # noqa: E741
KINDS = [
    ("RNN", {}), ("RNN", {"nonlinearity": "relu", "bias": False, "num_layers": 2}), ("GRU", {"bidirectional": True}),
    ("GRU", {"num_layers": 2, "batch_first": True}), ("LSTM", {"num_layers": 2, "bidirectional": True, "bias": False}),
    ("LSTM", {"batch_first": True}),
]  # fmt: skip


def pair(name, settings, dtype=torch.float64):
    theirs = getattr(nn, name)(I, H, dtype=dtype, **settings)
    ours = getattr(rnnkernels, name)(I, H, dtype=dtype, **settings)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn((B, 1, I) if settings.get("batch_first") else (1, B, I), dtype=dtype)
    states = [torch.randn(theirs.num_layers * (1 + theirs.bidirectional), B, H, dtype=dtype) for _ in range(2)]
    return theirs, ours, x, tuple(states) if name == "LSTM" else states[0]


def leaves(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in leaves(v)]


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_results_and_gradients(monkeypatch, name, settings, with_states):
    """torch's ops run, and outputs and every gradient are those of torch.nn, also where results are written into."""
    steps, layers = [], torchs_step.layers
    monkeypatch.setattr(torchs_step, "layers", lambda *args: steps.append(args) or layers(*args))
    theirs, ours, x, hx = pair(name, settings)
    found = []
    for model in (theirs, ours):
        x_leaf = x.clone().requires_grad_()
        h_leaf = [t.clone().requires_grad_() for t in leaves(hx)]
        given = (tuple(h_leaf) if name == "LSTM" else h_leaf[0]) if with_states else None
        results = leaves(model(x_leaf, given))
        before = [r.detach().clone() for r in results]
        for k, r in enumerate(results):
            r.mul_(k + 2)
        loss = sum((r * r).sum() for r in results)
        wanted = [x_leaf, *(h_leaf if with_states else []), *model.parameters()]
        found.append((before, torch.autograd.grad(loss, wanted, create_graph=True)))
    assert len(steps) == 1
    names = ["x", *(["h", "c"][: len(leaves(hx))] if with_states else []), *dict(ours.named_parameters())]
    for what, a, b in zip(["y", "h_n", "c_n"], found[1][0], found[0][0], strict=False):
        assert_close(what, a, b)
    for what, a, b in zip(names, found[1][1], found[0][1], strict=True):
        assert_close(f"gradient of {what}", a, b)
        assert a.requires_grad


def test_what_does_not_suit(monkeypatch):
    """Options, lengths, resets, projections, 16 bits, empty batches, no hidden units, more steps: the kernels run."""
    monkeypatch.setattr(torchs_step, "layers", None)
    x = torch.randn(1, B, I)
    for model, given, more in (
        (rnnkernels.GRU(I, H, zoneout=0.1), x, {}),
        (rnnkernels.LSTM(I, H, proj_size=2), x, {}),
        (rnnkernels.LSTM(I, H), x, {"lengths": torch.tensor([1, 0, 1])}),
        (rnnkernels.GRU(I, H), x, {"reset": torch.ones(1, B, dtype=torch.bool)}),
        (rnnkernels.GRU(I, H, dtype=torch.bfloat16), x.bfloat16(), {}),
        (rnnkernels.RNN(I, H), x[:, :0], {}),
        (rnnkernels.RNN(I, H), x.expand(2, B, I), {}),
    ):
        y = model(given, **more)[0]
        assert y.requires_grad and y.shape[:2] == given.shape[:2]
    with torch.no_grad():
        assert rnnkernels.LSTM(I, H)(x)[0].shape == (1, B, H)


def test_explain():
    """``explain`` says so, with the reason; not in inference, and not where a backend is forced."""
    model, x = rnnkernels.GRU(I, H, num_layers=2), torch.randn(1, B, I)
    layers = rnnkernels.explain(model, x).layers
    assert [layer.backend for layer in layers] == ["torch"] * 2 and torchs_step.FOR_TRAINING in layers[0].schedule
    with torch.no_grad():
        assert rnnkernels.explain(model, x).layers[0].backend != "torch"
    with rnnkernels.backends.force("reference"):
        assert rnnkernels.explain(model, x).layers[0].backend == "reference"
    assert rnnkernels.explain(model, x.expand(2, B, I)).layers[0].backend != "torch"


@pytest.mark.parametrize(
    ("x", "hx", "words"),
    [
        ((1, B, I + 1), None, "input.size"),
        ((1, B, I), (1, B + 1, H), "Expected hidden size"),
        ((1, B, I), (2, B, H), "Expected hidden size"),
    ],
)
def test_errors_are_those_of_layers(x, hx, words):
    x, hx = torch.randn(x), None if hx is None else torch.randn(hx)
    found = []
    for model in (nn.GRU(I, H), rnnkernels.GRU(I, H)):
        with pytest.raises(RuntimeError, match=words) as error:
            model(x, hx)
        found.append(str(error.value))
    assert found[0] == found[1]
