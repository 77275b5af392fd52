"""Our own providers: the modules of rnnkernels, and for single steps its Stepper, which packs the weights once.

Resets and lengths are arguments of the modules; heads are `vmap` over stacked weights.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from benchmarks.providers.case import (
    SEED,
    TORCH_DTYPES,
    Case,
    Heads,
    Job,
    Unsupported,
    build,
    job_of,
    masks,
    module_of,
    provider,
    refuse_extras,
    refuse_stacks,
)


class StackedHeads(nn.Module):
    """The heads of a case as one call of one module, by vmap over its weights."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.one = [heads[0]]  # in a list: its own weights are no parameters of this
        self.names = list(dict(heads[0].named_parameters()))
        each = [dict(head.named_parameters()) for head in heads]
        self.stacked = nn.ParameterList(
            nn.Parameter(torch.stack([p[name].detach() for p in each])) for name in self.names
        )

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        weights = dict(zip(self.names, self.stacked, strict=True))
        x_XTBI = x.unflatten(-1, (len(self.stacked[0]), -1)).permute(2, 0, 1, 3)
        y_XTBH = vmap(lambda p, part: functional_call(self.one[0], p, (part,))[0])(weights, x_XTBI)
        return y_XTBH.permute(1, 2, 0, 3).flatten(2), None

    def separate(self, read):
        """What ``read`` gives, with the gradients by the names that they have in the case's module."""

        def named(out) -> dict[str, Tensor]:
            found = {}
            for name, tensor in read(out).items():
                if not name.startswith("dstacked."):
                    found[name] = tensor
                    continue
                parameter = self.names[int(name.removeprefix("dstacked."))]
                found |= {f"d{n}.{parameter}": part for n, part in enumerate(tensor)}
            return found

        return named


def ours_int8(case: Case) -> Job:
    library = importlib.import_module("rnnkernels")
    refuse_extras("quantize_dynamic", case.workload)
    try:
        module = library.quantize_dynamic(module_of(library, case))
    except NotImplementedError as error:
        raise Unsupported(str(error)) from None
    return job_of(module, case)


@provider("rnnkernels", package="rnnkernels", devices=("cpu", "cuda"), int8=ours_int8)
def ours(case: Case) -> Job:
    library, w = importlib.import_module("rnnkernels"), case.workload
    module = module_of(library, case)
    if w.heads > 1:
        stacked = StackedHeads(module).train(module.training)
        job = job_of(stacked, case)
        return Job(job.run, stacked.separate(job.read))
    if case.reset is None and case.lengths is None:
        return job_of(module, case)
    lengths = None if case.lengths is None else case.lengths.to(w.device)
    return job_of(module, case, call=partial(module, lengths=lengths, reset=case.reset))


def reference_job(case: Case) -> Job:
    """The case with its options in float64 on the reference, with the masks that the seed gives in the case's dtype."""
    from rnnkernels import backends
    from rnnkernels.cells.call import LayerCall
    from rnnkernels.nn.base import MODES
    from rnnkernels.nn.masks import EPS
    from rnnkernels.nn.options import PLAIN, settings
    from rnnkernels.op import run

    w = case.workload
    refuse_stacks("what is checked with options", w)
    module = module_of(importlib.import_module("rnnkernels"), case, "float64")
    torch.manual_seed(SEED)
    h_mask, zone = masks(w, case.mode == "train", case.x)
    cell, activation, gate = settings(*MODES[module.mode], module._rk_options or PLAIN)

    def layer(x):
        return run.layer(
            LayerCall(
                cell, x, [], module._flat_weights, activation=activation, recurrent_activation=gate,
                lengths=case.lengths, reset=case.reset, h_mask=None if h_mask is None else h_mask.double(),
                zone=[z.double() for z in zone], layer_norm=module.layer_norm, eps=EPS,
            )
        )  # fmt: skip

    job = job_of(module, case, call=layer, dtype="float64")

    def forced():
        with backends.force("reference"):
            return job.run()

    return Job(forced, job.read)


def schedule_of(case: Case) -> str:
    """The backend and schedule that `explain` names for the first layer."""
    import rnnkernels
    from rnnkernels.tools.explain import describe

    w, dtype = case.workload, TORCH_DTYPES[case.dtype]
    library = build(rnnkernels, w)
    module = library[0] if isinstance(library, torch.nn.ModuleList) else library
    module = module.to(w.device, dtype).train(case.mode == "train")
    x = torch.empty(w.T, w.B, module.input_size, device=w.device, dtype=dtype)
    lengths = None if case.lengths is None else case.lengths.to(w.device)
    with torch.set_grad_enabled(case.mode == "train"):
        call = rnnkernels.explain(module, x, lengths=lengths, reset=case.reset).layers[0].call
        layer = describe(0, call._replace(D=call.D * w.heads))
    return f"{layer.backend}: {layer.schedule}"


@provider("stepper", package="rnnkernels")
def stepper(case: Case) -> Job:
    """One `step_` into a tensor that is there; the state goes on from call to call, as it does in a stream."""
    w = case.workload
    refuse_extras("the Stepper", replace(w, single=False))
    if w.T != 1 or case.mode != "infer":
        raise Unsupported("for inference of single steps (T = 1)")
    library = importlib.import_module("rnnkernels")
    if w.bidirectional or w.alternating:
        raise Unsupported("a stream has no future to walk back from")
    module = module_of(library, case)
    step_ = library.Stepper(module.cell if w.single else module, w.B).step_
    x, y = case.x[0], torch.empty(w.B, w.H, dtype=TORCH_DTYPES[case.dtype])

    def run() -> torch.Tensor:
        step_(x, y)
        return y

    return Job(run, lambda out: {"y": out.clone()[None]})
