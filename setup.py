"""Builds the C++ extension on torch's stable ABI (one abi3 wheel for torch >= 2.10); all else is in pyproject.toml.

Without a compiler, or with RNNKERNELS_NO_EXTENSION=1, the package installs without it and runs on the reference.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

HERE = Path(__file__).parent
EXTENSION = CppExtension(
    "rnnkernels._C",
    sorted(str(path.relative_to(HERE)) for path in HERE.glob("csrc/**/*.cpp")),
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
            *os.environ.get("RNNKERNELS_CXX_FLAGS", "").split(),
        ]
    },
)


class Build(BuildExtension):
    """Compiles the sources next to each other, on as many cores as there are."""

    def build_extensions(self) -> None:
        one_after_the_other = self.compiler.compile

        def compile(sources, *args, **kwargs):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: one_after_the_other([source], *args, **kwargs), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile
        super().build_extensions()


EXTENSION.optional = True  # a machine without a compiler gets a warning and the reference backend

setup(
    ext_modules=[] if os.environ.get("RNNKERNELS_NO_EXTENSION") == "1" else [EXTENSION],
    cmdclass={"build_ext": Build.with_options(use_ninja=False)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
