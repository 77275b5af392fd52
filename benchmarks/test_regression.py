"""A few workloads under pytest-benchmark, to catch a slower commit (the full comparison is `python -m benchmarks.run`).

pytest benchmarks/test_regression.py --benchmark-enable --benchmark-autosave      # then, after a change:
pytest benchmarks/test_regression.py --benchmark-enable --benchmark-compare --benchmark-compare-fail=median:10%
"""

import pytest
import torch

from benchmarks.measure import Subject, truth_of
from benchmarks.providers import PROVIDERS, Case
from benchmarks.workloads import WORKLOADS

NAMES = ("stream-gru", "elman-T200", "tiny-bi", "char-rnn", "sentiment")


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_workload(benchmark, name, mode):
    workload = next(w for w in WORKLOADS if w.name == name and w.device == "cpu")
    subject = Subject(PROVIDERS["rnnkernels"], workload, workload.dtype, mode, torch.get_num_threads())
    assert "reason" not in subject.admit(truth_of(Case(workload, workload.dtype, mode)))
    with torch.inference_mode(mode == "infer"):
        benchmark(subject.job.run)
