"""Sentences with named entities for the tagging example: a French grammar of made-up names, CoNLL files, and F1.

A tag is O (no name), B-TYPE (a name's first word) or I-TYPE (a further word of it), of the types PER, LOC and ORG.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from examples.common import BadData, read_text

Sentence = list[tuple[str, str]]  # words with their tags

# A word of a name is a stem and an ending. A stem says nothing, and an ending is not always its type's own:
# as with Arnac, Morville or Lefort, which may be people, places or firms, the rest must come from the words around.
STARTS = "Ab Bel Cour Dor Es Fal Gar Her Jon Ker Lam Mar Nol Or Pel Quin Ros Sar Ter Ur Val Vil Yv Zel".split()
MIDDLES = "a ari bo cel dri e eli fon gui i imo la lon mi na ondi o pra ri so tan u vi".split()
ENDINGS = {"PER": ["eau", "ier", "otte", "and"], "LOC": ["ville", "ac", "court", "gny"], "ORG": ["tech", "ex", "oma"]}
OWN_ENDING = 0.8
# Names whose context does not tell the type (NAME) have four or five words: their endings together tell it.
TEMPLATES = """
Mme PER travaille chez ORG depuis mars .
M. PER a quitté LOC pour LOC .
PER , qui vit à LOC , dirige ORG .
la société ORG ouvre une usine à LOC .
ORG a nommé PER à la tête de son usine de LOC .
le maire de LOC , PER , a reçu les salariés de ORG .
à LOC , il pleut depuis lundi et ORG reste fermé .
PER et PER ont racheté ORG .
les ventes de ORG à LOC ont déçu PER .
lundi , personne ne savait rien de plus à LOC .
le vin de cette année est bon , dit M. PER .
on attend PER à LOC .
tout le monde parle de NAME .
NAME a beaucoup changé depuis mars .
lundi , NAME sera dans tous les journaux .
personne ne connaissait NAME .
on aime NAME , on aime aussi NAME .
""".strip().splitlines()


class Names:
    """Makes names of stems that the other sets (training, validation, test) never use."""

    def __init__(self, random: np.random.Generator, part: int, parts: int = 3) -> None:
        stems = [start + middle for start in STARTS for middle in MIDDLES]
        np.random.default_rng(0).shuffle(stems)  # the same for all, so that the parts do not overlap
        self.random, self.stems = random, stems[part::parts]

    def word(self, kind: str) -> str:
        others = [other for other in ENDINGS if other != kind]
        kind = kind if self.random.random() < OWN_ENDING else self.random.choice(others)
        return str(self.random.choice(self.stems)) + str(self.random.choice(ENDINGS[kind]))

    def name(self, kind: str, long: bool = False) -> list[str]:
        """One to three words, or where it is to be long four or five."""
        if long:
            return [self.word(kind) for _ in range(self.random.integers(4, 6))]
        words = [self.word(kind) for _ in range(self.random.integers(1, 3))]
        if self.random.random() < 0.7:
            return words
        if kind == "PER":
            return [str(self.random.choice(["Jean", "Léa", "Luc", "Zoé"])), *words]
        return ["Saint", *words] if kind == "LOC" else [*words, "et", "Fils"]


def tagged(words: Iterable[str], kind: str) -> Sentence:
    return [(str(word), f"{'I' if n else 'B'}-{kind}") for n, word in enumerate(words)]


def sentence(names: Names) -> Sentence:
    """A sentence of a template.

    A long name has one type, whatever the ending of each of its words: that a tag must go with the tag before it is
    what the transitions of a CRF say, and what words that get their tags one by one do not know.
    """
    words: Sentence = []
    for word in str(names.random.choice(TEMPLATES)).split():
        kind = str(names.random.choice(list(ENDINGS))) if word == "NAME" else word
        words += tagged(names.name(kind, word == "NAME"), kind) if kind in ENDINGS else [(word, "O")]
    return words


def grammar(sizes: list[int], seed: int) -> list[list[Sentence]]:
    """Lists of sentences, as long as asked; the stem of a name stands in one list only."""
    return [
        [sentence(names) for _ in range(size)]
        for part, size in enumerate(sizes)
        for names in [Names(np.random.default_rng([seed, part]), part, len(sizes))]
    ]


def read_conll(path: Path) -> list[Sentence]:
    """Sentences of a CoNLL file: a word a line, its first column the word and its last the tag, empty lines between."""
    sentences: list[Sentence] = [[]]
    before = "O"
    for number, line in enumerate(read_text(path).splitlines(), 1):
        columns = line.split()
        if not columns or columns[0] == "-DOCSTART-":
            sentences.append([])
            before = "O"
            continue
        if len(columns) < 2:
            raise BadData(f"{path}, line {number}: a word and a tag expected, one column found")
        word, tag = columns[0], columns[-1]
        if tag != "O" and (tag[:2] not in ("B-", "I-") or not tag[2:]):
            raise BadData(f"{path}, line {number}: a tag is O, B-TYPE or I-TYPE, not {tag}")
        if tag[0] == "I" and before[1:] != tag[1:]:  # the older scheme (IOB1) begins names with I
            tag = "B" + tag[1:]
        sentences[-1].append((word, tag))
        before = tag
    return [words for words in sentences if words]


def divided(sentences: list[Sentence], path: Path, seed: int) -> list[list[Sentence]]:
    """Training, validation and test: 70, 15 and 15 % of the different sentences, in an order by chance."""
    different = list({tuple(word for word, _ in words): words for words in sentences}.values())
    if len(different) < 10:
        raise BadData(f"{path}: {len(different)} different sentences; at least 10 are needed")
    order = np.random.default_rng(seed).permutation(len(different))
    cuts = [int(0.7 * len(order)), int(0.85 * len(order))]
    parts = [[different[n] for n in part] for part in np.split(order, cuts)]
    if all(tag == "O" for sentence in parts[0] for _, tag in sentence):
        raise BadData(f"{path}: no names in the sentences to train on, every tag is O")
    return parts


class Name(NamedTuple):
    start: int
    end: int
    kind: str


def names_in(tags: list[str]) -> set[Name]:
    """The names that tags mark. An I where no name of its type goes on begins one, as in CoNLL's own evaluation."""
    found, start = set(), 0
    for n, tag in enumerate([*tags, "O"]):
        before = tags[n - 1] if n else "O"
        goes_on = tag[0] == "I" and before[1:] == tag[1:]
        if before != "O" and not goes_on:
            found.add(Name(start, n, before[2:]))
        if not goes_on:
            start = n
    return found


def possible(tags: list[str]) -> tuple[Tensor, Tensor]:
    """Which tag may follow which, and which may come first: an I only goes on with a name of its type."""
    follow = [[tag[0] != "I" or before[1:] == tag[1:] for tag in tags] for before in tags]
    return torch.tensor(follow), torch.tensor([tag[0] != "I" for tag in tags])


def impossible(tags: list[str]) -> int:
    """How many tags cannot stand where they stand: an I after nothing, or after a name of another type."""
    return sum(tag[0] == "I" and before[1:] != tag[1:] for before, tag in zip(["O", *tags], tags, strict=False))


def only(kind: str, tags: list[list[str]]) -> list[list[str]]:
    """The tags with names of one type only."""
    return [[tag if tag[2:] == kind else "O" for tag in row] for row in tags]


def scores(found: list[list[str]], wanted: list[list[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole names: place and type must be right."""
    pairs = [(names_in(p), names_in(q)) for p, q in zip(found, wanted, strict=True)]
    right, marked, there = (sum(map(len, sets)) for sets in zip(*((p & q, p, q) for p, q in pairs), strict=True))
    precision, recall = right / max(marked, 1), right / max(there, 1)
    return {"precision": precision, "recall": recall, "f1": 2 * right / max(marked + there, 1)}
