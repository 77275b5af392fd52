"""The tests of other projects, with torch.nn's layers and with ours: the counts must be the same.

    git clone https://github.com/Stable-Baselines-Team/stable-baselines3-contrib
    git clone https://github.com/pytorch/rl
    python tests/clients/suites.py sb3-contrib stable-baselines3-contrib        # about 10 minutes
    python tests/clients/suites.py torchrl rl                                   # about 25 minutes

Tests are those of the checkout, the project itself is the one that pip installed (extra `clients`). Each suite runs
three times, in processes of its own: as it is; with our classes in the place of torch.nn's before anything is imported
(replaced); and with `rnnkernels.convert` called on each model of the project when it has been built (converted).
Printed are the counts, and the tests that ended otherwise than with torch.nn; the exit status is 1 if there are any.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import rnnkernels

OUTCOMES = ("passed", "failed", "skipped")


class Suite(NamedTuple):
    """Arguments of pytest, with paths from the checkout's root, and the classes of the project that hold layers."""

    files: tuple[str, ...]
    options: tuple[str, ...]
    holders: tuple[str, ...]


SUITES = {
    "sb3-contrib": Suite(
        ("tests/test_lstm.py", "tests/test_deterministic.py", "tests/test_cnn.py"),
        ("-k", "test_lstm or RecurrentPPO"),
        ("sb3_contrib.common.recurrent.policies:RecurrentActorCriticPolicy",),
    ),
    "torchrl": Suite(
        ("test/modules/test_rnn.py",),
        (),
        ("torchrl.modules:LSTMModule", "torchrl.modules:GRUModule"),
    ),
}


def swaps(suite: Suite) -> dict[str, str]:
    """What RNNKERNELS_SWAP is in each of the three runs."""
    return {"torch.nn": "", "replaced": "replaced", "converted": f"converted:{','.join(suite.holders)}"}


def outcomes(suite: Suite, checkout: Path, swap: str, folder: Path, more: list[str]) -> dict[str, str]:
    """Run the suite once; each test's outcome by its name."""
    report, here = folder / "report.xml", Path(__file__).parent
    report.unlink(missing_ok=True)
    paths = [str(Path(rnnkernels.__file__).parents[1]), str(here), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "RNNKERNELS_SWAP": swap, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "swapped", "-p", "no:cacheprovider", f"--junitxml={report}"]
    # in a folder of its own: from the checkout Python would import the project's sources, not what pip installed
    status = subprocess.run(
        [*command, *(str(checkout / file) for file in suite.files), *suite.options, *more], env=environment, cwd=folder
    ).returncode
    if status not in (0, 1):
        sys.exit(f"pytest ended with status {status}" + (": no layer was ours" if status == 3 else ""))
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/clients/suites.py", description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("checkout", type=Path, help="the folder into which the project was cloned")
    parser.add_argument("options", nargs="*", help="further ones for pytest, after --")
    asked = parser.parse_args(arguments)
    suite, checkout = SUITES[asked.suite], asked.checkout.resolve()
    for file in suite.files:
        if not (checkout / file).exists():
            parser.error(f"no {file} in {checkout}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for how, swap in swaps(suite).items():
            print(f"== {asked.suite}: {how}", flush=True)
            found[how] = outcomes(suite, checkout, swap, Path(folder), asked.options)
    return compared(asked.suite, found)


def compared(name: str, found: dict[str, dict[str, str]]) -> int:
    """Print the table and the differences; the exit status."""
    expected = found["torch.nn"]
    print(f"\n{name:<14}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for how, results in found.items():
        counts = Counter(results.values())
        print(f"{how:<14}" + "".join(f"{counts[outcome]:>10}" for outcome in OUTCOMES))
    different = 0
    for how, results in found.items():
        for test in sorted(expected.keys() | results.keys()):
            before, now = expected.get(test, "not run"), results.get(test, "not run")
            if before != now:
                different += 1
                print(f"{how}: {test} {now}, with torch.nn {before}")
    if "passed" not in expected.values():
        print("no test passed with torch.nn: there is nothing to compare")
        return 1
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
