"""`python -m benchmarks.gpu` without a GPU: tiny sizes on the CPU, stand-ins for the clock and for CUDA events."""

import json
import os
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles kernels: needs a process without TRITON_INTERPRET=1", allow_module_level=True)

from benchmarks import dry, gpu, gpu_experiments, gpu_report, gpu_rows, gpu_targets, gpu_tests, measure
from benchmarks.chips import GPUS
from benchmarks.measure import Subject, event_time, wall_time
from benchmarks.providers import PROVIDERS, Provider
from benchmarks.rows import derive
from benchmarks.workloads import Workload, select

SMALL = Workload("small", "cpu", "lstm", T=5, B=3, I=4, H=6, L=2)
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 tells of 3.10's default
QUICK = ["--device", "cpu", "--quick", "--providers", "torch,rnnkernels"]


def dies(run, calls):
    """A timer that ends its process, as a fault does."""
    os._exit(7)


def hangs(run, calls):
    time.sleep(600)


def benchmark(tmp_path, *arguments, timer=wall_time):
    """In this process, so that what is replaced here is replaced there; without a timer in one of its own."""
    status = gpu.main([*QUICK, "--out", str(tmp_path / "gpu"), *arguments], timer=timer)
    return status, json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()


def test_every_kind_of_workload_is_measured_and_written(tmp_path, capsys):
    calls = []

    def timer(run, count):
        calls.append(count)
        return wall_time(run, count)

    arguments = ["--only", "amp,legged,packed,dreamer,bonito,unmix", "--steps", "rows,experiments"]
    status, results, text = benchmark(tmp_path, *arguments, "--dtype", "float32", timer=timer)
    assert status == 0 and len(calls) > 50 and results["cut"] == []
    names = ["legged", "bonito", "unmix", "dreamer", "packed", "amp"]
    assert [(row["workload"], row["mode"]) for row in results["rows"]] == [
        (name, mode) for mode in gpu_rows.MODES for name in names
    ]
    for row in results["rows"]:
        for name in ("torch", "rnnkernels"):
            found = row["providers"][name]
            assert found["error"] < 2e-5 and found["samples"] >= 3 and "peak_bytes" in found
            assert found["us_per_step"] == pytest.approx(1e6 * found["seconds"] / (row["T"] * row["L"]))
        assert row["schedule"].split(":")[0] in ("cpp", "reference") and f"| {row['workload']} |" in text
    for words in (
        "12 of 12 rows",
        "## Targets",
        "the wall clock",
        "float32 in RNNs",
        "## Schedules forced",
        "Not run.",
    ):
        assert words in text
    assert {r["schedule"] for r in results["experiments"]} == set(gpu_experiments.schedules.NAMES)
    assert len(results["lines"]) == len(gpu_experiments.schedules.NAMES)
    assert "a CUDA graph needs a GPU" in text
    assert "ratio" in capsys.readouterr().out or "slower" in text or "| 1." in text


def test_all_is_measured_in_a_process_of_its_own_unless_a_timer_is_given(tmp_path):
    arguments = ["--only", "amp", "--dtype", "bfloat16", "--steps", "rows,experiments", "--mode", "infer"]
    status, results, _ = benchmark(tmp_path, *arguments, timer=None)
    assert status == 0 and results["rows"][0]["providers"]["rnnkernels"]["seconds"] > 0 and results["lines"]


def test_a_process_that_ends_or_hangs_costs_one_answer():
    for timer, limit, word in ((dies, 60, "status 7"), (hangs, 8, "no answer in 8 s")):
        apart = gpu_rows.Apart("cpu", ["torch"], None, 0.0, 3, timer)
        with pytest.raises(RuntimeError, match=word):
            apart.ask(limit, "row", SMALL, "float32", "infer")
        assert apart.worker is None
    apart = gpu_rows.Apart("cpu", ["torch"], None, 0.0, 3, wall_time)
    assert apart.ask(60, "row", SMALL, "float32", "infer")["providers"]["torch"]["seconds"] > 0
    assert apart.worker is not None
    apart.close()
    assert apart.worker is None


def test_after_an_error_of_cuda_the_process_is_not_used_again():
    row = {"providers": {"torch": {"seconds": 1.0}, "rnnkernels": {"reason": "RuntimeError: CUDA error: misaligned"}}}
    assert gpu_rows.broken(row) and gpu_rows.broken({"reason": "AcceleratorError: illegal"})
    row["providers"]["rnnkernels"]["reason"] = "wrong y: error 1e-1"
    assert not gpu_rows.broken(row) and not gpu_rows.broken({"seconds": 1.0})


def test_a_run_out_of_time_says_so_and_is_resumed(tmp_path, capsys):
    arguments = ["--only", "amp,camels", "--dtype", "bfloat16", "--steps", "rows", "--mode", "infer"]
    status, results, text = benchmark(tmp_path, *arguments, "--minutes", "0")
    assert results["rows"] == [] and results["cut"] == ["2 rows"] and "Out of time: 2 rows" in text
    status, results, _ = benchmark(tmp_path, *arguments, "--only", "amp")
    assert status == 0 and [row["workload"] for row in results["rows"]] == ["amp"]
    first = results["rows"][0]
    status, results, text = benchmark(tmp_path, *arguments, "--resume")
    assert [row["workload"] for row in results["rows"]] == ["amp", "camels"] and results["rows"][0] == first
    assert results["cut"] == [] and " && " in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu.machine, "commit", lambda: "0000000")
        assert gpu.main([*QUICK, *arguments, "--out", str(tmp_path / "gpu"), "--resume"]) == 2
    assert "another commit" in capsys.readouterr().err


def test_what_breaks_costs_its_own_cell_or_row(tmp_path, monkeypatch):
    def wrong(case):
        job = measure.module_job(torch.nn, case)
        return job._replace(read=lambda out: {name: t + 1 for name, t in job.read(out).items()})

    monkeypatch.setitem(PROVIDERS, "torch_compile", Provider(wrong, "torch", ("cpu", "cuda")))
    whole = gpu_rows.truth_of

    def out_of_memory(case):
        if case.workload.name == "camels":
            raise torch.OutOfMemoryError("no memory\nand more")
        return whole(case)

    monkeypatch.setattr(gpu_rows, "truth_of", out_of_memory)
    arguments = ["--only", "amp,camels", "--dtype", "float32", "--steps", "rows", "--mode", "train"]
    status, results, text = benchmark(tmp_path, *arguments, "--providers", "torch_compile,rnnkernels")
    camels, amp = results["rows"]
    assert status == 1 and camels["reason"] == "OutOfMemoryError: no memory" and camels["providers"] == {}
    assert amp["providers"]["torch_compile"]["red"] and "seconds" in amp["providers"]["rnnkernels"]
    monkeypatch.setattr(gpu_rows, "truth_of", whole)
    _, again, _ = benchmark(tmp_path, *arguments, "--providers", "torch_compile,rnnkernels", "--resume")
    assert [r["workload"] for r in again["rows"]] == ["amp", "camels"] and again["rows"][0] == amp
    assert "seconds" in again["rows"][1]["providers"]["rnnkernels"]
    assert "torch_compile: wrong y" in text and "- camels, float32, train: OutOfMemoryError: no memory" in text


def test_a_stopped_run_keeps_what_it_has(tmp_path, monkeypatch):
    whole = gpu_rows.measured

    def stopped(w, *arguments):
        if w.name == "camels":
            raise KeyboardInterrupt
        return whole(w, *arguments)

    monkeypatch.setattr(gpu_rows, "measured", stopped)
    status, results, _ = benchmark(tmp_path, "--only", "unmix,camels", "--dtype", "float32", "--steps", "rows")
    assert status == 1 and [row["workload"] for row in results["rows"]] == ["unmix"]


def test_an_experiment_that_hangs_costs_itself(tmp_path, monkeypatch):
    whole = gpu_rows.Here.ask

    def ask(self, limit, method, *given):
        if method == "experiment" and given[1] == "cooperative":
            raise RuntimeError("no answer in 150 s")
        return whole(self, limit, method, *given)

    monkeypatch.setattr(gpu_rows.Here, "ask", ask)
    status, results, text = benchmark(tmp_path, "--steps", "experiments")
    assert {"resident", "stepwise"} == {line["schedule"] for line in results["lines"]}
    assert "- cooperative, H 8, B 2: no answer in 150 s" in text and len(results["experiments"]) == 12
    assert status == 0


def test_an_explanation_that_breaks_does_not_cost_what_was_measured(monkeypatch):
    def breaks(case):
        raise ValueError("no")

    monkeypatch.setattr(gpu_rows, "schedule_of", breaks)
    row = gpu_rows.measured(SMALL, "float32", "infer", ["torch"], None, 0.0, 3, wall_time)
    assert row["schedule"] == "explain: ValueError: no" and row["providers"]["torch"]["seconds"] > 0


def test_what_a_step_leaves_of_its_time_goes_to_the_next():
    now = [100.0]
    budget = gpu.Budget(600, ["tests", "rows", "experiments"], lambda: now[0])
    assert budget.left("tests") == pytest.approx(210) and budget.left("experiments") == pytest.approx(600)
    now[0] += 60
    assert budget.left("tests") == pytest.approx(150) and budget.left("rows") == pytest.approx(450)
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


def test_where_there_is_no_gpu_the_tests_skip_themselves(tmp_path, monkeypatch):
    path = tmp_path / "test_these.py"
    path.write_text("import pytest\npytest.skip('no GPU', allow_module_level=True)\n")
    monkeypatch.setattr(gpu_tests, "TESTS", path)
    status, results, text = benchmark(tmp_path, "--steps", "tests")
    assert status == 0 and results["tests"]["exit"] == [5] and "1 tests in" in text


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
    asked = gpu.parse([*QUICK, "--out", "x", "--only", "rl-bench", "--dtype", "bfloat16"])
    results = {"tests": None}
    gpu.run_tests(asked, results, gpu.Budget(600, asked.steps), GPUS["H200"])
    assert 0 < results["tests"]["given"] <= 210
    assert [cell for cell, _ in compiled[:4]] == ["gru", "gru", "lstm", "lstm"]
    named = {name for _, names in compiled[4:] for name in names}
    assert named == set(gpu_experiments.schedules.NAMES)


def row(name="w", kind="LSTM", dtype="bfloat16", mode="infer", ours=1.0, torch=2.0, H=256, B=16, L=1, **peers):
    found = {"rnnkernels": {"seconds": ours}, "torch": {"seconds": torch}}
    found |= {peer: {"seconds": seconds} for peer, seconds in peers.items()}
    shape = {"workload": name, "kind": kind, "source": "", "T": 7, "B": B, "I": 1, "H": H, "L": L, "device": "cuda"}
    return derive({**shape, "dtype": dtype, "mode": mode, "threads": 1, "providers": found})


def test_every_row_belongs_to_one_target():
    special, wide, persistent, rest = gpu_targets.CATEGORIES
    of = gpu_targets.category
    assert of(row(kind="LSTM, 3% resets", dtype="float16")) == of(row(kind="GRU, packed", H=64)) == special
    assert (
        of(row()) == of(row(dtype="float32")) == of(row(kind="LSTM bi")) == of(row(kind="GRU", dtype="float16")) == wide
    )
    assert of(row(dtype="float16")) == of(row(dtype="float16", H=1024, B=8)) == persistent
    for no in ({"H": 1152}, {"H": 200}, {"B": 3}, {"L": 2}, {"kind": "LSTM bi"}, {"kind": "LSTM alternating"}):
        assert of(row(**{"dtype": "float16", **no})) == rest
    assert of(row(H=192)) == of(row(kind="GRU", H=64, dtype="float16")) == of(row(kind="RNN")) == rest


def test_targets_are_reached_or_missed():
    rows = [
        row("resets", "GRU, 3% resets", torch=4.0, torchrl_triton=1.9),
        row("wide", torch=1.6), row("wide", torch=1.4, dtype="float32"),
        row("fp16", dtype="float16", torch=0.95), row("small", H=64, torch=1.0), row("small", H=64, mode="train"),
    ]  # fmt: skip
    rows[5]["providers"]["rnnkernels"]["peak_bytes"] = 50
    rows[5]["providers"]["torch"]["peak_bytes"], rows[5]["providers"]["torchrl_triton"] = 50, {"peak_bytes": 60}
    said = {r.target: (r.good, r.value) for r in gpu_targets.reached(rows)}
    assert said["resets and packed rows: forward ≥ 2.0 x the best peer"] == (
        False, "1.90 (resets, bfloat16); 0 of 1 workloads"
    )  # fmt: skip
    assert not said["LSTM in bf16 and fp32, and any GRU, with H > 192: forward ≥ 1.5 x cuDNN"][0]
    assert said["LSTM in fp16 at cuDNN's persistent shapes: forward ≥ 0.9 x cuDNN"][0]
    assert said["everything else: forward ≥ 1.0 x cuDNN"][0]
    assert said["training memory ≤ 1.0 x cuDNN's"][0] and not said["training memory ≤ 0.6 x TorchRL's Triton"][0]
    assert len(said) == 7 and any("**missed**" in line for line in gpu_targets.lines(rows))


def test_lines_and_crossovers_of_the_experiments():
    def result(schedule, purpose, us, H=512, B=16, T=1):
        return {
            "schedule": schedule,
            "purpose": purpose,
            "H": H,
            "B": B,
            "T": T,
            "seconds": us * T / 1e6,
            "us_per_step": us,
        }

    results = [result("stepwise", "crossover", 3.0), result("resident", "crossover", 2.0)]
    results += [result("stepwise", "crossover", 3.0, B=64), {"purpose": "crossover", "reason": "too large"}]
    found = gpu_experiments.crossovers(results)
    assert [(r["B"], r["fastest"]) for r in found] == [(16, "resident"), (64, "stepwise")]
    scaling = [result("stepwise", "scaling", 0, T=T) | {"seconds": (20 + 3.5 * T) / 1e6} for T in (10, 100, 1000)]
    (line,) = gpu_experiments.lines_through(results + scaling)
    assert line["us_per_call"] == pytest.approx(20) and line["us_per_step"] == pytest.approx(3.5)
    (waited,) = gpu_experiments.with_waits([line], GPUS["H200"])
    assert waited["us_waiting"] == pytest.approx(3.5 - waited["us_model"] + 1.5, abs=1e-6)  # the model's graph node
    seen = [
        {"schedule": "stepwise", "H": 512, "B": 16, "captured": same, "purpose": "capture"} for same in (True, False)
    ]
    text = gpu_report._experiments(results[:3] + seen, [waited])
    assert "CUDA graph, the same bits" in text and "**other bits**" in text
    assert "| 512 | 16 | 3.00 | 2.00 | resident |" in text and "| stepwise | 512 | 16 | 20.00 | 3.50 |" in text


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
    with pytest.raises(SystemExit) as exit:
        gpu.main(arguments)
    assert exit.value.code == 2 and word in capsys.readouterr().err.splitlines()[-1]


def test_without_a_gpu_it_says_what_to_do(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as exit:
        gpu.main([])
    assert exit.value.code == 2 and "--device cpu --quick" in capsys.readouterr().err.splitlines()[-1]
