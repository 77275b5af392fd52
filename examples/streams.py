"""A text and its streams of batches, with torch and the standard library alone: `make demo` installs little else."""

from __future__ import annotations

import sysconfig
import tokenize
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

STANDARD_LIBRARY = 2_000_000  # characters of the default text


class BadData(Exception):
    """Why data, a file or a folder cannot be used, in one line."""


def read_text(path: Path, encoding: str = "utf-8-sig") -> str:
    """A text file, or why it is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadData(f"{path}: {error.strerror or error}") from error
    if not data:
        raise BadData(f"{path}: the file is empty")
    if b"\0" in data:
        raise BadData(f"{path}: a binary file, not text")
    try:
        return data.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: not UTF-8 text (byte {error.start})") from error


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
        raise BadData(f"no sources of the standard library in {folder}; name a text")
    return text


class Streams(Dataset):
    """A text as B long streams side by side, cut into batches (T, B): each continues the one before it.

    Item n is the pair of inputs and of targets, one token later. `whole` keeps the last, shorter batch. Of the streams,
    this is every `of`-th from number `which` on.
    """

    def __init__(self, tokens: Tensor, T: int, B: int, *, whole: bool = False, which: int = 0, of: int = 1) -> None:
        length = (len(tokens) - 1) // B
        self.T, self.many = T, -(-length // T) if whole else length // T
        self.x_LB, self.y_LB = (
            tokens[shift : shift + length * B].view(B, length)[which::of].T.contiguous() for shift in (0, 1)
        )

    def __len__(self) -> int:
        return self.many

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        if not 0 <= n < self.many:
            raise IndexError(n)
        cut = slice(n * self.T, (n + 1) * self.T)
        return self.x_LB[cut], self.y_LB[cut]
