"""What a user would write for a cell: a loop over steps in plain torch, as source text from the cell's program.

The input's product with its biases is done outside of the loop. The text is what torch.jit.script and torch.compile
take too. T time, B batch, G gates, H hidden.
"""

from __future__ import annotations

import linecache

import torch

OPERATIONS = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}", "neg": "-{}", "abs": "torch.abs({})",
    "sign": "torch.sign({})", "sqrt": "torch.sqrt({})", "exp": "torch.exp({})", "log": "torch.log({})",
    "log1p": "torch.log1p({})", "expm1": "torch.expm1({})", "sigmoid": "torch.sigmoid({})", "tanh": "torch.tanh({})",
    "relu": "torch.relu({})", "min": "torch.minimum({}, {})", "max": "torch.maximum({}, {})",
    "lt": "({} < {}).to(x.dtype)", "le": "({} <= {}).to(x.dtype)", "eq": "({} == {}).to(x.dtype)",
    "where": "torch.where({} != 0, {}, {})", "through": "({0}).detach() + ({2}).detach() * (({1}) - ({1}).detach())",
}  # fmt: skip
NUMBERS = {"min": "torch.clamp_max", "max": "torch.clamp_min"}  # beside a number


def lines_of(section, loads, prefix):
    """One assignment for each value of a section, and the names of what it puts."""
    lines, names, constant = [], [], []
    for k, (op, args, what) in enumerate(section.code):
        name = f"{prefix}{k}"
        constant.append(op == "const")
        if op == "const":
            names.append(repr(what))
            continue
        if not args:
            names.append(loads(op, what))
            continue
        given = [names[n] for n in args]
        if op in NUMBERS and any(constant[n] for n in args):
            number, other = given if constant[args[0]] else reversed(given)
            lines.append(f"{name} = {NUMBERS[op]}({other}, {number})")
        elif op == "through" and constant[args[1]]:  # no gradient
            lines.append(f"{name} = ({given[0]}).detach()")
        else:
            lines.append(f"{name} = {OPERATIONS[op].format(*given)}")
        names.append(name)
    return lines, {(p.to, p.what): names[p.value] for p in section.puts}


def source_of(program, bias):
    """The function ``loop(x, h0, weights, vectors, extras)`` as text."""
    GX, GR, inner = len(program.inputs), len(program.recurrent), program.inner
    head, body = ["T = x.size(0)", "xs = x"], []
    arguments = ["x: torch.Tensor", "zero: torch.Tensor"]
    if program.inputs and not program.given:
        arguments.append("w_ih: torch.Tensor")
        head.append("xs = F.linear(x, w_ih, b_ih)" if bias else "xs = F.linear(x, w_ih)")
    if program.recurrent:
        arguments.append("w_hh: torch.Tensor")
    if bias and program.inputs and not program.given:
        arguments.append("b_ih: torch.Tensor")
    if bias and program.recurrent:
        arguments.append("b_hh: torch.Tensor")
    arguments += [f"v_{n}: torch.Tensor" for n in program.vectors] + [f"us_{n}: torch.Tensor" for n in program.step]
    arguments += [f"u_{n}: torch.Tensor" for n in program.sequence]
    if inner:
        head += ["H = zero.size(1)", "w_inner = w_hh[-H:]", "w_hh = w_hh[:-H]"]
        head += ["b_inner = b_hh[-H:]", "b_hh = b_hh[:-H]"] if bias else []
    head += [f"s_{n} = zero" for n in program.states] + ["ys: list[torch.Tensor] = []"]
    head += ["steps = xs.unbind(0)"]  # indexing would give each step a gradient of the size of the whole
    head += [f"steps_{n} = us_{n}.unbind(0)" for n in program.step]

    def loads(op, what):
        if op == "a":
            return f"(x_{what} + r_{what})"
        return "inner" if op == "i" else crossing[what] if op == "cross" else f"{op}_{what}"

    crossing = {}
    body.append(
        f"{', '.join(f'x_{n}' for n in program.inputs)}{',' * (GX == 1)} = steps[t].chunk({GX}, 1)" if GX else "pass"
    )
    body += [f"u_{n} = steps_{n}[t]" for n in program.step]
    operand = f"s_{program.states[0]}"
    if "operand" in program.sections:
        lines, puts = lines_of(program.sections["operand"], loads, "o")
        body += lines
        operand = puts["operand", None]
    first = program.recurrent[: GR - inner]
    if first:
        body.append(f"r = F.linear({operand}, w_hh{', b_hh' * bias})")
        body.append(f"{', '.join(f'r_{n}' for n in first)}{',' * (len(first) == 1)} = r.chunk({len(first)}, 1)")
    if inner:
        lines, puts = lines_of(program.sections["first"], loads, "p")
        crossing.update({what: name for (to, what), name in puts.items() if to == "cross"})
        body += [*lines, f"inner = F.linear({puts['inner', None]}, w_inner{', b_inner' * bias})"]
    lines, puts = lines_of(program.sections["forward"], loads, "f")
    body += lines + [f"n_{n} = {puts['new', n]}" for n in program.states]
    body += [f"s_{n} = n_{n}" for n in program.states]
    body.append(f"ys.append({puts.get(('y', None), f's_{program.states[0]}')})")
    indented = ["    " + line for line in head] + ["    for t in range(T):"] + ["        " + line for line in body]
    return "\n".join([f"def loop({', '.join(arguments)}):", *indented, "    return torch.stack(ys)", ""])


def loop_of(layer, x, inputs):
    """The loop of a ``Recurrent`` of one layer and direction, and the arguments that make it equal to a call."""
    program = layer.cell.program
    text, name = source_of(program, layer.bias), f"<loop of {program.name}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # torch.jit reads the source
    scope = {"torch": torch, "F": torch.nn.functional, "__name__": __name__}
    exec(compile(text, name, "exec"), scope)
    own = [getattr(layer, n) for n in layer._flat_weights_names]
    return scope["loop"], [x, x.new_zeros(x.size(1), layer.hidden_size), *own, *inputs.values()]
