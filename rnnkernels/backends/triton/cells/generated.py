"""A cell's program → Triton source, imported, as a ``Cell`` for the loops: of the built-in cells as of all others.

The source lies in Triton's cache directory, by its hash: jit functions need a file. It has nothing of the program's
text but names, which are identifiers, and numbers.
"""

import functools
import hashlib
import importlib.util
import sys
from pathlib import Path

from triton.runtime.cache import get_cache_manager

from ....cells import spec_of
from ....cells.program import NORMS
from . import segments
from .layout import Cell
from .segments import stores_of

OPERATIONS = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "divide({}, {})", "neg": "-1.0 * {}",
    "abs": "tl.abs({})", "sign": "sign({})", "sqrt": "square_root({})", "exp": "exp({})", "log": "log({})",
    "log1p": "log1p({})", "expm1": "expm1({})", "sigmoid": "sigmoid({})", "tanh": "tanh({})",
    "relu": "larger({0}, tl.zeros_like({0}))", "min": "smaller({}, {})", "max": "larger({}, {})",
    "lt": "({0} < {1}).to({type})", "le": "({0} <= {1}).to({type})", "eq": "({0} == {1}).to({type})",
    "where": "tl.where({} != 0, {}, {})", "tanh_back": "{0} * (1 - {1} * {1})",
    "sigmoid_back": "{0} * ({1} * (1 - {1}))", "relu_back": "tl.where({1} <= 0, 0.0, {0})", "through": "{0}",
    "act": "activate({}, ACTIVATION)", "act_back": "{0} * slope({1}, ACTIVATION)", "gate": "activate({}, GATE)",
    "gate_back": "{0} * slope({1}, GATE)", "norm": "{0}", "norm_back": "{0}",  # the loops call what is beyond a norm
    "layer_norm": "layer_norm({}, {}, UNITS, {rows}, {at})",
    "layer_norm_back": "layer_norm_back({}, {}, {}, UNITS, {rows}, {at})",
}  # fmt: skip
WITH_NUMBERS = {"add", "sub", "mul", "lt", "le", "eq"}  # all other instructions take a number as a tile of it
MATH = (
    "activate", "divide", "exp", "expm1", "larger", "log", "log1p", "sigmoid", "sign", "slope", "smaller",
    "square_root", "tanh",
)  # fmt: skip
ROWS = ("layer_norm", "layer_norm_back")  # of cells/rows.py
WITH_NORMS = ("operand", "first", "forward", "backward_operand", "backward", "backward_first")  # sections
SETTINGS = "ACTIVATION: tl.constexpr, GATE: tl.constexpr"
HEAD = '''"""The cell {name}, generated from its program. Tuples of tiles (units, batch):

x  {inputs}
r  {recurrent}
s  {states}{beside}
"""

import triton
import triton.language as tl

{math}{units}'''


class Layout:
    """The places of what a program names in the tuples of tiles that its functions take and give."""

    def __init__(self, spec):
        program = spec.program
        self.program, self.sections = program, program.sections
        self.stores = {name: stores_of(section) for name, section in self.sections.items()}
        self.beside = [("s", name) for name in program.states] + [("v", name) for name in program.vectors]
        self.beside += [("u", name) for name in (*program.sequence, *program.step)]
        # what ``forward`` reads or keeps of ``first``, and the gradients that go back
        self.crossing = [store for store in self.stores.get("first", ()) if store[0] != "inner"]
        self.dcross = [what for op, what in self.loads("backward_first") if op == "dcross"]
        self.again = any(op == "x" for op, _ in self.loads("backward"))
        self.new = [n for n, name in enumerate(program.states) if self.reads(("n", name))]
        self.old = [n for n, name in enumerate(program.states) if self.reads(("s", name))]
        self.own = [program.states.index(name) for name in spec.renewed(zoned=True)]
        self.planes, self.recurrent = [], []
        for gate in program.inputs:
            self.planes.append(self.place(("da", gate)) or self.place(("dx", gate)))
        for n, gate in enumerate(program.recurrent):
            if program.inner and n + 1 == len(program.recurrent):
                value = self.place(("di", None))
            elif self.place(("da", gate)):
                self.recurrent.append(program.inputs.index(gate))
                continue
            else:
                value = self.place(("dr", gate))
            if value not in self.planes or value is None:
                self.planes.append(value)
            self.recurrent.append(len(self.planes) - 1 - self.planes[::-1].index(value))

    def loads(self, *names):
        """The values that the named sections load: (kind, name) each, in order."""
        sections = [self.sections[name] for name in names if name in self.sections]
        found = [(op, what) for section in sections for op, _, what in section.code if op not in OPERATIONS]
        return list(dict.fromkeys(found))

    def reads(self, load):
        return load in self.loads("backward", "backward_first", "backward_operand")

    def place(self, store):
        """The section and the number of the value that is stored as a gradient; None for zeros."""
        found = [(name, self.stores[name][store]) for name in ("backward", "backward_first")
                 if store in self.stores.get(name, ())]  # fmt: skip
        return found[0] if found else None  # a program has each only once

    @property
    def merged(self):
        """Pairs of an input and a recurrent gate that are only read as a sum."""
        program, apart = self.program, self.loads("first", "forward")
        return tuple(
            (program.inputs.index(gate), n)
            for n, gate in enumerate(program.recurrent)
            if gate in program.inputs and not program.given
            and (self.added_to_inner(gate) if program.inner and n + 1 == len(program.recurrent)
                 else ("x", gate) not in apart and ("r", gate) not in apart)
        )  # fmt: skip

    def added_to_inner(self, gate):
        """True if the gate's input pre-activation is only read where ``forward`` adds it to the inner product."""
        first, forward = self.sections["first"], self.sections["forward"]
        x = [n for n, i in enumerate(first.code) if (i.op, i.what) == ("x", gate)]
        crossing = [what for to, what, n in first.puts if to == "cross" and n in x]
        read = [n for n, i in enumerate(forward.code) if i.op == "i" or i.op == "cross" and i.what in crossing]
        users = [i for i in forward.code if set(i.args) & set(read)]
        return (
            not any(set(i.args) & set(x) for i in first.code)
            and [to for to, _, n in first.puts if n in x] == ["cross"]
            and [(i.op, sorted(i.args)) for i in users] == [("add", sorted(read))]
            and not any(n in read for *_, n in forward.puts)
        )

    def renewal(self, spec):
        """The section that gives a built-in cell's new states again, where ``backward`` reads them; or None."""
        return segments.renewal(self.program, [self.program.states[n] for n in self.new]) if spec.built_in else None

    def kept(self, forward):
        """The expressions of the kept planes, from those of the values of ``forward``."""
        planes = {store[1]: n for store, n in self.stores["forward"].items() if store[0] == "keep"}
        at = len(self.beside)
        early = {store[1]: f"s[{at + n}]" for n, store in enumerate(self.crossing) if store[0] == "keep"}
        return [early[k] if k in early else forward(planes[k]) for k in range(self.program.keep)]


class Function:
    """The lines of a function from a section of a program."""

    def __init__(self, section, loads, like, rows=None):
        self.lines, self.values, self.like, norms = [], {}, like, 0
        for number in segments.order(section):
            op, args, what = section.code[number]
            if op == "const":
                self.values[number] = float(what)
                continue
            if op in OPERATIONS:
                name, numbers = f"t{number}", op not in WITH_NUMBERS
                numbers = numbers or all(isinstance(self.values[a], float) for a in args)
                given = [self.tile(a) if numbers else self.literal(a) for a in args]
                given[-1] = self.literal(args[-1]) if op in NORMS else given[-1]
                value = OPERATIONS[op].format(*given, type=f"{like}.dtype", rows=rows, at=norms)
                norms += op in NORMS
                name = value if value in given else name
            else:
                name, value = op if what is None else f"{op}_{what}", loads[op, what]
            if name != value:
                self.lines.append(f"{name} = {value}")
            self.values[number] = name

    def literal(self, number):
        value = self.values[number]
        return repr(value) if isinstance(value, float) else value

    def tile(self, number):
        """The name of a value, or a tile of a number."""
        value = self.values[number]
        return f"tl.full({self.like}.shape, {value!r}, {self.like}.dtype)" if isinstance(value, float) else value

    def of(self, stores, store):
        """The value that is stored, or zeros."""
        return self.tile(stores[store]) if store in stores else f"tl.zeros_like({self.like})"


def tuple_of(values):
    return "(" + ", ".join(values) + ("," if len(values) == 1 else "") + ")"


def function(name, arguments, lines, *results):
    """The source of a jit function."""
    head = f"\n\n@triton.jit\ndef {name}({arguments}):\n"
    return head + "".join(f"    {line}\n" for line in (*lines, f"return {', '.join(results)}"))


def source(spec, H=None):
    """The source of the cell's functions; of a cell with norms, for H hidden units."""
    program, layout = spec.program, Layout(spec)
    S = len(program.states)
    loads = {load: f"s[{n}]" for n, load in enumerate(layout.beside)}
    loads |= {("x", gate): f"x[{n}]" for n, gate in enumerate(program.inputs)}
    loads |= {("r", gate): f"r[{n}]" for n, gate in enumerate(program.recurrent)}
    loads |= {("a", gate): f"{loads['x', gate]} + {loads['r', gate]}" for gate in program.inputs
              if gate in program.recurrent}  # fmt: skip
    loads |= {("i", None): f"r[{len(program.recurrent) - 1}]", ("gy", None): f"ds[{S}]"}
    loads |= {("go", None): "go", ("gi", None): "gi"}
    loads |= {("k", n): f"kept[{n}]" for n in range(program.keep)}
    for n, name in enumerate(program.states):
        loads |= {("n", name): f"new[{n}]", ("g", name): f"ds[{n}]"}
    at = len(layout.beside)
    loads |= {store: f"s[{at + n}]" for n, store in enumerate(layout.crossing) if store[0] == "cross"}
    loads |= {("dcross", what): f"crossing[{n}]" for n, what in enumerate(layout.dcross)}
    out = ""

    def section(name, like):
        end, own = len(layout.beside), {}
        if name == "forward":
            end += len(layout.crossing)
        elif name == "backward" and layout.again:
            own = {("x", gate): f"s[{end + n}]" for n, gate in enumerate(program.inputs)}
            end += len(program.inputs)
        return Function(program.sections[name], loads | own, like, f"s[{end}:]"), layout.stores[name]

    def more(body, stores):
        return [body.of(stores, (f"d{kind}", name)) for kind, name in layout.beside]

    if "operand" in program.sections:
        body, stores = section("operand", "s[0]")
        out += function("operand", "s", body.lines, body.of(stores, ("operand", None)))
    if program.inner:
        body, stores = section("first", "s[0]")
        crossing = tuple_of([body.of(stores, store) for store in layout.crossing])
        out += function("first", f"x, r, s, {SETTINGS}", body.lines, body.of(stores, ("inner", None)), crossing)
    body, stores = section("forward", "s[0]")
    new = [body.of(stores, ("new", name)) for name in program.states]
    new += [body.of(stores, ("y", None))] if program.own_output else []
    out += function("forward", f"x, r, s, {SETTINGS}", body.lines, tuple_of(new), tuple_of(layout.kept(body.tile)))
    body, stores = section("backward", "ds[0]")
    planes = [body.tile(place[1]) if place and place[0] == "backward" else "tl.zeros_like(ds[0])"
              for place in layout.planes]  # fmt: skip
    rest = more(body, stores) + [body.of(stores, ("dcross", what)) for what in layout.dcross]
    out += function("backward", f"ds, new, s, kept, {SETTINGS}", body.lines, tuple_of(planes), tuple_of(rest))
    if program.inner:
        body, stores = section("backward_first", "gi")
        planes = [body.tile(place[1]) for place in layout.planes if place and place[0] == "backward_first"]
        arguments = f"gi, crossing, new, s, kept, {SETTINGS}"
        out += function("backward_first", arguments, body.lines, tuple_of(planes), tuple_of(more(body, stores)))
    if "operand" in program.sections:
        body, stores = section("backward_operand", "go")
        out += function("backward_operand", "go, s", body.lines, tuple_of(more(body, stores)))
    if layout.own:
        states = [f"kept[{program.keep + layout.own.index(n)}]" if n in layout.own else f"old[{n}]" for n in range(S)]
        out += function("renew", "old, kept", [], tuple_of(states))
    elif renewal := layout.renewal(spec):
        body = Function(renewal, loads | {("s", name): f"old[{n}]" for n, name in enumerate(program.states)}, "old[0]")
        stores = stores_of(renewal)
        states = [body.tile(stores["new", name]) if ("new", name) in stores else f"old[{n}]"
                  for n, name in enumerate(program.states)]  # fmt: skip
        out += function("renew", "old, kept", body.lines, tuple_of(states))
    if spec.output_norm:
        normed = loads | {("n", program.states[-1]): "c", ("g", program.states[0]): "dh"}
        for name, arguments, cut in (
            ("hidden", "kept, c", segments.output_part(program)),
            ("backward_hidden", "dh, kept, c", segments.backward_output_part(program)),
        ):
            body = Function(cut, normed, "c")
            out += function(name, f"{arguments}, {SETTINGS}", body.lines, body.tile(cut.puts[0].value))
    imports = ""
    for file, names in (("math", MATH), ("rows", ROWS)):
        used = ", ".join(name for name in names if f" {name}(" in out)
        imports += f"from rnnkernels.backends.triton.cells.{file} import {used}\n" if used else ""
    beside = "".join(f" {name}" for _, name in layout.beside[S:])
    units = f"\nUNITS = tl.constexpr({H})\n" if program.norms else ""
    return HEAD.format(
        name=program.name, inputs=" ".join(program.inputs), recurrent=" ".join(program.recurrent),
        states=" ".join(program.states), beside=beside,
        math=f"\n{imports}" if imports else "", units=units,
    ) + out  # fmt: skip


def imported(text):
    """The module of a source, from a file in Triton's cache directory."""
    key = hashlib.sha256(text.encode()).hexdigest()
    name, manager = f"rnnkernels_cell_{key[:16]}", get_cache_manager(key)
    path = manager.get_file(f"{name}.py")
    if path is None or Path(path).read_text() != text:
        path = manager.put(text, f"{name}.py", binary=False)  # atomic
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def cell_of(name, H=None):
    """The ``Cell`` of the op's ``cell``: the name of a built-in cell, or the text of a program. With norms in it, its
    functions are for H hidden units."""
    return _cell_of(name, H if spec_of(name).program.norms else None)


def norms_of(program):
    """How many norms stand in each of the functions WITH_NORMS; empty if there are none."""
    if not program.norms:
        return ()
    found = []
    for name in WITH_NORMS:
        section = program.sections.get(name)
        found.append(sum(section.code[n].op in NORMS for n in segments.order(section)) if section else 0)
    return tuple(found)


@functools.cache
def _cell_of(name, H):
    spec = spec_of(name)
    program, layout, module = spec.program, Layout(spec), imported(source(spec, H))
    second, other = program.inner, "operand" in program.sections
    early = [n for n, place in enumerate(layout.planes) if place and place[0] == "backward_first"]

    def in_torch(function, there):
        return functools.partial(function, program) if there else None

    return Cell(
        module.forward, module.backward, len(program.inputs), len(program.states), program.keep, len(layout.planes),
        tuple(layout.recurrent), tuple(n in layout.new for n in range(len(program.states))),
        tuple(n in layout.old for n in range(len(program.states))), merged=layout.merged,
        first=module.first if second else None, backward_first=module.backward_first if second else None,
        first_planes=tuple(early.index(n) if n in early else -1 for n in range(len(layout.planes))) if second else (),
        cross=len(layout.dcross), inner=in_torch(segments.inner, second and segments.inner_is_kept(program)),
        hidden=module.hidden if spec.output_norm else None,
        backward_hidden=module.backward_hidden if spec.output_norm else None, renew=getattr(module, "renew", None),
        new_cells=in_torch(segments.new_cells, spec.built_in and (spec.has_projection or spec.output_norm)),
        output=in_torch(segments.output if spec.built_in else segments.output_of_program, spec.has_projection),
        vectors=len(program.vectors),
        sequences=len(program.sequence), steps=len(program.step), again=layout.again,
        operand=module.operand if other else None,
        backward_operand=module.backward_operand if other else None, operands=in_torch(segments.operand, other),
        operand_gradients=in_torch(segments.operand_gradients, other), y=program.own_output, own=tuple(layout.own),
        finite=spec.built_in, norms=norms_of(program), text="" if spec.built_in else program.text,
    )  # fmt: skip
