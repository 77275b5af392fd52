"""``trace``: what it returns are the gates of the equations, and it is what the module itself computes."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from common import assert_close
from conftest import CPU_BACKENDS
from test_option_modules import MODULES, make
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnkernels
from rnnkernels import backends, trace

T, B = 5, 3
LENGTHS = torch.tensor([4, 0, 5])


def x_of(*shape):
    return torch.randn(*(shape or (T, B, 3)), dtype=torch.float64)


def test_names_and_order():
    module = rnnkernels.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)
    ends = ("l0", "l0_reverse", "l1", "l1_reverse")
    found = trace(module, x_of())
    assert list(found) == [f"{name}_{end}" for end in ends for name in "ifgoch"]
    assert list(trace(rnnkernels.GRU(3, 4).double(), x_of())) == ["r_l0", "z_l0", "n_l0", "q_l0", "h_l0"]
    assert list(trace(rnnkernels.GRU(3, 4, reset_after=False).double(), x_of())) == ["r_l0", "z_l0", "n_l0", "h_l0"]
    assert list(trace(rnnkernels.RNN(3, 4).double(), x_of())) == ["h_l0"]
    assert all(v.shape == (T, B, 4) and not v.requires_grad for v in found.values())


@pytest.mark.parametrize("name", MODULES)
def test_states_are_the_module_s(name):
    """h of the last layer is the output, whatever the options; in training with the same masks."""
    module, x = make(name), x_of()
    more = {} if module.bidirectional else {"reset": torch.rand(T, B) < 0.3}
    for train in (False, True):
        module.train(train)
        torch.manual_seed(1)
        y, last = module(x, lengths=LENGTHS, **more)
        torch.manual_seed(1)
        with backends.force(CPU_BACKENDS[0]):  # it is the reference that traces, whatever is forced
            found = trace(module, x, lengths=LENGTHS, **more)
        top = [v for k, v in found.items() if k.startswith(f"h_l{module.num_layers - 1}")]
        assert_close("h", torch.cat(top, -1), y.detach())
        assert all(not v[4:, 0].any() and not v[:, 1].any() for v in found.values())


def test_gates_obey_the_equations():
    module, x = rnnkernels.LSTM(3, 4, proj_size=2, dtype=torch.float64), x_of()
    v = {k.removesuffix("_l0"): t for k, t in trace(module, x).items()}
    before = torch.cat([torch.zeros(1, B, 4), v["c"][:-1]])
    assert_close("c", v["c"], v["f"] * before + v["i"] * v["g"])
    assert_close("h", v["h"], (v["o"] * v["c"].tanh()) @ module.weight_hr_l0.detach().T)
    assert_close("c", v["c"], module(x, return_cell_states=True)[2].detach())
    module = rnnkernels.GRU(3, 4, dtype=torch.float64, activation="relu")
    v = {k.removesuffix("_l0"): t for k, t in trace(module, x).items()}
    before = torch.cat([torch.zeros(1, B, 4).double(), v["h"][:-1]])
    assert_close("q", v["q"], before @ module.weight_hh_l0[8:].detach().T + module.bias_hh_l0[8:].detach())
    xn = x @ module.weight_ih_l0[8:].detach().T + module.bias_ih_l0[8:].detach()
    assert_close("n", v["n"], (xn + v["r"] * v["q"]).relu())
    assert_close("h", v["h"], (1 - v["z"]) * v["n"] + v["z"] * before)


def test_gates_obey_the_equations_with_options():
    """With norms, zoneout, a restart from given states, and the reset before the product."""
    module, x = rnnkernels.LSTM(3, 4, layer_norm=True, zoneout=(0.1, 0.3), dtype=torch.float64).eval(), x_of()
    for p in module.parameters():
        p.data += 0.3 * torch.randn_like(p)
    hx, restart = (tuple(x_of(1, B, 4) for _ in range(2)) for _ in range(2))
    mask = torch.rand(T, B) < 0.4
    mask[2, 0], mask[:, 1] = True, False
    v = {k.removesuffix("_l0"): t for k, t in trace(module, x, hx, reset=(mask, restart)).items()}
    h, c = (
        torch.where(mask[..., None], again, torch.cat([first, v[name][:-1]]))
        for name, first, again in zip("hc", hx, restart, strict=True)
    )
    new = v["f"] * c + v["i"] * v["g"]
    assert_close("c", v["c"], 0.3 * c + 0.7 * new)
    normed = F.layer_norm(new, (4,), module.ln_c_gain_l0, module.ln_c_bias_l0).detach()
    assert_close("h", v["h"], 0.1 * h + 0.9 * v["o"] * normed.tanh())
    r = F.layer_norm(h @ module.weight_hh_l0.T, (16,), module.ln_h_gain_l0) + module.bias_hh_l0
    gates = F.layer_norm(x @ module.weight_ih_l0.T, (16,), module.ln_x_gain_l0) + module.bias_ih_l0 + r
    i, f, g, o = gates.detach().chunk(4, -1)
    for name, e in (("i", i.sigmoid()), ("f", f.sigmoid()), ("g", g.tanh()), ("o", o.sigmoid())):
        assert_close(name, v[name], e)

    module = rnnkernels.GRU(3, 4, reset_after=False, dtype=torch.float64)
    v = {k.removesuffix("_l0"): t for k, t in trace(module, x, hx[0]).items()}
    h = torch.cat([hx[0], v["h"][:-1]])
    r, z, xn = (x @ module.weight_ih_l0.T + module.bias_ih_l0).detach().chunk(3, -1)
    hr, hz = (h @ module.weight_hh_l0[:8].T + module.bias_hh_l0[:8]).detach().chunk(2, -1)
    hn = ((v["r"] * h) @ module.weight_hh_l0[8:].T + module.bias_hh_l0[8:]).detach()
    for name, e in (("r", (r + hr).sigmoid()), ("z", (z + hz).sigmoid()), ("n", (xn + hn).tanh())):
        assert_close(name, v[name], e)
    assert_close("h", v["h"], (1 - v["z"]) * v["n"] + v["z"] * h)


def test_heads_come_together():
    module, x = make("heads").eval(), x_of()
    found = trace(module, x)
    rows = torch.arange(8, 12)
    before = torch.cat([torch.zeros(1, B, 4), found["h_l0"][:-1]]).double()
    blocks = torch.block_diag(*(w[4:] for w in module.weight_hh_l0.detach()))
    assert_close("q", found["q_l0"], before @ blocks.T)
    xn = x @ module.weight_ih_l0[rows].detach().T
    assert_close("n", found["n_l0"], (xn + found["r_l0"] * found["q_l0"]).tanh())


def test_layouts():
    module, x = rnnkernels.GRU(3, 4, 2, dtype=torch.float64), x_of()
    expected = trace(module, x)
    hx = torch.randn(2, B, 4, dtype=torch.float64)
    assert_close("hx", trace(module, x, hx)["h_l1"], module(x, hx)[0])
    for k, v in trace(module, x[:, 0]).items():
        assert_close(k, v, expected[k][:, 0])
    module.batch_first = True
    for k, v in trace(module, x.transpose(0, 1)).items():
        assert_close(k, v, expected[k].transpose(0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(trace(module, x.transpose(0, 1))["h_l1"], expected["h_l1"].transpose(0, 1))


def test_every_value_that_a_cell_names():
    @rnnkernels.cell(inputs="a b", recurrent="a b")
    def named(x, r, s):
        pre = x.a + r.a
        gate, same = torch.sigmoid(pre), pre
        candidate = torch.tanh(x.b + same * r.b)
        kept, two = gate * s.h, 2.0
        return kept + (1 - gate) * candidate / two

    module, x = rnnkernels.Recurrent(named, 3, 4, 2, bidirectional=True, dtype=torch.float64), x_of()
    found = trace(module, x)
    names = {"pre", "gate", "candidate", "kept", "h"}
    plain = {key for key in found if not key.startswith("plane_")}
    assert plain == {f"{name}_l{k}{end}" for name in names for k in range(2) for end in ("", "_reverse")}
    for end in ("_l0", "_l1_reverse"):
        pre, gate, candidate, kept, h = (found[name + end] for name in ("pre", "gate", "candidate", "kept", "h"))
        first = torch.zeros_like(h[:1])
        before = torch.cat([h[1:], first] if end.endswith("reverse") else [first, h[:-1]])
        assert_close("gate", gate, pre.sigmoid())
        assert_close("kept", kept, gate * before)
        assert_close("h", h, kept + (1 - gate) * candidate / 2)
    assert_close("y", torch.cat([found["h_l1"], found["h_l1_reverse"]], -1), module(x)[0])
    unpickled = pickle.loads(pickle.dumps(module))  # without the function: what training keeps
    assert {f"{name}_l0" for name in (*module.cell.names, "h")} <= set(trace(unpickled, x)) < set(found)


def test_errors():
    with pytest.raises(TypeError, match="Expected an RNN, LSTM or GRU of rnnkernels, but got GRU"):
        trace(nn.GRU(3, 4), x_of())
    module = rnnkernels.GRU(3, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match="got a PackedSequence"):
        trace(module, pack_sequence([x_of(2, 3)]))
    with pytest.raises(RuntimeError, match="must be equal to input_size"):
        trace(module, x_of(2, 2, 2))
