"""Sections of a cell's program in torch, over all steps at once: for the products outside the time loops.

Letters: T time, B batch, H hidden, K planes that the forward pass keeps.
"""

from ....cells import interpret
from ....cells.parts import output_again, part, plane
from ....cells.program import OPERATIONS, SHARED, Instruction


def stores_of(section):
    """The number of the value of every store, by what it stores and its name."""
    return {(to, what): value for to, what, value in section.puts}


def order(section):
    """The numbers of the values that are stored and of those that they take, which come before them.

    Gates come in the order of the planes, and gradients of states last: compilers schedule by the order of the source,
    and an LSTM in the order of its program spills where registers are short.
    """
    puts = sorted(section.puts, key=lambda put: 0 if put.to == "keep" else 2 if put.to in SHARED else 1)
    found, todo = {}, [put.value for put in reversed(puts)]
    while todo:
        missing = [n for n in section.code[todo[-1]].args if n not in found]
        if missing:
            todo += missing[::-1]
        else:
            found[todo.pop()] = None
    return list(found)


def beside(program, states, vectors, inputs):
    """What sections read of states, vectors and inputs (those of a whole sequence first), by kind and name."""
    loads = {("s", name): tensor for name, tensor in zip(program.states, states, strict=True)}
    loads |= {("v", name): tensor for name, tensor in zip(program.vectors, vectors, strict=True)}
    names = (*program.sequence, *program.step)
    return loads | {("u", name): tensor for name, tensor in zip(names, inputs, strict=True)}


def run(section, loads, like, functions=()):
    """What a section stores, by kind and name, from what it loads; ``functions`` are those that a call chooses."""
    return interpret.run(section, lambda op, what: loads[op, what], like, functions)


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
    leaves = {n: plane(what) for n, what in kept.items()}
    return part(first, {("inner", None): first.value("inner")}, leaves)


def renewal(program, states):
    """The section ``forward`` with the new values of these states alone, from the kept planes and the old states; None
    where these do not tell them, or where there are none of these states."""
    forward = program.sections["forward"]
    leaves = {n: plane(what) for to, what, n in forward.puts if to == "keep"}
    if not states:
        return None
    found = part(forward, {("new", name): forward.value("new", name) for name in states}, leaves)
    return found if all(i.args or i.op in ("k", "s", "const") for i in found.code) else None


def norm_of(section):
    """The number of the norm of the last state on its way to the output, or None."""
    return next((n for n, i in enumerate(section.code) if i.op == "norm"), None)


def output_part(program):
    """The section ``forward`` with the new h alone, from the kept planes and the last state as it enters the output."""
    forward, (h, *_, last) = program.sections["forward"], program.states
    leaves = {n: plane(what) for to, what, n in forward.puts if to == "keep"}
    at = norm_of(forward)
    leaves[forward.value("new", last) if at is None else at] = Instruction("n", (), last)
    return part(forward, {("new", h): forward.value("new", h)}, leaves)


def backward_output_part(program):
    """The section ``backward`` with the gradient of the normed last state alone."""
    backward = program.sections["backward"]
    (gradient,) = (i.args[0] for i in backward.code if i.op == "norm_back")
    leaves = {norm_of(backward): Instruction("n", (), program.states[-1])}
    return part(backward, {("g", program.states[-1]): gradient}, leaves)


def inner_is_kept(program):
    """True if the operand of the second product can be had from planes, states, vectors and inputs."""
    return all(op in {"k", "s", "v", "u", "const", *OPERATIONS} for op, _, _ in from_planes(program).code)


def inner(program, states, gates, vectors, inputs):
    """The operand of the second product from the kept planes (T, B, K, H)."""
    loads = beside(program, states, vectors, inputs)
    loads |= planes_of(program, gates)
    return run(from_planes(program), loads, states[0])["inner", None]


def planes_of(program, gates):
    """The kept planes (T, B, K, H) as what sections load."""
    return {("k", n): gates[:, :, n] for n in range(program.keep)}


def new_cells(program, gates, old):
    """The last state after every step (T, B, H) from the kept planes and from the one that entered."""
    last = program.states[-1]
    loads = planes_of(program, gates) | {("s", last): old}
    return run(renewal(program, (last,)), loads, old)["new", last]


def output(program, gates, cells, functions):
    """h of every step (T, B, H) before a projection, in the dtype of the kept planes, from these and from the new last
    state: of a built-in cell."""
    loads = planes_of(program, gates) | {("n", program.states[-1]): cells}
    return run(output_part(program), loads, cells, functions)["new", program.states[0]].to(gates.dtype)


def output_of_program(program, states, new, gates, vectors, inputs):
    """The same of a program: from its states before and after the steps, kept planes (or None), vectors and inputs."""
    loads = beside(program, states, vectors, inputs) | ({} if gates is None else planes_of(program, gates))
    loads |= {("n", name): tensor for name, tensor in zip(program.states, new, strict=True)}
    return run(output_again(program), loads, gates[:, :, 0] if new[-1] is None else new[-1])["new", program.states[0]]
