"""The texts of programs and their two parsers: what they refuse, and what they do with texts at random."""

import random

import pytest
import torch
from program_texts import CELLS
from programs import split
from random_programs import OPS, OPTIONS, Case

from rnnkernels import backends
from rnnkernels.cells import program

if backends.EXTENSION_ERROR is not None:
    pytest.skip(f"the C++ extension is not there: {backends.EXTENSION_ERROR}", allow_module_level=True)


def parsed(text):
    """True if the C++ parser takes the text; nothing is run."""
    try:
        OPS.schedule(text, torch.float32, 3, 2, 4, 5, 5, 1, False)
    except RuntimeError as error:
        assert str(error).startswith("rnnkernels: "), error
        return False
    return True


def parsed_in_python(text):
    try:
        program.parse(text)
    except program.Refused:
        return False
    return True


REFUSED = {
    "version": ("cell 1 ", "cell 2 "), "name": ("my_lstm", "1lstm"), "no name": ("cell 1 my_lstm", "cell 1"),
    "two spaces": ("a i", "a  i"), "space at the end": ("a i", "a i "), "tab": ("a i", "a\ti"),
    "nothing": (None, "cell "),
    "no states": ("states h c\n", ""), "five states": ("states h c", "states h c d e f"), "nine gates": (
        "inputs i f g o", "inputs i f g o a b d e k"), "twice": ("inputs i f g o", "inputs i f g i"),
    "unknown gate": ("a i", "a q"), "unknown state": ("s c", "s q"), "unknown function": ("tanh 2", "tan 2"),
    "later value": ("sigmoid 0", "sigmoid 5"), "large": ("sigmoid 0", "sigmoid 12345"),
    "negative": ("tanh 2", "tanh -1"),
    "too few": ("mul 6 4", "mul 6"), "too many": ("mul 6 4", "mul 6 4 1"), "no number": ("mul 6 4", "mul 6 x"),
    "no new state": ("put new c 11\n", ""), "a put twice": ("put new c 11", "put new h 11"), "unknown put": (
        "put new c", "put old c"), "plane past keep": ("put keep 3 8", "put keep 4 8"), "plane twice": (
        "put keep 3 8", "put keep 2 8"), "plane not kept": ("put keep 3 8\n", ""), "33 planes": ("keep 4", "keep 33"),
    "load after put": ("put new h 13", "put new h 13\na i"), "no backward": ("\nbackward", "\nbackwards"),
    "gradient twice": ("put da f 15", "put dx i 15"), "gy without y": ("g h", "gy"), "i without first": ("s c", "i"),
    "k in forward": ("a i", "k 0"), "go in backward": ("g h", "go"), "order": ("keep 4\n", "keep 4\nvectors p\n"),
    "infinite": ("s c", "const inf"), "not a number": ("s c", "const nan"), "overflowing": ("s c", "const 1e999"),
    "eps of no constant": ("sigmoid 0", "layer_norm 0 4"), "negative eps": ("sigmoid 0", "const -1\nlayer_norm 0 5"),
    "norm of one": ("sigmoid 0", "layer_norm 0"), "derivative of two": ("sigmoid 0", "const 1\nlayer_norm_back 0 5"),
    "hexadecimal": ("s c", "const 0x10"), "given without inputs": (
        "inputs i f g o\nrecurrent i f g o\nstates h c\n", "recurrent i f g o\nstates h c\ngiven\n"),
    "operand alone": ("forward", "operand\ns h\nput operand 0\nforward"), "first alone": (
        "forward", "first\ns h\nput inner 0\nforward"), "zero": ("a i", "a i\0"), "many instructions": (
        "sigmoid 0", "\n".join(["sigmoid 0"] * 600)), "long": ("keep 4", "keep 4" + "\n" * 70000),
    "not ascii": ("a i", "a \u00ef"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    old, new = REFUSED[what]
    text = new if old is None else CELLS["my_lstm"].replace(old, new, 1)
    assert text != CELLS["my_lstm"]
    with pytest.raises(RuntimeError, match="^rnnkernels: not the program of a cell: "):
        OPS.schedule(text, torch.float32, 3, 2, 4, 5, 5, 1, False)


UNARY = ("neg", "abs", "sign", "sqrt", "exp", "log", "log1p", "expm1", "sigmoid", "tanh", "relu")
BINARY = ("add", "sub", "mul", "div", "min", "max", "lt", "le", "eq", "tanh_back", "sigmoid_back", "relu_back")


def mutated(text, chance):
    """The text with some words or lines changed, moved or lost."""
    lines = [line.split(" ") for line in text.split("\n")]
    words = sorted({word for line in lines for word in line}) + ["0", "1", "7", "511", "put", "const", "1e-3", "-1", ""]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(lines))
        kind = chance.randrange(12)
        if kind > 6:  # another program, often
            if lines[at][0] in UNARY and kind > 9:
                lines[at][0] = chance.choice(UNARY)
            elif lines[at][0] in BINARY and kind > 9:
                lines[at][0] = chance.choice(BINARY)
            elif lines[at][-1].isdigit():
                lines[at][-1] = str(chance.randrange(int(lines[at][-1]) + 1))
        elif kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, list(chance.choice(lines)))
        elif kind == 2:
            lines[at].insert(chance.randrange(len(lines[at]) + 1), chance.choice(words))
        elif kind == 3:
            other = chance.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 4:
            line = " ".join(lines[at])
            place = chance.randrange(len(line) + 1)
            lines[at] = (line[:place] + chance.choice("0123456789abc \n:.-\0") + line[place + 1 :]).split(" ")
        else:
            lines[at][chance.randrange(len(lines[at]))] = chance.choice(words)
        lines = lines or [["cell"]]
    return "\n".join(map(" ".join, lines))


@pytest.mark.parametrize("seed", range(4))
def test_texts_at_random(seed):
    """A changed text is refused, by both parsers, or it is a program: it runs forward and back, and the shapes are
    right."""
    chance, taken = random.Random(seed), 0
    for n in range(200):
        text = mutated(chance.choice(list(CELLS.values())), chance)
        if not text.startswith("cell "):
            continue
        assert parsed(text) == parsed_in_python(text), text
        if not parsed(text):
            continue
        taken += 1
        header, sections = split(text)
        case = Case(text, torch.float32, 3, 2, 4, 9, chance.choice(OPTIONS), seed=n)
        y, last, saved = OPS.plain_layer(*case.arguments(), False)
        assert y.shape == (3, 2, len(last[0]) * 9) and len(last) == len(header["states"])
        try:
            y, last, saved = OPS.plain_layer(*case.arguments(), True)
        except RuntimeError as error:
            assert "first" in sections and "cannot be trained" in str(error)
            continue
        dlast = [torch.ones_like(s) for s in last]
        dx, dstates, dweights, _, dextras = case.backward(y, saved, torch.ones_like(y), dlast)
        for a, b in zip((dx, *dstates, *dweights, *dextras), case.leaves(), strict=True):
            assert a.shape == b.shape
    assert taken > 40
