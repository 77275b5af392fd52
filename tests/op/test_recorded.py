"""Programs recorded from modules, by torch.export, torch.jit.trace and make_fx, are differentiated as modules are."""

import io

import pytest
import torch
from common import assert_close
from pairwise import ALL, product
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import rnnkernels

# what torch's own compiler and TorchScript do in compiling
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:.torch.jit.* is deprecated:DeprecationWarning"
)
T, B, I, H = 6, 3, 4, 6  # noqa: E741
LAYERS = {
    "RNN": ("RNN", {"nonlinearity": "relu"}),
    "GRU, both directions": ("GRU", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "LSTM, projected": ("LSTM", {"num_layers": 2, "proj_size": 2}),
    "GRU, reset before": ("GRU", {"reset_after": False, "bias": False}),
    "LSTM, layer norm": ("LSTM", {"layer_norm": True, "recompute": True}),
    "RNN, heads": ("RNN", {"heads": 2}),
    "LSTMCell": ("LSTMCell", {}),
    "GRUCell": ("GRUCell", {}),
    "RNNCell": ("RNNCell", {}),
}


class Net(nn.Module):
    """All results of a layer, or of a cell over three steps, flat; ``given`` are its keyword arguments."""

    def __init__(self, name, options, given=()):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.given = getattr(rnnkernels, name)(I, H, dtype=torch.float64, **options), given

    def forward(self, x, *more):
        if not isinstance(self.rnn, nn.RNNCellBase):
            out = self.rnn(x, **dict(zip(self.given, more, strict=True)))
        else:
            out = None
            for t in range(3):
                out = self.rnn(x[t], out)
        return tuple(flat(out))


def flat(out):
    return [out] if isinstance(out, torch.Tensor) else [t for part in out for t in flat(part)]


def inputs(net, T=T, B=B):
    first = getattr(net.rnn, "batch_first", False)
    x = torch.randn(*((B, T) if first else (T, B)), I, dtype=torch.float64)
    made = {"lengths": lambda: torch.arange(B) % T + 1, "reset": lambda: torch.rand(T, B) < 0.3}
    return x, *(made[name]() for name in net.given)


def check(net, program, args):
    """Whether a program gives the module's results, and gradients of the input and of every parameter by name."""
    x, *more = args
    found = []
    for run in (net, program):
        leaf = x.clone().requires_grad_()
        parameters = dict(run.named_parameters())
        outputs = flat(run(leaf, *more))
        loss = sum(o.sin().sum() for o in outputs)
        grads = torch.autograd.grad(loss, [leaf, *parameters.values()])
        found.append(dict(zip(["x", *parameters], grads, strict=True)) | dict(enumerate(outputs)))
    expected, actual = found
    assert actual.keys() == expected.keys()
    for name, e in expected.items():
        assert_close(name, actual[name], e)


STRICT = [(name, bool(n % 2)) for n, name in enumerate(LAYERS)]  # in turn


@pytest.mark.parametrize("name, strict", product(LAYERS, [False, True]) if ALL else STRICT)
def test_export(name, strict):
    net = Net(*LAYERS[name])
    cell, first = isinstance(net.rnn, nn.RNNCellBase), getattr(net.rnn, "batch_first", False)
    steps, rows = torch.export.Dim("T", max=99), torch.export.Dim("B", max=99)
    sizes = {1: rows} if cell else {first: steps, 1 - first: rows}
    args = inputs(net)
    shapes = {int(dim): size for dim, size in sizes.items()}
    program = torch.export.export(net, args, dynamic_shapes=(shapes,), strict=strict)
    for given in (args, inputs(net, T if cell else 4, 2)):
        check(net, program.module(), given)


@pytest.mark.parametrize("given", ["lengths", "reset"])
def test_export_with_more(given):
    net = Net("LSTM", {"num_layers": 2}, (given,))
    check(net, torch.export.export(net, inputs(net)).module(), inputs(net))


def test_exported_programs_are_compiled():
    net = Net(*LAYERS["LSTM, projected"])
    module, (x,) = torch.export.export(net, inputs(net)).module(), inputs(net)
    torch._dynamo.reset()
    compiled, found = torch.compile(module, backend="aot_eager"), []
    for run, parameters in ((net, net.parameters()), (compiled, module.parameters())):
        found.append(torch.autograd.grad(sum(o.sin().sum() for o in run(x)), list(parameters)))
    torch._dynamo.reset()
    for expected, actual in zip(*found, strict=True):
        assert_close("gradient", actual, expected)


def reloaded(program):
    file = io.BytesIO()
    torch.jit.save(program, file)
    return torch.jit.load(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_trace(name, with_gradients):
    """Traced with and without gradients, in training too; saved and loaded; other lengths and batches."""
    net = Net(*LAYERS[name])
    for training in (True, False):
        net.train(training)
        with torch.set_grad_enabled(with_gradients):
            program = reloaded(torch.jit.trace(net, inputs(net)))
        for sizes in ((T, B), (9, 5), (3, 1)):
            check(net, program, inputs(net, *sizes))


@pytest.mark.parametrize("given", ["lengths", "reset"])
@pytest.mark.parametrize("name", ["RNN", "LSTM, layer norm"])
def test_trace_with_more(name, given):
    net = Net(*LAYERS[name], (given,))
    program = reloaded(torch.jit.trace(net, inputs(net)))
    for sizes in ((T, B), (9, 5), (3, 1)):
        check(net, program, inputs(net, *sizes))


def test_trace_of_packed_sequences():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnnkernels.GRU(I, H, 2, bidirectional=True, dtype=torch.float64)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0]

    net = Packed()
    for whole in (True, False):  # all rows have all steps, or not: neither may be kept
        x = torch.randn(T, B, I, dtype=torch.float64)
        program = reloaded(torch.jit.trace(net, (x, torch.tensor([T] * B if whole else [2, T, 3]))))
        for lengths in ([T] * B, [2, T, 3], [5, 4]):
            x = torch.randn(max(lengths), len(lengths), I, dtype=torch.float64)
            check(net, program, (x, torch.tensor(lengths)))


@pytest.mark.parametrize(
    "options", [{"dropout": 0.5, "num_layers": 2}, {"recurrent_dropout": 0.5}, {"zoneout": 0.5}], ids=str
)
def test_trace_draws_masks(options):
    """A program traced in training draws its masks at every call, for the sizes of that call."""
    net = Net("LSTM", options).train()
    program = reloaded(torch.jit.trace(net, inputs(net), check_trace=False))
    (x,) = inputs(net, 9, 5)
    assert not torch.equal(program(x)[0], program(x)[0])
    gradient = torch.autograd.grad(sum(o.sum() for o in program(x)), list(program.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradient)


def test_tracing_checks_the_tensors():
    """With the words of an ordinary call, and without a warning of the tracer."""
    net = Net("GRU", {})
    with pytest.raises(RuntimeError, match="input.size\\(-1\\) must be equal to input_size"):
        torch.jit.trace(net, torch.randn(T, B, I + 1, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="input has inconsistent input_size"):
        torch.jit.trace(Net("GRUCell", {}), torch.randn(T, B, I + 1, dtype=torch.float64))


def test_make_fx():
    net = Net("GRU", {"num_layers": 2})
    parameters = dict(net.named_parameters())

    def run(parameters, x):
        return torch.func.functional_call(net, parameters, (x,))

    args = inputs(net)
    graph = make_fx(run)(parameters, *args)
    leaves = [args[0].requires_grad_(), *parameters.values()]
    found, expected = (f(parameters, args[0]) for f in (graph, run))
    for f, e in zip(*(torch.autograd.grad(o[0].sin().sum(), leaves) for o in (found, expected)), strict=True):
        assert_close("gradient", f, e)


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_make_fx_of_weights_with_symbolic_sizes(name):
    module, x = getattr(rnnkernels, name)(3, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)

    def gradients(weights, x):
        found = torch.func.functional_call(module, weights, (x,))
        y = found if isinstance(found, torch.Tensor) else found[0]
        return torch.autograd.grad(y.sin().sum(), list(weights.values()))

    weights = dict(module.named_parameters())
    graph = make_fx(gradients, tracing_mode="symbolic")(weights, x)
    for f, e in zip(graph(weights, 2 * x), gradients(weights, 2 * x), strict=True):
        assert_close("gradient", f, e)
