"""An extension of griffe: docstrings of the package as Markdown.

They name objects by roles (:class:`LSTM`), give examples after `::`, and have lists under headings that griffe does not
know (the arguments of forward). These become links, blocks and lists.
"""

import re
from pathlib import Path

import griffe

API = Path(__file__).parents[1] / "api.md"
DOCUMENTED = re.findall(r"^::: (\S+)$", API.read_text("utf-8"), re.MULTILINE)

ROLE = re.compile(r":(?:class|func|meth|attr):`~?([\w.]+)`")
ITEM = re.compile(r"^    (\*{0,2}\w[\w, *]*): (.*)$")
KNOWN = ("Args:", "Returns:", "Raises:", "Attributes:")


def target(name, obj):
    """The object of the page about the API that a docstring of obj means by a name, if it is there."""
    found = [known for known in DOCUMENTED if known == name or known.endswith(f".{name}")]
    if found:
        return found[0]
    owner = obj.parent
    here = owner is not None and owner.is_class and f"rnnkernels.{owner.name}" in DOCUMENTED
    return f"rnnkernels.{owner.name}.{name}" if here and name in owner.members else None


def link(name, obj):
    found = target(name, obj)
    return f"[`{name}`][{found}]" if found else f"`{name}`"


def listed(lines):
    """Lists of names under a heading that griffe does not know, as lists of Markdown; examples as blocks."""
    found, kind = [], None  # kind of the part that a line belongs to
    for n, line in enumerate(lines):
        indented = lines[n + 1].startswith("    ") if n + 1 < len(lines) else False
        if line and not line.startswith(" "):
            if kind == "example":
                found += ["```", ""]
            kind = None
            if line.endswith("::"):
                kind = "example"
                found += [line[:-1], "", "```python"]
                continue
            if line.endswith(":") and line not in KNOWN and indented:
                kind = "list"
                found += [line, ""]
                continue
            kind = "known" if line in KNOWN else None
        if kind == "example":
            if line or found[-1] != "```python":
                found.append(line.removeprefix("    "))
            continue
        item = ITEM.match(line) if kind == "list" else None
        if item:
            found.append(f"- **`{item[1]}`**: {item[2]}")
        elif kind == "list":
            found.append(f"    {line.strip()}" if line else "")
        else:
            found.append(line)
    if kind == "example":
        found.append("```")
    return found


class Docstrings(griffe.Extension):
    def on_object(self, *, obj, loader, **kwargs):
        if obj.docstring:
            text = "\n".join(listed(obj.docstring.value.splitlines()))
            obj.docstring.value = ROLE.sub(lambda role: link(role[1], obj), text)
