"""A few workloads under pytest-benchmark, to catch a slower commit (the full comparison is `python -m benchmarks.run`).

pytest benchmarks/test_regression.py --benchmark-enable --benchmark-autosave      # then, after a change:
pytest benchmarks/test_regression.py --benchmark-enable --benchmark-compare --benchmark-compare-fail=median:10%
"""

import pytest
import torch

from benchmarks.measure import Bench
from benchmarks.workloads import WORKLOADS

NAMES = ("stream-gru", "elman-T200", "tiny-bi", "char-rnn", "sentiment")


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_workload(benchmark, name, mode):
    workload = next(w for w in WORKLOADS if w.name == name and w.device == "cpu")
    bench = Bench(workload, workload.dtype, mode, ["rnnkernels"])
    assert "reason" not in bench.facts["rnnkernels"]
    with torch.inference_mode(mode == "infer"):
        benchmark(bench.jobs["rnnkernels"].run)
