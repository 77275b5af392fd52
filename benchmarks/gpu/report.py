"""The parts of a GPU's report that are no rows of workloads: cases, tests, schedules that were forced."""

from __future__ import annotations

from benchmarks.tables import bullets, table


def cases_text(title: str, results: list[dict]) -> str:
    """How many cases of a GPU are right, the largest errors by dtype, and what is wrong."""
    wrong = [found for found in results if "reason" in found]
    right = [found for found in results if "error" in found and "reason" not in found]
    refused = len([found for found in results if "refused" in found])
    worst: dict[str, dict] = {}
    for found in right:
        dtype = found["case"].split()[2]
        if found["error"] >= worst.get(dtype, {"error": -1.0})["error"]:
            worst[dtype] = found
    lines = [f"{f['case']}: {f['reason']}" for f in wrong]
    lines += [f"largest error in {dtype}: {f['error']:.1e}, {f['of']} of {f['case']}" for dtype, f in worst.items()]
    text = f"{len(right)} right, {len(wrong)} wrong, {refused} that a forced schedule cannot run."
    return f"## {title}\n\n" + (f"{text}\n\n{bullets(lines)}" if results else "Not run.") + "\n"


def tests_text(found: list[dict] | dict) -> str:
    """Of tests one by one; or, as an earlier version had them, their counts."""
    if not found:
        return "## Tests\n\nNot run.\n"
    if isinstance(found, list):
        failed = [f"{test['case']}: {test['reason']}" for test in found if "reason" in test]
        counts = f"{len(failed)} failed, {sum(test.get('skipped', False) for test in found)} skipped"
        return f"## Tests\n\n{len(found)} tests: {counts}.\n{bullets(failed)}\n"
    text = f"{found['tests']} tests in {found['seconds']:.0f} s: {found['failures']} failed, {found['errors']} broke, "
    text += f"{found['skipped']} skipped, {found['unfinished']} did not end in time; exit codes {found['exit']}."
    return f"## Tests\n\n{text}\n{bullets(found['failed'])}\n"


def experiments_text(results: list[dict], lines: list[dict]) -> str:
    """The barrier alone, each schedule forced at several sizes, and what a call and a step of each cost."""
    barriers = [
        {"programs": r["H"], "barrier alone, µs a step": r["us_per_step"]}
        for r in results if r["purpose"] == "barrier" and "us_per_step" in r
    ]  # fmt: skip
    times: dict[tuple, dict[str, float]] = {}
    for r in results:
        if r["purpose"] == "crossover" and "seconds" in r:
            times.setdefault((r["H"], r["B"]), {})[r["schedule"]] = r["us_per_step"]
    schedules = sorted({name for of in times.values() for name in of})
    crossed = [
        {"H": H, "B": B} | {f"{name}, µs a step": of.get(name) for name in schedules}
        | {"fastest": min(of, key=of.__getitem__)}
        for (H, B), of in times.items()
    ]  # fmt: skip
    names = {"schedule": "schedule", "H": "H", "B": "B", "us_per_call": "µs a call", "us_per_step": "µs a step"}
    through = [{text: line[name] for name, text in names.items()} for line in lines]
    told = {True: "replayed from a CUDA graph, the same bits", False: "replayed from a CUDA graph, **other bits**"}
    texts = {
        f"{r['schedule']}, H {r['H']}, B {r['B']}: {r['reason'] if 'reason' in r else told[r['captured']]}"
        for r in results if "reason" in r or "captured" in r
    }  # fmt: skip
    parts = ["## Schedules forced: LSTM in bfloat16, forward", *(table(part) for part in (barriers, crossed) if part)]
    parts += ["A line through the time over T:", table(through)] if through else []
    return "\n\n".join([*parts, bullets(sorted(texts))])
