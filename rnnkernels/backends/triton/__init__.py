"""The Triton backend: cells (arithmetic), loops (kernels), schedules (choice of tiles), launch (the backend)."""

import importlib.util

HAS_TRITON = importlib.util.find_spec("triton") is not None
