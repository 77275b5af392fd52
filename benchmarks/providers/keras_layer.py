"""The provider from Keras 3 on torch: its layers, which have masks for rows that end early and the GRU's reset_after.

Its weights and their gradients go through ``rnnkernels.keras``.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from benchmarks.providers.case import Case, Job, Unsupported, provider, torch_job

LAYERS = {"rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}


@provider("keras", package="keras", default=False)
def keras_layer(case: Case) -> Job:
    w, options = case.workload, dict(case.workload.options)
    case.refuse_stacks("the Keras layer")
    if case.dtype != "float32":
        raise Unsupported("measured in float32: Keras computes parts of float64 in it too")
    if w.resets:
        raise Unsupported("Keras takes no reset mask")
    if options.pop("recurrent_dropout", None):
        raise Unsupported("Keras takes no masks, and draws one for each gate: nothing to check it against")
    options.pop("reset_after", None)
    if options:
        raise Unsupported(f"Keras has no {' and '.join(options)}")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("KERAS_TORCH_DEVICE", w.device)
    import keras

    import rnnkernels
    from rnnkernels.keras import export_weights, ordered, parameters_of, shapes

    if keras.backend.backend() != "torch":
        raise Unsupported(f"Keras runs on {keras.backend.backend()} here: set KERAS_BACKEND=torch")
    module = case.module_of(rnnkernels)
    settings = {"reset_after": module.reset_after} if w.cell == "gru" else {}
    layer = getattr(keras.layers, LAYERS[w.cell])(
        w.H, return_sequences=True, zero_output_for_mask=True, dtype=case.dtype, **settings
    )
    layer.build((w.B, w.T, w.I))
    layer.set_weights(export_weights(module))
    mask = None if case.lengths is None else torch.arange(w.T) < case.lengths[:, None]
    x, dy, train = case.x.transpose(0, 1), case.dy.transpose(0, 1), case.train
    names = [name for name, _ in shapes(module)]
    weights = dict(zip(names, (variable.value for variable in layer.trainable_weights), strict=True))
    leaves = {"x": x.requires_grad_(train), **weights}
    job = torch_job(lambda: layer(x, mask=mask, training=train), case.mode, leaves, dy)

    def read(out: Any) -> dict[str, Tensor]:
        """By torch.nn's names: where Keras has one bias, both of torch.nn's have its gradient."""
        given = job.read(out)
        found = {name: given.pop(name).transpose(0, 1) for name in ("y", "dx") if name in given}
        for name in names if train else ():
            grad = given[f"d{name}"]
            if name.startswith("bias") and grad.dim() == 1:
                found |= dict.fromkeys(("dbias_ih_l0", "dbias_hh_l0"), ordered(grad, w.cell))
            else:
                found |= {f"d{name}": value for name, value in parameters_of(module, name, grad).items()}
        return found

    return Job(job.run, read)
