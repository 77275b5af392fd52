"""Cells as programs for the tests of the C++ ops: their texts, and what a text means, step by step in torch.

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
    "relu_back": lambda d, y: torch.where(y > 0, d, torch.zeros_like(d)),
    "through": lambda y, x, m: y.detach() + (x - x.detach()) * m.detach(),
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
        "through": lambda: (None, code("mul", d, v[2])),
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


def weight_shapes(text, I, H, bias, layer_norm=False):  # noqa: E741
    """The shapes of one direction's weights."""
    header, _ = split(text)
    GX, GR = (len(header.get(name, ())) for name in ("inputs", "recurrent"))
    GX = 0 if "given" in header else GX
    shapes = [(GX * H, I)] * (GX > 0) + [(GR * H, H)] * (GR > 0)
    shapes += [(GX * H,)] * (bias and GX > 0) + [(GR * H,)] * (bias and GR > 0)
    shapes += ([(GX * H,)] * (GX > 0) + [(GR * H,)] * (GR > 0)) * layer_norm
    return shapes + [(H,)] * len(header.get("vectors", ()))


def meant(
    text, x, states, weights, reverse, bias, extras, H, lengths=None, reset=None, reset_states=(), h_mask=None, zone=(),
    layer_norm=False,
):  # fmt: skip
    """``y, last`` of a layer as the ops are to compute them, by operations that autograd follows."""
    header, sections = split(text)
    inputs, recurrent, names = (header.get(k, []) for k in ("inputs", "recurrent", "states"))
    vectors = header.get("vectors", [])
    step = [name.removesuffix(":1") for name in header.get("step", [])]
    grouped = x if x.dim() == 4 else x[None]
    X, T, B = grouped.shape[:3]
    D, each = X * len(reverse), len(weights) // (X * len(reverse))
    ys, lasts = [], []
    for d in range(D):
        w, group = list(weights[d * each : (d + 1) * each]), d // len(reverse)
        v = dict(zip(vectors, w[len(w) - len(vectors) :], strict=True))
        x_d, own = grouped[group], w[: len(w) - len(vectors)]
        w_ih = own.pop(0) if inputs and "given" not in header else None
        w_hh = own.pop(0) if recurrent else None
        b_ih = own.pop(0) if bias and w_ih is not None else None
        b_hh = own.pop(0) if bias and w_hh is not None else None
        ln_x = own.pop(0) if layer_norm and w_ih is not None else None
        ln_h = own.pop(0) if layer_norm and w_hh is not None else None

        def affine(x, w, b, gain):
            x = x @ w.T
            x = x if gain is None else torch.nn.functional.layer_norm(x, x.shape[-1:], gain, None, 1e-5)
            return x if b is None else x + b

        h = {k: states[n][d] if states else x.new_zeros(B, H) for n, k in enumerate(names)}
        again = {k: reset_states[n][d] if reset_states else x.new_zeros(B, H) for n, k in enumerate(names)}
        mask = 1 if h_mask is None else h_mask.expand(D, B, H)[d]
        u_d = [e if x.dim() == 3 else e[group] for e in extras]
        y = [None] * T
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
            if zone:
                zones = [z.expand(T, D, B, H)[t, d] for z in zone]
                new = {k: z * old[k] + (1 - z) * new[k] for k, z in zip(names, zones, strict=True)}
            out = puts["y", None].expand(B, H) if ("y", None) in puts else new[names[0]]
            h = {k: torch.where(alive, new[k], h[k]) for k in names}
            y[t] = torch.where(alive, out, torch.zeros_like(out))
        ys.append(torch.stack(y))
        lasts.append([h[k] for k in names])
    return torch.cat(ys, -1), [torch.stack(each) for each in zip(*lasts, strict=True)]


# ---- Cells ----------------------------------------------------------------------------------------------------------
LSTM = """\
cell 1 my_lstm
inputs i f g o
recurrent i f g o
states h c
keep 4
forward
a i
a f
a g
a o
s c
sigmoid 0
sigmoid 1
tanh 2
sigmoid 3
mul 6 4
mul 5 7
add 9 10
tanh 11
mul 8 12
put new h 13
put new c 11
put keep 0 5
put keep 1 6
put keep 2 7
put keep 3 8
backward
k 0
k 1
k 2
k 3
s c
n c
g h
g c
tanh 5
mul 6 3
tanh_back 9 8
add 7 10
mul 11 2
sigmoid_back 12 0
mul 11 4
sigmoid_back 14 1
mul 11 0
tanh_back 16 2
mul 6 8
sigmoid_back 18 3
mul 11 1
put da i 13
put da f 15
put da g 17
put da o 19
put ds c 20"""
DECAY_GRU = """\
cell 1 decay_gru
inputs r z n
recurrent r z n
states h
step gamma
keep 4
operand
u gamma
s h
mul 0 1
put operand 2
forward
a r
a z
x n
r n
u gamma
s h
mul 4 5
sigmoid 0
sigmoid 1
mul 7 3
add 2 9
tanh 10
sub 6 11
mul 8 12
add 11 13
put new h 14
put keep 0 7
put keep 1 8
put keep 2 11
put keep 3 3
backward
k 0
k 1
k 2
k 3
u gamma
s h
g h
mul 4 5
sub 7 2
mul 6 8
sigmoid_back 9 1
mul 6 1
sub 6 11
tanh_back 12 2
mul 13 3
sigmoid_back 14 0
mul 13 0
mul 11 4
mul 11 5
put da r 15
put da z 10
put dx n 13
put dr n 16
put ds h 17
put du gamma 18
backward_operand
go
u gamma
s h
mul 0 1
mul 0 2
put ds h 3
put du gamma 4"""
IND_RNN = """\
cell 1 ind_rnn
inputs h
states h
vectors u
forward
x h
v u
s h
mul 1 2
add 0 3
relu 4
put new h 5
backward
n h
v u
s h
g h
relu_back 3 0
mul 4 1
mul 4 2
put dx h 4
put ds h 5
put dv u 6"""

# After Cho et al. 2014, the reset gate before the product, with a rate for every step.
INNER = derived(
    "cell 1 inner\ninputs r z n\nrecurrent r z n\nstates h\nvectors p\nstep rate:1",
    first="a r\ns h\nv p\nsigmoid 0\nmul 3 1\nadd 4 2\na z\nx n\nput inner 5\nput cross 0 3\n"
    "put cross 1 6\nput cross 2 7",
    forward="cross 1\ncross 2\ni\ns h\ncross 0\nu rate\nsigmoid 0\nadd 1 2\ntanh 7\nsub 3 8\nmul 6 9\nadd 8 10\n"
    "mul 4 5\nmul 12 11\nadd 11 13\nput new h 14",
)  # fmt: skip
# Only a product inside the step, of an operand with an operand: the first product has no gates.
INNER_ALONE = derived(
    "cell 1 inner_alone\ninputs n\nrecurrent n\nstates h",
    first="s h\ntanh 0\nx n\nput inner 1\nput cross 0 2",
    forward="cross 0\ni\ns h\nadd 0 1\ntanh 3\nadd 4 2\nconst 0.5\nmul 5 6\nput new h 7",
)
# Exponential gates and a normalizer, as in sLSTM (Beck et al. 2024), and an input of the sequence.
THREE_STATES = derived(
    "cell 1 three_states\ninputs z i f o\nrecurrent z i f o\nstates h c n\nvectors q\nsequence bias",
    keep_new=("c", "n"),
    forward="a z\na i\na f\na o\ns c\ns n\nu bias\nv q\ntanh 0\nadd 1 6\nneg 9\nexp 10\nsigmoid 2\nsigmoid 3\n"
    "mul 12 4\nmul 11 8\nadd 14 15\nmul 12 5\nadd 17 11\nconst 1.0\nadd 18 19\ndiv 16 20\nmul 21 13\nmul 22 7\n"
    "add 22 23\nput new h 24\nput new c 16\nput new n 18",
)  # fmt: skip
# The layer gives something other than the state; the recurrent product takes a rate; only one gate of two recurs.
OUTPUT = derived(
    "cell 1 output\ninputs a b\nrecurrent a\nstates v w\nvectors p\nstep k",
    operand="s v\nv p\nu k\nsigmoid 0\nmul 3 1\nadd 4 2\nput operand 5",
    forward="a a\nx b\ns v\ns w\nu k\nv p\ntanh 0\nmul 6 4\nconst 0.9\nmul 2 8\nadd 9 7\nsub 1 3\nmul 11 5\nadd 3 12\n"
    "sigmoid 10\nmul 14 13\nput new v 10\nput new w 13\nput y 15",
)  # fmt: skip
GIVEN = derived(
    "cell 1 given\ninputs h f g\nrecurrent f\nstates h\ngiven",
    forward="x h\na f\nx g\ns h\nsigmoid 1\nmul 4 3\nadd 0 5\nrelu 2\nadd 6 7\ntanh 8\nput new h 9",
)  # fmt: skip
GIVEN_ALONE = derived(
    "cell 1 given_alone\ninputs z f\nstates c\nvectors p\ngiven",
    forward="x z\nx f\ns c\nv p\nmul 3 2\nadd 1 4\nsigmoid 5\nsub 2 0\nmul 6 7\nadd 0 8\nput new c 9",
)
FIVE_GATES = derived(
    "cell 1 five_gates\ninputs a b c d e\nrecurrent e a d b c\nstates h",
    forward="a a\na b\na c\nx d\nr d\na e\ns h\ntanh 0\nsigmoid 1\nmul 7 8\nsub 6 9\nmul 2 10\nadd 9 11\nmul 3 4\n"
    "add 12 13\nsigmoid 5\nmul 14 15\ntanh 16\nput new h 17",
)  # fmt: skip
MORE_RECURRENT = derived(
    "cell 1 more_recurrent\ninputs a b\nrecurrent c b d e f g h a\nstates h w\nstep u",
    forward="a a\na b\nr c\nr d\nr e\nr f\nr g\nr h\ns w\nu u\nadd 2 3\nsub 10 4\nadd 11 5\nsub 12 6\nmul 13 7\n"
    "tanh 14\nmul 0 1\ntanh 16\nadd 15 17\nmul 9 8\nadd 18 19\ntanh 20\nput new h 21\nput new w 18",
)  # fmt: skip
NO_INPUTS = derived(
    "cell 1 no_inputs\nrecurrent h\nstates h\nsequence i",
    forward="r h\nu i\nadd 0 1\ntanh 2\nput new h 3",
)
# Every function.
FUNCTION_CELL = derived(
    "cell 1 functions\ninputs a b\nrecurrent a b\nstates h s2 s3 s4\nvectors v",
    keep_new=("s4",),
    forward="a a\na b\ns h\ns s2\ns s3\ns s4\nv v\nabs 0\nconst 0.5\nadd 7 8\nlog 9\nsqrt 9\nlog1p 7\nneg 7\nexp 13\n"
    "expm1 13\nmin 0 1\nmax 2 3\nlt 4 5\nle 0 1\nmul 19 10\nwhere 18 11 20\nsign 1\nmul 22 12\nrelu 1\neq 0 0\n"
    "mul 25 24\nadd 14 15\nsub 27 16\ntanh 28\nsigmoid 17\nmul 30 29\ndiv 21 9\nadd 31 32\ntanh 33\nadd 23 26\ntanh 35\n"
    "mul 36 6\nmul 34 8\nmul 5 8\nadd 39 38\nthrough 34 37 8\nput new h 41\nput new s2 37\nput new s3 34\nput new s4 40",
)  # fmt: skip

CELLS = {
    text.split("\n")[0].split(" ")[2]: text
    for text in (
        LSTM, DECAY_GRU, IND_RNN, INNER, INNER_ALONE, THREE_STATES, OUTPUT, GIVEN, GIVEN_ALONE, FIVE_GATES,
        MORE_RECURRENT, NO_INPUTS, FUNCTION_CELL,
    )
}  # fmt: skip
