"""Cases for a GPU: every cell on every schedule in every dtype, forward and backward, against float64; and whether long
calls give the same bits every time. `benchmarks.gpu` begins with these, and test_gpu.py has the latter. On a CPU they
run the C++ kernels, or under TRITON_INTERPRET=1 the interpreted Triton kernels.

T time, B batch, I input, H hidden.
"""

from __future__ import annotations

import copy
import itertools
import os
import time
import traceback
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from common import TOLERANCES, error
from torch import Tensor

DTYPES = {
    "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "fp64": torch.float64,
}  # fmt: skip
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
REFUSED = "is forced but cannot run this layer"  # what schedules.choose says then
TF32 = 3e-3  # of the largest value: ten bits of the operands, as in float16
NORMED = 5e-2  # bfloat16 with layer norms, which magnify rounding: changes of the last digit make as much
INPUT = 24
SIZES = {"resident": 61, "cooperative": 200, "stepwise": 100}  # hidden units, with a remainder for every tile


class Case(NamedTuple):
    """A layer, and what it is called with."""

    kind: str  # a class of rnnkernels, or one of OWN
    schedule: str
    dtype: str  # of DTYPES
    H: int
    T: int = 33
    B: int = 19
    options: tuple[tuple[str, Any], ...] = ()  # of the class
    call: tuple[str, ...] = ()  # of "lengths", "reset", "hx"
    repeats: int = 0  # compared with itself so many times, and not with float64

    @property
    def name(self) -> str:
        options = "".join(f", {k}={v}" for k, v in self.options) + "".join(f", {word}" for word in self.call)
        again = f", {self.repeats} times" if self.repeats else ""
        return f"{self.kind} {self.schedule} {self.dtype} T{self.T} B{self.B} H{self.H}{options}{again}"


CELLS = [
    ("LSTM", ()), ("GRU", ()), ("RNN", ()), ("GRU", (("reset_after", False),)), ("RNN", (("nonlinearity", "relu"),)),
]  # fmt: skip
VARIANTS: list[tuple[str, tuple, tuple]] = [
    ("LSTM", (("bidirectional", True),), ("lengths", "hx")),
    ("GRU", (("bidirectional", True), ("num_layers", 2)), ("lengths",)),
    ("LSTM", (), ("reset", "hx")),
    ("GRU", (), ("reset",)),
    ("LSTM", (("proj_size", 16),), ("lengths",)),
    ("LSTM", (("layer_norm", True),), ()),
    ("GRU", (("layer_norm", True),), ("lengths",)),
    ("GRU", (("reset_after", False), ("layer_norm", True)), ()),
    ("LSTM", (("zoneout", 0.2),), ()),
    ("LSTM", (("activation", "relu"), ("recurrent_activation", "hard_sigmoid")), ()),
    ("GRU", (("bias", False),), ()),
]
NORM = (("layer_norm", True),)
# Cells as users write them: vectors, inputs of a step and of a sequence, four states, a second product, none, norms.
OWN = ("peephole_lstm", "gru_d", "ea_lstm", "slstm", "mgu", "min_gru", "normed")
EDGES = [
    Case("LSTM", "cooperative", "bf16", 640, B=33), Case("GRU", "cooperative", "bf16", 768, B=16),
    Case("LSTM", "cooperative", "bf16", 1024, B=16), Case("LSTM", "cooperative", "fp32", 512, B=16),
    Case("LSTM", "cooperative", "tf32", 512, B=16), Case("GRU", "cooperative", "fp16", 1000, B=3),
    Case("LSTM", "stepwise", "bf16", 640, B=130), Case("GRU", "stepwise", "bf16", 512, B=200),
    Case("LSTM", "resident", "bf16", 128, B=65), Case("LSTM", "resident", "bf16", 18, T=1, B=1),
    Case("LSTM", "cooperative", "bf16", 256, T=1, B=1), Case("GRU", "stepwise", "fp32", 640, T=1, B=1),
]  # fmt: skip


def has(case: Case, option: str) -> bool:
    """Whether a layer has an option, by its name or its value."""
    return any(option in (name, value) for name, value in case.options)


def has_norms(case: Case) -> bool:
    """Whether a layer has norms."""
    return has(case, "layer_norm") or case.kind == "normed"


def planned(schedules: tuple[str, ...]) -> list[Case]:
    """Cells in all dtypes first, then variants and cells of users in two, then sizes at the edges of the tables.

    Not relu with rounded operands: on either side of its kink gradients have nothing in common. Few steps with layer
    norms, where errors grow with the steps.
    """
    found = [
        Case(kind, schedule, dtype, SIZES[schedule], options=options)
        for dtype in DTYPES
        for (kind, options), schedule in itertools.product(CELLS, schedules)
    ]
    found += [
        Case(kind, schedule, dtype, SIZES[schedule], options=options, call=call)
        for (kind, options, call), schedule, dtype in itertools.product(VARIANTS, schedules, ("bf16", "fp32"))
    ]
    found += [
        Case(kind, schedule, dtype, SIZES[schedule])
        for kind, schedule, dtype in itertools.product(OWN, schedules, ("bf16", "fp32"))
    ]
    found = [case for case in found if case.dtype in ("fp32", "fp64") or not has(case, "relu")]
    found = [case._replace(T=7) if has_norms(case) else case for case in found]
    return found + [case for case in EDGES if case.schedule in schedules]


def races(quick: bool) -> list[Case]:
    """Programs and warps that race show it sooner or later: 2,000 steps, 20 times, the same bits."""
    T, times = (5, 2) if quick else (2000, 20)
    sizes = [("cooperative", 64), ("cooperative", 512), ("cooperative", 1024), ("resident", 64), ("stepwise", 256)]
    found = [
        Case(kind, schedule, "bf16", 20 if quick else H, T, 16 if H == 1024 else 32, repeats=times)
        for schedule, H in sizes
        for kind in ("LSTM", "GRU")
    ]
    # programs meet a second time for the norms of rows that they share
    norms = Case("normed", "cooperative", "bf16", 256), Case("LSTM", "cooperative", "bf16", 512, options=NORM)
    found += [case._replace(H=20 if quick else case.H, T=T, B=32, repeats=times) for case in norms]
    return list(dict.fromkeys(found))


def results(module: torch.nn.Module, x: Tensor, dy: Tensor, states: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs without and with gradients, final states, and the gradients of all inputs and parameters by name."""
    device, dtype = next(module.parameters()).device, next(module.parameters()).dtype
    put = {"device": device, "dtype": dtype}
    x, dy = x.to(**put).requires_grad_(), dy.to(**put)
    states = [s.to(**put).requires_grad_() for s in states]
    hx = None if not states else states[0] if len(states) == 1 else tuple(states)
    given = {name: t.to(device) for name, t in given.items()}
    beside = {name: t.to(dtype).requires_grad_() for name, t in given.items() if t.is_floating_point()}
    given |= beside
    with torch.no_grad():
        inferred = module(x, hx, **given)[0]
    y, last = module(x, hx, **given)
    last = last if isinstance(last, tuple) else (last,)
    names, parameters = zip(*module.named_parameters(), strict=True)
    leaves = (x, *states, *beside.values(), *parameters)
    gradients = torch.autograd.grad((y * dy).sum() + sum(s.sum() for s in last), leaves)
    names = ("x", *(f"hx[{n}]" for n in range(len(states))), *beside, *names)
    found = {"y without gradients": inferred, "y": y, **{f"last[{n}]": s for n, s in enumerate(last)}}
    return found | {f"d{name}": g for name, g in zip(names, gradients, strict=True)}


def poison(device: str) -> None:
    """Leave NaN in the memory that comes next, so that nothing is right because it was zero before."""
    if device == "cuda":
        for elements in (1 << 14, 1 << 17, 1 << 22, 1 << 25):
            blocks = [torch.full((elements,), torch.nan, device=device) for _ in range(4)]
            del blocks


@contextmanager
def float32_as(precision: str):
    """Within this context float32 products, in RNNs and elsewhere, are as torch's switches say: "tf32" or "ieee"."""
    switches = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = precision
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def run(case: Case, device: str) -> dict:
    """{"case", "seconds", "error", "of"}; with a "reason" if it is wrong, "refused" if the schedule cannot run it."""
    start = time.perf_counter()
    try:
        with float32_as("tf32" if case.dtype == "tf32" else "ieee"):
            found = same(case, device) if case.repeats else right(case, device)
    except Exception as error:
        text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        found = {"refused": text} if REFUSED in text else {"reason": text, "trace": traceback.format_exc()[-2000:]}
    return {"case": case.name, **found, "seconds": time.perf_counter() - start}


def module_of(case: Case):
    """The module, x, dy, initial states, and the other arguments of the call."""
    import rnnkernels

    torch.manual_seed(0)
    if case.kind in OWN:
        from generated_cases import normed  # no cell of the library has norms

        cell = normed if case.kind == "normed" else getattr(rnnkernels.cells, case.kind)
        module = rnnkernels.Recurrent(cell, INPUT, case.H, **dict(case.options))
    else:
        module = getattr(rnnkernels, case.kind)(INPUT, case.H, **dict(case.options))
    module = module.to(DTYPES[case.dtype]).eval()
    if DTYPES[case.dtype].itemsize == 2:  # larger weights make the recurrence chaotic: it magnifies rounding
        for parameter in module.parameters():
            parameter.data *= 0.25 if parameter.dim() > 1 else 1.0
    random = torch.Generator().manual_seed(1)
    D, width = 1 + module.bidirectional, module.proj_size or case.H
    draw = lambda *shape: torch.randn(shape, generator=random).to(DTYPES[case.dtype])  # noqa: E731
    x, dy = draw(case.T, case.B, INPUT), draw(case.T, case.B, D * width)
    states, given = [], {}
    if "hx" in case.call:
        shapes = [(width,), (case.H,)][: 2 if case.kind == "LSTM" else 1]
        states = [draw(D * module.num_layers, case.B, *shape) for shape in shapes]
    if "lengths" in case.call:
        given["lengths"] = torch.randint(0, case.T + 1, (case.B,), generator=random)
    if "reset" in case.call:
        given["reset"] = torch.rand(case.T, case.B, generator=random) < 0.1
    if case.kind in OWN:  # from 0 to 1, as decays and gates are
        shapes = dict.fromkeys(cell.program.step, (case.T, case.B, case.H))
        shapes |= dict.fromkeys(cell.program.sequence, (case.B, case.H))
        given |= {name: torch.rand(shape, generator=random).to(x.dtype) for name, shape in shapes.items()}
    return module, x, dy, states, given


@contextmanager
def running(case: Case, device: str):
    """Within this context its schedule is forced. On a CPU, under TRITON_INTERPRET=1, so is the Triton backend, whose
    programs that wait for each other run at once."""
    from rnnkernels import backends
    from rnnkernels.backends.triton import schedules

    with ExitStack() as stack:
        stack.enter_context(schedules.force(case.schedule))
        if device == "cpu" and INTERPRETED:
            import triton_shim

            triton_shim.install()
            stack.enter_context(backends.force("triton"))
            if case.schedule == "cooperative":
                stack.enter_context(triton_shim.concurrent_grid())
        yield


def right(case: Case, device: str) -> dict:
    """Its errors against the same module in float64 on the CPU."""
    module, *rest = module_of(case)
    expected = results(copy.deepcopy(module).double(), *rest)
    poison(device)
    with running(case, device):
        actual = results(module.to(device), *rest)
    found = {name: error(actual[name].cpu(), value) for name, value in expected.items()}
    worst = max(found, key=found.__getitem__)
    rounding = TF32 if case.dtype == "tf32" else NORMED if case.dtype == "bf16" and has(case, "layer_norm") else 0.0
    allowed = max(rounding, TOLERANCES[DTYPES[case.dtype]])
    fault = None if found[worst] <= allowed else f"wrong {worst}: error {found[worst]:.1e}, allowed {allowed:.1e}"
    return {"error": found[worst], "of": worst} | ({"reason": fault} if fault else {})


def same(case: Case, device: str) -> dict:
    """Whether so many calls give the bits of the first, outputs and gradients."""
    module, *rest = module_of(case)
    module = module.to(device)
    with running(case, device):
        first = results(module, *rest)
        for n in range(case.repeats):
            again = results(module, *rest)
            other = [name for name in first if not torch.equal(first[name], again[name])]
            if other:
                return {"reason": f"other bits of {', '.join(other)} in call {n + 2}"}
    return {"error": 0.0, "of": "no bit"}
