"""What all tests share: one table of tolerances, one way to compare, one way to make a call of the op, and so on."""

from typing import NamedTuple

import pytest
import torch

from rnnkernels.cells import CELLS
from rnnkernels.cells.call import LayerCall
from rnnkernels.op import run

# Largest error allowed, relative to the largest magnitude of what is expected.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def error(actual, expected):
    """The largest error, relative to the largest magnitude of ``expected``; infinite where ``actual`` is not finite."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    if not actual.isfinite().all():
        return float("inf")
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def magnitudes(dtype, n=4096):
    """Numbers of all magnitudes and both signs for an activation, from subnormal ones to where it saturates, and the
    special ones last."""
    random = torch.Generator().manual_seed(0)
    special = [0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).max, -torch.finfo(dtype).max]
    parts = []
    for lowest, highest in (
        (torch.finfo(dtype).smallest_normal / 1e6, 1e-30),
        (1e-30, 1e-3),
        (1e-3, 1.0),
        (1.0, 110.0),
    ):
        logs = torch.tensor([lowest, highest], dtype=torch.float64).log()
        part = torch.empty(n // 8, dtype=torch.float64).uniform_(*logs.tolist(), generator=random).exp()
        parts += [part, -part]
    return torch.cat([*parts, torch.tensor(special, dtype=torch.float64)]).to(dtype)


def units(actual, expected):
    """The largest error in units of the last place of ``actual``'s dtype; ``expected`` are float64, or mpmath numbers.
    Infinite where one is NaN and the other is not, or where a sign is wrong."""
    most = 0.0
    for a, e in zip(actual.tolist(), expected, strict=True):
        if a != a and e != e:
            continue
        rounded = torch.tensor(abs(float(e)), dtype=actual.dtype)
        unit = (torch.nextafter(rounded, rounded + 1) - rounded).item()
        most = max(most, float(abs(a - e)) / unit if a * e >= 0 else float("inf"))
    return most


def assert_close(name, actual, expected, tolerance=None):
    """Whether a tensor has the shape of another, and its values within the tolerance of its own dtype."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    tolerance = TOLERANCES[actual.dtype] if tolerance is None else tolerance
    if not expected.detach().any():  # zeros have no magnitude to relate to
        assert not actual.numel() or actual.detach().abs().max() <= tolerance, f"{name}: expected zeros"
        return
    e = error(actual, expected)
    assert e <= tolerance, f"{name}: error {e:.2e} of {tolerance:.0e} allowed"


def refused(main, arguments, capsys):
    """What a command says last before it ends with status 2, as it does where its arguments are wrong."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def run_layer(cell, x, states, weights, **more):
    """``run.layer`` of the ``LayerCall`` with these fields, and with what else ``run.layer`` takes."""
    fields = {name: more.pop(name) for name in LayerCall._fields if name in more}
    return run.layer(LayerCall(cell, x, states, weights, **fields), **more)


class Case(NamedTuple):
    """A call of the op for one layer; letters as in op/schema.py."""

    cell: str
    states: int
    """S, or 0 where no states are given."""
    tensors: list
    """x, *states, *weights: all leaves that require gradients."""
    settings: dict
    """Keyword arguments of ``run_layer``."""

    def split(self, tensors):
        n = 1 + self.states
        return tensors[0], list(tensors[1:n]), list(tensors[n:])

    def __call__(self, *tensors, **more):
        """``(y, *last)``, or ``(y, *last, cells)`` with ``return_cells``, as a function of the tensors."""
        y, last, *cells = run_layer(self.cell, *self.split(tensors), **{**self.settings, **more})
        return (y, *last, *cells)

    def detached(self):
        return [t.detach() for t in self.tensors]


def make_case(
    cell, T=3, B=2, I=3, H=4, P=0, reverse=(False,), bias=True, layer_norm=False, states=True,  # noqa: E741
    dtype=torch.float64, seed=0, **settings,
):  # fmt: skip
    """A ``Case`` with random tensors; P > 0 for a projection, ``states=False`` for zero initial states."""
    random = torch.Generator().manual_seed(seed)
    G, S, D = CELLS[cell].gates, CELLS[cell].states, len(reverse)
    shapes = [(T, B, I)] + ([(D, B, P or H), (D, B, H)][:S] if states else [])
    per_direction = [(G * H, I), (G * H, P or H)] + [(G * H,)] * (2 * bias) + [(P, H)] * (P > 0)
    if layer_norm:
        per_direction += [(G * H,)] * 2 + [(H,)] * (2 * (S > 1))
    shapes += per_direction * D
    tensors = [(0.6 * torch.randn(s, generator=random, dtype=torch.float64)).to(dtype).requires_grad_() for s in shapes]
    settings |= {"reverse": reverse, "bias": bias, "project": P > 0, "layer_norm": layer_norm}
    return Case(cell, S if states else 0, tensors, settings)


UNUSABLE_TEXTS = {
    "missing": (None, "No such file"),
    "empty": (b"", "empty"),
    "binary": (b"\x7fELF\0\0\1" * 1000, "binary"),
    "latin-1": (b"caf\xe9 " * 2000, "not UTF-8 text (byte 3)"),
    "short": (b"too little to learn\n" * 5, "too short: "),
}


def unusable(name, folder):
    """A file that no example can read as text, or learn from, and what is said of it."""
    content, words = UNUSABLE_TEXTS[name]
    path = folder / "text.txt"
    if content is not None:
        path.write_bytes(content)
    return path, words
