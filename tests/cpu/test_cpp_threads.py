"""The threads of the C++ backend: whatever the threads meet with, a call ends and its results are right.

Every test runs functions of this file in a process of its own and gives them a generous time; the usual time is a
second or two, most of it for importing torch. So functions that leave nothing behind share one.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from common import assert_close
from cpp_cases import BOTH, OPS, Shape, build, in_float64
from cpp_worker import in_process
from pairwise import ALL

from rnnkernels import LSTM, RNN, backends, freeze
from rnnkernels.cells import CELLS, reference

if backends.EXTENSION_ERROR is not None:
    pytest.skip(f"the C++ extension is not there: {backends.EXTENSION_ERROR}", allow_module_level=True)

TIMEOUT = 90
MANY = [name for name, spec in CELLS.items() if spec.gates > 1]
HIDDEN = [Shape(cell, T=20, B=1, I=64, H=330) for cell in CELLS]  # split by hidden units: barriers
BATCH = [Shape(cell, T=9, B=64, I=20, H=72) for cell in CELLS]  # split by batch
TWO = [Shape(cell, T=9, B=b, I=20, H=136, reverse=BOTH, lengths="ragged") for cell in MANY for b in (2, 30)]
PROJECTED = [Shape("lstm", T=9, B=2, I=64, H=256, P=100)]
TILES = [Shape(cell, T=9, B=b, I=40, H=150) for cell in MANY for b in (17, 32)]  # split by either, with AMX
NORMED = [Shape(cell, T=7, B=20, I=20, H=136, stages="norm") for cell in CELLS]  # never split by hidden units
SHAPES = HIDDEN + BATCH + TWO + PROJECTED + TILES + NORMED
SOME = SHAPES if ALL else SHAPES[::2]  # every form, with two cells or more


class Case:
    """A call and what it has to give."""

    def __init__(self, shape):
        self.shape = shape
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.call, self.dy, self.dlast, _ = build(shape, 0)
        y, last, _ = reference.layer(*in_float64(self.call), False)
        given = in_float64([self.dy, self.dlast])
        dx, dstates, dweights, *_ = reference.layer_backward(*given, None, *in_float64(self.call), y, [], [True] * 4)
        self.expected = [y, *last, dx, *dstates, *dweights]
        torch.set_num_threads(threads)

    def run(self):
        y, last, saved = OPS.layer(*self.call, True)
        dx, dstates, dweights, *_ = OPS.layer_backward(self.dy, self.dlast, None, *self.call, y, saved, [True] * 4)
        return [y, *last, dx, *dstates, *dweights]

    def check(self, times=1):
        runs, threads = [self.run() for _ in range(times)], torch.get_num_threads()
        torch.set_num_threads(1)  # torch compares, and its own threads hang in forks
        for run in runs:
            for i, (actual, expected) in enumerate(zip(run, self.expected, strict=True)):
                assert_close(f"result {i} of {self.shape}, {threads} threads", actual, expected)
        torch.set_num_threads(threads)


def check_all(threads, times=3, shapes=SOME):
    torch.set_num_threads(threads)
    for shape in shapes:
        Case(shape).check(times)


def counts():
    cases = [Case(shape) for shape in SHAPES]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for case in cases:
            case.check(2)


def schedules():
    """The shapes above really are split as they are meant to be."""
    torch.set_num_threads(2)
    for shapes, words in ((HIDDEN, "hidden units split over 2 threads"), (BATCH, "batch split into 2 parts")):
        for s in shapes:
            text = OPS.schedule(s.cell, s.dtype, s.T, s.B, s.I, s.H, s.P or s.H, len(s.reverse), True)
            assert words in text, f"{s}: {text}"
            assert ("two products in a step" in text) == (CELLS[s.cell].phases > 1), f"{s}: {text}"
            assert "before its norms" not in text, f"{s}: {text}"
            text = OPS.schedule(s.cell, s.dtype, s.T, s.B, s.I, s.H, s.P or s.H, len(s.reverse), True, True)
            assert "a step's products before its norms and cells" in text and "hidden units split" not in text, text


def oversubscribed():
    check_all(2 * (os.cpu_count() or 1) + 1)


def one_core():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for threads in (2, 4):
        check_all(threads, times=2)


def fewer_threads_than_asked():
    """OMP_THREAD_LIMIT is set: the team gets fewer threads than it wants."""
    check_all(4)


def busy_neighbours():
    """Other processes keep every core busy, so that a member of a team is often away."""
    spin = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        check_all(2)
        check_all(4, times=1)
    finally:
        for process in spin:
            process.kill()
            process.wait()


def same_bits():
    """More threads than cores, so that one hands work over to another, differently in every run: nothing shows."""
    torch.set_num_threads(3 * (os.cpu_count() or 1))
    shapes = [Shape(cell, T=31, B=90, I=i, H=h) for cell in CELLS for i, h in ((20, 72), (300, 100), (33, 256))]
    shapes += [Shape("lstm", torch.bfloat16, 31, 90, 33, 100), Shape("lstm", T=31, B=90, I=40, H=80, P=50)]
    for shape in shapes:
        call, dy, dlast, _ = build(shape, 0)
        first = None
        for _ in range(12 if ALL else 6):
            y, last, saved = OPS.layer(*call, True)
            dx, dstates, dweights, *_ = OPS.layer_backward(dy, dlast, None, *call, y, saved, [True] * 4)
            run = [y, *last, dx, *dstates, *dweights]
            first = first or run
            for i, (actual, expected) in enumerate(zip(run, first, strict=True)):
                assert torch.equal(actual, expected), f"result {i} of {shape}"


def flushed():
    """All threads flush subnormal numbers where the one that calls does, and only there; those of float16 stay."""
    torch.set_num_threads(3)
    layer = RNN(16, 16, nonlinearity="relu", bias=False).requires_grad_(False)
    layer.weight_ih_l0.copy_(torch.eye(16)), layer.weight_hh_l0.zero_()
    for flush in (False, *[True, False] * 5):
        for dtype, small in ((torch.float32, 1e-40), (torch.float16, 1e-6)):
            x, own = torch.full((40, 90, 16), small, dtype=dtype), layer.to(dtype)
            changed = torch.set_flush_denormal(flush)
            y, _ = own(x)
            torch.set_flush_denormal(False)
            bits = y.view(torch.int32 if dtype == torch.float32 else torch.int16)
            gone = flush and changed and dtype == torch.float32
            assert not bits.any() if gone else bits.all(), f"flush={flush}, {dtype}: {int((bits != 0).sum())} are left"


def python_threads():
    """Several Python threads, each with a team of its own."""
    torch.set_num_threads(2)
    cases, failed = [Case(s) for s in SOME], []

    def work(first):
        torch.set_num_threads(2)
        try:
            for case in cases[first:] + cases[:first]:
                case.check(3)
        except AssertionError as e:
            failed.append(str(e))

    workers = [threading.Thread(target=work, args=(3 * i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed, failed[0]


def other_matrices():
    """Products of torch in bf16, which use matrix registers too, in turn with ours: neither disturbs the other."""
    torch.set_num_threads(2)
    cases, failed = [Case(s) for s in TILES], []
    bf16 = [Case(Shape("lstm", torch.bfloat16, T=9, B=64, I=64, H=96))]
    a, b = torch.randn(77, 200).bfloat16(), torch.randn(200, 150).bfloat16()
    product = a.double() @ b.double()

    def work(first):
        torch.set_num_threads(2)
        try:
            for n in range(12):
                assert_close("torch's product", a @ b, product, 4e-3)
                (cases + bf16)[(first + n) % 5].check()
                assert_close("torch's product, after ours", a @ b, product, 4e-3)
        except AssertionError as e:
            failed.append(str(e))

    work(0)
    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed, failed[0]


def fork_of(function):
    """Runs a function in a forked child; its exit status, 0 if all was well."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        function()
        os._exit(0)
    except BaseException as e:
        print(f"in the child: {e!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def fork():
    """A forked child has none of the threads that its parent used before; the parent keeps its own."""
    torch.set_num_threads(2)
    cases = [Case(s) for s in SOME]
    for case in cases:
        case.check()
    assert fork_of(lambda: [case.check(2) for case in cases]) == 0, "the child failed"
    assert fork_of(lambda: fork_of(cases[0].check) and os._exit(1)) == 0, "the grandchild failed"
    for case in cases:
        case.check()


def fork_while_packing():
    """A child whose parent packs frozen weights at that moment, in another thread, packs for itself."""
    torch.set_num_threads(2)
    x = torch.randn(4, 2, 512)

    def run():
        with torch.no_grad():
            frozen(x)

    for k in range(8):
        frozen = freeze(LSTM(512, 1024))
        packing = threading.Thread(target=run)
        packing.start()
        time.sleep(0.002 * k)  # it takes some ten milliseconds
        assert fork_of(lambda: (signal.alarm(60), run())) == 0, "the child failed, or waited for ever"
        packing.join()


def child_of_torch(module, x, expected, queue):
    queue.put((module(x)[0] - expected).abs().max().item())


def torch_multiprocessing():
    import torch.multiprocessing as multiprocessing

    torch.set_num_threads(2)
    context = multiprocessing.get_context("fork")
    module, x = LSTM(64, 512).requires_grad_(False), torch.randn(20, 1, 64)
    expected, queue = module(x)[0], context.SimpleQueue()
    children = [context.Process(target=child_of_torch, args=(module, x, expected, queue)) for _ in range(2)]
    for child in children:
        child.start()
    errors = [queue.get() for _ in children]
    for child in children:
        child.join()
    assert max(errors) < 1e-5 and not any(child.exitcode for child in children), errors


class Features(torch.utils.data.Dataset):
    """A data set that runs a layer on what it loads."""

    def __init__(self):
        self.module = LSTM(64, 512).requires_grad_(False)

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return self.module(torch.full((20, 1, 64), float(i)))[0][:, 0]


def data_loader():
    torch.set_num_threads(2)
    data = Features()
    expected = torch.stack([data[i] for i in range(len(data))])
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
    got = torch.cat([batch.clone() for batch in loader])
    assert (got - expected).abs().max() < 1e-5


def nested():
    """Inside a parallel region of OpenMP, entered as compiled code does it: every member calls the op."""
    torch.set_num_threads(2)
    cases = [Case(s) for s in SOME]
    cases[0].check()  # OpenMP is there now
    with open("/proc/self/maps") as maps:
        libraries = {line.split()[-1] for line in maps if "libgomp" in line}
    assert len(libraries) == 1, f"libgomp is loaded from {libraries}"
    gomp, done, failed = ctypes.CDLL(libraries.pop()), [], []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(_):
        assert gomp.omp_in_parallel()
        try:
            for case in cases:
                case.check(2)
        except AssertionError as e:
            failed.append(str(e))
        done.append(threading.get_ident())

    gomp.GOMP_parallel(body, None, 3, 0)
    assert not failed, failed[0]
    assert len(done) == len(set(done)) == 3


NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
NEEDS_AFFINITY = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no sched_setaffinity")
NEEDS_GOMP = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the test calls libgomp, found by /proc")


@pytest.mark.parametrize(
    "functions, variables",
    [
        ([schedules, counts, oversubscribed], {}),
        pytest.param([one_core], {}, marks=NEEDS_AFFINITY),
        ([fewer_threads_than_asked], {"OMP_THREAD_LIMIT": "2"}),
        ([fewer_threads_than_asked], {"OMP_THREAD_LIMIT": "1"}),
        ([fewer_threads_than_asked], {"OMP_DYNAMIC": "true"}),
        ([busy_neighbours], {}),
        ([same_bits, flushed, python_threads, other_matrices], {}),
        pytest.param([fork, fork_while_packing], {}, marks=NEEDS_FORK),
        pytest.param([torch_multiprocessing, data_loader], {}, marks=NEEDS_FORK),
        pytest.param([nested], {}, marks=NEEDS_GOMP),
    ],
    ids=lambda v: (
        ",".join(f.__name__ for f in v)
        if isinstance(v, list)
        else ",".join(f"{k}={n}" for k, n in v.items()) or "plain"
    ),
)
def test_ends_and_is_right(functions, variables):
    calls = [f"test_cpp_threads.{function.__name__}()" for function in functions]
    code = "; ".join(["import test_cpp_threads", *calls])
    output, trouble = in_process("-c", code, timeout=TIMEOUT * len(calls), **variables)
    assert not trouble, f"{trouble}\n{output}"


@pytest.mark.parametrize("name", ["sharing", "team", "handover"])
def test_by_itself(name, tmp_path):
    """csrc/threads/sharing.h, team.h and handover.h, with work that sleeps. It is timed: hence three tries."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    here, program = Path(__file__).parent, tmp_path / name
    include = f"-I{here.parents[1] / 'csrc' / 'threads'}"
    source = str(here / f"{name}_check.cpp")
    subprocess.run([compiler, "-std=c++17", "-O1", "-pthread", include, source, "-o", str(program)], check=True)
    tries = [subprocess.run([program], capture_output=True, text=True) for _ in range(3)]
    if all(done.returncode == 77 for done in tries):
        pytest.skip(tries[-1].stdout.strip())
    assert any(done.returncode == 0 for done in tries), [done.stdout for done in tries]
