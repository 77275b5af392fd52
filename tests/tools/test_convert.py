"""convert and revert: the same module object with another class, and nothing else changed."""

import copy

import pytest
import torch
from common import assert_close
from test_modules import CELLS, LAYERS, B, H, I, T, assert_same, flat, run
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import rnnkernels

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


class Model(nn.Module):
    """Every kind once, one of them in two places, one with tied weights."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, I)
        self.encoder = nn.Sequential(nn.Linear(I, I), nn.LSTM(I, H, 2, batch_first=True, bidirectional=True))
        self.layers = nn.ModuleDict({"gru": nn.GRU(2 * H, H), "rnn": nn.RNN(H, H, nonlinearity="relu")})
        self.again = self.layers["rnn"]
        self.cells = nn.ModuleList([nn.LSTMCell(H, H), nn.GRUCell(H, H), nn.RNNCell(H, H)])
        self.layers["rnn"].weight_hh_l0 = self.layers["gru"].weight_hh_l0_tied = nn.Parameter(torch.eye(H))

    def forward(self, tokens):
        x, _ = self.encoder(self.embedding(tokens))
        x, h = self.layers["gru"](x.transpose(0, 1))
        x, _ = self.again(self.layers["rnn"](x, h)[0])
        h, _ = self.cells[0](x[-1])
        return self.cells[2](self.cells[1](h))


def test_a_model_and_back():
    torch.manual_seed(0)
    model = Model().double()
    tokens = torch.randint(11, (B, T))
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    grads = []
    for step in (lambda m: m, rnnkernels.convert, rnnkernels.revert):
        assert step(model) is model
        expected = {n: (rnnkernels if step is rnnkernels.convert else nn).__dict__ for n in NAMES}
        for module in model.modules():
            name = type(module).__name__
            assert name not in NAMES or type(module) is expected[name][name]
        assert dict(model.named_modules()) == modules and model.again is model.layers["rnn"]
        assert all(p is parameters[n] for n, p in model.named_parameters())
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        model.zero_grad()
        y = model(tokens)
        y.sum().backward()
        grads.append({"y": y.detach()} | {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})
    assert_same(grads[1], grads[0])
    assert_same(grads[2], grads[0])


@pytest.mark.parametrize("name, extra", [*LAYERS.values(), *CELLS.values()])
def test_a_module_itself(name, extra):
    theirs = nn.__dict__[name](I, H, dtype=torch.float64, **extra)
    before = copy.deepcopy(theirs)
    described = repr(theirs)
    ours = rnnkernels.convert(theirs)
    assert ours is theirs and type(ours) is getattr(rnnkernels, name) and repr(ours) == described
    x = torch.randn(*(() if "Cell" in name else (T,)), B, I, dtype=torch.float64)
    assert_same(run(ours, x, None), run(before, x, None))
    twin = copy.deepcopy(ours)
    assert type(rnnkernels.revert(twin)) is getattr(nn, name)
    assert_same(run(twin, x, None), run(before, x, None))
    assert rnnkernels.revert(before) is before and rnnkernels.convert(ours) is ours  # nothing to do


def test_everything_on_a_module_stays():
    module = nn.LSTM(I, H, 2)
    seen = []
    module.register_forward_hook(lambda m, args, out: seen.append("forward"))
    module.register_forward_pre_hook(lambda m, args: seen.append("pre"))
    module.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    module.register_buffer("scale", torch.ones(1))
    module.note = "mine"
    module.weight_ih_l1.requires_grad_(False)
    module.eval()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    rnnkernels.convert(module)
    assert not module.training and module.note == "mine" and "scale" in dict(module.named_buffers())
    assert not module.weight_ih_l1.requires_grad
    before = module.weight_hh_l1.detach().clone()
    module(torch.randn(T, B, I, requires_grad=True))[0].sum().backward()
    optimizer.step()
    assert seen == ["pre", "forward", "backward"]
    assert module.weight_ih_l1.grad is None and not torch.equal(module.weight_hh_l1, before)


@pytest.mark.parametrize("kind", ("LSTM", "GRUCell"))
def test_parametrized(kind):
    theirs = nn.__dict__[kind](I, H, dtype=torch.float64)
    weight = "weight_hh" if "Cell" in kind else "weight_hh_l0"
    parametrizations.weight_norm(theirs, weight)
    x = torch.randn(*(() if "Cell" in kind else (T,)), B, I, dtype=torch.float64)
    described, names, expected = repr(theirs), [n for n, _ in theirs.named_parameters()], run(theirs, x, None)
    ours = rnnkernels.convert(theirs)
    assert ours is theirs and isinstance(ours, getattr(rnnkernels, kind)) and parametrize.is_parametrized(ours, weight)
    assert repr(ours) == described and [n for n, _ in ours.named_parameters()] == names
    assert_same(run(ours, x, None), expected)
    back = rnnkernels.revert(copy.deepcopy(ours))
    assert type(back).__base__ is getattr(nn, kind) and type(ours).__base__ is getattr(rnnkernels, kind)
    assert_same(run(back, x, None), expected)
    parametrize.remove_parametrizations(ours, weight)
    assert type(ours) is getattr(rnnkernels, kind)
    assert_close("y", flat(ours(x))[0], expected["output 0"])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_by_hook():
    theirs = nn.utils.weight_norm(nn.GRU(I, H, dtype=torch.float64), "weight_hh_l0")
    x = torch.randn(T, B, I, dtype=torch.float64)
    for change in (1.0, 3.0):
        theirs.weight_hh_l0_g.data.fill_(change)
        expected = rnnkernels.revert(theirs)(x)[0]
        assert_close("y", rnnkernels.convert(theirs)(x)[0], expected)


def test_subclasses_are_left_alone_and_named():
    class Mine(nn.LSTM):
        pass

    model = nn.ModuleDict({"a": Mine(I, H), "b": nn.LSTM(I, H)})
    with pytest.warns(UserWarning, match=r"left subclasses alone: a \(Mine\)"):
        rnnkernels.convert(model)
    assert type(model["a"]) is Mine and type(model["b"]) is rnnkernels.LSTM

    class Ours(rnnkernels.GRU):
        pass

    with pytest.warns(UserWarning, match=r"the model itself \(Ours\)"):
        rnnkernels.revert(Ours(I, H))


@pytest.mark.parametrize("tool", ("convert", "revert", "freeze", "quantize_dynamic"))
def test_what_is_no_module(tool):
    for what, got in ((nn.LSTM, "LSTM"), ([nn.LSTM(3, 4)], "an object of list"), (None, "an object of NoneType")):
        with pytest.raises(TypeError, match=f"{tool}: expected a module, got {got}"):
            getattr(rnnkernels, tool)(what)
