"""Provider FlashRNN: its fused CUDA kernels, which take the input's pre-activations and keep the weights on chip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.providers.case import Case, Job, Unsupported, job_of, module_of, provider, refuse_extras

FUNCTIONS = {"lstm": "lstm", "gru": "gru", "rnn": "elman"}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def flashrnn_job(case: Case, backend: str) -> Job:
    w = case.workload
    refuse_extras("FlashRNN", w)
    if w.bidirectional or w.alternating or w.L > 1:
        raise Unsupported("FlashRNN is one layer in one direction")
    if case.dtype == "float64":
        raise Unsupported("FlashRNN has no float64")
    from flashrnn import flashrnn

    G = GATES[w.cell]
    module = module_of(torch.nn, case)

    def call(x: Tensor) -> tuple[Tensor, None]:
        w_ih, w_hh, b_ih, b_hh = (
            getattr(module, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        gates = linear(x.transpose(0, 1), w_ih).unflatten(-1, (G, 1, w.H))  # (B, T, G, heads, H)
        r = w_hh.unflatten(0, (G, 1, w.H))
        b = b_ih.unflatten(0, (G, 1, w.H)), b_hh.unflatten(0, (G, 1, w.H))
        if w.cell == "gru":  # its order is n, r, z for what recurs, and its biases are n's two, r and z
            r, bias = r.roll(1, 0), torch.cat([b[1][2:], b[0][:2] + b[1][:2], b[0][2:]])
        else:
            bias = b[0] + b[1]
        states, _ = flashrnn(gates, r, bias, function=FUNCTIONS[w.cell], backend=backend, dtype=case.dtype)
        return states[0].flatten(2).transpose(0, 1), None

    return job_of(module, case, call=call)


@provider("flashrnn", package="flashrnn", devices=("cuda",))
def flashrnn_fused(case: Case) -> Job:
    return flashrnn_job(case, "cuda_fused")
