"""What ``recompute`` hands to the backward pass is what the forward pass would have saved, with every stage."""

import pytest
import torch
from common import assert_close, make_case
from pairwise import cases
from test_op_stages import STAGES, B, H, T, random, stage_arguments

from rnnkernels.cells import CELLS, reference
from rnnkernels.cells.call import LayerCall
from rnnkernels.op import recompute

GROUPS = 2


def arguments_of(cell, stage, reverse, P=0, groups=False, states=True):
    """The op's arguments, without ``save``."""
    case = make_case(
        cell, T=T, B=B, H=H, P=P, reverse=reverse * (GROUPS if groups else 1), states=states, **STAGES[stage]
    )
    x, states, weights = case.split(case.detached())
    D = len(reverse) * (GROUPS if groups else 1)
    given = stage_arguments(stage, CELLS[cell].states, D)
    if "zone" in given and P:
        given["zone"][0] = given["zone"][0][..., :P]
    if "h_mask" in given and P:
        given["h_mask"] = given["h_mask"][..., :P]
    restart = [random(D, B, n) for n in (P or H, H)[: CELLS[cell].states]] if stage == "reset to states" else []
    if groups:
        x = torch.stack([x, 2 * x])
        for name in ("lengths", "reset"):
            if name in given:
                given[name] = torch.stack([given[name], given[name].flip(-1)])
    s = case.settings
    return (
        cell, x, states, weights, reverse, True, P > 0, s.get("activation"), s.get("recurrent_activation"),
        given.get("lengths"), given.get("reset"), restart, given.get("h_mask"), given.get("zone", []),
        s["layer_norm"], s.get("eps", 1e-5), 0, [],
    )  # fmt: skip


REVERSES = {"forward": (False,), "reverse": (True,), "both": (False, True)}


@pytest.mark.parametrize("cell, stage, direction, parts", cases([*CELLS, "projected"], STAGES, REVERSES, [1, 3]))
def test_gates_are_those_of_the_forward_pass(cell, stage, direction, parts, monkeypatch):
    reverse = REVERSES[direction]
    monkeypatch.setattr(recompute, "PARTS", parts)
    monkeypatch.setattr(recompute, "LEAST", 1)
    P, cell = (2, "lstm") if cell == "projected" else (0, cell)
    for more in ({}, {"states": False}, {"groups": True}):
        arguments = arguments_of(cell, stage, reverse, P, **more)
        y, _, saved = reference.layer(*arguments, True)
        found = recompute.with_gates(LayerCall(*arguments), y, recompute.without_gates(cell, saved))
        assert len(found) == len(saved) == (CELLS[cell].kept > 0) + (CELLS[cell].states > 1)
        lengths = arguments[9]
        for name, a, e in zip(("gates", "cells"), found, saved, strict=False):
            if lengths is not None:  # past the end anything finite will do
                assert a.isfinite().all()
                ends = lengths if lengths.dim() == 1 else lengths.repeat_interleave(len(reverse), 0)[:, None]
                live = torch.arange(T)[:, None] < ends  # (T, B) or (D, T, B)
                live = live.expand(a.shape[:3])
                a, e = a[live], e[live]
            assert_close(name, a, e)
