"""A program for an installed wheel (make test-wheel): its promises on any Python and torch, with torch alone beside it.

It exits with an error at the first promise that is not kept; run it as ``python -I tests/wheel_smoke.py``, so that it
sees the installed package instead of the sources.
"""

import copy
import importlib.resources
import platform
import subprocess
import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("error")
import rnnkernels  # noqa: E402 - a warning of it is an error

DOUBLE = {"dtype": torch.float64}


def states_of(hx):
    return hx if isinstance(hx, tuple) else (hx,)


def results(layer, x):
    """The output, the final states, and all gradients of a sum of them."""
    x = x.clone().requires_grad_()
    y, hx = layer(x)
    loss = y.square().sum() + sum(s.sum() for s in states_of(hx))
    loss.backward()
    return [y, *states_of(hx), x.grad, *(p.grad for p in layer.parameters())]


def the_extension_is_there():
    assert rnnkernels.backends.EXTENSION_ERROR is None, rnnkernels.backends.EXTENSION_ERROR
    assert "cpp" in rnnkernels.backends.available()
    assert "site-packages" in rnnkernels.__file__, rnnkernels.__file__


def the_package_has_types():
    assert importlib.resources.files("rnnkernels").joinpath("py.typed").is_file()


def layers_agree_with_torch():
    deep = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        for options in ({}, deep, *([{"proj_size": 3}] if kind is nn.LSTM else [])):
            torch.manual_seed(0)
            theirs = kind(5, 7, **options, **DOUBLE)
            ours = rnnkernels.convert(copy.deepcopy(theirs))
            assert type(ours).__module__ == "rnnkernels"
            x = torch.randn(6, 4, 5, **DOUBLE)
            for a, b in zip(results(theirs, x), results(ours, x), strict=True):
                torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)
            with torch.no_grad():
                torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=1e-10, atol=1e-12)


def a_layer_compiles_into_one_graph():
    layer, x = rnnkernels.LSTM(5, 7, **DOUBLE), torch.randn(6, 4, 5, **DOUBLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, in its compiler
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for a, b in zip(results(layer, x), results(compiled, x), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def layers_with_options_and_own_cells_compile():
    x = torch.randn(6, 4, 5)
    for layer in (
        rnnkernels.LSTM(5, 7, layer_norm=True, zoneout=0.1).eval(), rnnkernels.GRU(5, 8, heads=2),
        rnnkernels.Recurrent(rnnkernels.cells.peephole_lstm, 5, 7),
    ):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, in its compiler
            compiled = torch.compile(layer, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(x)[0], layer(x)[0])


def a_layer_exports_with_dynamic_sizes():
    layer, x = rnnkernels.LSTM(5, 7).eval(), torch.randn(9, 3, 5)
    sizes = {0: torch.export.Dim("T", min=2, max=99), 1: torch.export.Dim("B", min=2, max=99)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(layer, (torch.randn(6, 4, 5),), dynamic_shapes=(sizes,))
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])


def a_stepper_agrees_with_its_layer():
    layer, x = rnnkernels.GRU(5, 7, num_layers=2), torch.randn(6, 2, 5)
    stepper = rnnkernels.Stepper(layer, batch_size=2)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack([stepper.step(frame) for frame in x]), layer(x)[0])


def int8_is_near():
    model, x = nn.Sequential(nn.LSTM(8, 16)).eval(), torch.randn(3, 2, 8)
    with torch.no_grad():
        error = (rnnkernels.quantize_dynamic(model)(x)[0] - model(x)[0]).abs().max()
    assert error < 0.05, error


def autocast_and_per_sample_gradients():
    layer, x = rnnkernels.LSTM(5, 7), torch.randn(3, 4, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x[0])[0].dtype == torch.bfloat16
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,))[0].sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)["weight_hh_l0"]
    expected = torch.autograd.grad(layer(x[1])[0].sum(), layer.weight_hh_l0)[0]
    torch.testing.assert_close(gradients[1], expected, rtol=1e-4, atol=1e-5)


def a_cell_of_ones_own_runs():
    layer, x = rnnkernels.Recurrent(rnnkernels.cells.li_gru, 5, 7, **DOUBLE), torch.randn(6, 4, 5, **DOUBLE)
    y = results(layer, x)
    with rnnkernels.backends.force("reference"):
        layer.zero_grad()
        for a, b in zip(results(layer, x), y, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def the_command_line_says_what_is_there():
    done = subprocess.run([sys.executable, "-I", "-m", "rnnkernels"], capture_output=True, text=True)
    assert done.returncode == 0 and "(in use)" in done.stdout, done.stdout + done.stderr


PROMISES = (
    the_extension_is_there, the_package_has_types, layers_agree_with_torch, a_layer_compiles_into_one_graph,
    layers_with_options_and_own_cells_compile,
    a_layer_exports_with_dynamic_sizes, a_stepper_agrees_with_its_layer, int8_is_near,
    autocast_and_per_sample_gradients, a_cell_of_ones_own_runs, the_command_line_says_what_is_there,
)  # fmt: skip

if __name__ == "__main__":
    print(f"rnnkernels {rnnkernels.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    for promise in PROMISES:
        promise()
        print(f"  {promise.__name__.replace('_', ' ')}", flush=True)
