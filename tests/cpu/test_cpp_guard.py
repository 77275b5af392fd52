"""The C++ kernels read and write nothing beside tensors and working memory: a page without access lies next to them.

Tensors are checked in the processes of test_cpp.py (cpp_guard.inputs); here is the working memory, and that both bite.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_worker import WORKER, assert_passes, in_process, instruction_sets

SETS = instruction_sets()
COMPILER = shutil.which(os.environ.get("CC", "cc"))
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the tests use mprotect and LD_PRELOAD")


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    if not COMPILER or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("there is no C compiler or no glibc")
    library = tmp_path_factory.mktemp("guard") / "guard_alloc.so"
    source = Path(__file__).parent / "guard_alloc.c"
    subprocess.run([COMPILER, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return str(library)


def test_fence_bites():
    assert "exit status -11" in in_process(str(WORKER), "cpp_guard.past_the_end")[1]


def test_fence_of_working_memory_bites(guard):
    assert "exit status -11" in in_process(str(WORKER), "cpp_guard.past_the_end_of_scratch", LD_PRELOAD=guard)[1]


@pytest.mark.parametrize("isa", SETS)
def test_working_memory(isa, guard):
    assert_passes(["cpp_guard.scratch"], isa, SETS, LD_PRELOAD=guard)
