"""One case of the C++ ops: its shape, its tensors, and the comparison with the reference in float64.

What runs cases is cpp_worker.py. Letters as in op/schema.py.
"""

from typing import NamedTuple

import torch
from common import assert_close

from rnnkernels.cells import CELLS, reference

OPS = torch.ops.rnnkernels
ONE_PHASE = [name for name, spec in CELLS.items() if spec.phases == 1]
TWO_PHASE = [name for name in CELLS if name not in ONE_PHASE]
HALVES = (torch.bfloat16, torch.float16)
BOTH = (False, True)
ALL = (True, True, True)
NAN = float("nan")


class Shape(NamedTuple):
    """What a case of the grid consists of; its text is what a failure prints."""

    cell: str
    dtype: torch.dtype = torch.float32
    T: int = 3
    B: int = 3
    I: int = 5  # noqa: E741 - the letter of schema.py
    H: int = 20
    P: int = 0  # the size of the projection, 0 for none
    X: int = 0  # how many groups have an input of their own, 0 for a plain input
    reverse: tuple = (False,)
    bias: bool = True
    activation: str | None = None
    lengths: str | None = None  # "ragged" (with zeros), "grouped" (for every group its own), "zeros"
    states: bool = True
    layout: str | None = None  # how tensors lie in memory, see laid_out
    dlast: bool = True
    dcells: bool = False
    needs: tuple = ALL
    threads: int = 1
    gate: str | None = None  # recurrent_activation
    stages: str = ""  # words out of reset, restart (to given states), h_mask, zone, zone_mask (of zeros and ones), norm

    def __repr__(self):
        default = Shape(self.cell)
        changed = [f"{k}={v}" for k, v in self._asdict().items() if k in "TBIH" or v != getattr(default, k)]
        return f"{self.cell} {' '.join(changed)}".replace("torch.", "")

    def features(self):
        """What two cases may have in common: all but the numbers of sizes."""
        kinds = self._asdict() | {"P": self.P > 0, "T": min(self.T, 4), "B": min(self.B, 2)}
        kinds["I"], kinds["H"] = None, self.B >= 16 or self.H >= 64  # large enough for products of bf16 parts
        return list(kinds.items())


def cells(*names, **shape):
    """The same case for several cells, or for all."""
    return [Shape(cell, **shape) for cell in (names or CELLS)]


def laid_out(tensor, layout):
    """A tensor of the same shape that lies in memory in another way; "expanded" has other values, too."""
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "batch first" and tensor.dim() > 2:
        return tensor.transpose(-2, -3).contiguous().transpose(-2, -3)
    if layout == "sliced":
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.size(-1) + 1), NAN, dtype=tensor.dtype)
        wide[..., 1::2] = tensor
        return wide[..., 1::2]
    if layout == "padded":  # rows with a gap between them
        wide = torch.full((*tensor.shape[:-1], tensor.size(-1) + 3), NAN, dtype=tensor.dtype)
        wide[..., 1:-2] = tensor
        return wide[..., 1:-2]
    if layout == "expanded":  # stride 0 in the first dimension
        return tensor[:1].expand(tensor.shape)
    if layout == "scalar":  # stride 0 everywhere
        return tensor.flatten()[:1].expand(tensor.numel()).view(-1).as_strided(tensor.shape, [0] * tensor.dim())
    return tensor


def corner_bias(shape, gate):
    """What the biases of a gate get, so that its units lie on either side of the corners of its function.

    In 16 bits well away from them: next to a corner, rounding to 16 bits alone turns gradients on and off.
    """
    candidate = gate == 2 or CELLS[shape.cell].gates == 1
    function = shape.activation if candidate else shape.gate
    values = [0.0]
    if function == "hard_sigmoid":
        values = [6.0, 0.3, -6.0, 0.0, -0.2] if shape.dtype in HALVES else [0.2, -0.2, 1.6, -1.6]
    elif function == "relu" and shape.dtype in HALVES:
        values = [6.0, -6.0]
    return torch.tensor(values).repeat(shape.H)[: shape.H]


def build(shape, seed):
    """The arguments of ``layer`` (but ``save``), and ``dy, dlast, dcells``; NaN where nothing may be read."""
    g = torch.Generator().manual_seed(seed)
    spec, k = CELLS[shape.cell], shape.H**-0.5
    T, B, H, P, X = shape.T, shape.B, shape.H, shape.P or shape.H, shape.X
    D = max(X, 1) * len(shape.reverse)

    def new(*sizes, scale=1.0):
        if shape.layout == "scalar":  # many equal terms must not saturate the cell, where digits are lost
            scale *= 0.2
        t = torch.randn(sizes, generator=g, dtype=torch.float64) * scale
        return laid_out(t.to(shape.dtype), shape.layout) if t.numel() else t.to(shape.dtype)

    x = new(*((X,) if X else ()), T, B, shape.I)
    states = [new(D, B, P if i == 0 else H) for i in range(spec.states)] if shape.states else []
    sizes = [(spec.gates * H, shape.I), (spec.gates * H, P)]
    sizes += [(spec.gates * H,)] * (2 * shape.bias) + [(P, H)] * (shape.P > 0)
    norm = "norm" in shape.stages.split()
    each = len(sizes) + norm * 2 * spec.states
    sizes += ([(spec.gates * H,)] * 2 + [(H,)] * (2 * (spec.states > 1))) * norm
    weights = [new(*s, scale=0.6 * k) for _ in range(D) for s in sizes]
    if shape.bias:
        shift = torch.cat([corner_bias(shape, g) for g in range(spec.gates)]).to(shape.dtype)
        weights = [w + shift if n % each in (2, 3) else w for n, w in enumerate(weights)]
    if norm:  # gains, and the last bias
        plain = len(sizes) - 2 * spec.states
        weights = [w + 0.4 if n % each >= plain and n % each != plain + 3 else w for n, w in enumerate(weights)]
    dy = new(T, B, D * P)
    dlast = [new(D, B, P if i == 0 else H) for i in range(spec.states)] if shape.dlast else []
    acc = torch.float64 if shape.dtype == torch.float64 else torch.float32
    dcells = torch.randn(D, T, B, H, generator=g, dtype=acc) if shape.dcells and spec.states > 1 else None
    lengths = None
    if shape.lengths:
        n = (X, B) if shape.lengths == "grouped" else (B,)
        lengths = torch.randint(0, T + 1, n, generator=g)
        if shape.lengths == "zeros":
            lengths.zero_()
        x, dy = x.clone(), dy.clone()
        after = torch.arange(T)[:, None] >= lengths[..., None, :]  # (T, B) or (X, T, B)
        x[after.expand(x.shape[:-1])] = NAN
        ends = after.repeat_interleave(len(shape.reverse), 0) if after.dim() == 3 else after.expand(D, T, B)
        dy.view(T, B, D, P)[ends.permute(1, 2, 0)] = NAN
        if dcells is not None:
            dcells[ends] = 0
    call = [shape.cell, x, states, weights, list(shape.reverse), shape.bias, shape.P > 0, shape.activation,
            shape.gate, lengths, *build_stages(shape, g, new), norm, 1e-5, 0, [], 0, 0]  # fmt: skip
    return call, dy, dlast, dcells


def build_stages(shape, g, new):
    """The arguments ``reset, reset_states, h_mask, zone``."""
    words, spec = shape.stages.split(), CELLS[shape.cell]
    T, B, D, P = shape.T, shape.B, max(shape.X, 1) * len(shape.reverse), shape.P or shape.H

    def random(*sizes):
        return torch.rand(sizes, generator=g)

    reset, reset_states, h_mask, zone = None, [], None, []
    if "reset" in words or "restart" in words:
        reset = random(*((shape.X,) if shape.lengths == "grouped" else ()), T, B) < 0.4
        reset = laid_out(reset, shape.layout if shape.layout == "transposed" else None)
    if "restart" in words:
        reset_states = [new(D, B, P if k == 0 else shape.H) for k in range(spec.states)]
    if "h_mask" in words:
        h_mask = laid_out(((random(D, B, P) < 0.7) / 0.7).to(shape.dtype), shape.layout)
    if "zone" in words:  # broadcast in turn along time, directions, rows and units
        sizes = [[(T, D, B, P), (D, B, 1), (T, 1, B, P), (P,)], [(1, 1, 1, 1), (T, D, 1, shape.H), (B, shape.H), (1,)]]
        zone = [random(*sizes[k][(T + B + shape.H) % 4]) for k in range(spec.states)]
        zone = [(0.9 * z).to((shape.dtype, torch.float64, torch.float32)[(T + B) % 3]) for z in zone]
    if "zone_mask" in words:
        zone = [random(T, D, B, P if k == 0 else shape.H) < 0.5 for k in range(spec.states)]
        zone = [z if (T + B + k) % 2 else z.to(shape.dtype) for k, z in enumerate(zone)]
        zone = [laid_out(z, shape.layout) for z in zone]
    return reset, reset_states, h_mask, zone


def in_float64(value):
    if isinstance(value, list):
        return [in_float64(v) for v in value]
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double().nan_to_num(0.0) if floating else value


def weight_names(shape, D):
    names = ["w_ih", "w_hh"] + ["b_ih", "b_hh"] * shape.bias + ["w_hr"] * (shape.P > 0)
    if "norm" in shape.stages.split():
        names += ["ln_x_gain", "ln_h_gain"] + ["ln_c_gain", "ln_c_bias"] * (CELLS[shape.cell].states > 1)
    return [f"d{name}[{d}]" for d in range(D) for name in names]


class Built(NamedTuple):
    """A case's tensors, and what float64 makes of them: computed once for all instruction sets."""

    call: list
    given: tuple  # dy, dlast, dcells
    forward: tuple  # y and the last states of the reference
    gradients: tuple  # dx, dstates, dweights, dreset_states, dextras of the reference


def build_with_expectation(shape, seed):
    call, *given = build(shape, seed)
    wanted = in_float64(call)
    y, last, _ = reference.layer(*wanted, False)
    gradients = reference.layer_backward(*in_float64(given), *wanted, None, None, [True] * 4)
    return Built(call, tuple(given), (y, last), gradients)


def compare(shape, built):
    """Runs one case on the instruction set in use; the list of what differs from the expectation."""
    call, given, (expected_y, expected_last), expected_gradients = built
    torch.set_num_threads(shape.threads)
    y, last, saved = OPS.layer(*call, True)
    plain = OPS.layer(*call, False)
    dx, dstates, dweights, dreset_states, _ = OPS.layer_backward(*given, *call, y, saved, [*shape.needs, True])
    torch.set_num_threads(1)
    failures = []
    if not torch.equal(plain[0], y) or not all(map(torch.equal, plain[1], last)):
        failures.append("inference and training differ")
    if plain[2]:
        failures.append("inference saves something")
    if not all(s.isfinite().all() for s in saved):
        failures.append("what is saved is not finite")
    pairs = [("y", y, expected_y), *zip(["h_n", "c_n"], last, expected_last, strict=False)]
    all_dx, all_dstates, all_dweights, all_dreset, _ = expected_gradients
    need_x, need_states, need_weights = shape.needs
    names = [["dh_0", "dc_0"][: len(all_dstates)], weight_names(shape, len(last[0])), ["dreset h", "dreset c"]]
    for need, got, want, name in ((need_states, dstates, all_dstates, names[0]),
                                  (need_weights, dweights, all_dweights, names[1]),
                                  (need_states, dreset_states, all_dreset, names[2])):  # fmt: skip
        if len(got) != (len(want) if need else 0):
            failures.append(f"{len(got)} gradients like {name}")
        pairs += zip(name, got, want if need else [], strict=False)
    pairs += [("dx", dx, all_dx)] if need_x else []
    if not need_x and dx.numel():
        failures.append("gradients that nobody asked for")
    for name, actual, expected in pairs:
        try:
            assert actual.dtype == (shape.dtype), f"{name}: dtype {actual.dtype}"
            assert actual.is_contiguous(), f"{name}: not contiguous"
            assert_close(name, actual, expected)
        except AssertionError as e:
            failures.append(str(e))
    return failures
