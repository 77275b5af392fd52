"""``rnnkernels::stack``, inference through all layers in one call.

It equals the layers one by one, bit for bit, and it runs where it may and nowhere else.
"""

import itertools
import os

import pytest
import torch
from pairwise import cases
from test_modules import LAYERS, B, H, I, T, flat
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import rnnkernels
from rnnkernels import backends
from rnnkernels.nn.base import MODES
from rnnkernels.op import schema as ops

if backends.EXTENSION_ERROR is not None or backends.forced() is not None:
    pytest.skip("stack is for the C++ backend where it is not forced", allow_module_level=True)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPS = torch.ops.rnnkernels


class Record(TorchDispatchMode):
    """The names of the rnnkernels ops that run inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "rnnkernels":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def ran(f, *args):
    """The names of the ops that a call runs."""
    with Record() as record:
        f(*args)
    return record.names


def make(cell, *args, **kwargs):
    name, extra = LAYERS[cell]
    torch.manual_seed(0)
    return getattr(rnnkernels, name)(I, H, *args, **extra, **kwargs).eval()


def states_of(module, batch=B):
    """A random ``hx``."""
    rows, P = module.num_layers * (1 + module.bidirectional), module.proj_size or H
    make = lambda n: torch.randn(rows, batch, n, dtype=module.weight_hh_l0.dtype)  # noqa: E731
    return (make(P), make(H)) if module.mode == "LSTM" else make(P)


def map_states(f, hx):
    return tuple(map(f, hx)) if isinstance(hx, tuple) else f(hx)


def assert_same_bits(f, *args):
    """A call gives what it gives where its layers run by themselves, which they do where a backend is forced."""
    with backends.force("cpp"):
        assert set(ran(f, *args)) == {"layer"}
        expected = flat(f(*args))
    assert ran(f, *args) == ["stack"]
    for n, (a, e) in enumerate(zip(flat(f(*args)), expected, strict=True)):
        assert (a.shape, a.dtype, a.stride()) == (e.shape, e.dtype, e.stride()), f"layout of output {n}"
        assert torch.equal(a, e), f"output {n}: {(a - e).abs().max()}"


@pytest.mark.parametrize(
    "cell, layers, bidirectional, bias, dtype", cases(LAYERS, (1, 2, 3), (False, True), (True, False), DTYPES), ids=str
)
@torch.no_grad()
def test_equals_the_layers_one_by_one(cell, layers, bidirectional, bias, dtype):
    for batch_first, steps in itertools.product((False, True), (1, T)):
        module = make(
            cell, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, dtype=dtype
        )  # fmt: skip
        x, hx = torch.randn((B, steps, I) if batch_first else (steps, B, I), dtype=dtype), states_of(module)
        assert_same_bits(module, x)
        assert_same_bits(module, x, hx)
        apart = torch.randn(*x.shape[:2], 2 * I, dtype=dtype)[..., ::2]  # no two elements of a row side by side
        turned = map_states(lambda s: s.transpose(0, 2).contiguous().transpose(0, 2), hx)
        assert_same_bits(module, apart, turned)
        assert_same_bits(module, x[:0] if batch_first else x[:, :0])


@pytest.mark.parametrize("layers, bidirectional", [*itertools.product((1, 3), (False, True))])
@pytest.mark.parametrize("cell", LAYERS)
@torch.no_grad()
def test_equals_the_layers_one_by_one_with_lengths(cell, layers, bidirectional):
    module = make(cell, layers, bidirectional=bidirectional)
    x, hx, (name, activation) = torch.randn(T, B, I), states_of(module), MODES[module.mode]
    more = {"nonlinearity": activation} if activation else {}
    weights = list(module.parameters())

    def run(x, lengths):
        function = getattr(rnnkernels.functional, name)
        return function(x, hx, weights, True, layers, bidirectional=bidirectional, lengths=lengths, **more)

    for lengths in (torch.tensor([2, 0, 6]), torch.tensor([6, 6, 1]).int(), torch.tensor([[2, 9]] * B)[:, 0]):
        assert_same_bits(run, x, lengths)
    assert_same_bits(module, pack_padded_sequence(x, [6, 2, 3], enforce_sorted=False), hx)


@torch.no_grad()
def test_weights_of_any_layout_and_kind():
    """Not contiguous, not parameters, changed between calls: as ever."""
    module = make("lstm", 2)
    for name, p in list(module.named_parameters()):
        if p.dim() == 2:
            delattr(module, name)
            setattr(module, name, p.T.contiguous().T)
    x = torch.randn(T, B, I)
    assert_same_bits(module, x)
    before = module(x)[0]
    module.weight_ih_l1 = module.weight_ih_l1 * 2
    assert_same_bits(module, x)
    assert not torch.equal(module(x)[0], before)


@pytest.mark.parametrize("cell", LAYERS)
def test_results_share_no_memory(cell):
    module = make(cell, 3)
    x, hx = torch.randn(T, B, I), states_of(module)
    with torch.no_grad():
        first = flat(module(x, hx))
        kept = [t.clone() for t in first]
        second = flat(module(x + 1, hx))
    pointers = {t.untyped_storage().data_ptr() for t in (x, *flat(hx), *first, *second)}
    assert len(pointers) == 1 + len(flat(hx)) + len(first) + len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_where_it_runs():
    module, x = make("lstm", 2), torch.randn(T, B, I)
    hx = states_of(module)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert ran(module, x) == ran(module, x, hx) == ["stack"]
            assert ran(module, x[:, 0]) == ["stack"]  # without a batch
            assert ran(functional_call, module, dict(module.named_parameters()), (x,)) == ["stack"]
    module.requires_grad_(False)
    assert ran(module, x, hx) == ["stack"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(x)
    assert [event.name for event in profile.events()].count("rnnkernels::plain_stack") == 1
    assert all(layer.backend == "cpp" for layer in rnnkernels.explain(module, x).layers)


def test_where_it_does_not_run():
    module, x = make("gru", 2, dropout=0.5), torch.randn(T, B, I)
    hx, weights = states_of(module), [p.detach() for p in module.parameters()]
    assert ran(module, x) == ["layer", "layer"]  # its parameters require gradients
    frozen = make("gru", 2, dropout=0.5).requires_grad_(False)
    assert ran(frozen, x.clone().requires_grad_()) == ran(frozen, x, hx.clone().requires_grad_()) == ["layer", "layer"]
    with torch.no_grad():
        for name in ("cpp", "reference"):
            with backends.force(name):
                assert "stack" not in ran(module, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert ran(module, x) == ["layer", "layer"]
        assert "stack" not in ran(vmap(module, 1, 1), x[:, None])
        assert "stack" not in ran(grad(lambda x: module(x)[0].sum()), x)
        assert ran(module.train(), x) == ["layer", "layer"]  # dropout
        run = lambda **more: rnnkernels.functional.gru(x, None, weights, num_layers=2, **more)  # noqa: E731
        reset = torch.zeros(T, B, dtype=torch.bool)
        assert "stack" not in ran(lambda: run(reset=reset)) and ran(run) == ["stack"]
        module.eval().to("meta")(x.to("meta"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@torch.no_grad()
def test_not_while_compiling():
    """A compiler sees the layers, with their shapes and rules."""
    module, x, targets = make("gru", 2), torch.randn(T, B, I), []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    out = torch.compile(module, fullgraph=True, backend=backend)(x)
    torch._dynamo.reset()
    assert all(torch.equal(a, e) for a, e in zip(flat(out), flat(module(x)), strict=True))
    exported = [str(node.target) for node in torch.export.export(module, (x,)).graph.nodes]
    for found, name in ((targets, "rnnkernels.plain_layer"), (exported, "rnnkernels.layer")):
        assert sum(name in target for target in found) == 2
        assert not any("stack" in target for target in found)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@torch.no_grad()
def test_forward_mode_runs_no_stack():
    module, x = make("rnn", 2), torch.randn(T, B, I)
    with forward_ad.dual_level():
        for args in ((forward_ad.make_dual(x, x),), (x, forward_ad.make_dual(states_of(module), states_of(module)))):
            assert forward_ad.unpack_dual(module(*args)[0]).tangent.any()
        assert ran(module, x) == ["layer", "layer"]


def arguments(of="lstm", **changes):
    """The arguments of a call of the op, by name."""
    module = make(of, 2)
    hx, weights = states_of(module), [p.detach() for p in module.parameters()]
    given = {"x": torch.randn(T, B, I), "states": list(hx) if isinstance(hx, tuple) else [hx], "weights": weights}
    given |= {"cell": MODES[module.mode][0], "num_layers": 2, "bidirectional": False, "bias": True, "hidden_size": H}
    given |= {"proj_size": module.proj_size, "activation": MODES[module.mode][1], "lengths": None}
    return given | changes


@pytest.mark.parametrize("cell", LAYERS)
def test_the_other_devices_implementation(cell):
    """A call of ``layer`` per layer: the same bits on the CPU, and samples of vmap are rows of them."""
    for lengths in (None, torch.tensor([2, 0, 6])):
        given = arguments(cell, lengths=lengths)
        (y, last), (y_n, last_n) = OPS.stack(**given), ops.stack_of_layers(**given)
        assert all(torch.equal(a, e) for a, e in zip([y_n, *last_n], [y, *last], strict=True))
    two = torch.stack([given["x"], 2 * given["x"]])
    for k, found in enumerate(vmap(lambda x: OPS.stack(**given | {"x": x})[0])(two)):
        assert torch.allclose(found, OPS.stack(**given | {"x": two[k]})[0], atol=1e-6)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="there is no /proc")
@pytest.mark.parametrize("run", [
    lambda given, cell="rnn": OPS.stack(**given),
    lambda given: OPS.layer("rnn", given["x"], [], given["weights"][:4], [False], True, False, "relu", "sigmoid",
                            None, None, [], None, [], False, 0.0, 0, [], 0, 0, False),
], ids=("stack", "layer"))  # fmt: skip
def test_calls_leak_nothing(run):
    """Torch's own conversion of a string argument leaks it."""
    given = arguments("relu", x=torch.randn(1, 1, I), states=[])

    def pages(calls):
        for _ in range(calls):
            run(given)
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1])

    seen = [pages(5_000) for _ in range(4)]  # a string is at least 32 bytes: each time 160 kB more, if it leaks
    growth = [(after - before) * os.sysconf("SC_PAGE_SIZE") for before, after in zip(seen, seen[1:], strict=False)]
    assert min(growth) < 125_000  # other things of a long process may grow once
