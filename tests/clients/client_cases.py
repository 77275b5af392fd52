"""What the tests of clients share: a package or the reason to skip, and a model beside its converted copy."""

import copy
import importlib
import warnings

import pytest

import rnnkernels


def package(name: str):
    """A client's module, or the test is skipped; what a client warns of when it is imported is its own affair."""
    root = name.partition(".")[0]
    pytest.importorskip(root, reason=f"{root} is not installed (pip install -e '.[clients]')", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def with_converted(model):
    """A model, and a copy of it whose recurrent layers are ours; each has its own parameters."""
    converted = rnnkernels.convert(copy.deepcopy(model))
    ours = [name for name, part in converted.named_modules() if type(part).__module__.startswith("rnnkernels")]
    assert ours, "no layer was converted"
    return model, converted
