"""The ops called without the modules: their kernels for autograd give the modules' gradients, or an error."""

import pytest
import torch
from common import assert_close, make_case, run_layer
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import rnnkernels
from rnnkernels.cells import CELLS
from rnnkernels.cells.call import LayerCall

OPS = torch.ops.rnnkernels
BOTH = (False, True)
LENGTHS = torch.tensor([3, 1])


def call_of(case, tensors, **more):
    """The arguments of ``rnnkernels::layer`` up to save."""
    settings = case.settings | more
    names = ("reverse", "bias", "project", "lengths", "layer_norm")
    return LayerCall(case.cell, *case.split(tensors), **{name: settings[name] for name in names if name in settings})


def weighted(outputs):
    return sum((o * torch.linspace(0.1, 1, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs)


def all_close(name, actual, expected):
    for n, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"{name} {n}", a, e)


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("op", ["layer", "reference_layer"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_layer(cell, op, save):
    case = make_case(cell, reverse=BOTH, P=2 * (cell == "lstm"), lengths=LENGTHS)
    cells = save and CELLS[cell].states > 1
    y, last, saved = getattr(OPS, op)(*call_of(case, case.tensors), save)
    outputs, expected = [y, *last], case(*case.tensors)
    if cells:  # c has a gradient, past the lengths it has no values
        alive = (torch.arange(3)[:, None] < LENGTHS)[..., None]
        outputs = [*outputs, torch.where(alive, saved[-1], 0)]
        *expected, c = case(*case.tensors, return_cells=True)
        expected = [*expected, torch.where(alive, c, 0)]
    found = torch.autograd.grad(weighted(outputs), case.tensors, create_graph=True)
    wanted = torch.autograd.grad(weighted(expected), case.tensors, create_graph=True)
    all_close("gradient", found, wanted)
    second = [torch.autograd.grad(weighted([v.sin() for v in g]), case.tensors) for g in (found, wanted)]
    all_close("second derivative", *second)


def test_what_has_no_gradient_says_so():
    case = make_case("gru")
    y, _, (gates,) = OPS.layer(*call_of(case, case.tensors), True)
    with pytest.raises(NotImplementedError, match="gates that the op saves have no gradient"):
        (y.sum() + gates.sum()).backward()
    with pytest.raises(NotImplementedError, match="gates that the op saves have no gradient"):
        grad(lambda x: OPS.layer(*call_of(case, [x, *case.detached()[1:]]), True)[2][0].sum())(case.detached()[0])
    h_mask = torch.ones(1, 2, 4, dtype=torch.float64, requires_grad=True)
    call = [*call_of(case, case.detached())]
    call[12] = h_mask
    with pytest.raises(NotImplementedError, match="h_mask and zone have no gradient"):
        OPS.layer(*call, False)[0].sum().backward()


@pytest.mark.parametrize("op", ["layer", "reference_layer"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_layer_backward(cell, op):
    """The op that computes gradients has gradients itself: those that double backward of a module has."""
    case = make_case(cell)
    outputs = case(*case.tensors)
    dy, *dlast = (torch.rand_like(o, requires_grad=True) for o in outputs)
    leaves = [dy, *dlast, *case.tensors]
    wanted = torch.autograd.grad(outputs, case.tensors, [dy, *dlast], create_graph=True)
    y, last, saved = getattr(OPS, op)(*call_of(case, case.tensors), True)
    backward = getattr(OPS, f"{op}_backward")
    for needs in ([True] * 4, [False, True, True, True]):
        dx, *lists = backward(dy, dlast, None, *call_of(case, case.tensors), y, saved, needs)
        found = [*([dx] if needs[0] else []), *(t for v in lists for t in v)]
        expected = wanted if needs[0] else wanted[1:]
        all_close("gradient", found, expected)
        all_close(
            "second derivative", torch.autograd.grad(weighted([v.sin() for v in found]), leaves, retain_graph=True),
            torch.autograd.grad(weighted([v.sin() for v in expected]), leaves, retain_graph=True),
        )  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
def test_transforms_of_layer(cell):
    case, plain = make_case(cell, reverse=BOTH), make_case(cell, reverse=BOTH)
    tensors = case.detached()
    each = tuple(range(len(tensors)))

    def op(*tensors):
        y, last, _ = OPS.layer(*call_of(case, tensors), False)
        return y, *last

    loss, expected = (lambda *t, f=f: weighted(f(*t)) for f in (op, plain))
    all_close("grad", grad(loss, each)(*tensors), grad(expected, each)(*tensors))
    second = lambda f: grad(lambda *t: weighted([g.sin() for g in grad(f, each)(*t)]), each)  # noqa: E731
    all_close("grad of grad", second(loss)(*tensors), second(expected)(*tensors))
    jacobian = lambda f: jacrev(lambda x: f(x, *tensors[1:])[0])(tensors[0])  # noqa: E731
    assert_close("jacrev", jacobian(op), jacobian(plain))
    batch = [torch.stack([t, 2 * t]) for t in tensors]
    all_close("vmap", vmap(op)(*batch), vmap(plain)(*batch))
    all_close("vmap(grad)", vmap(grad(loss, each))(*batch), vmap(grad(expected, each))(*batch))
    backward = lambda dy, *t: OPS.layer_backward(  # noqa: E731
        dy, [], None, *call_of(case, t), *(OPS.layer(*call_of(case, t), True)[i] for i in (0, 2)), [True] * 4
    )[0]
    dy = torch.ones_like(plain(*tensors)[0])
    through = grad(lambda *t: backward(dy, *t).sin().sum(), each)(*tensors)
    pulled = lambda *t: grad(lambda x: plain(x, *t[1:])[0].sum())(t[0])  # noqa: E731
    all_close("grad of layer_backward", through, grad(lambda *t: pulled(*t).sin().sum(), each)(*tensors))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own jvp uses it
def test_forward_mode_is_refused():
    case = make_case("lstm")
    x, *rest = case.detached()
    y, last, saved = OPS.layer(*call_of(case, [x, *rest]), True)
    backward = lambda x: OPS.layer_backward(  # noqa: E731
        y, [], None, *call_of(case, [x, *rest]), y, saved, [True] * 4
    )[0]
    stack = lambda x: OPS.stack(x, [], rest[2:], "lstm", 1, False, True, 4)[0]  # noqa: E731
    for f in (lambda x: OPS.layer(*call_of(case, [x, *rest]), False)[0], backward, stack):
        with pytest.raises(NotImplementedError, match="forward-mode"):
            jvp(f, (x,), (x,))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            jacfwd(f)(x)


STACKS = {
    "RNN": {"nonlinearity": "relu"}, "GRU": {}, "LSTM": {"proj_size": 2},
}  # fmt: skip


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("name", STACKS)
def test_gradients_of_stack(name, hx):
    torch.manual_seed(0)
    module = getattr(rnnkernels, name)(3, 4, 2, bidirectional=True, dtype=torch.float64, **STACKS[name])
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    P, S = module.proj_size or 4, 1 + (name == "LSTM")
    states = [torch.randn(4, 2, n, dtype=torch.float64, requires_grad=True) for n in (P, 4)[:S]] if hx else []
    lengths = torch.tensor([5, 2])
    leaves = [x, *states, *module.parameters()]
    y, last = OPS.stack(
        x, states, list(module.parameters()), name.lower(), 2, True, True, 4, module.proj_size,
        STACKS[name].get("nonlinearity"), lengths,
    )  # fmt: skip
    expected, hidden = module(x, (tuple(states) if S > 1 else states[0]) if hx else None, lengths=lengths)
    expected = [expected, *(hidden if S > 1 else [hidden])]
    all_close("output", [y, *last], expected)
    all_close(
        "gradient", torch.autograd.grad(weighted([y, *last]), leaves), torch.autograd.grad(weighted(expected), leaves)
    )
    loss = lambda x: weighted([OPS.stack(x, [], leaves[-len(list(module.parameters())) :], name.lower(), 2, True, True,  # noqa: E731
                                         4, module.proj_size, STACKS[name].get("nonlinearity"))[0]])  # fmt: skip
    found = grad(loss)(x.detach())
    assert_close("grad", found, torch.autograd.grad(weighted([module(x)[0]]), x)[0])


def test_gradients_of_a_stack_of_int8():
    """To the inputs, as through the floats that the integers stand for, and to the scales."""
    random = torch.Generator().manual_seed(0)
    weights = [torch.randint(-127, 128, (12, n), generator=random, dtype=torch.int8) for n in (3, 4)]
    scales = [(torch.rand(12, generator=random) / 127).requires_grad_() for _ in weights]
    x = torch.randn(3, 2, 3, generator=random, requires_grad=True)
    leaves = [x, *scales]
    y, _ = OPS.stack(x, [], weights, "gru", 1, False, False, 4, 0, None, None, scales)
    floats = [w * s[:, None] for w, s in zip(weights, scales, strict=True)]
    expected, _ = run_layer("gru", x, [], floats, bias=False)
    found, wanted = (torch.autograd.grad(weighted([v]), leaves, retain_graph=True) for v in (y, expected))
    all_close("gradient", found, wanted)


def test_nothing_is_kept_where_no_gradient_is_wanted():
    case = make_case("lstm")
    with torch.no_grad():
        assert not OPS.layer(*call_of(case, case.tensors), False)[0].requires_grad
    y, last, saved = OPS.layer(*call_of(case, case.detached()), True)
    assert not any(t.requires_grad for t in (y, *last, *saved))
    with torch.inference_mode():
        assert_close("y", OPS.layer(*call_of(case, case.tensors), False)[0], y)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_calls_of_the_ops():
    case = make_case("gru")

    def f(*tensors):
        return weighted([OPS.layer(*call_of(case, tensors), False)[0]])

    torch._dynamo.reset()
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*case.tensors), case.tensors)
    torch._dynamo.reset()
    all_close("gradient", found, torch.autograd.grad(weighted(case(*case.tensors)[:1]), case.tensors))
