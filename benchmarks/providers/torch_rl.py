"""Providers from TorchRL: its GRU and LSTM modules on their Triton and their scan backend, where states are reset."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.providers.case import TORCH_DTYPES, Case, Job, Unsupported, job_of, provider


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
    inner = inner.to(w.device, dtype).train(case.mode == "train")
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

    return job_of(inner, case, call=call)


@provider("torchrl_triton", package="torchrl", devices=("cuda",))
def torchrl_triton(case: Case) -> Job:
    return torchrl_job(case, "triton")


@provider("torchrl_scan", package="torchrl", devices=("cuda",))
def torchrl_scan(case: Case) -> Job:
    return torchrl_job(case, "scan")
