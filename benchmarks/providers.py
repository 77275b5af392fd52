"""Providers: who computes a workload. A provider is one function that builds a callable; `@provider` registers it.

The function is given a `Case` (the inputs, and a torch.nn module that holds the weights) and returns a `Job`. It raises
`Unsupported(reason)` for what it does not do; the reason stands in the table in place of a time. T time, B batch,
I input, H hidden, D directions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.workloads import Workload

TORCH_DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
SEED = 0


class Unsupported(Exception):
    """The provider does not do this workload; the text says why."""


class Job(NamedTuple):
    run: Callable[[], Any]  # what is timed
    read: Callable[[Any], dict[str, Tensor]]  # what `run` gave, by name, as tensors: y, then the gradients


@dataclass
class Case:
    """One workload in one dtype and one mode, with its weights and inputs. The same seed gives the same numbers."""

    workload: Workload
    dtype: str
    mode: str  # "infer" or "train"
    module: nn.Module = field(init=False)  # torch.nn, in float32 on the CPU: the source of the weights
    x: Tensor = field(init=False)  # (T, B, I)
    dy: Tensor = field(init=False)  # (T, B, D * H), the gradient that training starts from

    def __post_init__(self) -> None:
        w = self.workload
        torch.manual_seed(SEED)
        self.module = build(torch.nn, replace(w, resets=0.0, heads=1))
        kind = {"device": w.device, "dtype": TORCH_DTYPES[self.dtype]}
        self.x = torch.randn(w.T, w.B, w.I).to(**kind)
        self.dy = torch.randn(w.T, w.B, w.H * (2 if w.bidirectional else 1)).to(**kind)


class Alternating(nn.ModuleList):
    """One-layer modules in a row; the odd ones walk backwards in time (a basecaller's stack)."""

    def forward(self, y: Tensor) -> tuple[Tensor, None]:
        for n, layer in enumerate(self):
            y = layer(y.flip(0))[0].flip(0) if n % 2 else layer(y)[0]
        return y, None


def build(library: Any, w: Workload) -> nn.Module:
    """The workload's module, from a library with torch.nn's classes: torch.nn itself, or rnnkernels."""
    name = getattr(library, "__name__", str(library))
    if w.resets:
        raise Unsupported(f"{name} modules take no reset mask")
    if w.heads > 1:
        raise Unsupported(f"{name} modules have no heads")
    cls = getattr(library, w.cell.upper(), None)
    if cls is None:
        raise Unsupported(f"{name} has no {w.cell.upper()}")
    if w.alternating:
        return Alternating(cls(w.I if n == 0 else w.H, w.H) for n in range(w.L))
    return cls(w.I, w.H, w.L, bidirectional=w.bidirectional)


def module_job(library: Any, case: Case, dtype: str | None = None) -> Job:
    """A job on a library with torch.nn's classes, holding the case's weights; `dtype` replaces the case's own."""
    kind = {"device": case.workload.device, "dtype": TORCH_DTYPES[dtype or case.dtype]}
    module = build(library, case.workload)
    module.load_state_dict(case.module.state_dict())
    # First rounded to the case's dtype, so that a float64 job computes the very same function.
    module = module.to(TORCH_DTYPES[case.dtype]).to(**kind)
    x, dy = case.x.to(**kind), case.dy.to(**kind)

    if case.mode == "infer":
        module.eval()
        return Job(lambda: module(x)[0], lambda y: {"y": y})

    x.requires_grad_()
    names, weights = zip(*module.named_parameters(), strict=True)

    def step() -> tuple[Tensor, ...]:
        y = module(x)[0]
        return y, *torch.autograd.grad(y, (x, *weights), dy)

    named = ("y", "dx", *(f"d{name}" for name in names))
    return Job(step, lambda out: dict(zip(named, (t.detach() for t in out), strict=True)))


PROVIDERS: dict[str, Callable[[Case], Job]] = {}
PACKAGES: dict[str, str] = {}  # what each provider imports


def provider(name: str, package: str) -> Callable[[Callable[[Case], Job]], Callable[[Case], Job]]:
    """Register the decorated function as a provider that needs a package."""

    def register(make: Callable[[Case], Job]) -> Callable[[Case], Job]:
        PROVIDERS[name], PACKAGES[name] = make, package
        return make

    return register


@provider("torch", package="torch")
def torch_nn(case: Case) -> Job:
    return module_job(torch.nn, case)


@provider("rnnkernels", package="rnnkernels")
def ours(case: Case) -> Job:
    return module_job(importlib.import_module("rnnkernels"), case)
