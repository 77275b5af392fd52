"""Programs that derive from torch.nn's layers, or put tensors into ``_flat_weights``, with our classes in the place."""

import copy

import pytest
import torch
import torch.nn.functional as F
from common import assert_close
from torch import nn

import rnnkernels

I, H, T, B = 3, 5, 6, 2  # noqa: E741
LIBRARIES = {"torch.nn": nn, "rnnkernels": rnnkernels}
kinds = pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])


def same(make, use):
    """What ``use`` gives for the modules that ``make`` makes of torch.nn's classes and of ours, from one seed."""
    found = []
    for library in LIBRARIES.values():
        torch.manual_seed(0)
        module = make(library)
        torch.manual_seed(1)
        found.append(use(module))
    for name, expected in found[0].items():
        assert_close(name, found[1][name], expected)


def passed(module, *more):
    """Output and gradients by name of a call on x, which is the same each time."""
    x = torch.randn(T, B, I, generator=torch.Generator().manual_seed(7), requires_grad=True)
    torch.manual_seed(2)
    y = module(x, *more)[0]
    y.square().sum().backward()
    found = {"y": y.detach(), "dx": x.grad}
    return found | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def dropping(base):
    """DropConnect, as programs write it: other tensors in ``_flat_weights`` during a call."""

    class DropConnect(base):
        def forward(self, input, hx=None):
            kept = self._flat_weights
            self._flat_weights = [
                F.dropout(w, 0.5) if name.startswith("weight_hh") else w
                for w, name in zip(kept, self._flat_weights_names, strict=True)
            ]
            try:
                return super().forward(input, hx)
            finally:
                self._flat_weights = kept

    return DropConnect


@kinds
def test_tensors_in_flat_weights_during_a_call(kind):
    same(lambda library: dropping(getattr(library, kind))(I, H, 2, bidirectional=True), passed)
    torch.manual_seed(0)
    converted = rnnkernels.convert(dropping(getattr(nn, kind))(I, H, 2, bidirectional=True), subclasses=True)
    assert isinstance(converted, rnnkernels.nn.base.RecurrentBase)
    torch.manual_seed(0)
    expected = passed(dropping(getattr(nn, kind))(I, H, 2, bidirectional=True))
    for name, value in passed(converted).items():
        assert_close(name, value, expected[name])


def generated(module, scale=0.5):
    """The module without parameters, computing with tensors that another network has made."""
    made = [(scale * p).detach().requires_grad_() for p in module.parameters()]
    for name in list(module._flat_weights_names):
        delattr(module, name)
    module._flat_weights = made
    return module, made


@kinds
def test_weights_that_another_network_makes(kind):
    def use(module):
        module, made = generated(module)
        return passed(module) | {f"d{n}": w.grad for n, w in enumerate(made)}

    same(lambda library: getattr(library, kind)(I, H), use)


@kinds
def test_convert_and_revert_keep_them(kind):
    module, made = generated(getattr(nn, kind)(I, H))
    expected = passed(module)
    for turn in (rnnkernels.convert, rnnkernels.revert, rnnkernels.convert):
        turn(module)
        assert all(a is b for a, b in zip(module._flat_weights, made, strict=True))
        assert_close("y", passed(module)["y"], expected["y"])


def test_a_tensor_put_into_the_list_counts_until_a_parameter_is_replaced():
    def use(module):
        plain = passed(module)["y"]
        module._flat_weights[1] = torch.eye(H)
        changed = passed(module)["y"]
        assert not torch.equal(plain, changed) and torch.equal(passed(copy.deepcopy(module))["y"], plain)
        module.bias_hh_l0 = nn.Parameter(torch.ones(H))
        return {"changed": changed, "replaced": passed(module)["y"]}

    same(lambda library: library.RNN(I, H), use)


def test_a_move_takes_the_parameters_again():
    def use(module):
        plain = module._flat_weights
        module._flat_weights = [2 * w.detach() for w in plain]
        y = passed(module)["y"]
        return {"y": y, "moved": passed(module.float())["y"]}

    same(lambda library: library.GRU(I, H), use)


def test_tools_that_take_weights_by_name_refuse_others():
    module = rnnkernels.LSTM(I, H)
    module._flat_weights = [w.detach() / 2 for w in module.parameters()]
    for tool in (lambda m: rnnkernels.Stepper(m, B), rnnkernels.quantize_dynamic, rnnkernels.freeze):
        with pytest.raises(ValueError, match="weights by their names, but other ones were assigned to _flat_weights"):
            tool(module)
    module._flat_weights = list(module.parameters())
    rnnkernels.Stepper(module, B)


NAMES = "hidden layers kind options packed step states name single_state forward_more wrong_input reset_norms".split()


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_names_of_their_own(kind):
    """Attributes and methods with any short private name."""

    def make(library):
        body = {f"_{name}": lambda self: None for name in NAMES[::2]}
        module = type("Mine", (getattr(library, kind),), body)(I, H)
        for name in NAMES[1::2]:
            setattr(module, f"_{name}", None)
        module.ln_scale = nn.Parameter(torch.zeros(H))
        module.reset_parameters()
        return module

    def use(module):
        if not kind.endswith("Cell"):
            return passed(module) | {"ln_scale": module.ln_scale.detach()}
        h = module(torch.randn(B, I))
        return {"h": h[0] if isinstance(h, tuple) else h, "ln_scale": module.ln_scale.detach()}

    same(make, use)


def overriding(base, name):
    """A class with a method that only torch.nn's forward calls, and which changes what comes out."""

    def permute_hidden(self, hx, permutation):
        doubled = tuple(2 * s for s in hx) if isinstance(hx, tuple) else 2 * hx
        return super(cls, self).permute_hidden(doubled, permutation)

    def check_forward_args(self, *args):
        raise KeyError("mine")

    body = {
        "permute_hidden": permute_hidden, "check_forward_args": check_forward_args,
        "_flat_weights": property(lambda self: [torch.full_like(p, 0.1) for p in self.parameters()],
                                  lambda self, value: None),
    }  # fmt: skip
    cls = type("Mine", (base,), {name: body[name]})
    return cls


@kinds
@pytest.mark.parametrize("name", ["permute_hidden", "check_forward_args", "_flat_weights"])
def test_what_only_torchs_forward_calls(kind, name):
    """It runs then, and a warning says so at the definition."""
    with pytest.warns(UserWarning, match=f"Mine overrides {name}, which rnnkernels does not call: torch.nn's forward"):
        ours = overriding(getattr(rnnkernels, kind), name)
    classes = {nn: overriding(getattr(nn, kind), name), rnnkernels: ours}
    h = torch.randn(1, B, H)
    hx = (h, h) if kind == "LSTM" else h
    if name == "check_forward_args":
        for cls in classes.values():
            with pytest.raises(KeyError, match="mine"):
                cls(I, H)(torch.randn(T, B, I), hx)
    else:
        same(lambda library: classes[library](I, H), lambda module: {"y": passed(module, hx)["y"]})
    with pytest.raises(NotImplementedError, match=f"Mine overrides {name}, which only torch.nn's forward calls"):
        ours(I, H)(torch.randn(T, B, I), lengths=[T, 1])
    with pytest.raises(NotImplementedError, match="that has no options, lengths"):
        ours(I, H, zoneout=0.1)(torch.randn(T, B, I))


@pytest.mark.parametrize("change", [{"bias": False}, {"num_layers": 1}, {"bidirectional": True}])
def test_attributes_that_do_not_fit_the_weights(change):
    module = rnnkernels.GRU(I, H, 2)
    for name, value in change.items():
        setattr(module, name, value)
    for context in (torch.enable_grad, torch.no_grad):
        with context(), pytest.raises(RuntimeError, match="got an incorrect number of RNN parameters: 8 for"):
            module(torch.randn(T, B, I))


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_a_cell_has_the_biases_that_it_has(kind):
    def use(cell):
        cell.bias = False  # torch.nn's forward does not look at it
        h = cell(torch.ones(B, I))
        return {"h": h[0] if isinstance(h, tuple) else h}

    same(lambda library: getattr(library, kind)(I, H), use)


@pytest.mark.parametrize("kind", ["GRU", "GRUCell"])
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_weights_are_refused_by_name(kind):
    module = getattr(rnnkernels, kind)(I, H).to(torch.complex64)
    x = torch.randn(T, B, I, dtype=torch.complex64)
    with pytest.raises(TypeError, match="of float64, float32, bfloat16 or float16, but got torch.complex64"):
        module(x[0] if kind.endswith("Cell") else x)
