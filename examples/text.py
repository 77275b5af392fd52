"""Text for the character and word models: its sources, and its pieces as numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import WordLevelTrainer
from torch import Tensor

from examples import common, french, products
from examples.streams import read_text, standard_library

SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
LESSONS = {
    "hello": "hello",
    "sentence": "one small network reads one letter after another and guesses the one that follows",
}
TEXTS = ("python", *LESSONS, "shakespeare", "products")
PIECES = {"char": r"[\s\S]", "word": r" ?\w+|\s|[^\w\s]"}  # all pieces together are the text again
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # stands for what the training text does not have, as number 0


def read(data: str, path: Path | None = None) -> str:
    """The text of a file, or a named one: Python's sources, a few letters to learn by heart, a poet, or reviews."""
    if path:
        return read_text(path)
    if data == "shakespeare":
        return read_text(Path(common.fetch(SHAKESPEARE, SHAKESPEARE_SHA256)))
    if data == "products":
        return "".join(f"{review.text}\n" for review in french.reviews(4000, 0, products.PRODUCTS))
    return LESSONS[data] if data in LESSONS else standard_library()


def learn_pieces(text: str, level: str, most: int) -> Tokenizer:
    """The vocabulary of a training text: its characters, or its most frequent words, each with the space before it."""
    made = Tokenizer(WordLevel(unk_token=UNKNOWN))
    made.pre_tokenizer = Split(Regex(PIECES[level]), "isolated")
    trainer = WordLevelTrainer(vocab_size=most, special_tokens=[UNKNOWN], show_progress=False)
    made.train_from_iterator([text], trainer)
    return made


def encode(pieces: Tokenizer, text: str) -> Tensor:
    return torch.tensor(pieces.encode(text).ids, dtype=torch.int64)


def bigram_bits(learned: Tensor, judged: Tensor, different: int) -> float:
    """Bits per token by counting alone: 0.9 of how often it followed the one before, 0.1 of how often it came."""
    learned, judged = learned.numpy(), judged.numpy()
    single = np.bincount(learned, minlength=different) + 1
    pairs, counts = np.unique(learned[:-1] * different + learned[1:], return_counts=True)
    asked = judged[:-1] * different + judged[1:]
    place = np.searchsorted(pairs, asked).clip(max=len(pairs) - 1)
    followed = np.where(pairs[place] == asked, counts[place], 0) / single[judged[:-1]]
    return float(-np.log2(0.9 * followed + 0.1 * single[judged[1:]] / single.sum()).mean())
