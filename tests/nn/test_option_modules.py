"""Modules with options as modules: parameters, repr, copies, wrong options, and where they are refused."""

import copy
import pickle

import pytest
import torch
from common import assert_close
from conftest import CPU_BACKENDS
from test_modules import flat
from test_options import CELLS, FEATURES, H, I
from torch import nn
from torch.nn.utils import parametrizations

import rnnkernels
from rnnkernels import backends

MODULES = {
    "RNN": lambda: rnnkernels.RNN(3, 4, 2, zoneout=0.2, recurrent_dropout=0.3, layer_norm=True, recompute=True),
    "LSTM": lambda: rnnkernels.LSTM(
        3, 4, 2, bidirectional=True, zoneout=(0.1, 0.2), layer_norm=True, activation="relu", recompute=True
    ),
    "GRU": lambda: rnnkernels.GRU(3, 4, reset_after=False, recurrent_activation="hard_sigmoid", zoneout=0.2),
    "heads": lambda: rnnkernels.GRU(3, 4, 2, heads=2, recurrent_dropout=0.2, bias=False, recompute=True),
}


def make(name, dtype=torch.float64):
    torch.manual_seed(0)
    return MODULES[name]().to(dtype)


def test_defaults_are_torch_s():
    """A module with every option at its default is plain: the same weights for a seed, and no further state."""
    plain = dict(recurrent_dropout=0.0, zoneout=0.0, layer_norm=False, recompute=False, heads=1)
    gates = dict(activation="tanh", recurrent_activation="sigmoid")
    for name, options in (("RNN", plain), ("LSTM", plain | gates), ("GRU", plain | gates | {"reset_after": True})):
        torch.manual_seed(0)
        expected = getattr(nn, name)(3, 4, 2)
        torch.manual_seed(0)
        module = getattr(rnnkernels, name)(3, 4, 2, **options)
        assert repr(module) == repr(expected) and "_rk_options" not in vars(module)
        assert list(module.state_dict()) == list(expected.state_dict())
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in module.state_dict().items())
        assert all(getattr(module, option) == value for option, value in options.items())


@pytest.mark.parametrize("bias", (True, False))
def test_parameters_of_layer_norm(bias):
    torch.manual_seed(5)
    plain = rnnkernels.LSTM(3, 4, 2, bidirectional=True, bias=bias)
    torch.manual_seed(5)
    module = rnnkernels.LSTM(3, 4, 2, bidirectional=True, bias=bias, layer_norm=True)
    state = module.state_dict()
    assert all(torch.equal(state.pop(k), v) for k, v in plain.state_dict().items())
    suffixes = ("l0", "l0_reverse", "l1", "l1_reverse")
    shapes = {"ln_x_gain": 16, "ln_h_gain": 16, "ln_c_gain": 4, "ln_c_bias": 4}
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        f"{k}_{s}": (n,) for s in suffixes for k, n in shapes.items()
    }
    for _ in range(2):
        assert all(
            (v == (0 if "bias" in k else 1)).all() for k, v in module.state_dict().items() if k.startswith("ln_")
        )
        for p in module.parameters():
            p.data.fill_(7.0)
        module.reset_parameters()
    assert len(module.all_weights) == 4 and len(module.all_weights[0]) == (8 if bias else 6)
    assert set(rnnkernels.GRU(3, 4, layer_norm=True).state_dict()) - set(plain.state_dict()) == {
        "ln_x_gain_l0", "ln_h_gain_l0"
    } | ({"bias_ih_l0", "bias_hh_l0"} if not bias else set())  # fmt: skip


def test_parameters_of_heads():
    for device in (None, "cpu", "meta"):
        for args in ((), (2, True, True, 0.1, True, 0, device)):
            module = rnnkernels.GRU(3, 8, *args, heads=4, **({} if args else {"device": device}))
            assert module.weight_hh_l0.shape == (4, 6, 2) and module.weight_ih_l0.shape == (24, 3)
            assert {p.device.type for p in module.parameters()} == {device or "cpu"}
    module = rnnkernels.LSTM(3, 8, heads=2, dtype=torch.float64)
    assert module.weight_hh_l0.dtype == torch.float64 and 0 < module.weight_hh_l0.abs().max() <= 8**-0.5
    with torch.device("meta"):
        assert rnnkernels.LSTM(3, 8, heads=2).weight_hh_l0.is_meta


def test_heads_are_layers_side_by_side():
    """Each head is a layer of torch.nn on its own rows of the weights."""
    module = rnnkernels.GRU(3, 6, heads=2, dtype=torch.float64)
    x, outputs = torch.randn(5, 2, 3, dtype=torch.float64), []
    for n in range(2):
        alone = nn.GRU(3, 3, dtype=torch.float64)
        rows = torch.arange(18).view(3, 2, 3)[:, n].flatten()
        alone.weight_hh_l0.data = module.weight_hh_l0[n].detach()
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(alone, name).data = getattr(module, name)[rows].detach()
        outputs.append(alone(x)[0])
    assert_close("y", module(x)[0], torch.cat(outputs, -1))


@pytest.mark.parametrize("name", MODULES)
def test_repr_copies_and_state(name):
    module = make(name).eval()
    text = {
        "RNN": "RNN(3, 4, num_layers=2, recurrent_dropout=0.3, zoneout=0.2, layer_norm=True, recompute=True)",
        "LSTM": "LSTM(3, 4, num_layers=2, bidirectional=True, zoneout=(0.1, 0.2), layer_norm=True, activation='relu', "
        "recompute=True)",
        "GRU": "GRU(3, 4, zoneout=0.2, recurrent_activation='hard_sigmoid', reset_after=False)",
        "heads": "GRU(3, 4, num_layers=2, bias=False, recurrent_dropout=0.2, recompute=True, heads=2)",
    }
    assert repr(module) == text[name]
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    fresh = MODULES[name]().double().eval()
    fresh.load_state_dict(module.state_dict())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module), fresh):
        assert type(twin) is type(module) and repr(twin) == repr(module)
        assert all(map(torch.equal, flat(twin(x)), flat(module(x))))


def test_options_can_be_assigned():
    module, x = rnnkernels.LSTM(3, 4).eval(), torch.randn(5, 2, 3)
    expected = module(x)[0]
    module.zoneout = (0.5, 0)
    assert module.zoneout == (0.5, 0.0) and repr(module) == "LSTM(3, 4, zoneout=(0.5, 0.0))"
    assert not torch.equal(module(x)[0], expected)
    module.zoneout = 0.0
    assert torch.equal(module(x)[0], expected)
    with pytest.raises(ValueError, match="zoneout should be a number in range"):
        module.zoneout = 1.0
    for name in ("layer_norm", "heads"):
        with pytest.raises(AttributeError, match=f"{name} decides over the parameters"):
            setattr(module, name, 2)
    converted = rnnkernels.convert(nn.GRU(3, 4))
    converted.recurrent_dropout = 0.5
    assert not torch.equal(converted(x)[0], converted(x)[0]) and converted.reset_after


def test_subclasses_have_attributes_of_their_own():
    """Written for torch.nn's classes, in whose place ours are."""

    class Own(rnnkernels.GRU):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.heads, self.activation, self.zoneout = 3, "relu", "note"

    with pytest.warns(UserWarning, match="is an attribute of Own now, and no option of the layer, which its construct"):
        module = Own(3, 4)
    assert (module.heads, module.activation, module.zoneout, module._rk_options) == (3, "relu", "note", None)
    plain, x = rnnkernels.GRU(3, 4), torch.randn(5, 2, 3)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module(x)[0], plain(x)[0]) and str(module) == "Own(3, 4)"
    twin = copy.deepcopy(module)
    twin.heads = 2
    assert (twin.heads, module.heads) == (2, 3)
    with pytest.raises(AttributeError, match="heads decides over the parameters"):
        Own(3, 4, recurrent_dropout=0.5)
    parametrized = torch.nn.utils.parametrizations.weight_norm(plain, "weight_hh_l0")
    parametrized.zoneout = 0.5
    assert parametrized._rk_options.zoneout == 0.5


WRONG_OPTIONS = [
    ("LSTM", {"zoneout": 1.0}, ValueError, r"zoneout should be a number in range \[0, 1\) .* of a state being kept"),
    ("LSTM", {"zoneout": -0.1}, ValueError, "zoneout should be a number in range"),
    ("LSTM", {"zoneout": (0.1, True)}, ValueError, "zoneout should be a number in range"),
    ("LSTM", {"zoneout": (0.1,)}, ValueError, "one probability per state"),
    ("GRU", {"zoneout": (0.1, 0.1)}, ValueError, "gru has one state"),
    ("GRU", {"zoneout": "0.1"}, ValueError, "zoneout should be a number in range"),
    ("RNN", {"recurrent_dropout": 1}, ValueError, r"recurrent_dropout should be a number in range \[0, 1\) .* of h"),
    ("RNN", {"recurrent_dropout": (0.1, 0.2)}, ValueError, "recurrent_dropout should be a number"),
    ("RNN", {"recurrent_dropout": float("nan")}, ValueError, "recurrent_dropout should be a number"),
    ("GRU", {"layer_norm": 1}, TypeError, "layer_norm should be of type bool, got: int"),
    ("GRU", {"reset_after": None}, TypeError, "reset_after should be of type bool, got: NoneType"),
    ("GRU", {"recompute": "yes"}, TypeError, "recompute should be of type bool, got: str"),
    (
        "LSTM",
        {"activation": "sine"},
        ValueError,
        "Unknown activation 'sine'. Select from 'tanh', 'relu', .* or 'linear'",
    ),
    ("LSTM", {"recurrent_activation": None}, ValueError, "Unknown recurrent_activation None"),
    ("LSTM", {"heads": 3}, ValueError, "hidden_size must be divisible by heads, got hidden_size=4 and heads=3"),
    ("LSTM", {"heads": 0}, ValueError, "heads must be greater than zero"),
    ("LSTM", {"heads": 2.0}, TypeError, "heads should be of type int, got: float"),
    ("LSTM", {"heads": 2, "proj_size": 2}, ValueError, "proj_size is not defined for heads"),
    ("LSTM", {"heads": 2, "layer_norm": True}, ValueError, "layer_norm .* is not defined for heads"),
    ("LSTM", {"reset_after": False}, TypeError, "unexpected keyword argument 'reset_after'"),
    ("RNN", {"activation": "relu"}, TypeError, "unexpected keyword argument 'activation'"),
]


@pytest.mark.parametrize("name, options, kind, words", WRONG_OPTIONS)
def test_wrong_options(name, options, kind, words):
    with pytest.raises(kind, match=words):
        getattr(rnnkernels, name)(3, 4, **options)


def test_functional_has_the_same_options():
    for name, module in ((n, make(n)) for n in MODULES):
        function = getattr(rnnkernels.functional, type(module).__name__.lower())
        x = torch.randn(5, 2, 3, dtype=torch.float64)
        options = {n: v for n, v in module._rk_options._asdict().items() if hasattr(module, n)}
        settings = (list(module._flat_weights), module.bias, module.num_layers, 0.0, True, module.bidirectional)
        torch.manual_seed(4)
        expected = flat(module(x))
        torch.manual_seed(4)
        found = function(x, None, *settings, **options)
        assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True)), name
    weights, x = list(nn.GRU(3, 4).parameters()), torch.randn(5, 2, 3)
    call = lambda **options: rnnkernels.functional.gru(x, None, weights, **options)  # noqa: E731
    with pytest.raises(TypeError, match=r"gru\(\) got an unexpected keyword argument 'colour'"):
        call(colour=1)
    with pytest.raises(ValueError, match="zoneout should be a number"):
        call(zoneout=2)
    with pytest.raises(RuntimeError, match="incorrect number of RNN parameters: 4"):
        call(layer_norm=True)
    with pytest.raises(RuntimeError, match=r"Expected RNN parameter 1 of shape \(2, 6, 2\), got \(12, 4\)"):
        call(heads=2)
    state = torch.randn(1, 2, 4)
    reset = torch.tensor([[False, True]] * 5)
    a, b = call(reset=(reset, state))[0], call(reset=reset)[0]
    assert torch.equal(a[:, 0], b[:, 0]) and not torch.equal(a[:, 1], b[:, 1])


def test_parametrized_and_converted():
    module, x = rnnkernels.GRU(3, 4, zoneout=0.2, reset_after=False).eval(), torch.randn(5, 2, 3)
    expected = module(x)[0]
    parametrizations.weight_norm(module, "weight_hh_l0")
    assert_close("y", module(x)[0], expected)
    assert rnnkernels.convert(nn.Sequential(module))[0] is module
    model = nn.Sequential(nn.Linear(3, 3), rnnkernels.LSTM(3, 4), rnnkernels.GRU(3, 4, zoneout=0.2))
    with pytest.raises(ValueError, match=r"revert: torch.nn has no zoneout=0.2, which 2 \(GRU\) has"):
        rnnkernels.revert(model)
    assert type(model[1]) is rnnkernels.LSTM  # nothing was reverted


@pytest.mark.parametrize(
    "feature", [f for f in FEATURES if f not in ("plain", "lengths", "cell states", "dropout", "batch_first")]
)
def test_stepper_and_quantized_run_what_they_can(feature):
    """Options without effect in inference are let pass; any other is refused by name."""
    options = {k: v for k, v in FEATURES[feature].items() if k not in ("reset", "train")}
    if not options:
        return
    torch.manual_seed(0)
    module, x = rnnkernels.LSTM(3, 4, **options).eval(), torch.randn(5, 2, 3)
    if feature in ("recurrent_dropout", "recompute"):
        assert_close("Stepper", rnnkernels.Stepper(module, 2).step(x), module(x)[0].detach())
        small = rnnkernels.quantize_dynamic(module)
        assert torch.equal(small(x)[0], rnnkernels.quantize_dynamic(rnnkernels.revert(plain_of(module)))(x)[0])
        return
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"a Stepper has no {name}="):
        rnnkernels.Stepper(module, 2)
    with pytest.raises(ValueError, match=f"quantize_dynamic: 0.a QuantizedLSTM has no {name}="):
        rnnkernels.quantize_dynamic(nn.Sequential(module))


def plain_of(module):
    """A plain module with the same weights."""
    plain = rnnkernels.LSTM(module.input_size, module.hidden_size).eval()
    plain.load_state_dict(module.state_dict())
    return plain


def test_quantized_modules_take_lengths():
    small, x = rnnkernels.quantize_dynamic(nn.GRU(3, 4, bidirectional=True)), torch.randn(5, 2, 3)
    y, h = small(x, lengths=[2, 5])
    assert torch.equal(y[:, 1], small(x)[0][:, 1]) and not y[2:, 0].any()
    assert_close("row", y[:2, 0], small(x[:2])[0][:, 0])
    with pytest.raises(ValueError, match="a QuantizedGRU has no reset and no return_cell_states"):
        rnnkernels.quantize_dynamic(nn.GRU(3, 4))(x, reset=torch.zeros(5, 2, dtype=torch.bool))


def test_explain():
    module, x = make("LSTM"), torch.randn(5, 2, 3, dtype=torch.float64)
    first, second = rnnkernels.explain(module, x, lengths=[1, 2]).layers
    assert first.call.stages == {"zone", "layer_norm", "lengths"} and first.call.activation == "relu"
    assert (first.call.I, second.call.I, second.call.D) == (3, 8, 2)
    (layer,) = rnnkernels.explain(make("GRU"), x, reset=torch.zeros(5, 2, dtype=torch.bool)).layers
    assert (
        layer.call.stages == {"zone", "second_product", "reset"} and layer.call.recurrent_activation == "hard_sigmoid"
    )
    module = make("heads")
    layers = rnnkernels.explain(module, x).layers
    assert [(a.call.D, a.call.H, a.call.P, a.call.I, a.call.stages) for a in layers] == [
        (2, 2, 2, 3, {"h_mask"}), (2, 2, 2, 4, {"h_mask"})
    ]  # fmt: skip
    assert not rnnkernels.explain(module.eval(), x).layers[0].call.stages  # no masks are drawn
    for name in MODULES:  # what it says is what happens
        module = make(name)
        for backend in CPU_BACKENDS:
            with backends.force(backend):
                if all(a.backend for a in rnnkernels.explain(module, x).layers):
                    module(x)
                else:
                    with pytest.raises(RuntimeError, match=f"backend '{backend}' is forced but cannot run"):
                        module(x)


def test_cells_that_a_test_forgets():
    """Every cell has a module in these tests."""
    from rnnkernels.cells import CELLS as SPECS

    assert set(SPECS) <= set(CELLS) and I != H
