"""README.md and docs/: their blocks run, their links lead somewhere, and what pages show of the code and the results is
there (docs/site). `make docs` builds the site itself."""

import importlib.util
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnnkernels
from rnnkernels import backends

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs/site"))
import drawings  # noqa: E402
import hook  # noqa: E402
import results  # noqa: E402

PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))}
LINKED = {**PAGES, "CONTRIBUTING.md": ROOT / "CONTRIBUTING.md", "examples/README.md": ROOT / "examples/README.md"}
TEXTS = {name: path.read_text("utf-8") for name, path in LINKED.items()}


def blocks(text, language):
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def having(language):
    return [name for name in PAGES if blocks(TEXTS[name], language)]


def anchor(heading):
    """The fragment by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_language_that_is_tried(page):
    assert set(re.findall(r"^```(.*)\n(?:.*\n)*?```$", TEXTS[page], re.MULTILINE)) <= {"python", "pycon", "sh"}


# torch's own, in its exporter to ONNX
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:# The axis name")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own jvp uses it
@pytest.mark.parametrize("page", having("python"))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, in one namespace and in an empty folder."""
    if "torch.onnx.export" in TEXTS[page] and not importlib.util.find_spec("onnxscript"):
        pytest.skip("onnxscript is not installed")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for n, block in enumerate(blocks(TEXTS[page], "python")):
        exec(compile(block, f"{page}, Python block {n}", "exec"), names)


@pytest.mark.skipif(backends.EXTENSION_ERROR is not None, reason="the C++ extension is not there")
@pytest.mark.parametrize("page", having("pycon"))
def test_sessions_print_what_stands_there(page):
    """Expressions after >>>, on the machine's own instruction set, whose ways may differ from those of avx512."""
    own = torch.ops.rnnkernels.instruction_sets().split(",")[0]
    for block in blocks(TEXTS[page], "pycon"):
        for said in re.split(r"^>>> ", block, flags=re.MULTILINE)[1:]:
            source, expected = said.rstrip().split("\n", 1)
            printed = repr(eval(source, {"rnnkernels": rnnkernels, "torch": torch}))
            found, wanted = (
                re.sub(rf"( cpp +){name}: .*", r"\1", text) for name, text in ((own, printed), ("avx512", expected))
            )
            assert found == wanted


@pytest.mark.parametrize("page", [name for name in LINKED if blocks(TEXTS[name], "sh")])
def test_commands_can_be_called(page):
    """Shells can read them; the programs, targets and extras that they name are there."""
    makefile, project = (ROOT / "Makefile").read_text("utf-8"), (ROOT / "pyproject.toml").read_text("utf-8")
    for block in blocks(TEXTS[page], "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                assert re.search(rf"^{words[1]}\b.*:", makefile, re.MULTILINE), line
            for module in re.findall(r"python3? -m ([\w.]+)", line):
                assert importlib.util.find_spec(module), line
            for file in re.findall(r"python3? ([\w/]+\.py)", line):
                assert (ROOT / file).exists(), line
            for extra in re.findall(r"\.\[([\w,-]+)\]", line):
                assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extra.split(",")), line


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        name, _, fragment = link.partition("#")
        if name.startswith("https://"):
            continue
        target = LINKED[page].parent / name if name else LINKED[page]
        assert target.exists(), f"{page} links to {link}"
        headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE) if fragment else []
        assert not fragment or fragment in map(anchor, headings), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_exist(page):
    for name in re.findall(r"(?<![\w/.])rnnkernels(?:\.[A-Za-z_]\w*)+", TEXTS[page]):
        assert pkgutil.resolve_name(name) is not None


def test_the_api_has_every_public_name():
    documented = set(re.findall(r"rnnkernels\.([\w.]+)", TEXTS["docs/api.md"]))
    tops = {name.split(".")[0] for name in documented}
    assert set(rnnkernels.__all__) <= tops, set(rnnkernels.__all__) - tops


def test_the_readme_is_short_names_the_tests_and_has_the_means():
    text = TEXTS["README.md"]
    assert len(text.splitlines()) <= 150 and "make test" in text
    for name, said in (
        ("cpu-xeon", "inference {} on one thread and {} on two, training {} and {}."),
        ("cpu-epyc", "the means are {}, {}, {} and {}."),
    ):
        lines = results.means(results.read(ROOT, name), "").splitlines()
        means = [line.split("|")[4].strip() for line in lines if line.startswith("| float32")]
        assert said.format(*means) in " ".join(text.split())


@pytest.mark.parametrize("page", [name for name in PAGES if "<!-- show:" in TEXTS[name]])
def test_what_pages_show_is_there(page):
    text = hook.filled(page, TEXTS[page])
    assert "<!-- show:" not in text and len(text) > len(TEXTS[page])
    assert not [path for path in hook.leads_to(page) if not (ROOT / path).exists()]


def test_links_are_those_of_the_site():
    """From a page of the site to another, to a file that was outside docs/, and to the start; not within blocks."""
    text = "[a](../speed.md#means) [b](../../benchmarks/x.md) [c](https://d/e.md)\n```\n[f](g.md)\n```\n[h](../../README.md)"
    found = hook.relinked(text, "docs/how/nn.md", hook.site_path)
    assert found == "[a](speed.md#means) [b](benchmarks/x.md) [c](https://d/e.md)\n```\n[f](g.md)\n```\n[h](index.md)"


def test_tables_have_the_numbers_of_the_results():
    """The means and workloads of two rows, one of them losing; hand-made."""

    def row(workload, threads, seconds, torchs, others):
        providers = {"torch": {"seconds": torchs}, "jax": {"seconds": others}}
        providers["rnnkernels"] = {
            "seconds": seconds,
            "ratio": torchs / seconds,
            "ratio_best": min(torchs, others) / seconds,
        }
        shape = {"workload": workload, "kind": "GRU", "T": 10, "B": 2, "I": 3, "H": 4, "L": 1, "dtype": "float32"}
        best = "torch" if torchs < others else "jax"
        return shape | {"mode": "infer", "threads": threads, "providers": providers, "best_peer": best}

    machine = {"command": "run", "cpu": "C", "cores": 2, "torch": "2", "commit": "abc", "date": "2026-01-02T03:04"}
    found = {"machine": machine, "rows": [row("a", 1, 0.002, 0.008, 0.009), row("b", 1, 0.001, 0.004, 0.0005)]}
    lines = results.means(found, "x").splitlines()
    assert lines[2] == "| float32 | inference, 1 thread | 2 | 4.00 | 4.00 (a) | 1.41 | **0.50** (b) |"
    assert lines[4] == "`run` on C, 2 cores; torch 2; commit abc, 2026-01-02 ([all rows](x.md))."
    lines = results.workloads(found, "x").splitlines()
    assert lines[2] == "| a | GRU, T 10, B 2, 3→4, L 1 | 2.00 ms, 4.00 |"
    assert lines[3] == "| b | GRU, T 10, B 2, 3→4, L 1 | 1.00 ms, 4.00, jax **0.50** |"


def test_tables_of_options_are_those_that_benchmarks_write():
    """The site's means over the plain layer are those of the report in Markdown beside the results."""
    written = (ROOT / "benchmarks/results/variants-cpu.md").read_text("utf-8")
    shown = results.over_plain(results.read(ROOT, "variants-cpu"), "x")
    for line in shown.splitlines()[2:-2]:
        option, *found = (cell.strip() for cell in line.strip("|").split("|"))
        for mode, mean, most in zip(("infer", "train"), found[::2], found[1::2], strict=True):
            if mean != "–":
                value, at = re.fullmatch(r"([\d.]+) \((.+)\)", most).groups()
                assert re.search(rf"\| {re.escape(option)} \| {mode} \| \d+ \| {mean} \| {value} \| {at} \|", written)


def test_drawings_are_of_the_imports(tmp_path):
    """Arrows from who imports; those that follow from others left out; a circle of includes dashed."""
    for name, text in {
        "p/w/a.py": "from . import b\nfrom .c import x\nfrom ..v.d import y\n",
        "p/w/b.py": "from .c import x\ntry:\n    from ..v.d import y\nexcept ImportError:\n    y = 0\n",
        "p/w/c.py": "def late():\n    from . import a\n",
        "p/v/d.py": "import json\n",
        "q/e/f.h": '#include "../g/h.h"\n',
        "q/g/h.h": '#include "../e/f.h"\n#include <vector>\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    arrows = drawings.graph(tmp_path, "p/w")
    assert arrows == {"a.py": {"b.py", "c.py", "p/v"}, "b.py": {"c.py", "p/v"}, "c.py": set(), "p/v": set()}
    assert drawings.reduced(arrows)["a.py"] == {"b.py"}
    assert drawings.rows_of(drawings.reduced(arrows)) == [["a.py"], ["b.py"], ["c.py", "p/v"]]
    assert drawings.folders(tmp_path, "p") == {"w": {"v"}, "v": set()}
    straight, back = drawings.acyclic(drawings.folders(tmp_path, "q"))
    assert len(back) == 1 and sum(map(len, straight.values())) == 1
    drawn = drawings.drawing(tmp_path, "q")
    assert drawn.count('class="arrow"') == 1 and drawn.count('class="arrow back"') == 1 and ">e</text>" in drawn


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="the extra docs is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", ROOT / "docs/site/mkdocs.yml", "-d", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
    text = (tmp_path / "api/index.html").read_text("utf-8")
    assert "G*H" in text and "<em>" not in text and ":class:" not in text
    shown = re.sub(r"<[^>]*>", "", text)
    assert "proj_size: int = 0" in shown and "*args" not in shown
