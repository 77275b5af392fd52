"""`python -m benchmarks.gpu` without a GPU: whole runs at tiny sizes on the CPU, with the clock for CUDA events."""

import json

import needs_compiler  # noqa: F401
import pytest
import torch
from common import refused

from benchmarks import gpu, gpu_experiments, gpu_rows, gpu_smoke, gpu_tests, measure
from benchmarks.measure import wall_time
from benchmarks.providers import PROVIDERS, Provider

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 tells of 3.10's default
QUICK = ["--device", "cpu", "--quick", "--providers", "torch,rnnkernels"]


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


def test_a_run_out_of_time_says_so_and_is_resumed(tmp_path, capsys):
    arguments = ["--only", "amp,camels", "--dtype", "bfloat16", "--steps", "rows", "--mode", "infer"]
    status, results, text = benchmark(tmp_path, *arguments, "--minutes", "0")
    assert results["rows"] == [] and results["cut"] == ["2 rows of the step rows"] and "Out of time: 2 rows" in text
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
        if method == "experiment" and given[:2] != ("barrier", "cooperative") and given[1] == "cooperative":
            raise RuntimeError("no answer in 150 s")
        return whole(self, limit, method, *given)

    monkeypatch.setattr(gpu_rows.Here, "ask", ask)
    status, results, text = benchmark(tmp_path, "--steps", "experiments")
    assert {"resident", "stepwise"} == {line["schedule"] for line in results["lines"]}
    assert "- cooperative, H 8, B 2: no answer in 150 s" in text and len(results["experiments"]) == 13
    assert status == 0


def test_where_there_is_no_gpu_the_tests_skip_themselves(tmp_path, monkeypatch):
    path = tmp_path / "test_these.py"
    path.write_text("import pytest\npytest.skip('no GPU', allow_module_level=True)\n")
    monkeypatch.setattr(gpu_tests, "TESTS", path)
    status, results, text = benchmark(tmp_path, "--steps", "tests")
    assert status == 0 and results["tests"]["exit"] == [5] and "1 tests in" in text


def test_every_case_is_tried_once_and_what_failed_again(tmp_path, monkeypatch):
    whole = gpu_smoke.results
    broken = ["GRU"]

    def results(module, *given):
        if type(module).__name__ in broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return whole(module, *given)

    monkeypatch.setattr(gpu_smoke, "results", results)
    cases = [gpu_smoke.Case(kind, "resident", "fp32", 8, T=3, B=2) for kind in ("LSTM", "GRU", "RNN")]
    monkeypatch.setattr(gpu_smoke, "planned", lambda schedules: cases)
    status, found, text = benchmark(tmp_path, "--steps", "smoke")
    assert status == 1 and len(found["smoke"]) == 3 and "2 right, 1 wrong" in text
    bad = next(f for f in found["smoke"] if "reason" in f)
    assert bad["case"].startswith("GRU") and "illegal memory" in bad["reason"] and "Traceback" in bad["trace"]
    broken.clear()
    status, found, text = benchmark(tmp_path, "--steps", "smoke,races", "--resume")
    assert status == 0 and len(found["smoke"]) == 3 and "3 right, 0 wrong" in text
    assert len(found["races"]) == 10 and all(f["error"] == 0 for f in found["races"])


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
