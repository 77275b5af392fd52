"""The benchmark harness: it refuses what is wrong, says what it cannot run, and keeps what it has."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks import measure, memory, providers, report, run
from benchmarks.providers import Case, Job, Unsupported, module_job
from benchmarks.workloads import WORKLOADS, Workload, select

SMALL = Workload("small", "cpu", "lstm", T=5, B=3, I=4, H=6, L=2)


@pytest.fixture
def small(monkeypatch):
    """The harness with two tiny workloads in place of the real ones."""
    workloads = [SMALL, replace(SMALL, name="step", cell="gru", T=1)]
    monkeypatch.setattr(run, "select", lambda device, patterns: workloads)
    return workloads


def add_provider(monkeypatch, name, make):
    monkeypatch.setitem(providers.PROVIDERS, name, make)
    monkeypatch.setitem(providers.PACKAGES, name, "torch")


def altered(change):
    """A provider that is torch, with its named results changed."""

    def make(case):
        job = module_job(torch.nn, case)
        return Job(job.run, lambda out: change(job.read(out)))

    return make


def benchmark(tmp_path, *arguments):
    status = run.main(["--quick", "--out", str(tmp_path / "result"), *arguments])
    return status, json.loads((tmp_path / "result.json").read_text()), (tmp_path / "result.md").read_text()


def test_names_are_unique_and_select_finds_names_families_and_patterns():
    assert len({(w.device, w.name) for w in WORKLOADS}) == len(WORKLOADS)
    assert [w.name for w in select("cpu", ["wide", "stream-t*"])] == ["stream-tiny", "wide-lstm", "wide-gru"]
    assert select("cuda", ["stream-gru"]) == []
    assert len(select("cpu", [])) + len(select("cuda", [])) == len(WORKLOADS)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("extra", [{}, {"bidirectional": True}, {"alternating": True}], ids=lambda e: "".join(e))
def test_every_kind_of_module_is_right_in_both_modes(cell, extra):
    for mode in run.MODES:
        bench = measure.Bench(replace(SMALL, cell=cell, **extra), "float32", mode, ["torch", "rnnkernels"])
        assert list(bench.jobs) == ["torch", "rnnkernels"], bench.facts


@pytest.mark.parametrize("extra, word", [({"resets": 0.03}, "reset"), ({"heads": 8}, "heads")])
def test_what_the_modules_cannot_do_is_a_row_with_its_reason(extra, word):
    bench = measure.Bench(replace(SMALL, **extra), "float32", "infer", ["torch", "rnnkernels"])
    row = bench.measure_time(1, 0.0, 1)
    for name in ("torch", "rnnkernels"):
        assert name in row["providers"][name]["reason"] and word in row["providers"][name]["reason"]
        assert name in report.line(row)
    assert row["providers"]["rnnkernels"]["ratio"] is None
    assert word in report.markdown({"machine": {"cpu": "?", "command": "?"}, "rows": [row]})


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
def test_a_red_provider_is_not_timed(monkeypatch, small, tmp_path, change, word):
    add_provider(monkeypatch, "wrong", altered(change))
    status, results, text = benchmark(tmp_path, "--mode", "train", "--providers", "torch,wrong")
    assert status == 1
    wrong = results["rows"][0]["providers"]["wrong"]
    assert word in wrong["reason"] and "seconds" not in wrong and word in text
    assert "seconds" in results["rows"][0]["providers"]["torch"]


def test_torch_too_is_refused_where_it_is_wrong(monkeypatch):
    monkeypatch.setitem(providers.PROVIDERS, "torch", altered(lambda r: r | {"dx": 2 * r["dx"]}))
    bench = measure.Bench(SMALL, "float32", "train", ["torch", "rnnkernels"])
    assert list(bench.jobs) == ["rnnkernels"] and "wrong dx" in bench.facts["torch"]["reason"]


def test_a_provider_that_breaks_costs_its_own_cell_only(monkeypatch, small, tmp_path):
    def broken(case):
        raise KeyError("no such thing")

    def modest(case):
        raise Unsupported("does no such thing")

    add_provider(monkeypatch, "broken", broken)
    add_provider(monkeypatch, "modest", modest)
    status, results, _ = benchmark(tmp_path, "--providers", "broken,modest,torch")
    assert status == 1 and len(results["rows"]) == 4
    for row in results["rows"]:
        assert row["providers"]["broken"]["reason"] == "KeyError: 'no such thing'"
        assert row["providers"]["modest"] == {"reason": "does no such thing", "ratio": None}
        assert row["providers"]["torch"]["seconds"] > 0


def test_a_run_writes_every_row_with_its_machine_and_command(small, tmp_path, capsys):
    threads = torch.get_num_threads()
    status, results, text = benchmark(tmp_path, "--threads", "1,2", "--dtype", "float32,float64")
    assert status == 0 and torch.get_num_threads() == threads
    assert len(results["rows"]) == len(small) * 2 * 2 * 2
    for key in ("cpu", "cores", "torch", "rnnkernels", "backends", "commit", "date"):
        assert results["machine"][key] and f"- {key}: " in text
    assert results["machine"]["command"].startswith("python -m benchmarks.run --quick")
    for row in results["rows"]:
        ours, torchs = row["providers"]["rnnkernels"], row["providers"]["torch"]
        assert ours["ratio"] == pytest.approx(torchs["seconds"] / ours["seconds"]) and torchs["ratio"] == 1
        assert ours["seconds_25"] <= ours["seconds"] <= ours["seconds_75"] and ours["samples"] >= 3
        assert ours["error"] <= measure.FLOOR[row["dtype"]]
    printed = capsys.readouterr()
    assert "geometric mean" in printed.out and "small, float64, train, 2 threads" in printed.err


def test_a_killed_run_keeps_what_it_has(monkeypatch, small, tmp_path):
    def stops(case):
        if case.workload.name == "step":
            raise KeyboardInterrupt
        return module_job(torch.nn, case)

    add_provider(monkeypatch, "stops", stops)
    status, results, text = benchmark(tmp_path, "--providers", "stops")
    assert status == 1
    assert {row["workload"] for row in results["rows"]} == {"small"} and "small" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "result.md"]


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--threads", "0"], "not positive"),
        (["--threads", "two"], "not a number"),
        (["--only", "nothing"], "no such cpu workload"),
        (["--providers", "abacus"], "unknown 'abacus'; known: torch, rnnkernels"),
        (["--providers", ","], "empty"),
        (["--dtype", "int8"], "unknown 'int8'"),
        (["--seconds", "nan"], "not positive"),
        (["--device", "tpu"], "invalid choice"),
        (["--out", "/dev/null/x"], "--out"),
    ],
)
def test_a_bad_argument_is_one_clear_line_and_status_2(arguments, word, capsys):
    with pytest.raises(SystemExit) as exit:
        run.main(arguments)
    assert exit.value.code == 2
    assert word in capsys.readouterr().err.splitlines()[-1]


def test_a_package_that_is_not_there_is_status_2(monkeypatch, capsys):
    monkeypatch.setitem(providers.PROVIDERS, "absent", None)
    monkeypatch.setitem(providers.PACKAGES, "absent", "no_such_package")
    with pytest.raises(SystemExit) as exit:
        run.main(["--providers", "absent"])
    assert exit.value.code == 2 and "no_such_package" in capsys.readouterr().err


def test_the_runs_take_turns_and_the_order_turns_round():
    seen = []
    runs = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    clock = measure.BLOCK
    samples = measure.alternate({n: (lambda r=r: (r(), _wait(clock))) for n, r in runs.items()}, "cpu", 0.0, 4)
    assert seen == list("aabb" + "abba" * 2)
    assert all(len(values) == 4 and min(values) >= clock for values in samples.values())


def _wait(seconds):
    end = measure.time.perf_counter() + seconds
    while measure.time.perf_counter() < end:
        continue


def test_memory_of_a_call_holds_at_least_its_results():
    growth = memory.of_child(Case(replace(SMALL, T=2000, B=50, H=32), "float32", "infer"), "torch", 1)
    if growth is None:
        pytest.skip("this system has no /proc/self/clear_refs to count peak memory with")
    assert 2000 * 50 * 32 * 4 <= growth <= 2**30


def test_a_losing_shape_is_marked_and_means_are_geometric():
    def row(ratio):
        how = {"dtype": "float32", "mode": "infer", "threads": 1}
        both = {"torch": {"seconds": ratio, "ratio": 1.0}, "rnnkernels": {"seconds": 1.0, "ratio": ratio}}
        shape = {"workload": f"w{ratio}", "kind": "LSTM", "T": 7, "B": 1, "I": 1, "H": 1, "L": 1}
        return {**shape, **how, "providers": both}

    rows = [row(4.0), row(0.25), row(0.999)]
    mean, least, count = report.geometric_means(rows)["float32", "infer", 1, "rnnkernels"]
    assert mean == pytest.approx(0.999 ** (1 / 3)) and least == 0.25 and count == 3
    text = report.markdown({"machine": {"cpu": "x", "command": "y"}, "rows": rows})
    assert "| 4.00 |" in text and "| **0.25 slower** |" in text and "| **0.9990 slower** |" in text


def test_the_readme_is_filled_between_its_markers_only(small, tmp_path):
    benchmark(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    for _ in range(2):
        report.main([str(tmp_path / "result.json"), "--readme", str(readme)])
        text = readme.read_text()
        assert text.startswith(f"above\n{report.BEGIN}\n") and text.endswith(f"\n{report.END}\nbelow\n")
        assert "old" not in text and "`python -m benchmarks.run" in text and text.count("| small |") == 1
    readme.write_text("no markers")
    with pytest.raises(SystemExit) as exit:
        report.main([str(tmp_path / "result.json"), "--readme", str(readme)])
    assert exit.value.code == 2 and readme.read_text() == "no markers"
