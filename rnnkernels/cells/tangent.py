"""The tangent of a cell is a cell: from a program, the program of its forward-mode derivative.

Its states are the tangents of the states, and its gates those of the pre-activations. The values of the step itself
that multiply them are step inputs: a smallest set, from which the program computes the others again. Tangents of the
cell's own inputs and vectors reach the results through one step only: their part is summed up beforehand, over all
steps at once, and is a further gate. So the tangent of a tangent, which is linear, has no more step inputs than it.

``op/tangent.py`` has the layer. Letters: T time, B batch, H hidden.
"""

from functools import lru_cache, reduce
from typing import NamedTuple

from . import derive, spec_of
from .graph import Graph
from .program import MOST_GATES, MOST_INPUTS, Instruction, Program, Put, Refused, Section

LONGEST_NAME = 48  # so that the tangent of a tangent has a name too
THROUGH_STEPS, OF_ONE_STEP = ("a", "x", "r", "i", "s", "m"), ("u", "v")  # loads


class Tangent(NamedTuple):
    """The program of a tangent, and what its inputs are. A load ``d..`` is the tangent of a load, and a load ``m`` the
    first state as recurrent dropout leaves it for the inner product's operand."""

    text: str
    given: bool
    """The input are gates, and not multiplied by ``weight_ih``."""
    apart: tuple[str, ...]
    """The gates of the recurrent product whose tangent, as far as it is not ``W_hh`` times that of the operand, is a
    gate of its own, because x has no gate that it can be added to."""
    added: tuple[tuple[str, str | None], ...]
    """The puts of ``forward`` to which there is an own gate that adds what ``one_step`` puts there."""
    narrow: tuple[str, ...]
    """The narrow step inputs of the cell that come after the step inputs which ``values`` puts."""
    sequence: tuple[str, ...]
    """The inputs of a sequence, which are some of the cell's."""
    vectors: tuple[str, ...]
    """The vectors, which are some of the cell's."""
    values: Section
    """``put keep k``: the step inputs, from the cell's pre-activations and the states that enter."""
    inner: Section | None
    """The operand of the cell's inner product, likewise."""
    one_step: Section
    """The part of the results' tangents that is of the cell's inputs and vectors, for the puts that have one."""


@lru_cache(maxsize=1024)
def why_not(cell, activation=None, recurrent_activation=None, project=False, layer_norm=False, order=1):
    """Why the reference computes the tangents of such a layer, step by step: the end of a sentence, or None.

    ``order``: how many times forward mode is nested.
    """
    if project:
        return "its first state is a projection"
    if layer_norm:
        return "its products have a layer norm"
    try:
        for _ in range(order):
            cell = of_cell(cell, activation, recurrent_activation, True, True).text
    except Refused as error:
        return str(error)
    return None


@lru_cache(maxsize=256)
def of_cell(cell, activation, recurrent_activation, of_weights, of_inputs):
    """The ``Tangent`` of the op's ``cell``.

    Args:
        of_weights: the matrices or biases have tangents. Without these, and those of inputs, the tangent of x is
            multiplied by ``weight_ih``, as x is.
        of_inputs: the cell's own inputs or vectors have tangents.

    Raises:
        Refused: for a cell that has none within the bounds of a program.
    """
    program = spec_of(cell).program
    graph, roots = values_of(program, activation or "tanh", recurrent_activation or "sigmoid")
    zero = graph.const(0)
    loads = [(n, *graph.nodes[n]) for n in graph.ancestors(roots.values()) if not graph.nodes[n].of]

    def tangents(kinds):
        of_loads = {n: graph.load(f"d{op}", what) for n, op, _, what in loads if op in kinds}
        total = pushforward(graph, roots.values(), of_loads)
        return {to: total[n] for to, n in roots.items() if n in total}

    steps, one_step = tangents(THROUGH_STEPS), tangents(OF_ONE_STEP) if of_inputs else {}
    added = [to for to in one_step if to[0] in ("new", "y")]

    # the values of the step itself from which those that meet a tangent follow
    moving, free = set(), set()
    for n in graph.ancestors(steps.values()):
        op, of, what = graph.nodes[n]
        if (op[0] == "d" and op[1:] in THROUGH_STEPS) or any(m in moving for m in of):
            moving.add(n)
        elif all(m in free for m in of) if of else op in ("const", "v") or (op == "u" and what in program.sequence):
            free.add(n)
    met = {m for n in moving for m in graph.nodes[n].of if m not in moving and m not in free}
    kept = derive.cheapest(graph, met, free, lambda n: 1, early=True)
    narrow = {
        n: graph.nodes[n].what for n in kept if graph.nodes[n].what in program.narrow and graph.nodes[n].op == "u"
    }
    wide = [n for n in kept if n not in narrow]
    prefix = "u"
    while any(u.startswith(prefix) for u in program.sequence):
        prefix += "_"
    names = {n: f"{prefix}{k}" for k, n in enumerate([*wide, *narrow])}
    if len(names) > MOST_INPUTS:
        raise Refused(f"its tangent needs {len(names)} values of each step, and {MOST_INPUTS} are possible")

    # gates: those of x, of the recurrent product where it is not added to one of these, and of what is of one step
    shared = {what for _, op, _, what in loads if op == "a"}
    products = of_weights or any(to[0] in ("operand", "inner") for to in one_step)
    apart = [g for g in program.recurrent if g not in shared] if products else []
    gates, own = list(program.inputs), {}
    for place in (*apart, *added):
        name = place if isinstance(place, str) else place[1] or "y"
        while name in gates or name in program.recurrent:
            name += "_"
        own[place] = name
        gates.append(name)
    if len(gates) > MOST_GATES:
        raise Refused(f"its tangent has {len(gates)} gates, and {MOST_GATES} are possible")

    new, at = Graph(), {}
    for n in graph.ancestors([*steps.values(), zero], names):
        op, of, what = graph.nodes[n]
        if n in names:
            at[n] = new.load("u", names[n])
        elif of:
            at[n] = new.op(op, *(at[m] for m in of))
        elif op in ("dr", "di"):
            gate = what if op == "dr" else program.recurrent[-1]
            at[n] = new.load("r", what) if op == "dr" else new.load("i")
            at[n] = new.op("add", at[n], new.load("x", own[gate])) if gate in own else at[n]
        else:
            at[n] = new.load({"da": "a", "dx": "x", "ds": "s", "dm": "s"}.get(op, op), what)
    results = {to: at[steps.get(to, zero)] for to in roots}
    results |= {to: new.op("add", results[to], new.load("x", own[to])) for to in added}
    used = {node[::2] for node in new.nodes if not node.of}
    declared = Program(
        f"{program.name[:LONGEST_NAME]}_tangent", tuple(gates), program.recurrent, program.states,
        tuple(v for v in program.vectors if ("v", v) in used), tuple(names.values()),
        tuple(names[n] for n in narrow), tuple(u for u in program.sequence if ("u", u) in used),
        bool(gates) and (program.given or of_weights or of_inputs),
    )  # fmt: skip
    try:
        text, _ = derive.write(
            new, declared, {s: results["new", s] for s in program.states},
            *(results.get((to, None)) for to in ("y", "operand", "inner")),
        )  # fmt: skip
        spec_of(text)
    except ValueError as error:
        raise Refused(f"of its tangent, {error}") from None
    inner = {to: n for to, n in roots.items() if to[0] == "inner"}
    return Tangent(
        text, declared.given, tuple(apart), tuple(added), tuple(narrow.values()), declared.sequence, declared.vectors,
        section(graph, {("keep", k): n for k, n in enumerate(wide)}), section(graph, inner) if inner else None,
        section(graph, one_step),
    )  # fmt: skip


def hard_sigmoid(graph, x):
    zero, one = graph.const(0), graph.const(1)
    y = graph.op("add", graph.op("div", x, graph.const(6)), graph.const(0.5))
    y = graph.op("where", graph.op("lt", y, zero), zero, y)
    return graph.op("where", graph.op("lt", one, y), one, y)


ACTIVATIONS = {name: lambda graph, x, name=name: graph.op(name, x) for name in ("tanh", "relu", "sigmoid")}
ACTIVATIONS |= {"hard_sigmoid": hard_sigmoid, "linear": lambda graph, x: x}


def values_of(program, activation, recurrent_activation):
    """The graph of a program's step, and the values that it puts, ``{(to, what): value}``, but not for training."""
    functions = {"act": activation, "gate": recurrent_activation, "norm": "linear"}
    graph, puts, crossing = Graph(), {}, {}
    for name in ("operand", "first", "forward"):
        if name not in program.sections:
            continue
        at, (code, stores) = [], program.sections[name]
        for op, args, what in code:
            of = [at[n] for n in args]
            if op in functions:
                at.append(ACTIVATIONS[functions[op]](graph, *of))
            elif op.endswith("_back") or op == "layer_norm":
                raise Refused(f"it has the operation {op}")
            elif of:
                at.append(graph.op(op, *of))
            elif op == "cross":
                at.append(crossing[what])
            elif op == "const":
                at.append(graph.const(what))
            else:
                masked = name == "first" and (op, what) == ("s", program.states[0])
                at.append(graph.load("m" if masked else op, what))
        for to, what, value in stores:
            if to == "cross":
                crossing[what] = at[value]
            elif to != "keep":
                puts[to, what] = at[value]
    return graph, puts


def pushforward(graph, roots, tangents):
    """The tangents of the values that the roots are computed from, given those of loads: ``{value: tangent}``, without
    those that are zero.

    Every operation is pointwise, and its Jacobian diagonal: the rule for the gradient of an argument, given that of the
    result, is also the one for the argument's part of the result's tangent.
    """
    total = dict(tangents)
    for n in graph.ancestors(roots):
        of = dict.fromkeys(graph.nodes[n].of)
        terms = [d for m in of if m in total for k, d in pullback(graph, n, total[m]) if k == m]
        terms = [d for d in terms if graph.number(d) != 0]
        if terms:
            total[n] = reduce(lambda a, b: graph.op("add", a, b), terms)
    return total


def pullback(graph, n, d):
    """``derive.pullback`` in operations that have derivatives themselves."""
    op, (a, *_), _ = graph.nodes[n]
    one = graph.const(1)
    if op == "tanh":
        return ((a, graph.op("mul", d, graph.op("sub", one, graph.op("mul", n, n)))),)
    if op == "sigmoid":
        return ((a, graph.op("mul", d, graph.op("mul", n, graph.op("sub", one, n)))),)
    if op == "relu":
        return ((a, graph.op("where", graph.op("le", n, graph.const(0)), graph.const(0), d)),)
    return derive.pullback(graph, n, d)


def section(graph, puts):
    """The ``Section`` that puts values of a graph: ``{(to, what): value}``."""
    numbers = {n: k for k, n in enumerate(graph.ancestors(puts.values()))}
    code = [
        Instruction(op, tuple(numbers[m] for m in of), what) for op, of, what in map(graph.nodes.__getitem__, numbers)
    ]
    return Section(tuple(code), tuple(Put(*to, numbers[n]) for to, n in puts.items()))
