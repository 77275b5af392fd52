"""The tests that need a GPU, run by pytest in several processes, with what they gave.

Most of their time is compilation, on the CPU; and kernels that race show it sooner when others run beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.machine import ROOT

TESTS = ROOT / "tests" / "gpu" / "test_gpu.py"
# Without the plugins that are installed, and the options that are for them: they take seconds to load.
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=")
RACES = "every_time"  # part of the names of tests that are a step of their own
ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
TRACE = 3000  # characters of each failure's traceback that are kept
COUNTS = ("tests", "failures", "errors", "skipped")


def collected(path: Path, limit: float) -> list[str]:
    """The tests in a file; none where it skips itself."""
    command = [*PYTEST, "--collect-only", "-k", f"not {RACES}", str(path)]
    env = {**os.environ, **ENVIRONMENT}
    said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit).stdout
    prefix = f"{path.name}::"
    return [f"{path}::{line.partition('::')[2]}" for line in said.splitlines() if prefix in line.partition("[")[0]]


def summary(path: Path) -> dict:
    """Counts, and of what failed the name with the first line of why and with the traceback, from a JUnit file."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    found: dict = {name: int(suite.get(name)) for name in COUNTS} | {"failed": [], "traces": []}
    for case in suite.iter("testcase"):
        for bad in (*case.findall("failure"), *case.findall("error")):
            found["failed"].append(f"{case.get('name')}: {((bad.get('message') or '').splitlines() or [bad.tag])[0]}")
            found["traces"].append(f"{case.get('name')}:\n{(bad.text or '')[-TRACE:]}")
    return found


def run(seconds: float, processes: int, path: Path | None = None) -> dict:
    """{"tests", "failures", "errors", "skipped", "failed": [...], "exit": [...], "unfinished", "seconds"}: what had not
    ended in time is killed, and counted as unfinished."""
    start, path = time.monotonic(), path or TESTS
    try:
        names = collected(path, seconds)
    except subprocess.TimeoutExpired:
        names = []  # the file as a whole, and what is left of the time for it
    parts = [names[n::processes] for n in range(min(processes, len(names)))] or [[str(path)]]
    total: dict = {**dict.fromkeys(COUNTS, 0), "failed": [], "traces": [], "exit": [], "unfinished": 0}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{n}.xml" for n in range(len(parts))]
        running = [
            subprocess.Popen(
                [*PYTEST, *part, f"--junitxml={file}"], cwd=ROOT, env={**os.environ, **ENVIRONMENT},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for part, file in zip(parts, files, strict=True)
        ]  # fmt: skip
        for part, file, process in zip(parts, files, running, strict=True):
            try:
                total["exit"].append(process.wait(max(1.0, start + seconds - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                total["exit"].append(None)
            if not file.exists():
                total["unfinished"] += len(part)
                continue
            found = summary(file)
            total = total | {name: total[name] + found[name] for name in (*COUNTS, "failed", "traces")}
    return total | {"seconds": time.monotonic() - start}
