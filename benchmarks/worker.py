"""Processes in which the providers run: one for each, on as many cores as threads, stopped while another is timed.

Why so. torch takes its number of threads at any time, ONNX Runtime and OpenVINO when a model is built, and XLA when JAX
starts, from the cores that the process may use. So for each row of the results each provider gets a fresh process that
is pinned to as many cores as the row has threads (the same cores for all) before the provider's library is imported.
Seen with 2000x2000 products in JAX: CPU time over wall time 1.00 pinned to one core, 1.95 to two. The same quotient of
what was timed is in the results, as "cores".

Threads that have nothing to do go on spinning: about 5 ms in torch's OpenMP, 20 ms in ONNX Runtime, as measured here.
To leave each library at its own defaults and still disturb nobody, a worker is stopped (SIGSTOP, all its threads)
whenever it is not its turn, and makes an untimed call when it comes back. A fresh process also makes peak memory a
plain measurement, and a crash the loss of one cell of the table.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import machine

LIMIT = 300  # seconds for one answer: building, checking, or a block of calls
GRACE = 2  # seconds to end by itself
# Its server imports all that workers share, and computes nothing before a fork. It does not load rnnkernels, which runs
# on one thread in a process that is forked afterwards: providers import it when they make a job.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "benchmarks.measure"])


def said(error: Exception) -> str:
    """The kind of an error and its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


class Lost(RuntimeError):
    """The process ended, or did not answer in time."""


def _enter(cores: list[int]) -> None:
    """First thing in a child: ends with its parent even when stopped, leaves Ctrl-C to it, and keeps to its cores."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _serve(connection: Connection, cores: list[int], make: Callable[..., Any], arguments: tuple) -> None:
    """Make an object, then call its methods as asked, until the other end is closed."""
    _enter(cores)
    target = None
    while True:
        try:
            method, given = connection.recv()
        except EOFError:
            return
        try:
            if method is None:
                target, answer = make(*arguments), None
            else:
                answer = getattr(target, method)(*given)
            connection.send((True, answer))
        except Exception as error:
            connection.send((False, said(error)))


class Worker(AbstractContextManager):
    """An object in a process of its own; `ask` calls its methods. `make` and what is passed must be picklable."""

    def __init__(self, cores: list[int], make: Callable[..., Any], *arguments: Any, limit: float = LIMIT) -> None:
        self.limit = limit
        self._connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, cores, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer(None)
        except BaseException:
            self.close()
            raise

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # `_answer` finds that out
            os.kill(self._process.pid, number)

    def _answer(self, method: str | None, *given: Any) -> Any:
        try:
            self._connection.send((method, given))
            if not self._connection.poll(self.limit):
                raise Lost(f"no answer in {self.limit:.0f} s")
            good, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(1)
            raise Lost(f"its process ended with status {self._process.exitcode}") from None
        if not good:
            raise RuntimeError(answer)
        return answer

    def ask(self, method: str, *given: Any) -> Any:
        """The answer; the process runs only until then. Raises RuntimeError with what the method raised."""
        self._signal(signal.SIGCONT)
        try:
            return self._answer(method, *given)
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._connection.close()  # ends `_serve`
        self._signal(signal.SIGCONT)
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __exit__(self, *_: object) -> None:
        self.close()


class Here(AbstractContextManager):
    """An object that is asked in this process, as a `Worker` is."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self.target = make(*arguments)

    def ask(self, method: str, *given: Any) -> Any:
        try:
            return getattr(self.target, method)(*given)
        except Exception as error:
            raise RuntimeError(said(error)) from error

    def __exit__(self, *_: object) -> None:
        """Nothing is to be ended."""


def call(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a fresh process that is pinned to as many cores as threads."""
    with Worker(machine.cores(threads), partial, function) as worker:
        return worker.ask("__call__", *arguments)


@contextmanager
def busy_core(core: int) -> Iterator[None]:
    """Within this context a process keeps one core busy: somebody else's work. It ends with this one."""
    spin = f"import os\nparent = os.getppid()\nos.sched_setaffinity(0, [{core}])\nwhile os.getppid() == parent: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as process:
        try:
            yield
        finally:
            process.kill()
