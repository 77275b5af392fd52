"""From a cell's graph to its program: the pullback, what training keeps, and the text (see program.py).

The rules are those of torch's autograd, by result where torch has them (tanh, sigmoid, relu, exp, sqrt, division);
tests compare them with autograd of the program's forward pass.
"""

from collections import deque

from .program import MOST_KEPT, VERSION

FREE = {"s", "m", "v", "u", "const"}  # loads that the backward pass has anyway; m: the first state as `first` has it


def pullback(graph, y, d):
    """``(value, gradient)`` pairs for the values that y is computed from, given the gradient ``d`` of y."""
    op, of, _ = graph.nodes[y]
    a, b, c = (*of, None, None, None)[:3]
    make, const = graph.op, graph.const
    zero, one = const(0), const(1)
    if op == "add":
        return (a, d), (b, d)
    if op == "sub":
        return (a, d), (b, make("neg", d))
    if op == "mul":
        return (a, make("mul", d, b)), (b, make("mul", d, a))
    if op == "div":
        return (a, make("div", d, b)), (b, make("neg", make("mul", d, make("div", y, b))))
    if op == "neg":
        return ((a, make("neg", d)),)
    if op == "abs":
        return ((a, make("mul", d, make("sign", a))),)
    if op == "sqrt":
        return ((a, make("div", d, make("add", y, y))),)
    if op == "exp":
        return ((a, make("mul", d, y)),)
    if op == "log":
        return ((a, make("div", d, a)),)
    if op == "log1p":
        return ((a, make("div", d, make("add", a, one))),)
    if op == "expm1":
        return ((a, make("mul", d, make("add", y, one))),)
    if op in ("sigmoid", "tanh", "relu", "act", "gate"):
        return ((a, make(f"{op}_back", d, y)),)
    if op in ("min", "max"):  # of equal ones, each has half
        shared = make("where", make("eq", a, b), make("mul", d, const(0.5)), d)
        less, more = make("lt", a, b), make("lt", b, a)
        if op == "min":
            less, more = more, less
        return (a, make("where", less, zero, shared)), (b, make("where", more, zero, shared))
    if op == "where":
        return (b, make("where", a, d, zero)), (c, make("where", a, zero, d))
    if op == "through":
        return ((b, make("mul", d, c)),)
    if op == "norm":
        return ((a, make("norm_back", d, y, a)),)
    if op == "layer_norm":  # b: eps
        return ((a, make("layer_norm_back", d, a, b)),)
    return ()  # loads, and functions that are constant almost everywhere


def summed(graph, a, b):
    """a + b; of multiples of one value, the multiple by the sum: d - z d loses digits that d (1 - z) has."""

    def parts(n):
        """Sign, and the possible pairs of factors."""
        op, of, _ = graph.nodes[n]
        if op == "neg":
            sign, pairs = parts(of[0])
            return -sign, pairs
        pairs = [(n, graph.const(1))]
        return 1, [*pairs, of, of[::-1]] if op == "mul" else pairs

    (sign, left), (other, right) = parts(a), parts(b)
    for factor, rest in left:
        for same, more in right:
            if factor == same and graph.number(factor) is None and rest != more:
                total = graph.op("add" if sign == other else "sub", rest, more)
                product = graph.op("mul", factor, total)
                return product if sign > 0 else graph.op("neg", product)
    return graph.op("add", a, b)


def gradients(graph, seeds, leaves):
    """The gradients of the leaves, given the values that have gradients: ``{value: gradient}`` of those that get one.

    Nothing goes past a leaf.
    """
    total = dict(seeds)
    wanted = set(leaves)
    depends = {}
    for n in graph.ancestors(seeds):
        depends[n] = n in wanted or any(depends.get(m) for m in graph.nodes[n].of)
    for n in sorted(depends, reverse=True):
        if n not in total or n in wanted:
            continue
        for of, d in pullback(graph, n, total[n]):
            if depends.get(of) and graph.number(d) != 0:
                total[of] = summed(graph, total[of], d) if of in total else d
    return {n: total[n] for n in leaves if n in total}


def cheapest(graph, needed, free, price, early=False):
    """The values to keep: a smallest set that cuts ``needed`` off from the loads that are not ``free``.

    Of smallest sets the one nearest to ``needed``, which leaves the least to be computed again; with ``early`` the one
    nearest to the loads. A vertex cut by augmenting paths (Ford & Fulkerson 1956): node n is an edge of capacity
    ``price(n)`` from 2n to 2n + 1.
    """
    nodes = [n for n in graph.ancestors(needed, free) if n not in free]
    source, sink = -1, -2
    capacity = {}

    def edge(a, b, size):
        capacity.setdefault(a, {})[b] = size
        capacity.setdefault(b, {}).setdefault(a, 0)

    for n in nodes:
        edge(2 * n, 2 * n + 1, price(n))
        of = [m for m in graph.nodes[n].of if m not in free]
        for m in of:
            edge(2 * m + 1, 2 * n, float("inf"))
        if not graph.nodes[n].of:
            edge(source, 2 * n, float("inf"))
    for n in set(needed) - set(free):
        edge(2 * n + 1, sink, float("inf"))

    def reach(start, forward):
        """Breadth first over what is left: ``{node: the one before}``."""
        before, todo = {start: None}, deque([start])
        while todo:
            a = todo.popleft()
            for b in capacity.get(a, ()):
                if b not in before and (capacity[a][b] if forward else capacity[b][a]) > 0:
                    before[b] = a
                    todo.append(b)
        return before

    while sink in (before := reach(source, True)):
        path, b = [], sink
        while before[b] is not None:
            path.append((before[b], b))
            b = before[b]
        flow = min(capacity[a][b] for a, b in path)
        for a, b in path:
            capacity[a][b] -= flow
            capacity[b][a] += flow
    if early:
        return [n for n in nodes if 2 * n in before and 2 * n + 1 not in before]
    late = reach(sink, False)  # what can still reach the sink: its border is the nearest cut
    return [n for n in nodes if 2 * n + 1 in late and 2 * n not in late]


class Writer:
    """A section's lines: values in the order in which they are first used.

    ``given`` are values that the section loads instead of computing them, ``{value: line}``. A gradient of the user's
    own is of no use in the sections of the backward pass: there the value alone stays.
    """

    def __init__(self, graph, given, backward=False):
        self.graph, self.given, self.backward = graph, given, backward
        self.lines, self.at = [], {}

    def value(self, n):
        """The number of a value in this section."""
        todo = [n]
        while todo:
            m = todo[-1]
            if m in self.at:
                todo.pop()
                continue
            node, line = self.graph.nodes[m], self.given.get(m)
            alias = not line and self.backward and node.op == "through"
            missing = [] if line else [k for k in node.of[: 1 if alias else None] if k not in self.at]
            if missing:
                todo += reversed(missing)
                continue
            if alias:
                self.at[m] = self.at[node.of[0]]
                todo.pop()
                continue
            what = () if node.what is None else (repr(node.what) if node.op == "const" else node.what,)
            op = "s" if node.op == "m" else node.op
            line = line or " ".join(map(str, (op, *what, *(self.at[k] for k in node.of))))
            self.at[m] = len(self.lines)  # of values: one that stands for another has no line
            self.lines.append(line)
            todo.pop()
        return self.at[n]

    def section(self, name, puts):
        """The lines of a section, from ``{where a value goes: value}``."""
        stores = [f"put {to} {self.value(n)}" for to, n in puts.items()]
        return [name, *self.lines, *stores]


def write(graph, declared, new, output=None, operand=None, inner=None, keep=None, also=()):
    """The text of the program, and the values of its planes.

    Args:
        declared: the ``Program`` with the header's fields.
        new: the value of every state after the step, by name.
        output: the value of the output, where it is not the first state.
        operand: the value that the recurrent product multiplies, where it is not the first state.
        inner: the value that an inner product multiplies.
        keep: values to keep, where the caller has chosen.
        also: values to keep besides, of no use for the backward pass, as far as there is room.
    """
    nodes = graph.nodes
    results = [*new.values(), *([] if output is None else [output])]
    first_state = next(iter(new))
    inner, copies = _masked(graph, inner, first_state, results)
    loads = {(nodes[n].op, nodes[n].what): n for n in range(len(nodes)) if not nodes[n].of}
    i = loads.get(("i", None))

    # the forward pass, in two sections where an inner product comes between them
    crossing = [] if inner is None else _crossing(graph, first_state, results, [])

    # gradients: of the values that the backward pass has to give, from those of the results
    seeds = {}
    for name, n in new.items():
        _add(graph, seeds, n, graph.load("g", name))
    if output is not None:
        _add(graph, seeds, output, graph.load("gy"))
    targets = {n: (op, what) for (op, what), n in loads.items() if op in ("a", "x", "r", "s", "m", "v", "u")}
    sections = {}
    if inner is None:
        found = gradients(graph, seeds, targets)
        sections["backward"] = _puts(targets, found)
    else:
        # values that cross and share a gate with the inner product's operand wait for the gradient of that
        touched, waiting = gates_of(graph, inner), []
        while more := [n for n in crossing if n not in waiting and touched & gates_of(graph, n)]:
            waiting += more
            touched = touched.union(*(gates_of(graph, n) for n in more))
        found = gradients(graph, seeds, {**targets, i: None, **dict.fromkeys(waiting)})
        now = {n: target for n, target in targets.items() if n not in waiting}
        sections["backward"] = _puts(now, found) | {"di": found.get(i, graph.const(0))}
        later = {inner: graph.load("gi")}
        for n in waiting:
            if n in found:
                k = crossing.index(n)
                sections["backward"][f"dcross {k}"] = found[n]
                _add(graph, later, n, graph.load("dcross", k))
        sections["backward_first"] = _puts(targets, gradients(graph, later, targets))
    if operand is not None:
        found = gradients(graph, {operand: graph.load("go")}, targets)
        sections["backward_operand"] = _puts(targets, found)

    # what the backward pass reads of the forward pass
    again = {("x", name) for name in declared.inputs} if declared.given and inner is None else ()
    free = _free(graph, again)
    own = {"g", "gy", "gi", "go", "dcross"}
    made = {n for puts in sections.values() for n in graph.ancestors(puts.values())}
    backward = set()
    for n in sorted(made):
        if nodes[n].op in own or any(m in backward for m in nodes[n].of):
            backward.add(n)
    needed = {m for n in backward for m in nodes[n].of} | {n for p in sections.values() for n in p.values()}
    needed |= {inner} - {None}
    needed = {n for n in needed if n not in backward and n not in free}
    states = {n: name for name, n in new.items() if n not in free}
    if keep is None:
        keep = cheapest(graph, needed, free | set(states), lambda n: 1)
    else:
        keep = [copies.get(n, n) for n in keep]
        if missing := _uncovered(graph, needed, free | set(states) | set(keep)):
            raise ValueError(f"keep= does not suffice for the backward pass, which needs {missing}")
    if inner is not None:  # the gradient of its weights: a product with it, which kernels compute as `first` does
        late = _late(graph, first_state)
        if _uncovered(graph, [inner], free | {n for n in keep if n not in late}):
            keep = [*keep, inner]
    keep = [*keep, *(n for n in also if n not in keep)][: max(len(keep), MOST_KEPT)]
    have = {n: f"k {k}" for k, n in enumerate(keep)}
    have |= {n: f"n {name}" for n, name in states.items() if n not in have}

    text = [f"cell {VERSION} {declared.name}"]
    step = [f"{name}:1" if name in declared.narrow else name for name in declared.step]
    for word, tokens in (
        ("inputs", declared.inputs), ("recurrent", declared.recurrent), ("states", declared.states),
        ("vectors", declared.vectors), ("step", step), ("sequence", declared.sequence),
    ):  # fmt: skip
        if tokens:
            text.append(" ".join([word, *tokens]))
    text += ["given"] * declared.given + [f"keep {len(keep)}"] * bool(keep)
    if operand is not None:
        text += Writer(graph, {}).section("operand", {"operand": operand})
    kept = {f"keep {k}": n for k, n in enumerate(keep)}
    puts = {f"new {name}": n for name, n in new.items()} | ({"y": output} if output is not None else {})
    if inner is not None:
        crossing = crossing + _crossing(graph, first_state, [n for n in keep if n in late], crossing)
        first = {"inner": inner} | {f"cross {k}": n for k, n in enumerate(crossing)}
        first |= {to: n for to, n in kept.items() if n not in late}
        kept = {to: n for to, n in kept.items() if n in late}
        text += Writer(graph, {}).section("first", first)
    crossed = {n: f"cross {k}" for k, n in enumerate(crossing)}
    text += Writer(graph, crossed).section("forward", puts | kept)
    for name, stores in sections.items():
        text += Writer(graph, have, backward=True).section(name, stores)
    names = {copy: n for n, copy in copies.items()}
    return "\n".join(text), [names.get(n, n) for n in keep]


def gates_of(graph, n):
    """The names of the gates that a value depends on."""
    return {graph.nodes[m].what for m in graph.ancestors([n]) if graph.nodes[m].op in ("a", "x", "r")}


def _free(graph, again=()):
    """The values that depend on nothing but what the backward pass has anyway; ``again``: loads that it has besides."""
    free = set()
    for n, node in enumerate(graph.nodes):
        if all(m in free for m in node.of) if node.of else node.op in FREE or (node.op, node.what) in again:
            free.add(n)
    return free


def _masked(graph, inner, state, results):
    """The inner product's operand as ``first`` computes it, where recurrent dropout has masked the first state.

    Returns it and those values that have a copy, and are of no use elsewhere: ``{value: copy}``.
    """
    if inner is None:
        return None, {}
    at = {}
    for n in graph.ancestors([inner]):
        node = graph.nodes[n]
        at[n] = graph.op(node.op, *(at[m] for m in node.of)) if node.of else n
        if (node.op, node.what) == ("s", state):
            at[n] = graph.load("m", state)
    elsewhere = set(graph.ancestors(results))
    return at[inner], {n: copy for n, copy in at.items() if n != copy and n not in elsewhere}


def _late(graph, state):
    """The values that need the inner product, or the first state as it was before recurrent dropout masked it."""
    late = set()
    for n, node in enumerate(graph.nodes):
        if node.op == "i" or (node.op, node.what) == ("s", state) or any(m in late for m in node.of):
            late.add(n)
    return late


def _crossing(graph, state, roots, known):
    """The values of ``first`` from which ``forward`` computes the roots, besides those that it has already."""
    late, free = _late(graph, state), _free(graph)
    values = graph.ancestors(roots, known)
    used = {m for n in values if n in late and n not in known for m in graph.nodes[n].of} | set(roots)
    return cheapest(graph, {n for n in used if n not in late and n not in free}, free | set(known), lambda n: 1)


def _add(graph, total, n, d):
    total[n] = graph.op("add", total[n], d) if n in total else d


def _puts(targets, found):
    """Where gradients go, in the order of the loads; one plane for both products of a gate where these are equal."""
    at = {target: found[n] for n, target in targets.items() if n in found}
    puts = {}
    for (op, what), n in at.items():
        if op in ("x", "r") and at.get(("x", what)) == at.get(("r", what)):
            op = "a"
        puts[f"d{'s' if op == 'm' else op} {what}"] = n
    return puts


def _uncovered(graph, needed, have):
    """Loads that the needed values depend on, and that are not to be had."""
    nodes = graph.nodes
    loose = [n for n in graph.ancestors(needed, have) if n not in have and not nodes[n].of]
    return ", ".join(f"{nodes[n].op}.{nodes[n].what}" if nodes[n].what else nodes[n].op for n in loose)
