"""torch's switches for the precision of float32 products: what they choose on the CPU, and how far results go from
float64."""

from contextlib import contextmanager

import pytest
import torch
from common import error

import rnnkernels

SETS = torch.ops.rnnkernels.instruction_sets().split(",") if rnnkernels.backends.EXTENSION_ERROR is None else []
PARTS = {"tf32": 2, "bf16": 1}
# Largest errors relative to the largest number: products in two parts are right to 2^-16, in one to 2^-8.
LIMITS = {"ieee": 2e-6, "tf32": 2**-15, "bf16": 2**-5}


@contextmanager
def switched(to, name="rnn"):
    """``torch.backends.mkldnn.rnn.fp32_precision``, or the switch for matrix products, set for a while."""
    at = getattr(torch.backends.mkldnn, name)
    before = at.fp32_precision
    at.fp32_precision = to
    try:
        yield
    finally:
        at.fp32_precision = before


def results(module, x):
    """Output and gradients, by name."""
    x = x.clone().requires_grad_()
    y = module(x)[0]
    y.square().mean().backward()
    named = {"y": y.detach(), "x": x.grad}
    named |= {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    return named


@pytest.mark.parametrize("name", ("RNN", "LSTM"))
@pytest.mark.parametrize("to", tuple(LIMITS))
@pytest.mark.parametrize("isa", ("amx", "avx512_bf16", "avx512"))
def test_errors(name, to, isa, use_instruction_set):
    """Outputs and gradients of layers whose products are large enough for bf16 parts."""
    use_instruction_set(isa)
    torch.manual_seed(0)
    module, x = getattr(rnnkernels, name)(48, 96, bidirectional=True), torch.randn(5, 40, 48)
    exact = getattr(rnnkernels, name)(48, 96, bidirectional=True).double()
    exact.load_state_dict(module.state_dict())
    expected, default = results(exact, x.double()), results(module, x)
    with switched(to):
        got = results(module, x)
        with torch.no_grad():  # the op for inference
            assert torch.equal(module(x)[0], got["y"])
    for key, value in got.items():
        assert error(value, expected[key]) < LIMITS[to], key
    fewer = to != "ieee" and (isa == "amx" or (isa == "avx512_bf16" and to == "bf16"))
    assert fewer == any(not torch.equal(value, default[key]) for key, value in got.items())


@pytest.fixture
def use_instruction_set():
    """Chooses an instruction set, if the machine has it."""

    def use(isa):
        if isa not in SETS:
            pytest.skip(f"this machine has no {isa}")
        torch.ops.rnnkernels.use_instruction_set(isa)

    yield use
    if SETS:
        torch.ops.rnnkernels.use_instruction_set("")


@pytest.mark.skipif("amx" not in SETS, reason="this machine has no amx")
@pytest.mark.parametrize("to", tuple(PARTS))
def test_explain_and_switches(to):
    """``explain`` says how many parts; the switch for matrix products counts where that for RNNs is not set."""
    module, x = rnnkernels.GRU(64, 128), torch.randn(20, 64, 64)
    text = f"W_hh in {PARTS[to]} bf16 part"
    assert text not in str(rnnkernels.explain(module, x))
    with switched(to, "matmul"):
        assert text in str(rnnkernels.explain(module, x))
        with switched("ieee"):
            assert text not in str(rnnkernels.explain(module, x))
    with switched(to):
        assert text in str(rnnkernels.explain(module, x))
        assert text not in str(rnnkernels.explain(module.double(), x.double()))


@pytest.mark.parametrize("make", (lambda: rnnkernels.GRUCell(64, 96), lambda: rnnkernels.Recurrent(
    rnnkernels.cells.mgu, 64, 96)), ids=("cell", "own"))  # fmt: skip
def test_cells(make):
    """Cells follow the switch too, and stay as right as it allows."""
    module, x = make(), torch.randn(64, 64)
    x = x if isinstance(module, rnnkernels.GRUCell) else x.expand(3, 64, 64)
    expected = module(x)
    with switched("bf16"), torch.no_grad():
        got = module(x)
    got, expected = (v if torch.is_tensor(v) else v[0] for v in (got, expected))
    assert error(got, expected.double()) < LIMITS["bf16"]


def test_wrong_counts_are_refused():
    if not SETS:
        pytest.skip("the C++ extension is not there")
    w = [torch.randn(4, 3), torch.randn(4, 4)]
    with pytest.raises(RuntimeError, match="expected parts from 0 to 3, got 4"):
        torch.ops.rnnkernels.stack(torch.randn(2, 1, 3), [], w, "rnn", 1, False, False, 4, parts=4)
