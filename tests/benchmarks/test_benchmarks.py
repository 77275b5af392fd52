"""The benchmark harness: it refuses what is wrong, says what it cannot run, keeps what it has, and goes on with it."""

import json
import math
import re
import subprocess
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from benchmark_children import Asked, broken, dies, dies_later, modest, twice_dx
from common import refused

from benchmarks import machine, measure, run
from benchmarks.gpu import tasks
from benchmarks.measure import Subject, truth_of
from benchmarks.providers import PROVIDERS, Case, Job, Provider, module_job
from benchmarks.rows import Rows
from benchmarks.workloads import WORKLOADS, Workload, select

SMALL = Workload("small", "cpu", "lstm", T=5, B=3, I=4, H=6, L=2)
STEP = replace(SMALL, name="step", cell="gru", T=1)


@pytest.fixture
def small(monkeypatch):
    """The harness with one tiny workload in place of the real ones, and without the probe."""
    workloads = [SMALL]
    monkeypatch.setattr(run, "select", lambda device, patterns: workloads)
    monkeypatch.setattr(run, "probe", lambda threads, seconds: {"reason": "not in this test"})
    return workloads


def add_provider(monkeypatch, name, make):
    """`make` has to be a function of benchmark_children.py: it runs in another process."""
    monkeypatch.setitem(PROVIDERS, name, Provider(make, "torch"))


def benchmark(tmp_path, *arguments):
    status = run.main(["--quick", "--out", str(tmp_path / "result"), *arguments])
    return status, json.loads((tmp_path / "result.json").read_text()), (tmp_path / "result.md").read_text()


def facts_here(workload, mode, providers):
    """What the harness finds of providers, in this process."""
    truth, how = truth_of(Case(workload, "float32", mode)), (workload, "float32", mode, torch.get_num_threads())
    return {name: Subject(PROVIDERS[name], *how).admit(truth) for name in providers}


def test_names_are_unique_and_select_finds_names_families_and_patterns():
    assert len({(w.device, w.name) for w in WORKLOADS}) == len(WORKLOADS)
    assert [w.name for w in select("cpu", ["wide", "stream-t*"])] == ["stream-tiny", "wide-lstm", "wide-gru"]
    assert select("cuda", ["stream-gru"]) == []
    assert len(select("cpu", [])) + len(select("cuda", [])) == len(WORKLOADS)


@pytest.mark.parametrize(
    "extra, word", [({"resets": 0.03}, "reset"), ({"heads": 2}, "heads"), ({"packed": True}, "len")]
)
def test_what_a_provider_cannot_do_has_a_reason(extra, word):
    facts = facts_here(replace(SMALL, T=1, L=1, **extra), "infer", ["torch_compile", "stepper", "torch"])
    assert "reason" not in facts["torch"]
    for name in ("torch_compile", "stepper"):
        assert word in facts[name]["reason"] and not facts[name].get("red")


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda r: r | {"y": r["y"] + 1e-3}, "wrong y"),
        (lambda r: r | {"dweight_hh_l1": r["dweight_hh_l1"] * 1.001}, "wrong dweight_hh_l1"),
        (lambda r: r | {"dx": r["dx"] * math.nan}, "wrong dx"),
        (lambda r: r | {"dx": r["dx"][:-1]}, "wrong dx"),
        (lambda r: {name: t for name, t in r.items() if name != "dbias_ih_l0"}, "wrong dbias_ih_l0"),
    ],
    ids=["y", "gradient", "nan", "shape", "missing"],
)
def test_a_wrong_provider_is_red(change, word):
    def altered(case):
        job = module_job(torch.nn, case)
        return Job(job.run, lambda out: change(job.read(out)))

    subject = Subject(Provider(altered, "torch"), SMALL, "float32", "train", torch.get_num_threads())
    facts = subject.admit(truth_of(Case(SMALL, "float32", "train")))
    assert facts["red"] and word in facts["reason"] and subject.job is None


def test_torch_too_is_refused_where_it_is_wrong(monkeypatch):
    add_provider(monkeypatch, "torch", twice_dx)
    facts = facts_here(SMALL, "train", ["torch", "rnnkernels"])
    assert "reason" not in facts["rnnkernels"] and "wrong dx" in facts["torch"]["reason"]


def test_what_breaks_costs_its_own_cell_only(monkeypatch, small, tmp_path):
    makers = {"dies": dies, "dies_later": dies_later}
    for name, make in makers.items():
        add_provider(monkeypatch, name, make)
    status, results, text = benchmark(tmp_path, "--providers", ",".join([*makers, "torch"]), "--mode", "train")
    assert status == 1 and len(results["rows"]) == 1
    found = results["rows"][0]["providers"]
    assert "status 7" in found["dies"]["reason"] and "status 7" in found["dies_later"]["reason"]
    for name in makers:
        assert "seconds" not in found[name] and f"{name}: {found[name]['reason']}" in text
    assert found["torch"]["seconds"] > 0


def test_an_error_is_red_and_a_refusal_is_not(monkeypatch):
    add_provider(monkeypatch, "broken", broken)
    add_provider(monkeypatch, "modest", modest)
    facts = facts_here(SMALL, "infer", ["broken", "modest"])
    assert facts["broken"] == {"reason": "KeyError: 'no such thing'", "red": True}
    assert facts["modest"] == {"reason": "does no such thing"}


def test_a_run_writes_every_row_with_its_machine_and_command(small, tmp_path, capfd):
    threads = torch.get_num_threads()
    cores = "1,2" if len(run.machine.cores(2)) == 2 else "1"
    arguments = ["--threads", cores, "--providers", "torch,rnnkernels", "--mode", "infer", "--busy"]
    status, results, text = benchmark(tmp_path, *arguments)
    assert status == 0 and torch.get_num_threads() == threads
    assert len(results["rows"]) == len(cores.split(","))
    for key in ("cpu", "cores", "torch", "rnnkernels", "backends", "commit", "date"):
        assert results["machine"][key] and f"- {key}: " in text
    assert results["machine"]["command"].startswith("python -m benchmarks.run --quick")
    for row in results["rows"]:
        ours, torchs = row["providers"]["rnnkernels"], row["providers"]["torch"]
        assert ours["ratio"] == pytest.approx(torchs["seconds"] / ours["seconds"]) and torchs["ratio"] == 1
        assert ours["ratio_best"] == ours["ratio"] and row["best_peer"] == "torch"
        assert ours["seconds_25"] <= ours["seconds"] <= ours["seconds_75"] and ours["samples"] >= 3
        assert ours["error"] <= measure.FLOOR[row["dtype"]]
        assert row["bound"]["reason"] == "not in this test" and ours["share"] is None
        assert (row["threads"] > 1) == ("busy_seconds" in ours)
    printed = capfd.readouterr()
    assert "geometric mean" in printed.out and "small, float32, infer, 1 thread" in printed.err
    assert (tmp_path / "result-ratio.png").stat().st_size > 5000


def test_a_stopped_run_keeps_what_it_has_and_is_resumed(monkeypatch, small, tmp_path, capsys):
    small.append(STEP)
    measured, whole = [], Rows.measure

    def measure(self, threads, *how):
        if self.how[0] is STEP and len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(self.how[0].name)
        return whole(self, threads, *how)

    monkeypatch.setattr(Rows, "measure", measure)
    arguments = ("--providers", "rnnkernels", "--mode", "infer")
    status, results, text = benchmark(tmp_path, *arguments)
    assert status == 1 and [row["workload"] for row in results["rows"]] == ["small"] and "small" in text
    assert not list(tmp_path.glob("*.part"))
    measured.append("again")
    status, results, _ = benchmark(tmp_path, *arguments, "--resume")
    assert status == 0 and measured == ["small", "again", "step"]
    assert [row["workload"] for row in results["rows"]] == ["small", "step"]
    again = ["--quick", "--out", str(tmp_path / "result"), "--resume"]
    assert "other providers: rnnkernels" in refused(run.main, [*again, "--providers", "torch"], capsys)
    monkeypatch.setattr(run.machine, "commit", lambda: "0000000")
    assert "another commit" in refused(run.main, [*again, *arguments], capsys)


def test_what_a_run_writes_does_not_change_the_commit_that_it_is_of(monkeypatch, tmp_path):
    def git(*command):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(("git", *who, *command), cwd=tmp_path, check=True, capture_output=True)

    source, result = tmp_path / "source.py", tmp_path / "benchmarks/results/cpu.json"
    result.parent.mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == "unknown"
    source.write_text("1"), result.write_text("1")
    git("init"), git("add", "."), git("commit", "-m", "first")
    clean = machine.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    result.write_text("2")
    assert machine.commit() == clean
    source.write_text("2")
    assert machine.commit() == f"{clean} with changes"


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--threads", "0"], "not a positive number"),
        (["--threads", "two"], "not a positive number"),
        (["--threads", "100000"], "cores"),
        (["--only", "nothing"], "no such workload; there are stream-gru"),
        (["--providers", "abacus"], "unknown 'abacus'; known: torch, torch_compile, onnxruntime"),
        (["--providers", ","], "empty"),
        (["--dtype", "int4"], "unknown 'int4'"),
        (["--dtype", "int8", "--mode", "train"], "for inference only"),
        (["--seconds", "nan"], "not positive"),
        (["--device", "tpu"], "invalid choice"),
        (["--out", "/dev/null/x"], "--out"),
        (["--resume"], "--out"),
    ],
)
def test_a_bad_argument_is_one_clear_line_and_status_2(arguments, word, capsys):
    assert word in refused(run.main, arguments, capsys)


def test_a_package_that_is_not_there_is_status_2_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setitem(PROVIDERS, "absent", Provider(broken, "no_such_package"))
    assert "no_such_package" in refused(run.main, ["--providers", "absent"], capsys)
    everyone = run.parse(["--list"]).providers
    assert "absent" not in everyone and {"torch", "rnnkernels"} <= set(everyone)
    assert "jax" not in run.parse(["--device", "cuda", "--list"]).providers


def test_the_runs_take_turns_the_order_turns_round_and_the_slow_leave_early():
    seen = []

    def taking(name, seconds):
        return lambda calls: (seen.append((name, calls)), (seconds, seconds))[1]

    fast, other, slow = 0.005, 0.01, 0.15
    runs = {"a": taking("a", fast), "b": taking("b", other), "c": taking("c", slow)}
    samples = measure.alternate(runs, 0.0, 5)
    assert "".join(name for name, _ in seen) == "abc" + "abc" + "cba" + "abc" + "ba" + "ab"
    assert {name: len(values) for name, values in samples.items()} == {"a": 5, "b": 5, "c": 3}
    seen.clear()
    measure.alternate({"short": taking("short", measure.BLOCK / 10)}, 0.0, 3)
    assert seen == [("short", 1)] + [("short", 10)] * 3
    seen.clear()
    samples = measure.alternate({"long": taking("long", measure.LONG + 1), "short": taking("short", 1)}, 9.0, 2)
    assert samples["long"] == [(measure.LONG + 1, measure.LONG + 1)] * 2 and seen.count(("long", 1)) == 2


def test_int8_is_measured_against_float64_and_refused_where_it_is_far_off():
    truth = truth_of(Case(SMALL, "int8", "infer"))
    y = truth.tensors["y"]
    assert measure.check({"y": y + 0.001}, truth, "int8") == pytest.approx(
        {"max_error": 0.001, "rms_error": 0.001, "relative_error": 0.001 / y.square().mean().sqrt().item()}
    )
    assert measure.check({"y": y * 1.2}, truth, "int8")["red"]
    assert measure.check({"y": y * math.nan}, truth, "int8")["red"]


def test_a_task_that_ends_its_process_or_hangs_costs_itself():
    plan, found = [tasks.Task({"case": n}, "case", (n,)) for n in (1, 4, 2, 5)], []
    late = tasks.ask_all(plan, 2, lambda: tasks.Apart(Asked), lambda: 1.0, 2, found.append)
    reasons = {result["case"]: result.get("reason", "") for result in found}
    assert (
        late == 0 and "status 7" in reasons[1] and "no answer in 2 s" in reasons[2] and reasons[4] == reasons[5] == ""
    )
    assert tasks.ask_all(plan, 2, lambda: tasks.Apart(Asked), lambda: 0.0, 2, found.append) == 4


def test_after_an_error_of_cuda_the_process_is_not_used_again():
    with closing(tasks.Apart(Asked)) as apart:
        assert apart.ask(60, "case", 4) == {"case": 4} and apart.worker is not None
        assert "CUDA error" in apart.ask(60, "case", 3)["reason"] and apart.worker is None
    row = {"providers": {"torch": {"seconds": 1.0}, "rnnkernels": {"reason": "AcceleratorError: illegal"}}}
    assert tasks.broken(row)
    row["providers"]["rnnkernels"]["reason"] = "wrong y: error 1e-1"
    assert not tasks.broken(row)
