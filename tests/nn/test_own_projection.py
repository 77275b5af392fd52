"""``proj_size`` of layers of cells of one's own: torch.nn's LSTM, loops over steps, options, tools, refusals."""

import copy
import pickle

import pytest
import torch
from common import assert_close
from recurrent_cases import CELLS, PROJECTED, loop, lstm
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkernels
from rnnkernels import Recurrent, backends, functional
from rnnkernels.cells.definition import Cell

T, B, I, H, P = 5, 3, 4, 6, 4  # noqa: E741 - the letters that the whole library uses
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),  # torch's own jvp uses it
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),  # Dynamo's
]
ALL = pytest.mark.parametrize("name", PROJECTED)
FEW = pytest.mark.parametrize("name", ["elman", "noted"])
BACKENDS = ["reference", *(["cpp"] if backends.EXTENSION_ERROR is None else [])]


def layer_of(name, num_layers=1, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    return Recurrent(PROJECTED[name], I, H, num_layers, proj_size=P, dtype=dtype, **settings)


def tensors_of(layer, dtype=torch.float64):
    """x, states, and the extra inputs by name."""
    program, rows = layer.cell.program, layer.num_layers * (1 + layer.bidirectional)
    torch.manual_seed(1)
    inputs = {name: torch.rand(T, B, 1 if name in program.narrow else H, dtype=dtype) for name in program.step}
    inputs |= {name: torch.rand(B, H, dtype=dtype) for name in program.sequence}
    states = [torch.randn(rows, B, H if k else P, dtype=dtype) for k in range(len(program.states))]
    return torch.randn(T, B, I, dtype=dtype), states, inputs


def as_hx(states):
    return states[0] if len(states) == 1 else tuple(states)


def as_list(hidden):
    return [hidden] if isinstance(hidden, torch.Tensor) else list(hidden)


def as_program(cell):
    """The cell, run as a program even where a built-in one computes the same."""
    cell = Cell(cell.program)
    cell.kernel = str(cell)
    return cell


@pytest.mark.parametrize("cell", [lstm, as_program(lstm)], ids=["lstm", "program"])
@pytest.mark.parametrize("bias", [True, False])
def test_an_lstm_of_ones_own_is_torchs(cell, bias):
    kind = dict(bias=bias, bidirectional=True, proj_size=P, dtype=torch.float64)
    torch.manual_seed(3)
    own = Recurrent(cell, I, H, 2, **kind)
    torch.manual_seed(3)
    theirs = torch.nn.LSTM(I, H, 2, **kind)
    assert (own._rk_kind[0] == "lstm") == (cell is lstm)
    for (name, p), (other, q) in zip(own.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    hx = [torch.randn(4, B, n, dtype=torch.float64, requires_grad=True) for n in (P, H)]
    for lengths in (None, [3, 5, 2]):
        results = []
        for layer in (own, theirs):
            given = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
            y, (h, c) = layer(given, tuple(hx))
            y = y if given is x else y.data
            loss = (y * y).sum() + h.sin().sum() + c.cos().sum()
            results.append([y, h, c, *torch.autograd.grad(loss, [x, *hx, *layer.parameters()])])
        for n, (a, b) in enumerate(zip(*results, strict=True)):
            assert_close(f"result {n}", a, b)


@ALL
@pytest.mark.parametrize("layers,both,lengths", [(1, False, None), (2, True, [5, 0, 2])])
def test_outputs_and_gradients_are_those_of_a_loop(name, layers, both, lengths):
    layer = layer_of(name, layers, bidirectional=both, bias=not both)
    x, states, inputs = tensors_of(layer)
    leaves = {"x": x, **{f"state {k}": s for k, s in enumerate(states)}, **inputs}
    for t in leaves.values():
        t.requires_grad_()
    leaves |= dict(layer.named_parameters())
    lengths = None if lengths is None else torch.tensor(lengths)
    expected, last = loop(layer, x, states, lengths, **inputs)
    weights = [torch.randn_like(t) for t in (expected, *last)]

    def gradients(*out):
        total = sum((w * t).sum() for w, t in zip(weights, out, strict=True))
        return torch.autograd.grad(total, list(leaves.values()))

    wanted = gradients(expected, *last)
    for backend in BACKENDS:
        with backends.force(backend):
            y, hidden = layer(x, as_hx(states), lengths, **inputs)
            for a, b in zip((y, *as_list(hidden)), (expected, *last), strict=True):
                assert_close(backend, a, b)
            for key, a, b in zip(leaves, gradients(y, *as_list(hidden)), wanted, strict=True):
                assert_close(f"{backend}, gradient of {key}", a, b)
    with torch.no_grad():  # all layers in one call
        y, hidden = layer(x, as_hx(states), lengths, **inputs)
        for a, b in zip((y, *as_list(hidden)), (expected, *last), strict=True):
            assert_close("inference", a, b)


OPTIONS = {
    "zoneout": dict(zoneout=0.3), "recurrent dropout": dict(recurrent_dropout=0.3, zoneout=0.2),
    "layer norm": dict(layer_norm=True), "all": dict(layer_norm=True, zoneout=0.3, recompute=True),
}  # fmt: skip


@pytest.mark.skipif(len(BACKENDS) < 2, reason="compares the C++ extension, which is not there, with the reference")
@ALL
@pytest.mark.parametrize("option", OPTIONS)
def test_options(name, option):
    """With the same masks on both backends, reset to given states."""
    layer, results = layer_of(name, 2, **OPTIONS[option]), []
    x, states, inputs = tensors_of(layer)
    _, restart, _ = tensors_of(layer)
    reset = (torch.rand(T, B) < 0.4, as_hx([s + 0.1 for s in restart]))
    leaves = [x.requires_grad_(), *layer.parameters()]
    for backend in BACKENDS:
        with backends.force(backend):
            torch.manual_seed(5)
            y, hidden = layer(x, as_hx(states), reset=reset, **inputs)
            loss = y.sin().sum() + sum(s.square().sum() for s in as_list(hidden))
            results.append([y, *as_list(hidden), *torch.autograd.grad(loss, leaves)])
    for n, (a, b) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {n}", a, b)


@FEW
def test_second_derivatives_and_forward_mode(name):
    layer = layer_of(name)
    x, states, inputs = (
        t[:2, :2].requires_grad_() if isinstance(t, torch.Tensor) else t for t in tensors_of(layer)
    )  # fmt: skip
    states, program = [s[:, :2] for s in states], layer.cell.program
    inputs = {k: u[:2, :2] if k in program.step else u[:2] for k, u in inputs.items()}
    w_hr = layer.weight_hr_l0

    def run(x, w_hr):
        params = {**dict(layer.named_parameters()), "weight_hr_l0": w_hr}
        return torch.func.functional_call(layer, params, (x, as_hx(states)), inputs)[0].sin()

    assert torch.autograd.gradgradcheck(run, (x, w_hr), fast_mode=True)
    assert_close("jacfwd", torch.func.jacfwd(run)(x.detach(), w_hr), torch.func.jacrev(run)(x.detach(), w_hr))


@FEW
def test_ways_to_run_a_layer(name):
    layer = layer_of(name, 2).eval()
    x, states, inputs = tensors_of(layer)
    y, hidden = layer(x, **inputs)
    assert y.shape == (T, B, P) and [s.size(-1) for s in as_list(hidden)] == [P, *[H] * (len(states) - 1)]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close("compiled", compiled(x, **inputs)[0], y)
    assert_close("exported", torch.export.export(layer, (x,), inputs).module()(x, **inputs)[0], y)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), rnnkernels.freeze(layer)):
        assert_close("copied", other(x, **inputs)[0], y)
    found = functional.recurrent(layer.cell, x, None, list(layer.parameters()), num_layers=2, **inputs)[0]
    assert_close("functional", found, y)
    params = {k: torch.stack([p, 2 * p]) for k, p in layer.named_parameters()}
    run = lambda p: torch.func.functional_call(layer, p, (x,), inputs)[0]  # noqa: E731
    assert_close("vmap", torch.func.vmap(run)(params)[1], run({k: p[1] for k, p in params.items()}))
    traced = rnnkernels.trace(layer, x, **inputs)
    assert_close("traced", traced[f"{layer.cell.program.states[0]}_l1"], y)
    said = str(rnnkernels.explain(layer, x))
    assert ("training keeps h before its projection" in said) == (name == "elman")
    if not inputs:
        stepper = rnnkernels.Stepper(layer, B)
        assert_close("stepped", torch.stack([stepper.step(x_BI) for x_BI in x]), y)


def test_refused():
    library = rnnkernels.cells
    for cell, reason in (
        (library.gru, "it reads s.h unit by unit, where it would have proj_size numbers beside gates of hidden_size"),
        (library.gru_reset_before, "it has a product inside the step, whose operand has as many numbers as the gates"),
        (library.gru_d, "it multiplies weight_hh with an operand of its own, and not with the state h"),
        (library.min_gru, "it has no recurrent product"),
        (library.slstm, None),
        (CELLS["rates"], "it multiplies weight_hh with an operand of its own, and not with the state v"),
    ):
        if reason is None:
            assert Recurrent(cell, I, H, proj_size=P).weight_hr_l0.shape == (P, H)
            continue
        with pytest.raises(ValueError, match=f"proj_size is not possible for the cell {cell.program.name}: {reason}"):
            Recurrent(cell, 3 * H if cell.program.given else I, H, proj_size=P)
    for size, error, words in (
        (-1, ValueError, "proj_size should be a positive integer or zero to disable projections"),
        (H, ValueError, "proj_size has to be smaller than hidden_size"),
        (2.0, TypeError, "proj_size should be of type int, got: float"),
    ):
        with pytest.raises(error, match=words):
            Recurrent(lstm, I, H, proj_size=size)
    with pytest.raises(ValueError, match="proj_size is not defined for heads"):
        Recurrent(lstm, I, H, proj_size=P, heads=2)
    layer, x = layer_of("peephole"), torch.zeros(T, B, I, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 3, 4\), got \[1, 3, 6\]"):
        layer(x, (torch.zeros(1, B, H), torch.zeros(1, B, H)))
    params = list(layer.parameters())
    with pytest.raises(RuntimeError, match="incorrect number of RNN parameters: 9"):
        functional.recurrent(layer.cell, x, None, [*params, params[-1]])
    with pytest.raises(RuntimeError, match=r"Expected RNN parameter 4 of shape \(4, 6\), got \(6,\)"):
        functional.recurrent(layer.cell, x, None, [*params[:4], params[-1], *params[5:]])
    gru = Recurrent(CELLS["uneven"], I, H)
    assert str(Recurrent(lstm, I, H, proj_size=P)) == "Recurrent(lstm, 4, 6, proj_size=4)" and gru.proj_size == 0
