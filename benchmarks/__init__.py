"""Benchmarks of rnnkernels. What compiles Triton kernels, and the cases of a GPU, belong to the tests."""

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1] / "tests"
for _folder in map(str, (_TESTS, _TESTS / "gpu")):  # common.py; triton_offline.py, gpu_cases.py
    if _folder not in sys.path:
        sys.path.append(_folder)
