"""Write four examples as notebooks beside this file, from their sources, without outputs: `make notebooks`.

An example's docstring becomes text; its imports and constants, and each function and class, become a cell; then the
example is run, and its pictures are shown. The .py files are the source: a notebook is not to be edited, and a test
says so where one differs. Jupytext reads the cells from its percent format.
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
NOTEBOOKS = {  # files, in the order in which they are read
    "sentiment": ("reader", "sentiment"),
    "char_lm": ("language_model", "char_lm"),
    "forecast": ("forecast",),
    "own_cell": ("own_cell",),
}
SETUP = """\
# The examples are a folder of the repository: it is looked for here and above.
import sys
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "examples" / "common.py").exists())
sys.path.insert(0, str(root))"""
SETTINGS = """\
ARGUMENTS = ["--quick"]
out = root / "runs" / "notebooks" / "{name}\""""
RUN = 'assert main([*ARGUMENTS, "--out", str(out)]) == 0'
SHOW = """\
from IPython.display import Image, display

for picture in sorted(out.glob("*.png")):
    print(picture.name)
    display(Image(picture))"""


def text(words: str) -> str:
    """A cell of text in percent format."""
    return "# %% [markdown]\n" + "\n".join(f"# {line}".rstrip() for line in words.strip().splitlines())


def code(source: str, tag: str = "") -> str:
    return f"# %%{tag}\n{source.strip()}"


def title(docstring: str, level: str) -> str:
    """A docstring as Markdown: its first line is a heading, and a block of commands stays one."""
    first, _, rest = docstring.partition("\n")
    return f"{level} {first.rstrip('.')}\n{textwrap.dedent(rest)}"


def kind(node: ast.stmt) -> str:
    """Neighbours of one kind share a cell, but for functions and classes."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "import"
    return node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else "constants"


def cells(name: str, parts: tuple[str, ...]) -> list[str]:
    """The cells of one file. What other parts of the notebook define is not imported."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    lines, tree = source.splitlines(), ast.parse(source)
    found: list[tuple[str, int, int]] = []  # kind, first line and the line after the last
    dropped: set[int] = set()
    for node in tree.body[1:]:
        if isinstance(node, ast.If):  # __name__ == "__main__"
            continue
        if isinstance(node, ast.ImportFrom) and node.module in {f"examples.{part}" for part in parts}:
            dropped |= set(range(node.lineno - 1, node.end_lineno))
            continue
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))]) - 1
        while lines[first - 1].startswith("#"):
            first -= 1
        if found and found[-1][0] == kind(node) and first - found[-1][2] < 3:
            first = found.pop()[1]
        found.append((kind(node), first, node.end_lineno))
    return [code("\n".join(lines[n] for n in range(first, end) if n not in dropped)) for _, first, end in found]


def percent(name: str) -> str:
    """A notebook in percent format."""
    parts = NOTEBOOKS[name]
    picture = f"![what it draws](../pictures/{name}.png)"
    docstrings = {part: ast.get_docstring(ast.parse((EXAMPLES / f"{part}.py").read_text("utf-8"))) for part in parts}
    made = [text(f"{title(docstrings[name], '#')}\n\n{picture}"), code(SETUP)]
    for part in parts:
        if part != name:
            made.append(text(title(docstrings[part], "##")))
        elif len(parts) > 1:
            made.append(text(f"## The example itself: `examples/{name}.py`"))
        made += cells(part, parts)
    made.append(
        text("## Run it\n\nWithout `--quick` it learns longer; `parser().print_help()` says what else there is.")
    )
    made += [code(SETTINGS.format(name=name), ' tags=["parameters"]'), code(RUN), code(SHOW)]
    return "\n\n".join(made) + "\n"


def notebook(name: str) -> nbformat.NotebookNode:
    """The notebook, the same each time: cells have the numbers of their places."""
    made = jupytext.reads(percent(name), fmt="py:percent")
    for n, cell in enumerate(made.cells):
        cell.id = f"{name}-{n}"
        cell.metadata.pop("lines_to_next_cell", None)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    made.nbformat, made.nbformat_minor = 4, 5
    nbformat.validate(made)
    return made


def written(name: str) -> str:
    return nbformat.writes(notebook(name)) + "\n"


def main() -> None:
    for name in NOTEBOOKS:
        (HERE / f"{name}.ipynb").write_text(written(name), encoding="utf-8")


if __name__ == "__main__":
    main()
