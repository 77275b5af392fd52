"""Providers for GPUs: FlashRNN's fused CUDA kernels, which take the input's gates and keep the weights on chip,
and TorchRL's GRU and LSTM modules on their Triton and their scan backend, where states are reset.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.providers.case import TORCH_DTYPES, Case, Job, Unsupported, provider


def torchrl_job(case: Case, backend: str) -> Job:
    """The case's weights in TorchRL's module, which reads batch-first TensorDicts with a mask of first steps."""
    w = case.workload
    if not w.resets:
        raise Unsupported("measured where states are reset")
    if w.cell == "rnn" or w.bidirectional or w.alternating or w.heads > 1 or w.packed or w.options:
        raise Unsupported(f"TorchRL has no {w.kind}")
    from tensordict import TensorDict
    from torchrl.modules import GRUModule, LSTMModule

    dtype = TORCH_DTYPES[case.dtype]
    inner = getattr(nn, w.cell.upper())(w.I, w.H, w.L, batch_first=True)
    inner.load_state_dict(case.module.state_dict())
    inner = inner.to(w.device, dtype).train(case.train)
    states = ["h"] if w.cell == "gru" else ["h", "c"]
    module = {"gru": GRUModule, "lstm": LSTMModule}[w.cell](
        **{w.cell: inner}, in_keys=["x", *states, "is_init"], out_keys=["y", *(("next", name) for name in states)],
        recurrent_backend=backend, default_recurrent_mode=True,
        recurrent_matmul_precision="tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee",  # as cuDNN
        recurrent_compute_dtype=dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32,
    )  # fmt: skip
    zeros = torch.zeros(w.B, w.T, w.L, w.H, dtype=dtype, device=w.device)
    is_init = case.reset.t()[..., None].clone()
    is_init[:, 0] = True

    def call(x: Tensor) -> tuple[Tensor, None]:
        given = {"x": x.transpose(0, 1), "is_init": is_init, **dict.fromkeys(states, zeros)}
        return module(TensorDict(given, [w.B, w.T]))["y"].transpose(0, 1), None

    return case.job(inner, call)


for _backend in ("triton", "scan"):
    _make = partial(torchrl_job, backend=_backend)
    provider(f"torchrl_{_backend}", package="torchrl", devices=("cuda",))(_make)

FUNCTIONS = {"lstm": ("lstm", 4), "gru": ("gru", 3), "rnn": ("elman", 1)}  # FlashRNN's names, and how many gates


@provider("flashrnn", package="flashrnn", devices=("cuda",))
def flashrnn_job(case: Case, backend: str = "cuda_fused") -> Job:
    w = case.workload
    case.refuse_extras("FlashRNN")
    if w.bidirectional or w.alternating or w.L > 1:
        raise Unsupported("FlashRNN is one layer in one direction")
    if case.dtype == "float64":
        raise Unsupported("FlashRNN has no float64")
    from flashrnn import flashrnn

    function, G = FUNCTIONS[w.cell]
    module = case.module_of(nn)

    def call(x: Tensor) -> tuple[Tensor, None]:
        gates = linear(x.transpose(0, 1), module.weight_ih_l0).unflatten(-1, (G, 1, w.H))  # (B, T, G, heads, H)
        r, b_ih, b_hh = (
            t.unflatten(0, (G, 1, w.H)) for t in (module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0)
        )
        bias = b_ih + b_hh
        if w.cell == "gru":  # its order is n, r, z for what recurs, and its biases are n's two, r and z
            r, bias = r.roll(1, 0), torch.cat([b_hh[2:], bias[:2], b_ih[2:]])
        states, _ = flashrnn(gates, r, bias, function=function, backend=backend, dtype=case.dtype)
        return states[0].flatten(2).transpose(0, 1), None

    return case.job(module, call)
