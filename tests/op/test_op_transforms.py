"""The op and the modules under ``torch.func``, autocast and forward mode."""

import copy

import pytest
import torch
from common import assert_close, make_case, run_layer
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import rnnkernels
from rnnkernels.cells import CELLS
from rnnkernels.cells.call import LayerCall

OPS = torch.ops.rnnkernels
BOTH = (False, True)
MODULES = {
    "RNN": lambda: rnnkernels.RNN(3, 4, 2, nonlinearity="relu", dtype=torch.float64),
    "LSTM": lambda: rnnkernels.LSTM(3, 4, 2, bidirectional=True, proj_size=2, dtype=torch.float64),
    "GRU": lambda: rnnkernels.GRU(3, 4, bias=False, batch_first=True, dtype=torch.float64),
    "LSTMCell": lambda: rnnkernels.LSTMCell(3, 4, dtype=torch.float64),
}


def loss_of(case):
    return lambda *tensors: sum(o.sin().sum() for o in case(*tensors))


def everything(tensors):
    """``argnums`` for all of them."""
    return tuple(range(len(tensors)))


def all_close(name, actual, expected):
    actual, expected = list(actual), list(expected)
    assert len(actual) == len(expected)
    for n, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"{name} {n}", a, e)


def stacked(results):
    """A list of tuples of tensors as a tuple of stacked tensors."""
    return [torch.stack(v) for v in zip(*results, strict=True)]


@pytest.mark.parametrize("cell", CELLS)
def test_grad_and_vjp_equal_autograd(backend, cell):
    case = make_case(cell, reverse=BOTH, lengths=torch.tensor([3, 1]))
    loss = loss_of(case)
    expected = torch.autograd.grad(loss(*case.tensors), case.tensors)
    all_close("grad", grad(loss, everything(case.tensors))(*case.detached()), expected)
    value, pull = vjp(loss, *case.detached())
    all_close("vjp", pull(torch.ones_like(value)), expected)
    with torch.no_grad():  # the transform does not ask
        all_close("grad under no_grad", grad(loss, everything(case.tensors))(*case.detached()), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_jacrev_and_hessian(backend, cell):
    case = make_case(cell, T=2, I=2, H=3)
    tensors, loss = case.detached(), loss_of(case)
    jacobian = jacrev(lambda *tensors: case(*tensors)[0], everything(tensors))(*tensors)
    all_close("jacobian", jacobian, torch.autograd.functional.jacobian(lambda *t: case(*t)[0], tuple(tensors)))
    for n in (0, 1, 1 + case.states):  # x, h0 and w_ih
        of_one = lambda t, n=n: loss(*tensors[:n], t, *tensors[n + 1 :])  # noqa: E731
        expected = torch.autograd.functional.hessian(of_one, tensors[n])
        assert_close(f"hessian {n}", jacrev(jacrev(of_one))(tensors[n]), expected)


@pytest.mark.parametrize("which", ["x", "states", "x and states", "weights", "one weight", "all", "lengths"])
@pytest.mark.parametrize("cell", CELLS)
def test_vmap_equals_a_loop(backend, cell, which):
    """Values and per-sample gradients, for every choice of what is mapped over."""
    case, N = make_case(cell, reverse=BOTH), 3
    n, total = 1 + case.states, len(case.tensors)
    chosen = {
        "x": [0], "states": range(1, n), "x and states": range(n), "weights": range(n, total), "one weight": [n + 1],
        "all": range(total), "lengths": [0],
    }[which]  # fmt: skip
    dims = [(k % 2) if k in chosen else None for k in range(total)]
    tensors = [
        t if d is None else torch.stack([t * (1 + 0.1 * k) for k in range(N)], d)
        for t, d in zip(case.detached(), dims, strict=True)
    ]
    lengths = torch.tensor([[3, 1], [2, 3], [0, 3]]) if which == "lengths" else torch.tensor([3, 1])
    run = lambda lengths, *tensors: case(*tensors, lengths=lengths)  # noqa: E731
    loss = lambda *args: sum(o.sin().sum() for o in run(*args))  # noqa: E731
    for f in (run, grad(loss, tuple(range(1, total + 1)))):
        batched = vmap(f, in_dims=(0 if which == "lengths" else None, *dims))(lengths, *tensors)
        single = [
            f(
                lengths[k] if which == "lengths" else lengths,
                *[t if d is None else t.select(d, k) for t, d in zip(tensors, dims, strict=True)],
            )
            for k in range(N)
        ]
        all_close("result", batched, stacked(single))


@pytest.mark.parametrize("name, compiled", [*((name, False) for name in MODULES), ("GRU", True)])
def test_vmap_of_no_samples(name, compiled):
    """As the last batch of a sampler may be empty; a linear layer has results of size 0."""
    torch._dynamo.reset()
    module, N = MODULES[name](), 0
    shape = (2, 3) if name == "LSTMCell" else (5, 2, 3)
    parameters = {k: p.detach() for k, p in module.named_parameters()}
    run = lambda p, x: functional_call(module, p, (x,))[0]  # noqa: E731
    each = {k: p.new_zeros(N, *p.shape) for k, p in parameters.items()}
    x = torch.zeros(N, *shape, dtype=torch.float64)
    one = run(parameters, x.new_zeros(shape)).shape
    wrap = (lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)) if compiled else (lambda f: f)
    with torch.no_grad():
        assert wrap(vmap(run, (None, 0)))(parameters, x).shape == (N, *one)
        assert wrap(vmap(run, (0, None)))(each, x.new_zeros(shape)).shape == (N, *one)
    found = wrap(vmap(grad(lambda p, x: run(p, x).sum(), (0, 1)), (None, 0)))(parameters, x)
    assert found[1].shape == x.shape and all(g.shape == each[k].shape for k, g in found[0].items())
    shared = wrap(grad(lambda p: vmap(run, (None, 0))(p, x).sum()))(parameters)
    assert all(g.shape == p.shape and not g.any() for g, p in zip(shared.values(), parameters.values(), strict=True))


@pytest.mark.parametrize("own", [False, True])
def test_vmap_where_groups_of_inputs_share_lengths_and_resets(own):
    """A call whose directions have inputs of their own, but the same lengths and resets: as the tangent of heads."""
    case, N = make_case("gru", reverse=BOTH), 3
    x, states, weights = case.split(case.detached())
    x = torch.stack([x, -x])
    states, weights = [torch.cat([s, 2 * s]) for s in states], [*weights, *(2 * w for w in weights)]
    lengths = torch.tensor([[3, 1], [2, 3], [0, 3]])
    reset = torch.arange(N * 3 * 2).view(N, 3, 2) % 4 == 1
    each = torch.arange(1.0, 1 + N, dtype=torch.float64)

    def f(k, lengths, reset):
        more = {"reverse": BOTH, "lengths": lengths, "reset": reset}
        y, last = run_layer("gru", x, states, [k * w for w in weights], **more)
        return y, *last

    def g(*args):
        return (grad(lambda k: sum(o.sin().sum() for o in f(k, *args[1:])))(args[0]),)

    for function in (f, g):
        args = (lengths, reset) if own else (lengths[0], reset[0])
        found = vmap(function, (0, *((0, 0) if own else (None, None))))(each, *args)
        one = lambda k: [a[k] if own else a for a in args]  # noqa: B023, E731
        all_close(function.__name__, found, stacked([function(each[k], *one(k)) for k in range(N)]))


@pytest.mark.parametrize("cell", CELLS)
def test_vmap_in_vmap_and_vmap_of_second_derivatives(backend, cell):
    case = make_case(cell, T=2, I=2, H=3)
    tensors, loss = case.detached(), loss_of(case)
    weights = 1 + case.states
    scales = torch.tensor([[1.0, 1.3], [1.1, 1.4]], dtype=torch.float64)
    both = [scales.view(2, 2, *[1] * t.dim()) * t for t in tensors]
    one = (0,) * len(tensors)
    cross = [None if k >= weights else 0 for k in range(len(tensors))]
    all_close(
        "stacked twice", vmap(vmap(case, one), one)(*both),
        stacked([stacked([case(*[t[i, j] for t in both]) for j in range(2)]) for i in range(2)]),
    )  # fmt: skip
    mixed = [t[:, 0] if k >= weights else t for k, t in enumerate(both)]  # weights per i, inputs per i and j
    f = grad(loss, everything(tensors))
    all_close(
        "weights outside, inputs inside", vmap(vmap(f, tuple(cross)), one)(*mixed),
        stacked([
            stacked([f(*[t[i] if k >= weights else t[i, j] for k, t in enumerate(mixed)]) for j in range(2)])
            for i in range(2)
        ]),
    )  # fmt: skip
    second = grad(lambda *t: sum(g.cos().sum() for g in f(*t)), everything(tensors))
    all_close(
        "second derivatives", vmap(second, one)(*[t[0] for t in both]),
        stacked([second(*[t[0, j] for t in both]) for j in range(2)]),
    )  # fmt: skip


@pytest.mark.parametrize("which", ["inputs", "weights", "gradients only"])
@pytest.mark.parametrize("cell", CELLS)
def test_vmap_of_the_ops_themselves(cell, which):
    """The rules that torch.compile and a program that calls the ops meet; both give the same as a loop."""
    case, N = make_case(cell, reverse=BOTH, P=2 * (cell == "lstm")), 3
    n = 1 + case.states
    dims = [0 if which == "weights" or (which == "inputs" and k < n) else None for k in range(len(case.tensors))]
    tensors = [t if d is None else torch.stack([t, 2 * t, -t]) for t, d in zip(case.detached(), dims, strict=True)]

    def call(tensors):
        x, states, weights = case.split(tensors)
        return LayerCall(cell, x, states, weights, BOTH, project=cell == "lstm")

    def forward(*tensors):
        y, last, saved = OPS.layer(*call(tensors), True)
        return [y, *last, *saved]

    def backward(needs, dy, *tensors):
        y, *rest = forward(*tensors)
        dlast, saved = rest[: case.states], rest[case.states :]
        dx, *lists = OPS.layer_backward(dy, dlast, None, *call(tensors), y, saved, needs)
        return [*([dx] if needs[0] else []), *(t for v in lists for t in v)]

    each = [[t if d is None else t[k] for t, d in zip(tensors, dims, strict=True)] for k in range(N)]
    if which != "gradients only":
        all_close("forward", vmap(forward, tuple(dims))(*tensors), stacked([forward(*e) for e in each]))
    dy = torch.randn(N, 3, 2, 2 * (2 if cell == "lstm" else 4), dtype=torch.float64)
    for needs in ([True] * 4, [True, *[False] * 3], [False, False, True, False], [False, True, False, False]):
        found = vmap(lambda *args: backward(needs, *args), (0, *dims))(dy, *tensors)  # noqa: B023
        all_close(f"{needs}", found, stacked([backward(needs, dy[k], *e) for k, e in enumerate(each)]))


@pytest.mark.parametrize("inputs", ["shared input", "own input"])
@pytest.mark.parametrize("name", MODULES)
def test_an_ensemble_of_modules(backend, name, inputs):
    """``stack_module_state`` and ``functional_call``: values and gradients of all members at once."""
    torch.manual_seed(0)
    members = [MODULES[name]() for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    x = torch.randn(3, *((2, 3) if name == "LSTMCell" else (3, 2, 3)), dtype=torch.float64)
    own = inputs == "own input"

    def first(parameters, x):
        out = functional_call(base, (parameters, buffers), (x,))
        return out[0]

    found = vmap(first, in_dims=(0, 0 if own else None))(parameters, x if own else x[0])
    expected = torch.stack([m(x[k] if own else x[0])[0] for k, m in enumerate(members)])
    assert_close("output", found, expected)
    found.sin().sum().backward()  # ordinary autograd through vmap
    through_vmap = {key: p.grad for key, p in parameters.items()}
    by_func = vmap(grad(lambda p, x: first(p, x).sin().sum()), in_dims=(0, 0 if own else None))(
        {k: p.detach() for k, p in parameters.items()}, x if own else x[0]
    )
    expected.sin().sum().backward()
    for key in parameters:
        wanted = torch.stack([m.get_parameter(key).grad for m in members])
        assert_close(f"d{key}, autograd through vmap", through_vmap[key], wanted)
        assert_close(f"d{key}, vmap(grad)", by_func[key], wanted)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_per_sample(backend, name):
    torch.manual_seed(0)
    module = MODULES[name]()
    parameters = {k: p.detach() for k, p in module.named_parameters()}
    samples = torch.randn(4, *((3,) if name == "LSTMCell" else (5, 3)), dtype=torch.float64)

    def loss(parameters, x):  # x: one sample, without a batch
        return functional_call(module, parameters, (x,))[0].sin().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, samples)
    for k, x in enumerate(samples):
        for key, expected in grad(loss)(parameters, x).items():
            assert_close(f"sample {k}, d{key}", found[key][k], expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own jvp uses it
@pytest.mark.parametrize("cell", CELLS)
def test_forward_mode(backend, cell):
    """Forward mode, alone, over reverse mode and under vmap, equals reverse mode."""
    case = make_case(cell)
    tensors = case.detached()
    for n in range(len(tensors)):  # a tangent anywhere
        f = lambda t, n=n: case(*tensors[:n], t, *tensors[n + 1 :])[0].sin()  # noqa: E731
        expected = torch.func.jacrev(f)(tensors[n])
        assert_close(f"jacfwd {n}", jacfwd(f)(tensors[n]), expected)
        direction = torch.rand_like(tensors[n])
        along = torch.tensordot(expected, direction, direction.dim())
        assert_close(f"jvp {n}", jvp(f, (tensors[n],), (direction,))[1], along)
        for requires_grad in (False, True):
            with forward_ad.dual_level():
                y = f(forward_ad.make_dual(tensors[n].clone().requires_grad_(requires_grad), direction))
                assert_close(f"dual {n}", forward_ad.unpack_dual(y).tangent, along)
    f = lambda x: loss_of(case)(x, *tensors[1:])  # noqa: E731
    expected = torch.func.jacrev(torch.func.jacrev(f))(tensors[0])
    assert_close("forward over reverse", torch.func.hessian(f)(tensors[0]), expected)
    assert_close("reverse over forward", torch.func.jacrev(jacfwd(f))(tensors[0]), expected)
    with forward_ad.dual_level():  # no tangent of ours
        case(*tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_autocast(backend, cell, dtype):
    """Every floating tensor but float64 takes the autocast dtype; gradients come back in that of the parameters."""
    case = make_case(cell, reverse=BOTH, dtype=torch.float32, H=8)
    low = [t.detach().to(dtype).requires_grad_() for t in case.tensors]
    expected = case(*low)
    gradients = torch.autograd.grad(sum(o.float().sum() for o in expected), low)
    for inside in (False, True):
        with torch.autocast("cpu", dtype=dtype):
            outputs = case(*case.tensors)
            loss = sum(o.float().sum() for o in outputs)
            if inside:
                found = torch.autograd.grad(loss, case.tensors)
        if not inside:
            found = torch.autograd.grad(loss, case.tensors)
        assert all(torch.equal(o, e) and o.dtype == dtype for o, e in zip(outputs, expected, strict=True))
        for n, (g, e) in enumerate(zip(found, gradients, strict=True)):
            assert g.dtype == torch.float32
            assert_close(f"gradient {n}", g.to(dtype), e)
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        assert all(torch.equal(o, e) for o, e in zip(case(*case.tensors), expected, strict=True))


def test_autocast_leaves_float64_alone(backend):
    case = make_case("gru")
    expected = case(*case.tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = case(*case.tensors)
    assert all(torch.equal(o, e) for o, e in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_autocast_of_modules(backend, name):
    """In torch.nn GRU returns float32 and LSTM fails with float16; here all layers return the autocast dtype. LSTMCell
    and GRUCell return float32, which their states have, as torch.nn's do."""
    torch.manual_seed(0)
    module = getattr(rnnkernels, name)(3, 4)
    x = torch.randn(2, 3) if name.endswith("Cell") else torch.randn(5, 2, 3)
    exact = module(x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            out = module(x)
        out, wanted = (out[0], exact[0]) if isinstance(out, tuple) else (out, exact)
        assert out.dtype == (torch.float32 if name in ("LSTMCell", "GRUCell") else dtype)
        assert_close(name, out, wanted)
        module.zero_grad()
        out.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in module.parameters())


def test_autocast_and_second_derivatives():
    case = make_case("lstm", dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, *_ = case(*case.tensors)
        g = torch.autograd.grad(y.float().sin().sum(), case.tensors, create_graph=True)
        found = torch.autograd.grad(sum(v.sin().sum() for v in g), case.tensors)
    y, *_ = case(*case.tensors)
    g = torch.autograd.grad(y.sin().sum(), case.tensors, create_graph=True)
    for n, e in enumerate(torch.autograd.grad(sum(v.sin().sum() for v in g), case.tensors)):
        assert_close(f"second derivative {n}", found[n], e, tolerance=0.05)
