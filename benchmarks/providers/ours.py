"""Our own providers: the modules of rnnkernels, and for single steps its Stepper, which packs the weights once.

Resets and lengths are arguments of the modules; heads are `vmap` over stacked weights.
"""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from benchmarks.providers.case import TORCH_DTYPES, Case, Heads, Job, Unsupported, build, provider


def rnnkernels() -> ModuleType:
    """Imported when a job is made, and not with this file (worker.py)."""
    return importlib.import_module("rnnkernels")


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
    case.refuse_extras("quantize_dynamic")
    try:
        module = rnnkernels().quantize_dynamic(case.module_of(rnnkernels()))
    except NotImplementedError as error:
        raise Unsupported(str(error)) from None
    return case.job(module)


@provider("rnnkernels", package="rnnkernels", devices=("cpu", "cuda"), int8=ours_int8)
def ours(case: Case, dtype: str | None = None, inputs: dict[str, Tensor] | None = None) -> Job:
    module = case.module_of(rnnkernels(), dtype)
    if case.workload.heads > 1:
        stacked = StackedHeads(module).train(module.training)
        job = case.job(stacked)
        return Job(job.run, stacked.separate(job.read))
    lengths = None if case.lengths is None else case.lengths.to(case.workload.device)
    given = {"lengths": lengths, "reset": case.reset, **(inputs or case.inputs)}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    return case.job(module, partial(module, **given) if given else module, dtype)


def in_dtype(case: Case, dtype: str = "float64") -> Job:
    """The case in another dtype than its own. Masks are the same in float64 from the same seed."""
    return ours(case, dtype, {name: t.to(TORCH_DTYPES[dtype]) for name, t in case.inputs.items()})


def reference_job(case: Case, dtype: str = "float64") -> Job:
    """The same on the reference, which is plain torch."""
    if case.workload.options:
        case.refuse_stacks("what is checked with options")
    job = in_dtype(case, dtype)

    def forced():
        with rnnkernels().backends.force("reference"):
            return job.run()

    return Job(forced, job.read)


def schedule_of(case: Case) -> str:
    """The backend and schedule that `explain` names for the first layer."""
    from rnnkernels.tools.explain import describe

    w, library = case.workload, build(rnnkernels(), case.workload)
    module = library[0] if isinstance(library, nn.ModuleList) else library
    module = module.to(**case.kind()).train(case.train)
    x = torch.empty(w.T, w.B, module.input_size, **case.kind())
    lengths = None if case.lengths is None else case.lengths.to(w.device)
    with torch.set_grad_enabled(case.train):
        call = rnnkernels().explain(module, x, lengths=lengths, reset=case.reset).layers[0].call
        layer = describe(0, call._replace(D=call.D * w.heads))
    return f"{layer.backend}: {layer.schedule}"


@provider("stepper", package="rnnkernels")
def stepper(case: Case) -> Job:
    """One `step_` into a tensor that is there; the state goes on from call to call, as it does in a stream."""
    w = case.workload
    case.refuse_extras("the Stepper", "single")
    if w.T != 1 or case.train:
        raise Unsupported("for inference of single steps (T = 1)")
    if w.bidirectional or w.alternating:
        raise Unsupported("a stream has no future to walk back from")
    module = case.module_of(rnnkernels())
    step_ = rnnkernels().Stepper(module.cell if w.single else module, w.B).step_
    x, y = case.x[0], torch.empty(w.B, w.H, dtype=TORCH_DTYPES[case.dtype])

    def run() -> torch.Tensor:
        step_(x, y)
        return y

    return Job(run, lambda out: {"y": out.clone()[None]})


@provider("built_in", package="rnnkernels", default=False)
def built_in(case: Case) -> Job:
    """Beside a cell of one's own, our layer of the same cell."""
    return importlib.import_module("benchmarks.providers.own_cells").built_in(case)


@provider("public", package="rnnkernels", default=False, weights=True)
def public(case: Case) -> Job:
    """The public implementation of a cell of one's own."""
    return importlib.import_module("benchmarks.providers.own_cells").public(case)
