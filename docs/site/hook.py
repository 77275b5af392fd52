"""Hook of the site: fills in what pages show of the code and the results, and leads links where the site has a file.

A page says `<!-- show: KIND ARGUMENTS -->` on a line of its own; SHOWN has the kinds. Files of the repository outside
docs/ that a page links to (results, examples, CONTRIBUTING.md) become files of the site under their own paths.
"""

import ast
import json
import posixpath
import re
from pathlib import Path

import drawings
import results

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)")  # in Markdown, without its fragment
SHOW = re.compile(r"^<!-- show: (\S+) (.+) -->$", re.MULTILINE)
FIRST = {".py": re.compile(r'"""(.*?)"""', re.DOTALL)} | dict.fromkeys((".h", ".cpp"), re.compile(r"((?://.*\n)+)"))
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def relinked(text, source, target):
    """The text with each relative link replaced by target(what it leads to, as a path of the repository)."""
    base = posixpath.dirname(source)

    def replace(part):
        return LINK.sub(lambda link: target(posixpath.normpath(posixpath.join(base, link[0]))), part)

    blocks = FENCED.findall(text)
    outside = FENCED.split(text)
    return "".join(replace(part) + block for part, block in zip(outside, [*blocks, ""], strict=True))


def section(page, file, *words):
    """What a Markdown file of the repository says under a heading, up to the next one."""
    title, text = " ".join(words), (ROOT / file).read_text("utf-8")
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f"{file} has no heading '{title}'")
    return relinked(found[2].strip(), file, lambda path: posixpath.relpath(path, posixpath.dirname(page)))


def named(node):
    """The names that a statement defines."""
    return {getattr(node, "name", None)} | {getattr(target, "id", None) for target in getattr(node, "targets", ())}


def source(page, file, name=None):
    """The source of a file, or of what a Python file defines by a name, as a block."""
    text = (ROOT / file).read_text("utf-8")
    if name:
        node = next(node for node in ast.parse(text).body if name in named(node))
        text = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
    return f"```{'cpp' if file.endswith('.cpp') else 'python'}\n{text.strip()}\n```\n"


def files(page, *folders):
    """The files of folders, each with the first sentence that it says of itself."""
    found = [path for folder in folders for path in sorted((ROOT / folder).iterdir()) if path.suffix in FIRST]
    lines = []
    for path in found:
        said = FIRST[path.suffix].match(path.read_text("utf-8"))[1]
        said = " ".join(re.sub(r"^// ?|:\w+:(?=`)", "", said, flags=re.MULTILINE).replace("``", "`").split())
        sentence = re.match(r"(.*?)\.?(?:$|(?<=\.) )", said)[1]
        lines.append([f"`{path.relative_to(ROOT).as_posix()}`", sentence.replace("|", "\\|")])
    return results.table([["file", "what it is"], *lines])


def notebook(page, file):
    """The cells of a notebook."""
    parts = []
    for cell in json.loads((ROOT / file).read_text("utf-8"))["cells"]:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":  # a list begins after an empty line there
            parts.append(re.sub(r"^(?!- |  )(.+)\n(?=- )", r"\1\n\n", text, flags=re.MULTILINE))
        else:
            parts.append(f"```python\n{text}\n```")
    return relinked("\n\n".join(parts), file, lambda path: posixpath.relpath(path, posixpath.dirname(page)))


def drawing(page, folder):
    return drawings.drawing(ROOT, folder)


def table(kind):
    def show(page, name):
        base = posixpath.relpath("benchmarks/results", posixpath.dirname(page))
        return kind(results.read(ROOT, name), f"{base}/{name}")

    return show


SHOWN = {"section": section, "source": source, "files": files, "drawing": drawing, "notebook": notebook}
SHOWN |= {name: table(kind) for name, kind in results.KINDS.items()}


def filled(page, text):
    """The text of a page, given by its path in the repository, with all that it shows."""
    return SHOW.sub(lambda found: SHOWN[found[1]](page, *found[2].split()), text)


def site_path(path):
    """Where the site has a file of the repository. README.md is the first page, in other words."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def leads_to(path):
    """The files of the repository that a page, with all that it shows, links to."""
    found = set()
    relinked(filled(path, (ROOT / path).read_text("utf-8")), path, lambda target: found.add(target) or target)
    return found


def on_files(files, config):
    from mkdocs.structure.files import File

    waiting = {f"docs/{file.src_uri}" for file in files.documentation_pages()}
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        new = leads_to(path) - seen - {"README.md"} if path.endswith(".md") else set()
        seen |= new
        waiting |= new
        if not path.startswith("docs/"):  # mkdocs has those already
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(text, page, config, files):
    uri = page.file.src_uri
    inside = (ROOT / "docs" / uri).exists()
    path = f"docs/{uri}" if inside else uri
    return relinked(
        filled(path, text), path, lambda target: posixpath.relpath(site_path(target), posixpath.dirname(uri))
    )
