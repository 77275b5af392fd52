"""The ops by themselves: ``torch.library.opcheck``, and whether their fakes tell the truth."""

import pytest
import torch
from common import make_case
from pairwise import in_turn
from torch._subclasses.fake_tensor import FakeTensorMode

import rnnkernels
from rnnkernels.cells import CELLS
from rnnkernels.cells.call import LayerCall

OPS = torch.ops.rnnkernels
BOTH = (False, True)
ALL_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
# what torch's own compiler does in compiling
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.mark.parametrize(
    "cell, variant",
    in_turn(
        CELLS, ["plain", "lengths", "projected"], exists=lambda cell, v: v != "projected" or CELLS[cell].states > 1
    ),
)
def test_opcheck(cell, variant):
    lengths = torch.tensor([1, 3]) if variant == "lengths" else None
    case = make_case(cell, reverse=BOTH, P=2 * (variant == "projected"), states=variant != "lengths")
    x, states, weights = case.split(case.detached())
    project = variant == "projected"
    call = tuple(LayerCall(cell, x, states, weights, BOTH, project=project, lengths=lengths))
    plain = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")  # no autograd: see autograd.py
    for prefix, checks in (("", ALL_CHECKS), ("plain_", plain)):
        forward, backward = (getattr(OPS, f"{prefix}{name}").default for name in ("layer", "layer_backward"))
        for save in (False, True):
            torch.library.opcheck(forward, (*call, save), test_utils=checks)
        y, last, saved = forward(*call, True)
        for needs in ([True] * 4, [False, False, True, False]):
            torch.library.opcheck(
                backward, (torch.randn_like(y), last, None, *call, y, saved, needs), test_utils=checks
            )
    leaves = [x.clone().requires_grad_(), states, [w.clone().requires_grad_() for w in weights]]
    torch.library.opcheck(OPS.layer.default, (cell, *leaves, *call[4:], False), test_utils=ALL_CHECKS)


def stack_call(name, x, hx, **kwargs):
    """The arguments of ``rnnkernels::stack`` for two layers in both directions, without those that have defaults."""
    module = getattr(rnnkernels, name)(3, 4, 2, bidirectional=True, dtype=x.dtype, **kwargs)
    states = [torch.randn(4, 2, n, dtype=x.dtype) for n in (module.proj_size or 4, 4)[: 1 + (name == "LSTM")]]
    return x, states if hx else [], [p.detach() for p in module.parameters()], name.lower(), 2, True, True, 4


@pytest.mark.parametrize("name, kwargs, rare", [
    ("RNN", {}, ()),
    ("RNN", {"nonlinearity": "relu"}, (0, "relu")),
    ("GRU", {}, (0, None, torch.tensor([1, 3]))),
    ("LSTM", {"proj_size": 2}, (2, None, torch.tensor([5, 0]))),
])  # fmt: skip
def test_opcheck_of_stack(name, kwargs, rare):
    for hx in (True, False):
        call = (*stack_call(name, torch.randn(5, 2, 3), hx, **kwargs), *rare)
        torch.library.opcheck(torch.ops.rnnkernels.stack.default, call, test_utils=ALL_CHECKS)
        call = (call[0].requires_grad_(), call[1], [w.requires_grad_() for w in call[2]], *call[3:])
        # but for the fakes: what goes from layer to layer is no leaf, and torch's check reads its ``grad``
        torch.library.opcheck(torch.ops.rnnkernels.stack.default, call, test_utils=[*ALL_CHECKS[:2], ALL_CHECKS[3]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name, proj_size", [("RNN", 0), ("GRU", 0), ("LSTM", 0), ("LSTM", 2)])
def test_fake_of_stack_tells_the_truth(name, proj_size, dtype):
    kwargs = {"proj_size": proj_size} if proj_size else {}
    x, states, weights, *rest = stack_call(name, torch.randn(5, 2, 3, dtype=dtype), True, **kwargs)

    def run(device):
        move = lambda tensors: [t.to(device) for t in tensors]  # noqa: E731
        y, last = torch.ops.rnnkernels.stack(x.to(device), move(states), move(weights), *rest, proj_size)
        return [(t.shape, t.dtype, t.stride()) for t in (y, *last)]

    assert run("cpu") == run("meta")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_fakes_tell_the_truth(backend, cell, dtype):
    """Shapes, dtypes and strides of both ops on meta tensors are those of the real ones."""
    case = make_case(cell, reverse=BOTH, dtype=dtype)
    x, states, weights = case.split(case.detached())
    forward, backward = OPS.layer.default, OPS.layer_backward.default

    def run(device):
        move = lambda tensors: [t.to(device) for t in tensors]  # noqa: E731
        call = LayerCall(cell, x.to(device), move(states), move(weights), BOTH)
        y, last, saved = forward(*call, True)
        dx, *lists = backward(torch.ones_like(y), last, None, *call, y, saved, [True] * 4)
        return [y, *last, *saved, dx, *(t for v in lists for t in v)]

    facts = [[(t.shape, t.dtype, t.stride()) for t in run(device)] for device in ("cpu", "meta")]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_meta_and_fake_tensors(name):
    module = getattr(rnnkernels, name)(3, 4, bidirectional=True, device="meta")
    for context in (torch.no_grad(), torch.enable_grad(), torch.autocast("cpu")):
        with context:
            y, last = module(torch.randn(5, 2, 3, device="meta"))
            assert y.shape == (5, 2, 8) and y.device.type == "meta" and y.dtype == torch.float32
    y.sum().backward() if y.requires_grad else module(torch.randn(5, 2, 3, device="meta"))[0].sum().backward()
    assert all(p.grad.shape == p.shape for p in module.parameters())
    with FakeTensorMode():
        module = getattr(rnnkernels, name)(3, 4)
        module(torch.randn(5, 2, 3))[0].sum().backward()
        assert all(p.grad.shape == p.shape for p in module.parameters())
        with torch.no_grad():
            assert module(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


@pytest.mark.parametrize("name", ["GRU", "LiGRU"])
def test_meta_and_fake_lengths(name):
    """They have no values that could be checked; Li-GRU's batch norm counts the rows inside of them."""
    for context in (torch.device("meta"), FakeTensorMode()):
        with context:
            module, x, lengths = getattr(rnnkernels, name)(3, 4), torch.randn(5, 2, 3), torch.tensor([5, 1])
            y, _ = module(x, lengths=lengths)
            y.sum().backward()
            assert y.shape == (5, 2, 4) and all(p.grad.shape == p.shape for p in module.parameters())


def test_both_definitions_of_the_schemas_agree():
    """That of C++, for programs without Python, and that of Python, for machines without the extension."""
    from rnnkernels.op.schema import SCHEMAS

    for name, arguments in SCHEMAS.items():
        for full in (name, f"plain_{name}"):
            op = getattr(torch.ops.rnnkernels, full).default
            assert str(op._schema) == str(torch._C.parse_schema(f"rnnkernels::{full}{arguments}"))
