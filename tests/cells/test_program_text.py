"""The texts of programs: what is read is what was written, and what is no program is refused, in one sentence."""

import re

import program_cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnkernels import cells
from rnnkernels.cells import spec_of
from rnnkernels.cells.library import __all__ as OF_LIBRARY
from rnnkernels.cells.program import LOADS, PUTS, Program, Refused, parse

DECAY = """cell 1 decay
inputs r n
recurrent r n
states h c
vectors p
step gamma w:1
sequence i
keep 2
operand
u gamma
s h
mul 0 1
put operand 2
first
a r
sigmoid 0
s h
mul 1 2
put inner 3
put cross 0 1
put keep 0 1
forward
cross 0
i
s c
v p
u i
u w
add 0 1
mul 2 3
add 6 7
mul 8 4
mul 9 5
const -1.5e-3
add 10 11
put new h 12
put new c 10
put y 9
put keep 1 6
backward
k 1
gy
g h
g c
n h
put dx n 1
put di 2
put dcross 0 3
put ds c 4
put dv p 1
put du i 2
backward_first
gi
dcross 0
k 0
put da r 0
put ds h 1
backward_operand
go
put du gamma 0"""


def text_of(program):
    """The text of a ``Program``, written anew."""
    step = [f"{name}:1" if name in program.narrow else name for name in program.step]
    lines = [["cell", "1", program.name], ["inputs", *program.inputs], ["recurrent", *program.recurrent]]
    lines += [["states", *program.states], ["vectors", *program.vectors], ["step", *step]]
    lines += [["sequence", *program.sequence]]
    lines = [line for line in lines if len(line) > 1] + [["given"]] * program.given
    lines += [["keep", program.keep]] * (program.keep > 0)
    for name, section in program.sections.items():
        lines.append([name])
        for op, args, what in section.code:
            lines.append([op, *([] if what is None else [repr(what) if op == "const" else what]), *args])
        for to, what, value in section.puts:
            lines.append(["put", to, *([] if what is None else [what]), value])
    return "\n".join(" ".join(map(str, line)) for line in lines)


def same(program):
    """Whether a program and the one read off its text, written anew, are the same."""
    again = parse(text_of(program))
    assert again._replace(text="") == program._replace(text="")


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_texts_of_the_library(name):
    program = getattr(cells, name).program
    same(program)
    assert text_of(program) == program.text


def test_a_text_by_hand():
    program = parse(DECAY)
    same(program)
    assert program == Program(
        "decay", ("r", "n"), ("r", "n"), ("h", "c"), ("p",), ("gamma", "w"), ("w",), ("i",), False, 2,
        program.sections, DECAY,
    )  # fmt: skip
    assert (program.extras, program.shared, program.crossing) == (("gamma", "w", "i"), ("r", "n"), 1)
    assert program.inner and program.own_output and program.renewed == ("h",)
    spec = spec_of(DECAY)
    assert (spec.gates, spec.recurrent_gates, spec.states, spec.phases, spec.apart) == (2, 2, 2, 2, 2)
    assert (spec.planes_of(False), spec.planes_of(True)) == (2, 3)


MINIMAL = "cell 1 c\ninputs a\nstates h\nforward\nx a\nput new h 0\nbackward\ng h\nput dx a 0"
REFUSED = {  # what is replaced in which text, by what, and what is said
    "nothing": (MINIMAL, MINIMAL, "", "expected the first line 'cell 1 NAME'"),
    "version": (MINIMAL, "cell 1", "cell 2", "expected the first line 'cell 1 NAME'"),
    "no name": (MINIMAL, "cell 1 c", "cell 1", "expected the first line 'cell 1 NAME'"),
    "name": (MINIMAL, "cell 1 c", "cell 1 c;d", "expected a name of letters, digits and _, got 'c;d'"),
    "long": (MINIMAL, "put dx a 0", "put dx a 0" + "\n" * 65536, "it has more than 65536 characters"),
    "no states": (MINIMAL, "states h\n", "", "expected states"),
    "states": (MINIMAL, "states h", "states h a b c d", "expected at most 4 states, got 5"),
    "gates": (MINIMAL, "inputs a", "inputs a b c d e f g h i", "expected at most 8 inputs, got 9"),
    "twice": (MINIMAL, "inputs a", "inputs a a", "inputs have a name twice"),
    "order": (MINIMAL, "inputs a\nstates h", "states h\ninputs a", "inputs comes twice, or in the wrong place"),
    "again": (MINIMAL, "states h", "states h\nstates h", "states comes twice, or in the wrong place"),
    "no names": (MINIMAL, "inputs a", "inputs", "expected names after inputs"),
    "bad name": (MINIMAL, "states h", "states h c-d", "expected a name of letters, digits and _, got 'c-d'"),
    "empty name": (MINIMAL, "states h", "states h ", "expected a name of letters, digits and _, got ''"),
    "wide name": (MINIMAL, "states h", "states h " + "x" * 65, "expected a name of letters, digits and _"),
    "given": (MINIMAL, "states h", "states h\ngiven yes", "expected nothing after given"),
    "given without inputs": (MINIMAL, "inputs a\nstates h", "states h\ngiven", "given is for a cell with gates"),
    "keep": (MINIMAL, "states h", "states h\nkeep 33", "expected a number of planes below 33, got '33'"),
    "keep two": (MINIMAL, "states h", "states h\nkeep 1 2", "expected one number after keep"),
    "keep minus": (MINIMAL, "states h", "states h\nkeep -1", "expected a number of planes below 33, got '-1'"),
    "keep Arabic": (MINIMAL, "states h", "states h\nkeep ٣", "expected a number of planes below 33"),
    "same extras": (MINIMAL, "states h", "states h\nstep e\nsequence e", "inputs of steps and sequences have a name"),
    "section": (MINIMAL, "forward", "foreword", "expected a section out of operand, first, forward"),
    "no forward": (MINIMAL, "forward\nx a\nput new h 0\n", "", "expected a section forward"),
    "no backward": (MINIMAL, "\nbackward\ng h\nput dx a 0", "", "expected a section backward"),
    "section twice": (MINIMAL, "backward", "forward", "expected a section out of"),
    "instruction": (MINIMAL, "x a", "system a", "forward has no instruction 'system'"),
    "load elsewhere": (MINIMAL, "x a", "g h", "forward has no instruction 'g'"),
    "load of nothing": (MINIMAL, "x a", "x", "expected one name or number after x"),
    "load of two": (MINIMAL, "x a", "x a 1", "expected one name or number after x"),
    "load of another": (MINIMAL, "x a", "x b", "expected a name out of inputs (a), got 'b'"),
    "load of no list": (MINIMAL, "x a", "v p", "expected a name out of vectors (none), got 'p'"),
    "shared": (MINIMAL, "x a", "a a", "expected a name out of shared (none), got 'a'"),
    "plane": (MINIMAL, "g h", "k 0", "expected a number of keep below 0, got '0'"),
    "number": (MINIMAL, "x a", "const one", "expected a finite number, got 'one'"),
    "number with _": (MINIMAL, "x a", "const 1_0", "expected a finite number, got '1_0'"),
    "number with a tab": (MINIMAL, "x a", "const 1\t", "expected a finite number, got '1\\t'"),
    "number of other digits": (MINIMAL, "x a", "const \u0661", "expected a finite number"),
    "long number": (MINIMAL, "x a", f"const 1.{'0' * 31}", "expected a finite number"),
    "long index": (MINIMAL, "x a", "x a\nadd 00000 0", "expected an earlier value below 1"),
    "infinite": (MINIMAL, "x a", "const inf", "expected a finite number, got 'inf'"),
    "nan": (MINIMAL, "x a", "const nan", "expected a finite number, got 'nan'"),
    "arity": (MINIMAL, "x a", "x a\nadd 0", "add takes 2 values, got 1"),
    "later value": (MINIMAL, "x a", "x a\nneg 1", "expected an earlier value below 1, got '1'"),
    "negative value": (MINIMAL, "x a", "x a\nneg -1", "expected an earlier value below 1, got '-1'"),
    "instructions": (MINIMAL, "x a", "x a" + "\nneg 0" * 512, "forward has more than 512 instructions"),
    "put": (MINIMAL, "put new h 0", "put new h", "expected a name or number and a value after 'put new'"),
    "put nothing": (MINIMAL, "put new h 0", "put", "forward has no 'put "),
    "put elsewhere": (MINIMAL, "put new h 0", "put da a 0", "forward has no 'put da a 0'"),
    "put of later": (MINIMAL, "put new h 0", "put new h 1", "expected a value below 1, got '1'"),
    "put twice": (MINIMAL, "put new h 0", "put new h 0\nput new h 0", "forward puts two values in one place"),
    "after put": (MINIMAL, "put new h 0", "put new h 0\nneg 0", "forward has the instruction neg after a put"),
    "no new": (MINIMAL, "put new h 0\n", "", "the new value of state h is missing"),
    "no second new": (DECAY, "put new c 10\n", "", "the new value of state c is missing"),
    "no operand": (DECAY, "put operand 2\n", "", "operand puts no operand"),
    "no inner": (DECAY, "put inner 3\n", "", "first puts no operand of the inner product"),
    "operand alone": (DECAY, "backward_operand\ngo\nput du gamma 0", "", "operand and backward_operand come together"),
    "no product": (MINIMAL, "forward", "operand\ns h\nput operand 0\nforward", "operand and backward_operand"),
    "operand of no product": (
        MINIMAL + "\nbackward_operand\ngo\nput ds h 0", "forward", "operand\ns h\nput operand 0\nforward",
        "operand is for a cell with a recurrent product",
    ),
    "i without first": (MINIMAL, "x a", "x a\ni", "i and cross are for a cell with an inner product"),
    "dcross without first": (MINIMAL, "put dx a 0", "put dx a 0\nput dcross 0 0", "di and dcross are for a cell with"),
    "gate after first": (DECAY, "cross 0\n", "x n\n", "with an inner product, forward reads the gates'"),
    "inner gate": (DECAY, "a r\n", "r n\n", "the pre-activation of the inner product's gate comes after it"),
    "gy": (MINIMAL, "g h", "gy", "gy is for a cell with an output of its own"),
    "planes": (DECAY, "put keep 1 6\n", "", "expected the kept planes 0 to 1, each once"),
    "planes twice": (DECAY, "put keep 1 6\n", "put keep 0 6\n", "expected the kept planes 0 to 1, each once"),
    "crossing": (DECAY, "put cross 0 1\n", "", "expected crossing values from 0 on, each put by first"),
    "gap": (DECAY, "put cross 0 1\n", "put cross 1 1\n", "expected crossing values from 0 on, each put by first"),
    "gradients": (DECAY, "put da r 0\n", "put da r 0\nput dr r 0\n", "a gate's gradient is put twice"),
    "gradient of both": (DECAY, "put dx n 1\n", "put dx n 1\nput dx r 1\n", "a gate's gradient is put twice"),
    "gradient of i": (DECAY, "put dx n 1\n", "put da n 1\n", "a gate's gradient is put twice"),
    "eps": (MINIMAL, "x a", "x a\nlayer_norm 0 0", "the last value of layer_norm is its eps: expected a constant of 0"),
    "negative eps": (MINIMAL, "x a", "x a\nconst -1\nlayer_norm 0 1", "the last value of layer_norm is its eps: exp"),
    "eps of back": (
        MINIMAL, "g h", "g h\nconst 1\nlayer_norm_back 0 1 0", "the last value of layer_norm_back is its eps: expected"
    ),
    "norm of one": (MINIMAL, "x a", "x a\nlayer_norm 0", "layer_norm takes 2 values, got 1"),
    "empty line": (MINIMAL, "x a", "x  a", "expected one name or number after x"),
    "tab": (MINIMAL, "x a", "x\ta", "forward has no instruction 'x\\ta'"),
    "carriage return": (MINIMAL, "x a", "x a\r", "expected a name out of inputs (a), got 'a\\r'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    text, old, new, why = REFUSED[name]
    assert old in text
    with pytest.raises(Refused, match=re.escape(f"rnnkernels: not a program of a cell: {why}")) as refusal:
        parse(text.replace(old, new, 1))
    assert "\n" not in str(refusal.value)


def test_every_kind_of_line_has_a_refusal():
    """A load and a put of every kind in the wrong section is refused."""
    for op, kind in LOADS.items():
        what = {None: "", "number": " 0.5"}.get(kind, " 0" if op in ("k", "cross", "dcross") else " q")
        if op not in ("s", "v", "u", "const"):
            with pytest.raises(Refused):
                parse(DECAY.replace("u gamma", f"{op}{what}", 1))
    for to, kind in PUTS.items():
        if to != "operand":
            with pytest.raises(Refused):
                parse(DECAY.replace("put operand 2", f"put {to} q 2" if kind else f"put {to} 2", 1))


NORMED = MINIMAL.replace("x a", "x a\nconst 1e-05\nlayer_norm 0 1", 1)
NORMED = NORMED.replace("put new h 0", "put new h 2").replace("g h\n", "g h\nv p\nconst 1e-05\nlayer_norm_back 0 1 2\n")
NORMED = NORMED.replace("put dx a 0", "put dx a 3").replace("states h", "states h\nvectors p")
TOKENS = sorted({token for text in (DECAY, NORMED) for token in text.split()} | {"999", "-1", "0.5", "1e400", "é", ""})
TEXTS = [MINIMAL, DECAY, NORMED, *(str(getattr(cells, name)) for name in ("lstm", "gru_reset_before", "lif", "cfc"))]
changes = st.lists(st.tuples(*[st.integers(0, 10**4)] * 4), min_size=1, max_size=4)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(TEXTS), changes)
def test_mutations_are_refused_or_valid(text, changes):
    """Tokens replaced and dropped, lines copied, moved and dropped: refused, or a program that is written as read."""
    lines = [line.split(" ") for line in text.split("\n")]
    for kind, where, which, token in changes:
        at = where % len(lines)
        if kind % 5 == 0 and lines[at]:
            lines[at][which % len(lines[at])] = TOKENS[token % len(TOKENS)]
        elif kind % 5 == 1 and lines[at]:
            del lines[at][which % len(lines[at])]
        elif kind % 5 == 2:
            lines.insert(which % len(lines), list(lines[at]))
        elif kind % 5 == 3 and len(lines) > 1:
            lines.insert(which % len(lines), lines.pop(at))
        elif len(lines) > 1:
            del lines[at]
    try:
        program = parse("\n".join(map(" ".join, lines)))
    except Refused:
        return
    same(program)
    program_cases.forward(program, program_cases.leaves_of(program, program_cases.zeros))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_any_text(text):
    for mutant in (text, "cell 1 c\n" + text, MINIMAL.replace("x a", text, 1)):
        try:
            same(parse(mutant))
        except Refused as refusal:
            assert str(refusal).startswith("rnnkernels: not a program of a cell: ")


def test_a_text_that_is_none_is_no_cell():
    with pytest.raises(ValueError, match="expected a cell out of rnn, lstm, .* or a program, got 'lstmm'"):
        spec_of("lstmm")
