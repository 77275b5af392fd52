"""Cells with norms inside: as layers, beside loops where ``torch.nn.functional.layer_norm`` normalises.

Letters: T time, B batch, D directions, H hidden, I input.
"""

import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from common import TOLERANCES, assert_close
from torch.autograd import gradcheck, gradgradcheck

import rnnkernels
from rnnkernels import backends

sigmoid, tanh = torch.sigmoid, torch.tanh


def of_torch(v, eps=1e-5):
    return F.layer_norm(v, v.shape[-1:], eps=eps)


def lstm(norm, product):
    def function(x, r, s, v):
        """The norm of c on its way to the output."""
        i, f, o = sigmoid(x.i + r.i), sigmoid(x.f + r.f), sigmoid(x.o + r.o)
        c = f * s.c + i * tanh(x.g + r.g)
        return o * tanh(norm(c) * v.gain + v.shift), c

    return function


def inner(norm, product):
    def function(x, r, s, v):
        """Norms of sums, of a state, of what a second product multiplies and gives, and of a vector."""
        z = sigmoid(norm(x.z + r.z, eps=1e-3))
        n = tanh(norm(x.n + product("n", norm(s.h, eps=1e-2) * z), eps=1e-2))
        return norm(v.p) * z + (1 - z) * n, 0.5 * (s.w + n)

    return function


def alone(norm, product):
    def function(x, s):
        """No recurrent product: units of a step meet in the norm alone."""
        return s.h + sigmoid(x.z) * (norm(tanh(x.n) + 0.5 * s.h) - s.h)

    return function


KINDS = {  # a function of values, made of a norm and a product; what the product multiplies, and the output; names
    "lstm": (lstm, None, None, dict(inputs="i f g o", recurrent="i f g o", states="h c", vectors="gain shift")),
    "inner": (inner, lambda norm: lambda s: norm(s.h + s.w, eps=1e-2), lambda norm: lambda s: norm(s.w, eps=1e-2),
              dict(inputs="z n", recurrent="z n", states="h w", vectors="p")),
    "alone": (alone, None, None, dict(inputs="z n", states="h")),
}  # fmt: skip


def cell_of(name):
    function, operand, output, names = KINDS[name]
    parts = {} if operand is None else {"operand": operand(rnnkernels.norm), "output": output(rnnkernels.norm)}
    return rnnkernels.cell(**names, **parts, name=name)(function(rnnkernels.norm, rnnkernels.product))


CELLS = {name: cell_of(name) for name in KINDS}


def loop(name, x, states, own):
    """``y, last states`` of one direction, from parameters by name."""
    make, operand, output, names = KINDS[name]
    inputs, recurrent, vectors = (names.get(kind, "").split() for kind in ("inputs", "recurrent", "vectors"))
    state, ys = lambda values: SimpleNamespace(**dict(zip(names["states"].split(), values, strict=True))), []
    rows = {}
    if recurrent:
        H = own["weight_hh"].size(1)
        rows = dict(zip(recurrent, zip(own["weight_hh"].split(H), own["bias_hh"].split(H), strict=True), strict=True))
    function = make(of_torch, lambda gate, v: F.linear(v, *rows[gate]))
    for x_t in x:
        s, sides = state(states), F.linear(x_t, own["weight_ih"], own["bias_ih"]).chunk(len(inputs), -1)
        h = s.h if operand is None else operand(of_torch)(s)
        values = {
            "x": SimpleNamespace(**dict(zip(inputs, sides, strict=True))), "s": s,
            "r": SimpleNamespace(**{gate: F.linear(h, *w) for gate, w in rows.items()}),
            "v": SimpleNamespace(**{vector: own[vector] for vector in vectors}),
        }  # fmt: skip
        new = function(*(values[k] for k in function.__code__.co_varnames[: function.__code__.co_argcount]))
        states = new if isinstance(new, tuple) else (new,)
        ys.append(states[0] if output is None else output(of_torch)(state(states)))
    return torch.stack(ys), states


def layer_of(name, I=3, H=5, seed=0, **settings):  # noqa: E741
    torch.manual_seed(seed)
    return rnnkernels.Recurrent(CELLS[name], I, H, **settings)


def tuple_of(states):
    return (states,) if isinstance(states, torch.Tensor) else states


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", KINDS)
def test_as_loops_have_it(name, dtype):
    """Both directions, from states that are given; every gradient by its name."""
    for n, (T, B, H) in enumerate(((4, 3, 5), (1, 1, 19), (3, 1, 70), (1, 4, 32), (5, 2, 1))):
        layer = layer_of(name, H=H, seed=n, bidirectional=True, dtype=dtype)
        S, leaf = len(layer.cell.program.states), lambda *shape: torch.randn(*shape).to(dtype).requires_grad_()  # noqa: B023, E731
        x, hx = leaf(T, B, 3), [leaf(2, B, H) for _ in range(S)]
        y, last = layer(x, tuple(hx) if S > 1 else hx[0])
        wide = {key: v.detach().double().requires_grad_() for key, v in layer.named_parameters()}
        x64, *hx64 = (v.detach().double().requires_grad_() for v in (x, *hx))
        ys, lasts = [], []
        for d, flip in enumerate((lambda v: v, lambda v: v.flip(0))):
            suffix = "_l0_reverse" if d else "_l0"
            own = {key.removesuffix(suffix): v for key, v in wide.items() if key.endswith(suffix)}
            y_d, last_d = loop(name, flip(x64), [s[d] for s in hx64], own)
            ys.append(flip(y_d)), lasts.append(last_d)
        results = [y, *tuple_of(last)]
        expected = [torch.cat(ys, -1), *(torch.stack(s) for s in zip(*lasts, strict=True))]
        given = [torch.randn(v.shape).to(dtype) for v in results]
        leaves = {"x": x, **{f"state {k}": s for k, s in enumerate(hx)}, **dict(layer.named_parameters())}
        grads = torch.autograd.grad(results, list(leaves.values()), given)
        grads64 = torch.autograd.grad(expected, [x64, *hx64, *wide.values()], [g.double() for g in given])
        tolerance = TOLERANCES[dtype] * (5 if dtype.itemsize < 4 else 1)  # rounding of what is kept and of states
        found = [*zip(["y", *leaves][: len(results)], results, expected, strict=True)]
        for what, a, e in [*found, *zip([f"d {leaf}" for leaf in leaves], grads, grads64, strict=True)]:
            if H == 1 and not e.abs().max() > 1e-9:  # of a single unit nothing is left, but rounding
                assert a.abs().max() <= tolerance, what
            else:
                assert_close(f"{what}, H={H}", a, e, tolerance)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own jvp uses it
@pytest.mark.parametrize("name", KINDS)
def test_derivatives(name):
    """First and second ones, numerically; forward mode beside backward mode."""
    layer = layer_of(name, 2, 3, bidirectional=True, dtype=torch.float64)
    names, S = [n for n, _ in layer.named_parameters()], len(layer.cell.program.states)

    def run(x, *tensors):
        states, own = tensors[:S], dict(zip(names, tensors[S:], strict=True))
        y, last = torch.func.functional_call(layer, own, (x, states if S > 1 else states[0]))
        return (y, *tuple_of(last))

    shapes = [(2, 2, 2), *[(2, 2, 3)] * S, *(p.shape for p in layer.parameters())]
    tensors = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert gradcheck(run, tensors)
    assert gradgradcheck(run, tensors, fast_mode=True)
    tangents = [torch.randn_like(t) for t in tensors]
    _, forward = torch.func.jvp(run, tuple(tensors), tuple(tangents))
    cotangents = [torch.randn_like(v) for v in forward]
    backward = torch.autograd.grad(run(*tensors), tensors, cotangents)
    dot = lambda one, other: sum((a * b).sum() for a, b in zip(one, other, strict=True))  # noqa: E731
    assert_close("jvp", dot(forward, cotangents), dot(backward, tangents))


OPTIONS = {
    "lengths": dict(bidirectional=True, num_layers=2), "reset": dict(batch_first=True),
    "recompute": dict(recompute=True), "zoneout": dict(zoneout=0.3, bidirectional=True), "heads": dict(heads=2),
    "all": dict(zoneout=0.2, recurrent_dropout=0.3, layer_norm=True), "layer_norm": dict(layer_norm=True),
}  # fmt: skip


@pytest.mark.skipif(backends.EXTENSION_ERROR is not None, reason=f"no C++ extension: {backends.EXTENSION_ERROR}")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", KINDS)
def test_options(name, option):
    """In C++ as the reference has it, every gradient by its name; NaN past the lengths stays there."""
    settings = dict(OPTIONS[option])
    if not CELLS[name].program.recurrent:
        settings = {k: v for k, v in settings.items() if k not in ("heads", "recurrent_dropout")}
    layer, B = layer_of(name, H=18, dtype=torch.float64, **settings), 3
    x, call = torch.randn(B if "batch_first" in settings else 4, 3 if "batch_first" in settings else B, 3).double(), {}
    if option in ("lengths", "all"):
        call["lengths"] = torch.tensor([4, 0, 2])
        x[2:, 2], x[:, 1] = torch.nan, torch.nan
    if option in ("reset", "all"):
        call["reset"] = torch.rand(x.shape[:2]) < 0.4
    found, x = [], x.requires_grad_()
    for backend in ("cpp", "reference"):
        torch.manual_seed(1)
        with backends.force(backend):
            y, last = layer(x, **call)
            results, leaves = [y, *tuple_of(last)], {"x": x, **dict(layer.named_parameters())}
            loss = sum((v * torch.linspace(0.3, 1, v.numel(), dtype=v.dtype).view(v.shape)).sum() for v in results)
            grads = torch.autograd.grad(loss, list(leaves.values()))
        found.append({f"result {k}": v for k, v in enumerate(results)} | dict(zip(leaves, grads, strict=True)))
    for what, expected in found[1].items():
        assert expected.isfinite().all(), what
        assert_close(what, found[0][what], expected)


def test_a_row_has_the_units_of_a_head():
    only = rnnkernels.cell(inputs="h", recurrent="h")(lambda x, r: rnnkernels.norm(x.h + r.h))
    for heads in (1, 2):
        layer = rnnkernels.Recurrent(only, 3, 12, heads=heads)
        for name in ("cpp", "reference")[backends.EXTENSION_ERROR is not None :]:
            with backends.force(name):
                y = layer(torch.randn(4, 2, 3))[0].unflatten(-1, (heads, -1))
            assert_close("mean", y.mean(-1), torch.zeros(4, 2, heads))
            assert_close("variance", y.var(-1, correction=0), torch.ones(4, 2, heads), 1e-3)


def test_what_training_keeps():
    """No plane of the norm's own: of a state its history is there already."""
    plain = rnnkernels.cells.lstm
    assert CELLS["lstm"].program.keep == plain.program.keep == 4
    assert CELLS["lstm"].program.norms and not plain.program.norms
    rows = rnnkernels.cell(inputs="h")(lambda x, s: tanh(rnnkernels.norm(x.h)) + s.h)
    assert rows.program.keep == 1 and str(rows).count("layer_norm_back") == 1


def test_equal_numbers():
    """Of equal numbers nothing is left; of constants at the definition, with eps of 0 it is NaN, as in torch."""
    folded = rnnkernels.cell(inputs="h")(lambda x: x.h + rnnkernels.norm(x.h * 0 + 0.5) + rnnkernels.norm(0.0 * x.h))
    layer = rnnkernels.Recurrent(folded, 2, 7)
    x = torch.randn(3, 2, 2)
    assert_close("y", layer(x)[0], F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0))
    zero = rnnkernels.Recurrent(rnnkernels.cell(inputs="h")(lambda x: rnnkernels.norm(x.h * 0, eps=0)), 2, 7)
    assert zero(x)[0].isnan().all() and of_torch(torch.zeros(3), eps=0.0).isnan().all()


@pytest.mark.skipif(backends.EXTENSION_ERROR is not None, reason=f"no C++ extension: {backends.EXTENSION_ERROR}")
@torch.no_grad()
def test_units_stay_together():
    """A layer and a Stepper so large that threads would share out units, did these not meet; ``explain`` tells it."""
    layer, x = layer_of("inner", 64, 256), torch.randn(3, 1, 64)
    with backends.force("reference"):
        expected = layer(x)[0]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        said = str(rnnkernels.explain(layer, x))
        assert "a step's products before its norms and cells" in said and "split over" not in said, said
        assert_close("y", layer(x)[0], expected)
        assert_close("y of a Stepper", rnnkernels.Stepper(layer, 1).step(x), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_step_at_a_time(name, dtype):
    """A Stepper of two layers in pieces, a cell as a module, a frozen copy, one from a pickle."""
    layer, x = layer_of(name, H=21, num_layers=2, dtype=dtype), torch.randn(6, 2, 3).to(dtype)
    y, last = layer(x)
    pieces = rnnkernels.Stepper(layer, 2)
    got = torch.cat([pieces.step(x[:1]), pieces.step(x[1:5]), pieces.step(x[5:])])
    assert torch.equal(got, rnnkernels.Stepper(layer, 2).step(x))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    assert_close("y of a Stepper", got, y.double(), tolerance)
    for a, e in zip(tuple_of(pieces.state), tuple_of(last), strict=True):
        assert_close("state", a, e.double(), tolerance)
    reset = torch.tensor([True, False])
    pieces.reset(reset)
    fresh, going = pieces.step(x[:2]), layer(x[:2])[0]
    assert_close("after a reset", fresh[:, 0], going[:, 0].double(), tolerance)
    assert_close("frozen", rnnkernels.freeze(layer)(x)[0], y.double(), tolerance)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x)[0], y)
    one = rnnkernels.RecurrentCell(CELLS[name], 3, 21, dtype=dtype)
    first = rnnkernels.Recurrent(CELLS[name], 3, 21, dtype=dtype)
    first.load_state_dict({f"{key}_l0": v for key, v in one.state_dict().items()})
    (y, state), (y_first, last) = one(x[0]), first(x[:1])
    for a, e in zip((y, *tuple_of(state)), (y_first[0], *(s[0] for s in tuple_of(last))), strict=True):
        assert_close("cell", a, e.double(), tolerance)
