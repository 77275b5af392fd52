"""Everything that is to be known of a GPU, in eight minutes: `python -m benchmarks.gpu`.

Facts of the machine; every cell, schedule and dtype once; the tests that need a GPU; races; the workloads that are
wanted most against torch (cuDNN); the barrier alone, and schedules forced at several sizes; all other workloads,
against TorchRL and FlashRNN too; the targets. Written to benchmarks/results/gpu-<chip>.json and .md after each item; a
run that is stopped, or out of time, goes on with `--resume`. The rows are like those of `benchmarks.run`, which takes a
process for each provider, and hours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import chips, gpu_experiments, gpu_report, gpu_rows, gpu_smoke, gpu_tests, machine, report, tables
from benchmarks.gpu_targets import reached
from benchmarks.measure import Timer, event_time, wall_time
from benchmarks.model import ARITHMETICS
from benchmarks.providers import PROVIDERS
from benchmarks.run import RESULTS, listed, progress, providers_of, resumed
from benchmarks.workloads import Workload, select
from rnnkernels.backends.triton import schedules

# What each step may take of the time; what it leaves goes to the ones after it.
SHARES = {"smoke": 0.2, "tests": 0.2, "races": 0.06, "first": 0.16, "experiments": 0.12, "rows": 0.26}
LIMIT, GRACE = 150, 30  # seconds for one row; and beyond the end of its step, when it has begun
CASE_LIMIT = 60  # seconds for one case of the steps "smoke" and "races"
TINY = {"T": 3, "B": 2, "I": 8, "H": 4, "L": 1}  # the sizes of every workload in a quick run


class Budget:
    """The time of a run, and until when each step may begin something."""

    def __init__(self, seconds: float, steps: list[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.start = clock, clock()
        whole, used = sum(SHARES[step] for step in steps), 0.0
        self.ends = {}
        for step in steps:
            used += SHARES[step] / whole
            self.ends[step] = self.start + used * seconds

    def left(self, step: str) -> float:
        return self.ends[step] - self.clock()


def warm(gpu: chips.Gpu, arithmetic: str, w: Workload) -> None:
    """Compile what a workload will launch, in a process of its own, into Triton's cache on disk."""
    from benchmarks import dry

    dtype = ARITHMETICS[arithmetic]
    for reverse in w.walks:
        for train in (False, True):
            dry.launches(gpu, w.cell, dtype, w.T, w.B, w.H, 0, reverse, w.heads, False, w.stages, train, arithmetic)


def warm_experiment(gpu: chips.Gpu, schedule: str, size: gpu_experiments.Size) -> None:
    """The same for an experiment; what cannot be forced says so when it is measured."""
    from benchmarks import dry

    with schedules.force(schedule), suppress(RuntimeError):
        dry.launches(gpu, "lstm", torch.bfloat16, size.T, size.B, size.H, train=False)


def facts(asked: argparse.Namespace, command: str) -> dict:
    """The machine, with the versions and switches that decide what is compared."""
    found = machine.describe(asked.device, command)
    found["device"] = found.get("gpu", found["cpu"])
    found["timer"] = "CUDA events" if asked.device == "cuda" else "the wall clock"
    found["peers"] = ", ".join(f"{name} {machine.version(name)}" for name in ("torchrl", "flashrnn"))
    if asked.device == "cuda":
        found["cudnn"], found["cuda"] = torch.backends.cudnn.version(), torch.version.cuda or torch.version.hip
        query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        try:
            said = subprocess.run(
                ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, timeout=30
            )
            found["nvidia-smi"] = "; ".join(said.stdout.split("\n")[:2])
        except (OSError, subprocess.TimeoutExpired) as error:
            found["nvidia-smi"] = str(error)
    found["float32 in RNNs, in products"] = (
        f"{torch.backends.cudnn.rnn.fp32_precision}, {torch.backends.cuda.matmul.fp32_precision}"
    )
    return found


def started(asked: argparse.Namespace, command: str) -> dict:
    """Results without anything measured, or those that are resumed."""
    fresh = {"machine": facts(asked, command), "providers": asked.providers, "tests": None, "rows": []}
    fresh |= {"smoke": [], "races": [], "experiments": [], "lines": [], "cut": [], "done": 0, "planned": 0}
    path = asked.out.with_name(f"{asked.out.name}.json")
    if not (asked.resume and path.exists()):
        return fresh
    old = resumed(path, fresh) | {"cut": []}
    return old | {  # what failed is tried again
        name: [found for found in old[name] if "reason" not in found] for name in ("smoke", "races", "rows")
    }


def write(results: dict, out: Path) -> list[Path]:
    return report.write_texts(out, report.json_and(gpu_report.markdown(results), results))


def run_cases(
    step: str, cases: list[gpu_smoke.Case], processes: int, asked: argparse.Namespace, results: dict, budget: Budget,
    place: Callable, told: Callable,
) -> None:  # fmt: skip
    """The cases of a step that are not there yet, several at once, as long as there is time to begin one."""
    there = {found["case"] for found in results[step]}
    cases = [case for case in cases if case.name not in there]
    total = len(cases) + len(there)

    def done(found: dict) -> None:
        results[step].append(found)
        told(f"{step}: {found['case']}", len(results[step]), total)
        if "reason" in found:
            print(f"{step}: {found['case']}: {found['reason']}")
        write(results, asked.out)

    late = gpu_smoke.run(
        cases, processes, lambda: place(gpu_smoke.Smoke, asked.device), lambda: budget.left(step), CASE_LIMIT, done
    )
    if late:
        results["cut"].append(f"{late} cases of the step {step}")


def run_tests(asked: argparse.Namespace, results: dict, budget: Budget, gpu: chips.Gpu | None) -> None:
    """The tests, and beside them the compilation of what the rows will launch."""
    cores = os.cpu_count() or 1
    pending: list[Future] = []
    pool = None
    if gpu is not None:
        pool = ProcessPoolExecutor(max(1, cores // 2), mp_context=multiprocessing.get_context("spawn"))
        rows = {"first", "rows"} & set(asked.steps)
        kinds = [gpu_rows.arithmetic_of(dtype) for dtype in asked.dtype] if rows else []
        first = sorted(asked.workloads, key=lambda w: w.family not in gpu_rows.FIRST)
        pending = [pool.submit(warm, gpu, kind, w) for kind in kinds for w in first]
        plan = gpu_experiments.planned(asked.quick) if "experiments" in asked.steps else []
        pending += [pool.submit(warm_experiment, gpu, schedule, size) for _, schedule, size in plan]
    if results["tests"] is None or results["tests"]["unfinished"]:
        results["tests"] = gpu_tests.run(max(1.0, budget.left("tests")), max(1, cores // 2))
    if pool is not None:
        ready, late = wait(pending, timeout=max(0.0, budget.left("tests")))
        errors = {f"{type(error).__name__}: {error}" for future in ready if (error := future.exception())}
        for error in sorted(errors):  # it costs time in the rows, where the same error would show
            print(f"not compiled ahead: {error}", file=sys.stderr)
        if late:
            print(f"{len(late)} of {len(pending)} not compiled ahead: no time", file=sys.stderr)
        pool.shutdown(wait=False, cancel_futures=True)


def run_rows(
    step: str, plan: list, providers: list[str], asked: argparse.Namespace, results: dict, budget: Budget, measuring,
    told: Callable,
) -> None:  # fmt: skip
    """The rows of a plan that are not there yet, as long as there is time to begin one."""
    there = {(row["workload"], row["dtype"], row["mode"]) for row in results["rows"]}
    new = 0
    for done, (w, dtype, mode) in enumerate(plan):
        if (w.name, dtype, mode) in there:
            continue
        told(f"{w.name}, {dtype}, {mode}", done, len(plan))
        if budget.left(step) < 0:
            missing = [row for row in plan if (row[0].name, *row[1:]) not in there]
            results["cut"].append(f"{len(missing) - new} rows of the step {step}")
            break
        new += 1
        try:
            row = measuring.ask(min(LIMIT, budget.left(step) + GRACE), "row", w, dtype, mode, providers)
            print(tables.line(row))
        except RuntimeError as error:  # a row that cannot be checked, as one without memory, costs itself only
            row = {**gpu_rows.head(w, dtype, mode, 1), "providers": {}, "reason": str(error)}
        results["rows"].append(row)
        results["done"] = len(results["rows"])
        write(results, asked.out)


def run_experiments(
    asked: argparse.Namespace, results: dict, budget: Budget, measuring, told: Callable, gpu: chips.Gpu | None
) -> None:
    """The experiments that are not there yet, as long as there is time to begin one."""
    plan = gpu_experiments.planned(asked.quick)
    there = {(r["purpose"], r["schedule"], r["H"], r["B"], r["T"]) for r in results["experiments"]}
    for done, (purpose, schedule, size) in enumerate(plan):
        if (purpose, schedule, *size) in there:
            continue
        told(f"{purpose}, {schedule}, {size}", done, len(plan))
        left = budget.left("experiments")
        if left < 0:
            results["cut"].append(f"{len(plan) - done} experiments")
            break
        try:
            result = measuring.ask(min(LIMIT, left + GRACE), "experiment", purpose, schedule, size)
        except RuntimeError as error:  # it hung, or its process ended
            result = {"purpose": purpose, "schedule": schedule, **size._asdict(), "reason": str(error)}
        results["experiments"].append(result)
        lines = gpu_experiments.lines_through(results["experiments"])
        results["lines"] = lines if gpu is None else gpu_experiments.with_waits(lines, gpu)
        write(results, asked.out)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    names = [name for name, provider in PROVIDERS.items() if "cuda" in provider.devices]
    p = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    p.add_argument("--minutes", type=float, default=8.0, help="when nothing new is begun any more (default: 8)")
    p.add_argument("--steps", type=listed(list(SHARES)), default=list(SHARES), help=f"of {', '.join(SHARES)}")
    p.add_argument("--only", type=listed(), default=[], help="names or shell patterns of GPU workloads")
    p.add_argument("--dtype", type=listed(list(gpu_rows.DTYPES)), default=list(gpu_rows.DTYPES))
    p.add_argument("--mode", choices=(*gpu_rows.MODES, "both"), default="both")
    p.add_argument("--providers", type=listed(names), help=f"of {', '.join(names)} (default: all that are installed)")
    p.add_argument("--seconds", type=float, default=0.4, help="time to spend on each row, once it is checked")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: with --quick, to see that it works")
    p.add_argument("--quick", action="store_true", help="tiny sizes of everything")
    p.add_argument("--out", type=Path, help="results without suffix (default: benchmarks/results/gpu-<chip>)")
    p.add_argument("--resume", action="store_true", help="go on with the results; rows that were measured are kept")
    asked = p.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        p.error("no GPU here (torch.cuda.is_available() is False); --device cpu --quick shows that it works")
    if asked.device == "cpu" and not (asked.quick and asked.out):
        p.error("--device cpu: only with --quick and --out")
    asked.providers = providers_of(p, asked)
    asked.steps = [step for step in SHARES if step in asked.steps]
    asked.workloads = select("cuda", asked.only)
    if not asked.workloads:
        p.error(f"--only: no such workload; there are {', '.join(w.name for w in select('cuda', []))}")
    if asked.quick:
        asked.seconds = min(asked.seconds, 0.01)
        asked.workloads = [replace(w, device=asked.device, **TINY | {"T": min(w.T, 3)}) for w in asked.workloads]
    asked.cases = gpu_smoke.planned(schedules.NAMES)
    if asked.quick:  # on the CPU a forced schedule says nothing: it is Triton's
        asked.cases = [case._replace(T=3, B=2, H=8) for case in asked.cases[:3] if case.schedule == "resident"]
    if asked.out is None:
        chip = re.sub(r"^(nvidia|amd)-", "", re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))
        asked.out = RESULTS / f"gpu-{chip}"
    asked.modes = gpu_rows.MODES if asked.mode == "both" else (asked.mode,)
    return asked


def figures(device: str) -> chips.Gpu | None:
    """The figures of the GPU that is here, with what the chooser of schedules sees of it."""
    if device != "cuda":
        return None
    found = chips.of_device(torch.cuda.get_device_name())
    return found and found._replace(chip=schedules.chip_of(torch.device("cuda", torch.cuda.current_device())))


def main(arguments: list[str] | None = None, timer: Timer | None = None) -> int:
    """``timer`` stands in for CUDA events, or for the clock on a CPU; then all is measured in this process."""
    asked = parse(arguments)
    asked.timer = timer or (event_time if asked.device == "cuda" else wall_time)
    words = sys.argv[1:] if arguments is None else arguments
    try:
        results = started(asked, shlex.join(["python", "-m", "benchmarks.gpu", *words]))
    except (OSError, ValueError, KeyError) as error:
        print(f"python -m benchmarks.gpu: --resume: {error}", file=sys.stderr)
        return 2
    budget, gpu, ended = Budget(60 * asked.minutes, asked.steps), figures(asked.device), False
    place = gpu_rows.Here if timer else gpu_rows.Apart
    measuring = place(gpu_rows.Measuring, asked.device, gpu, asked.seconds, 3 if asked.quick else 5, asked.timer)
    plan = gpu_rows.ordered(asked.workloads, asked.dtype, asked.modes)
    results["planned"], several = len(plan), 1 if timer else max(1, (os.cpu_count() or 1) - 2)
    try:
        write(results, asked.out)
        with progress() as bar:
            task = bar.add_task("")

            def told(what: str, done: int, total: int) -> None:
                bar.update(task, description=what, completed=done, total=total)

            if "smoke" in asked.steps:
                run_cases("smoke", asked.cases, several, asked, results, budget, place, told)
            if "tests" in asked.steps:
                told("tests, and compiling ahead", 0, 1)
                run_tests(asked, results, budget, gpu)
                write(results, asked.out)
            if "races" in asked.steps:
                run_cases("races", gpu_smoke.races(asked.quick), min(2, several), asked, results, budget, place, told)
            if "first" in asked.steps:
                wanted = [name for name in gpu_rows.FIRST_PROVIDERS if name in asked.providers]
                run_rows("first", gpu_rows.first(plan), wanted, asked, results, budget, measuring, told)
            if "experiments" in asked.steps:
                run_experiments(asked, results, budget, measuring, told, gpu)
            if "rows" in asked.steps:
                run_rows("rows", plan, asked.providers, asked, results, budget, measuring, told)
        ended = True
    except KeyboardInterrupt:
        print("stopped; what was measured is kept, --resume goes on", file=sys.stderr)
    finally:
        measuring.close()
    for path in write(results, asked.out):
        print(f"written: {path}")
    for r in reached([row for row in results["rows"] if row["providers"]]):
        print(f"{'reached' if r.good else 'missed '}  {r.target}: {r.value}")
    tests = results["tests"] or {}
    bad = [p for row in results["rows"] for p in row["providers"].values() if p.get("red")]
    bad += [found for name in ("smoke", "races", "rows") for found in results[name] if "reason" in found]
    return 0 if ended and not bad and not any(tests.get(k) for k in ("failures", "errors", "unfinished")) else 1


if __name__ == "__main__":
    sys.exit(main())
