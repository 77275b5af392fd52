"""Drawings of the code as SVG: which file of a folder imports or includes which, read from the sources.

Arrows that follow from others (A to C, where A leads to B and B to C) are left out. Files stand in rows: each below all
that use it. Folders outside are boxes of their own at the bottom.
"""

import ast
import html
import posixpath
import re
import statistics

INCLUDE = re.compile(r'^\s*#\s*include "(.+)"', re.MULTILINE)
UNIT, HEIGHT, GAP, LEVEL, MARGIN = 7.8, 28, 14, 70, 8  # of a letter, a box, between boxes, between rows, around
NARROW, WIDTH = 420, 680  # of a drawing at least, of a row at most: that of a page's text


def python_uses(path, root):
    """The files of the package that a Python file imports when it is imported itself."""
    found = set()
    waiting = list(ast.parse(path.read_text("utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Try, ast.If)):
            waiting += [*node.body, *node.orelse]
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for name in node.names:
            files = (base / f"{name.name}.py", base / name.name / "__init__.py", base.with_suffix(".py"))
            found.add(next((file for file in files if file.exists()), base / "__init__.py"))
    return {file for file in found if file.exists()} - {path}


def cpp_uses(path, root):
    """The files that a C++ file includes, those of the sources only."""
    found = {(path.parent / name).resolve() for name in INCLUDE.findall(path.read_text("utf-8"))}
    return {file for file in found if file.is_relative_to(root)} - {path}


USES = {".py": python_uses, ".h": cpp_uses, ".cpp": cpp_uses}


def uses(root, folder):
    """Each source file below a folder, and those that it uses, as paths from the root."""
    files = [path for path in sorted((root / folder).rglob("*")) if path.suffix in USES and path.name != "generate.py"]
    return {
        path.relative_to(root).as_posix(): {used.relative_to(root).as_posix() for used in USES[path.suffix](path, root)}
        for path in files
    }


def graph(root, folder):
    """Boxes and arrows of a folder: its files, its subfolders, and the folders outside that they use."""

    def box(path):
        inside = path.removeprefix(f"{folder}/")
        return inside.split("/")[0] if inside != path else posixpath.dirname(path)

    arrows = {}
    for path, used in uses(root, folder).items():
        arrows.setdefault(box(path), set()).update(box(file) for file in used)
    for target in set().union(*arrows.values()) - set(arrows):
        arrows[target] = set()
    left_out = {"__init__.py", folder.split("/")[0]}  # of the folder and of the package: they import everything
    return {name: targets - {name} - left_out for name, targets in arrows.items() if name not in left_out}


def folders(root, package):
    """Boxes and arrows of the folders of a package."""
    arrows = {}
    for path, used in uses(root, package).items():
        if path.count("/") > 1:
            box, targets = path.split("/")[1], {file.split("/")[1] for file in used if file.count("/") > 1}
            arrows.setdefault(box, set()).update(targets - {box})
    return arrows


def acyclic(arrows):
    """The arrows without those that close a circle, which are returned apart, to be drawn dashed."""
    back, state = set(), {}

    def visit(box):
        state[box] = "open"
        for target in sorted(arrows[box]):
            if state.get(target) == "open":
                back.add((box, target))
            elif target not in state:
                visit(target)
        state[box] = "done"

    for box in sorted(arrows, key=lambda box: (sum(box in targets for targets in arrows.values()), box)):
        if box not in state:
            visit(box)
    return {box: {t for t in targets if (box, t) not in back} for box, targets in arrows.items()}, back


def reduced(arrows):
    """The arrows without those that follow from others."""
    reach = {}

    def below(box):
        if box not in reach:
            reach[box] = arrows[box].union(*(below(target) for target in arrows[box]))
        return reach[box]

    return {box: {t for t in ts if not any(t in below(other) for other in ts - {t})} for box, ts in arrows.items()}


def rows_of(arrows):
    """The boxes by row, each below all that use it, and in a row near those that they are tied to."""
    level = dict.fromkeys(arrows, 0)
    for _ in arrows:
        for box, targets in arrows.items():
            for target in targets:
                level[target] = max(level[target], level[box] + 1)
    last = max(level.values())
    for box in arrows:
        if "/" in box and not arrows[box]:
            level[box] = last  # folders outside
    rows = [sorted(box for box in arrows if level[box] == n) for n in range(last + 1)]
    above = {box: [other for other, targets in arrows.items() if box in targets] for box in arrows}
    place = {box: (k + 0.5) / len(row) for row in rows for k, box in enumerate(row)}
    for ties in (above, arrows) * 4:
        for row in rows:
            middles = {box: statistics.fmean(place[b] for b in ties[box]) if ties[box] else place[box] for box in row}
            row.sort(key=lambda box, middles=middles: (middles[box], box))
            place |= {box: (k + 0.5) / len(row) for k, box in enumerate(row)}
    return rows


def broken(row, width_of):
    """A row in as many as it takes, of about the same number of boxes."""
    for count in range(1, len(row) + 1):
        parts = [row[len(row) * n // count : len(row) * (n + 1) // count] for n in range(count)]
        if all(sum(width_of[box] + GAP for box in part) <= WIDTH for part in parts):
            break
    return parts


def svg(arrows, title):
    """Boxes in rows with arrows between them; colours come from the page (site.css)."""
    straight, back = acyclic(arrows)
    straight = reduced(straight)
    width_of = {box: UNIT * len(box) + 16 for box in arrows}
    rows = [part for row in rows_of(straight) for part in broken(row, width_of)]
    total = max(NARROW, *(sum(width_of[box] + GAP for box in row) for row in rows)) + 2 * MARGIN
    at = {}
    for n, row in enumerate(rows):
        space = (total - 2 * MARGIN - sum(width_of[box] for box in row)) / (len(row) + 1)
        x = MARGIN + space
        for box in row:
            at[box] = x, MARGIN + n * LEVEL
            x += width_of[box] + space
    height = MARGIN * 2 + LEVEL * (len(rows) - 1) + HEIGHT
    parts = []
    for a, b in [*((box, target) for box in straight for target in sorted(straight[box])), *sorted(back)]:
        x, y, u, v = at[a][0] + width_of[a] / 2, at[a][1], at[b][0] + width_of[b] / 2, at[b][1]
        start, end = (y + HEIGHT, v - 4) if v > y else (y, v + HEIGHT + 4)
        half = (end - start) / 2
        path = f"M{x:.0f},{start:.0f} C{x:.0f},{start + half:.0f} {u:.0f},{end - half:.0f} {u:.0f},{end:.0f}"
        kind = "arrow back" if (a, b) in back else "arrow"
        parts.append(f'<path class="{kind}" d="{path}" marker-end="url(#tip)"/>')
    for box, (x, y) in at.items():
        kind = "box outside" if "/" in box else "box"
        parts.append(f'<rect class="{kind}" x="{x:.0f}" y="{y}" width="{width_of[box]:.0f}" height="{HEIGHT}" rx="4"/>')
        middle = f'x="{x + width_of[box] / 2:.0f}" y="{y + HEIGHT / 2 + 4:.0f}"'
        parts.append(f"<text {middle}>{html.escape(box)}</text>")
    tip = '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    tip += '<path d="M0,0 L8,4 L0,8 z"/></marker></defs>'
    return (
        f'<div class="drawing"><svg viewBox="0 0 {total:.0f} {height}" width="{total:.0f}" role="img" '
        f'aria-label="{html.escape(title)}">{tip}{"".join(parts)}</svg></div>\n'
    )


def drawing(root, folder):
    """The drawing of a folder's files; of a whole package by its folders."""
    return svg(graph(root, folder) if "/" in folder else folders(root, folder), folder)
