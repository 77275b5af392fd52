"""Reviews to classify: of the French grammars, rt-polarity, IMDb or a file of the user's; words, vectors and batches.

No text stands in two parts, whatever its spaces and capitals: of equal ones the first is kept, and of a set that has a
test part of its own (IMDb) the training part gives way. The vocabulary is made from the training part only.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pooch
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from examples import common, french, products
from examples.common import BadData
from examples.french import Review

SETS = ("french", "products", "rt-polarity", "imdb", "file")
RT_POLARITY = (  # Pang and Lee, Seeing stars, ACL 2005; the archive that Hugging Face's datasets fetch
    "https://storage.googleapis.com/seldon-datasets/sentence_polarity_v1/rt-polaritydata.tar.gz",
    "a05befe52aafda71d458d188a1c54506a998b1308613ba76bbda2e5029409ce9",
)
IMDB = (  # Maas et al., Learning word vectors for sentiment analysis, ACL 2011
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
)
WORD = re.compile(r"(?:[cdjlmnst]|qu)'(?=\w)|\w+(?:['-]\w+)*|[^\w\s]")  # l' and n' are words, isn't is one
PADDING, UNKNOWN = 0, 1
LEAST = 20  # reviews of each kind, so that every part has some
HARD = (  # for the two English sets
    ("not a good film .", 0),
    ("not bad at all .", 1),
    ("despite a promising start , the film is a mess .", 0),
    ("despite a slow start , the film is a delight .", 1),
    ("the film starts well , but it soon becomes dull and predictable .", 0),
    ("it starts as a dull comedy , but becomes moving and wise .", 1),
    ("i expected a masterpiece and got a tedious exercise .", 0),
    ("it never fails to entertain .", 1),
    ("neither funny nor moving .", 0),
    ("the acting is good , but the script is not .", 0),
    ("far from perfect , yet worth seeing .", 1),
    ("what could have been a warm and funny film is only loud .", 0),
)


def words(text: str) -> list[str]:
    return WORD.findall(text.lower().replace("’", "'"))


def load(asked: argparse.Namespace) -> tuple[list[Review], list[Review], list[Review]]:
    """Training, validation and test part of the set `asked.data`; it lies at `asked.path`, or is made or downloaded."""
    test: list[Review] = []
    if asked.data == "french":
        found = french.reviews(asked.reviews or 8000, asked.seed)
    elif asked.data == "products":
        found = french.reviews(asked.reviews or 8000, asked.seed, products.PRODUCTS, products.HARD)
    elif asked.data == "imdb":
        found, test = imdb(asked.path or Path(common.fetch(*IMDB)))
    else:
        found = from_file(asked.path or rt_polarity(), asked.encoding)
    test = distinct(test)
    found = distinct(found, without=test)
    if asked.reviews and asked.reviews < len(found):
        found = random.Random(asked.seed).sample(found, asked.reviews)
    counts = Counter(review.label for review in found)
    if min(counts[0], counts[1]) < LEAST:
        source = asked.path or asked.data
        raise BadData(f"{source}: {counts[1]} good and {counts[0]} bad reviews, at least {LEAST} of each are needed")
    if not test:
        found, test = parts(found, 0.1, asked.seed)
    train, validation = parts(found, 0.1, asked.seed)
    return train, validation, test


def parts(reviews: list[Review], second: float, seed: int) -> list[list[Review]]:
    """Two parts by chance, as good and as bad as the whole."""
    return train_test_split(reviews, test_size=second, random_state=seed, stratify=[review.label for review in reviews])


def distinct(reviews: list[Review], without: Iterable[Review] = ()) -> list[Review]:
    """Of reviews with the same words the first, and none that stands in `without` or has no word."""
    seen, kept = {""} | {" ".join(words(review.text)) for review in without}, []
    for review in reviews:
        if (key := " ".join(words(review.text))) not in seen:
            seen.add(key)
            kept.append(review)
    return kept


def rt_polarity() -> Path:
    """The path of the downloaded set: one of its two files."""
    return next(Path(file) for file in common.fetch(*RT_POLARITY, pooch.Untar()) if file.endswith(".pos"))


def from_file(path: Path, encoding: str) -> list[Review]:
    """A table (CSV, or TSV by its name) with the columns text and label (1: good, 0: bad), or one of two files NAME.pos
    and NAME.neg with a review per line."""
    codec = {"utf-8": "utf-8-sig"}.get(encoding, encoding)
    if path.suffix in (".pos", ".neg"):
        both = ((path.with_suffix(suffix), label) for suffix, label in ((".neg", 0), (".pos", 1)))
        return [
            Review(line.strip(), label)
            for file, label in both
            for line in common.read_text(file, codec).split("\n")
            if line.strip()
        ]
    table = csv.DictReader(
        io.StringIO(common.read_text(path, codec), newline=""), delimiter="\t" if path.suffix == ".tsv" else ","
    )
    found = []
    try:
        if not {"text", "label"} <= set(table.fieldnames or ()):
            raise BadData(f"{path}: columns text and label wanted, but found {', '.join(table.fieldnames or ())}")
        for row in table:
            if row["text"] is None or row["label"] not in ("0", "1"):
                raise BadData(f"{path}, line {table.line_num}: label 0 or 1 wanted, but found {row['label']!r}")
            found.append(Review(row["text"], int(row["label"])))
    except csv.Error as error:
        raise BadData(f"{path}, line {table.line_num}: {error}") from error
    return found


def imdb(archive: Path) -> tuple[list[Review], list[Review]]:
    """Training and test part, each 25,000 reviews, straight from the archive."""
    found = {"train": [], "test": []}
    try:
        with tarfile.open(archive, "r:gz") as files:
            for member in common.progress(files, "reviews"):
                place = re.fullmatch(r"aclImdb/(train|test)/(pos|neg)/\w+\.txt", member.name)
                if place:
                    text = files.extractfile(member).read().decode("utf-8").replace("<br />", " ")
                    found[place[1]].append(Review(text, int(place[2] == "pos")))
    except (tarfile.TarError, zlib.error, EOFError, OSError, UnicodeDecodeError) as error:
        raise BadData(f"{archive}: {error}") from error
    return found["train"], found["test"]


class Vocabulary:
    """Words and their numbers; 0 is padding, 1 an unknown word."""

    def __init__(self, known: list[str]) -> None:
        self.known = known
        self.numbers = {word: number for number, word in enumerate(known)}

    @classmethod
    def of(cls, reviews: list[Review], size: int) -> Vocabulary:
        """The most frequent words. One that occurs once stays unknown, so that the unknown word is trained too."""
        counts = Counter(word for review in reviews for word in words(review.text))
        frequent = [word for word, count in counts.most_common(size - 2) if count > 1]
        return cls(["<padding>", "<unknown>", *frequent])

    def encode(self, text: str, length: int) -> Tensor:
        """The numbers of its last words, at most `length`: what a review comes to stands at its end."""
        return torch.tensor([self.numbers.get(word, UNKNOWN) for word in words(text)[-length:]] or [UNKNOWN])


def read_vectors(path: Path, vocabulary: Vocabulary, size: int) -> dict[int, Tensor]:
    """By number, the vectors of known words in a file of GloVe, FastText or word2vec, as text: a line is a word and
    `size` numbers; a first line of two numbers, which FastText writes, is none."""
    found = {}
    for n, line in enumerate(common.read_text(path).splitlines(), 1):
        word, *numbers = line.rstrip().split(" ")
        if n == 1 and len(numbers) == 1:
            continue
        if len(numbers) != size:
            raise BadData(f"{path}, line {n}: {size} numbers wanted, as --embedding says, but found {len(numbers)}")
        if word in vocabulary.numbers:
            try:
                found[vocabulary.numbers[word]] = torch.tensor([float(number) for number in numbers])
            except ValueError as error:
                raise BadData(f"{path}, line {n}: {error}") from error
    if not found:
        raise BadData(f"{path}: none of the words")
    return found


def batch(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """tokens_BT, padded behind, lengths_B and labels_B."""
    tokens, labels = zip(*rows, strict=True)
    lengths = torch.tensor([len(row) for row in tokens])
    return pad_sequence(tokens, batch_first=True, padding_value=PADDING), lengths, torch.tensor(labels).float()
