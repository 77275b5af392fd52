"""The sentiment example's model: embedding, recurrent layers, the last state or attention over all, and one logit.

Shapes: T steps, B rows, D directions, H hidden units.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAccuracy

from examples import common, reviews


class Shape(NamedTuple):
    """The recurrent layer, whether two stand one above the other, and how the last is read."""

    layer: str
    stacked: bool = False
    bidirectional: bool = False
    attention: bool = False


MODELS = {
    "rnn": Shape("RNN"),
    "lstm": Shape("LSTM"),
    "gru": Shape("GRU"),
    "bilstm": Shape("LSTM", bidirectional=True),
    "stacked": Shape("LSTM", stacked=True),
    "attention": Shape("LSTM", attention=True),
}


class Attention(nn.Module):
    """The mean of all steps, weighted by softmax(tanh(w y + b)) (Raffel and Ellis 2016). The tanh keeps the ratio of
    two weights below e^2: without it one step soon takes all, and the recurrent layer hardly learns any more."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(features, 1), nn.Tanh())

    def forward(self, y_BTH: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        scores_BT = self.score(y_BTH).squeeze(-1)
        past = torch.arange(y_BTH.shape[1], device=y_BTH.device) >= lengths_B[:, None]
        weights_BT = scores_BT.masked_fill(past, -torch.inf).softmax(1)
        return (weights_BT[:, :, None] * y_BTH).sum(1), weights_BT


class Reader(lightning.LightningModule):
    """Embedding, recurrent layers, and a linear layer to the logit of "good"."""

    def __init__(self, kind: str, vocabulary: int, asked: argparse.Namespace) -> None:
        super().__init__()
        shape, library = MODELS[kind], common.LAYERS[asked.layers]
        options: dict[str, Any] = {"batch_first": True, "bidirectional": shape.bidirectional}
        if asked.layers == "rnnkernels":  # torch.nn has no recurrent dropout
            options["recurrent_dropout"] = asked.recurrent_dropout
        all_units = asked.stack if shape.stacked else [asked.units]
        self.embedding = nn.Embedding(vocabulary, asked.embedding, reviews.PADDING)
        self.layers = nn.ModuleList(
            getattr(library, shape.layer)(read, units, **options)
            for read, units in zip([asked.embedding, *all_units], all_units, strict=False)
        )
        self.dropout = nn.Dropout(asked.dropout)
        features = all_units[-1] * (1 + shape.bidirectional)
        self.attention = Attention(features) if shape.attention else None
        self.head = nn.Linear(features, 1)
        self.rate, self.seed = asked.rate, asked.seed
        self.accuracy, self.val_loss, self.val_accuracy = BinaryAccuracy(), MeanMetric(), BinaryAccuracy()
        self.history: list[dict[str, float]] = []

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """logits_B, and the weights_BT of the attention where there is one."""
        y = self.embedding(tokens_BT)
        for layer in self.layers:
            y, state = common.outputs(layer, self.dropout(y), lengths_B)
        if self.attention:
            read, weights = self.attention(y, lengths_B)
        else:
            h_DBH, weights = state[0] if isinstance(state, tuple) else state, None
            read = h_DBH.transpose(0, 1).flatten(1)
        return self.head(self.dropout(read)).squeeze(-1), weights

    def on_train_start(self) -> None:
        torch.manual_seed(self.seed + self.global_rank)  # processes draw masks of their own

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        tokens, lengths, labels = batch
        logits = self(tokens, lengths)[0]
        loss = binary_cross_entropy_with_logits(logits, labels)
        self.accuracy.update(logits.sigmoid(), labels.int())
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> None:
        tokens, lengths, labels = batch
        logits = self(tokens, lengths)[0]
        self.val_loss.update(binary_cross_entropy_with_logits(logits, labels), len(labels))
        self.val_accuracy.update(logits.sigmoid(), labels.int())
        self.log_dict({"val_loss": self.val_loss, "val_accuracy": self.val_accuracy})

    def on_train_epoch_end(self) -> None:
        self.history.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), self.rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


@torch.no_grad()
def judge(model: Reader, rows: list, device: str) -> Tensor:
    """The probability of "good" for each row."""
    model.to(device).eval()
    batches = DataLoader(rows, 256, collate_fn=reviews.batch)
    return torch.cat([model(x.to(device), lengths.to(device))[0].sigmoid().cpu() for x, lengths, _ in batches])
