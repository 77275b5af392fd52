"""Cells for tests of layers of one's own, and the loop over steps that each layer has to equal, in plain torch."""

from types import SimpleNamespace

import torch

import rnnkernels


@rnnkernels.cell(inputs="i f g o", recurrent="i f g o", states="h c")
def lstm(x, r, s):
    i, f, g, o = torch.sigmoid(x.i + r.i), torch.sigmoid(x.f + r.f), torch.tanh(x.g + r.g), torch.sigmoid(x.o + r.o)
    c = f * s.c + i * g
    return o * torch.tanh(c), c


@rnnkernels.cell(inputs="i f g o", recurrent="i f g o", states="h c", vectors="p_i p_f p_o")
def peephole(x, r, s, v):
    i = torch.sigmoid(x.i + r.i + v.p_i * s.c)
    f = torch.sigmoid(x.f + r.f + v.p_f * s.c)
    c = f * s.c + i * torch.tanh(x.g + r.g)
    o = torch.sigmoid(x.o + r.o + v.p_o * c)
    return o * torch.tanh(c), c


@rnnkernels.cell(inputs="r z n", recurrent="r z n")
def before(x, r, s):
    reset, z = torch.sigmoid(x.r + r.r), torch.sigmoid(x.z + r.z)
    n = torch.tanh(x.n + rnnkernels.product("n", reset * s.h))
    return n + z * (s.h - n)


@rnnkernels.cell(
    inputs="z n", recurrent="z n", step_inputs="gamma rate:1", sequence_inputs="bias",
    operand=lambda s, u: u.gamma * s.h,
)  # fmt: skip
def decayed(x, r, s, u):
    h, z = u.gamma * s.h, torch.sigmoid(x.z + r.z + u.rate)
    return z * h + (1 - z) * torch.tanh(x.n + r.n + u.bias)


@rnnkernels.cell(
    inputs="n", recurrent="n", states="v a", constants={"alpha": 0.2}, operand=lambda s: torch.tanh(s.v),
    output=lambda s: torch.tanh(s.v) - s.a,
)  # fmt: skip
def rates(x, r, s, alpha):
    return (1 - alpha) * s.v + alpha * (x.n + r.n - s.a), 0.9 * s.a + 0.1 * s.v


@rnnkernels.cell(inputs="f g", vectors="u", project_input=False)
def elementwise(x, s, v):
    f = torch.sigmoid(x.f + v.u * s.h)
    return f * s.h + (1 - f) * x.g


@rnnkernels.cell(inputs="a b c", recurrent="b", states="p q w")
def uneven(x, r, s):
    p = torch.tanh(x.b + r.b) * s.q + x.a
    return p, torch.sigmoid(x.c) * s.w, 0.5 * s.w + p


@rnnkernels.cell(inputs="h", recurrent="h")
def elman(x, r):
    return torch.tanh(x.h + r.h)


@rnnkernels.cell(
    inputs="i o", recurrent="i o", states="h c", vectors="p", step_inputs="gamma rate:1", sequence_inputs="f"
)  # fmt: skip
def noted(x, r, s, v, u):
    c = torch.sigmoid(u.f) * s.c + torch.sigmoid(x.i + r.i + v.p * s.c) * u.gamma
    return torch.sigmoid(x.o + r.o) * torch.tanh(c * u.rate) - v.p * s.c, c


CELLS = {cell.program.name: cell for cell in (lstm, peephole, before, decayed, rates, elementwise, uneven)}
PROJECTED = {cell.program.name: cell for cell in (lstm, peephole, uneven, elman, noted)}  # that have a projection


def eager(name):
    """The step of a cell as torch code: ``step(x, r, s, v, u, again)`` gives the new states and the output."""
    sigmoid, tanh = torch.sigmoid, torch.tanh

    def lstm(x, r, s, v, u, again):
        p = {k: getattr(v, k, 0) for k in ("p_i", "p_f", "p_o")}
        i, f = sigmoid(x.i + r.i + p["p_i"] * s.c), sigmoid(x.f + r.f + p["p_f"] * s.c)
        c = f * s.c + i * tanh(x.g + r.g)
        return (sigmoid(x.o + r.o + p["p_o"] * c) * tanh(c), c), None

    def before(x, r, s, v, u, again):
        n = tanh(x.n + again(sigmoid(x.r + r.r) * s.h))
        z = sigmoid(x.z + r.z)
        return ((1 - z) * n + z * s.h,), None

    def decayed(x, r, s, v, u, again):
        z = sigmoid(x.z + r.z + u.rate)
        return (z * u.gamma * s.h + (1 - z) * tanh(x.n + r.n + u.bias),), None

    def rates(x, r, s, v, u, again):
        new = 0.8 * s.v + 0.2 * (x.n + r.n - s.a), 0.9 * s.a + 0.1 * s.v
        return new, tanh(new[0]) - new[1]

    def elementwise(x, r, s, v, u, again):
        f = sigmoid(x.f + v.u * s.h)
        return (f * s.h + (1 - f) * x.g,), None

    def uneven(x, r, s, v, u, again):
        p = tanh(x.b + r.b) * s.q + x.a
        return (p, sigmoid(x.c) * s.w, 0.5 * s.w + p), None

    def noted(x, r, s, v, u, again):
        c = sigmoid(u.f) * s.c + sigmoid(x.i + r.i + v.p * s.c) * u.gamma
        return (sigmoid(x.o + r.o) * tanh(c * u.rate) - v.p * s.c, c), None

    def elman(x, r, s, v, u, again):
        return (tanh(x.h + r.h),), None

    return {
        "noted": noted, "elman": elman, "lstm": lstm, "peephole": lstm, "before": before, "decayed": decayed,
        "rates": rates, "elementwise": elementwise, "uneven": uneven,
    }[name]  # fmt: skip


OPERANDS = {"decayed": lambda s, u: u.gamma * s.h, "rates": lambda s, u: torch.tanh(s.v)}


def loop(layer, x, hx, lengths=None, **inputs):
    """What a ``Recurrent`` has to give for x (T, B, I), by a loop over steps: ``y, states (S of (L*D, B, H))``."""
    program, own, H, D = layer.cell.program, dict(layer.named_parameters()), layer.hidden_size, 1 + layer.bidirectional
    T, B, S = x.size(0), x.size(1), len(program.states)
    hx = hx or [x.new_zeros(layer.num_layers * D, B, H if k else layer.proj_size or H) for k in range(S)]
    step, operand = eager(program.name), OPERANDS.get(program.name)
    last = []
    for i in range(layer.num_layers):
        sides = []
        for d in range(D):
            w = {k.partition(f"_l{i}")[0]: p for k, p in own.items() if k.endswith(f"_l{i}{'_reverse' * d}")}
            states, ys = [s[i * D + d] for s in hx], [None] * T
            for t in reversed(range(T)) if d else range(T):
                s = SimpleNamespace(**dict(zip(program.states, states, strict=True)))
                u = SimpleNamespace(**{k: v[t] if v.dim() == 3 else v for k, v in inputs.items()})
                v = SimpleNamespace(**{k: w[k] for k in program.vectors})
                a = x[t] if program.given else x[t] @ w["weight_ih"].T + w.get("bias_ih", 0)
                gates = SimpleNamespace(**dict(zip(program.inputs, a.unflatten(-1, (-1, H)).unbind(1), strict=True)))
                r = SimpleNamespace()
                if program.recurrent:
                    h = operand(s, u) if operand else states[0]
                    a = h @ w["weight_hh"].T + w.get("bias_hh", 0)
                    r = SimpleNamespace(**dict(zip(program.recurrent, a.unflatten(-1, (-1, H)).unbind(1), strict=True)))
                again = lambda q, w=w: q @ w["weight_hh"][-H:].T + (w["bias_hh"][-H:] if "bias_hh" in w else 0)  # noqa: E731
                new, y = step(gates, r, s, v, u, again)
                new = (new[0] @ w["weight_hr"].T, *new[1:]) if "weight_hr" in w else new
                y = new[0] if y is None else y
                if lengths is not None:
                    alive = (t < lengths)[:, None]
                    new, y = (
                        [torch.where(alive, n, o) for n, o in zip(new, states, strict=True)],
                        torch.where(alive, y, 0),
                    )
                states, ys[t] = new, y
            last.append(states)
            sides.append(torch.stack(ys))
        x = torch.cat(sides, -1)
    return x, [torch.stack(s) for s in zip(*last, strict=True)]
