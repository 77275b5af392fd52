"""Layers and cells on tensors that are not plain ones: other devices, layouts and bits, subclasses, tangents."""

import pytest
import torch
from common import assert_close
from test_modules import flat
from torch.func import functionalize
from torch.utils._pytree import tree_map

import rnnkernels
from rnnkernels import backends

B, I, H = 4, 3, 5  # noqa: E741
NAMES = ("RNN", "GRU", "LSTM")
ALL = [*NAMES, *(f"{name}Cell" for name in NAMES)]
# what torch's own vmap and sparse tensors say
pytestmark = [pytest.mark.filterwarnings(f"ignore:{said}") for said in (".*torch.jit", "Sparse CSR tensor support")]
cpp_only = pytest.mark.skipif(
    backends.EXTENSION_ERROR is not None or backends.forced() not in (None, "cpp"),
    reason="this is of the C++ extension",
)


def make(name, T=3, **settings):
    """Our module, torch.nn's with the same weights, and x."""
    torch.manual_seed(0)
    ours, theirs = (getattr(library, name)(I, H, **settings) for library in (rnnkernels, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(*((B, I) if name.endswith("Cell") else (T, B, I)), dtype=settings.get("dtype"))


def with_states(module, x, h):
    """The results for h (B, H) as all states."""
    h = h if isinstance(module, torch.nn.RNNCellBase) else h.unsqueeze(0)
    return flat(module(x, (h, h) if "LSTM" in type(module).__name__ else h))


def switched(grad):
    return torch.set_grad_enabled(grad)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("name", ALL)
def test_states_with_a_negative_bit(name, T, grad):
    h = torch.randn(B, H, dtype=torch.cfloat).conj().imag
    assert h.is_neg()
    ours, theirs, x = make(name, T)
    with switched(grad):
        for a, e in zip(with_states(ours, x, h), with_states(theirs, x, h), strict=True):
            assert_close("result", a, e)


class Wrapper(torch.Tensor):
    """A tensor without data of its own, which unwraps itself for every op."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return function(*tree_map(lambda t: t.held if isinstance(t, cls) else t, args), **(kwargs or {}))


@cpp_only
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["GRU", "LSTM", "GRUCell", "LSTMCell"])
def test_states_without_data_are_no_zeros(name, grad):
    """The dispatcher does not look into optional lists, so that a kernel may meet them."""
    ours, theirs, x = make(name)
    h = torch.randn(B, H)
    try:
        with switched(grad):
            found = with_states(ours, x, Wrapper(h))
    except (RuntimeError, ValueError, TypeError) as error:
        assert "plain tensors" in str(error)
    else:  # torch's own op took them
        for a, e in zip(found, with_states(theirs, x, h), strict=True):
            assert_close("result", a, e)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "GRUCell", "LSTMCell"])
def test_weights_elsewhere(name, grad, bias):
    """Else the memory of a result that nobody has computed would be read."""
    if name.endswith("Cell") and grad and not bias:
        pytest.skip("torch's own op computes this, and sees no fault either")
    for T in (1, 3):
        ours, _, x = make(name, T)
        ours = getattr(rnnkernels, name)(I, H, bias=bias, device="meta")
        with switched(grad), pytest.raises(RuntimeError, match=r"not at the same device|is not on the expected device"):
            ours(x)


@cpp_only
def test_int8_weights_elsewhere():
    for name in ALL:
        ours, _, x = make(name)
        with pytest.raises(RuntimeError, match="expected all tensors on cpu"):
            rnnkernels.quantize_dynamic(ours.eval()).to("meta")(x)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells_take_sparse_input(name, layout):
    ours, theirs, x = make(name)
    x, found = x.relu().to_sparse(layout=layout), []
    for module in (ours, theirs):
        with torch.no_grad():
            y = flat(module(x))
        leaf = x.detach().clone().requires_grad_()
        flat(module(leaf))[0].sum().backward()
        found.append([*y, leaf.grad.to_dense(), *(p.grad for p in module.parameters())])
    for a, e in zip(*found, strict=True):
        assert_close("result", a, e)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_vectorized_forward_mode(name, batch_first):
    """Where a result got another shape in place, its tangent would keep the old one."""
    if name.endswith("Cell") and batch_first:
        pytest.skip("a cell has no time")
    settings = {"batch_first": True} if batch_first else {}
    ours, _, x = make(name, dtype=torch.float64, **settings)
    of, autograd = lambda x: flat(ours(x))[0], torch.autograd.functional
    expected = autograd.jacobian(of, x)
    assert_close("jacobian", autograd.jacobian(of, x, vectorize=True, strategy="forward-mode"), expected)
    scalar = lambda x: of(x).square().sum()  # noqa: E731
    assert_close(
        "hessian", autograd.hessian(scalar, x, vectorize=True, outer_jacobian_strategy="forward-mode"),
        autograd.hessian(scalar, x),
    )  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_functionalize(name):
    ours, _, x = make(name)
    for grad in (True, False):
        with switched(grad):
            for a, e in zip(flat(functionalize(ours)(x)), flat(ours(x)), strict=True):
                assert_close("result", a, e)
    expected = torch.autograd.grad(flat(ours(x))[0].sum(), list(ours.parameters()))
    for a, e in zip(
        torch.autograd.grad(flat(functionalize(ours)(x))[0].sum(), list(ours.parameters())), expected, strict=True
    ):
        assert_close("gradient", a, e)


DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("state", [None, *DTYPES], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_autocast_of_cells(name, dtype, state, autocast):
    """As torch.nn's: the states of a GRU and an LSTM keep the digits that they came with."""
    ours, theirs, x = make(name)
    x, h = x.to(dtype), None if state is None else torch.randn(B, H).to(state)
    for grad in (True, False):
        with torch.autocast("cpu", autocast), switched(grad):
            found = [flat(module(x)) if h is None else with_states(module, x, h) for module in (ours, theirs)]
        for a, e in zip(*found, strict=True):
            assert a.dtype == e.dtype and torch.allclose(a.float(), e.float(), atol=2e-2)
