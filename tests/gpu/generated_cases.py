"""Cells as programs for the tests of generated Triton kernels, and their definition: a scan over time in torch.

Letters: T time, B batch, D directions, X input groups, GX gates of the input, GR of the recurrent product, H hidden.

A program here is written without its derivative. ``derived`` adds one: it keeps all gates, computes the cell again and
goes back through it. The definition reads only the sections that go forward; its gradients are autograd's.
"""

import torch
import torch.nn.functional as F

LSTM = """cell 1 my_lstm
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

GRU = """cell 1 my_gru
inputs r z n
recurrent r z n
states h
keep 4
forward
a r
a z
x n
r n
s h
sigmoid 0
sigmoid 1
mul 5 3
add 2 7
tanh 8
sub 4 9
mul 6 10
add 9 11
put new h 12
put keep 0 5
put keep 1 6
put keep 2 9
put keep 3 3
backward
k 0
k 1
k 2
k 3
s h
g h
const 1.0
sub 6 1
mul 5 7
tanh_back 8 2
sub 4 2
mul 5 10
sigmoid_back 11 1
mul 9 3
sigmoid_back 13 0
mul 9 0
mul 5 1
put da r 14
put da z 12
put dx n 9
put dr n 15
put ds h 16"""

GRU_RESET_BEFORE = """cell 1 my_gru_reset_before
inputs r z n
recurrent r z n
states h
keep 3
first
a r
s h
sigmoid 0
mul 2 1
put inner 3
put keep 0 2
forward
a z
x n
i
s h
sigmoid 0
add 1 2
tanh 5
sub 3 6
mul 4 7
add 6 8
put new h 9
put keep 1 4
put keep 2 6
backward
k 1
k 2
s h
g h
const 1.0
sub 4 0
mul 3 5
tanh_back 6 1
sub 2 1
mul 3 8
sigmoid_back 9 0
mul 3 0
put da z 10
put dx n 7
put di 7
put ds h 11
backward_first
gi
k 0
s h
mul 0 2
sigmoid_back 3 1
mul 0 1
put da r 4
put ds h 5"""

HEADER = ("inputs", "recurrent", "states", "vectors", "step", "sequence")
GATES, STATE = ("a", "x", "r", "i"), ("s", "v", "u")


class Section:
    """A section as it grows; methods give the numbers of values."""

    def __init__(self, name):
        self.name, self.lines, self.stores, self.count = name, [], [], 0

    def __call__(self, *words):
        self.lines.append(" ".join(map(str, words)))
        self.count += 1
        return self.count - 1

    def put(self, *words):
        self.stores.append("put " + " ".join(map(str, words)))

    def text(self):
        return [self.name, *self.lines, *self.stores]


def instructions(lines):
    """The instructions of a section: words, of which numbers are numbers."""
    return [tuple(word if not word.lstrip("-").replace(".", "").replace("e", "").isdigit() else float(word)
                  if "." in word else int(word) for word in line.split()) for line in lines]  # fmt: skip


def backward_rule(out, op, args, again, y, d):
    """The gradients of an instruction's operands: pairs of an operand's number, and a number in ``out``."""
    a, b = ([again[n] for n in args] + [None, None])[:2]
    one = lambda: out("const", 1.0)  # noqa: E731
    if op in ("add", "sub"):
        return [(args[0], d), (args[1], d if op == "add" else out("neg", d))]
    if op == "mul":
        return [(args[0], out("mul", d, b)), (args[1], out("mul", d, a))]
    if op == "div":
        first = out("div", d, b)
        return [(args[0], first), (args[1], out("neg", out("mul", first, y)))]
    if op in ("min", "max"):
        left, zero = out("le", a, b) if op == "min" else out("le", b, a), out("const", 0.0)
        return [(args[0], out("where", left, d, zero)), (args[1], out("where", left, zero, d))]
    if op == "where":
        zero = out("const", 0.0)
        return [(args[1], out("where", a, d, zero)), (args[2], out("where", a, zero, d))]
    if op == "through":
        return [(args[1], out("mul", d, again[args[2]]))]
    if op in ("lt", "le", "eq", "sign"):
        return []
    unary = {
        "neg": lambda: out("neg", d), "abs": lambda: out("mul", d, out("sign", a)), "exp": lambda: out("mul", d, y),
        "sqrt": lambda: out("div", out("mul", d, out("const", 0.5)), y), "log": lambda: out("div", d, a),
        "log1p": lambda: out("div", d, out("add", a, one())), "expm1": lambda: out("mul", d, out("add", y, one())),
        "sigmoid": lambda: out("sigmoid_back", d, y), "tanh": lambda: out("tanh_back", d, y),
        "relu": lambda: out("relu_back", d, y),
    }  # fmt: skip
    return [(args[0], unary[op]())]


def back(out, section, seeds, kept):
    """Write a section's pullback into ``out``: gradients of its loads, by load. ``seeds``: by the store of a value, the
    number of its gradient in ``out``; ``kept``: by load, the plane that it is kept in."""
    again, grads, found, number = {}, {}, {}, 0
    ops = [ins for ins in section if ins[0] != "put"]
    for ins in ops:
        op, *args = ins
        if ins in kept:
            again[number] = out("k", kept[ins])
        elif op in (*STATE, "const"):
            again[number] = out(*ins)
        else:
            again[number] = out(op, *(again[a] for a in args))
        number += 1
    add = lambda n, d: grads.__setitem__(n, d if n not in grads else out("add", grads[n], d))  # noqa: E731
    for ins in section:
        if ins[0] == "put" and ins[1:-1] in seeds:
            add(ins[-1], seeds[ins[1:-1]])
    for number in reversed(range(len(ops))):
        if number not in grads:
            continue
        op, *args = ops[number]
        if op in (*GATES, *STATE, "cross"):
            load = ops[number]
            found[load] = grads[number] if load not in found else out("add", found[load], grads[number])
        elif op != "const":
            for n, d in backward_rule(out, op, args, again, again[number], grads[number]):
                add(n, d)
    return found


def store(out, found):
    """Store the gradients of loads."""
    for load, d in found.items():
        if load[0] == "i":
            out.put("di", d)
        elif load[0] == "cross":
            out.put("dcross", load[1], d)
        else:
            out.put(f"d{load[0]}", *load[1:], d)


def derived(text):
    """The text with its derivative and what that keeps."""
    head, sections, section = [], {}, None
    for line in text.strip().splitlines():
        if line in ("operand", "first", "forward"):
            section = sections.setdefault(line, [])
        else:
            (head if section is None else section).append(line)
    parsed = {name: instructions(lines) for name, lines in sections.items()}
    states = next(line.split()[1:] for line in head if line.startswith("states"))
    gates = [ins for name in ("first", "forward") for ins in parsed.get(name, ()) if ins[0] in (*GATES, "cross")]
    kept = {ins: plane for plane, ins in enumerate(dict.fromkeys(gates))}
    for name in ("first", "forward"):
        values = [ins for ins in parsed.get(name, ()) if ins[0] != "put"]
        done = {ins for ins in kept if ins in values and (name == "first" or ins not in parsed.get("first", ()))}
        sections.get(name, []).extend(f"put keep {kept[ins]} {values.index(ins)}" for ins in kept if ins in done)
    out = Section("backward")
    seeds = {("new", name): out("g", name) for name in states}
    if any(ins[:2] == ("put", "y") for ins in parsed["forward"]):
        seeds["y",] = out("gy")
    store(out, back(out, parsed["forward"], seeds, kept))
    extra = [out]
    if "first" in parsed:
        out = Section("backward_first")
        crossing = [ins[2] for ins in parsed["first"] if ins[:2] == ("put", "cross")]
        seeds = {("inner",): out("gi")} | {("cross", n): out("dcross", n) for n in crossing}
        store(out, back(out, parsed["first"], seeds, kept))
        extra.append(out)
    if "operand" in parsed:
        out = Section("backward_operand")
        store(out, back(out, parsed["operand"], {("operand",): out("go")}, {}))
        extra.append(out)
    lines = head + ([f"keep {len(kept)}"] if kept else [])
    for name in ("operand", "first", "forward"):
        lines += [name, *sections[name]] if name in sections else []
    return "\n".join(lines + [line for section in extra for line in section.text()])


PEEPHOLE = derived("""cell 1 peephole
inputs i f g o
recurrent i f g o
states h c
vectors p_i p_f p_o
forward
a i
a f
a g
a o
s c
v p_i
v p_f
v p_o
mul 5 4
add 0 8
sigmoid 9
mul 6 4
add 1 11
sigmoid 12
tanh 2
mul 13 4
mul 10 14
add 15 16
mul 7 17
add 3 18
sigmoid 19
tanh 17
mul 20 21
put new h 22
put new c 17""")

DECAY_GRU = derived("""cell 1 decay_gru
inputs r z n
recurrent r z n
states h
step gamma
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
put new h 14""")

IND_RNN = derived("""cell 1 ind_rnn
inputs h
states h
vectors u
forward
x h
v u
s h
mul 1 2
add 0 3
tanh 4
put new h 5""")

# A firing rate: the product reads, and the layer gives, a function of the state, with a time constant per unit.
RATE = derived("""cell 1 rate
inputs h
recurrent h
states v
vectors tau
operand
s v
tanh 0
put operand 1
forward
a h
s v
v tau
sigmoid 2
sub 0 1
mul 3 4
add 1 5
tanh 6
mul 7 2
put new v 6
put y 8""")

# Three states, inputs beside x of all three kinds, and gates of the product that the input does not have.
MIXED = derived("""cell 1 mixed
inputs p q
recurrent q w
states h m n
vectors k
step gamma rate:1
sequence context
forward
x p
a q
r w
s h
s m
s n
v k
u gamma
u rate
u context
mul 4 6
mul 7 5
add 0 10
add 12 11
tanh 13
sigmoid 1
sigmoid 2
mul 15 3
sub 14 3
mul 16 18
add 17 19
mul 8 20
add 21 9
tanh 22
mul 15 4
const 0.5
mul 25 14
add 24 26
mul 16 5
add 28 9
tanh 29
put new h 23
put new m 27
put new n 30""")

# Two products, with everything else: the operand of the second one reads vectors, inputs and other states, and values
# cross; the input is given.
CROSSING = derived("""cell 1 crossing
inputs r z n
recurrent r z n
states h m
vectors k
step gamma
given
first
a r
s h
s m
v k
u gamma
sigmoid 0
mul 5 1
mul 3 2
add 6 7
mul 8 4
mul 5 2
put inner 9
put cross 0 5
put cross 1 10
forward
a z
x n
i
s h
s m
cross 0
cross 1
u gamma
sigmoid 0
add 1 2
tanh 9
sub 10 3
mul 8 11
add 3 12
mul 5 4
add 14 6
mul 15 7
tanh 16
put new h 13
put new m 17""")

# Every instruction.
EVERYTHING = derived("""cell 1 everything
inputs a b
recurrent a b
states h
forward
a a
a b
s h
exp 0
log1p 3
const -0.25
mul 5 1
expm1 6
abs 7
const 0.5
add 8 9
sqrt 10
div 4 11
log 10
sub 12 13
sign 1
mul 14 15
min 16 1
max 17 0
const 0.1
lt 2 19
where 20 18 1
le 0 1
eq 15 15
add 22 23
relu 0
neg 25
mul 24 26
add 21 27
sigmoid 28
mul 29 2
tanh 28
add 30 31
const 0.5
mul 32 33
put new h 34""")

# Nothing of a recurrence but the state; the input is given; four states.
PLAIN = derived("""cell 1 running
inputs f g
states h a b c
given
forward
x f
x g
s h
s a
s b
s c
sigmoid 0
mul 6 2
add 7 1
mul 6 3
add 9 2
mul 6 4
add 11 3
mul 6 5
add 13 4
put new h 8
put new a 10
put new b 12
put new c 14""")

CELLS = {
    "lstm": LSTM, "gru": GRU, "gru_reset_before": GRU_RESET_BEFORE, "peephole": PEEPHOLE, "decay_gru": DECAY_GRU,
    "ind_rnn": IND_RNN, "rate": RATE, "mixed": MIXED, "crossing": CROSSING, "everything": EVERYTHING, "running": PLAIN,
}  # fmt: skip


class Cell:
    """A program's header and the sections that go forward, as the definition reads them."""

    def __init__(self, text):
        self.text, self.sections, section = text, {}, None
        fields = dict.fromkeys(HEADER, ())
        for line in text.splitlines():
            word, *rest = line.split()
            if not rest and word not in ("given", "i", "gy", "gi", "go"):
                section = self.sections.setdefault(word, [])
            elif section is None:
                fields[word] = tuple(rest)
            else:
                section.append(line)
        self.sections = {name: instructions(lines) for name, lines in self.sections.items()}
        self.inputs, self.recurrent, self.states, self.vectors = (fields[name] for name in HEADER[:4])
        self.steps = {name.removesuffix(":1"): name.endswith(":1") for name in fields["step"]}
        self.sequences, self.given, self.keep = fields["sequence"], "given" in fields, fields.get("keep", (0,))[0]

    def weights(self, I, H, bias=True, layer_norm=False):  # noqa: E741
        """The names and shapes of a direction's weights."""
        GX, GR = len(self.inputs) * H, len(self.recurrent) * H
        w_ih = self.inputs and not self.given
        table = {"weight_ih": (GX, I)} if w_ih else {}
        table |= {"weight_hh": (GR, H)} if GR else {}
        table |= {"bias_ih": (GX,)} if bias and w_ih else {}
        table |= {"bias_hh": (GR,)} if bias and GR else {}
        table |= {"ln_x_gain": (GX,)} if layer_norm and w_ih else {}
        table |= {"ln_h_gain": (GR,)} if layer_norm and GR else {}
        return table | {name: (H,) for name in self.vectors}


def through(y, x, m):
    return y.detach() + (x - x.detach()) * m


OPERATIONS = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "neg": torch.neg, "abs": torch.abs,
    "sign": torch.sign, "sqrt": torch.sqrt, "exp": torch.exp, "log": torch.log, "log1p": torch.log1p,
    "expm1": torch.expm1, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "min": torch.minimum,
    "max": torch.maximum, "where": lambda a, b, c: torch.where(a != 0, b, c), "lt": lambda a, b: (a < b).to(b.dtype),
    "le": lambda a, b: (a <= b).to(b.dtype), "eq": lambda a, b: (a == b).to(b.dtype), "through": through,
}  # fmt: skip


def run(section, loads):
    """What a section stores, by its kind and name."""
    values, stored = [], {}
    for op, *args in section:
        if op == "put":
            stored[tuple(args[:-1])] = values[args[-1]]
        elif op == "const":
            values.append(torch.tensor(args[0], dtype=torch.float64))
        else:
            values.append(OPERATIONS[op](*(values[a] for a in args)) if op in OPERATIONS else loads[op, *args])
    return stored


def scan(cell, x, states, weights, extras, backward, lengths, reset, reset_states, h_mask, zone, eps=1e-5):
    """One direction: y (T, B, H) and the last states. x (T, B, I or GX*H); ``extras`` by name; all float64."""
    T, H, loads = x.size(0), states[0].size(-1), {("v", name): weights[name] for name in cell.vectors}
    w_hh, b_hh, gain = (weights.get(name) for name in ("weight_hh", "bias_hh", "ln_h_gain"))
    cut = len(cell.recurrent) - ("first" in cell.sections)

    def product(v, rows):
        out = v @ w_hh[rows].T
        out = out if gain is None else F.layer_norm(out, out.shape[-1:], gain[rows], None, eps)
        return out if b_hh is None else out + b_hh[rows]

    if cell.inputs and not cell.given:
        x = x @ weights["weight_ih"].T
        if "ln_x_gain" in weights:
            x = F.layer_norm(x, x.shape[-1:], weights["ln_x_gain"], None, eps)
        x = x + weights["bias_ih"] if "bias_ih" in weights else x
    ys, s = [None] * T, tuple(states)
    for t in reversed(range(T)) if backward else range(T):
        old = s
        if reset is not None:
            again = reset[t][:, None]
            old = tuple(torch.where(again, reset_states[k] if reset_states else 0.0, v) for k, v in enumerate(old))
        loads |= {("s", name): v for name, v in zip(cell.states, old, strict=True)}
        loads |= {("u", name): extras[name] if name in cell.sequences else extras[name][t] for name in extras}
        if lengths is not None:  # nobody knows what lies past them, and 0 * NaN would be a gradient
            for name in cell.steps:
                loads["u", name] = torch.where((t < lengths)[:, None], loads["u", name], 0.5)
        operand = run(cell.sections["operand"], loads)["operand",] if "operand" in cell.sections else old[0]
        operand = operand if h_mask is None else operand * h_mask
        for n, name in enumerate(cell.inputs):
            loads["x", name] = x[t][:, n * H : (n + 1) * H]
        if cut > 0:
            r = product(operand, slice(0, cut * H))
            loads |= {("r", name): r[:, n * H : (n + 1) * H] for n, name in enumerate(cell.recurrent[:cut])}
        for name in set(cell.inputs) & set(cell.recurrent[:cut]):
            loads["a", name] = loads["x", name] + loads["r", name]
        if "first" in cell.sections:
            masked = {("s", cell.states[0]): old[0] if h_mask is None else old[0] * h_mask}
            stored = run(cell.sections["first"], loads | masked)
            loads |= {("i",): product(stored["inner",], slice(cut * H, None))}
            loads |= {key: v for key, v in stored.items() if key[0] == "cross"}
        stored = run(cell.sections["forward"], loads)
        new = tuple(stored["new", name].expand_as(old[0]) for name in cell.states)
        if zone:
            new = tuple(z[t] * o + (1 - z[t]) * n for z, o, n in zip(zone, old, new, strict=True))
        y = stored.get(("y",), new[0])
        if lengths is not None:
            alive = (t < lengths)[:, None]
            new = tuple(torch.where(alive, n, o) for n, o in zip(new, s, strict=True))
            y = torch.where(alive, y, 0.0)
        s, ys[t] = new, y
    return torch.stack(ys), s
