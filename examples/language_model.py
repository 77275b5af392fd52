"""The language model of `char_lm` and `demo`, and how it writes. T time, B batch, V vocabulary, H hidden."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import rnnkernels


class OneHot(nn.Module):
    """A token as a vector of zeros and a one."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, tokens: Tensor) -> Tensor:
        return one_hot(tokens, self.vocabulary).float()


class CharLM(nn.Module):
    """Embedding (0: one-hot), recurrent layers, and a linear layer to the logits of the next token."""

    def __init__(
        self, library: ModuleType, cell: str, vocabulary: int, hidden: int, layers: int,
        embedding: int = 64, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding) if embedding else OneHot(vocabulary)
        between = dropout if layers > 1 else 0.0
        self.rnn = getattr(library, cell.upper())(embedding or vocabulary, hidden, layers, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens_TB: Tensor, state=None):
        y_TBH, state = self.rnn(self.embedding(tokens_TB), state)
        return self.head(self.dropout(y_TBH)), state


def detach(state):
    """The state without its history: gradients stop here, the memory goes on. An LSTM's state is a pair."""
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


@torch.no_grad()
def generate(model: CharLM, prompt: Tensor, temperature: float, seed: int, never: int | None = None) -> Iterator[int]:
    """Tokens without end: each is drawn from softmax(logits / temperature), and is the next input.

    Layers of rnnkernels run in a Stepper, which packs the weights once; torch.nn's are called a step at a time.
    """
    model = copy.deepcopy(model).cpu().eval()
    generator = torch.Generator().manual_seed(seed)
    stepper = rnnkernels.Stepper(model.rnn, 1) if type(model.rnn).__module__.startswith("rnnkernels") else None
    tokens, state = prompt[:, None], None
    while True:
        x_TBI = model.embedding(tokens)
        if stepper:
            y_TBH = stepper.step(x_TBI)
        else:
            y_TBH, state = model.rnn(x_TBI, state)
        logits = model.head(y_TBH[-1, 0])
        if never is not None:
            logits[never] = -math.inf
        token = torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)
        yield token.item()
        tokens = token[:, None]
