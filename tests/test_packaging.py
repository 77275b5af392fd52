"""What an installation promises: import without the extension, one warning, and nothing else on the way."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import fresh
import pytest
import setuptools

import rnnkernels

SETUP = Path(rnnkernels.__file__).parents[1] / "setup.py"
from_sources = pytest.mark.skipif(not SETUP.exists(), reason="this is an installed package: there is no setup.py")

# What a machine without a compiler has: the package, and no rnnkernels._C.
HIDDEN = """
import sys

class Hide:
    def find_spec(name, path, target=None):
        if name == "rnnkernels._C":
            raise ImportError("hidden for the test", name=name)

sys.meta_path.insert(0, Hide)
"""
RUN = """
import torch
import rnnkernels

torch.manual_seed(0)
ours = rnnkernels.LSTM(3, 4, 2, bidirectional=True)
torch.manual_seed(0)
theirs = torch.nn.LSTM(3, 4, 2, bidirectional=True)
x = torch.randn(5, 2, 3)
y, expected = ours(x)[0], theirs(x)[0]
assert torch.allclose(y, expected, atol=1e-6)
y.sum().backward(), expected.sum().backward()
assert torch.allclose(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad, atol=1e-5)
print(rnnkernels.backends.available())
"""
WARNING = "rnnkernels: the C++ extension is not there, the CPU runs on the slow reference backend"


def python(code, *options):
    """Run code in a fresh interpreter, outside the repository."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RNNKERNELS", "PYTHONWARNINGS"))}
    return fresh.python(*options, "-c", code, env=environment, cwd="/")


def test_without_the_extension_it_warns_once_and_runs_on_the_reference():
    code = (
        HIDDEN + "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n    import rnnkernels, rnnkernels.op.run\n"
        "ours = [w for w in caught if 'rnnkernels' in str(w.message)]\n"
        "assert len(ours) == 1 and ours[0].category is RuntimeWarning, ours\n"
        f"assert str(ours[0].message).startswith({WARNING!r})\n"
        "warnings.simplefilter('error')\n" + RUN
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['reference']"
    assert "Warning" not in done.stderr


def test_without_the_extension_the_warning_can_be_an_error_or_be_silenced():
    done = python(HIDDEN + RUN, "-W", "error::RuntimeWarning")
    assert done.returncode == 1 and f"RuntimeWarning: {WARNING} (hidden for the test)" in done.stderr
    done = python("import warnings\nwarnings.filterwarnings('ignore', message='rnnkernels: the C')\n" + HIDDEN + RUN)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_the_command_line_without_the_extension():
    code = HIDDEN + "import runpy\nsys.argv = ['rnnkernels']\nrunpy.run_module('rnnkernels', run_name='__main__')"
    done = python(code, "-W", "ignore")
    assert done.returncode == 0, done.stderr
    assert "not there (hidden for the test)" in done.stdout and "none: the C++ extension is not there" in done.stdout


@from_sources
def test_a_build_that_failed_leaves_its_reason(tmp_path):
    setup, out = SETUP, tmp_path / "lib"
    command = [sys.executable, setup.name, "build_ext", "--build-lib", out, "--build-temp", tmp_path / "temp"]
    broken = {"CC": "false", "CXX": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | broken, cwd=setup.parent)
    assert done.returncode == 0, done.stderr  # the package installs without its extension
    shutil.copytree(
        setup.parent / "rnnkernels", out / "rnnkernels", ignore=shutil.ignore_patterns("*.so"), dirs_exist_ok=True
    )
    code = "import sys\nsys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\nimport rnnkernels"
    done = fresh.python("-c", code, cwd=out)
    assert "it could not be built: Command '['false'" in done.stderr, done.stderr


@pytest.fixture
def settings(monkeypatch):
    """What setup.py gives to setuptools: a function that runs it."""

    def run():
        monkeypatch.setattr(setuptools, "setup", lambda **given: found.update(given))
        found = {}
        runpy.run_path(str(SETUP))
        return found

    monkeypatch.delenv("RNNKERNELS_NO_EXTENSION", raising=False)
    return run


@from_sources
def test_the_readme_of_the_package_has_links_that_work_anywhere(settings):
    text = settings()["long_description"]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links and all(link.startswith(("https://", "#")) for link in links), links
    at = f"v{rnnkernels.__version__}"
    assert f"/blob/{at}/docs/" in text and not re.search(r"!\[[^\]]*\]\((?!https://\S+/raw/)", text)


@from_sources
def test_a_free_threaded_python_is_refused(settings, monkeypatch):
    get = sysconfig.get_config_var
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: 1 if name == "Py_GIL_DISABLED" else get(name))
    with pytest.raises(SystemExit, match="a free-threaded Python cannot load the C.. extension"):
        settings()
    monkeypatch.setenv("RNNKERNELS_NO_EXTENSION", "1")
    assert settings()["ext_modules"] == [] and settings()["options"] == {}  # no abi3 wheel


@from_sources
def test_windows_has_no_extension(settings, monkeypatch):
    assert [extension.name for extension in settings()["ext_modules"]] == ["rnnkernels._core", "rnnkernels._C"]
    monkeypatch.setattr(sys, "platform", "win32")
    assert settings()["ext_modules"] == []


@pytest.mark.skipif("cpp" not in rnnkernels.backends.available(), reason="the C++ extension is not there")
def test_with_the_extension_nothing_warns():
    done = python(RUN, "-W", "error")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.strip().startswith("['cpp'")


def test_import_is_light():
    """A CPU user needs no numpy, Triton and the like, and does not wait for torch's compiler to load."""
    code = (
        "import torch\nbefore = set(sys.modules)\nimport rnnkernels\nrnnkernels.GRU(2, 3)(torch.randn(2, 1, 2))\n"
        "new = set(sys.modules) - before\n"
        "assert not new & {'triton', 'torch._dynamo', 'rich', 'tqdm', 'matplotlib', 'numpy', 'sympy', 'psutil'}, new\n"
        "assert not new & {'rnnkernels.nn.signatures', 'rnnkernels.tools.bench'}, new\n"
    )
    done = python("import sys\n" + code, "-W", "ignore")
    assert done.returncode == 0, done.stderr


def test_public_names():
    for name in rnnkernels.__all__:
        public = getattr(rnnkernels, name)
        assert public is not None
        assert not isinstance(public, type) or public.__module__ == "rnnkernels"  # the name in pickles
    assert rnnkernels.__version__.count(".") == 2
