"""Formulas for the FLOP counters of torch and other packages, registered once these are imported.

Matrix products are counted, as for torch.nn's own: a step multiplies every matrix of a layer once per sequence. Padding
past ``lengths`` counts too, because the shapes do not show it. Letters as in op/schema.py.
"""

import functools
import math

import torch

from ..recorders.imports import when_imported
from .convert import TO_TORCH


def products(x, weights):
    """Multiplications of a forward pass, from the shapes of x (..., T, B, I) and of all weights."""
    return math.prod(x[-3:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)


def layer_flops(cell, x, states, weights, *args, out_shape=None, **kwargs):
    """Two operations, a multiplication and an addition, for each product of two numbers."""
    return 2 * products(x, weights)


def layer_backward_flops(dy, dlast, dcells, cell, x, states, weights, reverse, *args, out_shape=None, **kwargs):
    """The products for the gradient of the states, which runs through all steps; for x and the weights if needed."""
    needs = args[-1]
    D = len(reverse) * (x[0] if len(x) == 4 else 1)
    of_x = products(x, weights[:: len(weights) // D])
    everything = products(x, weights)
    return 2 * (everything * (1 + needs[2]) - (0 if needs[0] else of_x))


def stack_flops(x, states, weights, *args, out_shape=None, **kwargs):
    """As ``layer_flops``, for all layers."""
    return 2 * products(x, weights)


def register_in_torch(module):
    """``torch.utils.flop_counter``: the ops with and without autograd, and those of the reference."""
    ops = torch.ops.rnnkernels
    for kind in ("", "plain_", "reference_", "plain_reference_"):
        module.register_flop_formula(getattr(ops, f"{kind}layer"))(layer_flops)
        module.register_flop_formula(getattr(ops, f"{kind}layer_backward"))(layer_backward_flops)
    module.register_flop_formula((ops.stack, ops.plain_stack))(stack_flops)


def register_in_fvcore(module):
    """``fvcore.nn.flop_count``: handles of the ops in traced graphs; fvcore counts a product once, not twice."""

    def handle(x, weights):
        def count(inputs, outputs):
            return products(inputs[x].type().sizes(), [w.type().sizes() for w in inputs[weights].node().inputs()])

        return count

    supported = module._DEFAULT_SUPPORTED_OPS
    supported["rnnkernels::layer"] = supported["rnnkernels::reference_layer"] = handle(1, 3)
    supported["rnnkernels::stack"] = handle(0, 2)


def register_in_ptflops(module):
    """``ptflops``, backend ``aten``: rules of the ops, of which it counts a product once, as fvcore does."""

    def rule(x, weights):
        return lambda inputs, outputs: products(inputs[x].shape, [w.shape for w in inputs[weights]])

    ops, table = torch.ops.rnnkernels, module.ATEN_OPS_MAPPING
    for kind in ("", "plain_", "reference_", "plain_reference_"):
        table[getattr(ops, f"{kind}layer")] = rule(1, 3)
    table[ops.stack] = table[ops.plain_stack] = rule(0, 2)


def register_classes(table, module):
    """Rules of torch.nn's classes for ours, in the dict called ``table`` of a package that looks for the very class."""
    rules = getattr(module, table)
    for ours, theirs in TO_TORCH.items():
        if theirs in rules:  # it is not where a program has put our classes in the place of torch.nn's
            rules.setdefault(ours, rules[theirs])


when_imported("torch.utils.flop_counter", register_in_torch)
when_imported("fvcore.nn.flop_count", register_in_fvcore)
when_imported("ptflops.aten_ops", register_in_ptflops)
TABLES = {
    "thop.profile": "register_hooks", "ptflops.pytorch_ops": "MODULES_MAPPING",
    "torch_pruning.utils.op_counter": "MODULES_MAPPING", "calflops.pytorch_ops": "MODULE_HOOK_MAPPING",
    "deepspeed.profiling.flops_profiler.profiler": "MODULE_HOOK_MAPPING",
}  # fmt: skip
for name, table in TABLES.items():
    when_imported(name, functools.partial(register_classes, table))
