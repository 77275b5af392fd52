"""`python -m benchmarks.variants`: all sides compute the same with the same masks, and what is slow or wrong shows."""

import json
from dataclasses import replace

import pytest
import torch
from benchmark_children import facts_of
from common import refused
from pairwise import ALL

from benchmarks import cli, run, variants, worker
from benchmarks.measure import FLOOR, Subject, errors, result_of, truth_of
from benchmarks.providers import PROVIDERS, Case, Job, Provider, Unsupported
from benchmarks.providers.case import masks
from benchmarks.providers.ours import ours, reference_job
from benchmarks.rows import Rows
from benchmarks.workloads import VARIANTS, Workload
from benchmarks.workloads import variants as variants_of

SMALL = Workload("small", "cpu", "lstm", T=7, B=5, I=4, H=6)
CELLS = ("rnn", "lstm", "gru")
CASES = [
    (replace(SMALL, cell=cell, **{**changes, **({"resets": 0.3} if name == "reset" else {})}), dtype, mode)
    for n, (name, changes) in enumerate({"plain": {}, **VARIANTS}.items())
    for k, cell in enumerate(CELLS)
    if (cell == "gru" if name == "reset_after=False" else ALL or k == n % 3)
    for mode, dtype in (("train", "float32"), ("infer" if cell == "lstm" else "train", "float64"))
]


@pytest.mark.parametrize("name", run.BESIDE)
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


def variants_asked(*arguments):
    return run.parse(list(arguments), "variants")


def test_variants_are_workloads_on_the_cpu_and_nothing_is_planned_twice():
    found = variants_of(list(VARIANTS))
    assert list(dict.fromkeys(w.name for w in found)) == [
        "guide-bench-rnn", "guide-bench-gru", "guide-bench-lstm", "imdb", "legged", "rl-bench-gru", "rl-bench-lstm",
    ]  # fmt: skip
    for w in found:
        plain = w.plain
        assert w.device == "cpu" and w != plain and not (plain.resets or plain.packed or plain.options or plain.variant)
    plan = run.planned(variants_asked("--threads", "1"), [])
    assert len(plan) == len({task[:3] for task in plan}) == 2 * (5 * 7 + 2) + 7
    groups = [(w.plain, mode) for w, _, mode, _ in plan]
    assert sum(a != b for a, b in zip(groups, groups[1:], strict=False)) == len(set(groups)) - 1  # each in one piece


def test_the_other_benchmarks_do_not_measure_the_loop_unless_asked():
    assert not {"torch_script", "keras"} & set(run.parse(["--list"]).providers)
    assert run.parse(["--list", "--providers", "torch_script"]).providers == ["torch_script"]


TINY = [replace(SMALL, name="tiny", cell="gru", variant=name, **changes) for name, changes in VARIANTS.items()]


def test_a_run_writes_rows_beside_the_plain_layer(monkeypatch, tmp_path, capfd):
    asked = ["zoneout", "recompute"]
    monkeypatch.setattr(run, "variants", lambda names: TINY)
    monkeypatch.setattr(run, "BESIDE", ("rnnkernels",))
    arguments = ["--quick", "--mode", "train", "--variants", ",".join(asked), "--out", str(tmp_path / "v")]
    status = variants.main(arguments)
    results, text = json.loads((tmp_path / "v.json").read_text()), (tmp_path / "v.md").read_text()
    assert status == 0 and [(r["variant"], r["mode"]) for r in results["rows"]] == [(name, "train") for name in asked]
    for row in results["rows"]:
        mine = row["providers"]["rnnkernels"]
        assert row["over_plain"] == pytest.approx(mine["seconds"] / row["plain"]["seconds"]) and mine["samples"] >= 3
        assert row["schedule"].split(":")[0] in ("cpp", "reference")
        assert bool(row["masks"]) == (row["variant"] == "zoneout")
        assert ("peak_bytes" in row["plain"]) == ("peak_bytes" in mine) == (row["variant"] == "recompute")
    assert text.count("| tiny | GRU |") == len(results["rows"]) and "python -m benchmarks.variants --quick" in text
    assert "tiny, zoneout, float32, train, 1 thread: rnnkernels" in capfd.readouterr().err


def test_what_does_not_fit_into_the_time_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "variants", lambda names: TINY)
    monkeypatch.setattr(run, "schedule_of", lambda case: "")
    monkeypatch.setattr(Rows, "measure", lambda self, *given: {"providers": {}})
    monkeypatch.setattr(cli.report, "write", lambda results, out, with_plots=False: [out])
    monkeypatch.setattr(cli.report, "line", lambda row: "a row")
    monkeypatch.setattr(cli.report, "terminal", lambda rows: f"{len(rows)} rows")
    clock = iter([0.0, 0.0, 0.0, 100.0])
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(clock))
    asked = ["--seconds", "10", "--variants", "reset,zoneout", "--mode", "infer", "--out", str(tmp_path / "v")]
    assert variants.main(asked) == 1
    printed = capsys.readouterr().out
    assert "1 rows" in printed and "out of time: tiny, zoneout, infer" in printed


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--only", "nothing"], "no such workload; there are guide-bench-rnn"),
        (["--variants", "abacus"], "unknown 'abacus'"),
        (["--only", "imdb", "--variants", "reset_after=False"], "with a GRU"),
        (["--variants", "recompute", "--mode", "infer"], "recompute for training"),
        (["--threads", "0"], "not a positive number"),
        (["--seconds", "inf"], "not positive"),
    ],
)
def test_a_bad_argument_is_one_clear_line_and_status_2(arguments, word, capsys):
    assert word in refused(variants.main, arguments, capsys)
