"""Loops over steps in plain torch, which torch.nn leaves to its users: as they are, scripted by torch.jit, or compiled.

The source text of a loop is made from the program of its cell, built in or one's own, with every stage that a layer of
rnnkernels has arguments for. Outside of the loop is done what can be done there: the input's product, and the biases
that are added to nothing else. T time, B batch, G gates, H hidden.
"""

from __future__ import annotations

import importlib
import linecache
import warnings
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.providers.case import TORCH_DTYPES, Case, Job, Unsupported, masks, provider

OPERATIONS = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}", "neg": "-{}",
    **{name: f"torch.{name}({{}})" for name in ("abs", "sign", "sqrt", "exp", "log", "log1p", "expm1", "sigmoid")},
    "tanh": "torch.tanh({})", "relu": "torch.relu({})", "min": "torch.minimum({}, {})", "max": "torch.maximum({}, {})",
    "lt": "({} < {}).to(x.dtype)", "le": "({} <= {}).to(x.dtype)", "eq": "({} == {}).to(x.dtype)",
    "where": "torch.where({} != 0, {}, {})", "through": "({0}).detach() + ({2}).detach() * (({1}) - ({1}).detach())",
    "act": "torch.tanh({})", "gate": "torch.sigmoid({})", "norm": "{}",
}  # fmt: skip
NUMBERS = {"min": "torch.clamp_max", "max": "torch.clamp_min"}  # beside a number
WARMING = 3  # calls in which the profiling executor looks at the loop and compiles it


def lines_of(section: Any, loads: Callable, prefix: str, operations: dict[str, str]) -> tuple[list[str], dict]:
    """An assignment for each value of a section that goes anywhere in a forward pass, and by where the names."""
    code, lines, names = section.code, [], {}

    def constant(k: int) -> bool:
        return code[k].op == "const"

    def fused(a: int, b: int) -> str | None:
        """The sum of two values, the second of which is a product: torch has it in one operation."""
        if code[b].op != "mul" or any(map(constant, (a, *code[b].args))):
            return None
        for weight, other in (code[b].args, code[b].args[::-1]):
            if code[other].op == "sub" and code[other].args[1] == a and not constant(code[other].args[0]):
                return f"torch.lerp({value(a)}, {value(code[other].args[0])}, {value(weight)})"
        return f"torch.addcmul({', '.join(map(value, (a, *code[b].args)))})"

    def text(k: int) -> str:
        op, args, _ = code[k]
        if op == "add" and (found := fused(*args) or fused(*args[::-1])):
            return found
        if op in NUMBERS and any(map(constant, args)):
            number, other = map(value, args if constant(args[0]) else args[::-1])
            return f"{NUMBERS[op]}({other}, {number})"
        if op == "through" and constant(args[1]):  # no gradient
            return f"({value(args[0])}).detach()"
        return operations[op].format(*map(value, args))

    def value(k: int) -> str:
        if k not in names:
            op, args, what = code[k]
            names[k] = text(k) if args else repr(what) if op == "const" else loads(op, what)
            if " " in names[k] or args:
                lines.append(f"{prefix}{k} = {names[k]}")
                names[k] = f"{prefix}{k}"
        return names[k]

    return lines, {(p.to, p.what): value(p.value) for p in section.puts if p.to != "keep"}


def normed(v: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(v, [v.size(-1)], gain, bias, 1e-5)


def product(v: str, w: str, bias: str, gain: str) -> str:
    """v W^T + bias as text, normalised where there is a gain; names of what there is not are empty."""
    plus = f"{bias and ' + '}{bias}"
    return f"normed(F.linear({v}, {w}), {gain}){plus}" if gain else f"F.linear({v}, {w}{bias and ', '}{bias})"


def unpacked(names: Iterable[str], value: str) -> str:
    names = list(names)
    return f"{', '.join(names)}{',' * (len(names) == 1)} = {value}.chunk({len(names)}, 1)"


def source_of(program: Any, parameters: list[str], stages: Iterable[str] = ()) -> str:
    """The function ``loop(x, zero, *parameters, *step inputs, *sequence inputs, *stages)`` as text.

    Stages: ``keep`` (T, B, 1) is zero where the states restart, ``alive`` (T, B, 1) tells the steps before a row's end,
    ``h_mask`` (B, H) multiplies what goes into products, ``zone_h`` (T, B, H) tells what stays of a state.
    """
    states, sections, main = program.states, program.sections, f"s_{program.states[0]}"
    first = program.recurrent[: len(program.recurrent) - program.inner]
    b_ih, b_hh, ln_x, ln_h = (n if n in parameters else "" for n in ("bias_ih", "bias_hh", "ln_x_gain", "ln_h_gain"))
    arguments = ["x", "zero", *parameters, *(f"us_{n}" for n in program.step), *(f"u_{n}" for n in program.sequence)]
    operations = OPERATIONS | ({"norm": "normed({}, ln_c_gain, ln_c_bias)"} if "ln_c_gain" in parameters else {})
    alone = {i.what for name in ("operand", "first", "forward") if name in sections
             for i in sections[name].code if i.op in ("x", "r")}  # fmt: skip
    # Where the gates of both products are only added, the second one is added to the first by the product itself.
    summed = first and first == program.inputs[: len(first)] and not alone & {*first} and not ln_h
    summed = summed and "weight_ih" in parameters
    split = len(first) < len(program.inputs)  # what of x is added to no product there

    head, inner = [], {"w": "weight_hh[-H:]", "b": b_hh and f"{b_hh}[-H:]", "ln": ln_h and f"{ln_h}[-H:]"}
    if program.inner:
        head += ["H = zero.size(1)", *(f"inner_{name} = {text}" for name, text in inner.items() if text)]
        head += [f"{name} = {name}[:-H]" for name in ("weight_hh", b_hh, ln_h) if name]
    if summed:
        head += ["w = weight_hh.t()"]
        if b_hh:
            more = f"F.pad({b_hh}, [0, {b_ih}.size(0) - {b_hh}.size(0)])" if split else b_hh
            head, b_hh = [*head, f"{b_ih} = {b_ih} + {more}"], ""
    head += [f"xs = {product('x', 'weight_ih', b_ih, ln_x)}" if "weight_ih" in parameters else "xs = x"]
    head += [f"s_{n} = zero" for n in states] + ["ys: list[torch.Tensor] = []"]
    head += ["steps = xs.unbind(0)"]  # indexing would give each step a gradient of the size of the whole
    head += [f"steps_{n} = us_{n}.unbind(0)" for n in program.step]
    crossing: dict[str, str] = {}

    def values(name: str) -> dict:
        """Where the values of a section go; its lines go to the body."""

        def loads(op: str, what: Any) -> str:
            if op == "a":
                return f"a_{what}" if summed and what in first else f"x_{what} + r_{what}"
            if op == "s" and name == "first" and what == states[0] and "h_mask" in stages:
                return operand
            kinds = {"i": "inner", "cross": crossing.get(what), "v": what}
            return kinds.get(op, f"{op}_{what}")

        lines, puts = lines_of(sections[name], loads, f"{name}_", operations)
        body.extend(lines)
        return puts

    body, operand = [f"b_{n} = s_{n}" for n in states if "alive" in stages], main
    body += [f"s_{n} = s_{n} * keep[t]" for n in states if "keep" in stages]
    x, gates = "steps[t]", [f"x_{n}" for n in program.inputs]
    if summed and split:
        body += [f"x_first, x_rest = steps[t].tensor_split([{len(first)} * zero.size(1)], 1)"]
        x, gates = "x_rest", gates[len(first) :]
    if gates and not (summed and not split):
        body += [unpacked(gates, x)]
    body += [f"u_{n} = steps_{n}[t]" for n in program.step]
    if "operand" in sections:
        operand = values("operand")["operand", None]
    if "h_mask" in stages:
        body += [f"masked = {operand} * h_mask"]
        operand = "masked"
    if summed:
        added = f"torch.addmm({'x_first' if split else x}, {operand}, w)"
        body += [unpacked([f"a_{n}" for n in first], added)]
    elif first:
        body += [f"r = {product(operand, 'weight_hh', b_hh, ln_h)}", unpacked([f"r_{n}" for n in first], "r")]
    if program.inner:
        puts = values("first")
        crossing |= {what: name for (to, what), name in puts.items() if to == "cross"}
        names = (f"inner_{name}" if inner[name] else "" for name in inner)
        body += [f"inner = {product(puts['inner', None], *names)}"]
    puts = values("forward")
    new = [f"torch.lerp({puts['new', n]}, s_{n}, zone_{n}[t])" if f"zone_{n}" in stages else puts["new", n]
           for n in states]  # fmt: skip
    body += [f"n_{n} = {value}" for n, value in zip(states, new, strict=True)]
    y = puts.get(("y", None), f"n_{states[0]}")
    body += [f"ys.append({y}{' * alive[t]' * ('alive' in stages)})"]
    body += [f"s_{n} = " + (f"torch.where(alive[t], n_{n}, b_{n})" if "alive" in stages else f"n_{n}") for n in states]
    typed = ", ".join(f"{name}: torch.Tensor" for name in (*arguments, *stages))
    indented = ["    " + line for line in (*head, "for t in range(len(steps)):", *("    " + line for line in body))]
    return "\n".join([f"def loop({typed}):", *indented, "    return torch.stack(ys)", ""])


def as_it_is(loop: Callable) -> Callable:
    return loop


@cache
def function_of(cell: str, parameters: tuple[str, ...], stages: tuple[str, ...], changed: Callable) -> Callable:
    """The loop of a built-in cell or of a program's text, changed by what compiles it."""
    program = importlib.import_module("rnnkernels.cells").spec_of(cell).program
    text, name = source_of(program, list(parameters), stages), f"<loop of {program.name}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # torch.jit reads the source
    scope = {"torch": torch, "F": F, "normed": normed, "__name__": __name__}
    exec(compile(text, name, "exec"), scope)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated; what shall replace it unrolls every step
        return changed(scope["loop"])


def loop_of(module: nn.Module, case: Case, changed: Callable = as_it_is) -> Callable[[Tensor], tuple]:
    """The loop with a module's weights, called as the module is. ``changed``: what compiles it."""
    w, p, fixed = case.workload, dict(module.named_parameters()), {}
    names = tuple(name.removesuffix("_l0") for name in p)
    cell = "gru_reset_before" if not getattr(module, "reset_after", True) else w.cell
    cell = module.cell.program.text if w.own else cell
    if case.reset is not None:
        fixed["keep"] = (~case.reset[..., None]).to(TORCH_DTYPES[case.dtype])
    if case.lengths is not None:
        fixed["alive"] = torch.arange(w.T)[:, None, None] < case.lengths[:, None]

    def call(x: Tensor) -> tuple[Tensor, None]:
        h_mask, zone = masks(w, case.train, x)
        stages = fixed | ({} if h_mask is None else {"h_mask": h_mask[0]})
        stages |= {f"zone_{n}": z[:, 0].expand(w.T, -1, -1) for n, z in zip("hc", zone, strict=False)}
        loop = function_of(cell, names, tuple(stages), changed)
        zero = x.new_zeros(x.size(1), w.H)
        return loop(x, zero, *p.values(), *case.inputs.values(), *stages.values()), None

    return call


def loop_job(case: Case, changed: Callable = as_it_is, warming: int = 0) -> Job:
    w = case.workload
    case.refuse_stacks("the loop")
    if set(dict(w.options)) == {"recurrent_dropout"} and not case.train:
        raise Unsupported("recurrent dropout does nothing in inference: torch.nn's plain layer does the same")
    if set(dict(w.options)) == {"recompute"}:
        raise Unsupported("recompute changes no number: torch.nn's plain layer does the same")
    module = case.module_of(importlib.import_module("rnnkernels") if w.options else nn)
    job = case.job(module, loop_of(module, case, changed))
    with torch.inference_mode(not case.train):
        return job.warmed(warming)


provider("loop", package="torch", default=False)(loop_job)
provider("torch_script", package="torch", default=False)(partial(loop_job, changed=torch.jit.script, warming=WARMING))
