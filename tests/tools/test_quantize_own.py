"""int8 weights of cells of one's own: against the definition in float64 with the same int8 numbers, on every set of
instructions, and against the float layer; what stays as it is. Letters as in test_quantize.py."""

import copy
import pickle

import pytest
import torch
from common import assert_close, error
from recurrent_cases import CELLS, PROJECTED
from test_quantize import CPP, INSTRUCTION_SETS, OPS, int8_rows

import rnnkernels
from rnnkernels import Recurrent, RecurrentCell, backends
from rnnkernels.cells import interpret, reference

OWN = {name: cell for name, cell in (CELLS | PROJECTED).items() if name != "elementwise"}
H, I = 40, 7  # noqa: E741 - the letters that the whole library uses


@pytest.fixture(params=INSTRUCTION_SETS or [None])
def instruction_set(request):
    if CPP:
        OPS.use_instruction_set(request.param)
    yield request.param
    if CPP:
        OPS.use_instruction_set("")


def make(name, num_layers=1, activations="int8", **settings):
    """A layer, the same quantised, and what extra inputs and states it takes for T steps and B rows."""
    torch.manual_seed(0)
    cell = OWN[name]
    layer = Recurrent(cell, I, H, num_layers, **settings).eval()

    def inputs(T, B):
        found = {n: torch.rand(T, B, 1 if n in cell.program.narrow else H) for n in cell.program.step}
        return found | {n: torch.rand(B, H) for n in cell.program.sequence}

    def states(B):
        rows, P = num_layers * (1 + layer.bidirectional), layer.proj_size or H
        found = tuple(torch.randn(rows, B, H if k else P) for k in range(len(cell.program.states)))
        return found if len(found) > 1 else found[0]

    return layer, rnnkernels.quantize_dynamic(layer, activations=activations), inputs, states


def as_list(hidden):
    return [hidden] if isinstance(hidden, torch.Tensor) else list(hidden)


def dequantized(layer, q):
    """The float layer with the weights that the int8 ones stand for."""
    layer = copy.deepcopy(layer)
    weights = reference.dequantized([q._buffers[n] for n in q._weights], [q._buffers[n] for n in q._scales])
    layer.load_state_dict(dict(zip(q._weights, weights, strict=True)))
    return layer


def definition(layer, q, x, hx, inputs):
    """A quantised layer of one direction in float64, step by step."""
    own = {n.removesuffix("_l0"): w.detach().double() for n, w in dequantized(layer, q).named_parameters()}
    program = layer.cell.program
    rows = (lambda v: v.double()) if program.inner else int8_rows
    named, states, ys = {n: u.double() for n, u in inputs.items()}, [s[0].double() for s in as_list(hx)], []
    for t in range(len(x)):
        gates = (rows(x[t]) @ own["weight_ih"].T + own["bias_ih"]).unflatten(-1, (-1, H))
        w, b, first = own["weight_hh"], own["bias_hh"], H * (len(program.recurrent) - program.inner)
        now = {"v": own, "u": {n: u[t] if u.dim() == 3 else u for n, u in named.items()}}
        states, y, _ = interpret.step(
            program, gates, lambda h, w=w[:first], b=b[:first]: (rows(h) @ w.T + b).unflatten(-1, (-1, H)),
            lambda h, w=w[first:], b=b[first:]: rows(h) @ w.T + b, states, None, now, {},
        )  # fmt: skip
        if "weight_hr" in own:
            states = (states[0] @ own["weight_hr"].T, *states[1:])
        ys.append(states[0] if y is None else y)
    return [torch.stack(ys), *(s[None] for s in states)]


@torch.no_grad()
@pytest.mark.parametrize("name", OWN)
def test_the_definition(name, instruction_set):
    for P in (0, 24) if name in PROJECTED else (0,):
        layer, q, inputs, states = make(name, proj_size=P)
        for T, B in ((1, 3), (1, 20), (6, 2), (4, 33)):
            x, u, hx = torch.randn(T, B, I), inputs(T, B), states(B)
            y, hidden = q(x, hx, **u)
            for k, (a, e) in enumerate(zip((y, *as_list(hidden)), definition(layer, q, x, hx, u), strict=True)):
                # later a number of h may be rounded the other way now and then
                assert error(a, e) < (1e-5 if T == 1 else 0.03), (P, T, B, k)


@torch.no_grad()
@pytest.mark.parametrize("name", OWN)
def test_layers(name):
    """Two layers, both directions, lengths: near the float layer, and with float rows that with the same weights."""
    layer, q, inputs, states = make(name, 2, bidirectional=True)
    floats = rnnkernels.quantize_dynamic(layer, activations="float")
    x, u, hx, lengths = torch.randn(6, 5, I), inputs(6, 5), states(5), [6, 0, 3, 1, 2]
    same = dequantized(layer, q)
    for a, near, e in zip(*(as_list(f(x, hx, lengths, **u)[1]) for f in (floats, q, same)), strict=True):
        assert_close("float rows", a, e, 1e-5)
        assert_close("int8 rows", near, e, 0.03)
    y = q(x, hx, lengths, **u)[0]
    with backends.force("reference"):
        assert_close("reference", q(x, hx, lengths, **u)[0], same(x, hx, lengths, **u)[0], 1e-5)
    twins = [copy.deepcopy(q), pickle.loads(pickle.dumps(q))]
    if name == "noted":
        twins.append(torch.compile(q, fullgraph=True, backend="aot_eager"))
    for twin in twins:
        assert torch.equal(twin(x, hx, lengths, **u)[0], y)
    assert error(y, layer(x, hx, lengths, **u)[0]) < 0.05
    constants = ", alpha=0.2" if name == "rates" else ""
    assert str(q) == f"QuantizedRecurrent({name}, 7, 40, num_layers=2, bidirectional=True{constants})"
    assert q.weight_hh_l1.dtype == torch.int8 and not [*q.parameters()]


@torch.no_grad()
@pytest.mark.parametrize("mapped", (0, 1, 2, 3, None))
def test_vmap(mapped):
    """Over x, lengths, states or inputs of steps alone, and over all of them."""
    layer = Recurrent(rnnkernels.cells.gru_d, 7, 40, num_layers=2, bidirectional=True)
    q = rnnkernels.quantize_dynamic(layer)
    run = lambda x, lengths, hx, gamma: q(x, hx, lengths, gamma=gamma)  # noqa: E731
    args = torch.randn(3, 6, 5, 7), torch.randint(7, (3, 5)), torch.randn(3, 4, 5, 40), torch.rand(3, 6, 5, 40)
    dims = tuple(0 if mapped in (k, None) else None for k in range(4))
    args = [t if d == 0 else t[0] for t, d in zip(args, dims, strict=True)]
    found = torch.vmap(run, dims)(*args)
    for i in range(3):
        expected = run(*(t[i] if d == 0 else t for t, d in zip(args, dims, strict=True)))
        for a, e in zip(found, expected, strict=True):
            assert_close("sample", a[i], e, 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", OWN)
def test_cells(name):
    """The numbers of the layer for one step."""
    layer, q, inputs, states = make(name)
    cell = RecurrentCell(OWN[name], I, H)
    cell.load_state_dict({n.removesuffix("_l0"): w for n, w in layer.state_dict().items()})
    small = rnnkernels.quantize_dynamic(cell)
    x, u, hx = torch.randn(1, 4, I), inputs(1, 4), states(4)
    step = {n: v[0] if n in OWN[name].program.step else v for n, v in u.items()}
    given = [s[0] for s in as_list(hx)]
    y, hidden = small(x[0], given[0] if len(given) == 1 else tuple(given), **step)
    expected, last = q(x, hx, **u)
    for a, e in zip((y, *as_list(hidden)), (expected, *as_list(last)), strict=True):
        assert torch.equal(a, e[0])
    one = {n: v[2] for n, v in step.items()}
    alone, _ = small(x[0, 2], given[0][2] if len(given) == 1 else tuple(s[2] for s in given), **one)
    assert_close("unbatched", alone, y[2], 1e-5)
    assert repr(small).startswith(f"QuantizedRecurrentCell({name}, 7, 40")


def test_what_stays_and_what_is_refused():
    elementwise = Recurrent(CELLS["elementwise"], 2 * H, H)
    model = rnnkernels.quantize_dynamic(torch.nn.Sequential(elementwise, Recurrent(CELLS["lstm"], I, H)))
    assert type(model[0]) is Recurrent and type(model[1]).__name__ == "QuantizedRecurrent"
    _, q, inputs, _ = make("noted")
    x, u = torch.randn(3, 2, I), inputs(3, 2)
    for call, kind, words in (
        (lambda: q(x), TypeError, "missing the input 'gamma'"),
        (lambda: q(x, **u | {"f": u["f"][:1]}), RuntimeError, r"Expected f size \(2, 40\), got \[1, 40\]"),
        (
            lambda: q(x, **u | {"f": u["f"].clone().requires_grad_()}),
            RuntimeError,
            "for inference only, but f requires",
        ),
        (lambda: q(x, reset=torch.zeros(3, 2, dtype=torch.bool), **u), ValueError, "a QuantizedRecurrent has no reset"),
        (lambda: q(x.double(), **{n: v.double() for n, v in u.items()}), ValueError, "takes float32, but got Double"),
        (lambda: make("peephole", zoneout=0.1), ValueError, "a QuantizedRecurrent has no zoneout=0.1 yet"),
        (lambda: make("peephole", heads=2), ValueError, "a QuantizedRecurrent has no heads=2 yet"),
    ):
        with pytest.raises(kind, match=words):
            call()
