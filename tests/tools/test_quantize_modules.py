"""The manners of quantised modules: models, copies, state, compile and export, other backends, errors. Their numbers
are in test_quantize.py. Letters: T time, B batch, L layers."""

import copy
import pickle

import pytest
import torch
from common import assert_close, error
from test_convert import Model
from test_modules import LAYERS, flat
from test_quantize import CPP, make, random_states
from torch import nn
from torch.nn.utils import parametrizations

import rnnkernels
from rnnkernels import backends
from rnnkernels.nn.base import MODES
from rnnkernels.op import schema as ops

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@torch.no_grad()
def test_a_model():
    """Every layer at any depth, shared and tied ones too; the model itself is left as it was."""
    model, tokens = Model().eval(), torch.randint(11, (3, 6))
    state, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    q, y = rnnkernels.quantize_dynamic(model), model(tokens)
    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert error(q(tokens), y) < 0.05 and not torch.equal(q(tokens), y)
    kinds = [type(m).__name__ for m in (q.encoder[1], q.layers["gru"], q.layers["rnn"], *q.cells)]
    assert kinds == [f"Quantized{k}" for k in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")]
    assert q.again is q.layers["rnn"]
    ours, x = rnnkernels.quantize_dynamic(rnnkernels.convert(copy.deepcopy(model))).encoder, torch.randn(3, 6, 4)
    assert torch.equal(ours(x)[0], q.encoder(x)[0])
    assert repr(q.encoder[1]) == "QuantizedLSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True)"
    assert not [*q.encoder[1].parameters()] and q.encoder[1].weight_hh_l0.dtype == torch.int8
    floats = rnnkernels.quantize_dynamic(model, activations="float")
    assert error(floats(tokens), y) < 0.05 and repr(floats.cells[2]) == "QuantizedRNNCell(5, 5, activations='float')"
    normed = parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    assert error(rnnkernels.quantize_dynamic(normed)(x)[0], normed(x)[0]) < 0.05
    normed = parametrizations.weight_norm(nn.GRUCell(3, 4), "weight_hh")
    assert error(rnnkernels.quantize_dynamic(normed)(x[0]), normed(x[0])) < 0.05


@torch.no_grad()
@pytest.mark.parametrize("cell", LAYERS)
def test_copies_and_state(cell):
    _, q = make(cell, 4, 5, num_layers=2, library=rnnkernels)
    x = torch.randn(6, 3, 4)
    other = make(cell, 4, 5, num_layers=2, seed=1)[1]
    assert not torch.equal(other(x)[0], q(x)[0])
    other.load_state_dict(q.state_dict())
    for twin in (other, copy.deepcopy(q), pickle.loads(pickle.dumps(q)), rnnkernels.quantize_dynamic(q)):
        assert twin is not q and torch.equal(twin(x)[0], q(x)[0])


@torch.no_grad()
@pytest.mark.parametrize("activations", ("int8", "float"))
@pytest.mark.parametrize("name", ("RNNCell", "GRUCell", "LSTMCell"))
def test_cells_have_the_same_manners(name, activations):
    torch._dynamo.reset()
    make_cell = lambda: rnnkernels.quantize_dynamic(getattr(nn, name)(4, 20), activations=activations)  # noqa: E731
    q, other, x = make_cell(), make_cell(), torch.randn(3, 4)
    state = q(torch.randn(3, 4))
    expected = flat(q(x, state))
    assert not torch.equal(flat(other(x, state))[0], expected[0])
    other.load_state_dict(q.state_dict())
    program = torch.export.export(q, (x, state))
    twins = (other, copy.deepcopy(q), pickle.loads(pickle.dumps(q)), rnnkernels.quantize_dynamic(q), program.module())
    for twin in (*twins, torch.compile(q, fullgraph=True, backend="aot_eager")):
        assert all(map(torch.equal, flat(twin(x, state)), expected))
    with backends.force("reference"):
        assert error(flat(q(x, state))[0], expected[0]) < (0.05 if activations == "int8" else 1e-5)
    for wrong, kind, words in (
        ((x.double(),), ValueError, f"Quantized{name} takes float32, but got Double"),
        ((x[:, :3],), RuntimeError, "input has inconsistent input_size: got 3 expected 4"),
        ((x[:2], state), RuntimeError, "Input batch size 2 doesn't match hidden0 batch size 3"),
        ((x[None],), ValueError, f"{name}: Expected input to be 1D or 2D, got 3D instead"),
    ):
        with pytest.raises(kind, match=words):
            q(*wrong)
    none = rnnkernels.quantize_dynamic(getattr(rnnkernels, name)(4, 0), activations=activations)(x)
    assert [s.shape for s in flat(none)] == [(3, 0)] * len(expected)
    with torch.enable_grad(), pytest.raises(RuntimeError, match=f"a Quantized{name} is for inference only, but input"):
        q(x.clone().requires_grad_())


@torch.no_grad()
@pytest.mark.parametrize("cell", LAYERS)
def test_compile_and_export(cell):
    torch._dynamo.reset()
    _, q = make(cell, 4, 20, num_layers=2, bidirectional=True)
    x = torch.randn(6, 3, 4)
    assert torch.equal(torch.compile(q, fullgraph=True, backend="aot_eager")(x)[0], q(x)[0])
    dims = ({0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}, None)
    program = torch.export.export(q, (x, None), dynamic_shapes=dims)
    longer = torch.randn(9, 5, 4)
    assert torch.equal(program.module()(longer, None)[0], q(longer)[0])


@torch.no_grad()
@pytest.mark.parametrize("cell", LAYERS)
def test_other_backends_multiply_with_floats(cell):
    for L in (1, 2):
        module, q = make(cell, 4, 20, num_layers=L, bidirectional=True, library=rnnkernels)
        for name in q._scales:
            weight = getattr(module, name.removesuffix("_scale"))
            weight.copy_(getattr(q, name.removesuffix("_scale")) * getattr(q, name)[:, None])
        x, hx = torch.randn(6, 3, 4), random_states(q, 3)
        with backends.force("reference"):
            expected = flat(module(x, hx))
            for name, a, b in zip("yhc", flat(q(x, hx)), expected, strict=False):
                assert_close(name, a, b)
        weights, scales = [q._buffers[n] for n in q._weights], [q._buffers[n] for n in q._scales]
        kind = (*MODES[q.mode][:1], L, True, True, 20, q.proj_size, MODES[q.mode][1], None)
        y, _ = ops.stack_of_layers(x, hx if q.mode == "LSTM" else [hx], weights, *kind, scales)
        assert_close("without a kernel", y, expected[0])


def test_errors():
    module, q = make("lstm", 4, 5)
    x, two = torch.randn(6, 3, 4), torch.randn(2, 3, 5)

    class Own(nn.LSTM):
        pass

    with pytest.raises(ValueError, match="Expected activations to be 'int8' or 'float', but got 'int4'"):
        rnnkernels.quantize_dynamic(module, activations="int4")
    with pytest.raises(ValueError, match=r"quantize_dynamic: 0\.weight_ih must be float32, but is float64"):
        rnnkernels.quantize_dynamic(nn.Sequential(nn.GRUCell(3, 4).double()))
    with pytest.raises(ValueError, match=r"quantize_dynamic: 1\.weight_ih_l0 must be float32, but is float64"):
        rnnkernels.quantize_dynamic(nn.Sequential(nn.ReLU(), nn.GRU(3, 4).double()))
    module.weight_hh_l0.data[1, 1] = float("inf")
    with pytest.raises(ValueError, match="quantize_dynamic: weight_hh_l0 must be finite"):
        rnnkernels.quantize_dynamic(module)
    with pytest.warns(UserWarning, match=r"quantize_dynamic left subclasses alone: 0 \(Own\)"):
        assert type(rnnkernels.quantize_dynamic(nn.Sequential(Own(3, 4)))[0]) is Own
    with pytest.raises(RuntimeError, match="a QuantizedLSTM is for inference only, but input requires a gradient"):
        q(x.clone().requires_grad_())
    for wrong, kind, words in (
        ((x.double(),), ValueError, "QuantizedLSTM takes float32, but got Double"),
        ((x[..., :3],), RuntimeError, "input.size\\(-1\\) must be equal to input_size. Expected 4, got 3"),
        ((x, (two, two)), RuntimeError, r"Expected hidden\[0\] size \(1, 3, 5\), got \[2, 3, 5\]"),
        ((x[:0],), RuntimeError, "Expected sequence length to be larger than 0"),
        ((x[None],), ValueError, "LSTM: Expected input to be 2D or 3D, got 4D"),
    ):
        with pytest.raises(kind, match=words):
            q(*wrong)
    if CPP:
        weights, scales = [q._buffers[n] for n in q._weights], [q._buffers[n] for n in q._scales]
        run = lambda w, s, x=x: torch.ops.rnnkernels.stack(x, [], w, "lstm", 1, False, True, 5, 0, None, None, s)  # noqa: E731
        for args in (
            (weights, scales[:1]), (weights, [s.double() for s in scales]), (weights, [s[:3] for s in scales]),
            ([weights[0].float(), *weights[1:]], scales), (weights, None), (weights, scales, x.double()),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="rnnkernels: "):
                run(*args)
