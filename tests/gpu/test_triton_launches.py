"""The launches of a call and how they get into CUDA graphs, without a GPU: a stub of torch.cuda, tensors that have no
memory, and kernels that are noted and not compiled.

That a graph computes the right thing needs a GPU (test_gpu.py); the cache of graphs is tested in test_triton_graphs.py.
"""

import inspect
from contextlib import contextmanager
from types import SimpleNamespace

import needs_compiler  # noqa: F401
import pytest
import torch
import triton_offline
from generated_cases import CELLS
from triton.runtime.jit import JITFunction
from triton_offline import ARCHS

from rnnkernels.backends.triton import graphs, schedules

T = 3
LAUNCH = ["launch"] * T
RECORDED = [
    "side waits for current", "enter side", *LAUNCH, "begin thread_local", *LAUNCH, "end", "leave side",
    "current waits for side", "event on current",
]  # fmt: skip
REPLAYED = ["current waits for event", "replay", "event on current"]


class Stub:
    """torch.cuda's streams, events and graphs: each call is a line of ``log``, and each launch one of ``launches``."""

    def __init__(self):
        self.log, self.launches, self.capturing, self.fails_in_graphs = [], [], False, False
        self.current, self.CUDAGraph = self.Stream(name="current"), lambda: Graph(self)

    def Stream(self, device=None, name="side"):
        return SimpleNamespace(
            name=name, wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.log.append(f"{name} waits for event"),
        )  # fmt: skip

    def Event(self):
        return SimpleNamespace(record=lambda stream: self.log.append(f"event on {stream.name}"), synchronize=list)

    @contextmanager
    def stream(self, stream):
        self.log.append(f"enter {stream.name}")
        yield
        self.log.append(f"leave {stream.name}")

    def current_stream(self, device):
        return self.current

    def is_current_stream_capturing(self):
        return self.capturing

    def get_device_properties(self, device):
        return SimpleNamespace(total_memory=1 << 36)

    def launch(self, kernel, *args, grid, warmup, **options):
        if self.fails_in_graphs and self.capturing:
            raise RuntimeError("out of resources")
        self.log.append("launch")
        self.launches.append(SimpleNamespace(name=kernel.fn.__name__, grid=grid, **options))

    def taken(self):
        """The lines since the last call."""
        lines, self.log = self.log, []
        return lines


class Graph:
    def __init__(self, stub):
        self.stub = stub

    def capture_begin(self, capture_error_mode):
        self.stub.log.append(f"begin {capture_error_mode}")
        self.stub.capturing = True

    def capture_end(self):
        self.stub.log.append("end")
        self.stub.capturing = False

    def replay(self):
        self.stub.log.append("replay")


@pytest.fixture
def stub(monkeypatch):
    found = Stub()
    for name, _ in inspect.getmembers(Stub, inspect.isfunction):
        if hasattr(torch.cuda, name):
            monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", found.CUDAGraph)
    monkeypatch.setattr(graphs, "on_gpu", lambda device: True)
    monkeypatch.setattr(schedules, "chip_of", lambda device: ARCHS["sm_90"].chip)
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *args, **options: found.launch(kernel, *args, **options))
    graphs.clear()
    yield found
    graphs.clear()


def forward(cell="lstm", schedule="stepwise", train=False, **more):
    """Both passes with ``train``; gives nothing: tensors have no values."""
    call = triton_offline.call_of(cell, torch.bfloat16, T, 4, 40, **more)
    with schedules.force(schedule):
        y, last, saved = triton_offline.launch.layer(*call, train)
        if train:
            needs = [True, True, True, True]
            triton_offline.launch.layer_backward(torch.empty_like(y), last, None, *call, y, saved, needs)


def test_a_launch_per_step_is_recorded_at_the_second_call_and_then_replayed(stub):
    """On a stream of its own that waits for the caller's, and which that waits for; launches of no other thread are
    caught. A replay waits for the one before, whose memory it uses."""
    forward()
    assert stub.taken() == LAUNCH
    forward()
    assert stub.taken() == RECORDED + REPLAYED
    for _ in range(2):
        forward()
        assert stub.taken() == REPLAYED


def test_both_passes_are_recorded(stub):
    for _ in range(3):
        forward(train=True)
    each = [["scan_forward"] * T, ["scan_backward"] * T]  # a first call, and one before it is recorded
    assert [launch.name for launch in stub.launches] == each[0] + each[1] + 2 * each[0] + 2 * each[1]
    assert stub.taken() == 2 * LAUNCH + 2 * (RECORDED + REPLAYED) + 2 * REPLAYED


@pytest.mark.parametrize("schedule", ["resident", "cooperative"])
def test_one_launch_needs_no_graph(stub, schedule):
    """Only programs that wait for each other are launched so that all of them run at once."""
    for _ in range(3):
        forward(schedule=schedule, train=True)
    assert stub.taken() == ["launch"] * 6
    assert {launch.launch_cooperative_grid for launch in stub.launches} == {schedule == "cooperative"}


@pytest.mark.parametrize("schedule, launches", [("stepwise", T), ("resident", 1), ("cooperative", 1)])
def test_launches_go_into_the_graph_that_the_caller_records(stub, schedule, launches):
    """Nothing is recorded or replayed within it, and what was recorded before is not used."""
    for _ in range(2):
        forward(schedule=schedule)
    stub.taken()
    stub.capturing = True
    for _ in range(2):
        forward(schedule=schedule)
        assert stub.taken() == ["launch"] * launches
    stub.capturing = False
    forward(schedule=schedule)
    assert stub.taken() == (REPLAYED if schedule == "stepwise" else ["launch"])


def test_a_launch_that_fails_while_recording_ends_the_recording(stub):
    """A warning has the launch's own error; from then on the launches go one by one."""
    forward()
    stub.taken()
    stub.fails_in_graphs = True
    with pytest.warns(UserWarning, match="no CUDA graph of a layer's steps.*: out of resources"):
        forward()
    taken = stub.taken()
    assert "end" in taken and not stub.capturing and taken[-T:] == LAUNCH
    stub.fails_in_graphs = False
    forward()
    assert stub.taken() == LAUNCH


PHASES = {  # of the launches of a step, forward and backward
    ("lstm", False): ([0], [0]), ("lstm", True): ([1, 2, 3], [1, 2]),
    ("gru", True): ([1, 2], [0]), ("gru_reset_before", False): ([1, 2], [1, 2]),
    ("gru_reset_before", True): ([1, 2, 3, 4], [1, 2]), ("peephole_lstm", True): ([1, 2], [0]),
}  # fmt: skip


@pytest.mark.parametrize("cell, norm", PHASES)
def test_launches_of_a_step(stub, cell, norm):
    """Each ends where programs need each other's results; one program has them, and those that wait for each other
    need no second launch."""
    text, stages = CELLS["peephole_lstm"].text if cell == "peephole_lstm" else cell, ("layer_norm",) if norm else ()
    forward(text, train=True, stages=stages)
    ahead, back = PHASES[cell, norm]
    assert [launch.PHASE for launch in stub.launches] == ahead * T + back * T
    for schedule in ("resident", "cooperative"):
        stub.launches.clear()
        forward(text, schedule, train=True, stages=stages)
        assert [launch.PHASE for launch in stub.launches] == [0, 0]


def test_programs_share_what_they_sum(stub):
    """The buffers of layer norms: a number for each program, and barriers for each batch tile, of zeros."""
    forward(schedule="cooperative", train=True, stages=("layer_norm",), reverse=(False, True))
    ahead, back = stub.launches
    programs = ahead.grid[1]
    assert programs > 1 and ahead.parts.shape == (2, 2, 4, 2, programs) and ahead.counters.shape == (2, 1)
    assert back.parts.shape == (2, 2, 2, 4, 2, back.PARTS) and back.PARTS == back.grid[1]
    assert back.spread.shape == (2, 1, 40) and back.along.shape == (2, T, 4, 1, 40)
