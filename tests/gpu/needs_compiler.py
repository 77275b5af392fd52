"""To import in a test file that compiles Triton kernels: skips it, with the reason, where they cannot be compiled."""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles kernels: needs a process without TRITON_INTERPRET=1", allow_module_level=True)
