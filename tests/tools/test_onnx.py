"""Export to ONNX: standard nodes, numbers in ONNX Runtime at other lengths and batches than the example's, refusals.

Letters: T time, B batch, I input, H hidden, L layers, D directions."""

import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkernels

for needed in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra test)")
import onnx  # noqa: E402
import onnxruntime  # noqa: E402

pytestmark = [  # of the exporter's own
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # TorchDynamo
]
I, H = 4, 6  # noqa: E741
STANDARD = {"RNN", "GRU", "LSTM"}


class Flat(nn.Module):
    """Layers as a function of tensors: of x, lengths and states, of which each takes what is named, if it is."""

    def __init__(self, *layers):
        super().__init__()
        layers = [layer if isinstance(layer, tuple) else (layer, ()) for layer in layers]
        self.layers, self.takes = nn.ModuleList(layer for layer, _ in layers), [names for _, names in layers]

    def forward(self, x, lengths, *states):
        found = []
        for layer, takes in zip(self.layers, self.takes, strict=True):
            hx = [s[: layer.num_layers * (1 + layer.bidirectional)] for s in states] if "hx" in takes else [None]
            more = {"lengths": lengths} if "lengths" in takes else {}
            y, last = layer(x.transpose(0, 1) if layer.batch_first else x, hx[0] if len(hx) == 1 else tuple(hx), **more)
            found += [y, *last] if isinstance(last, tuple) else [y, last]
        return tuple(found)

    @property
    def nodes(self):
        return sum(layer.num_layers for layer in self.layers)


def example(model, T, B):
    """Tensors for a ``Flat``, with rows of length 0 and 1."""
    random = torch.Generator().manual_seed(100 * T + B)
    lengths = torch.randint(0, T + 1, (B,), generator=random)
    lengths[0], lengths[-1] = 0, 1
    states = [torch.randn(4, B, H, generator=random) for _ in range(1 + ("LSTM" in type(model.layers[0]).__name__))]
    return (torch.randn(T, B, I, generator=random), lengths, *states)


def dynamic(model):
    """T and B of each tensor, down to 1."""
    T, B = torch.export.Dim("T", min=1, max=1000), torch.export.Dim("B", min=1, max=1000)
    return ({0: T, 1: B}, {0: B}, tuple({1: B} for _ in example(model, 1, 1)[2:]))


def session(program):
    file = io.BytesIO()
    program.save(file)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


def kinds(graph):
    return [node.op_type for node in graph if node.op_type in STANDARD]


def compare(runtime, model, inputs):
    """Whether ONNX Runtime gives what the model gives."""
    names = [i.name for i in runtime.get_inputs()]
    taken = inputs if len(names) == len(inputs) else (inputs[0], *inputs[2:])  # the exporter dropped the lengths
    found = runtime.run(None, {name: t.numpy() for name, t in zip(names, taken, strict=True)})
    with torch.no_grad():
        expected = model(*inputs)
    for k, (a, e) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(torch.from_numpy(a), e, atol=1e-5, rtol=0, msg=lambda m, k=k: f"result {k}: {m}")


ONE, BOTH = dict(bidirectional=True), dict(num_layers=2, bidirectional=True)
FIRST = dict(batch_first=True, **BOTH)
RNN, GRU, LSTM = rnnkernels.RNN, rnnkernels.GRU, rnnkernels.LSTM
HARD = dict(recurrent_activation="hard_sigmoid")
CASES = {
    "RNN": [
        RNN(I, H), (RNN(I, H, **FIRST), ("hx", "lengths")),
        (RNN(I, H, nonlinearity="relu", bias=False, **ONE), ("hx",)),
    ],
    "GRU": [
        GRU(I, H, bias=False), (GRU(I, H, **ONE), ("hx", "lengths")), (GRU(I, H, reset_after=False, **FIRST), ("hx",)),
        (GRU(I, H, reset_after=False, activation="linear", **HARD, **FIRST), ("lengths",)),
        rnnkernels.quantize_dynamic(nn.GRU(I, H, **ONE), activations="float"),
    ],
    "LSTM": [
        (LSTM(I, H, **FIRST), ("hx", "lengths")), LSTM(I, H, bias=False, dropout=0.5, recurrent_dropout=0.5, **BOTH),
        (LSTM(I, H, activation="relu", **HARD, **ONE), ("hx",)), (LSTM(I, H, activation="sigmoid"), ("lengths",)),
        (rnnkernels.convert(nn.LSTM(I, H, batch_first=True)), ("lengths",)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_layers(name):
    model = Flat(*CASES[name]).eval()
    program = torch.onnx.export(model, example(model, 5, 3), dynamic_shapes=dynamic(model), dynamo=True, verbose=False)
    assert kinds(program.model.graph) == [name] * model.nodes
    assert {n.domain for n in program.model.graph} == {""}, "operators that are not ONNX's own"
    runtime = session(program)
    for T, B in ((5, 3), (1, 1), (9, 1), (1, 4), (17, 8)):
        compare(runtime, model, example(model, T, B))


def test_cells():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.lstm = rnnkernels.RNNCell(I, H, nonlinearity="relu"), rnnkernels.LSTMCell(I, H, bias=False)
            self.gru = rnnkernels.quantize_dynamic(nn.GRUCell(I, H), activations="float")

        def forward(self, x, h):
            r, s, g = h, None, h
            for v in x.unbind():
                r, s, g = self.rnn(v, r), self.lstm(v, s), self.gru(v, g)
            return r, *s, g

    B = torch.export.Dim("B", min=1, max=1000)
    make = lambda n: (torch.randn(2, n, I), torch.randn(n, H))  # noqa: E731
    model = Loop().eval()
    program = torch.onnx.export(model, make(3), dynamic_shapes=({1: B}, {0: B}), dynamo=True, verbose=False)
    assert sorted(kinds(program.model.graph)) == ["GRU", "GRU", "LSTM", "LSTM", "RNN", "RNN"]
    for n in (1, 5):
        compare(session(program), model, make(n))


@pytest.mark.parametrize("strict", (False, True))
def test_a_program_that_is_exported_already(strict):
    model = Flat((GRU(I, H), ("lengths",)), GRU(I, H, 2)) if strict else Flat((LSTM(I, H, **FIRST), ("hx",)))
    program = torch.export.export(model.eval(), example(model, 5, 3), dynamic_shapes=dynamic(model), strict=strict)
    program = program.run_decompositions(rnnkernels.onnx.decompositions())
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert len(kinds(exported.model.graph)) == model.nodes
    compare(session(exported), model, example(model, 8, 2))


def test_a_quantised_program_that_is_exported_already():
    model = rnnkernels.quantize_dynamic(rnnkernels.RNN(I, H, 2)).eval()
    program = torch.export.export(model, (torch.randn(5, 3, I),))
    program = program.run_decompositions(rnnkernels.onnx.decompositions())
    assert kinds(torch.onnx.export(program, dynamo=True, verbose=False).model.graph) == ["RNN"] * 2


@pytest.mark.parametrize("name, layer, more", [
    ("proj_size", LSTM(I, H, proj_size=3), {}),
    ("layer_norm", GRU(I, H, layer_norm=True), {}),
    ("the cell li_gru", rnnkernels.Recurrent(rnnkernels.cells.li_gru, I, H), {}),
    ("the cell gru_d", rnnkernels.Recurrent(rnnkernels.cells.gru_d, I, H), {"gamma": torch.rand(5, 3, H)}),
    ("zoneout", RNN(I, H, zoneout=0.1), {}),
    ("heads", LSTM(I, H, heads=2), {}),
    ("reset", GRU(I, H), {"reset": torch.zeros(5, 3, dtype=torch.bool)}),
    ("return_cell_states", LSTM(I, H), {"return_cell_states": True}),
    ("recurrent_dropout in training", GRU(I, H, recurrent_dropout=0.1), None),
])  # fmt: skip
def test_what_onnx_has_no_operator_for_is_refused_by_name(name, layer, more, monkeypatch):
    """While an export runs, which is said here and takes a second in the next test."""
    if more is not None:
        layer.eval()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(NotImplementedError, match=f"rnnkernels: ONNX has no recurrent operator with {name}"):
        torch.export.export(layer, (torch.randn(5, 3, I),), more or {}, strict=False)


@pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")
def test_the_exporter_says_what_is_refused():
    words = "rnnkernels: ONNX has no recurrent operator with recurrent_dropout in training"
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        torch.onnx.export(GRU(I, H, recurrent_dropout=0.1), (torch.randn(5, 3, I),), dynamo=True, verbose=False)
    assert isinstance(caught.value.__cause__, NotImplementedError) and caught.match(words)


@torch.no_grad()
def test_what_is_refused_in_a_program_that_is_exported_already():
    program = torch.export.export(LSTM(I, H, layer_norm=True).eval(), (torch.randn(5, 3, I),))
    with pytest.raises(NotImplementedError, match="ONNX has no recurrent operator with layer_norm"):
        program.run_decompositions(rnnkernels.onnx.decompositions())


def test_packed_sequences_are_refused():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = GRU(I, H)

        def forward(self, x, lengths):
            return self.gru(pack_padded_sequence(x, lengths, enforce_sorted=False))[1]

    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="takes no PackedSequence; call the layer with leng"):
        torch.onnx.export(Packed().eval(), (torch.randn(5, 3, I), torch.tensor([5, 1, 3])), dynamo=True, verbose=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Exporting a model to ONNX with a batch_size")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_exporter_of_torchscript():
    """dynamo=False: what torch.nn has, by torch's own operators; the rest says what to do."""

    def export(model, *x, **axes):
        file = io.BytesIO()
        torch.onnx.export(
            model, x, file, dynamo=False, input_names=["x", "lengths", "h", "c"][: len(x)], dynamic_axes=axes
        )
        return file.getvalue()

    lstms = Flat((LSTM(I, H, **FIRST), ("hx",)), LSTM(I, H))
    others = Flat((GRU(I, H, **BOTH), ("hx",)), GRU(I, H, bias=False), (RNN(I, H), ("hx",)), RNN(I, H, **FIRST))
    for model, nodes in ((lstms, ["LSTM"] * 3), (others, ["GRU"] * 3 + ["RNN"] * 3)):
        x, lengths, *states = example(model, 5, 3)
        axes = {"x": {0: "T", 1: "B"}, "lengths": {0: "B"}} | {name: {1: "B"} for name in ("h", "c")[: len(states)]}
        data = export(model.eval(), x, lengths, *states, **axes)
        assert kinds(onnx.load_from_string(data).graph.node) == nodes
        for T, B in ((5, 3), (1, 1), (9, 4)):
            compare(onnxruntime.InferenceSession(data), model, example(model, T, B))
    assert kinds(onnx.load_from_string(export(GRU(I, H), torch.randn(5, 3, I))).graph.node) == ["GRU"]
    for layer, what in (
        (GRU(I, H, reset_after=False), "reset_after=False"),
        (LSTM(I, H, activation="relu"), "activation"),
        (LSTM(I, H, recurrent_activation="hard_sigmoid"), "recurrent_activation"),
    ):
        with pytest.raises(NotImplementedError, match=f"torch.onnx.export has {what} with dynamo=True only"):
            export(layer, torch.randn(5, 3, I))
    with pytest.raises(NotImplementedError, match="has lengths with dynamo=True only"):
        export(Flat((GRU(I, H), ("lengths",))), torch.randn(5, 3, I), torch.tensor([5, 1, 3]))


def test_eager_calls_are_as_before():
    """After an export the same module computes by its own kernels, compiled too."""
    layer, x = LSTM(I, H).eval(), torch.randn(5, 3, I)
    expected = layer(x)[0]
    torch.onnx.export(layer, (x,), dynamo=True, verbose=False)
    assert torch.equal(layer(x)[0], expected) and not torch.onnx.is_in_onnx_export()
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x)[0], expected)
