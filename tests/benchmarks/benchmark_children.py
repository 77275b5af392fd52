"""What tests of the benchmarks run in other processes, which import no more than this needs."""

import functools
import os
import time

import torch

from benchmarks.measure import Subject, truth_of
from benchmarks.providers import PROVIDERS, Case, Job, Unsupported, module_job
from benchmarks.workloads import Workload


def facts_of(name: str, cases: list[tuple[Workload, str, str]]) -> list[dict]:
    """What the harness finds of a provider on (workload, dtype, mode): in the process that calls this."""
    return [
        Subject(PROVIDERS[name], w, dtype, mode, 1).admit(truth_of(Case(w, dtype, mode))) for w, dtype, mode in cases
    ]


def facts_without_inductor(name: str, cases: list[tuple[Workload, str, str]]) -> list[dict]:
    """The same with graphs that Dynamo traced and nobody compiled, which would take most of a minute."""
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    return facts_of(name, cases)


def twice_dx(case):
    """A provider that is torch, with a wrong gradient."""
    job = module_job(torch.nn, case)

    def read(out):
        tensors = job.read(out)
        return tensors | {"dx": 2 * tensors["dx"]} if "dx" in tensors else tensors

    return Job(job.run, read)


def broken(case):
    raise KeyError("no such thing")


def modest(case):
    raise Unsupported("does no such thing")


def dies(case):
    os._exit(7)


def dies_later(case):
    calls = []

    def twice():
        calls.append(1)
        return module_job(torch.nn, case).run() if len(calls) < 2 else dies(case)

    return Job(twice, module_job(torch.nn, case).read)


class Asked:
    """What a worker can be asked in these tests."""

    def where(self):
        return os.getpid(), sorted(os.sched_getaffinity(0))

    def fails(self):
        raise KeyError("no such thing")

    def ends(self):
        os._exit(3)

    def case(self, number):
        """Does what a number says."""
        if number == 1:
            os._exit(7)
        if number == 2:
            time.sleep(600)
        return {"case": number, "reason": "CUDA error: misaligned"} if number == 3 else {"case": number}
