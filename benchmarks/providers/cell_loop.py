"""What a user would write for a cell: a loop over steps in plain torch, as source text from the cell's program.

The input's product with its biases is done outside of the loop. The text is what torch.jit.script and torch.compile
take too. T time, B batch, G gates, H hidden.
"""

from __future__ import annotations

import linecache

import torch

OPERATIONS = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}", "neg": "-{}",
    **{name: f"torch.{name}({{}})" for name in ("abs", "sign", "sqrt", "exp", "log", "log1p", "expm1", "sigmoid")},
    "tanh": "torch.tanh({})", "relu": "torch.relu({})", "min": "torch.minimum({}, {})", "max": "torch.maximum({}, {})",
    "lt": "({} < {}).to(x.dtype)", "le": "({} <= {}).to(x.dtype)", "eq": "({} == {}).to(x.dtype)",
    "where": "torch.where({} != 0, {}, {})", "through": "({0}).detach() + ({2}).detach() * (({1}) - ({1}).detach())",
}  # fmt: skip
NUMBERS = {"min": "torch.clamp_max", "max": "torch.clamp_min"}  # beside a number


def lines_of(section, loads, prefix):
    """One assignment for each value of a section, and the names of what it puts."""
    lines, names, constant = [], [], []
    for k, (op, args, what) in enumerate(section.code):
        name, given = f"{prefix}{k}", [names[n] for n in args]
        constant.append(op == "const")
        if not args:
            names.append(repr(what) if op == "const" else loads(op, what))
            continue
        if op in NUMBERS and any(constant[n] for n in args):
            number, other = given if constant[args[0]] else reversed(given)
            value = f"{NUMBERS[op]}({other}, {number})"
        elif op == "through" and constant[args[1]]:  # no gradient
            value = f"({given[0]}).detach()"
        else:
            value = OPERATIONS[op].format(*given)
        lines.append(f"{name} = {value}")
        names.append(name)
    return lines, {(p.to, p.what): names[p.value] for p in section.puts}


def unpacked(names, value):
    return f"{', '.join(names)}{',' * (len(names) == 1)} = {value}.chunk({len(names)}, 1)"


def source_of(program, parameters):
    """The function ``loop(x, zero, *parameters, *step inputs, *sequence inputs)`` as text."""
    first, sections = program.recurrent[: len(program.recurrent) - program.inner], program.sections
    bias_ih, bias_hh, bias_inner = (f", {n}" if n in parameters else "" for n in ("bias_ih", "bias_hh", "bias_hh"))
    arguments = ["x", "zero", *parameters, *(f"us_{n}" for n in program.step), *(f"u_{n}" for n in program.sequence)]
    head = [f"xs = F.linear(x, weight_ih{bias_ih})" if "weight_ih" in parameters else "xs = x"]
    if program.inner:
        head += ["H = zero.size(1)", "w_inner = weight_hh[-H:]", "weight_hh = weight_hh[:-H]"]
        head += ["b_inner = bias_hh[-H:]", "bias_hh = bias_hh[:-H]"] if bias_hh else []
        bias_inner = ", b_inner" if bias_hh else ""
    head += [f"s_{n} = zero" for n in program.states] + ["ys: list[torch.Tensor] = []"]
    head += ["steps = xs.unbind(0)"]  # indexing would give each step a gradient of the size of the whole
    head += [f"steps_{n} = us_{n}.unbind(0)" for n in program.step]
    crossing = {}

    def loads(op, what):
        if op == "a":
            return f"(x_{what} + r_{what})"
        kinds = {"i": "inner", "cross": crossing.get(what), "v": what}
        return kinds.get(op, f"{op}_{what}")

    def section(name):
        """Its values go to the body."""
        lines, puts = lines_of(sections[name], loads, f"{name}_")
        body.extend(lines)
        return puts

    body = [unpacked([f"x_{n}" for n in program.inputs], "steps[t]")] if program.inputs else []
    body += [f"u_{n} = steps_{n}[t]" for n in program.step]
    operand = section("operand")["operand", None] if "operand" in sections else f"s_{program.states[0]}"
    if first:
        body += [f"r = F.linear({operand}, weight_hh{bias_hh})", unpacked([f"r_{n}" for n in first], "r")]
    if program.inner:
        puts = section("first")
        crossing.update({what: name for (to, what), name in puts.items() if to == "cross"})
        body.append(f"inner = F.linear({puts['inner', None]}, w_inner{bias_inner})")
    puts = section("forward")
    body += [f"n_{n} = {puts['new', n]}" for n in program.states] + [f"s_{n} = n_{n}" for n in program.states]
    body.append(f"ys.append({puts.get(('y', None), f's_{program.states[0]}')})")
    typed = ", ".join(f"{name}: torch.Tensor" for name in arguments)
    indented = ["    " + line for line in (*head, "for t in range(len(steps)):", *("    " + line for line in body))]
    return "\n".join([f"def loop({typed}):", *indented, "    return torch.stack(ys)", ""])


def loop_of(layer, x, inputs):
    """The loop of a ``Recurrent`` of one layer and direction, and the arguments that make it equal to a call."""
    program, names = layer.cell.program, layer._flat_weights_names
    text, name = source_of(program, [n.removesuffix("_l0") for n in names]), f"<loop of {program.name}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # torch.jit reads the source
    scope = {"torch": torch, "F": torch.nn.functional, "__name__": __name__}
    exec(compile(text, name, "exec"), scope)
    own = [getattr(layer, n) for n in names]
    return scope["loop"], [x, x.new_zeros(x.size(1), layer.hidden_size), *own, *inputs.values()]
