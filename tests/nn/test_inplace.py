"""Results may be changed in place before the backward pass, and inputs refilled, where torch.nn on the CPU allows it.

What is compared is a program that does so with torch.nn's that does not: the gradients are the same, or there is the
usual error, and that only where torch.nn has one too.
"""

import pytest
import torch
from common import assert_close, make_case
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkernels
from rnnkernels.cells import CELLS

T, B, I, H = 5, 3, 3, 4  # noqa: E741
ERROR = "modified by an inplace operation"
PACKED = {"packed": [5, 3, 2], "packed, all whole": [T] * B}  # lengths
OPTIONS = {
    "plain": {}, "batch first": {"batch_first": True}, "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True}, "all": {"batch_first": True, "num_layers": 2, "bidirectional": True},
}  # fmt: skip
LAYERS = [
    (name, options, layout) for name in ("RNN", "GRU", "LSTM") for options in OPTIONS
    for layout in ("full", "unbatched", "packed", "packed, all whole") if layout == "full" or options != "two layers"
]  # fmt: skip
LAYERS += [(f"{name}Cell", "plain", "full") for name in ("RNN", "GRU", "LSTM")]


def write(tensor):
    """The two ways of writing that autograd sees: as an operation, and beside it."""
    with torch.no_grad():
        tensor.mul_(3)


def gradients(lib, name, options, layout, change=None, dtype=torch.float64):
    """Of the inputs and all parameters, after ``change(values)``: x, states and results by name."""
    torch.manual_seed(0)
    module = getattr(lib, name)(I, H, dtype=dtype, **OPTIONS[options])
    cell = isinstance(module, nn.RNNCellBase)
    first, D = getattr(module, "batch_first", False), 1 + getattr(module, "bidirectional", False)
    shape = (B, I) if cell else (T, I) if layout == "unbatched" else (B, T, I) if first else (T, B, I)
    x = torch.randn(shape, dtype=dtype)
    rows = () if layout == "unbatched" else (B,)
    lead = () if cell else (D * module.num_layers,)
    states = [torch.randn(*lead, *rows, H, dtype=dtype, requires_grad=True) for _ in range(1 + ("LSTM" in name))]
    given = [s * 1 for s in states]
    data = pack_padded_sequence(x, PACKED[layout], batch_first=first) if layout in PACKED else x
    out = module(data, tuple(given) if len(given) > 1 else given[0])
    if cell:
        results = out if isinstance(out, tuple) else (out,)
    else:
        y, last = out
        results = (y.data if layout in PACKED else y, *(last if isinstance(last, tuple) else (last,)))
    loss = sum((r * torch.linspace(0.1, 1, r.numel(), dtype=dtype).view_as(r)).sum() for r in results)
    named = dict(zip(("y", "h", "c"), results, strict=False)) | {"x": data.data if data is not x else x}
    if change is not None:
        change(named | dict(zip(("h0", "c0"), given, strict=False)))
    return torch.autograd.grad(loss, [*states, *module.parameters()])


@pytest.mark.parametrize("name, options, layout", LAYERS)
def test_as_in_torch(name, options, layout):
    expected = gradients(nn, name, options, layout)
    for what in ("y", "h", "c", "x", "h0", "c0"):

        def change(values, what=what):  # a cell has fewer results, and only LSTMs have a c
            write(values.get(what, values["y"]))

        try:
            gradients(nn, name, options, layout, change)
        except RuntimeError as error:
            allowed = False
            assert "inplace" in str(error)
        else:
            allowed = True
        try:
            found = gradients(rnnkernels, name, options, layout, change)
        except RuntimeError as error:
            assert not allowed and ERROR in str(error), what
            assert what not in ("y", "h", "c") or "Cell" in name  # whose step in training is torch's own
        else:
            for n, (f, e) in enumerate(zip(found, expected, strict=True)):
                assert_close(f"{what} changed, gradient {n}", f, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_all_results_at_once(backend, name, dtype):
    """Also where torch.nn has a fused layer and refuses."""

    def change(values):
        for key in ("y", "h", "c"):
            if key in values:
                write(values[key])

    expected = gradients(rnnkernels, name, "plain", "full", dtype=dtype)
    for n, (f, e) in enumerate(zip(gradients(rnnkernels, name, "plain", "full", change, dtype), expected, strict=True)):
        assert torch.equal(f, e), f"gradient {n}"


WAYS = {
    "relu_": torch.relu_, "+=": lambda y: y.add_(1), "dropout": lambda y: torch.dropout_(y, 0.5, True),
    "a slice": lambda y: y[0].mul_(2), "masked_fill_": lambda y: y.masked_fill_(y > 0, 0.0),
}  # fmt: skip
BESIDE = {
    "data": lambda y: y.data.zero_(), "numpy": lambda y: y.detach().numpy().fill(0), "detach_": lambda y: y.detach_(),
    "no_grad": write,
}  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
def test_ways_of_writing(backend, cell):
    case = make_case(cell, reverse=(False, True))
    for way, write_into in WAYS.items():  # which autograd differentiates
        grads = []
        for before in (lambda y: y, torch.clone):
            torch.manual_seed(0)
            y, *_ = case(*case.tensors)
            z = before(y)
            write_into(z)
            grads.append(torch.autograd.grad(z.sin().sum(), case.tensors, create_graph=True))
        for n, (f, e) in enumerate(zip(*grads, strict=True)):
            assert_close(f"{way}, gradient {n}", f, e)
        second = [torch.autograd.grad(sum(v.sin().sum() for v in g), case.tensors) for g in grads]
        for n, (f, e) in enumerate(zip(*second, strict=True)):
            assert_close(f"{way}, second derivative {n}", f, e)
    weights = torch.rand_like(y)
    expected = torch.autograd.grad(case(*case.tensors)[0], case.tensors, weights)
    for way, write_into in BESIDE.items():  # which autograd knows nothing of
        y, *_ = case(*case.tensors)
        z = y * 1
        write_into(y)
        for n, (f, e) in enumerate(zip(torch.autograd.grad(z, case.tensors, weights), expected, strict=True)):
            assert_close(f"{way}, gradient {n}", f, e)


@pytest.mark.parametrize("cell", CELLS)
def test_with_recompute_and_cell_states(cell):
    case, two = make_case(cell, reverse=(False, True)), CELLS[cell].states > 1
    for more in ({"recompute": True}, {"return_cells": True}) if two else ({"recompute": True},):
        grads = []
        for change in (lambda v: v * 1, write):
            outputs = case(*case.tensors, **more)
            loss = sum((o * torch.linspace(0.1, 1, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs)
            for o in outputs:
                change(o)
            grads.append(torch.autograd.grad(loss, case.tensors))
        for n, (e, f) in enumerate(zip(*grads, strict=True)):
            assert_close(f"{more}, gradient {n}", f, e)


@pytest.mark.parametrize("cell", CELLS)
def test_in_transforms(cell):
    case = make_case(cell)
    tensors, every = case.detached(), tuple(range(len(case.tensors)))
    found = torch.func.grad(lambda *t: torch.relu_(case(*t)[0]).sum(), every)(*tensors)
    expected = torch.func.grad(lambda *t: torch.relu(case(*t)[0]).sum(), every)(*tensors)
    for n, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert_close(f"gradient {n}", f, e)
    if CELLS[cell].states > 1:
        loss = lambda zero: lambda *t: zero(case(*t, return_cells=True)[-1]).sum()  # noqa: E731
        found, expected = (torch.func.grad(loss(f), every)(*tensors) for f in (torch.relu_, torch.relu))
        for n, (f, e) in enumerate(zip(found, expected, strict=True)):
            assert_close(f"gradient {n}, c", f, e)
    batch = [torch.stack([t, 2 * t]) for t in tensors]
    found = torch.func.vmap(torch.func.grad(lambda *t: torch.relu_(case(*t)[0]).sum(), every))(*batch)
    expected = torch.func.vmap(torch.func.grad(lambda *t: torch.relu(case(*t)[0]).sum(), every))(*batch)
    for n, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert_close(f"gradient {n}, vmap", f, e)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "name, options", [("RNN", "plain"), ("GRU", "all"), ("LSTM", "batch first"), ("GRUCell", "plain")]
)
def test_compiled(name, options):
    module = getattr(rnnkernels, name)(I, H, dtype=torch.float64, **OPTIONS[options])
    x, found = torch.randn(*((B, I) if name.endswith("Cell") else (B, T, I)), dtype=torch.float64), []

    def run(x, relu):
        out = module(x)
        return relu(out[0] if isinstance(out, tuple) else out).sin().sum()

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for f, relu in ((run, torch.relu), (compiled, torch.relu_)):
        found.append(torch.autograd.grad(f(x, relu), list(module.parameters())))
    torch._dynamo.reset()
    for n, (e, f) in enumerate(zip(*found, strict=True)):
        assert_close(f"gradient {n}", f, e)


def test_two_modules_on_top_of_each_other():
    """What lies between them is a result of one and an input of the other."""
    lower, upper = rnnkernels.GRU(I, H, dtype=torch.float64), rnnkernels.LSTM(H, H, dtype=torch.float64)
    x, found = torch.randn(T, B, I, dtype=torch.float64), []
    parameters = [*lower.parameters(), *upper.parameters()]
    for relu in (torch.relu, torch.relu_):
        found.append(torch.autograd.grad(upper(relu(lower(x)[0]))[0].sum(), parameters))
    for n, (e, f) in enumerate(zip(*found, strict=True)):
        assert_close(f"gradient {n}", f, e)
    between = lower(x)[0]
    loss = upper(between)[0].sum()
    write(between)  # torch.nn's upper layer has saved it too
    with pytest.raises(RuntimeError, match=ERROR):
        loss.backward()


@pytest.mark.parametrize("name, options, layout", LAYERS)
def test_results_are_no_views_where_torch_has_none(name, options, layout):
    """So that ``detach_`` works on them: truncated backpropagation through time does that."""
    views = []
    for lib in (nn, rnnkernels):
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                module = getattr(lib, name)(I, H, dtype=torch.float64, **OPTIONS[options])
                cell, first = name.endswith("Cell"), getattr(module, "batch_first", False)
                x = torch.randn(*((B,) if cell else (T,) if layout == "unbatched" else (B, T) if first else (T, B)), I)
                x = pack_padded_sequence(x, PACKED[layout], batch_first=first) if layout in PACKED else x
                out = module(x.double())
            out = out if isinstance(out, tuple) and not cell else (out,)
            flat = [r for o in out for r in (o if type(o) is tuple else (o,))]
            results = [r.data if hasattr(r, "batch_sizes") else r for r in flat]
            views.append([r._is_view() for r in results])
            for r in results:
                if not r._is_view():
                    r.detach_()
    theirs, ours = views[:2], views[2:]
    assert all(t or not o for a, b in zip(theirs, ours, strict=True) for t, o in zip(a, b, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_copied_before_somebody_writes(cell):
    """The forward and backward pass and what comes after a layer leave the y that is kept where it is."""
    case = make_case(cell, T=T)
    y, *_ = case(*case.tensors)
    above = nn.Linear(H, 2, dtype=torch.float64)
    (above(y).sum() + y.sin().sum()).backward(retain_graph=True)
    assert torch._C._is_cow_tensor(y)
    before = torch._C._data_address(y)
    y.detach().add_(1)
    assert torch._C._data_address(y) != before and not torch._C._is_cow_tensor(y)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_state_may_get_new_memory_before_the_backward_pass(name):
    """``h.data = h_n.data``, as programs kept their state before ``detach``."""

    def use(lib):
        torch.manual_seed(0)
        module, x = getattr(lib, name)(I, H, dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
        states = [torch.randn(1, B, H, dtype=torch.float64) for _ in range(1 + (name == "LSTM"))]
        y, last = module(x, tuple(states) if name == "LSTM" else states[0])
        for state, new in zip(states, last if name == "LSTM" else (last,), strict=True):
            state.data = new.data
        y.square().sum().backward()
        return {n: p.grad for n, p in module.named_parameters()}

    expected = use(nn)
    for n, grad in use(rnnkernels).items():
        assert_close(n, grad, expected[n])
