"""The benchmark of cells of one's own: its loops are right, and it writes its table."""

import json

import pytest
import torch

import rnnkernels
from benchmarks import cells
from benchmarks.providers.cell_loop import loop_of

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")


@pytest.mark.parametrize("name", cells.LIBRARY)
@pytest.mark.parametrize("bias", [True, False])
def test_loops_are_the_layers(name, bias):
    row = cells.Row(name, 4, 3, 5, 6, "")
    torch.manual_seed(0)
    layer = rnnkernels.Recurrent(getattr(rnnkernels.cells, name), row.I, row.H, bias=bias)
    x, inputs = torch.randn(row.T, row.B, row.I), cells.inputs_of(row, layer)
    loop, arguments = loop_of(layer, x, inputs)
    expected = layer(x, **inputs)[0]
    assert torch.allclose(loop(*arguments), expected, atol=1e-5)
    leaves = list(layer.parameters())
    grads = [torch.autograd.grad(y.sum(), leaves, allow_unused=True) for y in (loop(*arguments), expected)]
    for a, b in zip(*grads, strict=True):
        assert (a is None and not b.any()) or torch.allclose(a, b, atol=1e-4)


def test_quick(tmp_path, capsys):
    out = tmp_path / "cells"
    assert cells.main(["--quick", "--only", "li_gru", "--out", str(out)]) == 0
    results = json.loads(out.with_suffix(".json").read_text())
    assert {row["mode"] for row in results["rows"]} == {"infer", "train"}
    assert "| li_gru, T 3, B 2, I 4, H 8 |" in out.with_suffix(".md").read_text()
    with pytest.raises(SystemExit):
        cells.main(["--only", "nothing"])
