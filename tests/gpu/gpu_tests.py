"""The tests that need a GPU, run by pytest one at a time in this process, which `benchmarks.gpu` starts again after a
hang or a fault. Most of their time is compilation, on the CPU; kernels that race show it sooner when others run too.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).with_name("test_gpu.py")
RACES = "every_time"  # part of the names of tests that are a step of their own
TRACE = 3000  # characters of each failure's traceback that are kept


class Seen:
    """A plugin of pytest, without the plugins that are installed and the options that are for them, which take seconds
    to load: the tests that it collected, and what became of those that it ran."""

    def __init__(self, *arguments: str) -> None:
        import pytest

        self.tests: list[str] = []
        self.reports: list[Any] = []
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        with contextlib.redirect_stdout(io.StringIO()):
            pytest.main(["-q", "-p", "no:cacheprovider", "-o", "addopts=", *arguments], plugins=[self])

    def pytest_collection_finish(self, session: Any) -> None:
        self.tests = [f"{item.path}::{item.nodeid.partition('::')[2]}" for item in session.items]

    def pytest_collectreport(self, report: Any) -> None:
        self.reports.append(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.reports.append(report)


def collected(path: str) -> dict:
    """The tests in a file; none where it skips itself, and itself where that fails, which says so when it is run."""
    seen = Seen("--collect-only", "-k", f"not {RACES}", path)
    return {"tests": [path] if any(report.failed for report in seen.reports) else seen.tests}


def named(test: str) -> str:
    """A test without the folder of its file."""
    file, _, name = test.partition("::")
    return f"{Path(file).name}::{name}"


def run(test: str) -> dict:
    """{"case", "seconds"}; with a "reason" and the "trace" if it failed, "skipped" if it did not run."""
    start = time.perf_counter()
    reports = Seen(test).reports
    found: dict = {"case": named(test), "skipped": any(report.skipped for report in reports)}
    if failed := [report for report in reports if report.failed]:
        crash = getattr(failed[0].longrepr, "reprcrash", None)
        lines = (crash.message if crash else failed[0].longreprtext).strip().splitlines()
        found |= {"reason": lines[0], "trace": failed[0].longreprtext[-TRACE:]}
    return found | {"seconds": time.perf_counter() - start}
