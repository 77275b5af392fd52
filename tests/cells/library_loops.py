"""The cells of the library as plain loops over time in torch, written from the papers, with autograd's gradients.

A step gets the input's pre-activations by gate, a function that gives those of the recurrent product of what it gets,
the states, the learned vectors, and the extra inputs of the step. It gives the new states, and the output where that is
not the first of them.
"""

import math

import torch
import torch.nn.functional as F
from torch import exp, relu, sigmoid, tanh


def rnn(x, product, s, v, u):
    (h,) = s
    return [tanh(x[0] + product(h)[0])], None


def lstm(x, product, s, v, u):
    h, c = s
    i, f, g, o = (a + b for a, b in zip(x, product(h), strict=True))
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return [sigmoid(o) * tanh(c), c], None


def gru(x, product, s, v, u):
    (h,) = s
    r = product(h)
    reset, z = sigmoid(x[0] + r[0]), sigmoid(x[1] + r[1])
    return [(1 - z) * tanh(x[2] + reset * r[2]) + z * h], None


def gru_reset_before(x, product, s, v, u):
    (h,) = s
    r = product(h)
    reset, z = sigmoid(x[0] + r[0]), sigmoid(x[1] + r[1])
    return [(1 - z) * tanh(x[2] + product(reset * h)[2]) + z * h], None


def peephole_lstm(x, product, s, v, u):
    h, c = s
    i, f, g, o = (a + b for a, b in zip(x, product(h), strict=True))
    i, f = sigmoid(i + v["p_i"] * c), sigmoid(f + v["p_f"] * c)
    c = f * c + i * tanh(g)
    return [sigmoid(o + v["p_o"] * c) * tanh(c), c], None


def cifg_lstm(x, product, s, v, u):
    h, c = s
    f, g, o = (a + b for a, b in zip(x, product(h), strict=True))
    c = sigmoid(f) * c + (1 - sigmoid(f)) * tanh(g)
    return [sigmoid(o) * tanh(c), c], None


def li_gru(x, product, s, v, u):
    (h,) = s
    r = product(h)
    z = sigmoid(x[0] + r[0])
    return [z * h + (1 - z) * relu(x[1] + r[1])], None


def ind_rnn(x, product, s, v, u):
    return [relu(x[0] + v["u"] * s[0])], None


def janet(x, product, s, v, u):
    (h,) = s
    f, g = (a + b for a, b in zip(x, product(h), strict=True))
    return [sigmoid(f) * h + (1 - sigmoid(f - 1)) * tanh(g)], None


def mgu(x, product, s, v, u):
    (h,) = s
    f = sigmoid(x[0] + product(h)[0])
    return [(1 - f) * h + f * tanh(x[1] + product(f * h)[1])], None


def min_gru(x, product, s, v, u):
    z = sigmoid(x[0])
    return [(1 - z) * s[0] + z * x[1]], None


def min_lstm(x, product, s, v, u):
    f, i = sigmoid(x[0]), sigmoid(x[1])
    return [f / (f + i) * s[0] + i / (f + i) * x[2]], None


def sru(x, product, s, v, u):
    _, c = s
    f, r = sigmoid(x[1] + v["v_f"] * c), sigmoid(x[2] + v["v_r"] * c)
    c = f * c + (1 - f) * x[0]
    return [r * c + (1 - r) * x[3], c], None


def slstm(x, product, s, v, u):
    """Without the stabiliser: c and n are the paper's, and given as c exp(-m) and n exp(-m)."""
    h, c, n, m = s
    i, f, z, o = (a + b for a, b in zip(x, product(h), strict=True))
    c, n = c * exp(m), n * exp(m)
    c, n = sigmoid(f) * c + exp(i) * tanh(z), sigmoid(f) * n + exp(i)
    m = torch.where(s[2] == 0, i, torch.maximum(F.logsigmoid(f) + m, i))
    return [sigmoid(o) * c / n, c * exp(-m), n * exp(-m), m], None


def gru_d(x, product, s, v, u):
    h = u["gamma"] * s[0]
    return gru(x, product, [h], v, u)


def ea_lstm(x, product, s, v, u):
    h, c = s
    f, g, o = (a + b for a, b in zip(x, product(h), strict=True))
    c = sigmoid(f) * c + u["i"] * tanh(g)
    return [sigmoid(o) * tanh(c), c], None


def leaky_rnn(x, product, s, v, u):
    new = 0.9 * s[0] + 0.1 * (x[0] + product(relu(s[0]))[0])
    return [new], relu(new)


def cfc(x, product, s, v, u):
    f1, f2, a, b = (p + q for p, q in zip(x, product(s[0]), strict=True))
    t = sigmoid(a * u["ts"] + b)
    return [tanh(f1) * (1 - t) + t * tanh(f2)], None


def augru(x, product, s, v, u):
    (h,) = s
    r = product(h)
    reset, z = sigmoid(x[0] + r[0]), sigmoid(x[1] + r[1])
    z = (1 - u["attention"]) * z
    return [z * h + (1 - z) * tanh(x[2] + reset * r[2])], None


class Spike(torch.autograd.Function):
    """1 above 0, with the derivative of arctan(pi v) / pi."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, d):
        (v,) = ctx.saved_tensors
        return d / (1 + (math.pi * v) ** 2)


def lif(x, product, s, v, u):
    spike = Spike.apply(s[0] - 1)
    new = 0.9 * s[0] + x[0] + product(spike)[0] - spike.detach()
    return [new], Spike.apply(new - 1)


STEPS = {
    step.__name__: step
    for step in (
        augru, cfc, cifg_lstm, ea_lstm, gru, gru_d, gru_reset_before, ind_rnn, janet, leaky_rnn, li_gru, lif, lstm, mgu,
        min_gru, min_lstm, peephole_lstm, rnn, slstm, sru,
    )
}  # fmt: skip


def loop(name, H, x, states, weights, extras, steps=()):  # noqa: E741
    """A direction of a layer: ``y (T, B, H), last states (B, H) each``.

    weights and extras are by name; ``steps`` are the names of extras (T, B, H or 1).
    """
    ys, states = [], list(states)

    def affine(v, side):
        return F.linear(v, weights[f"weight_{side}"], weights.get(f"bias_{side}")).split(H, -1)

    for t in range(x.size(0)):
        u = {n: value[t] if n in steps else value for n, value in extras.items()}
        states, y = STEPS[name](affine(x[t], "ih"), lambda v: affine(v, "hh"), states, weights, u)
        ys.append(states[0] if y is None else y)
    return torch.stack(ys), states
