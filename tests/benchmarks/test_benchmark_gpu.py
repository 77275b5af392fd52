"""`python -m benchmarks.gpu` without a GPU: runs at tiny sizes on the CPU, timed by the clock, and its parts."""

import json
import os
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import gpu_cases
import gpu_tests
import needs_compiler  # noqa: F401
import pytest
import torch
import triton_offline
from common import refused

from benchmarks import cli, measure, report, worker
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import experiments, tasks
from benchmarks.measure import Subject, event_time, wall_time
from benchmarks.providers import PROVIDERS, Provider
from benchmarks.workloads import Workload, select

SMALL = Workload("small", "cpu", "lstm", T=5, B=3, I=4, H=6, L=2)
QUICK = ["--device", "cpu", "--quick", "--providers", "torch,rnnkernels"]
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 tells of 3.10's default


class Here(worker.Here):
    """An object asked in this process, so that what is replaced here is replaced there; as `tasks.Apart` else."""

    def ask(self, limit, method, *given):
        return super().ask(method, *given)

    def close(self):
        """Nothing is to be ended here."""


def benchmark(tmp_path, *arguments, timer=wall_time):
    """In this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "Apart", Here)
        patch.setattr(gpu, "wall_time", timer)
        patch.setattr(gpu.os, "cpu_count", lambda: 1)
        status = gpu.main([*QUICK, "--out", str(tmp_path / "gpu"), *arguments])
    return status, json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()


def test_every_kind_of_workload_is_measured_and_written(tmp_path, capsys):
    calls = []

    def timer(run, count):
        calls.append(count)
        return wall_time(run, count)

    arguments = ["--only", "legged,packed,dreamer,bonito", "--steps", "rows,experiments"]
    status, results, text = benchmark(tmp_path, *arguments, "--dtype", "float32", timer=timer)
    assert status == 0 and len(calls) > 50 and results["cut"] == []
    names = ["legged", "bonito", "dreamer", "packed"]
    assert [(row["workload"], row["mode"]) for row in results["rows"]] == [
        (name, mode) for some in (names[:1], names[1:]) for mode in ("train", "infer") for name in some
    ]
    for row in results["rows"]:
        for name in ("torch", "rnnkernels"):
            found = row["providers"][name]
            assert found["error"] < 2e-5 and found["samples"] >= 3 and "peak_bytes" in found
            assert found["us_per_step"] == pytest.approx(1e6 * found["seconds"] / (row["T"] * row["L"]))
        assert row["schedule"].split(":")[0] in ("cpp", "reference") and f"| {row['workload']} |" in text
    for words in ("8 of 8 rows", "the wall clock", "float32 in RNNs", "## Schedules forced", "Not run."):
        assert words in text
    assert {r["schedule"] for r in results["experiments"]} == set(gpu.schedules.NAMES)
    assert len(report.lines_through(results["experiments"])) == len(gpu.schedules.NAMES)
    assert "a CUDA graph needs a GPU" in text and "legged, float32, train" in capsys.readouterr().out


def test_as_a_command_where_nothing_is_that_a_gpu_machine_may_lack(tmp_path):
    """In a process without pandas, matplotlib and rich; all is measured in a process of its own. Triton kernels are
    interpreted, generated ones and programs that wait for each other among them."""
    norm = (("layer_norm", True),)
    kinds = [("LSTM", "cooperative", norm), ("gru_d", "cooperative", ()), ("min_gru", "stepwise", ())]
    arguments = ["--steps", "smoke,rows", "--only", "amp", "--dtype", "bfloat16", "--mode", "infer"]
    script = "import runpy, sys; sys.modules |= dict.fromkeys(('pandas', 'matplotlib', 'rich', 'scipy', 'tqdm'))\n"
    script += "import benchmarks, gpu_cases\n"
    script += f"cases = [gpu_cases.Case(kind, of, 'bf16', 200, options=how) for kind, of, how in {kinds}]\n"
    script += "gpu_cases.planned = lambda schedules: cases\n"
    script += f"sys.argv[1:] = {[*QUICK, *arguments, '--out', str(tmp_path / 'gpu')]}\n"
    script += "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    root, env = cli.RESULTS.parents[1], {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results, text = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    assert results["rows"][0]["providers"]["rnnkernels"]["seconds"] > 0 and "| amp |" in text
    smoke = results["smoke"]
    assert [f["case"] for f in smoke] == [
        "LSTM cooperative bf16 T3 B2 H20, layer_norm=True", "gru_d cooperative bf16 T3 B2 H20",
        "min_gru stepwise bf16 T3 B2 H20",
    ]  # fmt: skip
    assert all(f["error"] > 0 for f in smoke[:2]) and "no recurrent product" in smoke[2]["refused"]


def test_a_run_out_of_time_says_so_and_is_resumed(tmp_path, capsys):
    arguments = ["--only", "amp,camels", "--dtype", "bfloat16", "--steps", "rows", "--mode", "infer"]
    status, results, text = benchmark(tmp_path, *arguments, "--minutes", "0")
    assert results["rows"] == [] and results["cut"] == ["2 of 2 of the step rows"] and "Out of time: 2 of 2" in text
    status, results, _ = benchmark(tmp_path, *arguments, "--only", "amp")
    assert status == 0 and [row["workload"] for row in results["rows"]] == ["amp"]
    first = results["rows"][0]
    status, results, text = benchmark(tmp_path, *arguments, "--resume")
    assert [row["workload"] for row in results["rows"]] == ["amp", "camels"] and results["rows"][0] == first
    assert results["cut"] == [] and " && " in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu.machine, "commit", lambda: "0000000")
        again = [*QUICK, *arguments, "--out", str(tmp_path / "gpu"), "--resume"]
        assert "another commit" in refused(gpu.main, again, capsys)


def test_what_breaks_costs_its_own_cell_or_row_and_is_tried_again(tmp_path, monkeypatch):
    def wrong(case):
        job = measure.module_job(torch.nn, case)
        return job._replace(read=lambda out: {name: t + 1 for name, t in job.read(out).items()})

    def out_of_memory(case):
        if case.workload.name == "camels":
            raise torch.OutOfMemoryError("no memory\nand more")
        return whole(case)

    whole = tasks.truth_of
    monkeypatch.setitem(PROVIDERS, "torch_compile", Provider(wrong, "torch", ("cpu", "cuda")))
    monkeypatch.setattr(tasks, "truth_of", out_of_memory)
    arguments = ["--only", "amp,camels", "--dtype", "float32", "--steps", "rows", "--mode", "train"]
    arguments += ["--providers", "torch_compile,rnnkernels"]
    status, results, text = benchmark(tmp_path, *arguments)
    camels, amp = results["rows"]
    assert status == 1 and camels["reason"] == "OutOfMemoryError: no memory" and camels["providers"] == {}
    assert amp["providers"]["torch_compile"]["red"] and "seconds" in amp["providers"]["rnnkernels"]
    assert "torch_compile: wrong y" in text and "- camels, float32, train: OutOfMemoryError: no memory" in text
    monkeypatch.setattr(tasks, "truth_of", whole)
    _, again, _ = benchmark(tmp_path, *arguments, "--resume")
    assert [r["workload"] for r in again["rows"]] == ["amp", "camels"] and again["rows"][0] == amp
    assert "seconds" in again["rows"][1]["providers"]["rnnkernels"]


def test_a_stopped_run_keeps_what_it_has(tmp_path, monkeypatch):
    whole = tasks.measured

    def stopped(w, *arguments):
        if w.name == "camels":
            raise KeyboardInterrupt
        return whole(w, *arguments)

    monkeypatch.setattr(tasks, "measured", stopped)
    status, results, _ = benchmark(tmp_path, "--only", "unmix,camels", "--dtype", "float32", "--steps", "rows")
    assert status == 1 and [row["workload"] for row in results["rows"]] == ["unmix", "unmix"]


def test_an_experiment_that_hangs_costs_itself(tmp_path, monkeypatch):
    whole = Here.ask

    def ask(self, limit, method, *given):
        if method == "experiment" and given[0].purpose != "barrier" and given[0].schedule == "cooperative":
            raise RuntimeError("no answer in 150 s")
        return whole(self, limit, method, *given)

    monkeypatch.setattr(Here, "ask", ask)
    status, results, text = benchmark(tmp_path, "--steps", "experiments")
    assert {"resident", "stepwise"} == {line["schedule"] for line in report.lines_through(results["experiments"])}
    assert "- cooperative, H 8, B 2: no answer in 150 s" in text and len(results["experiments"]) == 13
    assert status == 0


def test_every_case_is_tried_once_and_what_failed_again(tmp_path, monkeypatch):
    whole, broken = gpu_cases.results, ["GRU"]

    def results(module, *given):
        if type(module).__name__ in broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        found = whole(module, *given)
        if type(module).__name__ + "?" in broken and found["y"].dtype != torch.float64:
            found["y"] = found["y"] + 0.1
        return found

    monkeypatch.setattr(gpu_cases, "results", results)
    cases = [gpu_cases.Case(kind, "resident", "fp32", 8, T=3, B=2) for kind in ("LSTM", "GRU", "RNN")]
    monkeypatch.setattr(gpu_cases, "planned", lambda schedules: cases)
    status, found, text = benchmark(tmp_path, "--steps", "smoke")
    assert status == 1 and len(found["smoke"]) == 3 and "2 right, 1 wrong" in text
    bad = next(f for f in found["smoke"] if "reason" in f)
    assert bad["case"].startswith("GRU") and "illegal memory" in bad["reason"] and "Traceback" in bad["trace"]
    broken[:] = ["GRU?"]
    status, found, text = benchmark(tmp_path, "--steps", "smoke", "--resume")
    assert status == 1 and "wrong y: error" in text
    broken.clear()
    status, found, text = benchmark(tmp_path, "--steps", "smoke,races", "--resume")
    assert status == 0 and len(found["smoke"]) == 3 and "3 right, 0 wrong" in text
    assert len(found["races"]) == 10 and all(f["error"] == 0 for f in found["races"])


def test_the_first_step_has_cells_of_users_and_norms_on_every_schedule():
    cases = gpu_cases.planned(gpu.schedules.NAMES)
    for schedule in gpu.schedules.NAMES:
        of = [case for case in cases if case.schedule == schedule]
        assert {case.kind for case in of} > set(gpu_cases.OWN)
        assert {case.kind for case in of if gpu_cases.has(case, "layer_norm")} == {"LSTM", "GRU"}
    assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--device", "cpu"], "only with --quick and --out"),
        ([*QUICK, "--out", "x", "--only", "nothing"], "no such workload"),
        ([*QUICK, "--out", "x", "--providers", "torchrl_scan"], "torchrl"),
        (["--steps", "dance"], "unknown 'dance'"),
        (["--dtype", "int8"], "unknown 'int8'"),
    ],
)
def test_a_bad_argument_is_status_2(arguments, word, capsys):
    if PROVIDERS["torchrl_scan"].missing() is None and "torchrl_scan" in arguments:
        pytest.skip("torchrl is installed here")
    assert word in refused(gpu.main, arguments, capsys)


def test_without_a_gpu_it_says_what_to_do(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "--device cpu --quick" in refused(gpu.main, [], capsys)


def test_an_explanation_that_breaks_does_not_cost_what_was_measured(monkeypatch):
    def breaks(case):
        raise ValueError("no")

    monkeypatch.setattr(tasks, "schedule_of", breaks)
    row = tasks.measured(SMALL, "float32", "infer", ["torch"], 0.0, 3, wall_time)
    assert row["schedule"] == "explain: ValueError: no" and row["providers"]["torch"]["seconds"] > 0


def test_what_a_step_leaves_of_its_time_goes_to_the_next():
    now = [100.0]
    budget = gpu.Budget(600, ["tests", "rows", "experiments"], lambda: now[0])
    shares = [gpu.SHARES[step] for step in ("tests", "rows", "experiments")]
    assert budget.left("tests") == pytest.approx(600 * shares[0] / sum(shares))
    assert budget.left("experiments") == pytest.approx(600) and sum(gpu.SHARES.values()) == pytest.approx(1)
    now[0] += 60
    assert budget.left("rows") == pytest.approx(600 * (1 - shares[2] / sum(shares)) - 60)


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
    assert Subject(PROVIDERS["torch"], replace(SMALL, device="cuda"), "float32", "infer", 1).timer is event_time
    assert Subject(PROVIDERS["torch"], SMALL, "float32", "infer", 1).timer is wall_time


def test_rows_come_in_an_order_that_may_be_cut_and_none_twice():
    workloads = select("cuda", [])
    rows = tasks.ordered(workloads, tasks.DTYPES, cli.MODES)
    assert len(rows) == len({(w.name, *how) for w, *how in rows}) == 6 * len(workloads)
    single = [w for w in workloads if w.T == 1]
    assert [w for w, *_ in rows[-2 * len(single) :]] == 2 * single
    wanted = 4 * sum(w.family in tasks.FIRST for w in workloads)
    assert list(dict.fromkeys(w.family for w, *_ in rows[:wanted])) == list(tasks.FIRST)
    then = [w for w in workloads if w.family not in tasks.FIRST]
    assert [w for w, *_ in rows[wanted : wanted + len(then)]] == then and rows[wanted][1:] == ("bfloat16", "train")


def test_lines_through_the_times_over_T():
    scaling = [
        {"schedule": "stepwise", "purpose": "scaling", "H": 512, "B": 16, "T": T, "seconds": (20 + 3.5 * T) / 1e6}
        for T in (10, 100, 1000)
    ]
    (line,) = report.lines_through([*scaling, {"purpose": "scaling", "reason": "too large"}])
    assert line["µs a call"] == pytest.approx(20) and line["µs a step"] == pytest.approx(3.5)


TESTS = """
import os, pytest, time

def test_good():
    pass

@pytest.mark.skip(reason="never")
def test_skipped():
    pass

@pytest.mark.parametrize("name", ["one, two"])
def test_bad(name):
    assert 1 == 2, "one is not two"

def test_hangs():
    time.sleep(600)

def test_ends_its_process():
    os._exit(3)

def test_same_every_time():
    pass
"""


def test_tests_are_tasks_and_a_hang_or_a_fault_costs_itself(tmp_path, monkeypatch):
    path, found = tmp_path / "test_these.py", []
    path.write_text(TESTS)
    monkeypatch.setattr(gpu_tests, "TESTS", path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    plan = gpu.tests_planned(partial(Here, tasks.Measuring, "cpu", 0.0, 3, wall_time, 1), 60)
    make = partial(tasks.Apart, tasks.Measuring, "cpu", 0.0, 3, wall_time, 1)
    assert tasks.ask_all(plan, 2, make, lambda: 60.0, 20, found.append) == 0
    found = {f["case"].removeprefix("test_these.py::"): f for f in found}
    assert "reason" not in found["test_good"] and found["test_skipped"]["skipped"] and len(found) == 5
    bad = found["test_bad[one, two]"]
    assert bad["reason"] == "AssertionError: one is not two" and "assert 1 == 2" in bad["trace"]
    assert found["test_hangs"]["reason"] == "no answer in 20 s"
    assert "status 3" in found["test_ends_its_process"]["reason"]
    path.write_text("import time\ntime.sleep(600)\n")
    (task,) = gpu.tests_planned(make, 1.0)
    assert task.key == {"case": "test_these.py::"} and task.arguments == (str(path),)


def test_where_there_is_no_gpu_the_tests_skip_themselves(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # as it will be, and here not for ever

    def benchmark_of(name, text, *arguments):
        monkeypatch.setattr(gpu_tests, "TESTS", tmp_path / f"{name}.py")
        gpu_tests.TESTS.write_text(text)
        sys.modules.pop(name, None)
        return benchmark(tmp_path, "--steps", "tests", *arguments)

    status, results, text = benchmark_of("test_skips", "import pytest\npytest.skip('no', allow_module_level=True)\n")
    assert status == 0 and results["tests"] == [] and "## Tests\n\nNot run." in text
    status, results, _ = benchmark_of("test_breaks", "import no_such_module\n")
    assert status == 1 and "No module named 'no_such_module'" in results["tests"][0]["trace"]
    status, results, text = benchmark_of("test_fails", "def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    assert status == 1 and "2 tests: 1 failed, 0 skipped." in text and "test_bad: assert 1 == 2" in text
    status, results, text = benchmark_of("test_fails", "def test_good(): 1 / 0\ndef test_bad(): pass\n", "--resume")
    assert status == 0 and "2 tests: 0 failed" in text  # what failed is tried again, and nothing else


def test_what_will_be_launched_is_compiled_beside_the_tests(monkeypatch):
    """The pool's work noted here, and one of each done, for a GPU that is not there."""
    submitted = []

    class Pool:
        def __init__(self, processes, mp_context):
            pass

        def submit(self, function, *arguments):
            submitted.append((function, arguments))
            future = Future()
            future.set_result(None)
            return future

        def shutdown(self, wait, cancel_futures):
            assert cancel_futures

    monkeypatch.setattr(gpu, "ProcessPoolExecutor", Pool)
    asked = gpu.parse(["--device", "cpu", "--quick", "--out", "x", "--only", "rl-bench", "--dtype", "bfloat16"])
    asked.compile_for = triton_offline.ARCHS["sm_90"]
    with gpu.compiling_ahead(asked, gpu.Budget(600, asked.steps)):
        assert submitted
    rows = [arguments[2].cell for function, arguments in submitted if function is gpu.warm]
    forced = {arguments[1].schedule for function, arguments in submitted if function is gpu.warm_experiment}
    assert rows == ["gru", "lstm"] and forced == set(gpu.schedules.NAMES)
    compiled, whole = [], triton_offline.launches

    def launches(*arguments, **more):
        compiled.append(whole(*arguments, **more))
        return compiled[-1]

    monkeypatch.setattr(triton_offline, "launches", launches)
    gpu.warm(*submitted[0][1])
    assert [len(each) for each in compiled] == [1, 2]  # inference; forward and backward
    gpu.warm_experiment(triton_offline.ARCHS["sm_90"], experiments.Experiment("scaling", "stepwise", 8, 2, 3))
    assert compiled[-1][0].tiles.schedule == "stepwise"
