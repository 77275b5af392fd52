"""The ops and modules under ``torch.compile`` and ``torch.export``."""

import shutil

import pytest
import torch
from common import assert_close, make_case
from pairwise import ALL, in_turn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkernels
from rnnkernels.cells import CELLS

BOTH = (False, True)
INDUCTOR = "inductor" if any(map(shutil.which, ("g++", "clang++", "c++"))) else "aot_eager"
NAMES = ["RNN", "LSTM", "GRU"]
# what torch's own compiler does in compiling
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh():
    """Compiled code of one test is not in the way of the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(name, **kwargs):
    torch.manual_seed(0)
    return getattr(rnnkernels, name)(3, 4, **kwargs)


def compare(f, compiled, *inputs):
    """Outputs and all gradients of a compiled function and of the plain one."""
    found = []
    for run in (f, compiled):
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = run(*leaves)
        outputs = [t for o in outputs for t in (o if isinstance(o, tuple) else (o,))]
        parameters = list(f.parameters()) if isinstance(f, torch.nn.Module) else []
        found.append((*outputs, *torch.autograd.grad(sum(o.sin().sum() for o in outputs), leaves + parameters)))
    for n, (a, e) in enumerate(zip(found[1], found[0], strict=True)):
        assert_close(f"output or gradient {n}", a, e)
    with torch.no_grad():
        for o, e in zip(compiled(*inputs), f(*inputs), strict=True):
            for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (o, e)), strict=True):
                assert_close("output without grad", a, b)


LONG = pytest.mark.long  # the same graph; that of the LSTM has most results


@pytest.mark.parametrize("name", ["LSTM", pytest.param("RNN", marks=LONG), pytest.param("GRU", marks=LONG)])
def test_compiled_by_inductor(name):
    module = make(name, bidirectional=name == "LSTM")
    compare(module, torch.compile(module, fullgraph=True, backend=INDUCTOR), torch.randn(3, 2, 3))


@pytest.mark.parametrize("name, kwargs", [
    ("RNN", {"nonlinearity": "relu", "batch_first": True}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
    ("GRU", {"num_layers": 2, "bias": False}),
])  # fmt: skip
def test_compiled_with_dynamic_shapes(name, kwargs):
    module = make(name, dtype=torch.float64, **kwargs)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    compare(module, compiled, torch.randn(6, 2, 3, dtype=torch.float64))
    with torch.compiler.set_stance("fail_on_recompile"):
        for T, B in ((5, 4), (7, 6)):
            compare(module, compiled, torch.randn(T, B, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_compiled_loop_over_a_cell(name):
    module = make(name, dtype=torch.float64)

    class Loop(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = module

        def forward(self, x):
            state, out = None, []
            for x_t in x:
                state = self.cell(x_t, state)
                out.append(state[0] if isinstance(state, tuple) else state)
            return (torch.stack(out),)

    loop = Loop()
    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
    compare(loop, compiled, torch.randn(3, 2, 3, dtype=torch.float64))


def test_compiled_with_states_and_dropout():
    module = make("LSTM", num_layers=2, dropout=1.0, dtype=torch.float64)
    x, h, c = torch.randn(4, 2, 3), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    run = lambda x, h, c: module(x, (h, c))  # noqa: E731
    compare(run, torch.compile(run, fullgraph=True, backend="aot_eager"), x.double(), h.double(), c.double())


def test_compiled_with_packed_input():
    module = make("LSTM")
    packed = pack_padded_sequence(torch.randn(4, 2, 3), torch.tensor([2, 4]), enforce_sorted=False)
    out = torch.compile(module, backend="aot_eager")(packed)[0]  # the sizes are data: a graph break, as in torch.nn
    assert isinstance(out, PackedSequence)
    assert_close("packed", out.data, module(packed)[0].data)


@pytest.mark.parametrize("cell", CELLS if ALL else ("lstm", "gru_reset_before"))
def test_compiled_functional_with_lengths(cell):
    name = cell.removesuffix("_reset_before")
    function, more = getattr(rnnkernels.functional, name), {"reset_after": False} if name != cell else {}
    weights = list(make(name.upper(), dtype=torch.float64).parameters())
    run = lambda x, lengths: function(x, None, weights, lengths=lengths, **more)  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    x, lengths = torch.randn(4, 3, 3, dtype=torch.float64), torch.tensor([2, 0, 4])
    compare(lambda x: run(x, lengths), lambda x: compiled(x, lengths), x)


def test_compiled_under_autocast():
    module = make("GRU")

    def run(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(x)

    compare(run, torch.compile(run, fullgraph=True, backend="aot_eager"), torch.randn(3, 2, 3))
    with torch.no_grad():
        assert torch.compile(run, fullgraph=True, backend="aot_eager")(torch.randn(3, 2, 3))[0].dtype == torch.bfloat16


def test_compiled_and_exported_with_a_forced_backend(backend):
    module, x = make("LSTM", dtype=torch.float64), torch.randn(3, 2, 3, dtype=torch.float64)
    compare(module, torch.compile(module, fullgraph=True, backend="aot_eager"), x)
    program = torch.export.export(module, (x,), strict=False)
    assert_close("exported", program.module()(x)[0], module(x)[0])
    assert sum("rnnkernels" in str(n.target) for n in program.graph.nodes) == 1


def test_compiled_with_a_stage():
    """Stages that the C++ kernels lack run on the reference, as one op as well."""
    weights = list(make("GRU", dtype=torch.float64).parameters())
    reset = torch.rand(4, 3) < 0.3
    run = lambda x: rnnkernels.functional.gru(x, None, weights, reset=reset)  # noqa: E731
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    compare(run, torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True), x)
    per_sample = vmap(grad(lambda x: run(x)[0].sin().sum()))
    many = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    assert_close("vmap(grad)", torch.compile(per_sample, fullgraph=True, backend="aot_eager")(many), per_sample(many))


TRANSFORMS = ["grad"] + [f"{f}, {kind} weights" for f in ("vmap", "vmap(grad)") for kind in ("stacked", "shared")]


@pytest.mark.parametrize("cell, name", in_turn(CELLS, TRANSFORMS))
def test_compiled_transforms(cell, name):
    """compile of grad, vmap and vmap(grad), over shared and stacked weights."""
    case = make_case(cell, T=2, I=2, H=3)
    tensors = case.detached()
    loss = lambda *tensors: sum(o.sin().sum() for o in case(*tensors))  # noqa: E731
    n = len(tensors)
    in_dims = (0,) * n if "stacked" in name else (0,) * (1 + case.states) + (None,) * (n - 1 - case.states)
    f = grad(loss, tuple(range(n))) if "grad" in name else lambda *tensors: case(*tensors)
    if "vmap" in name:
        f = vmap(f, in_dims)
        tensors = [t if d is None else torch.stack([t, 2 * t, 0.5 * t]) for t, d in zip(tensors, in_dims, strict=True)]
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for k, (a, e) in enumerate(zip(compiled(*tensors), f(*tensors), strict=True)):
        assert_close(f"{name}: {k}", a, e)
    if "grad" not in name:
        with torch.no_grad():  # the vmap rule of the op itself
            for k, (a, e) in enumerate(zip(compiled(*tensors), f(*tensors), strict=True)):
                assert_close(f"{name} without grad: {k}", a, e)


@torch.no_grad()
def test_compiled_vmap_over_what_is_in_optional_lists():
    """States, states to restart from and inputs of steps: the dispatcher does not see them."""
    layer, step = make("GRU", dtype=torch.float64), make("LSTMCell", dtype=torch.float64)
    own = rnnkernels.Recurrent(rnnkernels.cells.gru_d, 3, 4, dtype=torch.float64)
    x, h, start = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 2, 3), (3, 1, 2, 4), (5, 2)))
    for f in (
        lambda h: layer(x, h)[0],
        lambda h: layer(x, None, reset=(start > 0.5, h))[1],
        lambda h: step(x[0], (h[0], h[0])),
        lambda h: own(x, gamma=torch.sigmoid(h).expand(5, 2, 4))[0],
    ):
        for a, e in zip(torch.compile(vmap(f), fullgraph=True, backend="aot_eager")(h), vmap(f)(h), strict=True):
            assert_close("vmap", a, e)


def test_compiled_gradients_per_sample_of_a_module():
    module = make("GRU", dtype=torch.float64)
    parameters = {k: p.detach() for k, p in module.named_parameters()}
    f = vmap(grad(lambda p, x: functional_call(module, p, (x,))[0].sin().sum()), in_dims=(None, 0))
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    found = torch.compile(f, fullgraph=True, backend="aot_eager")(parameters, x)
    for key, e in f(parameters, x).items():
        assert_close(f"d{key}", found[key], e)


def test_compiled_training_through_vmap():
    """An ensemble trained as one compiled function: backward of a compiled vmap."""
    members = [make("LSTM", dtype=torch.float64) for _ in range(2)]
    parameters, buffers = stack_module_state(members)
    keys = list(parameters)
    x = torch.randn(3, 2, 3, dtype=torch.float64)

    def run(*weights):
        one = lambda p: functional_call(members[0], (p, buffers), (x,))[0]  # noqa: E731
        return (vmap(one)(dict(zip(keys, weights, strict=True))),)

    compare(run, torch.compile(run, fullgraph=True, backend="aot_eager"), *parameters.values())


def test_compiled_twice_differentiated_is_refused():
    """torch.compile itself has no double backward; it has to say so and not to be wrong."""
    module = make("RNN", dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    y, _ = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        (g,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        torch.autograd.grad(g.sum(), x)


@pytest.mark.parametrize("name", NAMES)
def test_export_with_dynamic_shapes(name):
    module = make(name, num_layers=2, bidirectional=True, batch_first=name == "GRU").eval()
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    shapes = ({0: B, 1: T} if name == "GRU" else {0: T, 1: B},)
    program = torch.export.export(module, (torch.randn(4, 3, 3),), dynamic_shapes=shapes, strict=False)
    assert all("rnnkernels.layer" in str(n.target) for n in program.graph.nodes if "rnnkernels" in str(n.target))
    assert sum("rnnkernels" in str(n.target) for n in program.graph.nodes) == 2
    for shape in ((4, 3, 3), (7, 5, 3), (2, 9, 3)):
        x = torch.randn(shape)
        y, last = program.module()(x)
        expected, expected_last = module(x)
        assert_close("y", y, expected)
        for a, e in zip(*((s if isinstance(s, tuple) else (s,)) for s in (last, expected_last)), strict=True):
            assert_close("last", a, e)


def test_strict_export_of_a_model_and_saving_it(tmp_path):
    model = torch.nn.Sequential(make("LSTM", batch_first=True))

    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = model[0], torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    module = First()
    dims = ({0: torch.export.Dim("B"), 1: torch.export.Dim("T")},)
    program = torch.export.export(module, (torch.randn(3, 4, 3),), dynamic_shapes=dims, strict=True)
    torch.export.save(program, tmp_path / "model.pt2")
    x = torch.randn(2, 6, 3)
    assert_close("loaded", torch.export.load(tmp_path / "model.pt2").module()(x), module(x))
