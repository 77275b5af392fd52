"""Real text for the character model: a file of the user's, or the sources of Python's own standard library."""

from __future__ import annotations

import sysconfig
import tokenize
from pathlib import Path

STANDARD_LIBRARY = 2_000_000  # characters of the default text


class BadText(Exception):
    """Why a text cannot be learned, in one line."""


def standard_library(limit: int = STANDARD_LIBRARY) -> str:
    """The top-level modules of the standard library in the order of their names, until there are `limit` characters."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts, length = [], 0
    for path in sorted(folder.glob("*.py")):
        with tokenize.open(path) as file:  # honours the encoding a source declares
            parts.append(file.read())
        length += len(parts[-1])
        if length >= limit:
            break
    text = "".join(parts)[:limit]
    if not text:
        raise BadText(f"no sources of the standard library in {folder}; name a text with --text FILE")
    return text


def read(path: Path) -> str:
    """The text of a UTF-8 file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadText(f"{path}: {error.strerror or error}") from error
    if not data:
        raise BadText(f"{path}: the file is empty")
    if b"\0" in data:
        raise BadText(f"{path}: a binary file, not text")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadText(f"{path}: not UTF-8 text (byte {error.start})") from error
