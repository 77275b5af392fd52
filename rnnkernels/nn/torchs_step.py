"""One step by torch's own ops, on the CPU in eager mode, wherever they are faster than ours.

A single step in training costs a few matrix products, equal in both, and autograd's overhead: torch's nodes are C++,
ours are Python. A small step of an Elman network is nothing but the call of an op. In 16 bits our op runs: it sums in
float32.
Letters: T time, B batch, D directions, H hidden, I input, L layers, S states.
"""

import torch
from torch import _VF

from ..op.autograd import eager, wants_gradient
from ..op.schema import over_layers

STEPS = {
    ("rnn", "tanh"): _VF.rnn_tanh_cell, ("rnn", "relu"): _VF.rnn_relu_cell, ("gru", "tanh"): _VF.gru_cell,
    ("lstm", "tanh"): _VF.lstm_cell,
}  # fmt: skip
STACKS = {
    ("rnn", "tanh"): _VF.rnn_tanh, ("rnn", "relu"): _VF.rnn_relu, ("gru", "tanh"): _VF.gru,
}  # fmt: skip
"""Those of all layers at once. Not of LSTM: oneDNN computes it there, and a step takes longer than its cells."""
DTYPES = torch.float32, torch.float64
SMALL = 256
"""B * H, up to which the call of a step of an Elman network takes longer than what it computes."""
FOR_TRAINING = "autograd costs less than for one of ours"


def why_for_cell(cell, dtype, B, H, training):
    """The reason why torch's own op computes the step of a cell; None where ours does."""
    if dtype not in DTYPES:
        return None
    if training:
        return FOR_TRAINING
    return "its call costs less" if cell == "rnn" and B * H <= SMALL else None


def possible(cell, activation, dtype, T, B, H):
    """True if torch has the step of these layers, and something to compute."""
    return T == 1 and B > 0 and H > 0 and dtype in DTYPES and (cell, activation) in STEPS


def why_for_layers(facts, training):
    """The reason why torch's own ops compute the single step of layers, from the ``Facts`` of one; None where ours do.

    ``training``: a gradient is wanted in one of them.
    """
    suited = (
        training
        and not (facts.stages or facts.parts)
        and facts.recurrent_activation == "sigmoid"
        and possible(facts.cell, facts.activation, facts.dtype, facts.T, facts.B, facts.H)
    )
    return FOR_TRAINING if suited else None


def suits_layers(cell, activation, x, states, weights, LD, H):
    """``why_for_layers`` for a call without options or stages on x (T, B, I), with states of the right shape."""
    return (
        eager()
        and x.is_cpu
        and possible(cell, activation or "tanh", x.dtype, x.size(0), x.size(1), H)
        and all(s.shape == (LD, x.size(1), H) for s in states)
        and all(t.is_cpu for t in (*states, *weights))
        and wants_gradient((*weights, x, *states))
    )


def step(cell, activation, x, states, weights, H):
    """The states after a step, each (B, H), from x (B, I), the states (or none for zeros) and a direction's weights."""
    run = STEPS[cell, activation or "tanh"]
    if not states:
        states = [x.new_zeros(x.size(0), H)] * 2
    return run(x, states, *weights) if cell == "lstm" else (run(x, states[0], *weights),)


def layers(cell, activation, x, states, weights, num_layers, D, H, dropout):
    """``y, last`` of layers for x (1, B, I) in training; states and last are S tensors (L*D, B, H)."""
    if (stack := STACKS.get((cell, activation or "tanh"))) is not None:
        hx = states[0] if states else x.new_zeros(num_layers * D, x.size(1), H)
        y, h = stack(x, hx, weights, len(weights) > 2 * num_layers * D, num_layers, dropout, True, D == 2, False)
        return y, [h]

    def run(i, x, states, weights):
        x = torch.dropout(x, dropout, True) if dropout and i else x
        return layer(cell, activation, x, states, weights, D, H)

    return over_layers(run, x, states, weights, num_layers, D)


def layer(cell, activation, x, states, weights, D, H):
    """``y, last`` of one layer for x (1, B, I); states and last are S tensors (D, B, H)."""
    n, x = len(weights) // D, x.squeeze(0)
    new = [step(cell, activation, x, [s[d] for s in states], weights[d * n : (d + 1) * n], H) for d in range(D)]
    # copies: others may write into results, each of which is a tensor of its own in torch.nn too
    y = torch.cat([h for h, *_ in new], 1).unsqueeze_(0) if D > 1 else torch.stack(new[0][:1])
    return y, [torch.stack(s) for s in zip(*new, strict=True)]
