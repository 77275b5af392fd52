"""The cache of CUDA graphs, without a GPU: a recording that is played by calling the function again on its own memory.

What needs a GPU, recording itself, is in test_gpu.py.
"""

import sys
import threading
from types import SimpleNamespace
from typing import NamedTuple

import fake_graphs
import pytest
import torch

from rnnkernels.backends.triton import graphs


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    yield fake_graphs.install(monkeypatch)
    graphs.clear()


class Sizes(NamedTuple):
    scale: float
    shift: torch.Tensor


def affine(sizes, xs, absent):
    assert absent is None
    return [sizes.scale * x + sizes.shift for x in xs], sizes.shift + 1


def call(x, shift=1.0, scale=2.0, launches=9):
    shift = torch.tensor(shift)
    (y, z), s = graphs.run(affine, launches, Sizes(scale, shift), [x, -x], None)
    assert torch.equal(y, scale * x + shift) and torch.equal(z, shift - scale * x) and s == shift + 1
    return y


def test_recorded_at_the_second_call_and_replayed_from_then_on(recorded):
    results = [call(torch.arange(4.0) + n, shift=float(n)) for n in range(5)]
    assert len(recorded) == 1
    for n, y in enumerate(results):  # a later replay writes into none of the earlier results
        assert torch.equal(y, 2 * (torch.arange(4.0) + n) + n)


@pytest.mark.parametrize("other", [
    dict(x=torch.zeros(5)), dict(x=torch.zeros(4, dtype=torch.float64)), dict(x=torch.zeros(8)[::2]), dict(scale=3.0),
])  # fmt: skip
def test_another_shape_or_setting_is_another_graph(recorded, other):
    for arguments in (dict(x=torch.ones(4)), dict(x=torch.ones(4)) | other):
        for _ in range(3):
            call(**arguments)
    assert len(recorded) == 2


def test_what_is_not_worth_a_graph(recorded, monkeypatch):
    large = torch.ones(graphs.MOST_BYTES_A_LAUNCH // 4)  # with the results more than two launches are worth
    for arguments in (dict(launches=1), dict(launches=graphs.MOST_LAUNCHES + 1), dict(x=large, launches=2)):
        for _ in range(3):
            call(**(dict(x=torch.ones(4)) | arguments))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    call(torch.ones(4)), call(torch.ones(4))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv(graphs.ENVIRONMENT_VARIABLE, "0")
    call(torch.ones(4)), call(torch.ones(4))
    assert recorded == []


def test_the_longest_unused_graph_goes_first(recorded):
    for n in range(1, graphs.MOST_GRAPHS + 3):
        call(torch.ones(n)), call(torch.ones(n))
        call(torch.ones(1))  # stays, because it is used
    kept = [recording for recording in graphs._seen.values() if isinstance(recording, graphs.Recording)]
    assert len(kept) == graphs.MOST_GRAPHS and fake_graphs.Event.waited == 2
    before = len(recorded)
    call(torch.ones(1))
    assert len(recorded) == before
    call(torch.ones(2)), call(torch.ones(2))
    assert len(recorded) == before + 1


def test_graphs_hold_no_more_memory_than_their_share(recorded):
    for n in range(4):
        call(torch.ones(40_000 + n)), call(torch.ones(40_000 + n))
    kept = [recording for recording in graphs._seen.values() if isinstance(recording, graphs.Recording)]
    assert len(recorded) == 4 and 0 < sum(recording.bytes for recording in kept) <= fake_graphs.MEMORY


@pytest.mark.parametrize("before", (torch.inference_mode, torch.no_grad))
def test_graphs_serve_inside_and_outside_of_inference_mode(recorded, before):
    after = torch.no_grad if before is torch.inference_mode else torch.inference_mode
    for context in (before, before, after, before, after):
        with context():
            y = call(torch.arange(4.0))
        assert y.is_inference() == (context is torch.inference_mode)
    assert len(recorded) == 1


def test_where_no_graph_can_be_recorded_the_launches_go_one_by_one(monkeypatch):
    tried = []

    def failing(*arguments):
        tried.append(arguments)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "record", failing)
    call(torch.ones(4))
    with pytest.warns(UserWarning, match="no CUDA graph of a layer's steps, .* one by one: CUDA out of memory"):
        call(torch.ones(4))
    call(torch.ones(4)), call(torch.ones(4))
    assert len(tried) == 1


def test_none_is_recorded_while_the_graphs_of_torch_compile_are_made_ready(recorded, monkeypatch):
    manager = SimpleNamespace(in_warmup=True)
    trees = SimpleNamespace(get_manager=lambda index, create_if_none_exists: manager)
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees)
    for _ in range(3):
        call(torch.ones(4))
    assert recorded == []
    manager.in_warmup = False
    call(torch.ones(4)), call(torch.ones(4))
    assert len(recorded) == 1


def test_the_first_call_of_one_thread_holds_up_no_other(recorded):
    """It may compile for a minute."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(x):
        inside.set()
        assert go_on.wait(60)
        return x + 1

    thread = threading.Thread(target=lambda: graphs.run(slow, 9, torch.ones(3)))
    thread.start()
    assert inside.wait(60)
    call(torch.ones(4)), call(torch.ones(4))
    go_on.set()
    thread.join()
    assert len(recorded) == 1
