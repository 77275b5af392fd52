"""What `python -m benchmarks.gpu` is made of: budget, timers, processes, the tests that it runs, compiling ahead."""

import os
import time
from dataclasses import replace

import needs_compiler  # noqa: F401
import pytest

from benchmarks import dry, gpu, gpu_experiments, gpu_rows, gpu_smoke, gpu_tests
from benchmarks.chips import GPUS
from benchmarks.measure import Subject, event_time, wall_time
from benchmarks.providers import PROVIDERS
from benchmarks.workloads import Workload, select

SMALL = Workload("small", "cpu", "lstm", T=5, B=3, I=4, H=6, L=2)
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 tells of 3.10's default


def dies(run, calls):
    """A timer that ends its process, as a fault does."""
    os._exit(7)


def hangs(run, calls):
    time.sleep(600)


def test_a_process_that_ends_or_hangs_costs_one_answer():
    for timer, limit, word in ((dies, 60, "status 7"), (hangs, 8, "no answer in 8 s")):
        apart = gpu_rows.Apart(gpu_rows.Measuring, "cpu", None, 0.0, 3, timer)
        with pytest.raises(RuntimeError, match=word):
            apart.ask(limit, "row", SMALL, "float32", "infer", ["torch"])
        assert apart.worker is None
    apart = gpu_rows.Apart(gpu_rows.Measuring, "cpu", None, 0.0, 3, wall_time)
    assert apart.ask(60, "row", SMALL, "float32", "infer", ["torch"])["providers"]["torch"]["seconds"] > 0
    assert apart.worker is not None
    apart.close()
    assert apart.worker is None


class Fragile:
    """Runs cases that are words."""

    def run(self, case):
        if case.H == 1:
            os._exit(7)
        if case.H == 2:
            time.sleep(600)
        return {"case": case.name, "error": 0.0, "of": "y", "seconds": 0.0}


def test_a_case_that_ends_its_process_or_hangs_costs_itself():
    cases, found = [gpu_smoke.Case("LSTM", "resident", "bf16", H) for H in (1, 3, 2, 4)], []
    late = gpu_smoke.run(cases, 2, lambda: gpu_rows.Apart(Fragile), lambda: 1.0, 8, found.append)
    by_size = dict(zip((1, 2, 3, 4), sorted(found, key=lambda f: f["case"]), strict=True))
    assert late == 0 and "status 7" in by_size[1]["reason"] and "no answer in 8 s" in by_size[2]["reason"]
    assert by_size[3]["error"] == by_size[4]["error"] == 0
    assert gpu_smoke.run(cases, 2, lambda: gpu_rows.Apart(Fragile), lambda: 0.0, 8, found.append) == 4


def test_after_an_error_of_cuda_the_process_is_not_used_again():
    row = {"providers": {"torch": {"seconds": 1.0}, "rnnkernels": {"reason": "RuntimeError: CUDA error: misaligned"}}}
    assert gpu_rows.broken(row) and gpu_rows.broken({"reason": "AcceleratorError: illegal"})
    row["providers"]["rnnkernels"]["reason"] = "wrong y: error 1e-1"
    assert not gpu_rows.broken(row) and not gpu_rows.broken({"seconds": 1.0})


def test_an_explanation_that_breaks_does_not_cost_what_was_measured(monkeypatch):
    def breaks(case):
        raise ValueError("no")

    monkeypatch.setattr(gpu_rows, "schedule_of", breaks)
    row = gpu_rows.measured(SMALL, "float32", "infer", ["torch"], None, 0.0, 3, wall_time)
    assert row["schedule"] == "explain: ValueError: no" and row["providers"]["torch"]["seconds"] > 0


def test_what_a_step_leaves_of_its_time_goes_to_the_next():
    now = [100.0]
    budget = gpu.Budget(600, ["tests", "rows", "experiments"], lambda: now[0])
    shares = [gpu.SHARES[step] for step in ("tests", "rows", "experiments")]
    assert budget.left("tests") == pytest.approx(600 * shares[0] / sum(shares))
    assert budget.left("experiments") == pytest.approx(600) and sum(gpu.SHARES.values()) == pytest.approx(1)
    now[0] += 60
    assert budget.left("rows") == pytest.approx(600 * (1 - shares[2] / sum(shares)) - 60)
    only = gpu.Budget(600, ["rows"], lambda: now[0])
    assert only.left("rows") == pytest.approx(600)


def test_events_are_recorded_around_the_calls_only():
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.at = None

        def record(self):
            self.at = len(log)
            log.append("event")

        def elapsed_time(self, other):  # milliseconds
            return 2.0 * (other.at - self.at - 1)

    class Cuda:
        def synchronize(self):
            log.append("synchronize")

    Cuda.Event = Event
    seconds, busy = event_time(lambda: log.append("call"), 4, Cuda())
    assert log == ["synchronize", "event", *["call"] * 4, "event", "synchronize"]
    assert seconds == pytest.approx(0.002) and busy >= 0


def test_the_timer_goes_by_the_device_unless_it_is_given():
    def timer(run, calls):
        run()
        return 0.25, 0.5

    assert Subject(PROVIDERS["torch"], replace(SMALL, device="cuda"), "float32", "infer", 1).timer is event_time
    assert Subject(PROVIDERS["torch"], SMALL, "float32", "infer", 1).timer is wall_time
    row = gpu_rows.measured(SMALL, "float32", "train", ["torch"], GPUS["H200"], 0.0, 3, timer)
    found = row["providers"]["torch"]
    assert found["seconds"] == 0.25 and found["us_per_step"] == 0.25e6 / 10 and found["cores"] == 2
    assert found["share"] == pytest.approx(row["bound"]["seconds"] / 0.25)
    assert set(row["model"]["steps"]) == {"forward", "backward"}


def test_rows_come_in_an_order_that_may_be_cut_and_none_twice():
    workloads = select("cuda", [])
    rows = gpu_rows.ordered(workloads, gpu_rows.DTYPES, gpu_rows.MODES)
    assert len(rows) == len({(w.name, *how) for w, *how in rows}) == 6 * len(workloads)
    single = [w for w in workloads if w.T == 1]
    assert {w.name for w, *_ in rows[-6 * len(single) :]} == {w.name for w in single}
    long = len(workloads) - len(single)
    assert {w.name for w, *_ in rows[:long]} == {w.name for w in workloads if w.T > 1}


# In the order in which they are dealt to two processes: the first gets the first and the third.
TESTS = """
import time
import pytest

def test_good():
    pass

@pytest.mark.skip(reason="never")
def test_skipped():
    pass

def test_bad():
    assert 1 == 2, "one is not two"

def test_slow():
    time.sleep(600)
"""


def test_tests_run_in_processes_and_those_that_do_not_end_are_killed(tmp_path):
    path = tmp_path / "test_these.py"
    path.write_text(TESTS)
    found = gpu_tests.run(15, 2, path)
    assert (found["tests"], found["failures"], found["skipped"], found["unfinished"]) == (2, 1, 0, 2)
    assert found["exit"] == [1, None] and found["seconds"] < 100
    assert found["failed"] == ["test_bad: AssertionError: one is not two"]


def test_what_will_be_launched_is_compiled_beside_the_tests(monkeypatch):
    """The pool's work done here, for a GPU that is not there; the tests themselves are not run."""
    compiled = []
    whole = dry.launches

    def launches(*arguments, **more):
        found = whole(*arguments, **more)
        compiled.append((arguments[1], [launch.tiles.schedule for launch in found]))
        return found

    class Pool:
        def __init__(self, processes, mp_context):
            pass

        def submit(self, function, *arguments):
            future = gpu.Future()
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future

        def shutdown(self, wait, cancel_futures):
            assert cancel_futures

    monkeypatch.setattr(dry, "launches", launches)
    monkeypatch.setattr(gpu, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(gpu_tests, "run", lambda seconds, processes: {"unfinished": 0, "given": seconds})
    asked = gpu.parse(["--device", "cpu", "--quick", "--out", "x", "--only", "rl-bench", "--dtype", "bfloat16"])
    results = {"tests": None}
    gpu.run_tests(asked, results, gpu.Budget(600, asked.steps), GPUS["H200"])
    assert 0 < results["tests"]["given"] <= 600 * (gpu.SHARES["smoke"] + gpu.SHARES["tests"])
    assert [cell for cell, _ in compiled[:4]] == ["gru", "gru", "lstm", "lstm"]
    named = {name for _, names in compiled[4:] for name in names}
    assert named == set(gpu_experiments.schedules.NAMES)
