"""Lightning fits a converted model as it fits torch.nn's, and checkpoints go both ways."""

import copy

import pytest
import torch
from client_cases import package, with_converted
from common import assert_close
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.filterwarnings("ignore")


def test_fit_and_go_on_from_the_other_s_checkpoint(tmp_path):
    """3 epochs of 4 batches; a checkpoint of 2 epochs of the one is where the other goes on."""
    lightning = package("lightning")

    class Summing(lightning.LightningModule):
        """Whether the sum of a sequence is positive."""

        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 16, 2, batch_first=True)
            self.head = nn.Linear(16, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1]).squeeze(1)

        def training_step(self, batch, _):
            loss = nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])
            losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    torch.manual_seed(0)
    x = torch.randn(64, 9, 3)
    data = DataLoader(TensorDataset(x, (x.sum((1, 2)) > 0).float()), batch_size=16)

    def fit(model, epochs, checkpoint=None):
        nonlocal losses
        losses = []
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, gradient_clip_val=1.0,
        )  # fmt: skip
        trainer.fit(model, data, ckpt_path=checkpoint)
        return torch.tensor(losses), trainer.checkpoint_callback.best_model_path

    losses = []
    theirs, ours = with_converted(Summing())
    expected, _ = fit(copy.deepcopy(theirs), 3)
    assert len(expected) == 12 and expected[-1] < expected[0]
    actual, of_ours = fit(ours, 2)
    assert_close("ours", actual, expected[:8], 1e-4)
    actual, of_theirs = fit(theirs, 2)
    assert torch.equal(actual, expected[:8])
    for name, model, checkpoint in (
        ("ours from torch.nn's", with_converted(Summing())[1], of_theirs),
        ("torch.nn's from ours", Summing(), of_ours),
    ):
        actual, _ = fit(model, 3, checkpoint)
        assert_close(name, actual, expected[8:], 1e-4)
