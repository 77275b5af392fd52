"""Wrong lengths: an error at once on the CPU, an assertion on other devices and in graphs, for which nobody waits."""

import os

import fresh
import pytest
import torch
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import rnnkernels
from rnnkernels import checks

T, B = 5, 2
ASSERTED = "in 'lengths' has to be at least 0 and at most the number of steps"
LOW, HIGH = "at least 0, but found -1 in 'lengths'", "at most 5, the number of steps, but found 6"
WRONG = [(torch.tensor([1, -1]), LOW), (torch.tensor([6, 2]), HIGH)]
GOOD = torch.tensor([5, 0])


def make(cell="GRU", **options):
    torch.manual_seed(0)
    return getattr(rnnkernels, cell)(3, 4, bidirectional=True, **options), torch.randn(T, B, 3)


@pytest.fixture
def device(monkeypatch):
    """The CPU, taken for a device whose values the host cannot see."""
    monkeypatch.setattr(checks, "on_host", lambda tensor: False)


class Ops(TorchDispatchMode):
    """The names of what is dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def weights(module):
    return list(module.parameters())


@pytest.mark.parametrize("wrong, words", WRONG)
def test_an_error_at_once_where_the_host_sees_them(wrong, words):
    module, x = make()
    for enabled in (True, False):
        with checks.device_assertions(enabled), pytest.raises(ValueError, match=words):
            module(x, lengths=wrong)
    with pytest.raises(ValueError, match=words):
        rnnkernels.functional.gru(x, None, weights(module), bidirectional=True, lengths=wrong)
    small = rnnkernels.quantize_dynamic(module)
    with pytest.raises(ValueError, match=words):
        small(x, lengths=wrong)
    with pytest.raises(ValueError, match=words):
        rnnkernels.trace(module, x, lengths=wrong)


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.2}], ids=["plain", "zoneout"])
@pytest.mark.parametrize("wrong", [wrong for wrong, _ in WRONG], ids=["negative", "too long"])
def test_an_assertion_on_a_device(device, wrong, options):
    module, x = make(**options)
    with pytest.raises(RuntimeError, match=ASSERTED):
        module(x, lengths=wrong)
    with pytest.raises(RuntimeError, match=ASSERTED):
        module(x, lengths=wrong.to(torch.int8))
    with pytest.raises(RuntimeError, match=ASSERTED):
        rnnkernels.functional.gru(x, None, weights(module), bidirectional=True, lengths=wrong, **options)


def test_nobody_waits_for_a_device(device):
    """No value is read by the host, neither with the assertion nor without; and what it costs is known."""
    module, x = make()
    names = {}
    for enabled in (True, False):
        with checks.device_assertions(enabled), torch.no_grad(), Ops() as ops:
            module(x, lengths=GOOD)
        names[enabled] = ops.names
        for reads in ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "item", "_to_copy"):
            assert f"aten::{reads}" not in ops.names
    for name in ("aten::clamp", "aten::eq.Tensor", "aten::all", "aten::_assert_async.msg"):
        assert names[True].count(name) == 1, name
        names[True].remove(name)
    assert names[True] == names[False]


def test_the_assertion_comes_first_and_once_for_all_layers(device, monkeypatch):
    """Before anything reads the lengths, and again in neither another layer nor the backward pass; so too while the
    caller records a CUDA graph, which then asserts at each replay."""
    module, x = make(num_layers=2)
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda value=capturing: value)
        with Ops() as ops:
            module(x, lengths=GOOD)[0].sum().backward()
        layers = [at for at, name in enumerate(ops.names) if name == "rnnkernels::layer"]
        assert len(layers) == 2 and "rnnkernels::layer_backward" in ops.names
        assert ops.names.count("aten::_assert_async.msg") == 1
        assert ops.names.index("aten::_assert_async.msg") < layers[0]


def test_lengths_that_a_narrow_dtype_holds_but_not_t(device):
    module, x = rnnkernels.GRU(1, 2), torch.randn(300, 2, 1)
    y, _ = module(x, lengths=torch.tensor([255, 1], dtype=torch.uint8))
    assert y[254, 0].all() and not y[255:, 0].any() and not y[1:, 1].any()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_unsigned_lengths(dtype):
    module, x = make()
    assert torch.equal(module(x, lengths=GOOD.to(dtype))[0], module(x, lengths=GOOD)[0])
    with pytest.raises(ValueError, match=HIGH):
        module(x, lengths=torch.tensor([6, 1], dtype=dtype))


def test_meta_has_values_that_nobody_sees():
    module, x = make()
    assert module.to("meta")(x.to("meta"), lengths=WRONG[0][0].to("meta"))[0].shape == (T, B, 8)


def test_switched_off(device):
    module, x = make()
    wrong, _ = WRONG[1]
    with checks.device_assertions(False):
        module(x, lengths=wrong)
        with checks.device_assertions(True), pytest.raises(RuntimeError, match=ASSERTED):
            module(x, lengths=wrong)
        module(x, lengths=wrong)
    with pytest.raises(RuntimeError, match=ASSERTED):
        module(x, lengths=wrong)
    with pytest.raises(TypeError, match="enabled should be of type bool, got: int"), checks.device_assertions(1):
        pass


PROGRAM = """
import torch, rnnkernels
from rnnkernels import checks
checks.on_host = lambda tensor: False
rnnkernels.GRU(3, 4)(torch.randn(5, 2, 3), lengths=torch.tensor([1, 6]))
print("passed")
"""


@pytest.mark.parametrize("value, status, words", [("0", 0, "passed"), ("1", 1, ASSERTED), ("no", 1, "=no is neither")])
def test_environment_variable(value, status, words):
    env = {**os.environ, checks.ENVIRONMENT_VARIABLE: value}
    done = fresh.python("-c", PROGRAM, env=env)
    assert done.returncode == status and words in done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*should not be instantiated")
@pytest.mark.parametrize("options", [{}, {"zoneout": 0.2}], ids=["plain", "zoneout"])
def test_compiled(options):
    """One graph, with dynamic sizes, in training and in inference; switching off compiles anew."""
    torch._dynamo.reset()
    module, x = make(**options)
    module.eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            assert torch.equal(compiled(x, lengths=GOOD)[0], module(x, lengths=GOOD)[0])
            compiled(torch.randn(7, 3, 3), lengths=torch.tensor([7, 1, 6]))
            for wrong, _ in WRONG:
                with pytest.raises(RuntimeError, match=ASSERTED):
                    compiled(x, lengths=wrong)
                with checks.device_assertions(False):
                    compiled(x, lengths=wrong)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*should not be instantiated")
@pytest.mark.parametrize("strict", (False, True))
def test_exported(strict):
    module, x = make()
    sizes = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
    dynamic = {"input": sizes, "lengths": {0: sizes[1]}}
    program = torch.export.export(module, (x,), {"lengths": GOOD}, dynamic_shapes=dynamic, strict=strict).module()
    x, good = torch.randn(7, 3, 3), torch.tensor([7, 0, 6])
    assert torch.equal(program(x, lengths=good)[0], module(x, lengths=good)[0])
    with pytest.raises(RuntimeError, match=ASSERTED):
        program(x, lengths=good + 1)


@pytest.mark.parametrize("on_device", (False, True), ids=["host", "device"])
def test_under_torch_func(on_device, monkeypatch):
    """Values of batched lengths, or of lengths that all share; with gradients too."""
    if on_device:
        monkeypatch.setattr(checks, "on_host", lambda tensor: False)
    module, x = make()
    xs, good = x.expand(3, T, B, 3), torch.tensor([[5, 0], [1, 2], [3, 4]])
    y = lambda x, lengths: module(x, lengths=lengths)[0]  # noqa: E731
    loss = lambda x, lengths: y(x, lengths).sum()  # noqa: E731
    for k, row in enumerate(vmap(y)(xs, good)):
        assert torch.allclose(row, y(x, good[k]))
    vmap(grad(loss))(xs, good)
    kind, low, high = (RuntimeError, ASSERTED, ASSERTED) if on_device else (ValueError, "found -1", "found 6")
    with pytest.raises(kind, match=high):
        vmap(y)(xs, good + 1)
    with pytest.raises(kind, match=low):
        vmap(lambda x: y(x, WRONG[0][0]))(xs)
    with pytest.raises(kind, match=high):
        grad(loss)(x, WRONG[1][0])
    with pytest.raises(kind, match=high):
        vmap(vmap(grad(loss)))(xs[None], good[None] + 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*should not be instantiated")
def test_compiled_under_torch_func():
    """There the values are not checked; one graph all the same."""
    torch._dynamo.reset()
    module, x = make()
    xs, good = x.expand(3, T, B, 3), torch.tensor([[5, 0], [1, 2], [3, 4]])
    y = lambda x, lengths: module(x, lengths=lengths)[0]  # noqa: E731
    compiled = torch.compile(vmap(y), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(xs, good), vmap(y)(xs, good))
    compiled(xs, good + 1)
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch.cuda finds none")
def test_nobody_waits_for_a_gpu():
    """torch raises where the host would wait for the device."""
    module, x = make()
    module, x, lengths = module.cuda(), x.cuda(), GOOD.cuda()
    module(x, lengths=lengths)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(x, lengths=lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ("cpp", "reference"))
@pytest.mark.parametrize("options", ({}, {"layer_norm": True}, {"recompute": True}, {"zoneout": 0.3}), ids=str)
@pytest.mark.parametrize("kind", ("RNN", "LSTM", "GRU"))
def test_what_lies_past_the_lengths_is_never_read(kind, options, backend):
    """Not even where its gradient is zero: zero times NaN would reach the weights."""
    lengths, x = torch.tensor([4, 0, 2]), torch.randn(4, 3, 5)
    past = torch.arange(4)[:, None] >= lengths
    layer = getattr(rnnkernels, kind)(5, 6, bidirectional=True, **options)
    found = []
    for value in (0.0, torch.nan):
        given = torch.where(past[..., None], value, x).requires_grad_()
        torch.manual_seed(0)
        with rnnkernels.backends.force(backend):
            y, last = layer(given, lengths=lengths)
            total = y.square().sum() + (last if kind != "LSTM" else last[1]).square().sum()
            found.append([y, *torch.autograd.grad(total, [given, *layer.parameters()])])
    for zeros, nans in zip(*found, strict=True):
        assert torch.equal(zeros, nans)
