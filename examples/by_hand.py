"""Cells written out as textbooks write them, beside the layers: shapes, outputs, and gradients through copies in time.

    python -m examples.by_hand                                # 32 sentences of 100 words, 64 features each
    python -m examples.by_hand --batch 1 --steps 10 --layers torch
    python -m examples.by_hand --load runs/by_hand --steps 50 # the same weights, longer sentences

A recurrent layer reads (batch, steps, features). Here its step is a function of a few lines on [h, x], and the layer is
that function again and again, unrolled: every step is a copy of the network with weights of its own, equal in value.
Outputs are the layer's; the gradient of the layer's weights is the sum of those of all copies (back-propagation through
time, Werbos 1990), and its share per copy shows how far back an error at the end is heard. And a bag of words is held
against the last state: only one of them notices that a sentence is read backwards.

Mended, against the guides:
- counts of parameters like 4·d·h for an RNN: the formula below counts what is there, of torch.nn's layers two biases;
- a GRU "like torch.nn's" whose reset gate comes before the product, and whose z weighs the candidate instead of h: that
  one is `GRU(reset_after=False)` with the signs of z's weights turned; torch.nn's own is another function;
- one weight matrix per gate or all in one, i f o g or i f g o: the order is said, and held to the layer's numbers;
- biases are left out of the equations: here they are in.

B batch, T time, I features, H hidden.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

import rnnkernels
from examples import common
from examples.common import BadData, Threshold

TIME = "about 5 s"
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
Step = Callable[[Tensor, list[Tensor], dict[str, Tensor]], list[Tensor]]


def rnn(x: Tensor, states: list[Tensor], w: dict[str, Tensor]) -> list[Tensor]:
    """h = tanh(W [x, h] + b)"""
    return [torch.tanh(torch.cat([x, states[0]], 1) @ w["h"].T + w["h_bias"])]


def lstm(x: Tensor, states: list[Tensor], w: dict[str, Tensor]) -> list[Tensor]:
    """Input, forget and output gate and the candidate g; c = f c + i g, h = o tanh(c)"""
    h, c = states
    i, f, o = (torch.sigmoid(torch.cat([x, h], 1) @ w[gate].T + w[f"{gate}_bias"]) for gate in "ifo")
    g = torch.tanh(torch.cat([x, h], 1) @ w["g"].T + w["g_bias"])
    c = f * c + i * g
    return [o * torch.tanh(c), c]


def gru(x: Tensor, states: list[Tensor], w: dict[str, Tensor]) -> list[Tensor]:
    """Update gate z and reset gate r; the candidate reads [x, r h]; h = (1 - z) h + z candidate"""
    h = states[0]
    z, r = (torch.sigmoid(torch.cat([x, h], 1) @ w[gate].T + w[f"{gate}_bias"]) for gate in "zr")
    n = torch.tanh(torch.cat([x, r * h], 1) @ w["n"].T + w["n_bias"])
    return [(1 - z) * h + z * n]


STEPS: dict[str, tuple[Step, str]] = {
    "RNN": (rnn, "h"),
    "LSTM": (lstm, "ifgo"),
    "GRU": (gru, "rzn"),
}  # the layers' order


def by_gate(layer: nn.Module) -> dict[str, Tensor]:
    """The layer's weights as the functions above have them: of each gate a matrix (H, I + H) and one bias."""
    gates = STEPS[layer.mode.partition("_")[0]][1]
    whole = torch.cat([layer.weight_ih_l0, layer.weight_hh_l0], 1).detach().chunk(len(gates))
    biases = (layer.bias_ih_l0 + layer.bias_hh_l0).detach().chunk(len(gates))
    found = {gate: matrix.clone() for gate, matrix in zip(gates, whole, strict=True)}
    found |= {f"{gate}_bias": bias.clone() for gate, bias in zip(gates, biases, strict=True)}
    for name in {"z", "z_bias"} & found.keys():  # torch's z is how much of h stays
        found[name] = -found[name]
    return found


def unrolled(name: str, x_BTI: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The output (B, T, H), and the copy of the weights that each step has used."""
    H = next(iter(weights.values())).shape[0]
    states = [x_BTI.new_zeros(len(x_BTI), H) for _ in range(2 if name == "LSTM" else 1)]
    found, copies = [], []
    for x in x_BTI.unbind(1):
        copies.append({key: value.clone().requires_grad_() for key, value in weights.items()})
        states = STEPS[name][0](x, states, copies[-1])
        found.append(states[0])
    return torch.stack(found, 1), copies


def compared(name: str, layer: nn.Module, x_BTI: Tensor) -> dict[str, Any]:
    """Largest differences between the layer and its copies in time, of outputs and of a loss's gradient; and how large
    the gradient of each copy is. The loss is at the end."""
    y_BTH, copies = unrolled(name, x_BTI, by_gate(layer))
    y_BTH[:, -1].square().sum().backward()
    output = layer(x_BTI)[0]
    layer.zero_grad()
    output[:, -1].square().sum().backward()
    whole = torch.cat([layer.weight_ih_l0.grad, layer.weight_hh_l0.grad], 1).chunk(len(STEPS[name][1]))
    gradient = 0.0
    for gate, wanted in zip(STEPS[name][1], whole, strict=True):
        summed = sum(copy[gate].grad for copy in copies) * (-1 if gate == "z" else 1)
        gradient = max(gradient, (summed - wanted).abs().max().item())
    norms = [torch.stack([copy[gate].grad.norm() for gate in STEPS[name][1]]).norm().item() for copy in copies]
    return {"output": (y_BTH - output).abs().max().item(), "gradient": gradient, "norms": norms}


def formula(name: str, features: int, hidden: int) -> int:
    """Parameters: of each gate W (H, I + H) and two biases (H)."""
    return GATES[name] * (hidden * (features + hidden) + 2 * hidden)


def shapes(library: Any, x_BTI: Tensor, hidden: int) -> Table:
    """Of outputs and last states, for the arguments that change them."""
    table = Table(
        "layer", "arguments", "output", "last h", "last c", title=f"from {tuple(x_BTI.shape)}: batch, time, features"
    )
    for name in GATES:
        for options in ({}, {"num_layers": 2}, {"bidirectional": True}):
            layer = getattr(library, name)(x_BTI.shape[-1], hidden, batch_first=True, **options)
            y, state = layer(x_BTI.float())
            states = state if isinstance(state, tuple) else (state,)
            given = ", ".join(f"{key}={value}" for key, value in options.items())
            table.add_row(name, given, *(str(tuple(tensor.shape)) for tensor in (y, *states)))
    return table


def draw(path, found: dict[str, dict[str, Any]]) -> None:
    with common.plot(path) as axes:
        for name, facts in found.items():
            axes.plot(range(len(facts["norms"]) - 1, -1, -1), facts["norms"], label=name)
        axes.set(yscale="log", xlabel="steps before the end", ylabel="norm of a copy's gradient")
        axes.legend()


def parser() -> argparse.ArgumentParser:
    made = common.parser("by_hand", __doc__, epochs=1, cells=("all", "rnn", "lstm", "gru"))
    made.add_argument("--batch", type=common.positive(int), default=32, help="sentences (default: %(default)s)")
    made.add_argument("--steps", type=common.positive(int), default=100, help="words of each (default: %(default)s)")
    made.add_argument("--features", type=common.positive(int), default=64, help="of a word (default: %(default)s)")
    made.add_argument("--hidden", type=common.positive(int), default=32, help="units (default: %(default)s)")
    return made


def work(asked: argparse.Namespace) -> tuple[dict[str, Any], list[Threshold]]:
    if asked.processes > 1:
        raise BadData("--processes: nothing is trained")
    steps = asked.steps
    weights, _ = common.earlier(asked, "by_hand")
    library = common.LAYERS[asked.layers]
    names = [name for name in GATES if asked.cell in ("all", name.lower())]
    layers = nn.ModuleDict()
    for name in names:  # the GRU of the texts, which torch.nn does not have
        options = {"reset_after": False} if name == "GRU" else {}
        of = rnnkernels if name == "GRU" else library
        layers[name] = getattr(of, name)(asked.features, asked.hidden, batch_first=True, dtype=torch.float64, **options)
    if asked.load:
        common.restore(layers, weights, asked.load)
    kept = {key: vars(asked)[key] for key in ("cell", "layers", "features", "hidden", "seed", "batch")}
    common.save(asked.out, layers, example="by_hand", arguments=kept)
    layers.to(asked.device)
    random = torch.Generator().manual_seed(asked.seed)
    x_BTI = torch.randn(asked.batch, steps, asked.features, dtype=torch.float64, generator=random).to(asked.device)

    console = common.console()
    console.print(shapes(library, x_BTI.cpu(), asked.hidden))
    found = {
        name: compared(name, layer, x_BTI) for name, layer in common.progress(layers.items(), "layers", len(layers))
    }
    table = Table("layer", "parameters", "outputs differ by", "gradients by", "first copy's gradient over the last's")
    for name, facts in found.items():
        count = sum(parameter.numel() for parameter in layers[name].parameters())
        facts["besides_formula"] = abs(count - formula(name, asked.features, asked.hidden))
        share = facts["norms"][0] / facts["norms"][-1]
        table.add_row(name, f"{count:,}", f"{facts['output']:.1e}", f"{facts['gradient']:.1e}", f"{share:.1e}")
    console.print(table)
    draw(asked.out / "copies.png", found)

    name = names[0]
    with torch.no_grad():
        there, back = (layers[name](x)[0][:, -1] for x in (x_BTI, x_BTI.flip(1)))
        bag = (x_BTI.mean(1) - x_BTI.flip(1).mean(1)).abs().max().item()
    order = (there - back).abs().max().item()
    print(f"sentences read backwards: a bag of words changes by {bag:.1e}, the last state of the {name} by {order:.2f}")
    metrics = {
        "output_difference": max(facts["output"] for facts in found.values()),
        "gradient_difference": max(facts["gradient"] for facts in found.values()),
        "parameters_besides_formula": max(facts["besides_formula"] for facts in found.values()),
        "first_over_last": {name: facts["norms"][0] / facts["norms"][-1] for name, facts in found.items()},
        "bag_backwards": bag,
        "state_backwards": order,
    }
    return metrics, [
        Threshold("output_difference", "<=", 1e-12),
        Threshold("gradient_difference", "<=", 1e-10),
        Threshold("parameters_besides_formula", "<=", 0),
        Threshold("bag_backwards", "<=", 1e-12),
        Threshold("state_backwards", ">=", 0.1 if steps > 1 else 0),
    ]


def main(arguments: list[str] | None = None) -> int:
    return common.run("by_hand", parser(), work, arguments)


if __name__ == "__main__":
    sys.exit(main())
