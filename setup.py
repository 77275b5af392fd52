"""Builds the C++ extension on torch's stable ABI (one abi3 wheel for torch >= 2.10); all else is in pyproject.toml.

Without a compiler, on Windows, or with RNNKERNELS_NO_EXTENSION=1, the package installs without it and runs on the
reference.
"""

import os
import re
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

HERE = Path(__file__).parent
OWN_FLAGS = os.environ.get("RNNKERNELS_CXX_FLAGS", "").split()  # for profilers and sanitizers, which want names too


def extension(name: str, sources: list[Path]) -> CppExtension:
    return CppExtension(
        name,
        [str(path.relative_to(HERE)) for path in sorted(sources)],
        depends=[str(path.relative_to(HERE)) for path in HERE.glob("csrc/**/*.h")],
        py_limited_api=True,
        extra_compile_args={
            "cxx": [
                "-std=c++17",
                "-ffp-contract=fast",
                "-O3",
                "-g0",
                "-fvisibility=hidden",
                f"-ffile-prefix-map={HERE.resolve()}/=",
                "-DTORCH_TARGET_VERSION=0x020a000000000000",
                *OWN_FLAGS,
            ]
        },
    )


# The core has the ops and knows no Python, so that C++ programs can load it too; the binding finds it beside itself.
BINDING = set(HERE.glob("csrc/python/*.cpp"))
CORE = extension("rnnkernels._core", set(HERE.glob("csrc/*/*.cpp")) - BINDING)
PYTHON = extension("rnnkernels._C", BINDING | {HERE / "csrc/machine/older_libraries.cpp"})
if sys.platform == "darwin":
    CORE.extra_link_args += ["-Wl,-install_name,@rpath/_core.abi3.so"]
    PYTHON.extra_link_args += ["-Wl,-rpath,@loader_path"]
else:
    CORE.extra_link_args += ["-Wl,-soname,_core.abi3.so"]
    PYTHON.extra_link_args += ["-Wl,-rpath,$ORIGIN"]
    if not OWN_FLAGS:  # without the names of functions that nobody links to
        CORE.extra_link_args += ["-Wl,-s"]


class Build(BuildExtension):
    """Compiles the sources next to each other, on as many cores as there are.

    A machine without a compiler gets the reference backend, and the reason: here and, by a file, at every import.
    """

    def build_extensions(self) -> None:
        one_after_the_other = self.compiler.compile

        def compile(sources, *args, **kwargs):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: one_after_the_other([source], *args, **kwargs), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile
        core = self.get_ext_fullpath(CORE.name)
        PYTHON.extra_link_args.append(core)
        reason = Path(core).with_name("_C_error.txt")  # read by rnnkernels/backends
        reason.unlink(missing_ok=True)
        try:
            super().build_extensions()
        except Exception as error:  # of any kind: compilers are looked for by torch, distutils and the system
            self.warn(f"the C++ extension could not be built: {error}")
            reason.parent.mkdir(parents=True, exist_ok=True)
            reason.write_text(str(error))
            self.extensions.clear()  # nothing to copy


def readme() -> str:
    """README.md with links and pictures that lead to the repository from anywhere, as PyPI's page needs them."""
    repository = re.search(r'^Repository = "(.*)"$', (HERE / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]
    version = re.search(r'"(.*)"', (HERE / "rnnkernels/_version.py").read_text("utf-8").splitlines()[-1])[1]

    def absolute(link: re.Match) -> str:
        return f"{link[1]}{repository}/{'raw' if link[1].startswith('!') else 'blob'}/v{version}/{link[2]}"

    return re.sub(r"(!?\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+)", absolute, (HERE / "README.md").read_text("utf-8"))


HAS_EXTENSION = os.environ.get("RNNKERNELS_NO_EXTENSION") != "1" and sys.platform != "win32"
if HAS_EXTENSION and sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(
        "rnnkernels: a free-threaded Python cannot load the C++ extension, which is built on Python's stable ABI "
        "(abi3). Take a Python with the global interpreter lock, or RNNKERNELS_NO_EXTENSION=1 for the slow reference"
    )

setup(
    ext_modules=[CORE, PYTHON] if HAS_EXTENSION else [],
    cmdclass={"build_ext": Build.with_options(use_ninja=False)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if HAS_EXTENSION else {},
    long_description=readme(),
    long_description_content_type="text/markdown",
)
