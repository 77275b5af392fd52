"""Everything that is to be known of a GPU, in eight minutes: `python -m benchmarks.gpu`.

Facts of the machine; every cell, schedule and dtype once, cells of users and layer norms among them; the tests that
need a GPU; races; the workloads, those that are wanted most first, against torch (cuDNN), TorchRL and FlashRNN; the
barrier alone, and schedules forced at several sizes. Written to benchmarks/results/gpu-<chip>.json and .md after each
item; a run that is stopped, or out of time, goes on with `--resume`. Needs torch, Triton, NumPy and pytest. The rows
are like those of `benchmarks.run`, which takes a process for each provider, and hours.

`TRITON_INTERPRET=1 python -m benchmarks.gpu --device cpu --quick --out runs/gpu` runs the whole plan at tiny sizes
without a GPU; the kernels of the first step and of the races are Triton's, interpreted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate

import gpu_cases
import gpu_tests
import torch

from benchmarks import cli, machine, report
from benchmarks.gpu import experiments, tasks
from benchmarks.gpu.experiments import Experiment
from benchmarks.gpu.tasks import Apart, Measuring, Task
from benchmarks.measure import event_time, wall_time
from benchmarks.providers import PROVIDERS
from benchmarks.rows import head
from benchmarks.workloads import Workload, select
from rnnkernels.backends.triton import schedules

# What each step may take of the time; what it leaves goes to the ones after it.
SHARES = {"smoke": 0.2, "tests": 0.2, "races": 0.06, "rows": 0.42, "experiments": 0.12}
FAILING = ("smoke", "tests", "races", "rows")  # a reason there is a fault
LIMITS = {"smoke": 60, "tests": 120, "races": 60}  # seconds for one task
LIMIT = 150  # for any other
TINY = {"T": 3, "B": 2, "I": 8, "H": 4, "L": 1}  # the sizes of every workload in a quick run


class Budget:
    """The time of a run, and until when each step may begin something."""

    def __init__(self, seconds: float, steps: list[str], clock: Callable[[], float] = time.monotonic) -> None:
        whole, self.clock = sum(SHARES[step] for step in steps), clock
        ends = accumulate((seconds * SHARES[step] / whole for step in steps), initial=clock())
        self.ends = dict(zip(steps, list(ends)[1:], strict=True))

    def left(self, step: str) -> float:
        return self.ends[step] - self.clock()


def warm(gpu, dtype: str, w: Workload) -> None:
    """Compile what a workload will launch, in a process of its own, into Triton's cache on disk."""
    import triton_offline  # not where kernels are interpreted

    kind = "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"
    for reverse in w.walks:
        layer = (w.cell, getattr(torch, dtype), w.T, w.B, w.H, 0, reverse, w.heads, False, w.stages)
        for train in (False, True):
            triton_offline.launches(gpu, *layer, train, kind)


def warm_experiment(gpu, e: Experiment) -> None:
    """The same for an experiment; what cannot be forced says so when it is measured."""
    import triton_offline

    with schedules.force(e.schedule), suppress(RuntimeError):
        triton_offline.launches(gpu, "lstm", torch.bfloat16, e.T, e.B, e.H, train=False)


def facts(asked: argparse.Namespace, command: str) -> dict:
    """The machine, with the versions and switches that decide what is compared."""
    found = machine.describe(asked.device, command, ("torchrl", "flashrnn"))
    found["device"] = found.get("gpu", found["cpu"])
    found["timer"] = "CUDA events" if asked.device == "cuda" else "the wall clock"
    if asked.device == "cuda":
        found["cudnn"], found["cuda"] = torch.backends.cudnn.version(), torch.version.cuda or torch.version.hip
        query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        try:
            said = subprocess.run(["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, timeout=30)
            found["nvidia-smi"] = "; ".join(said.stdout.split("\n")[:2])
        except (OSError, subprocess.TimeoutExpired) as error:
            found["nvidia-smi"] = str(error)
    precisions = torch.backends.cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    return found | {"float32 in RNNs, in products": ", ".join(precisions)}


def started(asked: argparse.Namespace, command: str) -> dict:
    """Results without anything measured, or those that are resumed, where what failed is tried again."""
    fresh = {"machine": facts(asked, command), "providers": asked.providers, "tests": [], "rows": []}
    fresh |= {"smoke": [], "races": [], "experiments": [], "cut": [], "planned": 0}
    old = cli.resumed(asked, fresh)
    return old | {name: [f for f in old[name] if "reason" not in f] for name in FAILING}


@contextmanager
def compiling_ahead(asked: argparse.Namespace, budget: Budget) -> Iterator[None]:
    """Beside what is done within this context, that which rows and experiments will launch is compiled."""
    if asked.compile_for is None:
        yield
        return
    dtypes = asked.dtype if "rows" in asked.steps else []
    first = sorted(asked.workloads, key=lambda w: w.family not in tasks.FIRST)
    plan = experiments.planned(asked.quick) if "experiments" in asked.steps else []
    pool = ProcessPoolExecutor(half_of_the_cores(), mp_context=multiprocessing.get_context("spawn"))
    try:
        pending = [pool.submit(warm, asked.compile_for, dtype, w) for dtype in dtypes for w in first]
        pending += [pool.submit(warm_experiment, asked.compile_for, experiment) for experiment in plan]
        yield
        ready, late = wait(pending, timeout=max(0.0, budget.left("tests")))
        errors = {f"{type(error).__name__}: {error}" for future in ready if (error := future.exception())}
        for error in sorted(errors):  # it costs time in the rows, where the same error would show
            print(f"not compiled ahead: {error}", file=sys.stderr)
        if late:
            print(f"{len(late)} of {len(pending)} not compiled ahead: no time", file=sys.stderr)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def half_of_the_cores() -> int:
    return max(1, (os.cpu_count() or 1) // 2)


def tests_planned(make: Callable[[], Apart], seconds: float) -> list[Task]:
    """A task for each test that needs a GPU; for their file where they cannot be collected in time."""
    with closing(make()) as process:
        try:
            names = process.ask(max(1.0, seconds), "collected", str(gpu_tests.TESTS))["tests"]
        except RuntimeError:
            names = [str(gpu_tests.TESTS)]
    return [Task({"case": gpu_tests.named(name)}, "test", (name,)) for name in names]


def run_step(
    step: str, plan: list[Task], processes: int, make: Callable[[], Apart], asked: argparse.Namespace, results: dict,
    budget: Budget,
) -> None:  # fmt: skip
    """The tasks of a step that are not there yet, as long as there is time to begin one."""
    found = results[step]
    missing = [task for task in plan if not any(task.key.items() <= there.items() for there in found)]
    print(f"{step}: {len(missing)} of {len(plan)}", file=sys.stderr)

    def done(result: dict) -> None:
        found.append(result)
        if result.get("providers"):
            print(report.line(result))
        elif "reason" in result:
            what = (str(result[name]) for name in ("case", "workload", "dtype", "mode") if name in result)
            print(f"{step}: {', '.join(what)}: {result['reason']}")
        report.write(results, asked.out)

    late = tasks.ask_all(missing, processes, make, partial(budget.left, step), LIMITS.get(step, LIMIT), done)
    if late:
        results["cut"].append(f"{late} of {len(plan)} of the step {step}")


def run_all(asked: argparse.Namespace, results: dict, budget: Budget) -> None:
    """Every step, in the order of SHARES."""
    rows = tasks.ordered(asked.workloads, asked.dtype, asked.modes)
    results["planned"], several = len(rows), max(1, (os.cpu_count() or 1) - 2)

    def cases(of: list) -> list[Task]:
        return [Task({"case": case.name}, "case", (case,)) for case in of]

    plans = {
        "smoke": (cases(asked.cases), several),
        "races": (cases(gpu_cases.races(asked.quick)), min(2, several)),
        "rows": ([Task(head(*row, 1), "row", (*row, asked.providers)) for row in rows], 1),
        "experiments": ([Task(e._asdict(), "experiment", (e,)) for e in experiments.planned(asked.quick)], 1),
    }
    report.write(results, asked.out)
    for step in asked.steps:
        how = (asked.device, asked.seconds, 3 if asked.quick else 5, asked.timer, 1 if step in LIMITS else None)
        make = partial(Apart, Measuring, *how)
        with compiling_ahead(asked, budget) if step == "tests" else nullcontext():
            if step == "tests":
                plans["tests"] = tests_planned(make, budget.left("tests")), half_of_the_cores()
            run_step(step, *plans[step], make, asked, results, budget)
        report.write(results, asked.out)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    names = [name for name, provider in PROVIDERS.items() if "cuda" in provider.devices]
    p = cli.parser("gpu", __doc__, 0.4, "each row, once it is checked")
    p.add_argument("--minutes", type=float, default=8.0, help="when nothing new is begun any more (default: 8)")
    p.add_argument("--steps", type=cli.listed(list(SHARES)), default=list(SHARES), help=f"of {', '.join(SHARES)}")
    cli.add_providers(p, list(tasks.DTYPES), names)
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: with --quick, to see that it works")
    asked = p.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        p.error("no GPU here (torch.cuda.is_available() is False); --device cpu --quick shows that it works")
    if asked.device == "cpu" and not (asked.quick and asked.out):
        p.error("--device cpu: only with --quick and --out")
    chip = torch.cuda.get_device_name() if asked.out is None else ""
    asked.threads, asked.dtype = [1], asked.dtype or list(tasks.DTYPES)
    chip = re.sub("^(nvidia|amd)-", "", re.sub("[^a-z0-9]+", "-", chip.lower()))
    cli.check(p, asked, f"gpu-{chip}", select("cuda", []))
    asked.steps = [step for step in SHARES if step in asked.steps]
    asked.timer = event_time if asked.device == "cuda" else wall_time
    asked.cases, asked.compile_for = gpu_cases.planned(schedules.NAMES), None
    if asked.device == "cuda":
        import triton_offline

        asked.compile_for = triton_offline.gpu_here()
    if asked.quick:
        asked.seconds = min(asked.seconds, 0.01)
        asked.workloads = [replace(w, device=asked.device, **TINY | {"T": min(w.T, 3)}) for w in asked.workloads]
        if not gpu_cases.INTERPRETED:  # a forced schedule says nothing: it is Triton's
            asked.cases = [case for case in asked.cases[:3] if case.schedule == "resident"]
        asked.cases = list(dict.fromkeys(case._replace(T=3, B=2, H=20) for case in asked.cases))
    return asked


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    results, ended = started(asked, cli.command("gpu", arguments)), True
    try:
        run_all(asked, results, Budget(60 * asked.minutes, asked.steps))
    except KeyboardInterrupt:
        ended = False
        print("stopped; what was measured is kept, --resume goes on", file=sys.stderr)
    for path in report.write(results, asked.out):
        print(f"written: {path}")
    bad = report.red(results["rows"]) or any("reason" in found for name in FAILING for found in results[name])
    return 0 if ended and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
