"""The modules against torch.nn's: results, every gradient, state, random numbers, precision."""

import copy
import functools
import pickle

import pytest
import torch
from common import assert_close, error
from pairwise import cases
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import checkpoint

import rnnkernels

LAYERS = {
    "rnn": ("RNN", {}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
    "projected": ("LSTM", {"proj_size": 3}),
}
CELLS = {
    "rnn": ("RNNCell", {}),
    "relu": ("RNNCell", {"nonlinearity": "relu"}),
    "gru": ("GRUCell", {}),
    "lstm": ("LSTMCell", {}),
}
T, B, I, H = 6, 3, 4, 5  # noqa: E741 - the letters of the whole library
# torch says this of itself, once in a process
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
KINDS = ("batched", "batch_first", "unbatched", "packed", "packed_unsorted")


def both(name, *args, seed=0, **kwargs):
    """torch.nn's module and ours, each made from the same seed."""
    pair = []
    for library in (nn, rnnkernels):
        torch.manual_seed(seed)
        pair.append(getattr(library, name)(*args, **kwargs))
    return pair


def states(name, *shape, h=H, dtype=torch.float64):
    """A random ``hx`` for a module of this name, requiring gradients."""
    make = lambda n: torch.randn(*shape, n, dtype=dtype, requires_grad=True)  # noqa: E731
    return (make(h), make(H)) if name.startswith("LSTM") else make(h)


def flat(value):
    """All tensors in the result of a module."""
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat(v)]


def run(module, x, hx, pack=None):
    """Results and gradients of a module by name: every output, the input, the states and all parameters."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    hx = hx if hx is None else [s.detach().clone().requires_grad_() for s in flat(hx)]
    state = None if hx is None else tuple(hx) if len(hx) == 2 else hx[0]
    outputs = flat(module(pack(x) if pack else x, *(() if hx is None else (state,))))
    torch.manual_seed(1)
    sum((o * torch.randn_like(o)).sum() for o in outputs).backward()
    found = {f"output {n}": o for n, o in enumerate(outputs)} | {"dx": x.grad}
    found |= {f"dhx {n}": s.grad for n, s in enumerate(hx or [])}
    return found | {f"d{name}": p.grad for name, p in module.named_parameters()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(name, actual[name], expected[name])


@pytest.mark.parametrize(
    "cell, kind, layers, bidirectional, bias", cases(LAYERS, KINDS, (1, 2), (False, True), (True, False))
)
def test_layers_equal_torch(cell, kind, layers, bidirectional, bias):
    name, extra = LAYERS[cell]
    theirs, ours = both(
        name, I, H, layers, bias=bias, batch_first=kind == "batch_first", bidirectional=bidirectional,
        dtype=torch.float64, **extra,
    )  # fmt: skip
    torch.manual_seed(2)
    x = torch.randn({"unbatched": (T, I), "batch_first": (B, T, I)}.get(kind, (T, B, I)), dtype=torch.float64)
    rows = (layers * (1 + bidirectional),) + (() if kind == "unbatched" else (B,))
    lengths = torch.tensor([6, 4, 1] if kind == "packed" else [2, 6, 3])
    pack = (lambda v: pack_padded_sequence(v, lengths, enforce_sorted=kind == "packed")) if "packed" in kind else None
    for hx in (None, states(name, *rows, h=extra.get("proj_size", H))):
        assert_same(run(ours, x, hx, pack), run(theirs, x, hx, pack))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("batched", (True, False))
def test_cells_equal_torch(cell, bias, batched):
    name, extra = CELLS[cell]
    theirs, ours = both(name, I, H, bias=bias, dtype=torch.float64, **extra)
    rows = (B,) if batched else ()
    x = torch.randn(*rows, I, dtype=torch.float64)
    for hx in (None, states(name, *rows)):
        assert_same(run(ours, x, hx), run(theirs, x, hx))


@pytest.mark.parametrize("cell", LAYERS)
def test_packed_result_keeps_order_and_sizes(cell):
    name, extra = LAYERS[cell]
    theirs, ours = both(name, I, H, **extra)
    for lengths in ([2, 6, 3], [6, 6, 6]):
        packed = pack_padded_sequence(torch.randn(T, B, I), lengths, enforce_sorted=False)
        expected, actual = theirs(packed)[0], ours(packed)[0]
        for part in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert torch.equal(getattr(actual, part), getattr(expected, part))
        assert_close("data", actual.data, expected.data)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("cell", LAYERS)
def test_low_precision_is_no_worse_than_torch(cell, dtype):
    """At most twice torch's own error against float64 (plus a unit of rounding), for outputs and every gradient."""
    name, extra = LAYERS[cell]
    theirs, ours = both(name, 19, 23, 2, bidirectional=True, dtype=dtype, **extra)
    exact = copy.deepcopy(theirs).double()
    x = torch.randn(17, 5, 19, dtype=dtype)
    expected, actual, correct = run(theirs, x, None), run(ours, x, None), run(exact, x.double(), None)
    for key, value in correct.items():
        assert actual[key].dtype == dtype
        allowed = 2 * error(expected[key], value) + torch.finfo(dtype).eps
        assert error(actual[key], value) <= allowed, f"{key}: {error(actual[key], value):.1e} of {allowed:.1e}"


@pytest.mark.parametrize("cell", LAYERS)
def test_layout_of_results(cell):
    """batch_first is a view of (T, B, ...) as in torch, for the input without a copy and for the output."""
    name, extra = LAYERS[cell]
    theirs, ours = both(name, I, H, batch_first=True, **extra)
    x = torch.randn(B, T, I)
    assert ours(x)[0].stride() == theirs(x)[0].stride()
    for value, other in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        assert value.shape == other.shape
    assert type(ours(x)[1]) is type(theirs(x)[1])
    assert ours(x[:0])[0].shape == (0, T, theirs(x[:0])[0].size(2))


@pytest.mark.parametrize(
    "cell, kind, dtype, train", cases(LAYERS, KINDS, (torch.float32, torch.float64), (True, False)), ids=str
)
def test_dropout_draws_the_numbers_of_torch(cell, kind, dtype, train):
    name, extra = LAYERS[cell]
    theirs, ours = both(
        name, I, H, 3, dropout=0.4, bidirectional=True, batch_first=kind == "batch_first", dtype=dtype, **extra
    )
    x = torch.randn((T, I) if kind == "unbatched" else (T, B, I), dtype=dtype)
    if "packed" in kind:
        x = pack_padded_sequence(x, [6, 4, 1], enforce_sorted=kind == "packed")
    found = []
    for module in (theirs.train(train), ours.train(train)):
        torch.manual_seed(7)
        found.append((flat(module(x)), torch.get_rng_state()))
    (expected, after), (actual, ours_after) = found
    for n, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"output {n}", a, e)
    assert torch.equal(after, ours_after)


CONSTRUCTED = [
    *[(n, (I, H), e) for n, e in [*LAYERS.values(), *CELLS.values()]],
    ("RNN", (I, H, 2, "relu", False, True), {}),
    ("RNNCell", (I, H, False, "relu"), {}),
    ("LSTMCell", (I, H, False), {}),
    ("GRU", (I, H, 2, False, True, 0.5, True), {}),
    ("LSTM", (I, H, 2, True, True, 0.5, True, 2), {"dtype": torch.float64}),
]


@pytest.mark.parametrize("name, args, kwargs", CONSTRUCTED)
def test_state_is_torch_s(name, args, kwargs):
    theirs, ours = both(name, *args, seed=3, **kwargs)
    assert repr(ours) == repr(theirs)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key]), key
    ours.load_state_dict(state), theirs.load_state_dict(ours.state_dict())
    x = torch.randn(B, I, dtype=ours.weight_ih.dtype if "Cell" in name else ours.weight_ih_l0.dtype)
    ours.eval()
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), copy.copy(ours)):
        assert type(twin) is type(ours) and repr(twin) == repr(ours)
        assert all(torch.equal(a, b) for a, b in zip(flat(twin(x)), flat(ours(x)), strict=True))
    assert "_flat_weights" not in vars(ours)


@pytest.mark.parametrize("name", ("RNN", "LSTM", "GRU"))
def test_other_devices(name):
    theirs, ours = both(name, I, H, 2, device="meta")
    x = torch.empty(T, B, I, device="meta")
    for a, e in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        assert a.device == e.device and a.shape == e.shape
    ours.to_empty(device="cpu").reset_parameters()
    assert ours(torch.randn(T, B, I))[0].isfinite().all()
    assert ours.double()(torch.randn(T, B, I).double())[0].dtype == torch.float64
    ours.flatten_parameters()


@pytest.mark.parametrize("cell", LAYERS)
def test_packed_gradients_of_both_orders(cell):
    name, extra = LAYERS[cell]
    _, ours = both(name, 2, H, bidirectional=True, dtype=torch.float64, **extra)
    data, *order = pack_padded_sequence(torch.randn(4, 3, 2, dtype=torch.float64), [2, 4, 1], enforce_sorted=False)
    hx = states(name, 2, 3, h=extra.get("proj_size", H))

    def call(data, *hx):
        return tuple(flat(ours(PackedSequence(data, *order), hx if len(hx) == 2 else hx[0])))

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(call, (data.requires_grad_(), *flat(hx)), fast_mode=True)


class Tagged(torch.Tensor):
    """A subclass of tensors, as libraries have for images."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name, layout",
    [(n, k) for n in ("RNN", "GRU", "LSTM") for k in KINDS[:3]]
    + [(f"{n}Cell", "step") for n in ("RNN", "GRU", "LSTM")],
)
def test_tensors_of_a_subclass(name, layout, dtype):
    more = {"batch_first": layout == "batch_first"} if layout != "step" else {}
    pair = both(name, I, H, **more, dtype=dtype)
    x = (torch.randn(B, T, I) if "batch" in layout else torch.randn(T, I)).to(dtype)
    found = []
    for module in pair:
        first = lambda y: y if isinstance(y, torch.Tensor) else y[0]  # noqa: E731
        leaf = x.clone().requires_grad_()
        y = first(module(leaf.as_subclass(Tagged)))
        assert type(y) is Tagged
        y.square().sum().backward()
        found.append([y.as_subclass(torch.Tensor), leaf.grad, *(p.grad for p in module.parameters())])
        with torch.no_grad():
            found[-1].append(first(module(x.as_subclass(Tagged))).as_subclass(torch.Tensor))
    for k, (expected, actual) in enumerate(zip(*found, strict=True)):
        assert_close(str(k), actual, expected)


def keep_ours(context, op, *args, **kwargs):
    ours = "rnnkernels" in str(op)
    return checkpoint.CheckpointPolicy.MUST_SAVE if ours else checkpoint.CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("module", (
    rnnkernels.LSTM(I, H, 2, bidirectional=True, batch_first=True), rnnkernels.RNN(I, H, batch_first=True),
    rnnkernels.GRU(I, H, zoneout=0.3, batch_first=True), rnnkernels.GRUCell(I, H, dtype=torch.bfloat16),
    rnnkernels.Recurrent(rnnkernels.cells.li_gru, I, H, batch_first=True),
), ids=str)  # fmt: skip
def test_selective_checkpointing(module):
    """Its dispatch mode keeps results of the op, which nothing may change afterwards."""
    dtype = next(module.parameters()).dtype
    x = torch.randn(T, I, dtype=dtype) if "Cell" in type(module).__name__ else torch.randn(B, T, I, dtype=dtype)
    context = functools.partial(checkpoint.create_selective_checkpoint_contexts, keep_ours)
    found = []
    for run in (
        module,
        functools.partial(checkpoint.checkpoint, module, use_reentrant=False, context_fn=context),
    ):
        torch.manual_seed(0)
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        results = run(leaf)
        y = results if isinstance(results, torch.Tensor) else results[0]
        y.square().sum().backward()
        found.append([y, leaf.grad, *(p.grad for p in module.parameters())])
    for k, (expected, actual) in enumerate(zip(*found, strict=True)):
        assert torch.equal(actual, expected), k
