"""The benchmark of cells of one's own: its loops are right, and it writes its table."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from common import error
from pairwise import ALL

import rnnkernels
from benchmarks import cells, tables
from benchmarks.providers import Unsupported
from benchmarks.providers.cell_loop import loop_of
from benchmarks.providers.cell_sides import MODULES, SIDES, CellCase, sides_of

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")


def small(name):
    row = next(r for r in cells.ROWS if r.cell == name)
    return replace(row, T=4, B=3, I=6 * row.I // row.H if row.streamed else 5, H=6)


@pytest.mark.parametrize("name", cells.LIBRARY)
@pytest.mark.parametrize("bias", [True, False])
def test_loops_are_the_layers(name, bias):
    row = small(name)
    case = CellCase(row, "train")
    layer = rnnkernels.Recurrent(getattr(rnnkernels.cells, name), row.I, row.H, bias=bias)
    x, inputs = case.x, case.inputs
    loop, arguments = loop_of(layer, x, inputs)
    expected = layer(x, **inputs)[0]
    assert torch.allclose(loop(*arguments), expected, atol=1e-5)
    leaves = list(layer.parameters())
    grads = [torch.autograd.grad(y.sum(), leaves, allow_unused=True) for y in (loop(*arguments), expected)]
    for a, b in zip(*grads, strict=True):
        assert (a is None and not b.any()) or torch.allclose(a, b, atol=1e-4)


NAMES = list(dict.fromkeys(r.cell for r in cells.ROWS))
MODES = ("train", "infer")


@pytest.mark.parametrize(
    "name, modes",
    [(name, MODES if ALL or name in MODULES else MODES[n % 2 :][:1]) for n, name in enumerate(NAMES)],
)
def test_other_sides_give_the_same(name, modes):
    for mode in modes:
        case = CellCase(small(name), mode)
        for side in [s for s in ("jax", "built in", "public") if s in sides_of(name, [])]:
            with warnings.catch_warnings(), torch.set_grad_enabled(mode == "train"):
                warnings.simplefilter("ignore")  # of packages that are imported
                try:
                    job = SIDES[side](case)
                except Unsupported:
                    continue  # not installed
                ours = SIDES["rnnkernels"](case)
                found, expected = job.read(job.run()), ours.read(ours.run())
            assert set(found) == set(expected)
            for key in expected:
                assert error(found[key], expected[key]) < 1e-4, (side, mode, key)


def test_quick(tmp_path, capsys):
    out = tmp_path / "cells"
    assert cells.main(["--quick", "--only", "min_gru_given", "--out", str(out)]) == 0
    results = json.loads(out.with_suffix(".json").read_text())
    assert {row["mode"] for row in results["rows"]} == {"infer", "train"}
    assert {"rnnkernels", "loop", "torch.jit"} <= set(results["rows"][0]["times"])
    assert all(row["share"] > 0 for row in results["rows"]) or "reason" in results["roofs"]
    text = out.with_suffix(".md").read_text()
    assert "| min_gru_given, T 3, B 2, I 16, H 8 |" in text and "Not measured: own_lstm, T 100" in text
    with pytest.raises(SystemExit):
        cells.main(["--only", "nothing"])


def bent(case, kinds):
    """Our y, one per cent larger in some dtypes: in float32 alone, that is what rounding may do to relu units."""
    y = case.layer(case.x)[0]
    return y * (1.01 if y.dtype in kinds else 1)


def test_what_differs_or_breaks_costs_its_own_cell(monkeypatch):
    row = small("li_gru")
    monkeypatch.setitem(SIDES, "loop", lambda case: case.job(lambda: case.layer(case.x)[0] + 1))
    found = cells.Side("loop", row, "infer", 1).admit(None)
    assert found["red"] and "differs by" in found["reason"]
    for kinds, admitted in ((torch.float32,), True), ((torch.float32, torch.float64), False):
        monkeypatch.setitem(SIDES, "loop", lambda case, kinds=kinds: case.job(lambda: bent(case, kinds)))
        found = cells.Side("loop", row, "infer", 1).admit(None)
        assert ("red" not in found) == admitted and torch.get_default_dtype() == torch.float32
    reasons = tables.Reasons()
    fast, slow = {"seconds": 1e-3}, {"seconds": 2e-3}
    line = {"row": row.name, "source": "", "T": 4, "mode": "infer", "threads": 1, "cold_s": {"torch.compile": 90.0}}
    times = {"rnnkernels": slow, "torch.compile": fast}
    (shown,) = cells.lines([line | {"times": times, "reasons": {"loop": found}}], reasons)
    assert shown["torch.compile"] == "cold 90 s, then 0.50 slower" and shown["loop"] == "– (1)"
    assert "**cold 90 s, then 0.50 slower**" in cells.table([shown])
