"""Train a language model of characters or words by truncated back-propagation, and let it write.

    python -m examples.char_lm                        # a 2-layer LSTM on Python's standard library
    python -m examples.char_lm --data hello           # the smallest lesson: one-hot h, e, l, l -> e, l, l, o
    python -m examples.char_lm --data shakespeare --minutes 10 --lr 2e-3
    python -m examples.char_lm --path book.txt --level word --prompt "Once upon"
    python -m examples.char_lm --load runs/char_lm --prompt "def " --temperature 0.5 1.0
    python -m examples.char_lm --sizes notebook       # words of reviews of products; or --sizes lecture, overview
    python -m examples.char_lm --check-numpy          # beside a character RNN written out in NumPy

The text is cut into streams that are read side by side; each batch continues the one before, and the state is carried
over without its history (truncated back-propagation: Williams & Peng 1990, "An efficient gradient-based algorithm for
on-line training of recurrent network trajectories"). Written: curves.png, sample.txt, and the model.

With --level word an unknown word is one symbol, however it is spelled, so bits per character are fewer than the truth.

Mended, against the guides:
- random excerpts with a zero state each, though text goes on: here the state is carried, and starts anew only where the
  streams do;
- no validation text, or one that overlaps the training windows: here the last tenth of the text is never trained on,
  and the vocabulary is the training part's;
- a loss whose base is not said: here bits per character, beside a bigram table's;
- generation that reads everything again for each new character: here one step of a rnnkernels.Stepper each;
- words: an unknown seed word ended in a KeyError.

T time, B batch, V vocabulary, H hidden.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import lightning
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from examples import common, numpy_rnn, text
from examples import language_report as report
from examples.common import BadData, Threshold
from examples.language_model import CharLM, detach
from examples.streams import Streams

TIME = "about 60 s"
HELD_OUT = 0.1  # the last part of the text, for validation
MOST = {"char": 100_000, "word": 5000}  # of the vocabulary
HELLO = {
    "cell": "rnn", "layers_deep": 1, "hidden": 8, "embedding": 0, "dropout": 0.0, "steps": 4, "batch": 1, "epochs": 200,
    "lr": 0.03, "prompt": ["h"], "length": 4, "temperature": [0.1],
}  # fmt: skip
SIZES = {  # of the texts, by their subject
    "overview": {
        "data": "sentence", "cell": "gru", "layers_deep": 1, "embedding": 32, "hidden": 64, "dropout": 0.0, "steps": 10,
        "batch": 1, "lr": 1e-2, "epochs": 100, "prompt": ["one let"], "length": 50, "temperature": [1.0],
    },
    "lecture": {"hidden": 128, "layers_deep": 2, "dropout": 0.2, "clip": 5.0, "steps": 100, "lr": 1e-3},
    "notebook": {
        "data": "products", "level": "word", "hidden": 64, "layers_deep": 2, "embedding": 50, "dropout": 0.3,
        "steps": 8, "batch": 32, "lr": 1e-3, "epochs": 20, "length": 8, "temperature": [0.8],
        "prompt": ["ce produit", "très bon", "je recommande"],
    },
}  # fmt: skip
WORDS = {"hidden": 128, "steps": 32, "batch": 16, "lr": 4e-3}  # a text has fewer words, and steps would be few
QUICK = {"epochs": 1, "lr": 2e-3, "check_numpy": True}
KEPT = ("data", "path", "level", "cell", "hidden", "layers_deep", "embedding", "dropout", "steps", "batch")


class Learner(lightning.LightningModule):
    """Training by truncated back-propagation: the state goes from batch to batch, and starts anew with the text."""

    def __init__(
        self,
        model: CharLM,
        learned: Tensor,
        judged: Tensor,
        asked: argparse.Namespace,
        sample: Callable[[], str] = lambda: "",
    ) -> None:
        super().__init__()
        self.sample = sample  # what the model writes at this point
        self.samples: list[tuple[int, str]] = []  # after how much was read
        self.model, self.learned, self.judged, self.asked = model, learned, judged, asked
        many = (len(learned) - 1) // (asked.steps * asked.batch * asked.processes)  # batches of an epoch
        self.between = many // 2 if many >= 100 else many  # validations
        self.state = self.judging = None
        self.read, self.losses, self.checks = 0, [], []

    def train_dataloader(self) -> DataLoader:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        streams = Streams(self.learned, self.asked.steps, self.asked.batch * world, which=rank, of=world)
        return DataLoader(streams, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        B = min(self.asked.batch * self.asked.processes, len(self.judged) - 1)
        return DataLoader(Streams(self.judged, 4 * self.asked.steps, B, whole=True), batch_size=None)

    def on_train_start(self) -> None:
        self.samples.append((0, self.sample()))

    def on_train_epoch_start(self) -> None:
        self.state = None

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        logits, state = self.model(x, self.state)
        self.state = detach(state)
        loss = cross_entropy(logits.flatten(0, 1), y.flatten())
        self.read += x.numel()
        self.losses.append((self.read, loss.item() / math.log(2)))
        self.log("train_bits", self.losses[-1][1], prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.judging = None

    def validation_step(self, batch: list[Tensor]) -> None:
        x, y = batch
        logits, self.judging = self.model(x, self.judging)
        bits = cross_entropy(logits.flatten(0, 1), y.flatten()) / math.log(2)
        self.log("bits", bits, batch_size=x.numel(), prog_bar=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.checks.append((self.read, self.trainer.callback_metrics["bits"].item()))
        if self.samples:  # it trains
            self.samples.append((self.read, self.sample()))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), self.asked.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        after_validation = {"monitor": "bits", "interval": "step", "frequency": self.between}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, **after_validation}}


def parser() -> argparse.ArgumentParser:
    made = common.parser("char_lm", __doc__, epochs=5, sizes=SIZES)
    positive = common.positive
    made.add_argument("--data", choices=text.TEXTS, default="python", help="default: python")
    made.add_argument("--path", type=Path, help="a UTF-8 text file, instead of --data")
    made.add_argument("--level", choices=tuple(text.PIECES), default="char", help="of what (default: char)")
    made.add_argument("--hidden", type=positive(int), default=256, help="units of a layer (default: %(default)s)")
    made.add_argument("--layers-deep", type=positive(int), default=2, help="stacked layers (default: %(default)s)")
    made.add_argument("--embedding", type=int, default=64, help="0 for one-hot (default: %(default)s)")
    made.add_argument("--dropout", type=float, default=0.2, help="default: %(default)s")
    made.add_argument("--steps", type=positive(int), default=64, help="T of back-propagation (default: %(default)s)")
    made.add_argument("--batch", type=positive(int), default=32, help="streams side by side (default: %(default)s)")
    made.add_argument("--lr", type=positive(float), default=1e-3, help="of Adam (default: %(default)s)")
    made.add_argument("--clip", type=positive(float), default=5.0, help="of the gradient's norm (default: %(default)s)")
    made.add_argument("--minutes", type=positive(float), help="train no longer (what comes out depends on the speed)")
    made.add_argument(
        "--prompt", nargs="+", help="what the samples begin with (default: the validation text's beginning)"
    )
    made.add_argument("--length", type=positive(int), default=300, help="tokens of a sample (default: %(default)s)")
    made.add_argument("--temperature", type=positive(float), nargs="+", default=[0.7], help="default: 0.7")
    made.add_argument("--check-numpy", action="store_true", help="only compare with NumPy (--quick does it too)")
    return made


def check_numpy(asked: argparse.Namespace, source: str) -> dict[str, float]:
    """The NumPy RNN and the library's on the text's beginning, with the same weights: how far they are apart."""
    characters = sorted(set(source[:10_000]))
    tokens = np.array([characters.index(c) for c in source[:10_000]])
    found = numpy_rnn.compare(common.LAYERS[asked.layers], tokens, len(characters), asked.seed)
    others = found.pop("letters")
    for name, difference in found.items():
        print(f"NumPy, largest difference of {name}: {difference:.1e}")
    print(f"both then write the same {numpy_rnn.LETTERS} letters, but for {others:.0f}")
    loss = found.pop("loss")
    return {
        "numpy_loss_difference": loss, "numpy_gradient_difference": max(found.values()), "numpy_other_letters": others,
    }  # fmt: skip


def bound(asked: argparse.Namespace, source: str, bigram: float) -> float:
    """The most bits per character that count as learned: what counting pairs gives, or what is known of the text."""
    usual = (asked.level, asked.cell, asked.hidden, asked.layers_deep) == ("char", "lstm", 256, 2)
    python = asked.data == "python" and not asked.path
    if usual and (python or hashlib.sha256(source.encode()).hexdigest() == text.SHAKESPEARE_SHA256):
        return 2.35  # reached with --quick; on Shakespeare's text with --minutes 10 --lr 2e-3
    return bigram


def learn(asked: argparse.Namespace, source: str, loaded: tuple[dict, dict] | None) -> tuple[dict, list[Threshold]]:
    """Train, or take what was loaded, and judge."""
    weights, facts = loaded or ({}, {})
    lesson = source in text.LESSONS.values()
    split = len(source) if lesson else int(len(source) * (1 - HELD_OUT))
    if loaded:
        pieces = Tokenizer.from_str(facts["pieces"])
    else:
        pieces = text.learn_pieces(source[:split], asked.level, MOST[asked.level])
    validation = source if lesson else source[split:]
    learned, judged = text.encode(pieces, source[:split]), text.encode(pieces, validation)
    least = asked.steps * asked.batch * asked.processes + 1
    if len(learned) < least or len(judged) < 2:
        raise BadData(
            f"{asked.path or asked.data}: too short: {len(learned)} and {len(judged)} {asked.level}s to train and "
            f"validate with, at least {least} and 2 are needed"
        )
    prompts = asked.prompt or [validation[:40]]
    if not all(prompts):
        raise BadData("--prompt: it is empty")
    unknown = [letter for letter in dict.fromkeys("".join(asked.prompt or "")) if pieces.token_to_id(letter) is None]
    if asked.level == "char" and unknown:
        raise BadData(f"--prompt {' '.join(map(repr, prompts))}: {unknown} are not in the text that was learned")

    V, layers = pieces.get_vocab_size(), common.LAYERS[asked.layers]
    model = CharLM(layers, asked.cell, V, asked.hidden, asked.layers_deep, asked.embedding, asked.dropout)
    if loaded:
        model.load_state_dict(weights)
    name = f"{asked.layers_deep}-layer {asked.cell.upper()}, hidden {asked.hidden}"
    tokens = f"{len(learned):,} {asked.level}s to learn, {len(judged):,} to judge by, {V} different"
    print(f"{asked.path or asked.data}: {len(source):,} characters; {tokens}\n{name}")
    learner = Learner(model, learned, judged, asked, lambda: report.glimpse(model, pieces, prompts[0], asked))
    trainer = common.trainer(
        asked,
        monitor="bits",
        gradient_clip_val=asked.clip,
        max_time=datetime.timedelta(minutes=asked.minutes) if asked.minutes else None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        val_check_interval=learner.between,
    )
    if not loaded:
        common.note_time(asked, common.fit(trainer, learner))
        (asked.out / "samples.txt").write_text(report.on_the_way(learner.samples, asked.level), encoding="utf-8")
        settings = {key: vars(asked)[key] for key in KEPT} | {"path": str(asked.path) if asked.path else None}
        facts = {"losses": learner.losses, "checks": list(learner.checks)}
        common.save(asked.out, model, settings=settings, pieces=pieces.to_str(), **facts)
    bits = trainer.validate(learner, verbose=False)[0]["bits"]
    if trainer.global_rank:  # another process of a distributed run
        return {}, []
    model, bigram = learner.model.cpu(), text.bigram_bits(learned, judged, V)
    unit = {"char": "character", "word": "word"}[asked.level]
    report.draw(facts["losses"], facts["checks"], bigram, unit, asked.out / "curves.png")
    if lesson:
        print("validation is the text itself: what is shown is learning by heart")
    if source == "hello":
        report.show_hello(model, pieces)
    (asked.out / "sample.txt").write_text(report.write(model, pieces, prompts, asked), encoding="utf-8")

    each = len(judged) / len(validation)
    metrics = {"bits_per_character": bits * each, "bigram_bits_per_character": bigram * each, "vocabulary": V}
    if asked.level == "word":
        metrics |= {"bits_per_word": bits, "unknown_words": (judged == 0).float().mean().item()}
    print(f"validation: {bits * each:.3f} bits per character, bigram table {bigram * each:.3f}")
    return metrics, [Threshold("bits_per_character", "<=", bound(asked, source, bigram * each))]


def work(asked: argparse.Namespace) -> tuple[dict, list[Threshold]]:
    if not 0 <= asked.dropout < 1 or asked.embedding < 0:
        given = f"--dropout {asked.dropout} --embedding {asked.embedding}"
        raise BadData(f"{given}: 0 to below 1, and 0 or more, are wanted")
    loaded = common.load(asked.load) if asked.load else None
    if loaded:
        settings = loaded[1].get("settings", {})
        if settings.keys() != set(KEPT):
            raise BadData(f"--load {asked.load}: a model of another example")
        settings["path"] = asked.path or (Path(settings["path"]) if settings["path"] else None)
        vars(asked).update(settings)
    source = text.read(asked.data, asked.path)
    metrics: dict = {}
    thresholds: list[Threshold] = []
    if asked.check_numpy and not loaded:
        metrics |= check_numpy(asked, source)
        thresholds += [Threshold(name, "<=", 1e-10) for name in metrics]
    if asked.quick or loaded or not asked.check_numpy:
        found, wanted = learn(asked, source, loaded)
        metrics, thresholds = metrics | found, thresholds + wanted
    return metrics, thresholds


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    asked = made.parse_known_args(arguments)[0]
    own = HELLO if asked.data == "hello" else WORDS if asked.level == "word" else {}
    sizes = {name: own | settings for name, settings in SIZES.items()}
    made.set_defaults(**own)  # given arguments win
    return common.run("char_lm", made, work, arguments, quick=QUICK | own, sizes=sizes)


if __name__ == "__main__":
    sys.exit(main())
