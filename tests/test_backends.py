"""The choice of a backend: names, forcing, reasons, ``explain`` and ``python -m rnnkernels``."""

import importlib
import os
from types import SimpleNamespace

import fresh
import pytest
import torch
from common import assert_close, make_case
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import rnnkernels
from rnnkernels import backends, explain
from rnnkernels.cells import CELLS
from rnnkernels.cells.call import LayerCall

HAS_CPP = "cpp" in backends.available()
OWN = "cpp" if HAS_CPP else "reference"  # what the CPU runs on by itself


def call(**changes):
    facts = {"cell": "lstm", "device": torch.device("cpu"), "dtype": torch.float32, "T": 3, "B": 2, "I": 4, "H": 5}
    return backends.Facts(**{**facts, "P": 5, "D": 1, **changes})


def python(*arguments, **environment):
    """Run Python, warnings on, with these environment variables of ours only."""
    outer = {k: v for k, v in os.environ.items() if not k.startswith("RNNKERNELS")}
    return fresh.python(*arguments, env={**outer, **environment})


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch):
    """The tests do not depend on the environment variable they are run with."""
    monkeypatch.setattr(backends, "_forced", None)


class Ops(TorchDispatchMode):
    """Records the names of our ops that are called."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "rnnkernels":
            self.seen.append(func.__name__.removesuffix(".default"))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def record():
    """The names of our ops that a test calls, in order."""
    with Ops() as ops:
        ops.seen = []
        yield ops.seen


def test_names_and_available():
    assert backends.names() == ["cpp", "triton", "reference"]
    assert set(backends.available()) <= set(backends.names())
    assert backends.available()[-1] == "reference"
    assert HAS_CPP == (backends.EXTENSION_ERROR is None)


def test_force_nests_and_is_undone():
    with backends.force("reference"):
        assert backends.forced() == "reference"
        with pytest.raises(KeyError), backends.force("cpp"):
            assert backends.forced() == "cpp"
            raise KeyError
        assert backends.forced() == "reference"
    assert backends.forced() is None


def test_force_of_an_unknown_name():
    with pytest.raises(ValueError, match="Expected a backend out of cpp, triton, reference, but got 'cuda'"):
        with backends.force("cuda"):
            raise AssertionError("not reached")


@pytest.mark.parametrize("cell", CELLS)
def test_the_forced_backend_runs(record, cell):
    case = make_case(cell)
    with backends.force("reference"):
        forced = case(*case.tensors)
    assert record == (["reference_layer"] if HAS_CPP else ["layer"])  # without the extension the dispatcher takes it
    for n, (a, e) in enumerate(zip(forced, case(*case.tensors), strict=True)):
        assert_close(f"output {n}", a, e)


def test_the_forward_pass_decides_for_the_backward_pass(record):
    case = make_case("lstm")
    with backends.force("reference"):
        outputs = case(*case.tensors)
    outputs[0].sum().backward()
    prefix = "reference_" if HAS_CPP else ""
    assert record == [f"{prefix}layer", f"{prefix}layer_backward"]


def test_stages_that_a_backend_lacks_run_elsewhere_or_raise():
    case = make_case("lstm", layer_norm=True)
    expected = case(*case.tensors)
    with backends.force("reference"):
        for a, e in zip(case(*case.tensors), expected, strict=True):
            assert_close("layer_norm", a, e)
    lacking = call(stages=frozenset({"reset", "one of tomorrow", "lengths"}))
    reason = backends.Cpp.unsupported(lacking)
    assert ("no stage for one of tomorrow yet" in reason) if HAS_CPP else ("the C++ extension is not there" in reason)
    assert backends.choose(lacking) == "reference"


def test_lacking():
    stages = frozenset({"lengths"})
    assert call(stages=stages).lacking(stages) is None
    assert call(stages=frozenset({"zone", "reset"})).lacking(stages) == "it has no stage for reset, zone yet"


def test_choose():
    assert backends.choose(call()) == OWN
    assert backends.choose(call(device=torch.device("meta"))) == "reference"
    assert backends.choose(call(recurrent_activation="hard_sigmoid", activation="linear")) == OWN
    for name, reason in backends.reasons(call()):
        assert reason is None if name in (OWN, "reference") else reason
    with backends.force("reference"):
        assert backends.choose(call()) == "reference"


@pytest.mark.parametrize("name", ["cpp", "triton"])
def test_a_forced_backend_that_cannot_run_raises_all_reasons(name):
    impossible = call(device=torch.device("meta"), recurrent_activation="hard_sigmoid")
    with backends.force(name), pytest.raises(RuntimeError) as error:
        backends.choose(impossible)
    lines = str(error.value).splitlines()
    assert lines[0] == f"backend {name!r} is forced but cannot run this call:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == backends.names()
    assert lines[-1] == "  reference: could run it"


@pytest.mark.parametrize("name", [n for n in ("cpp", "triton") if n not in backends.available()])
def test_a_forced_backend_that_is_not_there_raises(name):
    module = rnnkernels.LSTM(3, 4)
    with backends.force(name), pytest.raises(RuntimeError, match=f"backend '{name}' is forced but cannot run"):
        module(torch.randn(2, 1, 3))


def test_facts():
    case = make_case("lstm", T=3, B=2, I=5, H=4, P=2, reverse=(False, True))
    x, _, weights = case.split(case.tensors)
    layer = LayerCall("lstm", x, [], weights, (False, True), project=True)
    facts = layer.facts()
    assert facts[3:9] == (3, 2, 5, 4, 2, 2) and facts.stages == {"project"} and facts.activation == "tanh"
    grouped = layer._replace(x=x.expand(7, *x.shape)).facts(training=True)
    assert grouped.D == 14 and grouped.training


def test_the_environment_variable():
    code = (
        "import torch, rnnkernels\nprint(rnnkernels.backends.forced())\n"
        "rnnkernels.GRU(2, 3)(torch.randn(2, 1, 2))\nprint('ran')"
    )
    done = python("-W", "ignore", "-c", code, RNNKERNELS_BACKEND="reference")
    assert done.stdout.split() == ["reference", "ran"], done.stderr
    done = python("-W", "ignore", "-c", code, RNNKERNELS_BACKEND="fastest")
    assert done.returncode == 1 and "RNNKERNELS_BACKEND=fastest is none of the backends cpp, triton" in done.stderr


def test_explain_a_stack():
    torch.manual_seed(0)
    module = rnnkernels.LSTM(4, 6, 3, bidirectional=True, batch_first=True)
    answer = explain(module, torch.randn(2, 5, 4))
    assert [layer.call.I for layer in answer.layers] == [4, 12, 12] and len(answer.layers) == 3
    first = answer.layers[0]
    assert first.backend == OWN and first.schedule == backends.BACKENDS[OWN].schedule(first.call)
    assert (first.call.T, first.call.B, first.call.D, first.call.training) == (5, 2, 2, True)
    assert [name for name, _ in first.others] == [n for n in backends.names() if n != OWN]
    text = str(answer).splitlines()
    assert text[0] == (
        "LSTM(4, 6, num_layers=3, batch_first=True, bidirectional=True): training, float32 on cpu, T=5, B=2"
    )
    assert text[1] == "layer 0: I=4, H=6, P=6, D=2" and text[2] == f"  runs on   {OWN:9}  {first.schedule}"
    assert "layers 1-2: I=12, H=6, P=6, D=2" in text
    assert repr(answer) == str(answer)


def test_explain_says_what_runs(record):
    """``explain`` and the call agree, forced or not."""
    module, x = rnnkernels.GRU(3, 4), torch.randn(2, 1, 3)
    for name in backends.available()[-1:]:
        with backends.force(name):
            assert explain(module, x).layers[0].backend == name
            module(x)
    module(x)
    assert record == (["reference_layer", "layer"] if HAS_CPP else ["layer", "layer"])


def test_explain_counts_what_is_in_force():
    module, x = rnnkernels.RNN(3, 4, 2, nonlinearity="relu"), torch.randn(2, 1, 3)
    for p in (module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0):
        p.requires_grad_(False)
    training = lambda *inputs: [layer.call.training for layer in explain(module, *inputs).layers]  # noqa: E731
    assert training(x) == [False, True]  # the first layer is frozen
    assert training(x.requires_grad_()) == [True, True]
    assert training(x.detach(), torch.zeros(2, 1, 4, requires_grad=True)) == [True, True]
    with torch.no_grad():
        assert training(x) == [False, False]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert explain(module, x).layers[1].call.dtype == torch.bfloat16
        assert explain(module.double(), x.double()).layers[1].call.dtype == torch.float64
    assert explain(module, x).layers[0].call.activation == "relu"


def test_explain_inputs_of_all_kinds():
    module = rnnkernels.LSTM(3, 4, proj_size=2)
    unbatched = explain(module, torch.randn(5, 3)).layers[0].call
    assert (unbatched.T, unbatched.B, unbatched.P, unbatched.stages) == (5, 1, 2, {"project"})
    packed = explain(module, pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]))
    assert packed.layers[0].call[3:5] == (4, 2) and packed.layers[0].call.stages == {"lengths", "project"}
    assert "stages: lengths, project" in str(packed)
    even = explain(module, pack_sequence([torch.randn(2, 3)] * 2)).layers[0].call
    assert even.stages == {"project"}
    for name in ("RNNCell", "LSTMCell", "GRUCell"):
        (layer,) = explain(getattr(rnnkernels, name)(3, 4), torch.randn(6, 3)).layers
        assert (layer.call.T, layer.call.B, layer.call.cell) == (1, 6, name.removesuffix("Cell").lower())
    assert explain(rnnkernels.RNNCell(3, 4, nonlinearity="relu"), torch.randn(3)).layers[0].call.activation == "relu"
    with pytest.raises(ValueError, match="LSTM: Expected input to be 2D or 3D, got 4D"):
        explain(module, torch.randn(1, 2, 3, 3))
    with pytest.raises(ValueError, match="GRUCell: Expected input to be 1D or 2D, got 3D"):
        explain(rnnkernels.GRUCell(3, 4), torch.randn(2, 3, 3))


def test_explain_a_forced_backend_that_cannot():
    module, x = rnnkernels.LSTM(3, 4, device="meta"), torch.randn(2, 1, 3, device="meta")
    with backends.force("cpp"):
        answer = explain(module, x)
    (layer,) = answer.layers
    assert layer.backend is None and layer.schedule == "" and [name for name, _ in layer.others] == backends.names()
    assert "forced: cpp\n" in str(answer) and "no backend: the call would raise a RuntimeError" in str(answer)
    assert layer.others[-1] == ("reference", "it could run this, but cpp is forced")


def test_explain_a_cell_of_ones_own():
    cell = rnnkernels.RecurrentCell(rnnkernels.cells.li_gru, 3, 4, bias=False)
    for x in (torch.randn(2, 3), torch.randn(3)):
        said = rnnkernels.explain(cell, x)
        assert said.layers[0].call.H == 4 and said.layers[0].backend == backends.available()[0]
        assert "training keeps z, n" in str(said) and "relu_back" in str(said)


def test_explain_what_is_not_ours():
    with pytest.raises(TypeError, match="but got torch.nn.modules.rnn.LSTM; convert it first: explain.rnnkernels.co"):
        explain(nn.LSTM(3, 4), torch.randn(2, 1, 3))
    with pytest.raises(TypeError, match="rnnkernels.convert.model. and explain its recurrent modules"):
        explain(nn.Sequential(rnnkernels.LSTM(3, 4)), torch.randn(2, 1, 3))
    assert explain(rnnkernels.convert(nn.LSTM(3, 4)), torch.randn(2, 1, 3)).layers[0].backend == OWN


def test_the_command_line():
    done = python("-W", "ignore", "-m", "rnnkernels", RNNKERNELS_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    rows = {key.strip(): value.strip() for key, value in rows.items()}
    assert rows["rnnkernels"] == rnnkernels.__version__ and rows["torch"] == torch.__version__
    assert rows["backends"] == ", ".join(backends.available()) + " (reference is forced)"
    assert rows["RNNKERNELS_BACKEND"] == "reference"
    assert ("(in use)" in rows["instruction sets"]) == HAS_CPP
    assert {"triton", "python", "GPUs", "threads"} <= rows.keys()


@pytest.mark.skipif(not HAS_CPP, reason="the C++ extension is not there")
def test_the_command_line_names_the_instruction_set_in_use():
    sets = torch.ops.rnnkernels.instruction_sets().split(",")
    assert sets[-1] == "baseline"
    done = python("-m", "rnnkernels", RNNKERNELS_ISA="baseline")
    assert "baseline (in use)" in done.stdout and "RNNKERNELS_ISA" in done.stdout, done.stderr


def test_the_choice_for_a_gpu_is_made_under_compile(monkeypatch):
    """Dynamo follows the choice of a backend; the properties of a GPU are asked for once, and are constants then."""
    pytest.importorskip("triton", reason="triton is not installed")
    chips = importlib.import_module("rnnkernels.backends.triton.chips")
    launch = importlib.import_module("rnnkernels.backends.triton.launch")
    properties = SimpleNamespace(
        name="H200", major=9, minor=0, shared_memory_per_block_optin=232_448, multi_processor_count=132
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(chips, "_found", {})

    def runs(x, device):
        call = backends.Facts("lstm", device, x.dtype, x.size(0), 2, 3, 4, 4, 1, False, frozenset())
        return x + (launch.unsupported(call) is None)

    compiled = torch.compile(runs, fullgraph=True, backend="eager", dynamic=True)
    for T in (3, 5):
        assert compiled(torch.zeros(T), torch.device("cuda", 0)).tolist() == [1.0] * T
