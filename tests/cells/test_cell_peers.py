"""The cells of the library beside their public implementations, where these are installed (extra ``peers-cells``)."""

import importlib
import warnings

import cell_peers
import pytest
import torch
from cell_peers import swapped
from common import assert_close

import rnnkernels
from rnnkernels import cells

T, B, I, H = 4, 3, 2, 5  # noqa: E741


def peer(name):
    """A module of another project; the test is skipped where it cannot be imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            pytest.skip(f"{name} is not there: {error}")


class Case:
    """Random inputs, a ``Recurrent`` of a cell, and a module of another project in float64 with random parameters."""

    def __init__(self, cell, module, seed=0):
        self.random = torch.Generator().manual_seed(seed)
        self.layer = rnnkernels.Recurrent(cell, I, H, dtype=torch.float64)
        self.module = module.double()
        for parameter in (*self.module.parameters(), *self.layer.parameters()):
            parameter.data = self.draw(*parameter.shape, size=0.6).detach()
        self.x = self.draw(T, B, I)

    def draw(self, *shape, size=1.0):
        return (size * torch.randn(shape, generator=self.random, dtype=torch.float64)).requires_grad_()

    def take(self, **parameters):
        """Give parameters to the layer; they stay part of the graph, so that theirs get its gradients."""
        names = {name for name, _ in self.layer.named_parameters()}
        self.given = {f"{name}_l0": value for name, value in parameters.items()}
        assert set(self.given) == names

    def check(self, y, hx=None, leaves=(), tolerance=None, **inputs):
        """Whether the layer gives y, and the same gradients of x, all parameters of the module, and the leaves."""
        ours, _ = torch.func.functional_call(self.layer, self.given, (self.x, hx), inputs)
        leaves = [self.x, *self.module.parameters(), *leaves]
        assert_close("y", ours, y)
        d = torch.randn(y.shape, generator=self.random, dtype=torch.float64)
        grads = [torch.autograd.grad(v, leaves, d, allow_unused=True, materialize_grads=True) for v in (ours, y)]
        for n, (a, e) in enumerate(zip(*grads, strict=True)):
            assert_close(f"gradient {n}", a, e, tolerance)


def test_torchrecurrent_janet():
    """The others of torchrecurrent are in test_torchrecurrent.py."""
    module = peer("torchrecurrent").JANETCell(I, H)
    case = Case(cells.janet, module)
    del module._parameters["beta"]  # a number that is learned, which is a constant with us
    module.beta = 1.0
    h = c = start = case.draw(B, H)
    ys = []
    for x in case.x:
        h, c = module(x, (h, c))
        ys.append(h)
    case.take(**dict(module.named_parameters()))
    case.check(torch.stack(ys), start[None], [start])


def test_ncps_cfc():
    module, run, weights = cell_peers.ncps_cfc(peer("ncps.torch"), I, H)
    case = Case(cells.cfc, module)
    ts, h = case.draw(T, B, 1), case.draw(B, H)
    case.take(**weights())
    case.check(run(case.x, h, ts), h[None], [ts, h], ts=ts)


def test_snntorch_rleaky():
    atan = peer("snntorch.surrogate").atan()
    spikes = lambda v: atan(v).to(v.dtype)  # noqa: E731 - theirs are float32, and so are their gradients
    module, run, weights = cell_peers.snntorch_rleaky(peer("snntorch"), I, H, 0.875, spikes)
    case = Case(cells.lif.with_constants(beta=0.875), module)
    h = case.draw(B, H, size=1.5)
    for parameter in module.mix.parameters():
        parameter.data = case.draw(*parameter.shape, size=1.5).detach()
    y = run(case.x, spikes(h - 1), h)
    case.take(**weights())
    assert 0.05 < y.mean() < 0.95
    case.check(y, h[None], [h], tolerance=1e-6)


def test_neuralhydrology_ealstm():
    module, run, weights = cell_peers.neuralhydrology_ealstm(peer("neuralhydrology.modelzoo.ealstm"), I, H)
    case = Case(cells.ea_lstm, module)
    i, state = case.draw(B, H).sigmoid().detach().requires_grad_(), [case.draw(B, H), case.draw(B, H)]
    case.take(**weights())
    case.check(run(case.x, state, i), tuple(s[None] for s in state), [i, *state], i=i)


def test_speechbrain_ligru():
    module = peer("speechbrain.nnet.RNN").LiGRU_Layer(
        I, H, num_layers=1, batch_size=B, dropout=0.0, nonlinearity="relu", normalization="layernorm"
    ).eval()  # fmt: skip

    @rnnkernels.cell(inputs="n z", recurrent="n z", project_input=False)
    def cell(x, r, s):
        n, z = torch.relu(x.n + r.n), torch.sigmoid(x.z + r.z)
        return z * s.h + (1 - z) * n

    case = Case(cells.li_gru, module)
    y = module(case.x.transpose(0, 1)).transpose(0, 1)
    w = module.norm(module.w(case.x))
    layer = rnnkernels.Recurrent(cell, 2 * H, H, bias=False, dtype=torch.float64)
    ours, _ = torch.func.functional_call(layer, {"weight_hh_l0": module.u.weight}, (w,))
    assert_close("y", ours, y)
    leaves, d = [case.x, *module.parameters()], torch.randn_like(y)
    for a, e in zip(*(torch.autograd.grad(v, leaves, d) for v in (ours, y)), strict=True):
        assert_close("a gradient", a, e)


def test_speechbrain_ligru_with_batch_norm():
    """The whole layer, in training: batch norm over all steps, the same running statistics."""
    module = peer("speechbrain.nnet.RNN").LiGRU_Layer(
        I, H, num_layers=1, batch_size=B, dropout=0.0, nonlinearity="relu", normalization="batchnorm"
    ).double()  # fmt: skip
    layer = rnnkernels.LiGRU(I, H, batch_first=True, dtype=torch.float64)
    norm = layer.norms[0]
    norm.momentum = module.norm.momentum
    with torch.no_grad():
        for parameter in module.norm.parameters():
            parameter.normal_()
        layer.products[0].weight.copy_(swapped(module.w.weight, 1, 0))
        layer.layers[0].weight_hh_l0.copy_(swapped(module.u.weight, 1, 0))
        norm.weight.copy_(swapped(module.norm.weight, 1, 0)), norm.bias.copy_(swapped(module.norm.bias, 1, 0))
    x = torch.randn(B, T, I, dtype=torch.float64, requires_grad=True)
    expected, (y, _) = module(x), layer(x)
    assert_close("y", y, expected)
    d = torch.randn_like(y)
    for ours, theirs in ((layer.products[0].weight, module.w.weight), (norm.weight, module.norm.weight)):
        (a,), (e,) = torch.autograd.grad(y, ours, d, True), torch.autograd.grad(expected, theirs, d, True)
        assert_close("a gradient", a, swapped(e, 1, 0))
    assert_close("dx", torch.autograd.grad(y, x, d)[0], torch.autograd.grad(expected, x, d)[0])
    assert_close("running mean", norm.running_mean, swapped(module.norm.running_mean, 1, 0))


def test_xlstm_slstm():
    pointwise = peer("xlstm.blocks.slstm.src.vanilla.slstm").slstm_forward_pointwise
    case = Case(cells.slstm, torch.nn.LSTMCell(I, H))  # for its four gates of weights
    weights, ys = case.module, []
    states = torch.zeros(4, B, H, dtype=torch.float64)
    for x in case.x:
        product = states[0] @ weights.weight_hh.T
        bias = (weights.bias_ih + weights.bias_hh)[None]
        states, _ = pointwise(x @ weights.weight_ih.T, product, bias, states, {})
        ys.append(states[0])
    case.take(**dict(weights.named_parameters()))
    case.check(torch.stack(ys))


def test_pypots_grud():
    """With one gate more than gru_d: PyPOTS feeds the decayed state to the input too, past the reset."""
    grud = peer("pypots.nn.modules.grud")

    @rnnkernels.cell(
        inputs="r z n", recurrent="r z n k", step_inputs="gamma", operand=lambda s, u: u.gamma * s.h
    )  # fmt: skip
    def pypots(x, r, s, u):
        reset, z = torch.sigmoid(x.r + r.r), torch.sigmoid(x.z + r.z)
        n = torch.tanh(x.n + r.k + reset * r.n)
        return n + z * (u.gamma * s.h - n)

    module = grud.BackboneGRUD(T, I, H)
    case = Case(pypots, module)
    values, mask = case.draw(B, T, I), case.draw(B, T, I) > 0
    deltas, mean, filled = case.draw(B, T, I).abs(), case.draw(I), case.draw(B, T, I)
    m = mask.double()
    decayed, last = module(values, m, deltas, mean, filled)
    gamma, gamma_x = module.temp_decay_h(deltas), module.temp_decay_x(deltas)
    replaced = m * values + (1 - m) * (gamma_x * filled + (1 - gamma_x) * mean)
    w, rows = module.rnn_cell.weight_ih, module.rnn_cell.weight_hh
    w_x, w_h = torch.cat([w[:, :I], w[:, -I:]], 1), w[:, I:-I]
    hidden = torch.cat([rows[: 2 * H] + w_h[: 2 * H], rows[2 * H :], w_h[2 * H :]])
    bias_hh = torch.cat([module.rnn_cell.bias_hh, torch.zeros(H, dtype=torch.float64)])
    layer = rnnkernels.Recurrent(pypots, 2 * I, H, batch_first=True, dtype=torch.float64)
    given = {"weight_ih_l0": w_x, "weight_hh_l0": hidden, "bias_ih_l0": module.rnn_cell.bias_ih, "bias_hh_l0": bias_hh}
    y, _ = torch.func.functional_call(layer, given, (torch.cat([replaced, m], 2),), {"gamma": gamma})
    assert_close("last", y[:, -1], last)
    assert_close("decayed", gamma[:, 1:] * y[:, :-1], decayed[:, 1:])
    leaves, d = [values, mean, filled, *module.parameters()], torch.randn_like(last)
    for a, e in zip(*(torch.autograd.grad(v, leaves, d) for v in (y[:, -1], last)), strict=True):
        assert_close("a gradient", a, e)
