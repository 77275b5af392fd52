"""Modules with options: memory, compile, export, vmap, autocast, small batches, strides, devices."""

import copy
import shutil

import pytest
import torch
from common import assert_close
from test_modules import flat
from test_option_modules import MODULES, make
from test_options import B, H, T, build, run
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jacrev, vmap

import rnnkernels

INDUCTOR = "inductor" if any(map(shutil.which, ("g++", "clang++", "c++"))) else "aot_eager"
# what torch's own compiler does in compiling
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "projected", "gru", "gru_reset_before"])
def test_recompute_saves_the_output_only(cell):
    """Bytes that autograd keeps, and the same gradients."""
    for features in (["lengths"], ["lengths", "layer_norm", "zoneout", "recurrent_dropout"]):
        found = {}
        for recompute in (False, True):
            module, x, hx, call = build(cell, features, layers=1)
            module.recompute = recompute
            kept = {}

            def pack(t, kept=kept):
                kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            with saved_tensors_hooks(pack, lambda t: t):
                outputs = run(module, x, hx, call)
            grads = torch.autograd.grad(sum(o.sin().sum() for o in outputs), [x, *hx, *module.parameters()])
            found[recompute] = sum(kept.values()), grads
        planes = {"rnn": 0, "lstm": 4, "projected": 4, "gru": 4, "gru_reset_before": 3}[cell]
        assert found[False][0] - found[True][0] == planes * 2 * T * B * H * 8
        for k, (a, e) in enumerate(zip(found[True][1], found[False][1], strict=True)):
            assert_close(f"gradient {k}", a, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recompute_in_low_precision(backend, cell, dtype):
    module, x, hx, call = build(cell, ["lengths"], dtype=dtype)
    grads = []
    for recompute in (False, True):
        module.recompute = recompute
        outputs = run(module, x, hx, call)
        grads.append(torch.autograd.grad(sum(o.float().sin().sum() for o in outputs), [x, *module.parameters()]))
    for k, (e, a) in enumerate(zip(*grads, strict=True)):
        assert_close(f"gradient {k}", a, e)


def seeded(module, *args, **more):
    torch.manual_seed(3)
    return flat(module(*args, **more))


@pytest.fixture
def fresh():
    """Compiled code of one test is not in the way of the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", MODULES)
def test_compiled(fresh, name):
    """One graph; in eval the numbers of eager mode, in training a call that learns."""
    module, x = make(name).eval(), torch.randn(5, 2, 3, dtype=torch.float64)
    more = {"lengths": torch.tensor([3, 5])}
    if not module.bidirectional:
        more["reset"] = torch.rand(5, 2) < 0.3
    if name == "LSTM":
        more["return_cell_states"] = True
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=name == "GRU")
    found = []
    for function in (module, compiled):
        outputs = flat(function(x, **more))
        grads = torch.autograd.grad(sum(o.sin().sum() for o in outputs), list(module.parameters()))
        found.append([*outputs, *grads])
    for k, (e, a) in enumerate(zip(*found, strict=True)):
        assert_close(f"output or gradient {k}", a, e)
    if name == "GRU":  # the masks of training in a graph too
        module.train()
        first, second = (flat(compiled(x, **more))[0] for _ in range(2))
        first.sum().backward()
        assert not torch.equal(first, second)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_recompute_compiles_once_for_all_lengths(fresh):
    torch.manual_seed(0)
    module = rnnkernels.LSTM(3, 4, zoneout=(0.1, 0.2), layer_norm=True, recompute=True, dtype=torch.float64).eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for T in (5, 9, 40):
            x = torch.randn(T, 2, 3, dtype=torch.float64)
            grads = [torch.autograd.grad(f(x)[0].sin().sum(), list(module.parameters())) for f in (compiled, module)]
            for k, (a, e) in enumerate(zip(*grads, strict=True)):
                assert_close(f"gradient {k}", a, e)


@pytest.mark.long
def test_compiled_by_inductor(fresh):
    module, x = make("LSTM").eval(), torch.randn(5, 2, 3, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, backend=INDUCTOR)
    for a, e in zip(flat(compiled(x)), flat(module(x)), strict=True):
        assert_close("compiled", a, e)


@pytest.mark.parametrize("name", MODULES)
def test_exported(name):
    module, x = make(name).eval(), torch.randn(5, 2, 3, dtype=torch.float64)
    shapes = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
    dynamic = {"input": shapes, "lengths": {0: shapes[1]}}
    program = torch.export.export(
        module, (x,), {"lengths": torch.tensor([3, 5])}, dynamic_shapes=dynamic, strict=False
    )  # fmt: skip
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    lengths = torch.tensor([4, 0, 2])
    for a, e in zip(flat(program.module()(x, lengths=lengths)), flat(module(x, lengths=lengths)), strict=True):
        assert_close("exported", a, e)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_per_sample(name):
    module = make(name).eval()
    parameters = {k: p.detach() for k, p in module.named_parameters()}
    loss = lambda p, x, lengths: functional_call(module, p, (x,), {"lengths": lengths})[0].sin().sum()  # noqa: E731
    x, lengths = torch.randn(3, 5, 2, 3, dtype=torch.float64), torch.tensor([[1, 2], [5, 0], [3, 3]])
    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, lengths)
    for k in range(3):
        for key, e in grad(loss)(parameters, x[k], lengths[k]).items():
            assert_close(f"sample {k}, d{key}", found[key][k], e)


def test_second_derivatives_of_layer_norm_under_vmap():
    """torch's own, of F.layer_norm, raises where only the derivatives of gains are vmapped."""
    layer = rnnkernels.GRU(3, 2, layer_norm=True, dtype=torch.float64)
    x, gain = torch.randn(3, 2, 3, dtype=torch.float64), layer.ln_h_gain_l0.detach()
    loss = lambda gain: functional_call(layer, {"ln_h_gain_l0": gain}, (x,))[0].sin().sum()  # noqa: E731
    expected = torch.autograd.functional.hessian(loss, gain)
    assert_close("hessian", jacrev(jacrev(loss))(gain), expected)


def test_masks_under_vmap():
    """As torch's own dropout: an error unless said how, one mask for all, or one for each."""
    module, x = make("heads"), torch.randn(3, 5, 2, 3, dtype=torch.float64)
    module.zoneout, module.recompute = 0.3, False
    x[1] = x[0]
    one = lambda x: module(x)[0]  # noqa: E731
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(one)(x)
    same, different = vmap(one, randomness="same")(x), vmap(one, randomness="different")(x)
    assert torch.equal(same[0], same[1]) and not torch.equal(different[0], different[1])


@pytest.mark.parametrize("name", MODULES)
def test_autocast(name):
    module, x = make(name, torch.float32), torch.randn(5, 2, 3)
    low = copy.deepcopy(module).bfloat16()
    expected = seeded(low, x.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = seeded(module, x)
    assert all(a.dtype == torch.bfloat16 for a in found)
    for k, (a, e) in enumerate(zip(found, expected, strict=True)):
        assert_close(f"output {k}", a, e, 0.1 if module.training else None)
    sum(o.float().sum() for o in found).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("T, B", [(1, 1), (1, 3), (4, 0)])
def test_small_and_empty_batches(name, T, B):
    """Forward and backward of one step, one row, and no row at all; an unbatched input is a batch of one."""
    module = make(name)
    x = torch.randn(T, B, 3, dtype=torch.float64).requires_grad_()
    y, *last = seeded(module, x)
    assert y.shape[:2] == (T, B) and all(s.size(1) == B for s in last)
    (y.sum() + sum(s.sum() for s in last)).backward()
    assert x.grad.shape == x.shape and all(p.grad.isfinite().all() for p in module.parameters())
    if B == 1:
        assert all(torch.equal(a, e.squeeze(1)) for a, e in zip(seeded(module, x[:, 0]), (y, *last), strict=True))


def test_strides_do_not_matter():
    module = make("LSTM").eval()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    apart = torch.empty(2, 3, 5, 2, dtype=torch.float64)[..., 0].permute(2, 0, 1).copy_(x)
    reset = (torch.rand(2, 5) < 0.4).T
    for a, e in zip(flat(module(apart)), flat(module(x)), strict=True):
        assert torch.equal(a, e)
    module = make("RNN").eval()
    assert torch.equal(module(apart, reset=reset)[0], module(x, reset=reset.contiguous())[0])


def test_meta_device():
    for name in MODULES:
        module = make(name).to("meta")
        x, lengths = torch.randn(5, 2, 3, device="meta", dtype=torch.float64), torch.ones(2, device="meta").long()
        y = module(x, lengths=lengths)[0]
        assert y.shape[:2] == (5, 2) and y.is_meta
        y.sum().backward()
        assert all(p.grad.shape == p.shape for p in module.parameters())
