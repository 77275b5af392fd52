"""FLOP counters: the products of every cell, direction, projection and head, forward and backward, counted by hand."""

import functools
import importlib
import sys
import types

import fresh
import pytest
import torch
from common import make_case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import rnnkernels
from rnnkernels import counters
from rnnkernels.cells import CELLS
from rnnkernels.recorders.imports import when_imported

T, B, I, H = 5, 3, 4, 6  # noqa: E741
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


LAYERS = {  # the entries of all matrices that a step multiplies, over G
    "plain": ({}, H * (I + H)),
    "both directions, two layers": ({"bidirectional": True, "num_layers": 2}, 2 * H * (I + H) + 2 * H * (2 * H + H)),
    "batch first": ({"batch_first": True}, H * (I + H)),
    "heads": ({"heads": 2}, H * (I + H // 2)),
    "recurrent dropout": ({"recurrent_dropout": 0.5}, H * (I + H)),
    "layer norm": ({"layer_norm": True, "bias": False}, H * (I + H)),
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("name", GATES)
def test_layers(backend, name, case):
    options, matrices = LAYERS[case]
    module, x = getattr(rnnkernels, name)(I, H, **options), torch.randn(T, B, I, requires_grad=True)
    x_given = x.transpose(0, 1) if "batch_first" in options else x
    forward = 2 * T * B * GATES[name] * matrices
    assert counted(torch.no_grad()(lambda: module(x_given))) == forward
    assert counted(lambda: module(x_given)) == forward
    assert counted(lambda: module(x_given)[0].sum().backward()) == 3 * forward


@pytest.mark.parametrize("name", GATES)
def test_what_is_not_needed_is_not_counted(name):
    module, x = getattr(rnnkernels, name)(I, H), torch.randn(T, B, I)
    of_x, of_h = 2 * T * B * GATES[name] * H * I, 2 * T * B * GATES[name] * H * H
    assert counted(lambda: module(x)[0].sum().backward()) == 3 * (of_x + of_h) - of_x  # x has no gradient
    module.requires_grad_(False)
    assert counted(lambda: module(x.requires_grad_())[0].sum().backward()) == 2 * (of_x + of_h)  # weights have none


def test_other_cells():
    x, P = torch.randn(T, B, I, requires_grad=True), 2
    projected = rnnkernels.LSTM(I, H, proj_size=P)
    assert counted(lambda: projected(x)[0].sum().backward()) == 3 * 2 * T * B * (4 * H * (I + P) + P * H)
    before = rnnkernels.GRU(I, H, reset_after=False)
    assert counted(lambda: before(x)[0].sum().backward()) == 3 * 2 * T * B * 3 * H * (I + H)
    for name, gates in GATES.items():
        cell = getattr(rnnkernels, f"{name}Cell")(I, H)
        assert counted(torch.no_grad()(lambda: cell(x.detach()[0]))) == 2 * B * gates * H * (I + H)  # noqa: B023
    again = rnnkernels.LSTM(I, H, recompute=True)  # the gates are computed twice
    assert counted(lambda: again(x)[0].sum().backward()) == 4 * 2 * T * B * 4 * H * (I + H)


@pytest.mark.parametrize("cell", CELLS)
def test_ops_and_groups(cell):
    """The raw ops, and the one call that stands for several under vmap."""
    case = make_case(cell, T=T, B=B, I=I, H=H, reverse=(False, True))
    each = 2 * T * B * 2 * CELLS[cell].gates * H * (I + H)
    tensors = case.detached()
    assert counted(lambda: case(*tensors)) == each
    many = [torch.stack([t, t, t]) for t in tensors]
    assert counted(lambda: torch.func.vmap(case)(*many)) == 3 * each
    loss = lambda *t: case(*t)[0].sum()  # noqa: E731
    every = tuple(range(len(tensors)))
    assert counted(lambda: torch.func.vmap(torch.func.grad(loss, every))(*many)) == 3 * 3 * each


def test_int8():
    module = rnnkernels.quantize_dynamic(rnnkernels.GRU(I, H))
    assert counted(torch.no_grad()(lambda: module(torch.randn(T, B, I)))) == 2 * T * B * 3 * H * (I + H)


@pytest.mark.parametrize("package, table", counters.TABLES.items())
def test_tables_of_classes(package, table, monkeypatch, tmp_path):
    """Packages that look for the very class: ours get the rules of torch.nn's, whichever is imported first."""
    *folders, last = package.split(".")
    folder = tmp_path.joinpath(*folders)
    folder.mkdir(parents=True)
    names = [n + c for n in ("RNN", "GRU", "LSTM") for c in ("", "Cell")]
    rules = f"import torch\n{table} = {{getattr(torch.nn, name): name for name in {names}}}\n"
    (folder / f"{last}.py").write_text(rules)
    register = functools.partial(counters.register_classes, table)

    def imported():
        for k in range(len(folders) + 1):
            monkeypatch.delitem(sys.modules, ".".join((*folders, last)[: k + 1]), raising=False)
        when_imported(package, register)
        return getattr(importlib.import_module(package), table)

    monkeypatch.syspath_prepend(tmp_path)
    found = imported()
    assert found[rnnkernels.LSTM] == "LSTM" and found[rnnkernels.GRUCell] == "GRUCell" and len(found) == 12
    late = types.SimpleNamespace(**{table: {k: v for k, v in found.items() if k.__module__.startswith("torch")}})
    register(late)
    assert getattr(late, table) == found
    for name in names:  # a program that puts our classes in the place of torch.nn's
        monkeypatch.setattr(torch.nn, name, getattr(rnnkernels, name))
    assert imported() == {getattr(rnnkernels, name): name for name in names}
    monkeypatch.delitem(sys.modules, package)


def test_ptflops():
    """Its rules, in a mode that calls them as its own does."""
    rules, found = types.SimpleNamespace(ATEN_OPS_MAPPING={}), []
    counters.register_in_ptflops(rules)

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **kwargs or {})
            rule = rules.ATEN_OPS_MAPPING.get(op.overloadpacket)
            found.append(rule(args, out if isinstance(out, tuple) else (out,)) if rule else 0)
            return out

    module = rnnkernels.LSTM(I, H, 2, bidirectional=True)
    for grad in (torch.no_grad, torch.enable_grad):
        with grad(), Mode():
            found.clear()
            module(torch.randn(T, B, I))
        assert sum(found) == T * B * 2 * 4 * H * (I + H + 2 * H + H)


def test_fvcore():
    """Its handles, on the nodes of a graph that torch.jit.trace made, as fvcore gives them."""
    table = types.SimpleNamespace(_DEFAULT_SUPPORTED_OPS={})
    counters.register_in_fvcore(table)
    for module, products in (
        (rnnkernels.LSTM(I, H, 2, bidirectional=True), T * B * 2 * 4 * H * (I + H + 2 * H + H)),
        (rnnkernels.GRUCell(I, H), B * 3 * H * (I + H)),
    ):
        x = torch.randn(T, B, I) if isinstance(module, torch.nn.RNNBase) else torch.randn(B, I)
        graph, _ = torch.jit._get_trace_graph(module, (x,))
        found = [
            table._DEFAULT_SUPPORTED_OPS[node.kind()](list(node.inputs()), list(node.outputs()))
            for node in graph.nodes() if node.kind().startswith("rnnkernels::")
        ]  # fmt: skip
        assert sum(found) == products


def test_registration_waits_for_the_counter():
    """The import of this package does not import torch's counter, which takes Triton along."""
    code = "import rnnkernels, sys; assert 'torch.utils.flop_counter' not in sys.modules\n"
    code += "import torch, torch.utils.flop_counter as c; assert torch.ops.rnnkernels.stack in c.flop_registry"
    fresh.python("-c", code).check_returncode()
