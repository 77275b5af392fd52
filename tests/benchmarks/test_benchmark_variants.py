"""`python -m benchmarks.variants`: all sides compute the same with the same masks, and what is slow or wrong shows."""

import json
from dataclasses import replace

import pytest
import torch
from common import refused

from benchmarks import run, variants, variants_report, worker
from benchmarks.measure import FLOOR, Subject, errors, result_of, truth_of
from benchmarks.providers import PROVIDERS, Case, Job, Provider, Unsupported
from benchmarks.providers.case import masks
from benchmarks.providers.ours import ours, reference_job
from benchmarks.variants import VARIANTS
from benchmarks.workloads import Workload

SMALL = Workload("small", "cpu", "lstm", T=7, B=5, I=4, H=6)
CELLS = ("rnn", "lstm", "gru")
CASES = [
    (replace(SMALL, cell=cell, **{**changes, **({"resets": 0.3} if name == "reset" else {})}), dtype, mode)
    for name, changes in {"plain": {}, **VARIANTS}.items()
    for cell in CELLS
    if name != "reset_after=False" or cell == "gru"
    for mode in ("infer", "train")
    for dtype in ("float32", "float64")
]


def facts_of(name, cases):
    """What the harness finds of a provider: in the process that calls this."""
    return [Subject(PROVIDERS[name], *case, 1).admit(truth_of(Case(*case))) for case in cases]


@pytest.mark.parametrize("name", variants.PROVIDED)
def test_every_side_computes_every_variant_or_says_why_not(name):
    if PROVIDERS[name].missing():
        pytest.skip(f"{name} {PROVIDERS[name].missing()}")
    lacks = {
        "torch": ("recurrent_dropout", "zoneout", "layer_norm", "reset_after", "recompute"),
        "torch_script": ("recompute",),
        "keras": ("recurrent_dropout", "zoneout", "layer_norm", "recompute"),
    }
    for (w, dtype, mode), facts in zip(CASES, worker.call(1, facts_of, name, CASES), strict=True):
        lacking = set(lacks.get(name, ())) & set(dict(w.options)) or (
            name == "keras" and (w.resets or dtype != "float32")
        )
        if name == "torch_script" and "recurrent_dropout" in dict(w.options):
            lacking = mode == "infer"  # where it does nothing
        if lacking:
            assert facts["reason"] and not facts.get("red"), (w.kind, dtype, mode, facts)
        else:
            assert "reason" not in facts and facts["error"] < (2e-5 if dtype == "float32" else 1e-10), (w.kind, facts)


@pytest.mark.parametrize("name", ["recurrent_dropout", "zoneout"])
def test_other_masks_are_noticed(name):
    """What a check with the same masks is worth: other masks fail it, and the masks are not trivial."""
    w = replace(SMALL, T=9, **VARIANTS[name])

    def other(case):
        job = ours(case)

        def run():
            torch.manual_seed(99)
            return job.run()

        return Job(run, job.read)

    case = w, "float32", "train"
    facts = Subject(Provider(other, "torch"), *case, 1).admit(truth_of(Case(*case)))
    assert facts["red"] and "wrong y" in facts["reason"]
    h_mask, zone = masks(w, True, torch.empty(0))
    drawn = h_mask if name == "recurrent_dropout" else zone[0]
    assert drawn.unique().numel() == 2 and masks(w, False, torch.empty(0))[0] is None


def test_a_variant_without_its_effect_is_red():
    """Each is checked at sizes at which a provider that ignores it is wrong."""

    def plain(case):
        return ours(Case(replace(SMALL, cell=case.workload.cell), case.dtype, case.mode))

    for name in [n for n in VARIANTS if n != "recompute"]:  # which changes no number
        w = replace(SMALL, cell="gru", T=40, **VARIANTS[name])
        facts = Subject(Provider(plain, "torch"), w, "float32", "train", 1).admit(truth_of(Case(w, "float32", "train")))
        assert facts["red"] and "wrong" in facts["reason"], w.kind


def test_where_the_function_magnifies_rounding_the_last_digit_says_how_much_is_right():
    """A layer-normed LSTM makes 5e-4 of 1e-7 in 100 steps; weights with three digits are still found out."""
    w = replace(SMALL, T=100, B=8, I=32, H=64, **VARIANTS["layer_norm"])
    case = Case(w, "float32", "train")
    truth = truth_of(case)
    torchs = errors(result_of(PROVIDERS["torch_script"].job(case), "train"), truth.tensors)
    assert max(torchs.values()) > 5 * FLOOR["float32"]
    assert all(torchs[name] <= known < 0.01 for name, known in truth.known.items())
    assert "reason" not in Subject(PROVIDERS["rnnkernels"], w, "float32", "train", 1).admit(truth)

    def rounded(case):
        found = Case(case.workload, case.dtype, case.mode)
        found.module.bfloat16().float()
        return ours(found)

    facts = Subject(Provider(rounded, "torch"), w, "float32", "train", 1).admit(truth)
    assert facts["red"] and "wrong y" in facts["reason"]
    short = Case(replace(w, T=5), "float32", "train")  # nothing is magnified: torch's error alone decides
    truth = truth_of(short)
    assert truth.known == errors(result_of(PROVIDERS["torch_script"].job(short), "train"), truth.tensors)


def test_options_of_what_is_no_single_layer_are_refused():
    w = replace(SMALL, L=2, **VARIANTS["layer_norm"])
    with pytest.raises(Unsupported, match="one layer in one direction"):
        reference_job(Case(w, "float32", "infer"))
    with pytest.raises(Unsupported, match="one layer in one direction"):
        PROVIDERS["torch_script"].job(Case(replace(SMALL, bidirectional=True), "float32", "infer"))


def test_the_workloads_are_plain_on_the_cpu_and_nothing_is_planned_twice():
    found = variants.bases()
    names = [w.name for w in found]
    assert names == [
        "guide-bench-rnn", "guide-bench-gru", "guide-bench-lstm", "imdb", "legged", "rl-bench-gru", "rl-bench-lstm",
    ]  # fmt: skip
    for w in found:
        assert w.device == "cpu" and w == variants.shrunk(w) and not (w.resets or w.packed or w.options)
    plan = variants.planned(found, list(VARIANTS), ("infer", "train"))
    tasks = [(task.workload, task.mode) for tasks in plan.values() for task in tasks]
    assert len(tasks) == len(set(tasks)) == 2 * (5 * 7 + 2) + 7 and not any(task in plan for task in tasks)


def test_the_other_benchmarks_do_not_measure_the_loop_unless_asked():
    assert not {"torch_script", "keras"} & set(run.parse(["--list"]).providers)
    assert run.parse(["--list", "--providers", "torch_script"]).providers == ["torch_script"]


def test_a_run_writes_rows_and_targets(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(variants, "bases", lambda: [replace(SMALL, name="tiny", cell="gru")])
    status = variants.main(["--quick", "--out", str(tmp_path / "v")])
    results, text = json.loads((tmp_path / "v.json").read_text()), (tmp_path / "v.md").read_text()
    assert status == 0 and [(r["variant"], r["mode"]) for r in results["rows"]] == [
        (name, mode) for mode in ("infer", "train") for name in VARIANTS if (name, mode) != ("recompute", "infer")
    ]
    for row in results["rows"]:
        mine = row["providers"]["rnnkernels"]
        assert row["over_plain"] == pytest.approx(mine["seconds"] / row["plain"]["seconds"]) and mine["samples"] >= 3
        assert row["schedule"].split(":")[0] in ("cpp", "reference")
        drawn = row["mode"] == "train" and row["variant"] in ("recurrent_dropout", "zoneout")
        assert bool(row["masks"]) == drawn and ("seconds" in row["providers"]["torch"]) == (
            row["variant"] in ("reset", "lengths")
        )
        assert f"| {row['variant']} |" in text
    (both,) = [row for row in results["rows"] if row["variant"] == "recompute"]
    assert both["plain"]["peak_bytes"] > 0 and both["providers"]["rnnkernels"]["peak_bytes"] > 0
    assert "| tiny | GRU | T 7, B 5, 4→6 |" in text  # and their quotient
    assert text.count("| tiny |") == len(results["rows"]) + 1 and "python -m benchmarks.variants --quick" in text
    assert ("no module named 'keras'" in text) == ("keras" in results["absent"])
    printed = capfd.readouterr()
    assert "reset, train: ≥ 3 x as fast as split and pad" in printed.out and "tiny, zoneout, train (" in printed.err


def row(variant, over_plain, **times):
    """A row with our time at 1 s."""
    providers = {name: {"seconds": value} for name, value in times.items()}
    ours = {"seconds": 1.0} if over_plain else {"reason": "wrong y", "red": True}
    extra = {"workload": "w", "mode": "infer", "over_plain": over_plain}
    return {"variant": variant, "providers": {"rnnkernels": ours, **providers}, **extra}


@pytest.mark.parametrize(
    "given, good",
    [
        (row("reset", 1.1, torch=3.0), [True, True]),
        (row("reset", 1.11, torch=2.9), [False, False]),
        (row("lengths", 1.0, torch=0.5, torch_script=1.0), [True]),  # no target beside packing
        (row("zoneout", 1.2, torch_script=5.0), [False, True]),
        (row("layer_norm", 1.4, torch_script=4.9), [True, False]),
        (row("reset_after=False", 1.41), [False]),
        (row("zoneout", None, torch_script=9.0), [False]),  # a wrong result of ours is a miss
        (row("recompute", 1.5), []),  # for memory
    ],
)
def test_targets(given, good):
    assert [r.good for r in variants_report.targets([given])] == good


def test_what_does_not_fit_into_the_time_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(variants, "bases", lambda: [replace(SMALL, name="tiny")])
    asked = ["--seconds", "1e-9", "--variants", "reset,zoneout", "--mode", "infer", "--out", str(tmp_path / "v")]
    assert variants.main(asked) == 1  # nothing was measured
    clock = iter([0.0, 0.0, *[100.0] * 1000])
    monkeypatch.setattr(variants.time, "perf_counter", lambda: next(clock))
    asked[1] = "10"
    assert variants.main(asked) == 1
    assert "Out of time: tiny, zoneout, infer." in (tmp_path / "v.md").read_text()
    assert "out of time: tiny, zoneout, infer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--only", "nothing"], "no such workload; there are guide-bench-rnn"),
        (["--variants", "abacus"], "unknown 'abacus'"),
        (["--only", "imdb", "--variants", "reset_after=False"], "with a GRU"),
        (["--variants", "recompute", "--mode", "infer"], "recompute for training"),
        (["--threads", "0"], "cores"),
        (["--seconds", "inf"], "not positive"),
    ],
)
def test_a_bad_argument_is_one_clear_line_and_status_2(arguments, word, capsys):
    assert word in refused(variants.main, arguments, capsys)
