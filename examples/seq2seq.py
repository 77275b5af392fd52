"""Read dates in French or English and write them as ISO dates: encoder and decoder with Bahdanau's attention.

    python -m examples.seq2seq
    python -m examples.seq2seq --cell gru --last-ratio 0.2 --beam 8
    python -m examples.seq2seq --load runs/seq2seq --date "mercredi 22 novembre 1995"

Characters in, characters out: a bidirectional encoder reads "mercredi 22 novembre 1995", a decoder writes "1995-11-22"
and, before each character, looks where it wants (Bahdanau et al. 2015, "Neural machine translation by jointly learning
to align and translate"). The same model without attention, which knows the sentence only as one vector, is trained
beside it: sentences are short, so of 8,000 dates it learns as much, but of 4,000 (--quick) it misses 1 to 4 in 100.
In training the decoder reads the right character before (teacher forcing), and ever more often its own
(scheduled sampling, Bengio et al. 2015); it then writes greedily and by beam search.

Mended: sentences split at random put the same date, in another style or language, into training and test; here the days
themselves are split. The encoder's last time step, of a padded row and of both directions, is not its summary: the
summary is each direction's last valid state. Validation under teacher forcing flatters; here the decoder is on its own.
Styles like 03/04/2021, which Paris and Boston read differently, are left out.

B batch, T characters, V vocabulary, H hidden, M memory (2H), A attention, K beam.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from examples import common
from examples.dates import END, PAD, START, WRITTEN, Sentence, batched, sentences

TIME = "about 30 s"
LONGEST = len("2000-12-31") + 1  # and <end>
VALIDATION, TEST = 1000, 3000  # dates


class Attention(nn.Module):
    """Bahdanau's: how well position t fits the state s is ``v . tanh(W s + U m_t)``; softmax over the valid t."""

    def __init__(self, query: int, memory: int, size: int) -> None:
        super().__init__()
        self.of_query = nn.Linear(query, size, bias=False)
        self.of_memory = nn.Linear(memory, size)
        self.score = nn.Linear(size, 1, bias=False)

    def forward(self, query_BH: Tensor, keys_BTA: Tensor, memory_BTM: Tensor, valid_BT: Tensor):
        """The weighted sum of the memory, (B, M), and the weights, (B, T); `keys_BTA` is ``of_memory(memory_BTM)``."""
        scores_BT = self.score(torch.tanh(self.of_query(query_BH).unsqueeze(1) + keys_BTA)).squeeze(-1)
        weights_BT = scores_BT.masked_fill(~valid_BT, -torch.inf).softmax(-1)
        return (weights_BT.unsqueeze(1) @ memory_BTM).squeeze(1), weights_BT


class Reader(lightning.LightningModule):
    """Encoder and decoder. Without attention the context is always the encoder's summary."""

    def __init__(self, library, cell: str, vocabulary: int, hidden: int, attention: bool, last_ratio: float) -> None:
        super().__init__()
        self.states = 2 if cell == "lstm" else 1
        self.last_ratio = last_ratio
        self.curve: list[float] = []  # exact match of each validation
        self.read_embedding = nn.Embedding(vocabulary, 32, padding_idx=0)
        self.encoder = getattr(library, cell.upper())(32, hidden, batch_first=True, bidirectional=True)
        self.first = nn.Linear(2 * hidden, self.states * hidden)
        self.attention = Attention(hidden, 2 * hidden, hidden) if attention else None
        self.written_embedding = nn.Embedding(len(WRITTEN), 32)
        self.decoder = getattr(library, {"lstm": "LSTMCell", "gru": "GRUCell", "rnn": "RNNCell"}[cell])(
            32 + 2 * hidden, hidden
        )
        self.head = nn.Linear(3 * hidden, len(WRITTEN))

    def encode(self, read_BT: Tensor, lengths_B: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        """The memory that the decoder attends to (tensors of B rows), and its first state."""
        memory_BTM, last = common.outputs(self.encoder, self.read_embedding(read_BT), lengths_B)
        h_DBH = last[0] if self.states == 2 else last
        summary_BM = torch.cat([h_DBH[0], h_DBH[1]], dim=-1)  # after the last character, and before the first
        state = self.first(summary_BM).tanh().chunk(self.states, dim=-1)
        state = tuple(part.contiguous() for part in state) if self.states == 2 else state[0]
        if self.attention is None:
            return (summary_BM,), state
        valid_BT = torch.arange(read_BT.shape[1], device=read_BT.device) < lengths_B.unsqueeze(1)
        return (self.attention.of_memory(memory_BTM), memory_BTM, valid_BT), state

    def step(self, written_B: Tensor, state, seen: tuple[Tensor, ...]):
        """Logits (B, V) of the next character, the state after this one, and where the decoder looked, (B, T)."""
        context_BM, weights_BT = seen[0], None
        if self.attention is not None:
            context_BM, weights_BT = self.attention(state[0] if self.states == 2 else state, *seen)
        state = self.decoder(torch.cat([self.written_embedding(written_B), context_BM], dim=-1), state)
        h_BH = state[0] if self.states == 2 else state
        return self.head(torch.cat([h_BH, context_BM], dim=-1)), state, weights_BT

    def ratio(self) -> float:
        """How often the right character is shown: all the time at first, falling in a straight line to `last_ratio`."""
        return 1 - (1 - self.last_ratio) * self.global_step / self.trainer.estimated_stepping_batches

    def training_step(self, batch, _) -> Tensor:
        read_BT, lengths_B, written_BT = batch
        seen, state = self.encode(read_BT, lengths_B)
        ratio, shown_B, logits = self.ratio(), written_BT[:, 0], []
        for right_B in written_BT[:, 1:].T:
            logits_BV, state, _ = self.step(shown_B, state, seen)
            logits.append(logits_BV)
            forced_B = torch.rand(len(right_B), device=self.device) < ratio
            shown_B = torch.where(forced_B, right_B, logits_BV.argmax(-1))
        loss = cross_entropy(torch.stack(logits, dim=1).flatten(0, 1), written_BT[:, 1:].flatten())
        self.log_dict({"train_loss": loss, "ratio": ratio}, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, _) -> None:
        """On its own: the share of wrong dates, which is to fall."""
        wrong = (greedy(self, *batch[:2])[0] != batch[2][:, 1:]).any(1)
        self.log("val_wrong", wrong.float().mean(), prog_bar=True, sync_dist=True, batch_size=len(wrong))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.curve.append(1 - float(self.trainer.callback_metrics["val_wrong"]))

    def configure_optimizers(self):
        return common.one_cycle(self, torch.optim.Adam(self.parameters(), lr=4e-3))


@torch.no_grad()
def greedy(model: Reader, read_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """The likeliest character each time, (B, LONGEST), and where the decoder looked for each."""
    seen, state = model.encode(read_BT, lengths_B)
    written, looked = [torch.full_like(lengths_B, START)], []
    for _ in range(LONGEST):
        logits_BV, state, weights_BT = model.step(written[-1], state, seen)
        written.append(logits_BV.argmax(-1))
        looked.append(weights_BT)
    return torch.stack(written[1:], dim=1), looked


@torch.no_grad()
def beam(model: Reader, read_BT: Tensor, lengths_B: Tensor, width: int, longest: int = LONGEST):
    """The likeliest of the texts that stay among the `width` best at each step: (B, longest), and their log
    probabilities. A text that has ended stays as it is, padded. K texts of a row stand together in a batch of B * K."""
    B, K, V = len(read_BT), width, len(WRITTEN)
    seen, state = model.encode(read_BT.repeat_interleave(K, 0), lengths_B.repeat_interleave(K, 0))
    written = torch.full((B * K, 1), START, device=read_BT.device)
    scores_BK = torch.full((B, K), -torch.inf, device=read_BT.device)
    scores_BK[:, 0] = 0  # K times the same text at first: one counts
    ended_V = torch.full((V,), -torch.inf, device=read_BT.device)
    ended_V[PAD] = 0
    for _ in range(longest):
        logits_NV, state, _ = model.step(written[:, -1], state, seen)
        ended_N1 = (written[:, -1:] == END) | (written[:, -1:] == PAD)
        more_NV = torch.where(ended_N1, ended_V, logits_NV.log_softmax(-1))
        scores_BK, best_BK = (scores_BK.unsqueeze(-1) + more_NV.view(B, K, V)).flatten(1).topk(K)
        from_N = (best_BK // V + K * torch.arange(B, device=read_BT.device).unsqueeze(1)).flatten()
        written = torch.cat([written[from_N], (best_BK % V).view(-1, 1)], dim=1)
        state = tuple(part[from_N] for part in state) if model.states == 2 else state[from_N]
    return written.view(B, K, -1)[:, 0, 1:], scores_BK[:, 0]


def texts(written_BT: Tensor) -> list[str]:
    rows = (row[: row.index(END)] if END in row else row for row in written_BT.tolist())
    return ["".join(WRITTEN[number] for number in row) for row in rows]


def right(model: Reader, data: list[Sentence], characters: str, device: str, width: int | None) -> np.ndarray:
    """The mask of dates written without a mistake, greedily or with a beam."""
    model = model.to(device).eval()
    written: list[str] = []
    for read, lengths, _ in common.progress(batched(data, characters, size=256), "dates"):
        read, lengths = read.to(device), lengths.to(device)
        written += texts((beam(model, read, lengths, width) if width else greedy(model, read, lengths))[0])
    return np.array([text == sentence.iso for text, sentence in zip(written, data, strict=True)])


def draw_attention(model: Reader, data: list[Sentence], characters: str, path) -> None:
    """A plot of the attention: a row for each character written; one sentence of each locale."""
    shown = [next(sentence for sentence in data if sentence.locale == locale) for locale in ("fr", "en", "en_GB")]
    with common.plot(path, 3, 1, size=(9, 11)) as axes:
        for axis, sentence in zip(axes, shown, strict=True):
            read, lengths, _ = next(iter(batched([sentence], characters)))
            written, looked = greedy(model.cpu().eval(), read, lengths)
            text = texts(written)[0]
            rows = [*text, "end"][:LONGEST]
            image = axis.imshow(torch.cat(looked)[: len(rows)].numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set_xticks(range(len(sentence.text)), list(sentence.text))
            axis.set_yticks(range(len(rows)), rows)
            axis.set(title=f"{sentence.text} ({sentence.locale}): {text}", ylabel="written")
        axes[0].figure.colorbar(image, ax=axes, label="attention", shrink=0.3)


def draw_curves(curves: dict[str, list[float]], path) -> None:
    with common.plot(path) as axis:
        for name, curve in curves.items():
            axis.plot(range(1, len(curve) + 1), curve, marker="o", label=name.replace("_", " "))
        axis.set(xlabel="epoch", ylabel="exact match on validation dates", ylim=(0, 1.02))
        axis.legend()


def a_date(word: str) -> str:
    if not word.strip():
        raise argparse.ArgumentTypeError("an empty date")
    return word


def share(word: str) -> float:
    value = float(word)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a share is from 0 to 1, not {word}")
    return value


def parser() -> argparse.ArgumentParser:
    made = common.parser("seq2seq", __doc__, epochs=8)
    made.add_argument("--hidden", type=common.positive(int), default=96)
    made.add_argument("--dates", type=common.positive(int), default=8000, help="to train on (default: %(default)s)")
    made.add_argument(
        "--last-ratio", type=share, default=0.5, help="of teacher forcing at the end (default: %(default)s)"
    )
    made.add_argument(
        "--beam", type=common.positive(int), default=5, help="texts kept at each step (default: %(default)s)"
    )
    made.add_argument("--date", type=a_date, metavar="TEXT", help="read this date too")
    return made


def train(models: nn.ModuleDict, asked: argparse.Namespace, *data: DataLoader) -> None:
    seconds = 0.0
    for name, model in models.items():
        lightning.seed_everything(asked.seed, verbose=False)  # the same batches for both
        trainer = common.trainer(asked, monitor="val_wrong", name=name, gradient_clip_val=1.0)
        seconds += common.fit(trainer, model, *data)
    common.note_time(asked, seconds)
    draw_curves({name: model.curve for name, model in models.items()}, asked.out / "curves.png")


def evaluate(models: nn.ModuleDict, test: list[Sentence], characters: str, asked: argparse.Namespace) -> dict:
    """Exact match on unseen dates: greedy, by beam search, in each language, and without attention."""
    attentive = models["with_attention"]
    greedily = right(attentive, test, characters, asked.device, None)
    searched = right(attentive, test, characters, asked.device, asked.beam)
    without = right(models["without_attention"], test, characters, asked.device, None)
    french = np.array([sentence.locale == "fr" for sentence in test])
    metrics = {
        "exact_match": greedily,
        "exact_match_french": greedily[french],
        "exact_match_english": greedily[~french],
        "exact_match_beam": searched,
        "exact_match_without_attention": without,
    }
    return {name: round(float(found.mean()), 6) for name, found in metrics.items()}


def work(asked: argparse.Namespace) -> tuple[dict, list[common.Threshold]]:
    weights, facts = common.earlier(asked, "seq2seq")
    validation, test, train_data = sentences([VALIDATION, TEST, asked.dates], asked.seed)
    characters = facts.get("characters") or "".join(sorted({c for sentence in train_data for c in sentence.text}))
    models = nn.ModuleDict(
        {
            name: Reader(
                common.LAYERS[asked.layers], asked.cell, len(characters) + 2, asked.hidden, attention, asked.last_ratio
            )
            for name, attention in (("with_attention", True), ("without_attention", False))
        }
    )
    if asked.load:
        common.restore(models, weights, asked.load)
    else:
        train(models, asked, batched(train_data, characters, shuffle=True), batched(validation, characters, size=256))
        arguments = {name: getattr(asked, name) for name in ("cell", "hidden", "seed", "last_ratio")}
        common.save(asked.out, models, example="seq2seq", arguments=arguments, characters=characters)
    if rank_zero_only.rank:  # another process of a distributed run has no more to do
        return {}, []
    metrics = evaluate(models, test, characters, asked)
    print(f"{len(test)} dates that were not trained on")
    for name, value in metrics.items():
        print(f"{name.replace('_', ' ')}: {value:.2%}")
    draw_attention(models["with_attention"], test, characters, asked.out / "attention.png")
    if asked.date:
        read, lengths, _ = next(iter(batched([Sentence(asked.date, "", "")], characters)))
        print(f"{asked.date}: {texts(beam(models['with_attention'], read, lengths, asked.beam)[0])[0]}")
    return metrics, [common.Threshold("exact_match", ">=", 0.98)]


def main(arguments: list[str] | None = None) -> int:
    return common.run("seq2seq", parser(), work, arguments, quick={"epochs": 6, "dates": 4000})


if __name__ == "__main__":
    sys.exit(main())
