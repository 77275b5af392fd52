"""The cells of the library as layers: beside loops written from the papers, and derivatives beside numbers."""

import pytest
import torch
from common import assert_close, run_layer
from library_loops import loop
from torch.autograd import gradcheck, gradgradcheck

from rnnkernels import cells
from rnnkernels.cells import CELLS, OF_LIBRARY
from rnnkernels.cells.weights import weights_of

BOTH = (False, True)


class Layer:
    """A layer of a cell with random tensors; ``self(*self.tensors)`` is y and the last states."""

    def __init__(self, name, T=4, B=3, I=2, H=3, reverse=(False,), seed=0, bias=True, **settings):  # noqa: E741
        self.cell, self.H, self.name = getattr(cells, name), H, name
        program, random = self.cell.program, torch.Generator().manual_seed(seed)
        self.table = weights_of(str(self.cell), I, H, bias=bias, layer_norm=settings.get("layer_norm", False))
        D, self.S = len(reverse), len(program.states)

        def draw(*shape, size=0.7):
            return (size * torch.randn(*shape, generator=random, dtype=torch.float64)).requires_grad_()

        states = [draw(D, B, H) for _ in program.states]
        if name == "slstm":  # a normaliser is positive
            states[2] = states[2].detach().exp().requires_grad_()
        weights = [draw(*w.shape) for _ in reverse for w in self.table]
        self.extras = [draw(T, B, 1 if e in program.narrow else H) for e in program.step]
        self.extras += [draw(B, H) for _ in program.sequence]
        self.tensors = [draw(T, B, I, size=1.0), *states, *weights, *self.extras]
        self.settings = {"reverse": reverse, "hidden_size": H, "bias": bias, **settings}

    def split(self, tensors):
        n = len(tensors) - len(self.extras)
        return tensors[0], tensors[1 : 1 + self.S], tensors[1 + self.S : n], tensors[n:]

    def __call__(self, *tensors, **more):
        x, states, weights, extras = map(list, [[tensors[0]], *self.split(tensors)[1:]])
        y, last = run_layer(str(self.cell), x[0], states, weights, extras=extras, **self.settings, **more)
        return (y, *last)

    def by_loop(self, *tensors):
        x, states, weights, extras = self.split(tensors)
        program, ys, lasts, n = self.cell.program, [], [], len(self.table)
        named = dict(zip(program.extras, extras, strict=True))
        for d, backward in enumerate(self.settings["reverse"]):
            own = {w.name: v for w, v in zip(self.table, weights[d * n : (d + 1) * n], strict=True)}
            flip = (lambda v: v.flip(0)) if backward else (lambda v: v)
            u = {e: flip(v) if e in program.step else v for e, v in named.items()}
            y, last = loop(self.name, self.H, flip(x), [s[d] for s in states], own, u, program.step)
            ys.append(flip(y)), lasts.append(last)
        return (torch.cat(ys, -1), *(torch.stack(s) for s in zip(*lasts, strict=True)))

    def names(self):
        program = self.cell.program
        weights = [f"{w.name} of direction {d}" for d in range(len(self.settings["reverse"])) for w in self.table]
        return ["x", *program.states, *weights, *program.extras]


def same(layer, actual, expected, tensors=None, tensors_expected=None):
    """Whether results are the same, and gradients with random ones of the results."""
    states = layer.cell.program.states
    random = torch.Generator().manual_seed(1)
    given = [torch.randn(v.shape, generator=random, dtype=v.dtype) for v in expected]
    for name, a, e in zip(["y", *states], actual, expected, strict=True):
        assert_close(name, a, e)
    tensors = layer.tensors if tensors is None else tensors
    grads = [
        torch.autograd.grad(results, of, given, allow_unused=True, materialize_grads=True)
        for results, of in ((actual, tensors), (expected, tensors_expected or tensors))
    ]
    for name, a, e in zip(layer.names(), *grads, strict=True):
        assert_close(f"d {name}", a, e)


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_as_the_papers_have_it(name):
    layer = Layer(name, reverse=BOTH)
    same(layer, layer(*layer.tensors), layer.by_loop(*layer.tensors))


def test_slstm_without_a_past():
    """From zero states, with input gates that overflow, or vanish, without the stabiliser's help."""
    layer = Layer("slstm", T=3)
    for s in layer.tensors[1:5]:
        s.data.zero_()
    tensors = [t for n, t in enumerate(layer.tensors) if n not in (2, 3)]  # c and n have no past to give a gradient to
    found = []
    for run in (layer, layer.by_loop):
        y, *_ = run(*layer.tensors)
        found.append([y, *torch.autograd.grad(y.sin().sum(), tensors)])
    for actual, expected in zip(*found, strict=True):
        assert_close("y or a gradient", actual, expected)
    layer.tensors[0].data *= 1e4
    y, *_ = layer(*layer.tensors)
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), layer.tensors))


@pytest.mark.parametrize("name", [n for n in OF_LIBRARY if n != "lif"])  # whose derivative is none
def test_derivatives_of_layers(name):
    layer = Layer(name, T=2, B=2, I=2, H=2, reverse=BOTH)
    assert gradcheck(layer, layer.tensors)
    assert gradgradcheck(layer, layer.tensors, fast_mode=True)


def test_second_derivatives_through_a_derivative_of_the_users_own():
    """They are those of the surrogate, as autograd of the loop has them."""
    layer = Layer("lif", T=3, seed=2)
    second = []
    for run in (layer, layer.by_loop):
        y, v = run(*layer.tensors)
        first = torch.autograd.grad((y * v).sum(), layer.tensors, create_graph=True, allow_unused=True)
        squares = sum(g.square().sum() for g in first if g is not None)
        second.append(torch.autograd.grad(squares, layer.tensors, allow_unused=True, materialize_grads=True))
    for name, a, e in zip(layer.names(), *second, strict=True):
        assert_close(f"d {name}", a, e)


def options(name, T, B, H, D, states):
    """Everything that a layer can have besides directions, by what it is called."""
    random = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.rand(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    found = {
        "plain": {}, "lengths": {"lengths": torch.tensor([T, 2, 0])}, "reset": {"reset": draw(T, B) < 0.4},
        "restart": {"reset": draw(T, B) < 0.4, "reset_states": [draw(D, B, H) for _ in range(states)]},
        "recurrent dropout": {"h_mask": (draw(D, B, H) < 0.6).double() / 0.6},
        "zoneout": {"zone": [draw(T, D, B, H) < 0.3 for _ in range(states)]},
        "zoneout in evaluation": {"zone": [torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)] * states},
        "no bias": {"bias": False}, "layer norm": {"layer_norm": True},
    }  # fmt: skip
    if name == "lstm":  # the built-in one normalises c as well
        del found["layer norm"]
    return found


@pytest.mark.parametrize("name", CELLS)
def test_with_every_option_as_the_built_in_ones(name):
    for option, more in options(name, 4, 3, 3, 2, CELLS[name].states).items():
        settings = {k: more.pop(k) for k in ("bias", "layer_norm") if k in more}
        layer = Layer(name, reverse=BOTH, **settings)
        found = layer(*layer.tensors, **more)
        x, states, weights, _ = layer.split(layer.tensors)
        y, last = run_layer(name, x, list(states), list(weights), **layer.settings, **more)
        try:
            same(layer, found, (y, *last))
        except AssertionError as error:
            raise AssertionError(f"{option}: {error}") from None
