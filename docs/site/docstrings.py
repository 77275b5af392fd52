"""An extension of griffe: docstrings of the package as Markdown, and signatures as type checkers see them.

They name objects by roles (:class:`LSTM`), give examples after `::`, and have lists of names under headings, also under
such as no style of docstrings knows (the arguments of forward). These become links, blocks and lists.
"""

import re
from pathlib import Path

import griffe

API = Path(__file__).parents[1] / "api.md"
DOCUMENTED = re.findall(r"^::: (\S+)$", API.read_text("utf-8"), re.MULTILINE)

ROLE = re.compile(r":(?:class|func|meth|attr):`~?([\w.]+)`")
ITEM = re.compile(r"^    (\*{0,2}\w[\w, *]*): (.*)$")
STAR = re.compile(r"(?<=[\w)])\*(?=[\w(])(?=(?:[^`]*`[^`]*`)*[^`]*$)")  # of a product, outside code
BOLD = ("Args:", "Attributes:", "Returns:", "Raises:")


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


def markdown(lines):
    """Markdown of a docstring's lines."""
    found, kind = [], None  # kind of the part that a line belongs to
    for n, line in enumerate([*lines, "end"]):
        if kind == "example" and line and not line.startswith(" "):
            found += ["```", ""]
        if n == len(lines):
            break
        if line and not line.startswith(" "):
            indented = lines[n + 1].startswith("    ") if n + 1 < len(lines) else False
            kind = "example" if line.endswith("::") else "list" if line.endswith(":") and indented else None
            if kind == "example":
                found += [line[:-1], "", "```python"]
            else:
                found += [f"**{line}**" if line in BOLD else STAR.sub(r"\\*", line), *([""] if kind else [])]
            if line == "Returns:":
                kind = "text"
        elif kind == "example":
            if line or found[-1] != "```python":
                found.append(line.removeprefix("    "))
        elif kind == "list":
            item = ITEM.match(line)
            text = f"- **`{item[1]}`**: {item[2]}" if item else f"    {line.strip()}" if line else ""
            found.append(STAR.sub(r"\\*", text))
        else:
            found.append(STAR.sub(r"\\*", line.removeprefix("    ") if kind else line))
    return "\n".join(found)


class Docstrings(griffe.Extension):
    def __init__(self):
        super().__init__()
        self.for_checkers = {}

    def on_function_instance(self, *, func, **kwargs):
        """A method that is written twice, for type checkers and to run, is shown as it is for checkers: what runs may
        pass ``*args`` on."""
        if not func.runtime:
            func.parameters = self.for_checkers.setdefault(func.path, func.parameters)

    def on_object(self, *, obj, loader, **kwargs):
        if obj.docstring:
            text = markdown(obj.docstring.value.splitlines())
            obj.docstring.value = ROLE.sub(lambda role: link(role[1], obj), text)
