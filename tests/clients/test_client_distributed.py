"""Two gloo processes train as one does: DistributedDataParallel, and fully_shard (FSDP2), of the layer too."""

import os
import socket

import pytest
import torch
from client_cases import with_converted
from common import assert_close
from torch import distributed, multiprocessing, nn

import rnnkernels

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="no gloo here"),
]
STEPS = 4


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.rnn = nn.LSTM(16, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, 50)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0])


def build(layer_norm):
    torch.manual_seed(0)
    model = with_converted(Tagger())[1]
    if layer_norm:
        model.rnn = rnnkernels.LSTM(16, 24, num_layers=2, bidirectional=True, batch_first=True, layer_norm=True)
    return model


def loss(model, tokens):
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def trained(model, rank, processes):
    """The losses of so many steps, each of half a batch where there are two processes, averaged over them."""
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9), []
    for step in range(STEPS):
        tokens = torch.randint(0, 50, (8, 11), generator=torch.Generator().manual_seed(step))
        value = loss(model, tokens[rank::processes])
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.detach())
    return torch.stack(losses)


def sharded(model, how):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    if how == "layer and root":
        fully_shard(model.rnn, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert model.rnn.weight_hh_l0.to_local().shape == (48, 24)
    return model


def restored(model, folder):
    """How far the outputs are from what they were, when a distributed checkpoint was saved, spoilt and loaded."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    tokens = torch.arange(22).reshape(2, 11)
    before = model(tokens).detach()
    checkpoint.save({"model": get_model_state_dict(model)}, checkpoint_id=folder)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    state = {"model": get_model_state_dict(model)}
    checkpoint.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    return (model(tokens).detach() - before).abs().max()


def process(rank, hows, layer_norm, port, folder, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        for how in hows:
            model = build(layer_norm)
            model = nn.parallel.DistributedDataParallel(model) if how == "ddp" else sharded(model, how)
            losses = trained(model, rank, 2)
            distributed.all_reduce(losses)
            apart = 0.0 if how == "ddp" else restored(model, f"{folder}/{how}").item()
            if rank == 0:
                results.put((how, (losses / 2).tolist(), apart))
            del model  # torch may wait for ever where it outlives the group
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("layer_norm", (False, True), ids=["plain", "layer_norm"])
def test_two_processes_train_as_one(layer_norm, tmp_path):
    hows = ("ddp", "root", "layer and root")
    expected = trained(build(layer_norm), 0, 1)
    if not layer_norm:
        torch.manual_seed(0)
        assert_close("torch.nn", expected, trained(Tagger(), 0, 1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(process, (hows, layer_norm, port, tmp_path, results), nprocs=2)
    for how in hows:
        name, losses, apart = results.get()
        assert name == how and apart == 0
        assert_close(how, torch.tensor(losses), expected)
