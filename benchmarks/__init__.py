"""Benchmarks of rnnkernels. What compiles Triton kernels, and the cases of a GPU, belong to the tests."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parents[1] / "tests" / "gpu")
if _TESTS not in sys.path:
    sys.path.append(_TESTS)  # triton_offline.py, gpu_cases.py
