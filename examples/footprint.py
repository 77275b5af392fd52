"""The memory of a model's forward pass and training step, in a process that does nothing else; the model of `compare`.

    python -m examples.footprint torch LSTM 64 100 cpu    # prints bytes as JSON, null where the system does not count

Resident memory of a process does not shrink reliably, so a second measurement in the same process would see less.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rnnkernels
from benchmarks import memory

INPUTS, HIDDEN, CLASSES = 50, 128, 10


class Classifier(nn.Module):
    """(B, T, 50) -> (B, 10): a recurrent layer of 128 units, and a linear layer on its last state."""

    def __init__(self, library: ModuleType, cell: str) -> None:
        super().__init__()
        self.rnn = getattr(library, cell)(INPUTS, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x_BTI: Tensor) -> Tensor:
        y_BTH, _ = self.rnn(x_BTI)
        return self.head(y_BTH[:, -1])


class Job:
    """A model with its optimiser and its data: what is timed, and whose memory is counted."""

    def __init__(self, library: ModuleType, cell: str, batch: int, steps: int, seed: int, device: str) -> None:
        torch.manual_seed(seed)
        self.model = Classifier(library, cell).to(device)
        self.x = torch.randn(batch, steps, INPUTS).to(device)
        self.y = torch.randint(CLASSES, (batch,)).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters())

    @torch.inference_mode()
    def forward(self) -> Tensor:
        return self.model(self.x)

    def train(self) -> Tensor:
        loss = cross_entropy(self.model(self.x), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def measured(library: str, cell: str, batch: int, steps: int, device: str) -> dict[str, int | None]:
    """Bytes at the peak of one call, less those before it, forward and train. Starts a process."""
    command = [sys.executable, "-m", "examples.footprint", *map(str, (library, cell, batch, steps, device))]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main(library: str, cell: str, batch: str, steps: str, device: str) -> None:
    layers = {"torch": nn, "rnnkernels": rnnkernels}[library]
    growth = memory.rss_growth if torch.device(device).type == "cpu" else memory.cuda_growth
    found = {}
    for mode in ("forward", "train"):
        getattr(Job(layers, cell, 1, 1, 0, device), mode)()  # loads libraries and starts threads
        found[mode] = growth(getattr(Job(layers, cell, int(batch), int(steps), 0, device), mode))[0]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
