"""``rnnkernels.cell``: from a Python function to a cell.

Letters: T time, B batch, H hidden, I input.
"""

import keyword
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, overload

from torch import Tensor, nn

from . import derive
from .graph import Graph
from .parts import projected
from .program import MOST_GATES, MOST_INPUTS, MOST_STATES, NAME, PLACEHOLDERS, Program, arithmetic, parse
from .spec import ARITHMETIC, spec_of
from .trace import CellError, Names, Symbol, Trace, described, innermost, parameters_of, run

Step: TypeAlias = Callable[..., Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]]
"""A cell's function: from ``x``, ``r``, ``s``, ``v`` and ``u``, each of the type ``Names``, to the new states."""


class Cell:
    """A recurrence that :class:`rnnkernels.Recurrent` runs; made by :func:`rnnkernels.cell`.

    Attributes:
        program: what the cell is for the kernels; ``str(cell)`` is its text.
        constants: the numbers that the function was traced with.
        names: what the function calls its values, by the plane that training keeps of them.
    """

    program: Program
    constants: dict[str, float]
    names: tuple[str, ...]
    kernel: str
    projected: str | None

    def __init__(
        self,
        program: Program,
        constants: Mapping[str, float] | None = None,
        names: Iterable[str] = (),
        retrace: Callable[..., Any] | None = None,
    ) -> None:
        self.program, self.constants, self.names = program, dict(constants or {}), tuple(names)
        self._retrace = retrace
        self.projected = projected(program)
        """The text of the program in layers with ``proj_size``, None where there are none: see parts.py."""
        for text in (program.text, self.projected):  # the first call of each, outside of compiled graphs
            spec_of(text or program.text)
        self.kernel = ARITHMETIC.get(arithmetic(program), program.text)
        """What the op is given: the built-in cell that computes the same, and is compiled in, or the program."""

    def named(self) -> "Cell":
        """The cell with all values that its function names, or 32 of them, among those that training keeps: for
        :func:`rnnkernels.trace`. After unpickling, without the function, it is the cell itself."""
        return self if self._retrace is None else self._retrace(self.constants, every=True)

    def __str__(self) -> str:
        return self.program.text

    def __repr__(self) -> str:
        given = "".join(f", {name}={value}" for name, value in self.constants.items())
        return f"<cell {self.program.name}{given}>"

    def __reduce__(self) -> tuple[Any, ...]:  # the function may not be importable where the cell goes
        return _unpickled, (self.program.text, self.constants, self.names)

    def __deepcopy__(self, memo: Any) -> "Cell":  # nothing of it changes
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and self.program.text == other.program.text

    def __hash__(self) -> int:
        return hash(self.program.text)

    def with_constants(self, **constants: float) -> "Cell":
        """The cell with other constants.

        Raises:
            TypeError: for a name that is no constant of the cell, and a value that is no number.
            ValueError: for a cell without its function, as it is after unpickling.
        """
        for name in constants:
            if name not in self.constants:
                known = ", ".join(self.constants) or "none"
                raise TypeError(f"{self.program.name} has no constant {name}; its constants are {known}")
            if not isinstance(constants[name], numbers.Real):
                kind = type(constants[name]).__name__
                raise TypeError(f"{self.program.name}: expected the constant {name} to be a number, got {kind}")
        if not constants:
            return self
        if self._retrace is None:
            raise ValueError(f"{self.program.name} came without its function; its constants cannot change any more")
        return self._retrace({**self.constants, **constants})

    def text_with(self, **functions: Any) -> str:
        """The text with other functions in the place of those that are defaults of the function's parameters."""
        return self._retrace(self.constants, functions)


def _unpickled(text, constants, names):
    return Cell(parse(text), constants, names)


@overload
def cell(function: Step) -> Cell: ...


@overload
def cell(
    function: None = None,
    *,
    inputs: str | Iterable[str] = "",
    recurrent: str | Iterable[str] = "",
    states: str | Iterable[str] = "h",
    vectors: str | Iterable[str] = "",
    step_inputs: str | Iterable[str] = "",
    sequence_inputs: str | Iterable[str] = "",
    constants: Mapping[str, float] | None = None,
    project_input: bool = True,
    operand: Callable[..., Tensor] | None = None,
    output: Callable[..., Tensor] | None = None,
    keep: str | Iterable[str] | None = None,
    name: str | None = None,
) -> Callable[[Step], Cell]: ...


def cell(
    function=None, *, inputs="", recurrent="", states="h", vectors="", step_inputs="", sequence_inputs="",
    constants=None, project_input=True, operand=None, output=None, keep=None, name=None,
):  # fmt: skip
    """Make a cell of a pointwise function; used as a decorator.

    The function is called once, with symbols, and gives the states after the step: one value, a tuple in the order of
    ``states``, or a dict or named tuple with their names. Its parameters are taken by name: ``x`` and ``r`` have the
    input and recurrent pre-activations by gate (``W_ih x_t + b_ih`` and ``W_hh h + b_hh``), ``s`` the states before the
    step, ``v`` the vectors and ``u`` the step and sequence inputs; further ones are constants.

    Args:
        inputs: the names of the gates of the input, separated by spaces; ``x.name`` in the function.
        recurrent: those of the recurrent product; ``r.name``. Default: none, an elementwise recurrence
        states: the states, 1 to 4; ``s.name``. The first is multiplied by ``W_hh``, and is the output. Default: "h"
        vectors: learned vectors (H,); ``v.name``.
        step_inputs: inputs of every step, (T, B, H), or (T, B, 1) for those written ``name:1``; ``u.name``.
        sequence_inputs: inputs of a whole sequence, (B, H); ``u.name``.
        constants: numbers by name, which become parameters of the function; a layer can choose others.
        project_input: False where the input is (T, B, H * number of ``inputs``), the pre-activations themselves.
        operand: a function of ``s`` (and ``u``, ``v``): what ``W_hh`` multiplies in place of the first state.
        output: a function of ``s``, the states after the step (and ``u``, ``v``): what the layer gives in place of the
            first state.
        keep: names of values in the function that training keeps, separated by spaces. Default: as few as suffice
        name: Default: the function's

    Raises:
        TypeError: for a function that does something which is not pointwise, or has no place in a kernel: with the
            line, and what is allowed.

    Example::

        @rnnkernels.cell(inputs="z n", recurrent="z n", states="h")
        def li_gru(x, r, s):
            z, n = torch.sigmoid(x.z + r.z), torch.relu(x.n + r.n)
            return z * s.h + (1 - z) * n
    """

    def decorate(function):
        if not callable(function) or isinstance(function, type):
            raise CellError(f"cell makes a cell of a function, got {function!r}; names are given by keyword")
        if name is not None and not (isinstance(name, str) and NAME.match(name)):
            raise CellError(f"expected the name of a cell to be one of ASCII letters, digits and _, got {name!r}")
        own = getattr(innermost(function), "__name__", type(function).__name__)
        header = _header(name or own, inputs, recurrent, states, vectors, step_inputs, sequence_inputs, project_input)
        if constants is not None and not isinstance(constants, Mapping):
            raise CellError(f"cell {header.name}: expected constants to be a dict of numbers, got {constants!r}")

        def trace(constants, functions=None, every=False):
            text, planes = _trace(function, header, constants, functions or {}, operand, output, keep, every)
            if functions:
                return text
            made = Cell(parse(text), constants, planes, trace)
            made.__doc__ = function.__doc__
            return made

        return trace(dict(constants or {}))

    return decorate if function is None else decorate(function)


LAYER = (
    "cell", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "device",
    "dtype", "init", "recurrent_dropout", "zoneout", "layer_norm", "recompute", "heads", "activation",
    "recurrent_activation", "proj_size", "reset_after", "nonlinearity",
)  # fmt: skip
"""Keywords of layers: no constant, and no attribute of a module that is a vector, has such a name."""
CALL = (
    "self", "cell", "input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional",
    "batch_first", "lengths", "reset", "recurrent_dropout", "zoneout", "layer_norm", "recompute", "heads",
)  # fmt: skip
"""Arguments of a layer's call, and of ``functional.recurrent``: no input and no constant has such a name."""


def _check_names(name, vectors, extras, constants):
    """Refuse names that mean something else in a layer."""
    attributes = {*LAYER, *dir(nn.Module()), "reset_parameters"}
    for vector in vectors:
        if "weight" in vector or vector.startswith(("bias", "ln_", "_")) or vector in attributes:
            raise CellError(f"cell {name}: {vector} cannot be the name of a vector: a module has something else of it")
    for what, names, taken in (("an extra input", extras, CALL), ("a constant", constants, CALL + LAYER)):
        if found := [n for n in names if n in taken]:
            raise CellError(f"cell {name}: {found[0]} cannot be the name of {what}: layers have an argument of it")
    if found := [n for n in constants if n in extras]:
        raise CellError(f"cell {name}: an extra input and a constant have the same name, {found[0]}")


def _header(name, inputs, recurrent, states, vectors, step, sequence, project_input):
    """A ``Program`` without sections, of checked names."""
    fields, limits = {}, (MOST_GATES, MOST_GATES, MOST_STATES, MOST_INPUTS, MOST_INPUTS, MOST_INPUTS)
    given = {
        "inputs": inputs, "recurrent": recurrent, "states": states, "vectors": vectors, "step_inputs": step,
        "sequence_inputs": sequence,
    }  # fmt: skip
    for (field, value), most in zip(given.items(), limits, strict=True):
        tokens = value.split() if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
        if odd := [t for t in tokens if not isinstance(t, str)]:
            raise CellError(f"cell {name}: expected names separated by spaces in {field}, got {odd[0]!r}")
        fields[field] = tokens
        plain = [t.removesuffix(":1") if field == "step_inputs" else t for t in tokens]
        for token in plain:
            if not NAME.match(token) or keyword.iskeyword(token) or token.startswith("__"):
                raise CellError(
                    f"cell {name}: expected names separated by spaces in {field}, of ASCII letters, digits and _, and "
                    f"without __ at the beginning, got {token!r}"
                )
        if len(plain) > most or len(set(plain)) < len(plain):
            raise CellError(f"cell {name}: expected at most {most} different names in {field}, got {value!r}")
    if not fields["states"]:
        raise CellError(f"cell {name}: expected 1 to {MOST_STATES} states, got none")
    extras = [t.removesuffix(":1") for t in fields["step_inputs"]] + fields["sequence_inputs"]
    if len(set(extras)) < len(extras):
        raise CellError(f"cell {name}: a step input and a sequence input have the same name")
    if not project_input and not fields["inputs"]:
        raise CellError(f"cell {name}: project_input=False is for a cell with inputs")
    if not NAME.match(name):
        name = "cell"  # a lambda
    return Program(
        name, tuple(fields["inputs"]), tuple(fields["recurrent"]), tuple(fields["states"]), tuple(fields["vectors"]),
        tuple(extras[: len(fields["step_inputs"])]),
        tuple(t.removesuffix(":1") for t in fields["step_inputs"] if t.endswith(":1")),
        tuple(fields["sequence_inputs"]), not project_input,
    )  # fmt: skip


def _trace(function, header, constants, functions, operand, output, keep, every):
    """The text of the cell, and the names of its planes; ``functions`` are in the place of defaults of parameters, and
    ``every`` keeps all values that have names."""
    trace = Trace(function, header.recurrent[-1] if header.recurrent else None)

    def loads(kind, op, names):
        return Names(trace, kind, {n: Symbol(trace, trace.graph.load(op, n)) for n in names})

    values = {
        "x": loads("x", "x", header.inputs), "r": loads("r", "r", header.recurrent),
        "s": loads("s", "s", header.states), "v": loads("v", "v", header.vectors),
        "u": loads("u", "u", header.extras),
    }  # fmt: skip
    _check_names(header.name, header.vectors, header.extras, constants)
    if taken := set(constants) & set(values):
        raise CellError(f"cell {header.name}: {taken.pop()} cannot be the name of a constant")
    unused = set(constants) - set(parameters_of(function))
    if unused:
        raise CellError(f"{described(function)}: expected parameters for all constants, {unused.pop()} is missing")
    results, called = run(trace, function, values, constants, functions)
    named = isinstance(results, tuple) and set(getattr(results, "_fields", ())) == set(header.states)
    if named or isinstance(results, Mapping):
        by_name = results._asdict() if named else dict(results)
        if set(by_name) != set(header.states):
            given = ", ".join(map(str, by_name)) or "none"
            raise CellError(f"{described(function)}: expected new states {', '.join(header.states)}, got {given}")
        results = [by_name[name] for name in header.states]
    results = results if isinstance(results, (tuple, list)) else (results,)
    if len(results) != len(header.states):
        raise CellError(
            f"{described(function)}: expected {len(header.states)} new states ({', '.join(header.states)}), "
            f"got {len(results)}"
        )
    new = {name: trace.symbol(v) for name, v in zip(header.states, results, strict=True)}
    roots = {f"new {name}": v.node for name, v in new.items()}
    inner = trace.inner
    outside = {k: v for k, v in values.items() if k in ("s", "u", "v")}
    for what, part in (("operand", operand), ("output", output)):
        if part is not None:
            if not callable(part):
                raise CellError(f"cell {header.name}: expected {what} to be a function, got {part!r}")
            given = outside if what == "operand" else {**outside, "s": Names(trace, "s", new)}
            trace.function, trace.last = part, None
            roots[what] = trace.symbol(run(trace, part, given, constants)[0]).node
    if operand is not None and not header.recurrent:
        raise CellError(f"cell {header.name}: operand= is for a cell with a recurrent product")
    if inner is not None:
        roots["inner"] = inner
        if any(trace.graph.nodes[n].op == "i" for n in trace.graph.ancestors([inner])):
            raise CellError(f"{described(function)}: an inner product cannot depend on itself")
        if any(trace.graph.nodes[n][::2] == ("r", header.recurrent[-1]) for n in trace.graph.ancestors(roots.values())):
            raise CellError(f"{described(function)}: r.{header.recurrent[-1]} is what the inner product gives")
    _check_gates(function, header, trace.graph, roots, inner)
    chosen = None
    if keep is not None:
        wanted = keep.split() if isinstance(keep, str) else list(keep) if isinstance(keep, Iterable) else [keep]
        if odd := [n for n in wanted if not isinstance(n, str)]:
            raise CellError(f"{described(function)}: expected names separated by spaces in keep, got {odd[0]!r}")
        if unknown := [n for n in wanted if n not in called]:
            raise CellError(f"{described(function)}: keep= names {unknown[0]}, which the function has not")
        roots |= {f"keep {n}": called[n] for n in wanted}
    live, also = set(trace.graph.ancestors(roots.values())), {}
    for name, n in called.items():
        if n in live and trace.graph.number(n) is None:
            also.setdefault(n, name)
    if every:
        roots |= {f"named {name}": n for n, name in also.items()}
    graph, at = _merged(trace.graph, roots.values(), header.shared)
    roots = {what: at[n] for what, n in roots.items()}
    if keep is not None:
        chosen = list(dict.fromkeys(n for what, n in roots.items() if what.startswith("keep ")))
    try:
        text, kept = derive.write(
            graph, header, {name: roots[f"new {name}"] for name in header.states}, roots.get("output"),
            roots.get("operand"), roots.get("inner"), chosen, [n for to, n in roots.items() if to.startswith("named ")],
        )  # fmt: skip
        parse(text, PLACEHOLDERS if functions else ())
    except ValueError as error:  # more than a program may have
        raise CellError(f"{described(function)}: {error}") from None
    again = {at[n]: name for n, name in also.items() if n in at}
    return text, [again.get(n, f"plane_{k}") for k, n in enumerate(kept)]


def _check_gates(function, header, graph, roots, inner):
    """Every declared gate, vector and input is used: one that is not would be a mistake, and get no gradient."""
    used = {(graph.nodes[n].op, graph.nodes[n].what) for n in graph.ancestors(roots.values())}
    for op, names in (
        ("x", header.inputs), ("r", header.recurrent[: -1 if inner is not None else None]), ("v", header.vectors),
        ("u", header.extras),
    ):  # fmt: skip
        if op == "r" and inner is not None and ("i", None) not in used:
            raise CellError(f"{described(function)}: product({header.recurrent[-1]!r}, ...) is made, and not used")
        for name in names:
            if (op, name) not in used:
                raise CellError(f"{described(function)}: {op}.{name} is declared, and not used")


def _merged(graph, roots, shared):
    """The graph without dead values, and with one load for the sum x.g + r.g where neither has another use."""
    live, uses = graph.ancestors(roots), {}
    for n in live:
        for m in set(graph.nodes[n].of):
            uses.setdefault(m, []).append(n)
    new, at, roots = Graph(), {}, set(roots)
    for n in live:
        node = graph.nodes[n]
        if node.op == "add":
            a, b = (graph.nodes[m] for m in node.of)
            alone = all(uses[m] == [n] and m not in roots for m in node.of)
            if {a.op, b.op} == {"x", "r"} and a.what == b.what and a.what in shared and alone:
                at[n] = new.load("a", a.what)
                continue
        at[n] = new.op(node.op, *(at[m] for m in node.of)) if node.of else new.load(node.op, node.what)
    return new, at
