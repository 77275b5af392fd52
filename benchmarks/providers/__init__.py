"""Providers: who computes a workload. A provider is one function that builds a callable; `@provider` registers it.

The function is given a `Case` (the inputs, and a torch.nn module that holds the weights) and returns a `Job`. It raises
`Unsupported(reason)` for what it does not do; the reason stands in the table in place of a time. ``int8`` of that
names the same with quantised weights. The modules of this package import their library inside the function, so that a
run imports nothing that it does not measure.
"""

# The order of these imports is the order of the providers in the tables.
from benchmarks.providers import torch_modules, onnx_graph, jax_scan, gpu_peers  # noqa: F401, I001
from benchmarks.providers import loops, keras_layer, ours  # noqa: F401, I001
from benchmarks.providers.case import PROVIDERS, SEED, TORCH_DTYPES, Case, Job, Provider, Unsupported  # noqa: F401
from benchmarks.providers.case import module_job, provider  # noqa: F401

OURS = ("rnnkernels", "stepper", "built_in")  # everyone else is a peer
