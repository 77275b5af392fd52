"""Dates in French and English words with their ISO dates, for the seq2seq example: made with babel, split by day."""

from __future__ import annotations

import datetime
from typing import NamedTuple

import numpy as np
import torch
from babel.dates import format_date
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from examples.common import BadData

PAD, START, END = range(3)
WRITTEN = ["<pad>", "<start>", "<end>", *"0123456789-"]
FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
STYLES = [(locale, style) for locale in ("fr", "en", "en_GB") for style in ("full", "long", "medium")]
STYLES += [("fr", "EEE d MMM y"), ("en", "EEE, MMM d, y"), ("en_GB", "EEE d MMM y")]
BATCH = 64


class Sentence(NamedTuple):
    text: str
    iso: str
    locale: str


def sentences(sizes: list[int], seed: int) -> list[list[Sentence]]:
    """Lists of dates in words, as long as asked; no day is in two lists or twice in one, each in a style by chance."""
    if sum(sizes) > (LAST - FIRST).days + 1:
        raise BadData(f"{sum(sizes)} different dates are asked for; from {FIRST} to {LAST} are fewer")
    random = np.random.default_rng(seed)
    days = iter(random.permutation((LAST - FIRST).days + 1))
    lists = []
    for size in sizes:
        lists.append([])
        for _ in range(size):
            date = FIRST + datetime.timedelta(days=int(next(days)))
            locale, style = STYLES[random.integers(len(STYLES))]
            lists[-1].append(Sentence(format_date(date, style, locale=locale), date.isoformat(), locale))
    return lists


def batched(data: list[Sentence], characters: str, shuffle: bool = False, size: int = BATCH) -> DataLoader:
    """Batches (read_BT; lengths_B; written_BT from <start> to <end>). Character n of `characters` is read as n + 2,
    others as 1; 0 is padding."""

    def collate(some: list[Sentence]) -> tuple[Tensor, Tensor, Tensor]:
        read = [torch.tensor([characters.find(c) + 2 for c in sentence.text]) for sentence in some]  # find: -1 if not
        written = [[START, *map(WRITTEN.index, sentence.iso), END] for sentence in some]
        return pad_sequence(read, batch_first=True), torch.tensor([len(row) for row in read]), torch.tensor(written)

    return DataLoader(data, size, shuffle=shuffle, collate_fn=collate)
