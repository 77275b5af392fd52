"""Sections of a cell's program in torch, over all steps at once: for the products outside the time loops.

Letters: T time, B batch, H hidden, K planes that the forward pass keeps.
"""

from ....cells import interpret
from ....cells.program import OPERATIONS, Instruction, Section


def stores_of(section):
    """The number of the value of every store, by what it stores and its name."""
    return {(to, what): value for to, what, value in section.puts}


def beside(program, states, vectors, inputs):
    """What sections read of states, vectors and inputs (those of a whole sequence first), by kind and name."""
    loads = {("s", name): tensor for name, tensor in zip(program.states, states, strict=True)}
    loads |= {("v", name): tensor for name, tensor in zip(program.vectors, vectors, strict=True)}
    names = (*program.sequence, *program.step)
    return loads | {("u", name): tensor for name, tensor in zip(names, inputs, strict=True)}


def run(section, loads, like):
    """What a section stores, by kind and name, from what it loads."""
    return interpret.run(section, lambda op, what: loads[op, what], like)


def operand(program, states, vectors, inputs):
    """The operand of the recurrent product."""
    stored = run(program.sections["operand"], beside(program, states, vectors, inputs), states[0])
    return stored["operand", None]


def operand_gradients(program, go, states, vectors, inputs):
    """From the gradient of the operand, those of states, vectors and inputs."""
    loads = beside(program, states, vectors, inputs)
    stored = run(program.sections["backward_operand"], loads | {("go", None): go}, go)
    zero = go.new_zeros(()).expand_as(go)
    return [stored.get((f"d{kind}", name), zero) for kind, name in loads]


def kept_values(program):
    """By the number of a value of the section ``first``, the plane that keeps it; ``forward`` may keep what crosses."""
    first, forward = program.sections["first"], program.sections["forward"]
    kept = {value: what for to, what, value in first.puts if to == "keep"}
    for to, what, value in forward.puts:
        if to == "keep" and forward.code[value].op == "cross":
            kept[first.value("cross", forward.code[value].what)] = what
    return kept


def from_planes(program):
    """The section ``first`` with the operand of the second product alone, from what is kept."""
    first, kept = program.sections["first"], kept_values(program)
    value, code, numbers = first.value("inner"), [], {}
    needed = {value}
    for n in range(value, -1, -1):
        if n in needed and n not in kept:
            needed.update(first.code[n].args)
    for n in sorted(needed):
        op, args, what = first.code[n]
        numbers[n] = len(code)
        if n in kept:
            code.append(Instruction("k", (), kept[n]))
        else:
            code.append(Instruction(op, tuple(numbers[a] for a in args), what))
    return Section(tuple(code), (("inner", None, numbers[value]),))


def inner_is_kept(program):
    """True if the operand of the second product can be had from planes, states, vectors and inputs."""
    return all(op in {"k", "s", "v", "u", "const", *OPERATIONS} for op, _, _ in from_planes(program).code)


def inner(program, states, gates, vectors, inputs):
    """The operand of the second product from the kept planes (T, B, K, H)."""
    loads = beside(program, states, vectors, inputs)
    loads |= {("k", plane): gates[:, :, plane] for plane in range(program.keep)}
    return run(from_planes(program), loads, states[0])["inner", None]
