"""The four cells of RNN, LSTM and GRU: everything about them is derived from these functions.

The op knows them by name. In a layer their activations are options, and so is a layer norm of the LSTM's output: there
``act``, ``gate`` and ``norm`` are instructions of their own, which stand for what a call chooses. As cells for
:class:`rnnkernels.Recurrent` they are the standard ones. Letters of the equations as in library.py.
"""

import torch

from .definition import cell
from .parts import output_again
from .program import PLACEHOLDERS, arithmetic, parse
from .spec import ARITHMETIC, CELLS, CellSpec
from .trace import product


@cell(inputs="h", recurrent="h")
def rnn(x, r, act=torch.tanh):
    """h' = tanh(x.h + r.h)

    J. L. Elman (1990), Finding structure in time. As ``torch.nn.RNN``.
    """
    return act(x.h + r.h)


@cell(inputs="i f g o", recurrent="i f g o", states="h c", keep="i f g o")
def lstm(x, r, s, act=torch.tanh, gate=torch.sigmoid, norm=lambda c: c):
    """i, f, o = s(x + r);  g = tanh(x.g + r.g);  c' = f c + i g;  h' = o tanh(c')

    S. Hochreiter, J. Schmidhuber (1997), Long short-term memory; forget gate: F. Gers, J. Schmidhuber, F. Cummins
    (2000), Learning to forget. As ``torch.nn.LSTM``.
    """
    i, f, g, o = gate(x.i + r.i), gate(x.f + r.f), act(x.g + r.g), gate(x.o + r.o)
    c = f * s.c + i * g
    return o * act(norm(c)), c


@cell(inputs="r z n", recurrent="r z n", keep="reset z n q")
def gru(x, r, s, act=torch.tanh, gate=torch.sigmoid):
    """reset, z = s(x + r);  n = tanh(x.n + reset r.n);  h' = n + z (h - n)

    K. Cho et al. (2014), Learning phrase representations using RNN encoder-decoder, which resets before the product
    (``gru_reset_before``); this variant is cuDNN's. As ``torch.nn.GRU``.
    """
    reset, z, q = gate(x.r + r.r), gate(x.z + r.z), r.n
    n = act(x.n + reset * q)
    return n + z * (s.h - n)


@cell(inputs="r z n", recurrent="r z n", keep="reset z n")
def gru_reset_before(x, r, s, act=torch.tanh, gate=torch.sigmoid):
    """reset, z = s(x + r);  n = tanh(x.n + W_hn (reset h) + b_hn);  h' = n + z (h - n)

    K. Cho et al. (2014), Learning phrase representations using RNN encoder-decoder. As Keras's ``GRU`` with
    ``reset_after=False``.
    """
    reset, z = gate(x.r + r.r), gate(x.z + r.z)
    n = act(x.n + product("n", reset * s.h))
    return n + z * (s.h - n)


def placeholder(op):
    """A function of a cell that the call chooses."""
    return lambda v: v.trace.op(op, v)


for standard, planes, functions in (
    (rnn, (), ("act",)),
    (lstm, ("i", "f", "g", "o"), ("act", "gate", "norm")),
    (gru, ("r", "z", "n", "q"), ("act", "gate")),  # q = W_hn h + b_hn
    (gru_reset_before, ("r", "z", "n"), ("act", "gate")),
):
    text = standard.text_with(**{name: placeholder(name) for name in functions})
    name = standard.program.name
    ARITHMETIC[arithmetic(standard.program)] = standard.kernel = name
    program = parse(text, PLACEHOLDERS)
    CELLS[name] = CellSpec(program, planes, built_in=True, has_projection=output_again(program) is not None)
