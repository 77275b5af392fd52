"""Our modules are torch.nn's for whoever asks, compilers and tracers included, and of their own class all the same."""

import copy
import io
import pickle
import sys
import warnings
from functools import singledispatch

import fresh
import pytest
import torch
from common import assert_close
from test_modules import B, H, I, T, both, flat
from torch import fx, nn
from torch.nn.utils import parametrizations

import rnnkernels

pytestmark = pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")  # by Dynamo
LAYERS, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")
OPTIONS = {"RNN": {"zoneout": 0.1}, "LSTM": {"layer_norm": True, "activation": "relu"}, "GRU": {"heads": 5}}


def built(name, how):
    """Our module of this name: built, built with options, or converted."""
    if how == "converted":
        return rnnkernels.convert(getattr(nn, name)(I, H))
    return getattr(rnnkernels, name)(I, H, **(OPTIONS[name] if how == "options" else {}))


def example(name):
    return torch.randn(B, I) if name in CELLS else torch.randn(T, B, I)


ALL = [
    (n, how) for n in (*LAYERS, *CELLS) for how in ("built", "options", "converted") if n in LAYERS or how != "options"
]


@pytest.mark.parametrize("name, how", ALL)
def test_everyone_who_asks(name, how):
    theirs, ours, module = getattr(nn, name), getattr(rnnkernels, name), built(name, how)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    twins = [copy.copy(module), copy.deepcopy(module), torch.load(saved, weights_only=False)]
    twins += [pickle.loads(pickle.dumps(module, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    x = example(name)
    for m in (module, *twins):
        assert type(m) is ours and m.__class__ is ours and issubclass(ours, theirs)
        assert isinstance(m, theirs) and isinstance(m, nn.RNNCellBase if name in CELLS else nn.RNNBase)
        for other in {*LAYERS, *CELLS} - {name}:
            assert not isinstance(m, getattr(nn, other))
        if m is not module:
            torch.manual_seed(0)
            expected = flat(module.eval()(x))
            assert all(torch.equal(a, e) for a, e in zip(flat(m.eval()(x)), expected, strict=True))

    @singledispatch
    def kind(module):
        return "another"

    kind.register(theirs, lambda module: "theirs")
    assert kind(module) == "theirs"


@pytest.mark.parametrize("name", (*LAYERS, *CELLS))
def test_converted_once_and_back(name):
    module = built(name, "converted")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(rnnkernels.convert(module)) is getattr(rnnkernels, name)  # not again, and no word about it
        rnnkernels.convert(type("Mine", (getattr(rnnkernels, name),), {})(I, H), subclasses=True)
    before = getattr(nn, name)(I, H)
    assert vars(rnnkernels.revert(module)).keys() == vars(before).keys() and type(module) is type(before)


def test_loops_that_initialise_by_class():
    model = nn.Sequential(nn.Linear(I, I), rnnkernels.LSTM(I, H), rnnkernels.GRUCell(H, H))
    seen = []
    for m in model.modules():
        if isinstance(m, (nn.LSTM, nn.GRUCell)):
            seen.append(type(m))
            for p in m.parameters():
                nn.init.constant_(p, 0.25)
    assert seen == [rnnkernels.LSTM, rnnkernels.GRUCell]
    assert all((p == 0.25).all() for m in (model[1], model[2]) for p in m.parameters())


@pytest.mark.parametrize("options", (True, False))
@pytest.mark.parametrize("name", LAYERS)
def test_loops_that_initialise_by_name(name, options):
    """What is called "weight" is a matrix, what is called "bias" a vector, and gains of norms are neither."""
    module = getattr(rnnkernels, name)(I, H, 2, bidirectional=True, layer_norm=options)
    for key, p in module.named_parameters():
        if "weight" in key:
            nn.init.orthogonal_(p)
        elif "bias" in key:
            nn.init.zeros_(p)
    w = module.weight_hh_l1_reverse.detach()
    assert_close("orthogonal", w.T @ w, torch.eye(H))
    gains = {k: p for k, p in module.named_parameters() if "gain" in k}
    kinds = {k.split("_l")[0] + "_l" for k in gains}
    assert kinds == ({"ln_x_gain_l", "ln_h_gain_l", *(["ln_c_gain_l"] if name == "LSTM" else [])} if options else set())
    assert all((p == 1).all() and p.dim() == 1 for p in gains.values())


def test_gains_under_their_old_names():
    model = nn.Sequential(rnnkernels.LSTM(I, H, 2, bidirectional=True, layer_norm=True))
    for p in model.parameters():
        nn.init.normal_(p)
    old = {k.replace("_gain_", "_weight_"): v for k, v in model.state_dict().items()}
    assert len({*old} - {*model.state_dict()}) == 12
    other = nn.Sequential(rnnkernels.LSTM(I, H, 2, bidirectional=True, layer_norm=True))
    other.load_state_dict(old)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(RuntimeError, match="ln_h_gain_l0"):  # neither name
        other.load_state_dict({k: v for k, v in old.items() if not k.endswith("ln_h_weight_l0")})


class Asking(nn.Module):
    """A forward that dispatches on the class of its layer, as client code does."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        y, state = self.rnn(x)
        if isinstance(self.rnn, nn.LSTM):
            state = state[0]
        scale = 2 if isinstance(self.rnn, (nn.GRU, nn.RNN)) else 1
        if issubclass(type(self.rnn), nn.RNNBase) and isinstance(self.rnn, nn.LSTM | nn.GRU):
            scale *= 3
        return y * scale + state[-1]


class Mine(rnnkernels.LSTM):
    def forward(self, x):
        y, state = super().forward(x)
        return y + 1, state


@pytest.mark.parametrize("name", (*LAYERS, "subclass", "options", "parametrized"))
def test_compiled(name):
    """Alone and in a model that asks what it is; one graph, and one compilation for all calls."""
    from torch._dynamo.testing import CompileCounter  # here: loading it takes seconds

    torch._dynamo.reset()
    if name in LAYERS:
        rnn = built(name, "converted")
    elif name == "parametrized":
        rnn = parametrizations.weight_norm(rnnkernels.GRU(I, H), "weight_hh_l0")
    else:
        rnn = Mine(I, H) if name == "subclass" else built("LSTM", "options")
    x, counter = torch.randn(T, B, I), CompileCounter()
    for module in (rnn, Asking(rnn)):
        compiled, before = torch.compile(module, fullgraph=True, backend=counter), counter.frame_count
        for _ in range(3):
            for a, e in zip(flat(compiled(x)), flat(module(x)), strict=True):
                assert_close("compiled", a, e)
        assert counter.frame_count == before + 1
    assert not any(getattr(finder, "name", "") == "torch._dynamo.variables.builder" for finder in sys.meta_path)


@pytest.mark.parametrize("name", ("GRU", "GRUCell"))
def test_made_in_what_is_compiled(name):
    torch._dynamo.reset()
    x = example(name)
    made = torch.compile(lambda x: nn.Sequential(getattr(rnnkernels, name)(I, H))(x), backend="eager")
    torch.manual_seed(3)
    actual = flat(made(x))
    torch.manual_seed(3)
    for a, e in zip(actual, flat(getattr(nn, name)(I, H)(x)), strict=True):
        assert_close("made", a, e)


def test_dynamo_refuses_torch_s_own_as_before():
    torch._dynamo.reset()
    model = nn.ModuleList([rnnkernels.LSTM(I, H), nn.LSTM(I, H)])
    ours, theirs = (torch.compile(m, fullgraph=True, backend="eager") for m in model)
    x = torch.randn(T, B, I)
    assert_close("ours", ours(x)[0], model[0](x)[0])
    assert not torch._dynamo.config.allow_rnn
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        theirs(x)


WITHOUT_DYNAMO = 'import rnnkernels, sys; assert "torch._dynamo" not in sys.modules'  # as it is in this process
AFTER_DYNAMO = """
import torch, torch._dynamo, rnnkernels
m, x = rnnkernels.GRU(4, 5), torch.randn(3, 2, 4)
f = torch.compile(lambda x: m(x)[0], fullgraph=True, backend="eager")
assert torch.allclose(f(x), m(x)[0]) and isinstance(m, torch.nn.GRU)
"""


@pytest.mark.parametrize("code", (WITHOUT_DYNAMO, AFTER_DYNAMO), ids=("without", "after"))
def test_imported_where_dynamo_is_not_or_is(code):
    """In a process of its own, for the order of imports."""
    done = fresh.python("-c", code)
    assert done.returncode == 0, done.stderr


class Net(nn.Module):
    def __init__(self, library, **options):
        super().__init__()
        self.rnn, self.cell = library.LSTM(I, H, batch_first=True, **options), library.GRUCell(H, H)
        self.steps = nn.ModuleList([library.RNNCell(H, H), library.LSTMCell(H, H)])

    def forward(self, x, hx=None):
        y, (h, c) = self.rnn(input=x, hx=hx)
        h = self.steps[0](self.cell(y[:, -1], h[0]))
        return self.steps[1](h, (h, c[0]))[0]


@pytest.mark.parametrize("make", ("built", "converted", "options", "pickled", "quantized"))
def test_fx_sees_leaves(make):
    """One call_module per layer and cell; hooks run once; parameters train."""
    net = Net(nn) if make == "converted" else Net(rnnkernels, **({"zoneout": 0.1} if make == "options" else {}))
    net = rnnkernels.convert(net) if make == "converted" else net
    if make == "pickled":
        net = pickle.loads(pickle.dumps(net))
    elif make == "quantized":
        net = rnnkernels.quantize_dynamic(net)
    net.eval()
    net.rnn.register_forward_hook(lambda m, args, out: (out[0] * 2, out[1]))
    graph, x = fx.symbolic_trace(net), torch.randn(B, T, I)
    calls = [n.target for n in graph.graph.nodes if n.op == "call_module"]
    assert calls == ["rnn", "cell", "steps.0", "steps.1"]
    expected, actual = net(x), graph(x)
    assert_close("y", actual, expected)
    if make != "quantized":
        gradients = [torch.autograd.grad(y.sum(), list(net.parameters())) for y in (expected, actual)]
        for name, a, e in zip(dict(net.named_parameters()), gradients[1], gradients[0], strict=True):
            assert_close(name, a, e)
    assert type(net.rnn).__module__.startswith("rnnkernels")


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*will be deprecated")
def test_prepare_fx_sees_leaves():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.manual_seed(0)
    theirs, x = Net(nn).eval(), torch.randn(B, T, I)
    found = []
    for net in (theirs, rnnkernels.convert(copy.deepcopy(theirs))):
        mapping = get_default_qconfig_mapping("x86").set_module_name("rnn", None).set_module_name("cell", None)
        mapping = mapping.set_object_type(type(net.steps[0]), None).set_object_type(type(net.steps[1]), None)
        prepared = prepare_fx(copy.deepcopy(net), mapping, (x,))
        prepared(x)
        found.append([(n.op, n.target) for n in prepared.graph.nodes if n.target in ("rnn", "cell", "steps.0")])
        converted = convert_fx(prepared)
        assert_close("y", converted(x), net(x), 0.1)
    assert found[0] == found[1] == [("call_module", "rnn"), ("call_module", "cell"), ("call_module", "steps.0")]


class Holder(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("name, how", ALL)
def test_script_names_the_way_out(name, how):
    for model in (built(name, how), nn.Sequential(nn.Sequential(built(name, how)))):
        with pytest.raises(RuntimeError, match=rf"^torch.jit.script cannot compile {name} of .*call rnnkernels.revert"):
            torch.jit.script(model)
    if how != "options":
        x, model = example(name), built(name, how)
        holder = Holder(rnnkernels.revert(copy.deepcopy(model)))  # torch scripts no recurrent layer by itself
        assert_close("y", flat(torch.jit.script(holder)(x))[0], flat(model(x))[0])
    elif name == "LSTM":
        with pytest.raises(RuntimeError, match="script the model that was quantised"):
            torch.jit.script(rnnkernels.quantize_dynamic(rnnkernels.LSTM(I, H)))


@pytest.mark.parametrize("layout", (torch.jagged, torch.strided))
def test_nested_tensors_are_referred_to_lengths(layout):
    sequences = [torch.randn(n, I) for n in (5, 2, 6)]
    with warnings.catch_warnings():  # strided nested tensors are a prototype, which torch says of them
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor(sequences, layout=layout)
        if layout == torch.jagged:
            lengths, padded = nested.offsets().diff(), torch.nested.to_padded_tensor(nested, 0.0)
    for name in (*LAYERS, *CELLS):
        module = getattr(rnnkernels, name)(I, H, **({"batch_first": True} if name in LAYERS else {}))
        calls = [module, lambda x, m=module: rnnkernels.explain(m, x)]
        if name in LAYERS:
            function = getattr(rnnkernels.functional, name.lower())
            calls += [lambda x, m=module, f=function: f(x, None, list(m.parameters()), batch_first=True)]
            calls += [lambda x, m=module: m(x, lengths=[5, 2, 6]), lambda x, m=module: rnnkernels.trace(m, x)]
            calls += [rnnkernels.quantize_dynamic(module)]
        for call in calls:
            with pytest.raises(TypeError, match="does not take nested tensors: .* lengths="):
                call(nested)
    if layout == torch.jagged:  # what the message says works
        layer = rnnkernels.GRU(I, H, batch_first=True)
        y, h = layer(padded, lengths=lengths)
        for b, s in enumerate(sequences):
            alone, last = layer(s[None])
            assert_close("y", y[b, : len(s)], alone[0])
            assert_close("h", h[:, b], last[:, 0])


@pytest.mark.parametrize("backend", (None, "cpp", "reference", "triton"))
@pytest.mark.parametrize("name", CELLS)
def test_cells_without_units(name, backend):
    """Empty results and zero gradients, as torch.nn's cells; layers refuse it as torch.nn's do (test_module_errors)."""
    from contextlib import nullcontext

    theirs, ours = both(name, I, 0)
    hx = None if name == "RNNCell" else torch.randn(B, 0, requires_grad=True)
    hx = (hx, torch.randn(B, 0, requires_grad=True)) if name == "LSTMCell" else hx
    found = []
    for module in (theirs, ours):
        with nullcontext() if backend is None or module is theirs else rnnkernels.backends.force(backend):
            x = torch.randn(B, I, requires_grad=True)
            results = flat(module(x, hx))
            tensors = [x, *module.parameters(), *(flat(hx) if hx is not None else [])]
            sum(r.sum() for r in results).backward(inputs=tensors)
            with torch.no_grad():
                assert [r.shape for r in flat(module(x, hx))] == [r.shape for r in results]
        found.append([*results, *(t.grad for t in tensors)])
    for a, e in zip(found[1], found[0], strict=True):
        assert torch.equal(a, e) and a.dtype == e.dtype


@pytest.mark.parametrize("cell, states", [("rnn", 1), ("gru", 1), ("lstm", 2)])
def test_functions_without_units(cell, states):
    """As torch's ``_VF.lstm`` and the like, which take what nn.LSTM refuses; inference and training."""
    x = torch.randn(T, B, I, requires_grad=True)
    weights = [torch.randn(0, n, requires_grad=True) for n in (I, 0)] * 2
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y, *last = getattr(rnnkernels.functional, cell)(x, None, weights, False, bidirectional=True)
        assert y.shape == (T, B, 0) and [s.shape for s in last] == [(2, B, 0)] * states
        if grad:
            y.sum().backward()
            assert x.grad.shape == x.shape and not x.grad.any()
            assert all(w.grad.shape == w.shape for w in weights)
