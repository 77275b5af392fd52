"""``convert(subclasses=True)``: users' subclasses of torch.nn's layers and cells get ours among their bases."""

import copy
import io
import pickle

import pytest
import torch
from common import assert_close
from test_modules import B, H, I, T, assert_same, flat, run
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import rnnkernels

pytestmark = pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")  # by Dynamo


class Doubling:
    """A mixin, as pytorch-forecasting's."""

    def forward(self, x, hx=None, scale=2):
        return super().forward(x * scale, hx)


class Plain(nn.LSTM):
    pass


class Mixed(Doubling, nn.LSTM):
    """With a mixin before torch.nn's class."""


class Deep(Mixed):
    """Two levels, submodules and attributes of its own that are called like options of ours."""

    def __init__(self, size, hidden):
        super().__init__(size, hidden, 2, batch_first=True, bidirectional=True)
        self.layer_norm, self.activation = nn.LayerNorm(size), torch.relu
        self.note = "mine"

    def forward(self, x, hx=None):
        y, state = super().forward(self.layer_norm(x), hx)
        return self.activation(y), state


class Gated(nn.GRU):
    def forward(self, x, hx=None):
        self.flatten_parameters()
        return super().forward(input=x, hx=hx)


class Elman(nn.RNN):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, nonlinearity="relu", **kwargs)


class Own(nn.RNN):
    """A forward of its own, by the internals of torch.nn's."""

    def forward(self, x, hx=None):
        hx = x.new_zeros(1, x.size(1), self.hidden_size) if hx is None else hx
        self.check_forward_args(x, hx, None)
        return torch._VF.rnn_tanh(x, hx, self._flat_weights, self.bias, 1, 0.0, self.training, False, False)


class Named(nn.GRU):
    """Calls torch.nn's forward by its name."""

    def forward(self, x, hx=None):
        return nn.GRU.forward(self, x, hx)


class Step(nn.LSTMCell):
    def forward(self, x, hx=None):
        h, c = super().forward(x, hx)
        return h * 2, c


class GatedStep(Doubling, nn.GRUCell):
    pass


class ElmanStep(nn.RNNCell):
    pass


KINDS = {  # the class of ours that each derives from afterwards
    Plain: "LSTM", Mixed: "LSTM", Deep: "LSTM", Gated: "GRU", Elman: "RNN", Own: "RNN", Named: "GRU",
    Step: "LSTMCell", GatedStep: "GRUCell", ElmanStep: "RNNCell",
}  # fmt: skip


def made(kind):
    torch.manual_seed(0)
    return kind(I, H).double()


def example(kind):
    rows = (B,) if KINDS[kind].endswith("Cell") else (B, T) if kind is Deep else (T, B)
    return torch.randn(*rows, I, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_same_numbers_with_ours_among_the_bases(kind):
    theirs, x = made(kind), example(kind)
    module = copy.deepcopy(theirs)
    ours = getattr(rnnkernels, KINDS[kind])
    model = nn.Sequential(nn.Linear(1, 1), module)
    assert rnnkernels.convert(model, subclasses=True) is model and model[1] is module
    assert isinstance(module, kind) and isinstance(module, ours)
    new = type(module)
    assert (new.__name__, new.__qualname__, new.__module__) == (kind.__name__, kind.__qualname__, kind.__module__)
    mro = new.__mro__
    assert mro.index(kind) < mro.index(ours) < mro.index(getattr(nn, KINDS[kind]))
    assert_same(run(module, x, None), run(theirs, x, None))
    assert repr(module) == repr(theirs)
    for name in ("layer_norm", "zoneout", "note"):  # the user's attributes and no others
        assert hasattr(module, name) == hasattr(theirs, name)
    rnnkernels.convert(model, subclasses=True)
    assert type(module) is new
    assert type(rnnkernels.convert(made(kind), subclasses=True)) is new  # one class for all
    assert rnnkernels.revert(model) is model and type(module) is kind
    assert_same(run(module, x, None), run(theirs, x, None))
    assert vars(module).keys() == vars(theirs).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_ours_runs(kind, monkeypatch):
    """``super().forward`` is ours; what has a forward of its own, or calls torch.nn's by name, goes on as before."""
    module, x, calls = rnnkernels.convert(made(kind), subclasses=True), example(kind), []
    from rnnkernels import backends
    from rnnkernels.op import run

    layer = run.layer
    monkeypatch.setattr(run, "layer", lambda *args, **kwargs: calls.append(args[0]) or layer(*args, **kwargs))
    with backends.force("reference"):  # else torch's own op takes the steps of cells
        module(x)
    assert len(calls) == (0 if kind in (Own, Named) else 2 if kind is Deep else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(kind):
    module, x = rnnkernels.convert(made(kind), subclasses=True), example(kind)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    twins = [copy.copy(module), copy.deepcopy(module), torch.load(saved, weights_only=False)]
    twins += [pickle.loads(pickle.dumps(module, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in twins:
        assert type(twin) is type(module)
        assert all(torch.equal(a, e) for a, e in zip(flat(twin(x)), flat(module(x)), strict=True))
    other = type(module)(I, H).double()  # and the class can be called
    other.load_state_dict(module.state_dict())
    assert_close("y", flat(other(x))[0], flat(module(x))[0])


@pytest.mark.parametrize("kind", (Mixed, Deep, Gated, Step))
def test_compiled(kind):
    torch._dynamo.reset()
    module, x = rnnkernels.convert(made(kind), subclasses=True), example(kind)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for a, e in zip(flat(compiled(x)), flat(module(x)), strict=True):
        assert_close("compiled", a, e)


@pytest.mark.parametrize("kind", (Gated, Step))
def test_parametrized(kind):
    weight = "weight_hh_l0" if kind is Gated else "weight_hh"
    theirs = parametrizations.weight_norm(made(kind), weight)
    module, x = copy.deepcopy(theirs), example(kind)
    rnnkernels.convert(module, subclasses=True)
    assert isinstance(module, getattr(rnnkernels, KINDS[kind])) and type(module).__name__ == type(theirs).__name__
    assert_same(run(module, x, None), run(theirs, x, None))
    back = rnnkernels.revert(copy.deepcopy(module))
    assert type(back).__base__ is kind
    assert_same(run(back, x, None), run(theirs, x, None))
    parametrize.remove_parametrizations(module, weight)
    assert type(module) is type(rnnkernels.convert(made(kind), subclasses=True))


def test_classes_of_functions_are_not_pickled():
    class Local(nn.GRU):
        pass

    module = rnnkernels.convert(Local(I, H), subclasses=True)
    assert type(copy.deepcopy(module)) is type(module)
    for m in (Local(I, H), module):
        with pytest.raises((AttributeError, pickle.PicklingError), match="Local"):
            pickle.dumps(m)


class Checking(nn.LSTM):
    def check_forward_args(self, input, hidden, batch_sizes):
        pass


class Permuting(Doubling, nn.GRU):
    def permute_hidden(self, hx, permutation):
        return hx


class Flat(nn.RNN):
    _flat_weights = ()


class Stateful(nn.LSTM):
    _rk_hidden = None


@pytest.mark.parametrize(
    "kind, why",
    [
        (Checking, "whose check_forward_args rnnkernels would not call"),
        (Permuting, "whose permute_hidden rnnkernels would not call"),
        (Flat, "whose _flat_weights rnnkernels would not call"),
        (Stateful, "whose _rk_hidden rnnkernels would take for its own"),
    ],
)
def test_what_ours_would_not_carry_out_is_left_alone(kind, why):
    model = nn.ModuleDict({"a": kind(I, H), "b": Plain(I, H)})
    with pytest.warns(UserWarning, match=rf"left subclasses alone: a \({kind.__name__}, {why}\)$"):
        rnnkernels.convert(model, subclasses=True)
    assert type(model["a"]) is kind and isinstance(model["b"], rnnkernels.LSTM)


def test_a_name_that_an_instance_has():
    module = Plain(I, H)
    module._rk_kind = nn.Linear(H, H)
    with pytest.warns(UserWarning, match="whose _rk_kind rnnkernels would take for its own"):
        rnnkernels.convert(module, subclasses=True)
    assert type(module) is Plain


def test_attributes_that_options_have_the_names_of():
    """What was there before a conversion stays what it was, in torch.nn's class itself too."""
    module = nn.LSTM(I, H)
    module.activation, module.zoneout = nn.ReLU(), "note"
    activation, x = module.activation, torch.randn(T, B, I)
    expected = module(x)[0]
    assert type(rnnkernels.convert(module)) is rnnkernels.LSTM
    assert module.activation is activation and module.zoneout == "note" and module.heads == 1
    module.zoneout = 3
    assert module.zoneout == 3 and module._rk_options is None
    assert_close("y", module(x)[0], expected)
