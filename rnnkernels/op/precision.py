"""torch's switches for the precision of float32 products, as they rule the C++ backend.

GPUs: backends/triton/schedules.py.
"""

import torch

PARTS = {"tf32": 2, "bf16": 1}


def parts(x):
    """The bf16 parts of a float32 number in products: 2 or 1 where a switch allows it, 0 (all of them) elsewhere.

    ``torch.backends.mkldnn.rnn.fp32_precision`` decides, and where it is not set the switch for matrix products, which
    ``torch.set_float32_matmul_precision`` sets too. Compilers take the value that they meet.
    """
    return PARTS.get(switch(), 0) if x.dtype == torch.float32 and x.is_cpu else 0


def switch():
    """What torch's switches say: "ieee", "tf32", "bf16", or "none"."""
    value = torch._C._get_fp32_precision_getter("mkldnn", "rnn")
    return torch._C._get_fp32_precision_getter("mkldnn", "matmul") if value == "none" else value


switch._dynamo_marked_constant = True  # torch.compiler.assume_constant_result: run while tracing
