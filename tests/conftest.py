"""Fixtures of all tests. Tests run with warnings as errors; only the one about a missing extension is expected."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="rnnkernels: the C\\+\\+ extension could not be loaded")
    from rnnkernels import backends

CPU_BACKENDS = [name for name in backends.available() if name != "triton"]


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    """Runs a test once on each backend that this CPU has, forced."""
    with backends.force(request.param):
        yield request.param
