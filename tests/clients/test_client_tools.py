"""What others do to a model: attributions, summaries, functional calls, pruning, norms, averages, checkpointing, hooks.

Each is done to torch.nn's layers and to their converted copies; results and gradients are the same.
"""

import copy

import pytest
import torch
from client_cases import package, with_converted
from common import assert_close
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


class Model(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.rnn = getattr(nn, name)(3, 5, 2, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def functional_call(model, x):
    values = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, values, (x,))
    return [y, *torch.autograd.grad(y.square().sum(), values.values())]


def pruned(model, x):
    prune.l1_unstructured(model.rnn, "weight_hh_l0", 0.3)
    before = gradients(model, x)
    prune.remove(model.rnn, "weight_hh_l0")
    assert (model.rnn.weight_hh_l0 == 0).sum() == round(0.3 * model.rnn.weight_hh_l0.numel())
    return [*before, model(x)]


def weight_norm(model, x):
    parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    parametrizations.weight_norm(model.rnn, "weight_ih_l1")
    return gradients(model, x)


def averaged(model, x):
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
    assert type(average.module.rnn) is type(model.rnn)
    return [model(x), average(x)]


def checkpointed(model, x):
    x = x.clone().requires_grad_()
    y = checkpoint(model, x, use_reentrant=False)
    return [y, *torch.autograd.grad(y.square().sum(), (x, *model.parameters()))]


def saved_elsewhere(model, x):
    with torch.autograd.graph.save_on_cpu():
        y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), tuple(model.parameters()))]


def hooked(model, x):
    seen = []
    rnn = model.rnn
    rnn.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    rnn.register_forward_hook(lambda _, inputs, outputs: (seen.append(inputs[0]), (outputs[0] + 1, outputs[1]))[1])
    rnn.register_full_backward_hook(lambda _, into, out: seen.extend((into[0], out[0])))
    rnn.weight_hh_l0.register_hook(lambda g: 3 * g)
    y = model(x.requires_grad_())
    y.square().sum().backward()
    assert len(seen) == 3
    return [y, *seen, x.grad, *(p.grad for p in model.parameters())]


def attributed(model, x):
    attr = package("captum.attr")
    return [
        attr.IntegratedGradients(model).attribute(x, target=1, n_steps=8),
        attr.Saliency(model).attribute(x.clone().requires_grad_(), target=0),
        attr.LayerActivation(model, model.head).attribute(x),
        attr.FeatureAblation(model).attribute(x, target=1),
    ]


def summed_up(model, x):
    found = package("torchinfo").summary(model, input_data=x, verbose=0, depth=3)
    layer = next(part for part in found.summary_list if part.var_name == "rnn")
    return [
        torch.tensor([found.total_params, found.trainable_params, found.total_mult_adds, found.total_output_bytes]),
        torch.tensor(layer.output_size[0] if isinstance(layer.output_size[0], (list, tuple)) else layer.output_size),
    ]


def gradients(model, x):
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), tuple(model.parameters()))]


TOOLS = (
    functional_call, pruned, weight_norm, averaged, checkpointed, saved_elsewhere, hooked, attributed, summed_up
)  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
@pytest.mark.parametrize("name", ("LSTM", "GRU", "RNN"))
def test_tool(name, tool):
    torch.manual_seed(0)
    models = with_converted(Model(name))
    x = torch.randn(4, 7, 3)
    expected, actual = (tool(copy.deepcopy(model), x.clone()) for model in models)
    for n, (p, q) in enumerate(zip(actual, expected, strict=True)):
        if p.dtype.is_floating_point:
            assert_close(f"result {n}", p, q)
        else:
            assert torch.equal(p, q), f"result {n}: {p}, expected {q}"
