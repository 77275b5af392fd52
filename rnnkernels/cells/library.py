"""The cells that people use, each as one Python function; ``rnnkernels.cells.NAME``.

In the equations x.g is row block g of ``W_ih x_t + b_ih``, r.g that of ``W_hh h + b_hh``, ' marks the state after the
step, and s is the logistic sigmoid. Gates are in the order of ``inputs``, which is that of the weights' rows.
"""

import math

import torch
import torch.nn.functional as F

from .built_in import gru, gru_reset_before, lstm, rnn  # noqa: F401 - cells of the library too
from .definition import Cell, cell
from .trace import derivative, product


@cell(inputs="i f g o", recurrent="i f g o", states="h c", vectors="p_i p_f p_o")
def peephole_lstm(x, r, s, v):
    """i, f = s(x + r + p c);  g = tanh(x.g + r.g);  c' = f c + i g;  o = s(x.o + r.o + p_o c');  h' = o tanh(c')

    F. Gers, N. Schraudolph, J. Schmidhuber (2002), Learning precise timing with LSTM recurrent networks. The vectors
    p_i, p_f and p_o (H,) are learned.
    """
    i = torch.sigmoid(x.i + r.i + v.p_i * s.c)
    f = torch.sigmoid(x.f + r.f + v.p_f * s.c)
    g = torch.tanh(x.g + r.g)
    c = f * s.c + i * g
    o = torch.sigmoid(x.o + r.o + v.p_o * c)
    return o * torch.tanh(c), c


@cell(inputs="f g o", recurrent="f g o", states="h c")
def cifg_lstm(x, r, s):
    """f, o = s(x + r);  g = tanh(x.g + r.g);  c' = f c + (1 - f) g;  h' = o tanh(c')

    The coupled input and forget gate of K. Greff et al. (2017), LSTM: a search space odyssey.
    """
    f, o = torch.sigmoid(x.f + r.f), torch.sigmoid(x.o + r.o)
    g = torch.tanh(x.g + r.g)
    c = g + f * (s.c - g)
    return o * torch.tanh(c), c


@cell(inputs="z n", recurrent="z n")
def li_gru(x, r, s):
    """z = s(x.z + r.z);  n = relu(x.n + r.n);  h' = z h + (1 - z) n

    M. Ravanelli, P. Brakel, M. Omologo, Y. Bengio (2018), Light gated recurrent units for speech recognition, whose
    batch norm of W x is a module before the layer (``project_input=False`` then). SpeechBrain's rows have n before z.
    """
    z, n = torch.sigmoid(x.z + r.z), torch.relu(x.n + r.n)
    return n + z * (s.h - n)


@cell(inputs="h", vectors="u")
def ind_rnn(x, s, v):
    """h' = relu(x.h + u h)

    S. Li et al. (2018), Independently recurrent neural network (IndRNN). The vector u (H,) is learned; there is no
    recurrent product.
    """
    return torch.relu(x.h + v.u * s.h)


@cell(inputs="f g", recurrent="f g", constants={"beta": 1.0})
def janet(x, r, s, beta):
    """a = x.f + r.f;  g = tanh(x.g + r.g);  h' = s(a) h + (1 - s(a - beta)) g

    J. van der Westhuizen, J. Lasenby (2018), The unreasonable effectiveness of the forget gate. Constant: beta, 1.
    """
    a = x.f + r.f
    g = torch.tanh(x.g + r.g)
    return torch.sigmoid(a) * s.h + (1 - torch.sigmoid(a - beta)) * g


@cell(inputs="f n", recurrent="f n")
def mgu(x, r, s):
    """f = s(x.f + r.f);  n = tanh(x.n + W_hn (f h) + b_hn);  h' = (1 - f) h + f n

    G.-B. Zhou, J. Wu, C.-L. Zhang, Z.-H. Zhou (2016), Minimal gated unit for recurrent neural networks.
    """
    f = torch.sigmoid(x.f + r.f)
    n = torch.tanh(x.n + product("n", f * s.h))
    return s.h + f * (n - s.h)


@cell(inputs="z n")
def min_gru(x, s):
    """z = s(x.z);  h' = (1 - z) h + z x.n

    L. Feng et al. (2024), Were RNNs all we needed? No recurrent product. The paper's log-space variant has
    ``x.n + 0.5`` where x.n >= 0, and s(x.n) elsewhere, in place of x.n.
    """
    z, n = torch.sigmoid(x.z), x.n
    return s.h + z * (n - s.h)


@cell(inputs="f i n")
def min_lstm(x, s):
    """f, i = s(x);  h' = (f h + i x.n) / (f + i)

    L. Feng et al. (2024), Were RNNs all we needed? No recurrent product; the two gates are normalised to a sum of 1.
    Where both are below s(-40), s is exp to all digits, and their ratio does not change if both move up there.
    """
    up = (torch.maximum(x.f, x.i) + 40).clamp(max=0).detach()
    f, i, n = torch.sigmoid(x.f - up), torch.sigmoid(x.i - up), x.n
    return (f * s.h + i * n) / (f + i)


@cell(inputs="n f r k", states="h c", vectors="v_f v_r")
def sru(x, s, v):
    """f = s(x.f + v_f c);  r = s(x.r + v_r c);  c' = f c + (1 - f) x.n;  h' = r c' + (1 - r) x.k

    T. Lei, Y. Zhang, S. Wang, H. Dai, Y. Artzi (2018), Simple recurrent units for highly parallelizable recurrence. No
    recurrent product; the vectors v_f and v_r (H,) are learned. x.k is the highway: where I = H the paper has the input
    itself there, which is the identity in the last block of ``weight_ih``.
    """
    f, r = torch.sigmoid(x.f + v.v_f * s.c), torch.sigmoid(x.r + v.v_r * s.c)
    n, k = x.n, x.k
    c = n + f * (s.c - n)
    return k + r * (c - k), c


@cell(inputs="i f z o", recurrent="i f z o", states="h c n m")
def slstm(x, r, s):
    """log f = log s(x.f + r.f);  m' = max(log f + m, x.i + r.i);  i' = exp(x.i + r.i - m');  f' = exp(log f + m - m')
    c' = f' c + i' tanh(x.z + r.z);  n' = f' n + i';  h' = s(x.o + r.o) c' / n'

    M. Beck et al. (2024), xLSTM: extended long short-term memory, with the sigmoid as forget gate. States: h, c, the
    normaliser n and the stabiliser m, which without a past (n = 0) is x.i + r.i. The paper's recurrent matrix is
    block-diagonal: heads. Gate order as in FlashRNN.
    """
    i, f, z, o = x.i + r.i, x.f + r.f, torch.tanh(x.z + r.z), torch.sigmoid(x.o + r.o)
    past = F.logsigmoid(f) + s.m
    m = torch.where(s.n == 0, i, torch.maximum(past, i))
    new, old = torch.exp(i - m), torch.exp(torch.clamp(past - m, max=0))  # without a past, past - m may be large
    c = old * s.c + new * z
    n = old * s.n + new
    return o * c / n, c, n, m


def decayed(s, u):
    return u.gamma * s.h


@cell(inputs="r z n", recurrent="r z n", step_inputs="gamma", operand=decayed)
def gru_d(x, r, s, u):
    """h^ = gamma h;  reset, z = s(x + r);  n = tanh(x.n + reset r.n);  h' = n + z (h^ - n);  r = W_hh h^ + b_hh

    Z. Che et al. (2018), Recurrent neural networks for multivariate time series with missing values. Step input: the
    decay gamma (T, B, H) = exp(-relu(W d + b)) of the times d since values were seen; values, filled in, and their mask
    are the input. The reset comes after the product, as in ``torch.nn.GRUCell``.
    """
    h, q = decayed(s, u), r.n
    reset, z = torch.sigmoid(x.r + r.r), torch.sigmoid(x.z + r.z)
    n = torch.tanh(x.n + reset * q)
    return n + z * (h - n)


@cell(inputs="f g o", recurrent="f g o", states="h c", sequence_inputs="i")
def ea_lstm(x, r, s, u):
    """f, o = s(x + r);  g = tanh(x.g + r.g);  c' = f c + i g;  h' = o tanh(c')

    F. Kratzert et al. (2019), Towards learning universal, regional, and local hydrological behaviors via machine
    learning applied to large-sample datasets. Sequence input: the input gate i (B, H) = s(W a + b) of the static
    attributes a. NeuralHydrology's rows are in another order: f, o, g.
    """
    f, o = torch.sigmoid(x.f + r.f), torch.sigmoid(x.o + r.o)
    g = torch.tanh(x.g + r.g)
    c = f * s.c + u.i * g
    return o * torch.tanh(c), c


def rate(s):
    return torch.relu(s.v)


@cell(inputs="v", recurrent="v", states="v", constants={"alpha": 0.1}, operand=rate, output=rate)
def leaky_rnn(x, r, s, alpha):
    """v' = (1 - alpha) v + alpha (x.v + r.v);  r = W_hh relu(v) + b_hh;  y = relu(v')

    Continuous-time units by Euler's method, alpha = dt / tau: H. F. Song, G. R. Yang, X.-J. Wang (2016), Training
    excitatory-inhibitory recurrent neural networks for cognitive tasks. Constant: alpha, 0.1. Noise is added to the
    input.
    """
    return s.v + alpha * (x.v + r.v - s.v)


@cell(inputs="f1 f2 a b", recurrent="f1 f2 a b", step_inputs="ts:1")
def cfc(x, r, u):
    """t = s((x.a + r.a) ts + x.b + r.b);  h' = (1 - t) tanh(x.f1 + r.f1) + t tanh(x.f2 + r.f2)

    R. Hasani et al. (2022), Closed-form continuous-time neural networks, without backbone. Step input: the time ts
    (T, B, 1) since the step before. ``ncps``'s bias is b_ih + b_hh here.
    """
    a, b = x.a + r.a, x.b + r.b
    t = torch.sigmoid(a * u.ts + b)
    f1, f2 = torch.tanh(x.f1 + r.f1), torch.tanh(x.f2 + r.f2)
    return f1 + t * (f2 - f1)


@cell(inputs="r z n", recurrent="r z n", step_inputs="attention:1")
def augru(x, r, s, u):
    """reset, z = s(x + r);  z^ = (1 - attention) z;  n = tanh(x.n + reset r.n);  h' = n + z^ (h - n)

    G. Zhou et al. (2019), Deep interest evolution network for click-through rate prediction, as oneDNN's LBR-AUGRU has
    it. Step input: the attention (T, B, 1) that a step gets, from 0 to 1.
    """
    reset, z, q = torch.sigmoid(x.r + r.r), torch.sigmoid(x.z + r.z), r.n
    n = torch.tanh(x.n + reset * q)
    return n + (1 - u.attention) * z * (s.h - n)


spike = derivative(lambda v: (v > 0) * 1.0, lambda v, d: d / (1 + (math.pi * v) ** 2))


def spikes(s, threshold):
    return spike(s.v - threshold)


@cell(
    inputs="v", recurrent="v", states="v", constants={"beta": 0.9, "threshold": 1.0}, operand=spikes, output=spikes,
)  # fmt: skip
def lif(x, r, s, beta, threshold):
    """v' = beta v + x.v + r.v - threshold spike(v);  y = spike(v');  spike(v) = v > threshold;  r = W_hh spike(v) + b

    Leaky integrate-and-fire units that are reset by subtraction: J. Eshraghian et al. (2023), Training spiking neural
    networks using lessons from deep learning, whose snnTorch has the same surrogate derivative of a spike,
    1 / (1 + (pi (v - threshold))^2), and lets none through the reset. Constants: beta, 0.9, and threshold, 1.
    """
    return beta * s.v + x.v + r.v - threshold * spikes(s, threshold).detach()


__all__ = sorted(name for name, value in list(globals().items()) if isinstance(value, Cell))
