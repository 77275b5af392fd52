"""A case (one workload to compute) and a job (how a provider computes it), and the register of providers.

T time, B batch, I input, H hidden, D directions, G gates.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.workloads import Workload

# What x has: an int8 row is about the weights.
TORCH_DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
TORCH_DTYPES["int8"] = torch.float32
SEED = 0
EXTRAS = {"resets": "takes no reset mask", "heads": "has no heads", "packed": "takes no lengths here"}
EXTRAS |= {"single": "is not measured with cells", "own": "has no cells of one's own"}


class Unsupported(Exception):
    """The provider does not do this workload; the text says why."""


class Job(NamedTuple):
    run: Callable[[], Any]  # what is timed
    read: Callable[[Any], dict[str, Tensor]]  # what `run` gave, by name, as tensors: y, then the gradients

    def warmed(self, calls: int = 1) -> Job:
        """The job after its first calls, in which some libraries compile: that is no part of its time and memory."""
        for _ in range(calls):
            self.run()
        return self


@dataclass
class Case:
    """One workload in one dtype and one mode, with its weights and inputs. The same seed gives the same numbers."""

    workload: Workload
    dtype: str
    mode: str  # "infer" or "train"
    threads: int = 1  # for the providers that are told when they are built; torch's own number is set beside
    # In float32 on the CPU, the source of the weights: torch.nn's, or where torch.nn has no such layer ours.
    module: nn.Module = field(init=False)
    x: Tensor = field(init=False)  # (T, B, I)
    dy: Tensor = field(init=False)  # (T, B, D * H), the gradient that training starts from; all heads side by side
    inputs: dict[str, Tensor] = field(init=False, default_factory=dict)  # more of them, of cells of one's own: 0 to 1
    reset: Tensor | None = field(init=False, default=None)  # (T, B): the steps at which the state restarts from zero
    lengths: Tensor | None = field(init=False, default=None)  # (B,), on the CPU, where torch wants them

    def __post_init__(self) -> None:
        w = self.workload
        torch.manual_seed(SEED)
        self.module = build(importlib.import_module("rnnkernels") if w.options or w.own else torch.nn, w)
        if w.own and hasattr(self.module, "cell"):
            program = self.module.cell.program
            shapes = {name: (w.T, w.B, 1 if name in program.narrow else w.H) for name in program.step}
            shapes |= {name: (w.B, w.H) for name in program.sequence}
            self.inputs = {name: torch.rand(shape).to(**self.kind()) for name, shape in shapes.items()}
        self.x = torch.randn(w.T, w.B, w.I).to(**self.kind())
        self.dy = torch.randn(w.T, w.B, w.H * w.D * w.heads).to(**self.kind())
        if w.resets:
            self.reset = (torch.rand(w.T, w.B) < w.resets).to(w.device)
        if w.packed:
            self.lengths = torch.randint(1, w.T + 1, (w.B,))
            self.lengths[0] = w.T

    @property
    def train(self) -> bool:
        return self.mode == "train"

    def kind(self, dtype: str | None = None) -> dict[str, Any]:
        """Device and dtype of its tensors, as torch has them; `dtype` replaces its own."""
        return {"device": self.workload.device, "dtype": TORCH_DTYPES[dtype or self.dtype]}

    def refuse_extras(self, name: str, *but: str) -> None:
        """Raise Unsupported for what libraries with torch.nn's layers do not have."""
        for extra, text in EXTRAS.items():
            if extra not in but and getattr(self.workload, extra) != getattr(Workload, extra):
                raise Unsupported(f"{name} {text}")
        if self.workload.options:
            raise Unsupported(f"{name} has no {' and '.join(dict(self.workload.options))}")

    def refuse_stacks(self, name: str) -> None:
        """Raise Unsupported for all but one layer in one direction."""
        w = self.workload
        if w.L > 1 or w.D > 1 or w.alternating or w.heads > 1:
            raise Unsupported(f"{name} is one layer in one direction here")

    def module_of(self, library: ModuleType, dtype: str | None = None) -> nn.Module:
        """The module on a library with torch.nn's classes; `dtype` replaces the case's own."""
        module = build(library, self.workload)
        module.load_state_dict(self.module.state_dict())
        # First rounded to the case's dtype, so that a float64 job computes the very same function.
        module = module.to(TORCH_DTYPES[self.dtype]).to(**self.kind(dtype))
        return module.train(self.train)

    def job(self, module: nn.Module, call: Callable | None = None, dtype: str | None = None) -> Job:
        """A job on a module that is called as torch.nn's are; `call` stands in for that (a compiled one)."""
        call = torch_call(module, self) if call is None else call
        x, dy = self.x.to(**self.kind(dtype)), self.dy.to(**self.kind(dtype))
        leaves = {name: t.requires_grad_(self.train) for name, t in {"x": x, **self.inputs}.items()}
        leaves |= {name: p for name, p in module.named_parameters() if p.requires_grad}
        return torch_job(lambda: call(x)[0], self.mode, leaves, dy)


def torch_job(call: Callable[[], Tensor], mode: str, leaves: dict[str, Tensor], dy: Tensor) -> Job:
    """A job of what computes y, in training with the gradients of the leaves."""
    if mode == "infer":
        return Job(call, lambda y: {"y": y})
    names, tensors = ("y", *(f"d{name}" for name in leaves)), tuple(leaves.values())

    def step() -> tuple[Tensor | None, ...]:
        y = call()
        return y, *torch.autograd.grad(y, tensors, dy, allow_unused=True)

    return Job(step, lambda out: {n: t.detach() for n, t in zip(names, out, strict=True) if t is not None})


def module_job(library: ModuleType, case: Case, dtype: str | None = None) -> Job:
    """A job on a library with torch.nn's classes, holding the case's weights; `dtype` replaces the case's own."""
    return case.job(case.module_of(library, dtype), dtype=dtype)


class Alternating(nn.ModuleList):
    """One-layer modules in a row; the odd ones walk backwards in time (a basecaller's stack)."""

    def forward(self, y: Tensor) -> tuple[Tensor, None]:
        for n, layer in enumerate(self):
            y = layer(y.flip(0))[0].flip(0) if n % 2 else layer(y)[0]
        return y, None


class Heads(nn.ModuleList):
    """Modules side by side, each with its part of the input and of the output."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        parts = x.chunk(len(self), -1)
        return torch.cat([head(part)[0] for head, part in zip(self, parts, strict=True)], -1), None


class Step(nn.Module):
    """A cell as a layer of one step, from zeros."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        y = self.cell(x[0])
        return (y[0] if isinstance(y, tuple) else y)[None], None


def build(library: ModuleType, w: Workload) -> nn.Module:
    """The workload's module, from a library with torch.nn's classes: torch.nn itself, or rnnkernels."""
    if w.own:
        return importlib.import_module("benchmarks.providers.own_cells").layer_of(w)
    if w.single:
        return Step(getattr(library, f"{w.cell.upper()}Cell")(w.I, w.H))
    cls = getattr(library, w.cell.upper(), None)
    if cls is None:
        raise Unsupported(f"{getattr(library, '__name__', library)} has no {w.cell.upper()}")
    options = dict(w.options)
    if options and library is torch.nn:
        raise Unsupported(f"torch.nn has no {' and '.join(options)}")
    if w.alternating:
        return Alternating(cls(w.I if n == 0 else w.H, w.H, **options) for n in range(w.L))
    if w.heads > 1:
        return Heads(cls(w.I // w.heads, w.H, w.L, **options) for _ in range(w.heads))
    return cls(w.I, w.H, w.L, bidirectional=w.bidirectional, **options)


def masks(w: Workload, train: bool, like: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """The masks of one layer, drawn as rnnkernels says that it draws them: the same from the same seed.

    That of the recurrent dropout (1, B, H), or None, and for each state that of the zoneout (T, 1, B, H), or outside
    training its probability (1, 1, 1, 1).
    """
    options, states = dict(w.options), 2 if w.cell == "lstm" else 1
    h_mask, zone, kind = None, [], {"dtype": like.dtype, "device": like.device}
    if train and options.get("recurrent_dropout"):
        h_mask = torch.dropout(torch.ones(1, w.B, w.H, **kind), options["recurrent_dropout"], True)
    if p := options.get("zoneout"):
        zone = [torch.full((1, 1, 1, 1), p, **kind) for _ in range(states)]
        if train:
            random_bools = importlib.import_module("rnnkernels.nn.masks").random_bools
            zone = [random_bools(p, (w.T, 1, w.B, w.H), like.device).to(like.dtype) for _ in zone]
    return h_mask, zone


def split_and_pad(module: nn.Module, reset: Tensor, x: Tensor) -> tuple[Tensor, None]:
    """torch.nn's way with resets: each piece between two of them becomes a row of a longer batch, padded with zeros."""
    T, B = reset.shape
    starts = reset.clone()
    starts[0] = True
    starts_BT = starts.t().flatten()
    piece = starts_BT.cumsum(0) - 1
    first = starts_BT.nonzero().squeeze(1)
    at = torch.arange(B * T, device=x.device) - first[piece]
    rows = x.new_zeros(int(at.max()) + 1, len(first), x.size(2))
    y = module(rows.index_put((at, piece), x.transpose(0, 1).flatten(0, 1)))[0]
    return y[at, piece].unflatten(0, (B, T)).transpose(0, 1), None


def packed(module: nn.Module, lengths: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """torch.nn's way with rows of different lengths; zeros behind their ends."""
    y = module(pack_padded_sequence(x, lengths, enforce_sorted=False))[0]
    return pad_packed_sequence(y, total_length=x.size(0))


def torch_call(module: nn.Module, case: Case) -> Callable[[Tensor], tuple]:
    """What computes the case with a module that has torch.nn's abilities."""
    if case.reset is not None:
        return partial(split_and_pad, module, case.reset)
    return module if case.lengths is None else partial(packed, module, case.lengths)


def directions(case: Case) -> list[list[tuple[dict[str, str], bool]]]:
    """The layers of a case, each a list of its directions: the names that its parameters have in the case's module, by
    their names without a suffix, and whether it walks backwards in time."""
    w = case.workload

    def named(prefix: str, suffix: str) -> dict[str, str]:
        whole = [n for n, _ in case.module.named_parameters() if n.startswith(prefix) and n.endswith(suffix)]
        return {n.removeprefix(prefix).removesuffix(suffix): n for n in whole}

    if w.alternating:
        return [[(named(f"{n}.", "_l0"), bool(n % 2))] for n in range(w.L)]
    return [[(named("", f"_l{n}" + "_reverse" * d), bool(d)) for d in range(w.D)] for n in range(w.L)]


Make = Callable[[Case], Job]


@dataclass
class Provider:
    """Who computes a workload: the package it needs, the devices it runs on, and the functions that build its jobs."""

    make: Make
    package: str
    devices: tuple[str, ...] = ("cpu",)
    int8: Make | None = None  # builds the job with quantised weights
    default: bool = True  # whether it is measured where no providers are named
    weights: bool = False  # whether it has weights of its own, which it puts into the case's module

    def job(self, case: Case) -> Job:
        """Build the job, or raise Unsupported."""
        if case.workload.device not in self.devices:
            raise Unsupported(f"runs on {' and '.join(self.devices)} only here")
        if case.dtype != "int8":
            return self.make(case)
        if self.int8 is None:
            raise Unsupported("no int8 weights")
        if case.mode != "infer":
            raise Unsupported("int8 weights are for inference")
        return self.int8(case)

    def missing(self) -> str | None:
        """Why the package cannot be imported, without importing it."""
        found = importlib.util.find_spec(self.package)
        return None if found else f"cannot be imported: no module named {self.package!r}"


PROVIDERS: dict[str, Provider] = {}


def provider(name: str, package: str, **more: Any) -> Callable[[Make], Make]:
    """Register the decorated function as a provider that needs a package; ``more``: fields of `Provider`."""

    def register(make: Make) -> Make:
        PROVIDERS[name] = Provider(make, package, **more)
        return make

    return register
