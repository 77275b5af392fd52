"""Text for the character and word models: where it comes from, its pieces as numbers, and streams of batches."""

from __future__ import annotations

import sysconfig
import tokenize
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import WordLevelTrainer
from torch import Tensor
from torch.utils.data import Dataset

from examples import common
from examples.common import BadData

STANDARD_LIBRARY = 2_000_000  # characters of the default text
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PIECES = {"char": r"[\s\S]", "word": r" ?\w+|\s|[^\w\s]"}  # all pieces together are the text again
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # stands for what the training text does not have, as number 0


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


def read(data: str, path: Path | None = None) -> str:
    """The text of a file, or a named one: python, hello, shakespeare."""
    if path:
        return common.read_text(path)
    if data == "shakespeare":
        return common.read_text(Path(common.fetch(SHAKESPEARE, SHAKESPEARE_SHA256)))
    return standard_library() if data == "python" else "hello"


def learn_pieces(text: str, level: str, most: int) -> Tokenizer:
    """The vocabulary of a training text: its characters, or its most frequent words, each with the space before it."""
    made = Tokenizer(WordLevel(unk_token=UNKNOWN))
    made.pre_tokenizer = Split(Regex(PIECES[level]), "isolated")
    trainer = WordLevelTrainer(vocab_size=most, special_tokens=[UNKNOWN], show_progress=False)
    made.train_from_iterator([text], trainer)
    return made


def encode(pieces: Tokenizer, text: str) -> Tensor:
    return torch.tensor(pieces.encode(text).ids, dtype=torch.int64)


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


def bigram_bits(learned: Tensor, judged: Tensor, different: int) -> float:
    """Bits per token by counting alone: 0.9 of how often it followed the one before, 0.1 of how often it came."""
    learned, judged = learned.numpy(), judged.numpy()
    single = np.bincount(learned, minlength=different) + 1
    pairs, counts = np.unique(learned[:-1] * different + learned[1:], return_counts=True)
    asked = judged[:-1] * different + judged[1:]
    place = np.searchsorted(pairs, asked).clip(max=len(pairs) - 1)
    followed = np.where(pairs[place] == asked, counts[place], 0) / single[judged[:-1]]
    return float(-np.log2(0.9 * followed + 0.1 * single[judged[1:]] / single.sum()).mean())
