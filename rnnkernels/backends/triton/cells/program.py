"""A cell's program, parsed: to be replaced by rnnkernels/cells/program.py."""

import functools
from typing import Any, NamedTuple


class Program(NamedTuple):
    name: str
    inputs: tuple = ()
    recurrent: tuple = ()
    states: tuple = ()
    vectors: tuple = ()
    steps: tuple = ()
    """Names of step inputs."""
    narrow: tuple = ()
    sequences: tuple = ()
    given: bool = False
    keep: int = 0
    sections: Any = None


SECTIONS = ("operand", "first", "forward", "backward", "backward_first", "backward_operand")
NAMED = {"a", "x", "r", "s", "v", "u", "n", "g"}
NUMBERED = {"cross", "k"}


@functools.cache
def parse(text):
    fields, sections, section = {}, {}, None
    for line in text.splitlines():
        word, *rest = line.split(" ")
        if not rest and word in SECTIONS:
            section = sections.setdefault(word, [])
        elif section is None:
            if word == "cell":
                fields["name"] = rest[1]
            elif word == "step":
                fields["steps"] = tuple(name.split(":")[0] for name in rest)
                fields["narrow"] = tuple(name.split(":")[0] for name in rest if ":" in name)
            elif word == "given":
                fields["given"] = True
            elif word == "keep":
                fields["keep"] = int(rest[0])
            else:
                fields["sequences" if word == "sequence" else word] = tuple(rest)
        else:
            section.append((word, *map(argument, rest)))
    return Program(sections=sections, **fields)


def argument(word):
    try:
        return int(word)
    except ValueError:
        try:
            return float(word)
        except ValueError:
            return word
