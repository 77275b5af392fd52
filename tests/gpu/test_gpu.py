"""The modules on a GPU, un-interpreted: against ``torch.nn`` in float64 on the CPU, and against themselves run again.

Skipped where there is no GPU; what can be proved without one is in test_triton_interpreted*.py and
test_triton_compiled.py.
"""

import copy

import gpu_cases
import pytest
import torch
from common import assert_close
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkernels
from rnnkernels.backends.triton import schedules

DEVICE = "cuda"
if not torch.cuda.is_available():
    pytest.skip("needs a GPU, and torch.cuda finds none", allow_module_level=True)

CASES = {
    "plain": dict(T=63, B=5, H=64),
    "one step, one row": dict(T=1, B=1, H=40),
    "two layers, both directions": dict(T=20, B=17, H=127, num_layers=2, bidirectional=True),
    "wide": dict(T=12, B=33, H=640),
    "no bias, batch first": dict(T=9, B=3, H=20, bias=False, batch_first=True),
    "packed": dict(T=30, B=6, H=128, lengths=[30, 1, 7, 29, 12, 30]),
    "empty batch": dict(T=4, B=0, H=32),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def exact_float32():
    """float32 in float32: with tf32 it would be compared at the wrong tolerance."""
    with gpu_cases.float32_as("ieee"):
        yield


def run(module, x, lengths=None):
    """Output, final states and every gradient by its name, for a random gradient of the output in the dtype of x."""
    parameter = next(module.parameters())
    dtype, x = x.dtype, x.to(parameter.device, parameter.dtype).requires_grad_()
    given = x if lengths is None else pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    y, last = module(given)
    y = y if lengths is None else y.data
    last = last if isinstance(last, tuple) else (last,)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(y)
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad((y * dy).sum() + sum(s.sum() for s in last), (x, *parameters))
    return {"y": y, **{f"last[{n}]": s for n, s in enumerate(last)}, **dict(zip(["dx", *names], grads, strict=True))}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_equals_torch_in_float64(kind, dtype, case):
    options = dict(CASES[case])
    T, B, H, lengths = (options.pop(name, None) for name in ("T", "B", "H", "lengths"))
    torch.manual_seed(0)
    module = getattr(rnnkernels, kind)(24, H, **options).to(DTYPES[dtype])
    reference = getattr(torch.nn, kind)(24, H, **options).double()
    reference.load_state_dict(module.state_dict())
    x = torch.randn(*((B, T) if options.get("batch_first") else (T, B)), 24).to(DTYPES[dtype])
    actual = run(module.to(DEVICE), x, lengths)
    if B == 0:  # torch.nn does not take it: the shapes are known, and that nothing adds to nothing
        assert actual["y"].shape == (T, 0, H) and not actual["weight_hh_l0"].any()
        return
    for name, value in run(reference, x, lengths).items():
        assert_close(name, actual[name].cpu(), value)


SCHEDULES = [("resident", "bf16", 100), ("cooperative", "bf16", 100), ("cooperative", "fp32", 127)]
SCHEDULES += [("stepwise", "bf16", 100), ("stepwise", "fp32", 127), ("cooperative", "fp16", 640)]


@pytest.mark.parametrize("schedule, dtype, H", SCHEDULES)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_every_schedule_equals_torch_in_float64(kind, schedule, dtype, H):
    """Forced, forward and backward, with rows of different lengths, over several batch tiles."""
    torch.manual_seed(0)
    lengths = [30, 1, 7, 29, 12, 30] * 6
    module = getattr(rnnkernels, kind)(24, H, bidirectional=H == 100).to(DTYPES[dtype])
    reference = getattr(torch.nn, kind)(24, H, bidirectional=H == 100).double()
    reference.load_state_dict(module.state_dict())
    x = torch.randn(30, len(lengths), 24).to(DTYPES[dtype])
    with schedules.force(schedule):
        actual = run(module.to(DEVICE), x, lengths)
    for name, value in run(reference, x, lengths).items():
        assert_close(name, actual[name].cpu(), value)


@pytest.mark.parametrize("H", [40, 200, 1000])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_resets_equal_the_reference_in_float64(cell, dtype, H):
    """The state restarts from zero at the flagged steps; output and every gradient, on whatever schedule is chosen."""
    torch.manual_seed(0)
    module = getattr(rnnkernels, cell.upper())(24, H).to(DTYPES[dtype])
    x, reset = torch.randn(20, 5, 24).to(DTYPES[dtype]), torch.rand(20, 5) < 0.2
    dy = torch.randn(20, 5, H).to(DTYPES[dtype])

    def results(device, dtype):
        leaves = [t.detach().to(device, dtype).requires_grad_() for t in (x, *module.parameters())]
        y, *last = getattr(rnnkernels.functional, cell)(leaves[0], None, leaves[1:], reset=reset.to(device))
        total = (y * dy.to(y)).sum() + sum(s.sum() for s in last)
        return y, *last, *torch.autograd.grad(total, leaves)

    for at, (actual, expected) in enumerate(
        zip(results(DEVICE, x.dtype), results("cpu", torch.float64), strict=True)
    ):  # fmt: skip
        assert_close(f"result {at}", actual.cpu(), expected)


@pytest.mark.parametrize("H", [40, 200])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("RNN", dict(layer_norm=True)),
        ("LSTM", dict(layer_norm=True)),
        ("LSTM", dict(layer_norm=True, proj_size=16)),
        ("GRU", dict(layer_norm=True)),
        ("GRU", dict(reset_after=False)),
        ("GRU", dict(reset_after=False, layer_norm=True)),
    ],
)
def test_options_equal_the_cpu_in_float64(kind, options, dtype, H):
    """Layer norm and a second product, with rows of different lengths, on whatever schedule is chosen."""
    torch.manual_seed(0)
    module = getattr(rnnkernels, kind)(24, H, bidirectional=True, **options).to(DTYPES[dtype])
    reference, lengths = copy.deepcopy(module).double(), [6, 1, 4, 3, 6]
    x = torch.randn(6, len(lengths), 24).to(DTYPES[dtype])
    actual = run(module.to(DEVICE), x, lengths)
    tolerance = gpu_cases.NORMED if dtype == "bf16" and "layer_norm" in options else None
    for name, value in run(reference, x, lengths).items():
        assert_close(name, actual[name].cpu(), value, tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, in compiling
def test_compiles_and_matches_eager():
    module = rnnkernels.LSTM(16, 64).to(DEVICE)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True)
    x = torch.randn(7, 3, 16, device=DEVICE)
    assert_close("y", compiled(x)[0].cpu(), module(x)[0].double().cpu())


def test_explains_the_gpu():
    text = str(rnnkernels.explain(rnnkernels.LSTM(16, 64).to(DEVICE), torch.randn(7, 3, 16, device=DEVICE)))
    assert "runs on   triton" in text


def test_our_own_graphs_are_replayed_on_other_numbers():
    """The second call of a shape is recorded, later ones are replayed; weights change between them."""
    torch.manual_seed(0)
    module, reference = rnnkernels.LSTM(24, 96), torch.nn.LSTM(24, 96).double()
    module = module.to(DEVICE)
    with schedules.force("stepwise"):
        for _ in range(4):
            with torch.no_grad():
                module.weight_hh_l0.mul_(0.9)
            reference.load_state_dict(module.state_dict())
            x = torch.randn(9, 3, 24)
            actual = run(module, x)
            for name, value in run(reference, x).items():
                assert_close(name, actual[name].cpu(), value)


@pytest.mark.parametrize("schedule", schedules.NAMES)
def test_within_a_graph_of_the_caller(schedule):
    """Capture and replay, with another input at the same place: cooperative launches included."""
    module, x = rnnkernels.GRU(24, 32).to(DEVICE), torch.randn(9, 3, 24, device=DEVICE)
    with schedules.force(schedule), torch.no_grad():
        module(x)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = module(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, module(x)[0])


@pytest.mark.parametrize("case", gpu_cases.races(quick=False), ids=lambda case: case.name)
def test_the_same_bits_every_time(case):
    """2,000 steps, 20 times: a race between programs or warps would show."""
    found = gpu_cases.run(case, DEVICE)
    assert "reason" not in found, found
