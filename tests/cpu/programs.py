"""What the text of a program means, step by step in torch, for the tests of the C++ ops.

``derived`` writes the sections of the backward pass for hand-written sections of the forward pass: it keeps every
pre-activation, computes all values again from these, and goes back through them. Letters as in op/schema.py.
"""

from itertools import count

import torch

LOADS = ("a", "x", "r", "s", "v", "u", "i", "cross", "k", "n", "g", "gy", "gi", "dcross", "go", "const")
SECTIONS = ("operand", "first", "forward", "backward", "backward_first", "backward_operand")

FUNCTIONS = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "neg": torch.neg, "abs": torch.abs,
    "sign": torch.sign, "sqrt": torch.sqrt, "exp": torch.exp, "log": torch.log, "log1p": torch.log1p,
    "expm1": torch.expm1, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "min": torch.minimum,
    "max": torch.maximum, "lt": lambda a, b: (a < b).to(a), "le": lambda a, b: (a <= b).to(a),
    "eq": lambda a, b: (a == b).to(a), "where": lambda c, a, b: torch.where(c != 0, a, b),
    "tanh_back": lambda d, y: d * (1 - y * y), "sigmoid_back": lambda d, y: d * y * (1 - y),
    "relu_back": lambda d, y: torch.where(y <= 0, torch.zeros_like(d), d),
    "through": lambda y, x, m: y.detach() + (x - x.detach()) * m.detach(),
    "layer_norm": lambda a, eps: torch.nn.functional.layer_norm(a, a.shape[-1:], eps=eps.item()),
}  # fmt: skip


def split(text):
    """The header, word -> rest of the line, and the sections, name -> lines of words."""
    header, sections, now = {}, {}, None
    for line in text.strip().split("\n"):
        words = line.split(" ")
        if len(words) == 1 and words[0] in SECTIONS:
            now = sections.setdefault(words[0], [])
        elif now is None:
            header[words[0]] = words[1:]
        else:
            now.append(words)
    return header, sections


# ---- Derivatives ----------------------------------------------------------------------------------------------------
class Code:
    """Instructions of one section as they are written, each line once."""

    def __init__(self):
        self.lines = []

    def __call__(self, *words):
        line = " ".join(map(str, words))
        if line not in self.lines:
            self.lines.append(line)
        return self.lines.index(line)


def pulled_back(code, words, values, d, index):
    """(operand, its gradient) of an instruction, given the gradient d of its result."""
    op, *at = words
    y, v = values[index], [values[int(k)] for k in at]
    rules = {
        "add": lambda: (d, d), "sub": lambda: (d, code("neg", d)),
        "mul": lambda: (code("mul", d, v[1]), code("mul", d, v[0])),
        "div": lambda: (code("div", d, v[1]), code("neg", code("div", code("mul", d, y), v[1]))),
        "neg": lambda: (code("neg", d),), "abs": lambda: (code("mul", d, code("sign", v[0])),), "sign": lambda: (),
        "sqrt": lambda: (code("div", code("mul", d, code("const", 0.5)), y),), "exp": lambda: (code("mul", d, y),),
        "log": lambda: (code("div", d, v[0]),),
        "log1p": lambda: (code("div", d, code("add", v[0], code("const", 1.0))),),
        "expm1": lambda: (code("mul", d, code("add", y, code("const", 1.0))),),
        "sigmoid": lambda: (code("sigmoid_back", d, y),), "tanh": lambda: (code("tanh_back", d, y),),
        "relu": lambda: (code("relu_back", d, y),),
        "min": lambda: chosen(code, d, code("le", v[0], v[1])), "max": lambda: chosen(code, d, code("le", v[1], v[0])),
        "lt": lambda: (), "le": lambda: (), "eq": lambda: (),
        "where": lambda: (None, *chosen(code, d, v[0])),
        "through": lambda: (None, code("mul", d, v[2])), "layer_norm": lambda: (code("layer_norm_back", d, *v),),
    }  # fmt: skip
    return [(int(k), g) for k, g in zip(at, rules[op](), strict=False) if g is not None]


def chosen(code, d, condition):
    zero = code("const", 0.0)
    return code("where", condition, d, zero), code("where", condition, zero, d)


def derived(header, keep_new=(), **sections):
    """A whole program from a header (without keep) and the sections operand, first and forward, without their keeps.
    States in ``keep_new`` are read as new states in the backward pass and not computed again."""
    given, planes, puts = split("\n".join([header, *(f"{k}\n{v}" for k, v in sections.items())]))[1], count(), {}
    back = {"first": "backward_first", "forward": "backward", "operand": "backward_operand"}
    written = {}
    for name in ("operand", "first", "forward"):
        if name not in given:
            continue
        code, values, keeps, grads = Code(), [], [], {}
        body = [w for w in given[name] if w[0] != "put"]
        outs = [w for w in given[name] if w[0] == "put"]
        new = {int(w[3]): w[2] for w in outs if w[1] == "new" and w[2] in keep_new}
        for index, (op, *at) in enumerate(body):
            if index in new:
                values.append(code("n", new[index]))
            elif op in ("a", "x", "r", "i") or (op == "cross"):
                plane = next(planes)
                keeps.append(f"put keep {plane} {index}")
                values.append(code("k", plane))
            elif op in LOADS:
                values.append(code(op, *at))
            else:
                values.append(code(op, *(values[int(k)] for k in at)))
        for _, kind, *rest, value in outs:
            read = {"new": ("g", *rest), "y": ("gy",), "operand": ("go",), "inner": ("gi",), "cross": ("dcross", *rest)}
            add(code, grads, int(value), code(*read[kind]))
        for index in reversed(range(len(body))):
            if index in grads and body[index][0] not in LOADS:
                for operand, g in pulled_back(code, body[index], values, grads[index], index):
                    add(code, grads, operand, g)
        puts = {}
        for index, (op, *at) in enumerate(body):
            kind = {"a": "da", "x": "dx", "r": "dr", "s": "ds", "v": "dv", "u": "du", "i": "di", "cross": "dcross"}
            if op in kind and index in grads:
                add(code, puts, " ".join((kind[op], *at)), grads[index])
        written[name] = [*map(" ".join, given[name]), *keeps]
        written[back[name]] = [*code.lines, *(f"put {k} {v}" for k, v in puts.items())]
    n = next(planes)
    lines = [header.strip(), *([f"keep {n}"] if n else [])]
    for name in SECTIONS:
        if name in written:
            lines += [name, *written[name]]
    return "\n".join(lines)


def add(code, grads, key, g):
    grads[key] = code("add", grads[key], g) if key in grads else g


# ---- Meaning --------------------------------------------------------------------------------------------------------
def interpreted(lines, read):
    """The puts of a section, (kind, name or None) -> value; ``read(op, name)`` gives what loads read."""
    values, puts = [], {}
    for op, *at in lines:
        if op == "put":
            puts[at[0], at[1] if len(at) == 3 else None] = values[int(at[-1])]
        elif op == "const":
            values.append(torch.tensor(float(at[0]), dtype=torch.float64))
        elif op in LOADS:
            values.append(read(op, at[0] if at else None))
        else:
            values.append(FUNCTIONS[op](*(values[int(k)] for k in at)))
    return puts


def weight_shapes(text, I, H, bias, layer_norm=False, P=0):  # noqa: E741
    """The shapes of one direction's weights; P: the size of a projection, 0 for none."""
    header, _ = split(text)
    GX, GR = (len(header.get(name, ())) for name in ("inputs", "recurrent"))
    GX = 0 if "given" in header else GX
    shapes = [(GX * H, I)] * (GX > 0) + [(GR * H, P or H)] * (GR > 0)
    shapes += [(GX * H,)] * (bias and GX > 0) + [(GR * H,)] * (bias and GR > 0)
    shapes += [(P, H)] * (P > 0)
    shapes += ([(GX * H,)] * (GX > 0) + [(GR * H,)] * (GR > 0)) * layer_norm
    return shapes + [(H,)] * len(header.get("vectors", ()))


def meant(
    text, x, states, weights, reverse, bias, extras, H, lengths=None, reset=None, reset_states=(), h_mask=None, zone=(),
    layer_norm=False, P=0,
):  # fmt: skip
    """``y, last, cells`` of a layer as the ops are to compute them, by operations that autograd follows; cells: the
    states apart from y after every step, () for none."""
    header, sections = split(text)
    inputs, recurrent, names = (header.get(k, []) for k in ("inputs", "recurrent", "states"))
    vectors = header.get("vectors", [])
    step = [name.removesuffix(":1") for name in header.get("step", [])]
    grouped = x if x.dim() == 4 else x[None]
    X, T, B = grouped.shape[:3]
    D, each = X * len(reverse), len(weights) // (X * len(reverse))
    ys, lasts, histories = [], [], []
    apart = names if any(put[:2] == ["put", "y"] for put in sections["forward"]) else names[1:]
    for d in range(D):
        w, group = list(weights[d * each : (d + 1) * each]), d // len(reverse)
        v = dict(zip(vectors, w[len(w) - len(vectors) :], strict=True))
        x_d, own = grouped[group], w[: len(w) - len(vectors)]
        w_ih = own.pop(0) if inputs and "given" not in header else None
        w_hh = own.pop(0) if recurrent else None
        b_ih = own.pop(0) if bias and w_ih is not None else None
        b_hh = own.pop(0) if bias and w_hh is not None else None
        w_hr = own.pop(0) if P else None
        ln_x = own.pop(0) if layer_norm and w_ih is not None else None
        ln_h = own.pop(0) if layer_norm and w_hh is not None else None

        def affine(x, w, b, gain):
            x = x @ w.T
            x = x if gain is None else torch.nn.functional.layer_norm(x, x.shape[-1:], gain, None, 1e-5)
            return x if b is None else x + b

        widths = [P or H, *[H] * (len(names) - 1)]
        h = {k: states[n][d] if states else x.new_zeros(B, widths[n]) for n, k in enumerate(names)}
        again = {k: reset_states[n][d] if reset_states else x.new_zeros(B, widths[n]) for n, k in enumerate(names)}
        mask = 1 if h_mask is None else h_mask.expand(D, B, P or H)[d]
        u_d = [e if x.dim() == 3 else e[group] for e in extras]
        y, history = [None] * T, [None] * T
        backwards = reverse[d % len(reverse)]
        for t in reversed(range(T)) if backwards else range(T):
            length = torch.full((B,), T) if lengths is None else lengths if lengths.dim() == 1 else lengths[group]
            alive = (t < length)[:, None]
            old = h
            if reset is not None:
                at = (reset if reset.dim() == 2 else reset[group])[t][:, None] & alive
                old = {k: torch.where(at, again[k], h[k]) for k in names}
            u = dict(zip([*step, *header.get("sequence", [])], u_d, strict=True))
            u = {k: e[t] if k in step else e for k, e in u.items()}
            if w_ih is not None:
                pre = affine(x_d[t], w_ih, b_ih, ln_x).view(B, len(inputs), H)
            else:
                pre = x_d[t].view(B, len(inputs), H) if inputs else None
            more = {}

            def read(op, name, old=old, u=u, pre=pre, more=more, v=v, mask=mask, masked=False):
                x_of = lambda: pre[:, inputs.index(name)]  # noqa: E731
                r_of = lambda: more["r"][:, recurrent.index(name)]  # noqa: E731
                return {
                    "a": lambda: x_of() + r_of(), "x": x_of, "r": r_of, "v": lambda: v[name].expand(B, H),
                    "u": lambda: u[name].expand(B, H), "i": lambda: more["i"], "cross": lambda: more["cross", name],
                    "s": lambda: old[name] * (mask if masked and name == names[0] else 1),
                }[op]()  # fmt: skip

            if w_hh is not None:
                operand = old[names[0]]
                if "operand" in sections:
                    operand = interpreted(sections["operand"], read)["operand", None].expand(B, H)
                first = (len(recurrent) - ("first" in sections)) * H
                rows = [t if t is None else t[:first] for t in (w_hh, b_hh, ln_h)]
                more["r"] = affine(operand * mask, *rows).view(B, -1, H) if first else None
            if "first" in sections:
                puts = interpreted(sections["first"], lambda *at, read=read: read(*at, masked=True))
                rows = [t if t is None else t[first:] for t in (w_hh, b_hh, ln_h)]
                more["i"] = affine(puts["inner", None].expand(B, H), *rows)
                more |= {k: value for k, value in puts.items() if k[0] == "cross"}
            puts = interpreted(sections["forward"], read)
            new = {k: puts["new", k].expand(B, H) for k in names}
            if P:
                new[names[0]] = new[names[0]] @ w_hr.T
            if zone:
                zones = [z.expand(T, D, B, n)[t, d] for z, n in zip(zone, widths, strict=True)]
                new = {k: z * old[k] + (1 - z) * new[k] for k, z in zip(names, zones, strict=True)}
            out = puts["y", None].expand(B, H) if ("y", None) in puts else new[names[0]]
            h = {k: torch.where(alive, new[k], h[k]) for k in names}
            y[t] = torch.where(alive, out, torch.zeros_like(out))
            history[t] = [h[k] for k in apart]
        ys.append(torch.stack(y))
        lasts.append([h[k] for k in names])
        histories.append([torch.stack(each) for each in zip(*history, strict=True)])
    last, cells = ([torch.stack(each) for each in zip(*all, strict=True)] for all in (lasts, histories))
    return torch.cat(ys, -1), last, torch.cat(cells) if cells else ()
