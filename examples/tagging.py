"""Tag every step: names of people, places and firms by a BiLSTM-CRF, and open or closed eyes from EEG.

    python -m examples.tagging                                 # a grammar's sentences, names that training never saw
    python -m examples.tagging --path eng.train                # a CoNLL file: word first, tag last
    python -m examples.tagging --data eeg --path eeg.csv       # channels and open or closed eyes (examples/eyes.py)
    python -m examples.tagging --load runs/tagging

Each word is its embedding, and what a small BiLSTM reads in its letters, which is all there is to unseen names; a
BiLSTM over the words says how well each tag fits each word. Then either each word gets its own likeliest tag, or a
conditional random field (examples/crf.py) finds the likeliest sequence of tags (Lample et al. 2016, "Neural
architectures for named entity recognition"). Both are trained and judged, by whole names: place and type must be right.

Mended: accuracy per word flatters, since most words are no names: F1 of names is shown. Test sentences of a grammar, or
of a file with repeated sentences, must not stand in training: stems of names are split before sentences are made, and
equal sentences of a file count once. The letters' summary is each direction's last valid state, not the last time step
of padded rows. Frames of a recording split at random put each frame's neighbours into training; they are split by time.

The grammar is a case made for a CRF: names of four or five words in contexts that do not tell their type. In simpler
ones, which were tried first, the BiLSTM learned by itself how tags follow each other. So the gain shows what a CRF is
for, not that it always helps.

B sentences, T words, L letters, N words of a batch without padding, K tags, H hidden.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from examples import common, entities, eyes
from examples.crf import CRF, valid
from examples.entities import Sentence

TIME = "about 15 s"
FORGOTTEN = 0.3  # share of words that training hides, so that letters and neighbours are learned from
BATCH = 32
SIZES = [600, 300, 1000]  # sentences of the grammar


class Known(NamedTuple):
    """The vocabulary of training: words seen twice or more, letters, tags. 0 is padding, 1 unknown, the rest follow."""

    words: list[str]
    letters: list[str]
    tags: list[str]

    @classmethod
    def of(cls, sentences: list[Sentence]) -> Known:
        counts = Counter(word for sentence in sentences for word, _ in sentence)
        words = sorted(word for word, count in counts.items() if count > 1)
        return cls(words, sorted(set("".join(counts))), sorted({tag for sentence in sentences for _, tag in sentence}))


class Batch(NamedTuple):
    words_BT: Tensor
    lengths_B: Tensor
    letters_NL: Tensor
    letter_lengths_N: Tensor
    sentences: list[Sentence]


def batched(sentences: list[Sentence], known: Known, shuffle: bool = False, size: int = BATCH) -> DataLoader:
    word_numbers, letter_numbers = ({x: n + 2 for n, x in enumerate(kind)} for kind in known[:2])

    def collate(some: list[Sentence]) -> Batch:
        words = [torch.tensor([word_numbers.get(word, 1) for word, _ in sentence]) for sentence in some]
        letters = [torch.tensor([letter_numbers.get(c, 1) for c in word]) for sentence in some for word, _ in sentence]
        lengths, letter_lengths = (torch.tensor([len(row) for row in rows]) for rows in (words, letters))
        return Batch(
            pad_sequence(words, batch_first=True),
            lengths,
            pad_sequence(letters, batch_first=True),
            letter_lengths,
            some,
        )

    return DataLoader(sentences, size, shuffle=shuffle, collate_fn=collate)


class Tagger(lightning.LightningModule):
    """Letters, words, neighbours, tags; the tags' loss is the CRF's, or each word's own."""

    def __init__(self, library, cell: str, known: Known, hidden: int, crf: bool) -> None:
        super().__init__()
        made = getattr(library, cell.upper())
        self.known = known
        self.letter_embedding = nn.Embedding(len(known.letters) + 2, 16, padding_idx=0)
        self.spelling = made(16, 16, batch_first=True, bidirectional=True)
        self.word_embedding = nn.Embedding(len(known.words) + 2, 32, padding_idx=0)
        self.context = made(32 + 2 * 16, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * hidden, len(known.tags))
        self.crf = CRF(len(known.tags), *entities.possible(known.tags)) if crf else None
        self.judged: list[tuple[list[str], list[str]]] = []

    def forward(self, batch: Batch) -> Tensor:
        """Emissions, (B, T, K)."""
        words_BT, lengths_B = batch.words_BT, batch.lengths_B
        if self.training:
            words_BT = torch.where(
                (torch.rand(words_BT.shape, device=self.device) < FORGOTTEN) & (words_BT > 0), 1, words_BT
            )
        _, last = common.outputs(self.spelling, self.letter_embedding(batch.letters_NL), batch.letter_lengths_N)
        h_DNH = last[0] if isinstance(last, tuple) else last
        spelled = torch.cat([h_DNH[0], h_DNH[1]], dim=-1).split(lengths_B.tolist())
        x_BTI = torch.cat([self.word_embedding(words_BT), pad_sequence(spelled, batch_first=True)], dim=-1)
        y_BTH, _ = common.outputs(self.context, self.dropout(x_BTI), lengths_B)
        return self.head(self.dropout(y_BTH))

    def training_step(self, batch: Batch, _) -> Tensor:
        emissions_BTK = self(batch)
        rows = [torch.tensor([self.known.tags.index(tag) for _, tag in sentence]) for sentence in batch.sentences]
        tags_BT = pad_sequence(rows, batch_first=True).to(self.device)
        if self.crf is not None:
            loss = self.crf(emissions_BTK, tags_BT, batch.lengths_B).sum() / batch.lengths_B.sum()
        else:
            inside_BT = valid(emissions_BTK, batch.lengths_B)
            loss = nn.functional.cross_entropy(emissions_BTK[inside_BT], tags_BT[inside_BT])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(rows))
        return loss

    @torch.no_grad()
    def tag(self, batch: Batch) -> list[list[str]]:
        """The tags of each sentence: the likeliest sequence, or the likeliest of each word."""
        emissions_BTK = self(batch)
        best_BT = self.crf.decode(emissions_BTK, batch.lengths_B) if self.crf is not None else emissions_BTK.argmax(-1)
        rows = zip(best_BT.tolist(), batch.lengths_B.tolist(), strict=True)
        return [[self.known.tags[number] for number in row[:length]] for row, length in rows]

    def validation_step(self, batch: Batch, _) -> None:
        wanted = ([tag for _, tag in sentence] for sentence in batch.sentences)
        self.judged += zip(self.tag(batch), wanted, strict=True)

    def on_validation_epoch_end(self) -> None:
        self.log(
            "val_missed", 1 - entities.scores(*zip(*self.judged, strict=True))["f1"], prog_bar=True, sync_dist=True
        )
        self.judged.clear()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def tagged(model: Tagger, sentences: list[Sentence], device: str) -> list[list[str]]:
    model = model.to(device).eval()
    move = model.transfer_batch_to_device
    return [
        tags
        for batch in common.progress(batched(sentences, model.known, size=256), "sentences")
        for tags in model.tag(move(batch, torch.device(device), 0))
    ]


def evaluate(models: nn.ModuleDict, test: list[Sentence], device: str) -> tuple[dict[str, float], dict[str, dict]]:
    """Precision, recall and F1 of names, impossible tags, and F1 by type, with and without the CRF."""
    wanted = [[tag for _, tag in sentence] for sentence in test]
    kinds = sorted({tag[2:] for tags in wanted for tag in tags if tag != "O"})
    metrics, by_kind = {}, {}
    for name, model in models.items():
        found = tagged(model, test, device)
        some = entities.scores(found, wanted) | {"impossible_tags": float(sum(map(entities.impossible, found)))}
        metrics |= {key if name == "crf" else f"{key}_without_crf": round(value, 6) for key, value in some.items()}
        by_kind[name] = {
            kind: entities.scores(*(entities.only(kind, tags) for tags in (found, wanted)))["f1"] for kind in kinds
        }
    metrics["f1_gained_by_crf"] = round(metrics["f1"] - metrics["f1_without_crf"], 6)
    return metrics, by_kind


def show(metrics: dict[str, float]) -> None:
    names = ("precision", "recall", "f1", "impossible_tags")
    table = Table("", *(name.replace("_", " ") for name in names))
    for model, ending in (("with the CRF", ""), ("each word its own tag", "_without_crf")):
        table.add_row(model, *(f"{metrics[name + ending]:.4g}" for name in names))
    common.console().print(table)


def draw(models: nn.ModuleDict, by_kind: dict[str, dict], path: Path) -> None:
    """A plot of the CRF's transitions between tags, and of F1 by type."""
    crf, tags = models["crf"].crf, models["crf"].known.tags
    with common.plot(path, 1, 2, size=(11, 4.5)) as (left, right):
        matrix = crf.transitions_KK.detach().cpu().masked_fill(~crf.allowed_KK.cpu(), torch.nan).numpy()
        most = np.nanmax(abs(matrix))
        image = left.imshow(matrix, cmap="RdBu", vmin=-most, vmax=most)
        left.set_xticks(range(len(tags)), tags, rotation=45)
        left.set_yticks(range(len(tags)), tags)
        left.set(title="transitions that the CRF learned (empty: impossible)", xlabel="next tag", ylabel="tag")
        left.figure.colorbar(image, ax=left)
        for n, (name, label) in enumerate((("crf", "with the CRF"), ("alone", "each word its own tag"))):
            places = [k + 0.4 * n for k in range(len(by_kind[name]))]
            bars = right.bar(places, by_kind[name].values(), 0.38, label=label)
            right.bar_label(bars, fmt="%.3f", fontsize=8)
        right.set_xticks([k + 0.2 for k in range(len(by_kind["crf"]))], by_kind["crf"])
        right.set(title="F1 of names in test sentences", ylim=(0, 1.2))
        right.legend(loc="upper center", ncols=2)


def parser() -> argparse.ArgumentParser:
    made = common.parser("tagging", __doc__, epochs=20)
    made.add_argument("--data", choices=("names", "eeg"), default="names", help="default: names, of a grammar")
    made.add_argument("--path", type=Path, metavar="FILE", help="a CoNLL file, or with --data eeg a CSV file")
    made.add_argument("--hidden", type=common.positive(int), default=48)
    return made


def work(asked: argparse.Namespace) -> tuple[dict, list[common.Threshold]]:
    path = asked.path
    weights, facts = common.earlier(asked, "tagging")
    asked.path = path or (asked.path and Path(asked.path))
    if asked.data == "eeg":
        return eyes.work(asked, weights, facts)
    if asked.path:
        parts = entities.divided(entities.read_conll(asked.path), asked.path, asked.seed)
    else:
        parts = entities.grammar(SIZES, asked.seed)
    train, validation, test = parts
    known = Known(*facts["known"]) if facts else Known.of(train)
    library = common.LAYERS[asked.layers]
    models = nn.ModuleDict(
        {name: Tagger(library, asked.cell, known, asked.hidden, name == "crf") for name in ("crf", "alone")}
    )
    if asked.load:
        common.restore(models, weights, asked.load)
    else:
        seconds = 0.0
        for name, model in models.items():
            lightning.seed_everything(asked.seed, verbose=False)  # the same batches for both
            trainer = common.trainer(asked, monitor="val_missed", name=name, gradient_clip_val=5.0)
            data = batched(train, known, shuffle=True), batched(validation, known, size=256)
            seconds += common.fit(trainer, model, *data)
        common.note_time(asked, seconds)
        arguments = {name: getattr(asked, name) for name in ("data", "cell", "hidden", "seed")}
        arguments["path"] = asked.path and str(asked.path)
        common.save(asked.out, models, example="tagging", arguments=arguments, known=known)
    if rank_zero_only.rank:  # another process of a distributed run has no more to do
        return {}, []
    metrics, by_kind = evaluate(models, test, asked.device)
    show(metrics)
    draw(models, by_kind, asked.out / "tagging.png")
    if asked.path:
        return metrics, []
    return metrics, [common.Threshold("f1", ">=", 0.95), common.Threshold("f1_gained_by_crf", ">=", 0.005)]


def main(arguments: list[str] | None = None) -> int:
    return common.run("tagging", parser(), work, arguments, quick={"epochs": 14})


if __name__ == "__main__":
    sys.exit(main())
