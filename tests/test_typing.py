"""The annotations of the public API: none is missing, and mypy, strict, passes a user's program."""

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rnnkernels

ROOT = Path(__file__).parents[1]
STUBS = sorted(Path(rnnkernels.__file__).parent.glob("*.pyi"))


def exported(stub):
    """The names of a stub, which type checkers read in the place of a module that is known by another name."""
    imports = [node for node in ast.parse(stub.read_text("utf-8")).body if isinstance(node, ast.ImportFrom)]
    return [(node.module, alias.name) for node in imports for alias in node.names]


def public():
    """Every public function, and every public method of our own, by name."""
    found = {name: getattr(rnnkernels, name) for name in rnnkernels.__all__}
    found["cells.Cell"] = rnnkernels.cells.Cell
    for name, value in vars(rnnkernels.backends).items():
        if getattr(value, "__module__", "") == "rnnkernels.backends":
            found[f"backends.{name}"] = value
    for stub in STUBS:
        module = getattr(rnnkernels, stub.stem)
        found |= {f"{stub.stem}.{name}": getattr(module, name) for _, name in exported(stub)}
    for name, value in list(found.items()):
        if inspect.isclass(value):
            methods = {f"{name}.{m}": v for m, v in vars(value).items() if not m.startswith("_") or m == "__init__"}
            found |= {m: v.fget if isinstance(v, property) else v for m, v in methods.items()}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


@pytest.mark.parametrize("name", public())
def test_nothing_public_lacks_annotations(name):
    function = inspect.unwrap(public()[name])
    if name == "cell":  # whose overloads are annotated instead
        return
    signature = inspect.signature(function)
    lacking = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
    assert not lacking and signature.return_annotation is not signature.empty, f"{name}: {lacking or 'the result'}"


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: path.stem)
def test_stubs_name_what_is_there(stub):
    module = getattr(rnnkernels, stub.stem)
    assert exported(stub) or stub.stem == "counters"  # which registers formulas, and has nothing to call
    for origin, name in exported(stub):
        assert module.__name__ == f"rnnkernels.{origin}" and callable(getattr(module, name))


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed (extra typing)")
def test_a_users_program_passes_strict_mypy(tmp_path):
    """Uncached, most of its time goes into torch."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", "--cache-dir"]
    cache = ROOT / "build" / "mypy" if (ROOT / "setup.py").exists() else tmp_path
    done = subprocess.run([*command, cache, "tests/typed_consumer.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
