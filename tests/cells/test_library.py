"""The cells of the library as layers: beside loops written from the papers, and derivatives beside numbers."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from common import assert_close, run_layer
from hypothesis import given, note, settings
from hypothesis import strategies as st
from library_loops import loop
from program_cases import RandomCell, chooser
from torch.autograd import gradcheck, gradgradcheck

import rnnkernels
from rnnkernels import backends, cells
from rnnkernels.cells import CELLS
from rnnkernels.cells.library import __all__ as OF_LIBRARY
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


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_as_modules(name):
    """``Recurrent`` in both directions, batch first, with lengths; and its first step by ``RecurrentCell``."""
    layer = Layer(name, reverse=BOTH)
    x, states, weights, extras = layer.split(layer.tensors)
    module = rnnkernels.Recurrent(layer.cell, 2, 3, bidirectional=True, batch_first=True, dtype=torch.float64)
    one = rnnkernels.RecurrentCell(layer.cell, 2, 3, dtype=torch.float64)
    names = [f"{w.name}_l0{suffix}" for suffix in ("", "_reverse") for w in layer.table]
    module.load_state_dict(dict(zip(names, weights, strict=True)))
    one.load_state_dict({w.name: v for w, v in zip(layer.table, weights, strict=False)})
    program = layer.cell.program
    inputs = dict(zip(program.extras, extras, strict=True))
    ours = {n: u.transpose(0, 1) if n in program.step else u for n, u in inputs.items()}
    y, last = module(x.transpose(0, 1), tuple(states) if layer.S > 1 else states[0], lengths=[4, 4, 2], **ours)
    expected, *last_expected = layer.by_loop(*layer.tensors)
    assert_close("y", y.transpose(0, 1)[:, :2], expected[:, :2])
    assert not y[2, 2:].any()
    for state, a, e in zip(program.states, last if layer.S > 1 else [last], last_expected, strict=True):
        assert_close(state, a[:, :2], e[:, :2])
    first = {n: u[0] if n in program.step else u for n, u in inputs.items()}
    y, last = one(x[0], tuple(s[0] for s in states) if layer.S > 1 else states[0][0], **first)
    assert_close("first step", y, expected[0, :, :3])


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


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in OF_LIBRARY if n != "lif"])  # whose derivative is none
def test_derivatives_of_layers(name):
    layer = Layer(name, T=2, B=2, I=2, H=2, reverse=BOTH)
    assert gradcheck(layer, layer.tensors)
    assert gradgradcheck(layer, layer.tensors, fast_mode=True)


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_second_derivatives_are_those_of_the_loops(name):
    """With a derivative of the user's own they are the surrogate's, as autograd of the loop has them."""
    layer = Layer(name, T=3, reverse=BOTH, seed=2)
    second = []
    for run in (layer, layer.by_loop):
        y, *last = run(*layer.tensors)
        total = (y * torch.cat([*last[-1]], -1)).sum() + sum(s.sin().sum() for s in last)
        first = torch.autograd.grad(total, layer.tensors, create_graph=True, allow_unused=True)
        squares = sum(g.square().sum() for g in first if g is not None)
        second.append(torch.autograd.grad(squares, layer.tensors, allow_unused=True, materialize_grads=True))
    for name, a, e in zip(layer.names(), *second, strict=True):
        assert_close(f"d {name}", a, e)


@pytest.mark.parametrize("what", ["a vector", "a narrow input", "a number of both"])
def test_a_derivative_of_the_users_own_of_fewer_values_than_a_step_has(backend, what):
    """Its gradient is summed once over the rows and units that share a value."""
    through = rnnkernels.derivative(torch.sign, lambda v, d: d)

    @rnnkernels.cell(inputs="a", vectors="p", step_inputs="u:1")
    def own(x, s, v, u):
        value = {"a vector": v.p, "a narrow input": u.u, "a number of both": v.p * u.u}[what]
        return torch.sigmoid(x.a + v.p * u.u) * through(value) + 0.5 * s.h

    layer = rnnkernels.Recurrent(own, 2, 3, dtype=torch.float64)
    x, u = torch.randn(2, 5, 2, dtype=torch.float64), torch.randn(2, 5, 1, dtype=torch.float64, requires_grad=True)
    leaves = [u, *layer.parameters()]

    def by_hand():
        p, h, ys = layer.p_l0, 0.0, []
        for x_BI, u_B1 in zip(x, u, strict=True):
            value = {"a vector": p, "a narrow input": u_B1, "a number of both": p * u_B1}[what].expand(5, 3)
            value = value - value.detach() + value.detach().sign()
            h = torch.sigmoid(x_BI @ layer.weight_ih_l0.t() + layer.bias_ih_l0 + p * u_B1) * value + 0.5 * h
            ys.append(h)
        return torch.stack(ys)

    found = []
    for y in (layer(x, u=u)[0], by_hand()):
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(
            sum(g.sin().sum() for g in first), leaves, allow_unused=True, materialize_grads=True
        )
        found.append([y, *first, *second])
    for n, (a, e) in enumerate(zip(*found, strict=True)):
        assert_close(f"value {n}", a, e)


def test_states_without_a_gradient():
    """A state of comparisons alone, and a cell of nothing else: gradients are zeros, of the second order too."""

    @rnnkernels.cell(inputs="a", states="h c")
    def sign(x, s):
        return torch.tanh(x.a) * s.c, (x.a > s.h) * 1.0

    @rnnkernels.cell(inputs="a")
    def spikes(x, s):
        return (x.a > s.h) * 1.0

    for cell, none in ((sign, False), (spikes, True)):
        layer, found = rnnkernels.Recurrent(cell, 2, 3, dtype=torch.float64), []
        x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
        for forced in (nullcontext(), backends.force("reference")):
            with forced:
                y, last = layer(x)
                total = y.sum() + sum(s.sum() for s in last)
                first = torch.autograd.grad(total, [x, layer.weight_ih_l0], create_graph=True)
                found.append([*first, *torch.autograd.grad(first[0].square().sum(), x)])
        assert none == (not any(g.any() for g in found[0]))
        for a, e in zip(*found, strict=True):
            assert_close("a gradient", a, e)


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


def random_layer(made, x, states, weights, extras, h_mask):
    """A layer of a ``RandomCell`` by a loop: ``y, last states``.

    What an inner product multiplies is computed with the masked h, everything else with h itself.
    """
    program, (h, *others), ys = made.cell.program, states, []
    gates, recurrent = len(program.inputs), len(program.recurrent) - bool(made.inner)

    def product(v, rows):
        return F.linear(v, weights["weight_hh"][rows], weights["bias_hh"][rows])

    H = h.size(-1)
    first, last = slice(0, recurrent * H), slice(recurrent * H, None)
    for t in range(x.size(0)):
        leaves = {("ds", s): v for s, v in zip(program.states, (h, *others), strict=True)}
        leaves |= {("dv", v): weights[v].expand_as(h) for v in program.vectors}
        leaves |= {("du", u): (v if u in program.sequence else v[t]).expand_as(h) for u, v in extras.items()}
        if gates:
            sides = F.linear(x[t], weights["weight_ih"], weights["bias_ih"]).split(H, -1)
            leaves |= {("dx", g): v for g, v in zip(program.inputs, sides, strict=True)}
        if program.recurrent:
            operand = made.operand(leaves) if "operand" in made.parts else h
            sides = product(operand * h_mask, first).split(H, -1)
            leaves |= {("dr", g): v for g, v in zip(program.recurrent, sides[:recurrent], strict=False)}
        if made.inner:
            inner = made.eager({**leaves, ("ds", program.states[0]): h * h_mask, ("di", None): h})["inner", None]
            leaves["di", None] = product(inner.expand_as(h), last)
        put = made.eager(leaves)
        h, *others = (put["new", s].expand_as(h) for s in program.states)
        ys.append(put["y", None].expand_as(h) if "output" in made.parts else h)
    return torch.stack(ys), [h, *others]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(min_size=160, max_size=160))
def test_layers_of_random_cells(numbers):
    """Recurrent dropout too, which masks what the products multiply, and nothing else."""
    made = RandomCell(chooser(numbers))
    note(str(made.cell))
    T, B, I, H, program = 3, 2, 2, 3, made.cell.program  # noqa: E741
    random = torch.Generator().manual_seed(numbers[-1])
    draw = lambda *shape: (0.7 * torch.randn(*shape, generator=random, dtype=torch.float64)).requires_grad_()  # noqa: E731
    table = weights_of(program.text, I, H)
    weights = {w.name: draw(*w.shape) for w in table}
    x, states = draw(T, B, I), [draw(1, B, H) for _ in program.states]
    extras = {u: draw(T, B, 1 if u in program.narrow else H) for u in program.step}
    extras |= {u: draw(B, H) for u in program.sequence}
    h_mask = torch.tensor([[[0.0, 2.0, 0.5], [1.0, 0.0, 2.0]]], dtype=torch.float64)
    h_mask = h_mask if program.recurrent else torch.ones_like(h_mask)
    y, last = run_layer(
        program.text, x, states, list(weights.values()), hidden_size=H, extras=list(extras.values()),
        h_mask=h_mask if program.recurrent else None,
    )  # fmt: skip
    expected, last_expected = random_layer(made, x, [s[0] for s in states], weights, extras, h_mask[0])
    leaves = {"x": x, **{f"d {n}": s for n, s in zip(program.states, states, strict=True)}, **weights, **extras}
    grads = []
    for results in ([y, *last], [expected, *(s[None] for s in last_expected)]):
        total = sum((v * torch.linspace(0.5, 1, v.numel()).view_as(v)).sum() for v in results)
        grads.append(torch.autograd.grad(total, leaves.values(), allow_unused=True, materialize_grads=True))
    assert_close("y", y, expected, 1e-9)
    for name, a, e in zip(leaves, *grads, strict=True):
        assert_close(f"d {name}", a, e, 1e-8)


@pytest.mark.parametrize("gates", (-80.0, -95.0, -105.0, -300.0))
def test_min_lstm_where_both_gates_are_too_small_for_a_number(gates):
    """Only their ratio counts, in float32 as in float64."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([gates, gates - 0.5, 2.0], dtype=dtype).view(1, 1, 3).requires_grad_()
        layer = rnnkernels.Recurrent(rnnkernels.cells.min_lstm, 3, 1, bias=False, dtype=dtype)
        with torch.no_grad():
            layer.weight_ih_l0.copy_(torch.eye(3))
        y, _ = layer(x, torch.ones(1, 1, 1, dtype=dtype))
        found[dtype] = y.detach(), torch.autograd.grad(y.sum(), x)[0]
    for name, actual, expected in zip(("y", "dx"), found[torch.float32], found[torch.float64], strict=True):
        assert_close(name, actual, expected)
    assert_close("y", found[torch.float64][0], 2 - torch.sigmoid(torch.tensor(0.5, dtype=torch.float64)).view(1, 1, 1))
