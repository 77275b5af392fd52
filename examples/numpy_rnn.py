"""A character RNN written out in NumPy, forward and backward by hand, beside the library's: the same numbers.

h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) with one-hot x_t, logits_t = W h_t + b, and the mean cross-entropy of
the next character. Back-propagation goes through the T steps of one chunk (Werbos 1990, "Backpropagation through time:
what it does and how to do it"), and gradients are clipped value by value. Then both write. Loops by hand, because they
are the lesson. T time, V vocabulary, H hidden.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

HIDDEN, STEPS, CHUNKS, RATE, CLIP, LETTERS = 100, 25, 20, 0.1, 5.0, 200  # those of the lecture

Arrays = dict[str, np.ndarray]


def forward_backward(
    weights: Arrays, x_T: np.ndarray, y_T: np.ndarray, h0: np.ndarray
) -> tuple[float, Arrays, np.ndarray]:
    """The loss, its gradients by the names of the weights (and of h0), and the last h."""
    T, V = len(x_T), len(weights["head.bias"])
    x_TV, h_TH, p_TV = np.eye(V)[x_T], np.empty((T + 1, len(h0))), np.empty((T, V))
    h_TH[-1] = h0  # so that step 0 finds it one step before
    for t in range(T):
        a = weights["rnn.weight_ih_l0"] @ x_TV[t] + weights["rnn.bias_ih_l0"]
        h_TH[t] = np.tanh(a + weights["rnn.weight_hh_l0"] @ h_TH[t - 1] + weights["rnn.bias_hh_l0"])
        logits = weights["head.weight"] @ h_TH[t] + weights["head.bias"]
        p_TV[t] = np.exp(logits - logits.max())
        p_TV[t] /= p_TV[t].sum()
    loss = -np.log(p_TV[np.arange(T), y_T]).mean()

    d = {name: np.zeros_like(value) for name, value in weights.items()}
    dh = np.zeros_like(h0)  # from the step after
    for t in reversed(range(T)):
        dlogits = p_TV[t].copy()
        dlogits[y_T[t]] -= 1
        dlogits /= T
        d["head.weight"] += np.outer(dlogits, h_TH[t])
        d["head.bias"] += dlogits
        da = (weights["head.weight"].T @ dlogits + dh) * (1 - h_TH[t] ** 2)
        d["rnn.weight_ih_l0"] += np.outer(da, x_TV[t])
        d["rnn.weight_hh_l0"] += np.outer(da, h_TH[t - 1])
        d["rnn.bias_ih_l0"] += da
        d["rnn.bias_hh_l0"] += da
        dh = weights["rnn.weight_hh_l0"].T @ da
    return float(loss), d | {"h0": dh}, h_TH[T - 1]


def sample(weights: Arrays, token: int, seeds: np.ndarray) -> list[int]:
    """Characters after `token`, each drawn from the softmax by a seed from 0 to 1, and the next input."""
    h, found = np.zeros(HIDDEN), []
    for u in seeds:
        a = weights["rnn.weight_ih_l0"][:, token] + weights["rnn.bias_ih_l0"]
        h = np.tanh(a + weights["rnn.weight_hh_l0"] @ h + weights["rnn.bias_hh_l0"])
        logits = weights["head.weight"] @ h + weights["head.bias"]
        p = np.exp(logits - logits.max())
        token = int(np.searchsorted(p.cumsum() / p.sum(), u))
        found.append(token)
    return found


class Model(nn.Module):
    """The same with the library's layer."""

    def __init__(self, library: ModuleType, vocabulary: int) -> None:
        super().__init__()
        self.rnn, self.head = library.RNN(vocabulary, HIDDEN), nn.Linear(HIDDEN, vocabulary)
        self.double()

    def forward_backward(self, x_T: np.ndarray, y_T: np.ndarray, h0: torch.Tensor):
        h0 = h0.detach().requires_grad_()
        x_TV = one_hot(torch.from_numpy(x_T), self.head.out_features).double()
        y_TH, h = self.rnn(x_TV, h0)
        loss = cross_entropy(self.head(y_TH), torch.from_numpy(y_T))
        self.zero_grad()
        loss.backward()
        gradients = {name: parameter.grad.numpy() for name, parameter in self.named_parameters()}
        return loss.item(), gradients | {"h0": h0.grad[0].numpy()}, h

    @torch.no_grad()
    def sample(self, token: int, seeds: np.ndarray) -> list[int]:
        h, found = None, []
        for u in seeds:
            x_TV = one_hot(torch.tensor([token]), self.head.out_features).double()
            y_TH, h = self.rnn(x_TV, h)
            token = int(np.searchsorted(self.head(y_TH)[0].softmax(0).cumsum(0).numpy(), u))
            found.append(token)
        return found


def compare(library: ModuleType, tokens: np.ndarray, vocabulary: int, seed: int) -> dict[str, float]:
    """Both are trained on the same chunks by plain SGD, the state carried: the largest differences, by name, and how
    many of the letters that they then write differ.

    Each goes its own way from the same weights, so differences of early steps would grow in later ones.
    """
    torch.manual_seed(seed)
    model = Model(library, vocabulary)
    weights = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    h_numpy, h_torch = np.zeros(HIDDEN), torch.zeros(1, HIDDEN, dtype=torch.float64)
    apart: dict[str, float] = {}
    for n in range(CHUNKS):
        chunk = tokens[n * STEPS : (n + 1) * STEPS + 1]
        if len(chunk) < 2:
            break
        loss, gradients, h_numpy = forward_backward(weights, chunk[:-1], chunk[1:], h_numpy)
        library_loss, library_gradients, h_torch = model.forward_backward(chunk[:-1], chunk[1:], h_torch)
        found = {"loss": abs(loss - library_loss)}
        found |= {name: float(abs(d - library_gradients[name]).max()) for name, d in gradients.items()}
        apart = {name: max(value, apart.get(name, 0.0)) for name, value in found.items()}
        with torch.no_grad():
            nn.utils.clip_grad_value_(model.parameters(), CLIP)
            for name, parameter in model.named_parameters():
                weights[name] -= RATE * np.clip(gradients[name], -CLIP, CLIP)
                parameter -= RATE * parameter.grad
    seeds = np.random.default_rng(seed).random(LETTERS)
    drawn, library_drawn = sample(weights, int(tokens[0]), seeds), model.sample(int(tokens[0]), seeds)
    return apart | {"letters": float(sum(a != b for a, b in zip(drawn, library_drawn, strict=True)))}
