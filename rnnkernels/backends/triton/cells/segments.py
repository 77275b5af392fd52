"""Sections of a cell's program in torch, over all steps at once: for the products outside the time loops.

Letters: T time, B batch, H hidden, K planes that the forward pass keeps.
"""

import torch

OPERATIONS = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "neg": torch.neg, "abs": torch.abs,
    "sign": torch.sign, "sqrt": torch.sqrt, "exp": torch.exp, "log": torch.log, "log1p": torch.log1p,
    "expm1": torch.expm1, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "min": torch.minimum,
    "max": torch.maximum, "where": lambda a, b, c: torch.where(a != 0, b, c), "lt": lambda a, b: (a < b).to(a.dtype),
    "le": lambda a, b: (a <= b).to(a.dtype), "eq": lambda a, b: (a == b).to(a.dtype),
    "tanh_back": lambda d, y: d * (1 - y * y), "sigmoid_back": lambda d, y: d * (y * (1 - y)),
    "relu_back": lambda d, y: torch.where(y > 0, d, 0), "through": lambda y, x, m: y,
}  # fmt: skip


def values_of(section):
    """The instructions that define values, in order."""
    return [instruction for instruction in section if instruction[0] != "put"]


def stores_of(section):
    """The number of the value of every store, by what it stores: (kind, name), or (kind,) alone."""
    return {instruction[1:-1]: instruction[-1] for instruction in section if instruction[0] == "put"}


def needed(values, wanted, known=()):
    """The numbers of the values on which some depend that are not known, in order."""
    found = set()
    for n in range(max(wanted, default=-1), -1, -1):
        if n in found or n in wanted:
            found.add(n)
            op, *args = values[n]
            if n not in known and op in OPERATIONS:
                found.update(args)
    return sorted(found)


def evaluate(section, wanted, loads, known=None):
    """The values of the given numbers. ``loads``: by (kind, name), the tensors that the section may read; ``known``:
    values that need not be computed."""
    values, out = values_of(section), dict(known or {})
    like = next(iter(loads.values()))
    for n in needed(values, wanted, out):
        op, *args = values[n]
        if n in out:
            continue
        elif op == "const":
            out[n] = torch.full((), args[0], dtype=like.dtype, device=like.device)
        elif op in OPERATIONS:
            out[n] = OPERATIONS[op](*(out[a] for a in args))
        else:
            out[n] = loads[op, *args]
    return [out[n] for n in wanted]


def loads_of(program, states, vectors, inputs):
    """What sections read of states, vectors and inputs (those of a whole sequence first), by kind and name."""
    loads = {("s", name): tensor for name, tensor in zip(program.states, states, strict=True)}
    loads |= {("v", name): tensor for name, tensor in zip(program.vectors, vectors, strict=True)}
    names = (*program.sequences, *program.steps)
    return loads | {("u", name): tensor for name, tensor in zip(names, inputs, strict=True)}


def operand(program, states, vectors, inputs):
    """The operand of the recurrent product."""
    section = program.sections["operand"]
    (value,) = evaluate(section, [stores_of(section)["operand",]], loads_of(program, states, vectors, inputs))
    return value.expand_as(states[0])


def operand_gradients(program, go, states, vectors, inputs):
    """From the gradient of the operand, those of states, vectors and inputs."""
    section, zero = program.sections["backward_operand"], torch.zeros_like(go)
    stores, loads = stores_of(section), loads_of(program, states, vectors, inputs) | {("go",): go}
    found = dict(zip(stores, evaluate(section, list(stores.values()), loads), strict=True))
    return [found.get((f"d{kind}", name), zero) for kind, name in loads_of(program, states, vectors, inputs)]


def kept_values(program):
    """By the number of a value of the section ``first``, the plane that keeps it; ``forward`` may keep what crosses."""
    first, forward = program.sections["first"], program.sections["forward"]
    stores, values = stores_of(first), values_of(forward)
    kept = {n: store[1] for store, n in stores.items() if store[0] == "keep"}
    for store, n in stores_of(forward).items():
        if store[0] == "keep" and values[n][0] == "cross":
            kept[stores["cross", values[n][1]]] = store[1]
    return kept


def inner_is_kept(program):
    """True if the operand of the second product can be had from planes, states, vectors and inputs."""
    first, kept = program.sections["first"], kept_values(program)
    values = values_of(first)
    depends = needed(values, [stores_of(first)["inner",]], kept)
    return all(n in kept or values[n][0] in {"s", "v", "u", "const", *OPERATIONS} for n in depends)


def inner(program, states, gates, vectors, inputs):
    """The operand of the second product from the kept planes (T, B, K, H)."""
    section, kept = program.sections["first"], kept_values(program)
    known = {n: gates[:, :, plane] for n, plane in kept.items()}
    loads = loads_of(program, states, vectors, inputs)
    (value,) = evaluate(section, [stores_of(section)["inner",]], loads, known)
    return value.expand_as(states[0])
