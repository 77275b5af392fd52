"""Parameters are read by name at every forward: whatever replaces or computes a weight is seen at once.

And what follows from it: functional_call, vmap over stacked weights, compile, export, autocast.
"""

import copy

import pytest
import torch
from common import assert_close
from pairwise import ALL, product
from test_modules import CELLS, LAYERS, B, H, I, T, assert_same, both, flat, run
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnnkernels

x_TBI = torch.randn(T, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def assert_equal_to_torch(theirs, ours, x=x_TBI):
    assert_same(run(ours, x, None), run(theirs, x, None))


@pytest.mark.parametrize("name", ("RNN", "LSTM", "GRU"))
def test_changed_in_place(name):
    theirs, ours = both(name, I, H, 2, dtype=torch.float64)
    ours(x_TBI)
    for module in (theirs, ours):
        for p in module.parameters():
            p.data.clamp_(-0.1, 0.2)  # leaves no trace in the version counter
    assert_equal_to_torch(theirs, ours)


@pytest.mark.parametrize("name", ("RNN", "LSTM", "GRU"))
def test_replaced(name):
    theirs, ours = both(name, I, H, 2, dtype=torch.float64)
    ours(x_TBI)
    for module in (theirs, ours):
        module.weight_hh_l1 = nn.Parameter(module.weight_hh_l1.detach() * 2)
    assert_equal_to_torch(theirs, ours)
    with pytest.raises(TypeError, match="cannot assign"):
        ours.weight_hh_l1 = torch.zeros(1)
    ours.weight_ih_l0.data = theirs.weight_ih_l0.data = theirs.weight_ih_l0.data + 1
    assert_equal_to_torch(theirs, ours)


def test_tied():
    theirs, ours = both("GRU", H, H, 2, dtype=torch.float64)
    for module in (theirs, ours):
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_ih_l1 = module.weight_ih_l0
    assert len(list(ours.parameters())) == len(list(theirs.parameters())) == 6
    assert_equal_to_torch(theirs, ours, torch.randn(T, B, H, dtype=torch.float64))


@pytest.mark.parametrize("name", ("LSTM", "LSTMCell"))
@pytest.mark.parametrize("how", ("scaled", "weight norm", "spectral norm"))
def test_parametrized(name, how):
    """The gradient of the original parameter has to come through (nn.LSTM's does: it reads its list anew)."""
    theirs, ours = both(name, I, H, dtype=torch.float64)
    for module in (theirs, ours):
        weight = "weight_hh" + ("" if name.endswith("Cell") else "_l0")
        torch.manual_seed(0)
        if how == "scaled":
            weight = weight.replace("weight_hh", "bias_hh")
            parametrize.register_parametrization(module, weight, Scaled())
        else:
            getattr(parametrizations, how.replace(" ", "_"))(module, weight)
    if (
        how == "spectral norm"
    ):  # in training nn.LSTM computes its weights several times a forward, and u and v each time
        theirs.eval(), ours.eval()
    x = x_TBI[0] if name.endswith("Cell") else x_TBI
    assert_equal_to_torch(theirs, ours, x)
    assert repr(ours) == repr(theirs)
    twin = copy.deepcopy(ours).eval()
    assert all(torch.equal(a, b) for a, b in zip(flat(twin(x)), flat(ours.eval()(x)), strict=True))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, w):
        return w * self.scale


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_by_hook():
    theirs, ours = both("LSTM", I, H, dtype=torch.float64)
    for module in (theirs, ours):
        nn.utils.weight_norm(module, "weight_hh_l0")
        module.weight_hh_l0_g.data.mul_(1.5)
    assert_equal_to_torch(theirs, ours)


def test_pruned_and_replicated():
    """Pruning puts a plain tensor in the place of a weight; nn.DataParallel's replicas have no parameters at all."""
    theirs, ours = both("GRU", I, H, dtype=torch.float64)
    prune.l1_unstructured(ours, "weight_hh_l0", amount=0.5)
    assert (ours.weight_hh_l0 == 0).sum() >= ours.weight_hh_l0.numel() // 2
    theirs.weight_hh_l0.data = ours.weight_hh_l0.detach().clone()
    expected = theirs(x_TBI)[0]
    assert_close("pruned", ours(x_TBI)[0], expected)
    replica = rnnkernels.convert(copy.deepcopy(theirs))._replicate_for_data_parallel()
    for name, p in theirs.named_parameters():
        setattr(replica, name, p.detach().clone())
    assert not replica._parameters
    assert_close("replica", replica(x_TBI)[0], expected)


def test_weight_drop():
    """The recipe of AWD-LSTM: the raw weight under another name, and a plain tensor in its place at every forward."""
    ours = rnnkernels.LSTM(I, H, dtype=torch.float64)
    raw = ours.weight_hh_l0
    del ours._parameters["weight_hh_l0"]
    ours.register_parameter("weight_hh_l0_raw", raw)
    for scale in (0.0, 2.0):
        ours.weight_hh_l0 = raw * scale
        theirs = nn.LSTM(I, H, dtype=torch.float64)
        theirs.load_state_dict({k.removesuffix("_raw"): v for k, v in ours.state_dict().items()})
        theirs.weight_hh_l0.data.mul_(scale)
        assert_close("y", ours(x_TBI)[0], theirs(x_TBI)[0])
        ours(x_TBI)[0].sum().backward()
    theirs(x_TBI)[0].sum().backward()
    assert_close("raw", raw.grad, theirs.weight_hh_l0.grad * 2)


@pytest.mark.parametrize("cell", LAYERS)
def test_functional_call_and_stacked_weights(cell):
    name, extra = LAYERS[cell]
    models = [both(name, I, H, 2, seed=n, bidirectional=True, dtype=torch.float64, **extra)[1] for n in range(3)]
    other = dict(models[1].named_parameters())
    out = torch.func.functional_call(models[0], other, (x_TBI,))
    assert_close("functional_call", out[0], models[1](x_TBI)[0])

    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    y, hidden = torch.func.vmap(
        lambda p, b, x: torch.func.functional_call(base, (p, b), (x,)), in_dims=(0, 0, None)
    )(parameters, buffers, x_TBI)  # fmt: skip
    for n, model in enumerate(models):
        expected = model(x_TBI)
        assert_close(f"model {n}", y[n], expected[0])
        for a, e in zip(flat(hidden), flat(expected[1]), strict=True):
            assert_close(f"state {n}", a[n], e)


@pytest.mark.parametrize("cell", CELLS)
def test_stacked_cells(cell):
    name, extra = CELLS[cell]
    models = [both(name, I, H, seed=n, dtype=torch.float64, **extra)[1] for n in range(3)]
    state = torch.func.stack_module_state(models)
    call = lambda p, b, x: flat(torch.func.functional_call(models[0], (p, b), (x,)))  # noqa: E731
    found = torch.func.vmap(call, in_dims=(0, 0, None))(*state, x_TBI[0])
    for n, model in enumerate(models):
        for a, e in zip(found, flat(model(x_TBI[0])), strict=True):
            assert_close(f"model {n}", a[n], e)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")  # Dynamo does
@pytest.mark.parametrize(
    "cell, train", product(LAYERS, (True, False)) if ALL else [("gru", True), ("projected", False)]
)
def test_compile(cell, train):
    """fullgraph, and the second size, which makes T and B dynamic."""
    name, extra = LAYERS[cell]
    _, ours = both(name, I, H, 2, bidirectional=True, batch_first=True, dtype=torch.float64, **extra)
    torch._dynamo.reset()
    compiled = torch.compile(ours.requires_grad_(train), fullgraph=True, backend="aot_eager")
    for t, b in ((T, B), (T + 2, B + 4), (9, 11)):
        x = torch.randn(b, t, I, dtype=torch.float64, requires_grad=train)
        expected, actual = ours(x), compiled(x)
        for e, a in zip(flat(expected), flat(actual), strict=True):
            assert_close("output", a, e)
        if train:
            for e, a in zip(*(torch.autograd.grad(o[0].sum(), [x, *ours.parameters()]) for o in (expected, actual)),
                            strict=True):  # fmt: skip
                assert_close("gradient", a, e)


@pytest.mark.long
@pytest.mark.parametrize("cell", CELLS)
def test_compile_cells(cell):
    name, extra = CELLS[cell]
    _, ours = both(name, I, H, **extra)
    x = torch.randn(B, I)
    hx = ours.requires_grad_(False)(x)
    for a, e in zip(flat(torch.compile(ours, fullgraph=True, backend="aot_eager")(x, hx)), flat(ours(x, hx)),
                    strict=True):  # fmt: skip
        assert_close("state", a, e)


@pytest.mark.parametrize("cell", LAYERS)
def test_export_with_dynamic_steps_and_batch(cell):
    name, extra = LAYERS[cell]
    _, ours = both(name, I, H, 2, **extra)
    t, b = torch.export.Dim("t", min=1, max=1000), torch.export.Dim("b", min=1, max=1000)
    hx = [s.detach() for s in flat(ours.eval()(torch.randn(T, B, I))[1])]
    hx = tuple(hx) if len(hx) == 2 else hx[0]
    batch = {1: b}
    shapes = ({0: t, 1: b}, (batch, batch) if isinstance(hx, tuple) else batch)
    program = torch.export.export(ours, (torch.randn(T, B, I), hx), dynamic_shapes=shapes)
    for steps, rows in ((T, B), (11, 2), (1, 1)):
        x = torch.randn(steps, rows, I)
        state = tuple(s[:, :1].repeat(1, rows, 1) for s in flat(hx))
        state = state if len(state) == 2 else state[0]
        for a, e in zip(flat(program.module()(x, state)), flat(ours(x, state)), strict=True):
            assert_close("output", a, e)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("cell", LAYERS)
def test_autocast(cell, dtype):
    """Everything runs in the autocast dtype; gradients arrive in the dtype of the parameters."""
    name, extra = LAYERS[cell]
    _, ours = both(name, I, H, 2, **extra)
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", dtype):
        y, hidden = ours(x)
        y2, _ = ours(x.to(dtype), hidden)
    low = copy.deepcopy(ours).to(dtype)
    assert y.dtype == y2.dtype == dtype
    assert_close("y", y, low(x.to(dtype))[0], 2 * torch.finfo(dtype).eps)
    y.sum().backward()
    assert ours.weight_hh_l0.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype), pytest.raises(RuntimeError, match="same dtype, but got Double and Float"):
        ours(x.double())  # autocast leaves float64 alone
    with torch.autocast("cpu", dtype, enabled=False), pytest.raises(ValueError, match="does not match weight dtype"):
        ours(x.to(dtype))


class Reads(nn.Module):
    """As Pyro's modules: what is no tensor may be set in the place of a weight, and every read of one is noticed."""

    def __getattr__(self, name):
        if name.startswith(("weight", "bias")):
            self.__dict__.setdefault("read", []).append(name)
        return vars(self)["made"][name]() if name in vars(self).get("made", ()) else super().__getattr__(name)

    def __setattr__(self, name, value):
        if callable(value) and name.startswith("weight"):
            del self._parameters[name]
            self.__dict__.setdefault("made", {})[name] = value
        else:
            super().__setattr__(name, value)

    def _replicate_for_data_parallel(self):
        return "replica"


@pytest.mark.parametrize("name", ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"))
@pytest.mark.parametrize("what", ("read", "set"))
def test_mixin_behind_ours(name, what):
    """A mixin that comes after our classes in the order of bases is asked for weights, and told what is set."""
    ours, plain = type(name, (getattr(rnnkernels, name), Reads), {})(I, H), getattr(rnnkernels, name)(I, H)
    plain.load_state_dict(ours.state_dict())
    weights = dict(plain.named_parameters())
    hidden = next(name for name in weights if name.startswith("weight_hh"))
    if what == "set":
        weights[hidden].data.mul_(2)
        setattr(ours, hidden, lambda: weights[hidden])
        assert hidden not in ours._parameters and ours._replicate_for_data_parallel() == "replica"
    x = torch.randn(B, I) if name.endswith("Cell") else torch.randn(T, B, I)
    vars(ours).pop("read", None)
    torch.testing.assert_close(flat(ours(x)), flat(plain(x)))
    assert set(ours.read) >= weights.keys()
