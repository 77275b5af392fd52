"""CUDA graphs without a GPU, for tests: a recording is played by calling its function again on the same memory."""

from types import SimpleNamespace

import torch

from rnnkernels.backends.triton import graphs

MEMORY = 1 << 20


class Event:
    waited = 0

    def record(self, stream):
        pass

    def synchronize(self):
        Event.waited += 1


class Stream:
    def wait_event(self, event):
        pass


def install(monkeypatch):
    """Let graphs.py record on the CPU; gives the list of the functions that it records. The cache starts empty."""
    found = []

    def record(function, arguments, device):
        own = graphs.mapped(torch.clone, arguments)
        result = function(*own)
        found.append(function)

        def play():
            for memory, new in zip(graphs.tensors_of(result), graphs.tensors_of(function(*own)), strict=True):
                memory.copy_(new)

        inputs = graphs.tensors_of(own)
        return graphs.Recording(SimpleNamespace(replay=play), inputs, result, Event(), graphs.size_of([inputs, result]))

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "on_gpu", lambda device: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    properties = SimpleNamespace(total_memory=MEMORY / graphs.MOST_MEMORY)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    graphs.clear()
    Event.waited = 0
    return found
