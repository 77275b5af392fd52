"""The benchmark of cells of one's own: its loops are right, and it writes its table."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from pairwise import ALL

import rnnkernels
from benchmarks import cells, measure, report, run
from benchmarks.measure import Subject, Truth, truth_of
from benchmarks.providers import PROVIDERS, Case, Provider, own_cells
from benchmarks.providers.loops import loop_of
from benchmarks.rows import head
from benchmarks.workloads import by_cell
from benchmarks.workloads import cells as workloads

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")
SMALL = [replace(w, T=4, B=3, I=6 * w.I // w.H if w.streamed else 5, H=6) for w in workloads()]
LIBRARY = [w for w in SMALL if hasattr(rnnkernels.cells, w.cell) and w.source == "the shape of all"]


def small(name):
    return next(w for w in SMALL if w.cell == name)


@pytest.mark.parametrize("w", LIBRARY, ids=lambda w: w.cell)
@pytest.mark.parametrize("bias", [True, False])
def test_loops_are_the_layers(w, bias):
    case = Case(w, "float32", "train")
    layer = rnnkernels.Recurrent(getattr(rnnkernels.cells, w.cell), w.I, w.H, bias=bias)
    leaves = list(layer.parameters())
    expected, found = layer(case.x, **case.inputs)[0], loop_of(layer, case)(case.x)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    grads = [torch.autograd.grad(y.sum(), leaves, allow_unused=True) for y in (found, expected)]
    for a, b in zip(*grads, strict=True):
        assert (a is None and not b.any()) or torch.allclose(a, b, atol=1e-4)


NAMES = list(dict.fromkeys(w.cell for w in SMALL))
MODES = ("train", "infer")


@pytest.mark.parametrize(
    "name, modes",
    [(name, MODES if ALL or name in own_cells.MODULES else MODES[n % 2 :][:1]) for n, name in enumerate(NAMES)],
)
def test_other_sides_give_the_same(name, modes):
    for mode in modes:
        case = small(name), "float32", mode
        truth = truth_of(Case(*case))
        for side in [side for side in by_cell(case[0]) if side in ("rnnkernels", "jax", "built_in", "public")]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of packages that are imported
                facts = Subject(PROVIDERS[side], *case, 1).admit(truth)
            assert facts.get("error", 1) < 1e-4 or "No module named" in facts["reason"], (side, mode, facts)


def test_quick(tmp_path, capsys):
    out = tmp_path / "cells"
    assert cells.main(["--quick", "--only", "min_gru_given", "--out", str(out)]) == 0
    results = json.loads(out.with_suffix(".json").read_text())
    assert {row["mode"] for row in results["rows"]} == {"infer", "train"}
    found = results["rows"][0]["providers"]
    assert all("seconds" in found[name] for name in ("rnnkernels", "loop", "torch_script"))
    assert all(row["providers"]["rnnkernels"]["share"] for row in results["rows"]) or "reason" in results["roofs"]
    text = out.with_suffix(".md").read_text()
    assert "| min_gru_given, T 3, B 2, I 16, H 8 |" in text and "Not measured: own_lstm, T 100" in text
    with pytest.raises(SystemExit):
        cells.main(["--only", "nothing"])


def test_loops_are_compiled_where_it_is_asked_for():
    asked = run.parse(["--compile", "gru", "--only", "gru,lstm", "--quick"], "cells")
    assert [(w.cell, "torch_compile" in run.beside(w, asked)) for w in asked.workloads] == [
        ("gru", True), ("lstm", False),
    ]  # fmt: skip


def bent(case, by, dtypes=("float32", "float64")):
    """Our y, larger by a part in some dtypes: in float32 alone, that is what rounding may do to units of relu."""
    by = by if case.dtype in dtypes else 0
    job = PROVIDERS["rnnkernels"].job(case)
    return job._replace(read=lambda out: {name: t * (1 + by) for name, t in job.read(out).items()})


def test_what_differs_or_breaks_costs_its_own_cell():
    """As much as a change in the last digit makes is right, and a hundred times that is not."""
    case = replace(small("li_gru"), T=60), "float32", "infer"
    truth = truth_of(Case(*case))
    assert 0 < truth.known["y"] < 1e-3
    for by, right in ((0.0, True), (max(1e-3, 100 * truth.known["y"]), False)):
        facts = Subject(Provider(lambda c, by=by: bent(c, by), "torch"), *case, 1).admit(truth)
        assert ("red" not in facts) == right and (right or "wrong y" in facts["reason"])
    facts = Subject(Provider(lambda c: bent(c, 0.01, ("float32",)), "torch"), *case, 1).admit(truth)
    assert "red" not in facts and facts["error"] > 5e-3


def test_spikes_are_counted_over_the_first_steps():
    spikes = (torch.rand(measure.SPIKES, 50, 60) < 0.3).float()
    y, truth = torch.cat([spikes, 1 - spikes]), Truth({"spikes": spikes}, {})
    assert measure.check({"y": y}, truth, "float32") == {"error": 0.0}
    y[0, :5] = 1 - y[0, :5]
    assert measure.check({"y": y}, truth, "float32")["red"]


def test_a_peer_with_weights_of_its_own_is_checked_with_them(monkeypatch):
    def other(case):
        with torch.no_grad():
            for p in case.module.parameters():
                p.mul_(-1)
        return PROVIDERS["loop"].job(case)

    case = small("gru_d"), "float32", "train"
    truth = truth_of(Case(*case))
    for weights in (False, True):
        facts = Subject(Provider(other, "torch", weights=weights), *case, 1).admit(truth)
        assert ("red" in facts) != weights, facts


def test_a_line_of_the_table():
    row = head(small("li_gru"), "float32", "infer", 1)
    facts = {"rnnkernels": {"seconds": 2e-3}, "torch_compile": {"seconds": 1e-3, "cold": 90.0}}
    row["providers"] = facts | {"loop": {"reason": "wrong y", "red": True}, "jax": {"seconds": 4e-3, "cold": 1.0}}
    shown = report.cells(row, [], {})
    assert (
        shown["torch.compile"] == "cold 90 s, then 0.50 slower" and shown["loop"] == "– (1)" and shown["jax"] == "2.00"
    )
    assert "**cold 90 s, then 0.50 slower**" in report.table([shown])
