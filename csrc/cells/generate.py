"""Writes csrc/cells/built_in-inl.h from the functions of the built-in cells: `make generate`.

A program costs a built-in cell more than the loops can lose, above all for few rows. So the arithmetic of these four,
and what is derived from it, is compiled in. The functions that stand for a call's choices (act, gate, norm) are those
of `f`. G gates, K planes that training keeps.

The forward pass is cut in two where a function reads what another one gives (n of GRU, tanh of LSTM's new c), so that a
loop may do the first part of several rows before the second part of any of them.
"""

import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from rnnkernels.cells import CELLS, built_in

TARGET = Path(__file__).with_name("built_in-inl.h")
HEADER = """\
// The arithmetic of the built-in cells. Generated from rnnkernels/cells/built_in.py by csrc/cells/generate.py: edit
// those, and run `make generate`.
#pragma once
#include "activations-inl.h"

namespace RNNKERNELS_SET {
namespace {
"""
DOCS = {name: getattr(built_in, name).__doc__ for name in CELLS}
INFIX = {"add": "+", "sub": "-", "mul": "*"}


class Function:
    """The body of a C++ function: values of a section, each a constant of its own, in the order of their use."""

    def __init__(self, section, loads, instead=()):
        self.section, self.loads, self.instead = section, loads, dict(instead)
        """``instead``: expressions for values that are not computed here."""
        self.lines, self.names = [], {}

    def value(self, n):
        """The expression of value n."""
        if n in self.instead:
            return self.instead[n]
        if n not in self.names:
            op, args, what = self.section.code[n]
            if op == "norm":  # where there is none: the loops of a normed layer call the parts on both sides of it
                self.names[n] = self.value(args[0])
            elif op == "norm_back":
                self.names[n] = self.value(args[0])
            elif not args:
                self.names[n] = f"V({what:g})" if op == "const" else self.loads(op, what)
            else:
                given = [self.value(m) for m in args]
                text = f" {INFIX[op]} ".join(given) if op in INFIX else f"f.{op}({', '.join(given)})"
                self.names[n] = f"v{len(self.lines)}"
                self.lines.append(f"const V {self.names[n]} = {text};")
        return self.names[n]


def struct(name, spec):
    """The text of one cell's struct."""
    program, type_name = spec.program, "".join(word.title() for word in name.split("_"))
    sections, gates, G = program.sections, program.inputs, len(program.inputs)
    forward, states, inner = sections["forward"], program.states, program.inner
    split = [g for g in gates if ("x", g) in {(i.op, i.what) for i in forward.code}]
    if tuple(split) != gates[G - len(split) :]:
        raise SystemExit(f"{name}: gates whose sums are apart have to come last")
    slot = slots(program)

    def of_forward(op, what):
        if op in ("a", "r"):
            return f"sums[{gates.index(what)}]"
        if op == "x":
            return f"x_split[{gates.index(what) - G + len(split)}]"
        if op == "cross":
            return f"sums[{slot[what]}]"
        return what

    def of_backward(op, what):
        if op == "k":
            return f"kept[{what}]"
        return {"n": f"{what}_new", "s": what, "g": f"d{what}"}[op]

    kept = {p.what: p.value for p in forward.puts if p.to == "keep"}
    new = {s: forward.value("new", s) for s in states}
    sums = {}
    if inner:  # the last gate's slot has both of its products
        for n, i in enumerate(forward.code):
            ops = {forward.code[m].op for m in i.args}
            if i.op == "add" and ops == {"cross", "i"}:
                sums[n] = f"sums[{G - 1}]"
    last, late = second_half(forward)
    run = Function(forward, of_forward, sums)
    results = [(f"kept[{k}]", run.value(n)) for k, n in sorted(kept.items()) if n not in last]
    if inner:
        first = sections["first"]
        results += [(f"kept[{p.what}]", f"sums[{slot_of(program, p.value)}]") for p in first.puts if p.to == "keep"]
    results = sorted(results)
    results += [(f"late[{k}]", run.value(n)) for k, n in enumerate(late)]
    results += [(s, run.value(n)) for s, n in reversed(new.items()) if n not in last]
    finish = Function(forward, of_forward, {n: f"late[{k}]" for k, n in enumerate(late)})
    y_of_late = finish.value(new["h"]) if last else None
    kept_late = {k: finish.value(n) for k, n in sorted(kept.items()) if n in last}
    norm = [n for n, i in enumerate(forward.code) if i.op == "norm"]
    leaves = {n: f"kept[{k}]" for k, n in kept.items()}
    output = None
    if norm:
        output = Function(forward, of_forward, {**leaves, norm[0]: "c_new"})
        y = output.value(new["h"])
        planes = [k for k, n in kept.items() if n in used(forward, new["h"], {*kept.values(), norm[0]})]
    facts = {
        "G": G, "SPLIT": len(split), "STATES": len(states), "KEPT": program.keep, "PHASES": spec.phases,
        "LATE": len(late),
        **({"OUTPUT": planes[0]} if norm else {}),
    }  # fmt: skip
    mixes = any((i.op, i.what) == ("s", states[0]) for i in forward.code)
    first_line, *more = [line.strip() for line in DOCS[name].strip().splitlines()]
    lines = [
        f"// {first_line}",
        f"struct {type_name} {{",
        f"static constexpr int {', '.join(f'{key} = {v}' for key, v in facts.items())};",
        f"static constexpr bool PROJECTION = {text_of(spec.has_projection)}, MIXES = {text_of(mixes)};",
        f"static constexpr bool is_late({'int k' if kept_late else 'int'}) "
        f"{{ return {' || '.join(f'k == {k}' for k in kept_late) or 'false'}; }}  // of kept[k]: `finish` gives it",
        "",
    ]
    if inner:
        lines += first_part(program, slot)
    named = lambda name, used: name if used else ""  # noqa: E731
    c = len(states) > 1
    lines += [
        f"// sums: {'what `first` left, and of the last gate the sums of both products' if inner else 'x + r'}"
        + (f"; of {', '.join(split)} r, whose x is in x_split" if split else "")
        + (f". kept: {', '.join(spec.planes)}." if spec.planes else ".")
        + (" late: for `finish`." if late else ""),
        "template <class F, class V>",
        f"static INLINE void forward([[maybe_unused]] F f, const V* sums, const V* {named('x_split', split)}, "
        f"V& {named('h', mixes or not late)}, V& {named('c', c)}, V* {named('kept', program.keep)}, "
        f"V* {named('late', late)}) {{",
        *run.lines, *(f"{to} = {v};" for to, v in results), "}", "",
    ]  # fmt: skip
    if late:
        lines += [
            "// The new h.", "template <class F, class V>",
            f"static INLINE V finish([[maybe_unused]] F f, const V* late, V* {named('kept', kept_late)}) {{",
            *finish.lines, *(f"kept[{k}] = {v};" for k, v in kept_late.items()), f"return {y_of_late};", "}", "",
        ]  # fmt: skip
    lines += backward_part(program, of_backward, split, c)
    if norm:
        lines += [
            "// The new c from what training keeps, and the old c.",
            "template <class V>", "static INLINE V new_c(const V* kept, V c) {",
            *returned(Function(forward, of_forward, leaves), new["c"]), "}", "",
            "// The new h from what training keeps, and from c as it enters the output.",
            "template <class F, class V>", "static INLINE V output([[maybe_unused]] F f, const V* kept, V c_new) {",
            *output.lines, f"return {y};", "}",
        ]  # fmt: skip
    return "\n".join(lines + ["};", ""])


def second_half(section):
    """The values that depend on two functions in a row, such as tanh of a sum of sigmoids, and what else they read."""
    functions, nested = set(), set()  # values that depend on one function, and on two in a row
    for n, i in enumerate(section.code):
        read = set(i.args)
        if read & nested or (i.op in ("act", "gate") and read & functions):
            nested.add(n)
        if i.op in ("act", "gate") or read & functions:
            functions.add(n)
    through = {n: i.args[0] for n, i in enumerate(section.code) if i.op == "norm"}
    read = {through.get(m, m) for n in nested for m in section.code[n].args}
    return nested, sorted(m for m in read - nested if section.code[m].op != "const")


def text_of(value):
    return str(bool(value)).lower()


def used(section, n, stop):
    """The values that value n is computed from, not going past ``stop``."""
    found, todo = set(), [n]
    while todo:
        m = todo.pop()
        found.add(m)
        todo += () if m in stop else section.code[m].args
    return found


def returned(function, n):
    value = function.value(n)
    return [*function.lines, f"return {value};"]


def slot_of(program, n):
    """The gate whose slot holds a value of ``first``."""
    first = program.sections["first"]
    gates = {first.code[m].what for m in used(first, n, ()) if first.code[m].op in ("a", "x")}
    return program.inputs.index(gates.pop())


def slots(program):
    """The slot of each value that crosses."""
    puts = program.sections["first"].puts if program.inner else ()
    return {p.what: slot_of(program, p.value) for p in puts if p.to == "cross"}


def first_part(program, slot):
    """Before the inner product, and its derivative."""
    first, back = program.sections["first"], program.sections["backward_first"]
    gates = program.inputs

    def loads(op, what):
        return f"sums[{gates.index(what)}]" if op in ("a", "x") else what

    run = Function(first, loads)
    places = {slot_of(program, p.value): run.value(p.value) for p in first.puts if p.to in ("cross", "keep")}
    operand = run.value(first.value("inner"))
    (gate,) = [p.what for p in back.puts if p.to in ("da", "dx", "dr")]
    pull = Function(back, lambda op, what: {"k": gate, "s": what, "gi": "product"}[op])
    delta, dh = pull.value(back.value("da", gate)), pull.value(back.value("ds", program.states[0]))
    return [
        "// sums: x + r, and of the last gate x; they become what `forward` reads. Gives what the inner product "
        "multiplies, from the h (masked, where it is) that the first product has multiplied.",
        "template <class F, class V>", "static INLINE V first([[maybe_unused]] F f, V* sums, V h) {",
        *run.lines, *(f"sums[{g}] = {v};" for g, v in sorted(places.items()) if v != f"sums[{g}]"),
        f"return {operand};", "}", "",
        "// product: gradient of the inner product's operand, where h is that of `first`; becomes h's share of it. "
        f"Gives the gradient of {gate}'s pre-activation.",
        "template <class F, class V>",
        f"static INLINE V backward_first([[maybe_unused]] F f, V {gate}, V h, V& product) {{",
        *pull.lines, f"product = {dh};", f"return {delta};", "}", "",
    ]  # fmt: skip


def backward_part(program, loads, split, c):
    """The derivative of `forward`; for a cell whose output may be normed, also the part on this side of the norm."""
    back, gates, states = program.sections["backward"], program.inputs, program.states
    G, S = len(gates), len(split)

    def puts(function):
        """Where values go: gradients of pre-activations first, those of states last, for they come in there."""
        found = {}
        for to, what, n in back.puts:
            if to in ("da", "dx"):
                found[f"d[{gates.index(what)}]"] = function.value(n)
            elif to == "dr":
                found[f"d[{gates.index(what) + S}]"] = function.value(n)
        for k in range(G + S):  # of a gate that only the inner product's operand depends on
            found.setdefault(f"d[{k}]", "V(0)")
        return [f"{to} = {v};" for to, v in sorted(found.items())]

    def state(function, name):
        n = back.value("ds", name)
        return "V(0)" if n is None else function.value(n)

    read = {(i.op, i.what) for i in back.code}
    named = lambda name, *load: name if load in read else ""  # noqa: E731
    run = Function(back, loads)
    stores = [*puts(run), f"dh_direct = {state(run, states[0])};", *([f"dc = {state(run, 'c')};"] if c else ())]
    lines = [
        "// dh" + (", dc: gradients of the new h and c." if c else ": gradient of the new h.")
        + " Out: d, those of the pre-activations; dh_direct"
        + (" and dc, those of the old" if c else ", that of the old") + " without the products' share.",
        "template <class F, class V>",
        f"static INLINE void backward([[maybe_unused]] F f, const V* {'kept' if program.keep else ''}, "
        f"V {named('h_new', 'n', 'h')}, V {named('h', 's', 'h')}, V {named('c', 's', 'c')}, "
        f"V {named('c_new', 'n', 'c')}, V dh, V& {'dc' if c else ''}, V* d, V& dh_direct) {{",
        *run.lines, *stores, "}", "",
    ]  # fmt: skip
    norm = next((n for n, i in enumerate(back.code) if i.op == "norm"), None)
    if norm is None:
        return lines
    y = next(n for n, i in enumerate(back.code) if i.op == "act" and i.args == (norm,))
    through = next(n for n, i in enumerate(back.code) if i.op == "norm_back")
    part = Function(back, loads, {y: "y", through: "dc_output"})
    stores = [*puts(part), f"dc = {state(part, 'c')};"]
    return lines + [
        "// The same from y, which multiplies the output gate, and from what reaches the new c through it.",
        "template <class F, class V>",
        "static INLINE void backward_from([[maybe_unused]] F f, const V* kept, V c, V y, V dc_output, V dh, V& dc, "
        "V* d) {",
        *part.lines, *stores, "}", "",
    ]  # fmt: skip


def laid_out(text):
    """The text as clang-format has it: indented, lines of at most 120 characters."""
    depth, lines = 0, []
    for line in text.split("\n"):
        line = line.replace(" ,", ",").replace(" )", ")")
        depth -= line.startswith("}")
        indent = "  " * depth
        if line.startswith("//"):
            lines += textwrap.wrap(
                line.removeprefix("//"), 120, initial_indent=f"{indent}//", subsequent_indent=f"{indent}// "
            )
        elif len(indent + line) > 120:
            at = line.rindex(", ", 0, 121 - len(indent)) + 1
            lines += [indent + line[:at], indent + " " * (line.index("(") + 1) + line[at + 1 :]]
        else:
            lines.append((indent + line).rstrip())
        depth += line.endswith("{")
    return "\n".join(lines).replace("\n\n};", "\n};")


def generated():
    """The whole file."""
    structs = "\n".join(laid_out(struct(name, spec)) for name, spec in CELLS.items())
    return HEADER + structs + "}  // namespace\n}  // namespace RNNKERNELS_SET\n"


if __name__ == "__main__":
    TARGET.write_text(generated(), encoding="utf-8")
