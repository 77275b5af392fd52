"""``rnnkernels::plain_step``, a cell in inference: the bits of a layer, where it may run and nowhere else."""

import pytest
import torch
from pairwise import cases
from test_stack import ran
from torch.func import grad, vmap

import rnnkernels
from rnnkernels import backends
from rnnkernels.nn import torchs_step

if backends.EXTENSION_ERROR is not None or backends.forced() is not None:
    pytest.skip("step is for the C++ backend where it is not forced", allow_module_level=True)
B, I, H = 4, 3, 5  # noqa: E741
STEP, STACK = torch.ops.rnnkernels.plain_step, torch.ops.rnnkernels.stack
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CELLS = {"lstm": ("LSTMCell", {}), "gru": ("GRUCell", {}), "rnn": ("RNNCell", {"nonlinearity": "relu"})}


def make(cell, dtype=torch.bfloat16, batch=B, given=True):
    """A module, x and its states, neither contiguous; by default in 16 bits, where no step of an RNN is torch's own."""
    name, settings = CELLS[cell]
    torch.manual_seed(0)
    module = getattr(rnnkernels, name)(I, H, dtype=dtype, **settings)
    states = [torch.randn(batch, 2 * H, dtype=dtype)[:, ::2] for _ in range(1 + (cell == "lstm"))]
    return module, torch.randn(I, batch, dtype=dtype).t(), states if given else []


def arguments(cell, x, states, module):
    """Those of ``step``."""
    return x, states, list(module.parameters()), cell, True, H, getattr(module, "nonlinearity", None)


def call(module, x, states):
    """The new states as a list."""
    new = module(x, None if not states else states[0] if len(states) == 1 else tuple(states))
    return [new] if isinstance(new, torch.Tensor) else list(new)


@pytest.mark.parametrize("cell, dtype, batch, given", cases(CELLS, DTYPES, (0, 1, B, 67), (True, False)))
@torch.no_grad()
def test_the_bits_of_a_layer(cell, dtype, batch, given):
    module, x, states = make(cell, dtype, batch, given)
    *rest, activation = arguments(cell, x, states, module)
    new = STEP(*rest, activation)
    y, last = STACK(x[None], [s[None] for s in states], rest[2], cell, 1, False, True, H, 0, activation)
    assert torch.equal(y[0], new[0]) and len(new) == len(last)
    assert all(torch.equal(a, e[0]) and a.is_contiguous() for a, e in zip(new, last, strict=True))
    if batch:
        assert len({t.untyped_storage().data_ptr() for t in (x, *states, *new)}) == 1 + len(states) + len(new)
    if not torchs_step.why_for_cell(cell, dtype, batch, H, False):
        assert all(torch.equal(a, e) for a, e in zip(call(module, x, states), new, strict=True))


def named(f, *args):
    """The names of our ops that a call runs, nobody watching."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        f(*args)
    return [e.name.removeprefix("rnnkernels::") for e in profile.events() if e.name.startswith("rnnkernels::")]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_where_it_runs(cell, int8):
    module, x, states = make(cell, torch.float32 if int8 else torch.bfloat16)
    if int8:
        module = rnnkernels.quantize_dynamic(module)
    with torch.no_grad():
        assert named(call, module, x, states) == ["plain_step"]


@pytest.mark.parametrize("cell", CELLS)
def test_where_it_does_not_run(cell):
    module, x, states = make(cell)
    assert named(call, module, x, states) == ["plain_layer"]  # its parameters require gradients
    with torch.no_grad():
        assert ran(call, module, x, states) == ["layer"]  # somebody watches
        for transform in (vmap(lambda x: call(module, x[None], [])[0]), grad(lambda x: call(module, x, [])[0].sum())):
            assert "plain_step" not in named(transform, x)
        with backends.force("reference"):
            assert named(call, module, x, states) == ["plain_reference_layer"]
        with torch.autocast("cpu", torch.float16):
            assert named(call, module, x, states) == ["plain_layer"]


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_opcheck(cell):
    for dtype in (torch.float64, torch.bfloat16):
        module, x, states = make(cell, dtype)
        for given in (states, []):
            torch.library.opcheck(
                STEP.default, arguments(cell, x, given, module),
                test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
            )  # fmt: skip


@pytest.mark.parametrize("what, wrong, said", [
    ("x", torch.randn(1, B, I), "x must have 2 dimensions, got 3"),
    ("x", torch.randn(B, I + 1), "weight_ih must have size 4 in dimension 1, got 3"),
    ("x", torch.randn(B, I).half(), "must have the same dtype"),
    ("states", [torch.randn(1, B, H)] * 2, "h0 must have 2 dimensions, got 3"),
    ("states", [torch.randn(B, H), torch.randn(B, H + 1)], "c0 must have size 5 in dimension 1, got 6"),
    ("states", [torch.randn(B, H)], "expected 2 states, got 1"),
    ("states", [torch.randn(B, H), torch.randn(B, H, device="meta")], "expected all tensors on cpu"),
    ("weights", [], "expected 4 weights, got 0"),
    ("cell", "mgu", "no cell mgu"),
    ("hidden_size", 0, "hidden unit"),
    ("activation", "elu", "expected an activation out of tanh, relu"),
])  # fmt: skip
@torch.no_grad()
def test_wrong_arguments(what, wrong, said):
    names = ("x", "states", "weights", "cell", "bias", "hidden_size", "activation")
    module, x, states = make("lstm", torch.float32)
    given = dict(zip(names, arguments("lstm", x, states, module), strict=True))
    with pytest.raises(RuntimeError, match=said):
        STEP(**{**given, what: wrong})
