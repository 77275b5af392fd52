"""The annotations of the public API: mypy, strict, on a user's program."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed (extra typing)")
def test_a_users_program_passes_strict_mypy(tmp_path):
    """Uncached, most of its time goes into torch."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", "--cache-dir"]
    cache = ROOT / "build" / "mypy" if (ROOT / "setup.py").exists() else tmp_path
    done = subprocess.run([*command, cache, "tests/typed_consumer.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
