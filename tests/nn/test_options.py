"""Every option alone, in pairs, and in combinations that hypothesis draws, against plain loops (options_cases.py)."""

import pytest
import torch
from common import assert_close
from conftest import CPU_BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from options_cases import ACTIVATIONS, plain
from pairwise import ALL, cases, in_turn
from test_modules import flat
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import rnnkernels
from rnnkernels import backends

T, B, I, H = 4, 3, 2, 4  # noqa: E741 - the letters of layers.py
CELLS = {
    "rnn": ("RNN", {}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "projected": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
}
FEATURES = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([2, 0, 4])},
    "reset": {"reset": "zeros"},
    "reset to states": {"reset": "states"},
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout": 0.3},
    "zoneout in eval": {"zoneout": 0.3, "train": False},
    "zoneout of one state": {"zoneout": (0.0, 0.6)},
    "layer_norm": {"layer_norm": True},
    "activation": {"activation": "relu"},
    "recurrent_activation": {"recurrent_activation": "hard_sigmoid"},
    "linear": {"activation": "linear", "recurrent_activation": "sigmoid"},
    "recompute": {"recompute": True},
    "heads": {"heads": 2},
    "cell states": {"cells": True},
    "dropout": {"dropout": 0.5},
    "batch_first": {"batch_first": True},
}


def exists(cell, *features):
    """Whether there is such a layer."""
    lstm, rnn = cell in ("lstm", "projected"), cell in ("rnn", "relu")
    wanted = {name for feature in features for name in FEATURES[feature]}
    return not (
        (rnn and wanted & {"activation", "recurrent_activation"})
        or (not lstm and ("zoneout of one state" in features or "cells" in wanted))
        or ("heads" in wanted and ("layer_norm" in wanted or cell == "projected"))
        or len({f for f in features if "activation" in FEATURES[f] or f == "recurrent_activation"}) > 1
        or len({f for f in features if "zoneout" in FEATURES[f]}) > 1
        or {"reset", "reset to states"} <= set(features)
    )


def build(cell, features, layers=2, bias=True, seed=0, dtype=torch.float64, T=T):
    """A module with features, an input, states, and the keyword arguments of a call."""
    name, extra = CELLS[cell]
    made = {k: v for feature in features for k, v in FEATURES[feature].items()}
    call = {k: made.pop(k, None) for k in ("lengths", "reset", "cells")}
    train = made.pop("train", True)
    torch.manual_seed(seed)
    module = getattr(rnnkernels, name)(
        I, H, layers, bias=bias, bidirectional=call["reset"] is None, dtype=dtype, **extra, **made
    )
    for p in module.parameters():  # gains and biases of norms too
        p.data += 0.5 * torch.randn_like(p)
    module.train(train)
    rows = layers * (1 + module.bidirectional)
    widths = (module.proj_size or H, H)[: 1 + (name == "LSTM")]

    def new():
        return tuple(torch.randn(rows, B, n, dtype=dtype).requires_grad_() for n in widths)

    x, hx = torch.randn(T, B, I, dtype=dtype).requires_grad_(), new()
    reset = torch.rand(T, B) < 0.4 if call["reset"] else None
    return module, x, hx, {
        "lengths": call["lengths"], "reset": reset, "restart": new() if call["reset"] == "states" else None,
        "cells": bool(call["cells"]), "batch_first": module.batch_first,
    }  # fmt: skip


def form(states):
    """States as a module takes them."""
    return states[0] if len(states) == 1 else tuple(states)


def run(module, x, hx, call):
    """The outputs of the module as a flat list."""
    more = {}
    turn = (lambda t: t.transpose(0, 1)) if call["batch_first"] else (lambda t: t)
    if call["reset"] is not None:
        reset = turn(call["reset"])
        more["reset"] = reset if call["restart"] is None else (reset, form(call["restart"]))
    if call["lengths"] is not None:
        more["lengths"] = call["lengths"]
    if call["cells"]:
        more["return_cell_states"] = True
    torch.manual_seed(11)
    y, last, *c = module(turn(x), form(hx), **more)
    return [turn(y), *flat(last), *map(turn, c)]


def skip_what_a_backend_lacks(name, module, x, call):
    """Skip, with the reason, where a backend cannot run the call."""
    (first, *_) = rnnkernels.explain(module, x, lengths=call["lengths"], reset=call["reset"]).layers
    reason = backends.BACKENDS[name].unsupported(first.call)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


def run_plain(module, x, hx, call):
    """The same by plain loops."""
    torch.manual_seed(11)
    *expected, c = plain(module, x, hx, call["lengths"], call["reset"], call["restart"]) + [None] * (
        module.mode != "LSTM"
    )
    return expected + [c] if call["cells"] else expected


def compare(module, x, hx, call):
    """Outputs and every gradient, by name."""
    found, expected = run(module, x, hx, call), run_plain(module, x, hx, call)
    leaves = {"x": x} | {f"hx {k}": s for k, s in enumerate(hx)} | dict(module.named_parameters())
    leaves |= {f"restart {k}": s for k, s in enumerate(call["restart"] or ())}
    assert len(found) == len(expected)
    torch.manual_seed(12)
    dy = [torch.randn_like(o) for o in expected]
    more = {"allow_unused": True, "materialize_grads": True}
    grads = [torch.autograd.grad(o, list(leaves.values()), dy, **more) for o in (found, expected)]
    for k, (a, e) in enumerate(zip(found, expected, strict=True)):
        assert_close(f"output {k}", a, e)
    for name, a, e in zip(leaves, *grads, strict=True):
        assert_close(f"gradient of {name}", a, e)
    with torch.no_grad():
        for k, (a, e) in enumerate(zip(run(module, x, hx, call), expected, strict=True)):
            assert_close(f"output {k} without grad", a, e)


def meet(cell, first, second, name="cpp"):
    """Whether two features can be tested together: each pair in one order, a feature with itself for it alone."""
    order = list(FEATURES).index
    return exists(cell, first, second) and (first == second or 0 < order(first) < order(second))


CASES = cases(CELLS, FEATURES, FEATURES, CPU_BACKENDS, exists=meet)


@pytest.mark.parametrize("cell, first, second, name", CASES, ids=["-".join(case) for case in CASES])
def test_features_alone_and_in_pairs(cell, first, second, name):
    features = sorted({first, second}, key=list(FEATURES).index)
    module, x, hx, call = build(cell, features, layers=2 if len(features) == 1 or "dropout" in features else 1)
    with backends.force(name):
        skip_what_a_backend_lacks(name, module, x, call)
        compare(module, x, hx, call)


@given(
    st.sampled_from(CPU_BACKENDS), st.sampled_from(list(CELLS)),
    st.lists(st.sampled_from(list(FEATURES)), min_size=3, max_size=7, unique=True),
    st.integers(1, 2), st.booleans(), st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, derandomize=True, max_examples=120 if ALL else 60, database=None)
def test_any_combination(name, cell, features, layers, bias, seed):
    chosen = []
    for feature in features:
        if exists(cell, *chosen, feature) and (layers > 1 or feature != "dropout"):
            chosen.append(feature)
    with backends.force(name):
        compare(*build(cell, chosen, layers, bias, seed))


@pytest.mark.parametrize(
    "cell, gate, activation, name", cases(["lstm", "gru", "gru_reset_before"], ACTIVATIONS, ACTIVATIONS, CPU_BACKENDS)
)
def test_all_activations(cell, gate, activation, name):
    module, x, hx, call = build(cell, ["lengths"], layers=1)
    module.activation, module.recurrent_activation = activation, gate
    with backends.force(name):
        skip_what_a_backend_lacks(name, module, x, call)
        compare(module, x, hx, call)


# First derivatives of all pairs of cell and feature are compared with the plain loops' above.
CHECKED = in_turn(CELLS, list(FEATURES)[1:], exists=exists)
derivatives = pytest.mark.parametrize("cell, feature", CHECKED, ids=[f"{c}-{f}" for c, f in CHECKED])


def build_short(cell, feature):
    module, x, hx, call = build(cell, [feature], layers=2 if feature == "dropout" else 1, T=3)
    call["lengths"] = None if call["lengths"] is None else torch.tensor([2, 0, 3])
    return module, x, hx, call


@derivatives
def test_second_derivatives(cell, feature):
    module, x, hx, call = build_short(cell, feature)
    names, leaves = zip(*module.named_parameters(), strict=True)
    names = ["x", *(f"hx {k}" for k in range(len(hx))), *names, *(f"restart {k}" for k in range(len(hx)))]
    leaves, more = [x, *hx, *leaves, *(call["restart"] or ())], {"allow_unused": True, "materialize_grads": True}
    second = []
    for outputs in (run(module, x, hx, call), run_plain(module, x, hx, call)):
        first = torch.autograd.grad(sum(o.sin().sum() for o in outputs), leaves, create_graph=True, **more)
        second.append(torch.autograd.grad(sum(g.cos().sum() for g in first), leaves, **more))
    for name, a, e in zip(names, *second, strict=False):
        assert_close(f"second derivative by {name}", a, e)


@pytest.mark.long
@derivatives
def test_first_and_second_derivatives_numerically(cell, feature):
    module, x, hx, call = build_short(cell, feature)
    names, weights = zip(*module.named_parameters(), strict=True)
    restart, n = call["restart"] or (), 1 + len(hx)

    def function(*tensors):
        x, hx, given = tensors[0], tensors[1:n], tensors[n : n + len(restart)]
        parameters = dict(zip(names, tensors[n + len(restart) :], strict=True))
        bound = lambda *args, **more: functional_call(module, parameters, args, more)  # noqa: E731
        return tuple(run(bound, x, hx, call | {"restart": given or None}))

    tensors = (x, *hx, *restart, *weights)
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


def test_masks_come_from_the_generator():
    """The same seed gives the same masks, on any backend and at any later call; another seed gives others."""
    module, x, hx, call = build("lstm", ["recurrent_dropout", "zoneout", "heads"])
    first = run(module, x, hx, call)
    with backends.force("reference"):
        for n, (there, here) in enumerate(zip(run(module, x, hx, call), first, strict=True)):
            assert_close(f"result {n}", there, here)
    torch.manual_seed(13)
    assert not torch.equal(module(x, hx)[0], first[0])
    rates = []
    for p in (0.1, 0.6):
        wide = rnnkernels.GRU(1, 400, zoneout=p).eval()
        for name, q in wide.named_parameters():
            q.data.fill_(30.0 if name == "bias_ih_l0" else 0.0)
        wide.bias_ih_l0.data[400:800] = -90.0  # z = 0, n = 1: h is 1 unless the old state stays
        y = wide(torch.zeros(1, 50, 1))[0]
        assert_close("expectation", y, torch.full_like(y, 1 - p))
        kept = (wide.train()(torch.zeros(1, 50, 1))[0] == 0).double().mean().item()
        rates.append(abs(kept - p))
    assert max(rates) < 0.02


def test_recurrent_dropout_is_one_mask_per_sequence():
    """With W_hh = 1 and nothing else, h_t says at every step which elements the mask has dropped: always the same."""
    module = rnnkernels.RNN(1, 6, bias=False, nonlinearity="relu", recurrent_dropout=0.5, dtype=torch.float64)
    module.weight_hh_l0.data = torch.eye(6, dtype=torch.float64)
    module.weight_ih_l0.data.zero_()
    y, _ = module(torch.zeros(5, 40, 1, dtype=torch.float64), torch.ones(1, 40, 6, dtype=torch.float64))
    assert set(y[0].unique().tolist()) == {0.0, 2.0}  # scaled by 1 / (1 - p)
    for t in range(5):
        assert torch.equal(y[t], y[0] ** (t + 1))
    rows = y[0].unique(dim=0)
    assert len(rows) > 20  # every sequence has one of its own
    module.eval()
    assert torch.equal(
        module(torch.zeros(2, 3, 1).double(), torch.ones(1, 3, 6).double())[0], torch.ones(2, 3, 6).double()
    )
