"""Programs in processes of their own, which begin with torch imported and nothing else: forks of one process that has
done that for all of them, for it is most of a short program's time.

What torch and its libraries read when they are loaded, they have read then: tests of that start a Python themselves.
"""

import atexit
import builtins
import functools
import gc
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path


@functools.cache
def package():
    """The folder that has it."""
    return str(Path(importlib.util.find_spec("rnnkernels").origin).parents[1])


@functools.cache
def server():
    """The process that forks; it ends with this one."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)
    return process


def python(*arguments, env=None, cwd=None, timeout=120):
    """Runs ``python [-W action[::category] ...] -c code``, or ``-m module`` or a file in place of the code: what
    ``subprocess.run`` gives, with its output as text. The package of these tests can be imported. What has run for
    ``timeout`` seconds ends with SIGALRM, and with it what it has forked."""
    env = dict(os.environ if env is None else env)
    env["PYTHONPATH"] = os.pathsep.join([package(), env.get("PYTHONPATH", "")])
    command = [sys.executable, *map(str, arguments)]
    if not hasattr(os, "fork"):
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=timeout)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("out", "err")]
        asked = {"arguments": command[1:], "env": env, "cwd": str(cwd or os.getcwd()), "paths": paths}
        print(json.dumps(asked | {"timeout": timeout}), file=server().stdin, flush=True)
        status = int(server().stdout.readline())
        return subprocess.CompletedProcess(command, status, *(Path(path).read_text("utf-8") for path in paths))


def serve():
    """Forks for each line that comes, and says with which status the fork ended; a fork returns with what was asked."""
    for line in sys.stdin:
        asked = json.loads(line)
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        os.setsid()
        for number, path in enumerate((os.devnull, *asked["paths"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
        signal.alarm(asked["timeout"])
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        return asked
    os._exit(0)


def main():
    import torch  # noqa: F401 - what the forks have

    gc.freeze()  # no fork looks through it all as it ends
    words = serve()["arguments"]
    sys.path[0], sys.path[1:1] = "", os.environ["PYTHONPATH"].split(os.pathsep)
    while words[0] == "-W":
        action, _, category = words[1].partition("::")
        warnings.simplefilter(action, getattr(builtins, category) if category else Warning)
        words = words[2:]
    if words[0] == "-m":
        sys.argv[1:] = words[2:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv[:] = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), globals())
    else:
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
