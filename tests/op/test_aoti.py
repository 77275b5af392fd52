"""AOTInductor: an exported layer runs as a package in this process, and in a C++ program that has loaded the core."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import cpp_extension

import rnnkernels
from rnnkernels import backends

COMPILER = shutil.which("g++") or shutil.which("c++")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the exporter and of the compiler's own modules
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(backends.EXTENSION_ERROR is not None, reason="the C++ extension is not there"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = rnnkernels.LSTM(5, 6, 2, batch_first=True, bidirectional=True)
        self.gru = rnnkernels.GRU(12, 4, batch_first=True)

    def forward(self, x):
        return self.gru(self.lstm(x)[0])[0]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 11, 5)
    sizes = {0: torch.export.Dim("B", min=1, max=512), 1: torch.export.Dim("T", min=1, max=512)}
    path = str(tmp_path_factory.mktemp("aoti") / "model.pt2")
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=(sizes,))
        quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # to compile; it is the wrapper that calls our op
        return model, torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=quick)


def counting(B, T):
    return torch.arange(B * T * 5).view(B, T, 5) / 100


def test_in_this_process(package):
    model, path = package
    run = torch._inductor.aoti_load_package(path)
    for B, T in ((4, 11), (1, 3), (9, 1)):
        with torch.no_grad():  # in training, torch's own ops compute the single step
            assert torch.equal(run(counting(B, T)), model(counting(B, T)))


def test_without_python(package, tmp_path):
    model, path = package
    lib, program = Path(torch.__file__).parent / "lib", tmp_path / "main"
    include = [f"-I{directory}" for directory in cpp_extension.include_paths()]
    links = [f"-L{lib}", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl", f"-Wl,-rpath,{lib}"]
    source = Path(__file__).parent / "aoti_main.cpp"
    subprocess.run([COMPILER, "-std=c++20", "-O0", "-w", *include, source, "-o", program, *links], check=True)
    core = next(Path(rnnkernels.__file__).parent.glob("_core*.so"))
    done = subprocess.run([program, path, core], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with torch.no_grad():
        expected = [model(counting(B, T)).sum().item() for B, T in ((4, 11), (1, 3))]
    found = [float(line) for line in done.stdout.split()]
    assert found == pytest.approx(expected, rel=1e-5), done.stdout
