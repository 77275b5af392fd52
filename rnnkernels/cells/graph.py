"""The graph of a cell's values: what tracing makes, derivatives extend, and programs are written from.

Equal values are one node, constants are folded, and identities are dropped while nodes are made. Loads are nodes
without arguments; ``what`` is their name, index or number.
"""

import math
from typing import NamedTuple

EAGER = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "neg": lambda a: -a, "abs": abs,
    "sign": lambda a: float((a > 0) - (a < 0)), "min": min, "max": max, "lt": lambda a, b: float(a < b),
    "le": lambda a, b: float(a <= b), "eq": lambda a, b: float(a == b), "relu": lambda a: max(a, 0.0),
    "div": lambda a, b: a / b if b else math.nan, "exp": lambda a: math.exp(a) if a < 700 else math.inf,
    "sqrt": lambda a: math.sqrt(a) if a >= 0 else math.nan, "tanh": math.tanh,
    "expm1": lambda a: math.expm1(a) if a < 700 else math.inf,
    "log": lambda a: math.log(a) if a > 0 else math.nan, "log1p": lambda a: math.log1p(a) if a > -1 else math.nan,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)) if a > -700 else 0.0, "where": lambda c, a, b: a if c else b,
    "layer_norm": lambda a, eps: 0.0 if eps else math.nan,
}  # fmt: skip


class Node(NamedTuple):
    """One value. ``of`` are the numbers of the nodes that it is computed from."""

    op: str
    of: tuple[int, ...]
    what: str | int | float | None = None


class Graph:
    """Nodes by number, each after those that it is computed from."""

    def __init__(self):
        self.nodes, self.numbers = [], {}

    def load(self, op, what=None):
        return self._add(Node(op, (), what))

    def const(self, value):
        return self.load("const", float(value))

    def _add(self, node):
        # -0.0 and 0.0 are equal, and not the same constant
        key = (*node, math.copysign(1, node.what)) if node.op == "const" else node
        if key not in self.numbers:
            self.numbers[key] = len(self.nodes)
            self.nodes.append(node)
        return self.numbers[key]

    def number(self, n):
        """The constant that a node is, or None."""
        return self.nodes[n].what if self.nodes[n].op == "const" else None

    def op(self, op, *of):
        """The value of an operation; a simpler node where there is an equal one."""
        numbers = [self.number(n) for n in of]
        if op in EAGER and None not in numbers:
            value = EAGER[op](*numbers)
            if math.isfinite(value):
                return self.const(value)
        simpler = self._simpler(op, of, numbers)
        return self._add(Node(op, of)) if simpler is None else simpler

    def _simpler(self, op, of, numbers):
        a, b = (*of, None, None)[:2]
        x, y = (*numbers, None, None)[:2]
        if op == "add" and (x == 0 or y == 0):
            return b if x == 0 else a
        if op == "sub" and y == 0:
            return a
        if op == "mul":
            for number, other in ((x, b), (y, a)):
                if number == 1:
                    return other
                if number == -1:
                    return self.op("neg", other)
        if op == "div" and y and math.frexp(y)[0] in (0.5, -0.5) and abs(math.frexp(y)[1]) < 100:
            return self.op("mul", a, self.const(1 / y))  # exact
        if op == "neg" and self.nodes[a].op == "neg":
            return self.nodes[a].of[0]
        if op in ("add", "sub") and self.nodes[b].op == "neg":
            return self.op("sub" if op == "add" else "add", a, self.nodes[b].of[0])
        if op == "add" and self.nodes[a].op == "neg":
            return self.op("sub", b, self.nodes[a].of[0])
        if op == "where" and (x is not None or of[1] == of[2]):
            return of[1] if x else of[2]
        if op in ("add", "mul", "min", "max", "eq") and a > b:  # of equal ones, one
            return self.op(op, b, a)
        return None

    def ancestors(self, roots, stop=()):
        """The nodes that ``roots`` are computed from and the roots themselves, in order, not going past ``stop``."""
        found, todo = set(), list(roots)
        while todo:
            n = todo.pop()
            if n not in found:
                found.add(n)
                todo += () if n in stop else self.nodes[n].of
        return sorted(found)
