"""README.md and docs/: their Python blocks run, their links lead somewhere, and the README stays short."""

import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
LINKED = {**PAGES, "CONTRIBUTING.md": ROOT / "CONTRIBUTING.md", "examples/README.md": ROOT / "examples/README.md"}


def blocks(text, language):
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def anchor(heading):
    """The fragment by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# torch's own, in its exporter to ONNX
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:# The axis name")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if blocks(path.read_text("utf-8"), "python")])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, in one namespace and in an empty folder."""
    text = PAGES[page].read_text("utf-8")
    if "torch.onnx.export" in text and not importlib.util.find_spec("onnxscript"):
        pytest.skip("onnxscript is not installed")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for n, block in enumerate(blocks(text, "python")):
        exec(compile(block, f"{page}, Python block {n}", "exec"), names)


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_files_and_headings(page):
    text = LINKED[page].read_text("utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, fragment = link.partition("#")
        if name.startswith("https://"):
            continue
        target = LINKED[page].parent / name if name else LINKED[page]
        assert target.exists(), f"{page} links to {link}"
        headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE) if fragment else []
        assert not fragment or fragment in map(anchor, headings), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_exist(page):
    for name in re.findall(r"(?<![\w/.])rnnkernels(?:\.[A-Za-z_]\w*)+", PAGES[page].read_text("utf-8")):
        assert pkgutil.resolve_name(name) is not None


def test_the_readme_is_short_and_names_the_tests():
    text = PAGES["README.md"].read_text("utf-8")
    assert len(text.splitlines()) <= 200 and "make test" in text
