"""Benchmarks of rnnkernels. What compiles Triton kernels, cases of a GPU, and cells of others belong to the tests."""

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1] / "tests"
for _folder in map(str, (_TESTS, _TESTS / "cells", _TESTS / "gpu")):  # common.py; cell_peers.py; gpu_cases.py, ...
    if _folder not in sys.path:
        sys.path.append(_folder)
