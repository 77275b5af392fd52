"""Which cells of torchrecurrent 0.2.5 can be written: each that can is written here, and held against the module there.

The cells that cannot, and what they would need, are in CANNOT. Skipped without the package (extra ``peers-cells``).
"""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from common import assert_close
from test_cell_peers import peer
from torch import relu, sigmoid, tanh

import rnnkernels
from rnnkernels import cell, cells, product

T, B, I, H = 4, 3, 5, 5  # noqa: E741 - IntersectionRNN wants the same
ONE_PRODUCT = "second products of more than one gate"
CANNOT = {
    "MultiplicativeLSTMCell": ONE_PRODUCT, "WMCLSTMCell": ONE_PRODUCT,
    "MUT3Cell": "a third product in a step", "DSGUCell": "a third product in a step",
    "SCRNCell": "a third product in a step",
    "tauGRUCell": "a state of many steps ago",
}  # fmt: skip


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def plain(m):
    """The parameters of a module that are ours by name and order."""
    return {n: getattr(m, n) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}


def with_product(matrix, bias):
    """A further block of rows, those of the inner product."""
    return lambda m: (
        plain(m)
        | {
            "weight_hh": torch.cat([m.weight_hh, getattr(m, matrix)]),
            "bias_hh": torch.cat([m.bias_hh, getattr(m, bias) if bias else zeros(H)]),
        }
    )


def one(m, x, s):
    h = m(x, s[0])
    return h, [h]


def two(m, x, s):
    h, c = m(x, (s[0], s[1]))
    return h, [h, c]


class Entry(NamedTuple):
    """A cell and the way from a module's parameters to its own; a step of the module; settings; our input."""

    cell: Any
    weights: Any = plain
    step: Any = one
    settings: Any = {}  # noqa: RUF012 - never changed
    input: Any = lambda x: x


def both(names, states="h", **more):
    return cell(inputs=names, recurrent=names, states=states, **more)


@both("h", constants={"epsilon": 0.5})
def antisymmetric(x, r, s, epsilon):
    return s.h + epsilon * tanh(x.h + r.h)


@cell(inputs="z h", recurrent="h", constants={"epsilon": 0.5})
def gated_antisymmetric(x, r, s, epsilon):
    return s.h + epsilon * sigmoid(x.z + r.h) * tanh(x.h + r.h)


def asymmetric(m):
    return m.weight_hh - m.weight_hh.T - 0.1 * torch.eye(H, dtype=torch.float64)


@both("p")
def atr(x, r, s):
    return sigmoid(x.p + r.p) * x.p + sigmoid(x.p - r.p) * s.h


@cell(inputs="a c n", vectors="w_a w_c")
def br(x, s, v):
    c = sigmoid(x.c + v.w_c * s.h)
    return c * s.h + (1 - c) * tanh(x.n + (1 + tanh(x.a + v.w_a * s.h)) * s.h)


def br_weights(m):
    w_a, w_c = m.weight_hh.flatten().chunk(2)
    bias = m.bias_ih + torch.cat([m.bias_hh, zeros(H)])
    return {"weight_ih": m.weight_ih, "bias_ih": bias, "w_a": w_a, "w_c": w_c}


@cell(inputs="a c n", recurrent="a c")
def nbr(x, r, s):
    c = sigmoid(x.c + r.c)
    return c * s.h + (1 - c) * tanh(x.n + (1 + tanh(x.a + r.a)) * s.h)


@cell(inputs="h v n", recurrent="h v")
def cfn(x, r, s):
    return sigmoid(x.h + r.h) * tanh(s.h) + sigmoid(x.v + r.v) * tanh(x.n)


@cell(inputs="a", recurrent="a k", states="h c", constants={"dt": 0.5, "gamma": 0.7, "epsilon": 0.3})
def cornn(x, r, s, dt, gamma, epsilon):
    c = s.c + dt * (tanh(x.a + r.a + product("k", s.c)) - gamma * s.h - epsilon * s.c)
    return s.h + dt * c, c


@both("h", vectors="alpha beta")
def fastrnn(x, r, s, v):
    return sigmoid(v.alpha) * tanh(x.h + r.h) + sigmoid(v.beta) * s.h


@cell(inputs="h", recurrent="h", vectors="zeta nu b_z b_h")
def fastgrnn(x, r, s, v):
    z = sigmoid(x.h + r.h + v.b_z)
    return (sigmoid(v.zeta) * (1 - z) + sigmoid(v.nu)) * tanh(x.h + r.h + v.b_h) + z * s.h


def fastgrnn_weights(m):
    b_z, b_h = (m.bias_ih + m.bias_hh).chunk(2)
    scalars = {n: getattr(m, n).expand(H) for n in ("zeta", "nu")}
    return {"weight_ih": m.weight_ih, "weight_hh": m.weight_hh, "bias_ih": zeros(H), "bias_hh": zeros(H)} | scalars | {
        "b_z": b_z, "b_h": b_h
    }  # fmt: skip


@cell(inputs="d n y h i", recurrent="d n y h", states="h y", output=lambda s: s.y)
def intersection(x, r, s):
    y, h = sigmoid(x.y + r.y), sigmoid(x.h + r.h)
    return h * s.h + (1 - h) * tanh(x.n + r.n), y * x.i + (1 - y) * relu(x.d + r.d)


def with_input(m):
    """The input itself is a gate: rows of the identity."""
    eye = torch.eye(H, dtype=torch.float64)
    return plain(m) | {"weight_ih": torch.cat([m.weight_ih, eye]), "bias_ih": torch.cat([m.bias_ih, zeros(H)])}


def intersection_step(m, x, s):
    y, h = m(x, s[0])
    return y, [h, y]


@cell(inputs="a b c h", recurrent="a b c k", states="h c", constants={"dt": 0.5})
def lem(x, r, s, dt):
    slow, fast = dt * sigmoid(x.a + r.a), dt * sigmoid(x.b + r.b)
    c = (1 - fast) * s.c + fast * tanh(x.c + r.c)
    return (1 - slow) * s.h + slow * tanh(x.h + product("k", s.c)), c


@cell(inputs="n f", recurrent="f")
def lightru(x, r, s):
    f = sigmoid(x.f + r.f)
    return (1 - f) * s.h + f * tanh(x.n)


@both("f i o l g", states="v c h", output=lambda s: s.h)
def mclstm(x, r, s):
    f, i, o, control = (sigmoid(getattr(x, g) + getattr(r, g)) for g in "fiol")
    c = f * s.c + i * tanh(x.g + r.g)
    return control * tanh(c), c, o * tanh(c)


def mclstm_step(m, x, s):
    h, (v, c) = m(x, (s[0], s[1]))
    return h, [v, c, h]


@cell(inputs="n", recurrent="u k")
def minimalrnn(x, r, s):
    n = tanh(x.n)
    u = sigmoid(r.u + product("k", n))
    return u * s.h + (1 - u) * n


@both("r n", constants={"keep": 0.5})
def miru1(x, r, s, keep):
    return keep * s.h + (1 - keep) * tanh(x.n + product("n", sigmoid(x.r + r.r) * s.h))


@both("n", operand=lambda s: 0.25 * s.h)
def miru2(x, r, s):
    return 0.5 * s.h + 0.5 * tanh(x.n + r.n)


@cell(inputs="z r n", recurrent="r n")
def mut1(x, r, s):
    z = sigmoid(x.z)
    return tanh(product("n", sigmoid(x.r + r.r) * s.h) + tanh(x.n)) * z + s.h * (1 - z)


@both("z r n")
def mut2(x, r, s):
    z = sigmoid(x.z + r.z)
    return tanh(product("n", sigmoid(x.r + r.r) * s.h) + x.n) * z + s.h * (1 - z)


@both("g0 g1 g2 g3 g4 g5 g6 g7", states="h c")
def nas(x, r, s):
    g = [getattr(x, f"g{k}") + getattr(r, f"g{k}") for k in range(8)]
    c = tanh(tanh(sigmoid(g[0]) * relu(g[1])) + s.c) * tanh(sigmoid(g[2]) + relu(g[3]))
    return tanh(c * tanh(tanh(tanh(g[4]) * sigmoid(g[5])) + sigmoid(tanh(g[6]) + sigmoid(g[7])))), c


@both("i g o", states="h c")
def original_lstm(x, r, s):
    c = s.c + sigmoid(x.i + r.i) * tanh(x.g + r.g)
    return sigmoid(x.o + r.o) * tanh(c), c


@cell(inputs="n i f", recurrent="i f", states="h c")
def ran(x, r, s):
    c = sigmoid(x.i + r.i) * x.n + sigmoid(x.f + r.f) * s.c
    return tanh(c), c


@cell(inputs="i f g o x", recurrent="i f g o p", states="h c", vectors="p_i p_f p_o")
def reslstm(x, r, s, v):
    i, f = sigmoid(x.i + r.i + v.p_i * s.c), sigmoid(x.f + r.f + v.p_f * s.c)
    c = f * s.c + i * tanh(x.g + r.g)
    return sigmoid(x.o + r.o + v.p_o * c) * (product("p", tanh(c)) + x.x), c


def reslstm_weights(m):
    found = with_product("weight_proj", None)(m)
    found["weight_ih"] = torch.cat([m.weight_ih, m.weight_res])
    found["bias_ih"] = torch.cat([m.bias_ih, zeros(H)])
    return found | dict(zip(("p_i", "p_f", "p_o"), m.weight_ph.chunk(3), strict=True))


@both("h")
def sgrn(x, r, s):
    f = sigmoid(x.h + r.h)
    return tanh((1 - f) * x.h + f * s.h)


@cell(inputs="g z", recurrent="z g")
def sgu(x, r, s):
    z = F.hardsigmoid(x.z + r.z)
    return (1 - z) * s.h + z * F.softplus(tanh(product("g", x.g * s.h)) * s.h)


@cell(inputs="n k", recurrent="k")
def star(x, r, s):
    k = sigmoid(x.k + r.k)
    return tanh((1 - k) * s.h + k * tanh(x.n))


@cell(inputs="n f")
def trnn(x, s):
    f = sigmoid(x.f)
    return f * s.h + (1 - f) * x.n


@cell(inputs="n f o")
def tgru(x, s):
    return sigmoid(x.f) * s.h + x.n * tanh(x.o)


@cell(inputs="n f o", states="h c")
def tlstm(x, s):
    f = sigmoid(x.f)
    c = f * s.c + (1 - f) * x.n
    return c * tanh(x.o), c


def of_two_inputs(m):
    return {"weight_ih": torch.cat([m.weight_ih, m.weight_hh], 1), "bias_ih": m.bias_ih + m.bias_hh}


def with_previous(x):
    """The input beside that of the step before."""
    return torch.cat([x, torch.cat([torch.zeros_like(x[:1]), x[:-1]])], -1)


def tgru_step(m, x, s):
    h, previous = m(x, (s[0], s[1] if len(s) > 1 else torch.zeros_like(x)))
    return h, [h, previous]


def tlstm_step(m, x, s):
    h, (c, previous) = m(x, (s[1], s[2] if len(s) > 2 else torch.zeros_like(x)))
    return h, [h, c, previous]


@both("n g")
def ugrnn(x, r, s):
    g = sigmoid(x.g + r.g)
    return g * s.h + (1 - g) * tanh(x.n + r.n)


@cell(inputs="n", states="h c", vectors="w a", constants={"dt": 0.5, "alpha": 0.3})
def unicornn(x, s, v, dt, alpha):
    step = dt * sigmoid(v.a)
    c = s.c - step * (tanh(x.n + v.w * s.h) + alpha * s.h)
    return s.h + step * c, c


def vectors(**names):
    """Without a product: both biases are one, and vectors by name."""
    return lambda m: (
        {"weight_ih": m.weight_ih, "bias_ih": m.bias_ih + m.bias_hh}
        | {ours: getattr(m, theirs) for ours, theirs in names.items()}
    )


CAN = {
    "AntisymmetricRNNCell": Entry(
        antisymmetric, lambda m: plain(m) | {"weight_hh": asymmetric(m)}, settings={"epsilon": 0.5, "gamma": 0.1}
    ),
    "GatedAntisymmetricRNNCell": Entry(
        gated_antisymmetric, lambda m: plain(m) | {
            "weight_hh": asymmetric(m), "bias_ih": m.bias_ih + torch.cat([zeros(H), m.bias_hh]), "bias_hh": zeros(H)
        }, settings={"epsilon": 0.5, "gamma": 0.1},
    ),
    "ATRCell": Entry(atr), "BRCell": Entry(br, br_weights), "NBRCell": Entry(nbr), "CFNCell": Entry(cfn),
    "coRNNCell": Entry(cornn, with_product("weight_ch", "bias_ch"), two, {"dt": 0.5, "gamma": 0.7, "epsilon": 0.3}),
    "FastRNNCell": Entry(fastrnn, lambda m: plain(m) | {n: getattr(m, n).expand(H) for n in ("alpha", "beta")}),
    "FastGRNNCell": Entry(fastgrnn, fastgrnn_weights, settings={"nonlinearity": "sigmoid"}),
    "IndRNNCell": Entry(cells.ind_rnn, vectors(u="vector_u"), settings={"nonlinearity": "relu"}),
    "IntersectionRNNCell": Entry(intersection, with_input, intersection_step),
    "LEMCell": Entry(lem, with_product("weight_ch", "bias_ch"), two, {"dt": 0.5}), "LightRUCell": Entry(lightru),
    "LiGRUCell": Entry(cells.li_gru), "MCLSTMCell": Entry(mclstm, plain, mclstm_step), "MGUCell": Entry(cells.mgu),
    "MinimalRNNCell": Entry(minimalrnn, with_product("weight_mm", None)),
    "MiRU1Cell": Entry(miru1, settings={"update_coefficient": 0.5}),
    "MiRU2Cell": Entry(miru2, settings={"update_coefficient": 0.5, "reset_coefficient": 0.25}),
    "MUT1Cell": Entry(mut1), "MUT2Cell": Entry(mut2), "NASCell": Entry(nas, plain, two),
    "OriginalLSTMCell": Entry(original_lstm, plain, two),
    "PeepholeLSTMCell": Entry(
        cells.peephole_lstm,
        lambda m: plain(m) | dict(zip(("p_i", "p_f", "p_o"), m.weight_ph.chunk(3), strict=True)), two,
    ),
    "RANCell": Entry(ran, lambda m: plain(m) | {"bias_ih": torch.cat([zeros(H), m.bias_ih])}, two),
    "ResLSTMCell": Entry(reslstm, reslstm_weights, two), "SGRNCell": Entry(sgrn),
    "SGUCell": Entry(sgu, lambda m: plain(m) | {
        n: torch.cat(getattr(m, n).chunk(2)[::-1]) for n in ("weight_hh", "bias_hh")
    }), "STARCell": Entry(star), "TRNNCell": Entry(trnn, lambda m: {"weight_ih": m.weight_ih, "bias_ih": m.bias_ih}),
    "TGRUCell": Entry(tgru, of_two_inputs, tgru_step, {}, with_previous),
    "TLSTMCell": Entry(tlstm, of_two_inputs, tlstm_step, {}, with_previous),
    "UGRNNCell": Entry(ugrnn),
    "UnICORNNCell": Entry(unicornn, vectors(w="weight_hh", a="weight_ch"), two, {"dt": 0.5, "alpha": 0.3}),
}  # fmt: skip


def test_all_cells_are_in_one_table_or_the_other():
    there = {name for name in vars(peer("torchrecurrent")) if name.endswith("Cell")}
    assert there == {*CAN, *CANNOT, "JANETCell"}  # JANETCell: test_cell_peers.py


@pytest.mark.parametrize("name", CAN)
def test_as_torchrecurrent_has_it(name):
    entry = CAN[name]
    module = getattr(peer("torchrecurrent"), name)(I, H, **entry.settings).double()
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)  # noqa: E731
    for parameter in module.parameters():
        parameter.data = 0.6 * draw(*parameter.shape).detach()
    x, states = draw(T, B, I), [draw(B, H) for _ in entry.cell.program.states]
    state, ys = states, []
    for step in x:
        y, state = entry.step(module, step, state)
        ys.append(y)
    given = {f"{n}_l0": w for n, w in entry.weights(module).items()}
    layer = rnnkernels.Recurrent(entry.cell, entry.input(x).size(-1), H, dtype=torch.float64)
    assert set(given) == {n for n, _ in layer.named_parameters()}
    hx = tuple(s[None] for s in states)
    ours, _ = torch.func.functional_call(layer, given, (entry.input(x), hx if len(hx) > 1 else hx[0]))
    tolerance = 1e-7 if name == "SGUCell" else None  # torch's hardsigmoid has 8 digits
    assert_close("y", ours, torch.stack(ys), tolerance)
    leaves, d = [x, *states, *module.parameters()], torch.randn(ours.shape, generator=random, dtype=torch.float64)
    grads = [
        torch.autograd.grad(results, leaves, d, allow_unused=True, materialize_grads=True)
        for results in (ours, torch.stack(ys))
    ]
    for n, (a, e) in enumerate(zip(*grads, strict=True)):
        assert_close(f"gradient {n}", a, e, tolerance)
