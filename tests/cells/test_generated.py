"""The C++ of the built-in cells is what their functions give."""

import importlib.util
from pathlib import Path

import pytest

GENERATOR = Path(__file__).parents[2] / "csrc" / "cells" / "generate.py"


@pytest.mark.skipif(not GENERATOR.exists(), reason="the sources of the extension are not there")
def test_make_generate_shows_no_difference():
    spec = importlib.util.spec_from_file_location("generate", GENERATOR)
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.TARGET.read_text(encoding="utf-8") == generate.generated()
