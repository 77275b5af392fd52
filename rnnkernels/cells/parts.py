"""Parts of a program's sections, and the projection of a cell's first state: h' = W_hr (the state that the cell makes).

H. Sak, A. Senior, F. Beaufays (2014), Long short-term memory recurrent neural network architectures for large scale
acoustic modeling. csrc/cells/program_layout.cpp has the same rule for which programs it is possible.
"""

from .program import MOST_KEPT, MOST_TEXT, Instruction, Put, Section


def part(section, values, leaves):
    """The section with the named values alone: their numbers by what they are stored as.

    ``leaves`` are instructions that load values, by their numbers, in place of those that compute them.
    """
    code, numbers, needed = [], {}, set(values.values())
    for n in range(max(needed), -1, -1):
        if n in needed and n not in leaves:
            needed.update(section.code[n].args)
    for n in sorted(needed):
        numbers[n] = len(code)
        op, args, what = leaves.get(n, section.code[n])
        code.append(Instruction(op, tuple(numbers[a] for a in args), what))
    return Section(tuple(code), tuple(Put(*store, numbers[n]) for store, n in values.items()))


def plane(number):
    """The load of a plane that training keeps."""
    return Instruction("k", (), number)


def no_projection(program):
    """The reason why no projection of the first state is possible, as the end of a sentence, or None."""
    h, forward, backward = program.states[0], program.sections["forward"], program.sections["backward"]
    if not program.recurrent:
        return "has no recurrent product, whose operand it would be"
    if "operand" in program.sections:
        return f"multiplies weight_hh with an operand of its own, and not with the state {h}"
    if program.own_output:
        return f"has an output of its own beside the state {h}"
    if program.inner:
        return "has a product inside the step, whose operand has as many numbers as the gates have"
    if any(h in section.loads("s") for section in (forward, backward)) or backward.value("ds", h) is not None:
        return f"reads s.{h} unit by unit, where it would have proj_size numbers beside gates of hidden_size"
    full = program.keep == MOST_KEPT or len(program.text) + 64 > MOST_TEXT
    return "is as large as a program may be" if full else None


def output_again(program):
    """The section that gives the first state as the cell makes it, for the gradient of ``weight_hr``, from what
    training keeps and what the backward pass reads besides. None where there is no projection of this program."""
    h, forward = program.states[0], program.sections["forward"]
    if no_projection(program) or h in program.renewed:
        return None
    leaves = {
        p.value: Instruction("n", (), p.what) for p in forward.puts if p.to == "new" and p.what in program.renewed
    }
    leaves |= {p.value: plane(p.what) for p in forward.puts if p.to == "keep"}
    found = part(forward, {("new", h): forward.value("new", h)}, leaves)
    return None if any(i.op in ("a", "x", "r") for i in found.code) else found


def projected(program):
    """The text of a cell's program in layers with ``proj_size``: training keeps the first state as the cell makes it,
    if it does not follow from what is kept anyway. None where there is no projection of it."""
    if no_projection(program):
        return None
    if output_again(program):
        return program.text
    h, K, lines = program.states[0], program.keep, program.text.split("\n")
    made = f"put keep {K} {program.sections['forward'].value('new', h)}"
    lines = [f"k {K}" if line == f"n {h}" else line for line in lines if line != f"keep {K}"]
    lines.insert(lines.index("forward"), f"keep {K + 1}")
    lines.insert(lines.index("backward"), made)
    return "\n".join(lines)
