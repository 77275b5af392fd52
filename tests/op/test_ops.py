"""The op under autograd: gradients of first and second order, what is needed of them, memory, threads, determinism."""

import threading

import pytest
import torch
from common import assert_close, make_case
from conftest import CPU_BACKENDS
from pairwise import ALL, cases
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import rnnkernels
from rnnkernels.cells import CELLS, reference
from rnnkernels.cells.call import LayerCall

BOTH = (False, True)
VARIANTS = {
    "plain": {},
    "no bias": {"bias": False},
    "zero states": {"states": False},
    "reverse": {"reverse": (True,)},
    "bidirectional": {"reverse": BOTH},
    "lengths": {"T": 4, "B": 3, "reverse": BOTH, "lengths": torch.tensor([2, 0, 4])},
    "one step": {"T": 1, "B": 1},
    "projected": {"P": 2, "reverse": BOTH},
    "relu": {"activation": "relu"},
}


def has_variant(cell, variant, *_):
    return (variant != "projected" or cell == "lstm") and (variant != "relu" or cell == "rnn")


def grads(case, tensors, outputs=None):
    """Gradients of a fixed random combination of all outputs, as a list, None where nothing depends."""
    outputs = case(*tensors) if outputs is None else outputs
    random = torch.Generator().manual_seed(7)
    loss = sum((o * torch.randn(o.shape, generator=random, dtype=torch.float64).to(o.dtype)).sum() for o in outputs)
    return torch.autograd.grad(loss, [t for t in tensors if t.requires_grad])


GRID = cases(CELLS, VARIANTS, CPU_BACKENDS, exists=has_variant)


@pytest.mark.parametrize("cell, variant, backend", GRID, indirect=["backend"])
def test_gradients_are_those_of_numbers(backend, cell, variant):
    case = make_case(cell, **{"T": 2, "I": 2, "H": 3, **VARIANTS[variant]})
    assert gradcheck(case, case.tensors, fast_mode=variant != "plain")
    if ALL or variant == "plain":  # the others in the next test
        assert gradgradcheck(case, case.tensors, fast_mode=variant != "plain" or not ALL)


@pytest.mark.parametrize("make", [
    lambda: rnnkernels.RNN(2, 3, 2, nonlinearity="relu", dtype=torch.float64),
    lambda: rnnkernels.LSTM(2, 3, 2, bidirectional=True, proj_size=2, dtype=torch.float64),
    lambda: rnnkernels.GRU(2, 3, 2, bias=False, batch_first=True, dtype=torch.float64),
    lambda: rnnkernels.LSTMCell(2, 3, dtype=torch.float64),
])  # fmt: skip
def test_gradients_through_modules(make):
    torch.manual_seed(0)
    module = make()
    x = torch.randn(2, *((2,) if isinstance(module, rnnkernels.LSTMCell) else (2, 2)), dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]

    def run(x, *weights):
        out = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))
        return tuple(t for o in out for t in (o if isinstance(o, tuple) else (o,)))

    inputs = [x.requires_grad_(), *module.parameters()]
    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("cell", ["lstm"])
def test_gradients_of_the_cell_states(backend, cell):
    case = make_case(cell, T=3, reverse=BOTH, lengths=torch.tensor([3, 3]))
    run = lambda *tensors: case(*tensors, return_cells=True)  # noqa: E731
    *_, last_c, cells_DTBH = run(*case.tensors)
    assert_close("cells at the end", torch.stack((cells_DTBH[0, -1], cells_DTBH[1, 0])), last_c)
    assert gradcheck(run, case.tensors, fast_mode=True)
    assert gradgradcheck(run, case.tensors, fast_mode=True)
    assert gradcheck(lambda *tensors: run(*tensors)[-1], case.tensors, fast_mode=True)


@pytest.mark.parametrize("cell, variant, backend", GRID, indirect=["backend"])
def test_double_backward_is_autograd_of_the_reference(backend, cell, variant):
    case = make_case(cell, **VARIANTS[variant])
    call = LayerCall(cell, *case.split(case.tensors), **case.settings)
    y, last, _ = reference.layer(*call, False)
    found = []
    for outputs in (case(*case.tensors), (y, *last)):
        loss = sum(o.sin().sum() for o in outputs)
        first = torch.autograd.grad(loss, case.tensors, create_graph=True)
        found.append((*first, *torch.autograd.grad(sum(g.cos().sum() for g in first), case.tensors)))
    for n, (actual, expected) in enumerate(zip(*found, strict=True)):
        assert_close(f"gradient {n}", actual, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_only_the_needed_gradients(backend, cell):
    case = make_case(cell, reverse=BOTH)
    full = grads(case, case.tensors)
    for n in range(len(case.tensors)):  # each tensor alone
        tensors = [t.detach().requires_grad_(k == n) for k, t in enumerate(case.tensors)]
        assert_close(f"gradient {n} alone", *grads(case, tensors), full[n])
    n = 1 + case.states
    tensors = [*case.tensors[:n], *case.detached()[n:]]  # frozen weights
    for k, (actual, expected) in enumerate(zip(grads(case, tensors), full[:n], strict=True)):
        assert_close(f"gradient {k} with frozen weights", actual, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_each_output_alone(backend, cell):
    case = make_case(cell)
    outputs = case(*case.tensors)
    ones = [torch.autograd.grad(o.sum(), case.tensors, retain_graph=True, allow_unused=True) for o in outputs]
    together = torch.autograd.grad(sum(o.sum() for o in outputs), case.tensors)
    for n, total in enumerate(together):
        assert_close(f"gradient {n}", sum(g[n] for g in ones if g[n] is not None), total)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_again(backend, cell, dtype):
    case = make_case(cell, T=7, B=5, I=9, H=11, reverse=BOTH, dtype=dtype)
    runs = []
    for _ in range(2):
        outputs = case(*case.tensors)
        runs.append((*outputs, *grads(case, case.tensors, outputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert all(t.dtype == dtype for t in runs[0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 0])], ids=["full", "empty rows"])
def test_outputs_share_no_memory(backend, cell, lengths):
    case = make_case(cell, T=1)
    for tensors in (case.tensors, case.detached()):
        outputs = case(*tensors, lengths=lengths)
        memory = [t.untyped_storage().data_ptr() for t in (*outputs, *tensors)]
        assert len(set(memory)) == len(memory)
        if lengths is not None:
            assert not outputs[0].any() and all(map(torch.equal, outputs[1:], tensors[1 : 1 + case.states]))


@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch(backend, cell):
    case = make_case(cell, B=0, reverse=BOTH)
    y, *last = case(*case.tensors)
    assert y.shape == (3, 0, 8) and all(s.shape == (2, 0, 4) for s in last)
    for tensor, g in zip(case.tensors, grads(case, case.tensors, (y, *last)), strict=True):
        assert g.shape == tensor.shape and not g.any()


@pytest.mark.parametrize("cell", CELLS)
def test_strides_do_not_matter(backend, cell):
    case = make_case(cell, T=4, B=3, reverse=BOTH)
    odd = [t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in case.tensors]
    odd[0] = case.tensors[0].detach().transpose(0, 1).repeat(1, 2, 2)[:, ::2, 1:4].transpose(0, 1)
    with torch.no_grad():
        odd[0].copy_(case.tensors[0])
    odd[0].requires_grad_()
    for tensors in (odd, [t.detach() for t in odd]):
        for n, (actual, expected) in enumerate(zip(case(*tensors), case(*case.tensors), strict=True)):
            assert_close(f"output {n}", actual, expected)
    for n, (actual, expected) in enumerate(zip(grads(case, odd), grads(case, case.tensors), strict=True)):
        assert_close(f"gradient {n}", actual, expected)
    y, *_ = outputs = case(*case.tensors)
    dy = torch.ones(1, dtype=y.dtype).expand_as(y)  # as sum().backward() makes it
    for actual, expected in zip(
        torch.autograd.grad(outputs[:1], case.tensors, dy, retain_graph=True),
        torch.autograd.grad(outputs[:1], case.tensors, dy.contiguous()),
        strict=True,
    ):
        assert_close("gradient for an expanded dy", actual, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_checkpoint_and_saved_tensor_hooks(backend, cell):
    case = make_case(cell)
    expected = grads(case, case.tensors)
    actual = grads(case, case.tensors, checkpoint(case, *case.tensors, use_reentrant=False))
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
        outputs = case(*case.tensors)
    hooked = grads(case, case.tensors, outputs)
    assert len(packed) >= len(case.tensors)
    for n, e in enumerate(expected):
        assert_close(f"gradient {n}, checkpoint", actual[n], e)
        assert_close(f"gradient {n}, hooks", hooked[n], e)


def test_memory_is_freed_after_backward():
    case = make_case("gru")
    outputs = case(*case.tensors)
    grads(case, case.tensors, outputs)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        grads(case, case.tensors, outputs)


@pytest.mark.parametrize("cell", CELLS)
def test_inference_mode_and_no_grad(backend, cell):
    case = make_case(cell)
    expected = case(*case.tensors)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            outputs = case(*case.tensors)
        for n, o in enumerate(outputs):
            assert not o.requires_grad
            assert_close(f"output {n}", o, expected[n])


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_backward_in_eval(backend, name):
    module = getattr(rnnkernels, name)(3, 4, 2, dropout=0.5).eval()
    module(torch.randn(3, 2, 3))[0].sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_two_threads_at_once(backend, cell):
    case = make_case(cell, T=20, B=8, I=8, H=16, dtype=torch.float32)
    expected = grads(case, case.tensors)
    found = [[], []]

    def work(mine):
        for _ in range(5):
            mine.append(grads(case, case.tensors))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in found:
        assert len(mine) == 5
        assert all(torch.equal(a, b) for run in mine for a, b in zip(run, expected, strict=True))


def test_a_batch_of_gradients_of_a_state_that_depends_on_nothing():
    @rnnkernels.cell(inputs="n", recurrent="n", states="h phase")
    def every_second(x, r, s):
        phase = 1 - s.phase
        return torch.where(phase > 0.5, torch.tanh(x.n + r.n), s.h), phase

    layer, x = rnnkernels.Recurrent(every_second, 2, 3), torch.randn(4, 2, 2, requires_grad=True)
    y, (_, phase) = layer(x)
    v = [torch.randn(3, *o.shape) for o in (y, phase)]
    (found,) = torch.autograd.grad((y, phase), x, v, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        assert_close("dx", found[k], torch.autograd.grad(y, x, v[0][k], retain_graph=True)[0])
    (found,) = torch.autograd.grad(phase, x, v[1], is_grads_batched=True)
    assert found.shape == (3, 4, 2, 2) and not found.any()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_of_output_gradients(backend, cell, create_graph):
    """``is_grads_batched``, which ``torch.autograd.functional.jacobian(vectorize=True)`` uses too."""
    case = make_case(cell, reverse=BOTH, lengths=torch.tensor([3, 1]))
    outputs = case(*case.tensors)
    v = [torch.randn(4, *o.shape, dtype=o.dtype) for o in outputs]
    settings = {"retain_graph": True, "create_graph": create_graph}
    batched = torch.autograd.grad(outputs, case.tensors, v, is_grads_batched=True, **settings)
    single = [torch.autograd.grad(outputs, case.tensors, [w[k] for w in v], **settings) for k in range(4)]
    single = [torch.stack(g) for g in zip(*single, strict=True)]
    for n, (actual, expected) in enumerate(zip(batched, single, strict=True)):
        assert_close(f"gradient {n}", actual, expected)
    if create_graph:
        second = [
            torch.autograd.grad(sum(g.sin().sum() for g in first), case.tensors, retain_graph=True)
            for first in (batched, single)
        ]
        for n, (actual, expected) in enumerate(zip(*second, strict=True)):
            assert_close(f"gradient {n} of the gradients", actual, expected)
