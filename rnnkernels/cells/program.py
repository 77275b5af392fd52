"""The program of a cell: the text that the op's ``cell`` argument carries, as an object, with all checks.

A text has a header, which says what there is, and sections of instructions, which say what is computed at every step
for every hidden unit. Each instruction defines one value, numbered from 0 in its section; ``put`` lines at a section's
end say where values go. Nothing of a text is ever executed as code. csrc/cells/program.cpp checks the same rules.

    cell 1 ind_rnn              version and name
    inputs h                    gates of the input; recurrent, states, vectors, step, sequence, given and keep likewise
    states h
    vectors u
    forward
    x h                         value 0: the gate's input pre-activation
    v u                         value 1
    s h                         value 2: the state before the step
    mul 1 2                     value 3
    add 0 3
    relu 4
    put new h 5                 the state after the step

Letters: T time, B batch, D directions, G gates, H hidden, S states, K planes that training keeps.
"""

import hashlib
import math
import re
from functools import lru_cache
from typing import NamedTuple

VERSION = "1"
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
MOST_TEXT, MOST_INSTRUCTIONS, MOST_GATES, MOST_STATES, MOST_INPUTS, MOST_KEPT, MOST_CROSSING = (
    65536,
    512,
    8,
    4,
    8,
    32,
    8,
)

OPERATIONS = {  # name: number of values that it takes
    "add": 2, "sub": 2, "mul": 2, "div": 2, "neg": 1, "abs": 1, "sign": 1, "sqrt": 1, "exp": 1, "log": 1, "log1p": 1,
    "expm1": 1, "sigmoid": 1, "tanh": 1, "relu": 1, "min": 2, "max": 2, "lt": 2, "le": 2, "eq": 2, "where": 3,
    "tanh_back": 2, "sigmoid_back": 2, "relu_back": 2, "through": 3, "layer_norm": 2, "layer_norm_back": 3,
}  # fmt: skip
NORMS = {"layer_norm", "layer_norm_back"}
"""Operations that are not pointwise, but of all H units of a row: ``layer_norm a eps``, less the mean and over the root
of the biased variance and eps, and ``layer_norm_back d a eps``, the gradient of a. eps is a constant."""

PLACEHOLDERS = (("act", 1), ("gate", 1), ("norm", 1), ("act_back", 2), ("gate_back", 2), ("norm_back", 3))
"""Operations of the built-in cells that stand for what a call chooses: activations, and a layer norm over the units.
``norm_back d y a`` is the gradient of a, where y = norm(a)."""

# What a load is followed by: a name out of a list of the header, an index below a count, a number, or nothing.
LOADS = {
    "a": "shared", "x": "inputs", "r": "recurrent", "s": "states", "v": "vectors", "u": "extras", "n": "states",
    "g": "states", "k": "keep", "cross": "crossing", "dcross": "crossing", "const": "number", "i": None, "gy": None,
    "gi": None, "go": None,
}  # fmt: skip
PUTS = {
    "new": "states", "y": None, "operand": None, "inner": None, "keep": "keep", "cross": "crossing", "da": "shared",
    "dx": "inputs", "dr": "recurrent", "di": None, "dcross": "crossing", "ds": "states", "dv": "vectors",
    "du": "extras",
}  # fmt: skip
GATES = {"a", "x", "r"}
STATE, SHARED, KEPT = {"s", "v", "u", "const"}, {"ds", "dv", "du"}, {"k", "n"}
SECTIONS = {  # name: its loads and its puts
    "operand": (STATE, {"operand"}),
    "first": (STATE | GATES, {"inner", "cross", "keep"}),
    "forward": (STATE | GATES | {"i", "cross"}, {"new", "y", "keep"}),
    "backward": (STATE | KEPT | {"g", "gy", "x"}, SHARED | {"da", "dx", "dr", "di", "dcross"}),
    "backward_first": (STATE | KEPT | {"gi", "dcross"}, SHARED | {"da", "dx", "dr"}),
    "backward_operand": (STATE | {"go"}, SHARED),
}


class Instruction(NamedTuple):
    """One value: a load or an operation."""

    op: str
    args: tuple[int, ...] = ()
    """The values that an operation takes."""
    what: str | int | float | None = None
    """What a load reads: a name, an index or a number."""


class Put(NamedTuple):
    """Where a value goes."""

    to: str
    what: str | int | None
    value: int


class Section(NamedTuple):
    """Instructions in order, and where their values go."""

    code: tuple[Instruction, ...]
    puts: tuple[Put, ...]

    def loads(self, op):
        """What the loads of this kind read, each once, in order."""
        return list(dict.fromkeys(i.what for i in self.code if i.op == op))

    def value(self, to, what=None):
        """The number of the value that goes there, or None."""
        return next((p.value for p in self.puts if (p.to, p.what) == (to, what)), None)


class Program(NamedTuple):
    """A cell as backends see it; the built-in ones are described likewise."""

    name: str
    inputs: tuple[str, ...] = ()
    """The gates of the input: ``weight_ih`` has a block of H rows for each."""
    recurrent: tuple[str, ...] = ()
    """The gates of the recurrent product: ``weight_hh`` has a block of H rows for each; none: there is no product."""
    states: tuple[str, ...] = ("h",)
    """The states; the first is h, which is also the output unless the cell has one of its own."""
    vectors: tuple[str, ...] = ()
    """Learned vectors (H,)."""
    step: tuple[str, ...] = ()
    """Inputs of every step, (T, B, H), or (T, B, 1) if among ``narrow``."""
    narrow: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    """Inputs of a whole sequence, (B, H)."""
    given: bool = False
    """The input is (T, B, GX*H), the pre-activations themselves: there is no ``weight_ih``."""
    keep: int = 0
    """K: planes of (T, B, H) that training keeps."""
    sections: dict[str, Section] = {}  # noqa: RUF012 - never changed
    text: str = ""
    norms: bool = False
    """There are norms inside the step: of a row, all hidden units are needed together."""

    @property
    def extras(self):
        return self.step + self.sequence

    @property
    def shared(self):
        """The gates of both products."""
        return tuple(g for g in self.inputs if g in self.recurrent)

    @property
    def inner(self):
        """True with a second recurrent product inside the step, that of the last gate."""
        return "first" in self.sections

    @property
    def own_output(self):
        """True if the output is not the first state."""
        return self.sections["forward"].value("y") is not None

    @property
    def crossing(self):
        """How many values go from ``first`` to ``forward``."""
        return sum(p.to == "cross" for p in self.sections["first"].puts) if self.inner else 0

    @property
    def renewed(self):
        """The states whose new value the backward pass reads."""
        read = {name for section in self.sections.values() for name in section.loads("n")}
        return tuple(s for s in self.states if s in read)


def arithmetic(program):
    """What a program computes, whatever its names and the order of its instructions: equal for equal cells."""
    sections = program.sections
    places = {
        "inputs": program.inputs, "recurrent": program.recurrent, "states": program.states, "vectors": program.vectors,
        "extras": program.extras, "shared": program.inputs,
    }  # fmt: skip

    def values(name, crossing=()):
        found = []  # a digest of each value: expressions written out would be exponentially long
        for op, args, what in sections[name].code:
            if op == "cross":
                found.append(crossing[what])
                continue
            of = [found[n] for n in args]
            if not args:
                names = places.get(LOADS[op], ())
                of = [names.index(what) if what in names else what, name if op == "s" else ""]
            text = repr((op, *(sorted(of) if op in ("add", "mul", "min", "max", "eq") else of)))
            found.append(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
        return {
            (p.to, places["states"].index(p.what) if PUTS[p.to] == "states" else p.what): found[p.value]
            for p in sections[name].puts if p.to != "keep"
        }  # fmt: skip

    results = {name: values(name) for name in ("operand", "first") if name in sections}
    crossing = {what: v for (to, what), v in results.get("first", {}).items() if to == "cross"}
    results["forward"] = values("forward", crossing)
    puts = tuple((to, what, v) for found in results.values() for (to, what), v in found.items() if to != "cross")
    shared = tuple(program.recurrent.index(g) if g in program.recurrent else None for g in program.inputs)
    return (
        len(program.recurrent), len(program.states), len(program.vectors), len(program.step), program.narrow,
        len(program.sequence), program.given, shared, tuple(sorted(puts, key=repr)),
    )  # fmt: skip


class Refused(ValueError):
    """A text that is no program."""


def refuse(why):
    raise Refused(f"rnnkernels: not a program of a cell: {why}")


def names(tokens, most, what):
    if len(tokens) > most:
        refuse(f"expected at most {most} {what}, got {len(tokens)}")
    if len(set(tokens)) < len(tokens):
        refuse(f"{what} have a name twice")
    for name in tokens:
        if not NAME.match(name):
            refuse(f"expected a name of letters, digits and _, got {name!r}")
    return tuple(tokens)


def index(token, below, what):
    """A number from 0 to below ``below``."""
    if not (token.isascii() and token.isdigit() and len(token) < 5 and int(token) < below):
        refuse(f"expected {what} below {below}, got {token!r}")
    return int(token)


@lru_cache(maxsize=256)
def parse(text, more=()):
    """The ``Program`` of a text; ``more`` operations are allowed in it, with the number of values that they take.

    Raises:
        ValueError: for a text that is none, with the reason.
    """
    if len(text) > MOST_TEXT:
        refuse(f"it has more than {MOST_TEXT} characters")
    lines = [line.split(" ") for line in text.split("\n") if line]
    if not text.startswith("cell ") or lines[0][:2] != ["cell", VERSION] or len(lines[0]) != 3:
        refuse(f"expected the first line 'cell {VERSION} NAME'")
    fields, at = {"name": names(lines[0][2:], 1, "name")[0]}, 1
    limits = {
        "inputs": MOST_GATES, "recurrent": MOST_GATES, "states": MOST_STATES, "vectors": MOST_INPUTS,
        "step": MOST_INPUTS, "sequence": MOST_INPUTS, "given": 0, "keep": 1,
    }  # fmt: skip
    order = iter(limits)
    while at < len(lines) and lines[at][0] in limits:
        word, *tokens = lines[at]
        if word not in order:
            refuse(f"{word} comes twice, or in the wrong place")
        if (not tokens) != (word == "given"):
            refuse(f"expected {'nothing' if word == 'given' else 'names'} after {word}")
        if word == "given":
            fields["given"] = True
        elif word == "keep":
            if len(tokens) > 1:
                refuse("expected one number after keep")
            fields["keep"] = index(tokens[0], MOST_KEPT + 1, "a number of planes")
        else:
            if word == "step":
                fields["narrow"] = tuple(t.removesuffix(":1") for t in tokens if t.endswith(":1"))
                tokens = [t.removesuffix(":1") for t in tokens]
            fields[word] = names(tokens, limits[word], word)
        at += 1
    if "states" not in fields:
        refuse("expected states")
    program = Program(**fields, text=text)
    names(program.extras, 2 * MOST_INPUTS, "inputs of steps and sequences")
    if program.given and not program.inputs:
        refuse("given is for a cell with gates of the input")
    bodies, order = {}, iter(SECTIONS)
    while at < len(lines):
        if len(lines[at]) != 1 or lines[at][0] not in order:
            refuse(f"expected a section out of {', '.join(SECTIONS)}, in this order, got {' '.join(lines[at])!r}")
        start = at = at + 1
        while at < len(lines) and not (len(lines[at]) == 1 and lines[at][0] in SECTIONS):
            at += 1
        bodies[lines[start - 1][0]] = lines[start:at]
    lists = {
        "shared": program.shared, "inputs": program.inputs, "recurrent": program.recurrent, "states": program.states,
        "vectors": program.vectors, "extras": program.extras, "keep": program.keep,
        "crossing": MOST_CROSSING,
    }  # fmt: skip
    sections = {name: parse_section(name, body, lists, OPERATIONS | dict(more)) for name, body in bodies.items()}
    norms = any(i.op in NORMS for section in sections.values() for i in section.code)
    program = program._replace(sections=sections, norms=norms)
    check(program)
    return program


def operand_of(kind, token, lists):
    """What a load or a put names."""
    if kind == "number":
        number = float(token) if NUMBER.match(token) and len(token) <= 32 else math.nan
        if not math.isfinite(number):
            refuse(f"expected a finite number, got {token!r}")
        return number
    known = lists[kind]
    if isinstance(known, int):
        return index(token, known, f"a number of {kind}")
    if token not in known:
        refuse(f"expected a name out of {kind} ({', '.join(known) or 'none'}), got {token!r}")
    return token


def parse_section(name, body, lists, operations):
    loads, puts = SECTIONS[name]
    code, stores = [], []
    for op, *tokens in body:
        if op == "put":
            if not tokens or tokens[0] not in puts:
                refuse(f"{name} has no 'put {' '.join(tokens)}'")
            to, *tokens = tokens
            kind = PUTS[to]
            if len(tokens) != 1 + (kind is not None):
                refuse(f"expected {'a name or number and ' if kind else ''}a value after 'put {to}'")
            what = operand_of(kind, tokens[0], lists) if kind else None
            stores.append(Put(to, what, index(tokens[-1], len(code), "a value")))
            continue
        if stores:
            refuse(f"{name} has the instruction {op} after a put")
        if op in operations:
            if len(tokens) != operations[op]:
                refuse(f"{op} takes {operations[op]} values, got {len(tokens)}")
            args = tuple(index(t, len(code), "an earlier value") for t in tokens)
            if op in NORMS and (code[args[-1]].op != "const" or code[args[-1]].what < 0):
                refuse(f"the last value of {op} is its eps: expected a constant of 0 or more")
            code.append(Instruction(op, args))
        elif op in loads:
            kind = LOADS[op]
            if len(tokens) != (kind is not None):
                refuse(f"expected {'one name or number' if kind else 'nothing'} after {op}")
            code.append(Instruction(op, (), operand_of(kind, tokens[0], lists) if kind else None))
        else:
            refuse(f"{name} has no instruction {op!r}")
        if len(code) > MOST_INSTRUCTIONS:
            refuse(f"{name} has more than {MOST_INSTRUCTIONS} instructions")
    if len({put[:2] for put in stores}) < len(stores):
        refuse(f"{name} puts two values in one place")
    return Section(tuple(code), tuple(stores))


def check(program):
    """Refuse sections that do not fit together."""
    sections = program.sections
    for name in ("forward", "backward"):
        if name not in sections:
            refuse(f"expected a section {name}")
    for name in ("operand", "first"):
        derivative = "backward_operand" if name == "operand" else "backward_first"
        if (name in sections) != (derivative in sections):
            refuse(f"{name} and {derivative} come together")
        if name in sections and not program.recurrent:
            refuse(f"{name} is for a cell with a recurrent product")
    forward, inner = sections["forward"], program.inner
    missing = [s for s in program.states if forward.value("new", s) is None]
    if missing:
        refuse(f"the new value of state {missing[0]} is missing")
    if "operand" in sections and sections["operand"].value("operand") is None:
        refuse("operand puts no operand")
    if inner and sections["first"].value("inner") is None:
        refuse("first puts no operand of the inner product")
    loads = {name: {i.op for i in section.code} for name, section in sections.items()}
    if not inner and (loads["forward"] & {"i", "cross"} or loads["backward"] & {"dcross"}):
        refuse("i and cross are for a cell with an inner product")
    if inner and loads["forward"] & GATES:
        refuse("with an inner product, forward reads the gates' pre-activations by cross")
    last = program.recurrent[-1:] if inner else ()
    if inner and any(i.op in ("r", "a") and i.what in last for i in sections["first"].code):
        refuse("the pre-activation of the inner product's gate comes after it")
    if "x" in loads["backward"] and (inner or not program.given):
        refuse("backward reads x where it is given, and there is no inner product")
    if "gy" in loads["backward"] and not program.own_output:
        refuse("gy is for a cell with an output of its own")
    kept = [p.what for name in ("first", "forward") if name in sections for p in sections[name].puts if p.to == "keep"]
    if sorted(kept) != list(range(program.keep)):
        refuse(f"expected the kept planes 0 to {program.keep - 1}, each once")
    if inner:
        crossing = sorted(p.what for p in sections["first"].puts if p.to == "cross")
        read = {*forward.loads("cross"), *sections["backward_first"].loads("dcross")}
        read |= {p.what for p in sections["backward"].puts if p.to == "dcross"}
        if crossing != list(range(len(crossing))) or not read <= set(crossing):
            refuse("expected crossing values from 0 on, each put by first")
    gates = [p for name in ("backward", "backward_first") if name in sections for p in sections[name].puts]
    sides = [(side, p.what) for p in gates for side in {"da": "xr", "dx": "x", "dr": "r"}.get(p.to, "")]
    sides += [("r", last[0]) for p in gates if p.to == "di" and last]
    if len(set(sides)) < len(sides):
        refuse("a gate's gradient is put twice")
    if not inner and any(p.to in ("di", "dcross") for p in gates):
        refuse("di and dcross are for a cell with an inner product")
