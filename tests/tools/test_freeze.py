"""``freeze``: copies for inference whose weights are packed once."""

import copy
import gc
import pickle

import pytest
import torch
from common import assert_close
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import rnnkernels
from rnnkernels.backends import EXTENSION_ERROR

pytestmark = pytest.mark.skipif(EXTENSION_ERROR is not None, reason="the C++ extension is not there")
OPS = torch.ops.rnnkernels
SETS = OPS.instruction_sets().split(",") if EXTENSION_ERROR is None else []
I, H = 20, 70  # noqa: E741


class Model(nn.Module):
    """A layer of each kind, and a cell, in one model."""

    def __init__(self, dtype=None):
        super().__init__()
        kind = {"dtype": dtype}
        self.lstm = nn.LSTM(I, H, 2, batch_first=True, bidirectional=True, proj_size=9, **kind)
        self.gru = nn.GRU(18, H, 3, bias=False, **kind)  # the last two have the same sizes
        self.rnn = rnnkernels.RNN(H, H, layer_norm=True, zoneout=0.1, **kind)
        self.own = rnnkernels.Recurrent(rnnkernels.cells.peephole_lstm, H, H, **kind)
        self.cell = nn.LSTMCell(H, H, **kind)
        self.head = nn.Linear(H, 3, **kind)

    def forward(self, x):
        y, _ = self.lstm(x)
        y, _ = self.gru(y.transpose(0, 1))
        y, _ = self.own(self.rnn(y)[0])
        h, _ = self.cell(y[-1])
        return self.head(h)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
def test_results(isa, dtype):
    """Any T and B, in turn and again: the same as the model that was frozen, and as the one that packs each time."""
    torch.manual_seed(0)
    model = rnnkernels.convert(Model(dtype)).eval()
    OPS.use_instruction_set(isa)
    try:
        frozen = rnnkernels.freeze(model)
        with torch.no_grad():
            for _ in range(2):
                for B, T in ((1, 1), (1, 9), (3, 2), (40, 1), (33, 5)):
                    x = torch.randn(B, T, I).to(dtype)
                    assert_close(f"{B} {T}", frozen(x), model(x).double(), 2e-2 if x.element_size() == 2 else 1e-5)
    finally:
        OPS.use_instruction_set("")


@rnnkernels.cell(inputs="f g", project_input=False)
def weightless(x, s):
    f = torch.sigmoid(x.f)
    return f * s.h + (1 - f) * x.g


@pytest.mark.parametrize("name", ("peephole_lstm", "gru_reset_before", "gru_d", "rnn", "min_gru", "weightless"))
def test_cells_of_ones_own(name):
    """With a projection or extra inputs, a product inside the step, or without a recurrent product or any weight."""
    torch.manual_seed(0)
    cell = weightless if name == "weightless" else getattr(rnnkernels.cells, name)
    width = 2 * H if name == "weightless" else I
    layer = rnnkernels.Recurrent(cell, width, H, proj_size=9 if cell.projected else 0, bidirectional=True)
    step = rnnkernels.RecurrentCell(cell, width, H)
    frozen, step_frozen = rnnkernels.freeze(layer), rnnkernels.freeze(step)
    assert (frozen._rk_packed.number > 0) == (step_frozen._rk_packed.number > 0) == (name != "weightless")
    with torch.no_grad():
        for T, B in ((1, 1), (9, 1), (2, 3), (1, 40), (5, 33), (2, 3)):
            x, more = torch.randn(T, B, width), {"gamma": torch.rand(T, B, H)} if name == "gru_d" else {}
            assert_close(f"{T} {B}", frozen(x, **more)[0], layer(x, **more)[0].double(), 1e-5)
            one = {k: u[0] for k, u in more.items()}
            assert_close(f"cell {B}", step_frozen(x[0], **one)[0], step(x[0], **one)[0].double(), 1e-5)


def test_it_is_a_copy_with_the_same_names():
    model = Model()
    names, training = list(model.state_dict()), model.training
    frozen = rnnkernels.freeze(model)
    assert list(frozen.state_dict()) == names == list(model.state_dict())
    assert model.training is training and type(model.lstm) is nn.LSTM and model.lstm.weight_ih_l0.requires_grad
    assert type(frozen.lstm) is rnnkernels.LSTM and isinstance(frozen.cell, rnnkernels.LSTMCell)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert frozen.lstm.weight_ih_l0.data_ptr() != model.lstm.weight_ih_l0.data_ptr()
    x = torch.randn(4, 3, I)
    before = frozen(x)
    with torch.no_grad():
        model.gru.weight_hh_l0.zero_()
    assert torch.equal(frozen(x), before)


@pytest.mark.parametrize("how", ("load_state_dict", "assign", "new weight", "another weight", "copy", "pickle"))
def test_new_weights_are_packed_anew(how):
    torch.manual_seed(1)
    first, second = nn.GRU(I, H, 2), nn.GRU(I, H, 2)
    x, frozen = torch.randn(5, 3, I), rnnkernels.freeze(first)
    old, expected = frozen(x)[0], second(x)[0].detach()
    assert not torch.allclose(old, expected)
    if how in ("load_state_dict", "assign"):
        frozen.load_state_dict(second.state_dict(), assign=how == "assign")
    elif "weight" in how:  # one that comes first, one that does not
        name = "weight_ih_l0" if how == "new weight" else "weight_hh_l1"
        first.load_state_dict(dict(first.state_dict()) | {name: second.state_dict()[name]})
        expected = first(x)[0].detach()
        setattr(frozen, name, nn.Parameter(getattr(second, name).detach().clone(), requires_grad=False))
    else:
        frozen = copy.deepcopy(frozen) if how == "copy" else pickle.loads(pickle.dumps(frozen))
        expected = old
        assert frozen._rk_packed.number == 0
    now = frozen._rk_packed.number
    assert_close("after", frozen(x)[0], expected, 1e-6)
    again = frozen._rk_packed.number
    frozen(x)
    assert frozen._rk_packed.number == again > 0 and (again != now) == (how not in ("load_state_dict", "assign"))


def test_other_dtypes():
    frozen, x = rnnkernels.freeze(nn.LSTM(I, H)), torch.randn(3, 2, I)
    y = frozen(x)[0]
    assert_close("float64", frozen.double()(x.double())[0], y, 1e-6)
    assert_close("float32", frozen.float()(x)[0], y, 1e-6)


def test_memory_is_freed():
    """Packed weights live as long as the module."""

    def resident():
        gc.collect()
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    x, lstm = torch.randn(2, 64, 1000), nn.LSTM(1000, 1000)

    def use():
        frozen = rnnkernels.freeze(lstm)
        frozen(x)
        return frozen._rk_packed.number

    numbers, start = [use() for _ in range(4)], resident()
    numbers += [use() for _ in range(8)]  # 32 MB of weights, and as much or more packed, at each
    assert resident() - start < 200e6 and len(set(numbers)) == 12


def test_gradients_of_the_input():
    torch.manual_seed(0)
    layer, x = nn.LSTM(I, H), torch.randn(4, 3, I, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x)[0].sin().sum(), x)
    (got,) = torch.autograd.grad(rnnkernels.freeze(layer)(x)[0].sin().sum(), x)
    assert_close("dx", got, expected, 1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit.trace")
def test_graphs():
    """Compiled graphs use the packed weights, exported ones have none."""
    torch.manual_seed(0)
    plain, x = nn.GRU(I, H, 2, batch_first=True), torch.randn(3, 4, I)
    model = rnnkernels.freeze(plain)
    with torch.no_grad():  # compiled before it has run
        seen = []

        def backend(graph, inputs):
            seen.extend(n.args[-2] for n in graph.graph.nodes if "rnnkernels" in str(n.target))
            return graph

        assert_close("compiled", torch.compile(model, fullgraph=True, backend=backend)(x)[0], plain(x)[0], 1e-6)
        expected = model(x)[0]
        assert seen == [model._rk_packed.number] * 2 and seen[0] > 0
        exported = torch.export.export(model, (x,))
        calls = [n for n in exported.graph.nodes if "rnnkernels" in str(n.target)]
        assert calls and all(model._rk_packed.number not in n.args and "packed" not in n.kwargs for n in calls)
        assert_close("exported", exported.module()(x)[0], expected, 1e-6)
        assert_close("traced", torch.jit.trace(model, x)(x)[0], expected, 1e-6)


@pytest.mark.parametrize("make", (
    lambda: rnnkernels.LSTM(I, H), lambda: rnnkernels.Recurrent(rnnkernels.cells.li_gru, I, H),
    lambda: rnnkernels.GRUCell(I, H), lambda: rnnkernels.RecurrentCell(rnnkernels.cells.li_gru, I, H),
))  # fmt: skip
@pytest.mark.parametrize("tool", (rnnkernels.freeze, rnnkernels.quantize_dynamic))
def test_weights_without_data(make, tool):
    """Other weights from ``torch.func``, of ensembles, and of make_fx, which have no data to be packed."""
    torch.manual_seed(0)
    models = [tool(make().eval()) for _ in range(2)]
    x = torch.randn(2, I) if "Cell" in type(models[0]).__name__ else torch.randn(3, 2, I)

    def first(state, x):
        results = torch.func.functional_call(models[0], state, (x,))
        return results if isinstance(results, torch.Tensor) else results[0]

    with torch.no_grad():
        states = [{name: t.detach() for name, t in model.state_dict().items()} for model in models]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        expected = [first(state, x) for state in states]
        assert_close("ensemble", torch.vmap(first, (0, None))(stacked, x), torch.stack(expected), 1e-6)
        both = torch.vmap(first, (0, 1), 1)(stacked, torch.stack([x, x], 1))
        assert_close("ensemble", both, torch.stack(expected, 1), 1e-6)
        several = torch.vmap(first, (None, 0))(states[1], torch.stack([x, x]))
        assert_close("samples", several, torch.stack([expected[1]] * 2), 1e-6)
        for mode in ("fake", "symbolic"):
            graph = make_fx(first, tracing_mode=mode)(states[0], x)
            assert_close(mode, graph(states[1], x), expected[1], 1e-6)
        assert_close("as before", first({}, x), expected[0], 1e-6)


@pytest.mark.parametrize("make", (
    lambda: nn.LSTM(I, H), lambda: rnnkernels.LSTM(I, H), lambda: rnnkernels.GRUCell(I, H), lambda: nn.RNNCell(I, H),
    lambda: rnnkernels.Recurrent(rnnkernels.cells.li_gru, I, H),
))  # fmt: skip
def test_parametrized_layers_become_plain(make):
    """In the copy: the model stays parametrized, and learns as before."""
    module = make()
    name = next(n for n, _ in module.named_parameters() if n.startswith("weight_hh"))
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(module, name))
    x = torch.randn(2, I) if "Cell" in type(module).__name__ else torch.randn(3, 2, I)
    first = lambda results: results if isinstance(results, torch.Tensor) else results[0]  # noqa: E731
    with torch.no_grad():
        expected = first(model(x))
    frozen = rnnkernels.freeze(model)
    assert_close("y", first(frozen(x)), expected, 1e-6)
    assert f"0.{name}" in frozen.state_dict() and f"0.{name}" not in model.state_dict()
    after = first(model(x))
    assert_close("y after", after, expected, 1e-6)
    after.sum().backward()
    assert not any(p.grad is None for p in module.parametrizations[name].parameters())


def test_heads_are_refused():
    with pytest.raises(ValueError, match=r"expected layers without heads, but 1 \(GRU\) has heads=2"):
        rnnkernels.freeze(nn.Sequential(nn.Identity(), rnnkernels.GRU(I, H, heads=2)))


def test_int8():
    """``quantize_dynamic``'s modules keep their packed weights too, and give the same bits."""
    x, model = torch.randn(3, 2, I), nn.Sequential(nn.GRU(I, H, 2))
    quantized = rnnkernels.quantize_dynamic(model)
    y = quantized(x)[0]
    assert quantized[0]._rk_packed.number and torch.equal(quantized(x)[0], y)
    assert torch.equal(copy.deepcopy(quantized)(x)[0], y)


def test_explain_tells_what_runs():
    """Weights that are packed already are never read in place."""
    model, x = rnnkernels.GRU(I, 200), torch.randn(1, 1, I)
    with torch.no_grad():
        assert "W_hh in place" in str(rnnkernels.explain(model, x))
        assert "in place" not in str(rnnkernels.explain(rnnkernels.freeze(model), x))
