"""The C++ ops called with arguments that make no sense: a RuntimeError each time, never the end of the process."""

import os
import signal
import warnings

import pytest
import torch
from common import assert_close, error

from rnnkernels import backends
from rnnkernels.cells import CELLS

if backends.EXTENSION_ERROR is not None:
    pytest.skip(f"the C++ extension is not there: {backends.EXTENSION_ERROR}", allow_module_level=True)

OPS = torch.ops.rnnkernels


def base(cell="lstm"):
    """The arguments of a small call, by name."""
    G, S = CELLS[cell].gates, CELLS[cell].states
    return dict(
        cell=cell, x=torch.randn(3, 2, 3), states=[torch.randn(1, 2, 4) for _ in range(S)],
        weights=[torch.randn(s) for s in ((G * 4, 3), (G * 4, 4), (G * 4,), (G * 4,))], reverse=[False], bias=True,
        project=False, activation=None, recurrent_activation=None, lengths=None, reset=None, reset_states=[],
        h_mask=None, zone=[], layer_norm=False, eps=1e-5, hidden_size=0, extras=[], parts=0, packed=0,
    )  # fmt: skip


def forward(cell="lstm", **changes):
    return OPS.layer(*(base(cell) | changes).values(), True)


def backward(cell="lstm", **changes):
    call = base(cell)
    y, last, saved = OPS.layer(*call.values(), True)
    given = dict(dy=torch.randn_like(y), dlast=list(last), dcells=None) | call
    given |= dict(y=y, saved=saved, needs=[True] * 4)
    return OPS.layer_backward(*(given | changes).values())


def weights(**changes):
    """The weights of ``base``, some of them replaced by zeros of another shape: w0=(4, 3), ..."""
    return [torch.zeros(changes[f"w{i}"]) if f"w{i}" in changes else w for i, w in enumerate(base()["weights"])]


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


LONG, NONE = torch.int64, [torch.zeros(0, 3), torch.zeros(0, 0), torch.zeros(0), torch.zeros(0)]
EMPTY = dict(states=[], weights=NONE)
BAD = {
    "no weights": lambda: forward(weights=[]),
    "three weights": lambda: forward(weights=base()["weights"][:3]),
    "eight weights": lambda: forward(weights=base()["weights"] * 2),
    "w_ih columns": lambda: forward(weights=weights(w0=(16, 5))),
    "w_hh rows": lambda: forward(weights=weights(w1=(15, 4))),
    "w_hh columns": lambda: forward(weights=weights(w1=(16, 5))),
    "w_hh one dimension": lambda: forward(weights=weights(w1=(16,))),
    "w_hh scalar": lambda: forward(weights=weights(w1=())),
    "bias size": lambda: forward(weights=weights(w3=(15,))),
    "w_ih dtype": lambda: forward(weights=[weights()[0].double(), *weights()[1:]]),
    "no hidden units": lambda: forward(**EMPTY),
    "gru with weights of lstm": lambda: forward("gru", weights=weights()),
    "projection without its weight": lambda: forward(project=True),
    "gru with projection": lambda: forward("gru", project=True),
    "gates of another cell": lambda: backward("gru_reset_before", saved=[zeros(1, 3, 2, 4, 4)]),
    "x with 2 dimensions": lambda: forward(x=zeros(3, 2)),
    "x with 5 dimensions": lambda: forward(x=zeros(1, 1, 3, 2, 3)),
    "x scalar": lambda: forward(x=zeros()),
    "x integer": lambda: forward(x=zeros(3, 2, 3, dtype=LONG)),
    "x complex": lambda: forward(x=zeros(3, 2, 3, dtype=torch.complex64)),
    "no steps": lambda: forward(x=zeros(0, 2, 3)),
    "x groups": lambda: forward(x=zeros(2, 3, 2, 3)),
    "a batch of 2 ** 60 rows": lambda: forward(x=zeros(1, 1, 3).expand(1 << 40, 1 << 20, 3), states=[]),
    "one state": lambda: forward(states=[zeros(1, 2, 4)]),
    "three states": lambda: forward(states=[zeros(1, 2, 4)] * 3),
    "state batch": lambda: forward(states=[zeros(1, 3, 4)] * 2),
    "state directions": lambda: forward(states=[zeros(2, 2, 4)] * 2),
    "state dimensions": lambda: forward(states=[zeros(2, 4)] * 2),
    "state dtype": lambda: forward(states=[zeros(1, 2, 4, dtype=torch.float16)] * 2),
    "lengths int32": lambda: forward(lengths=zeros(2, dtype=torch.int32)),
    "lengths float": lambda: forward(lengths=zeros(2)),
    "lengths size": lambda: forward(lengths=zeros(3, dtype=LONG)),
    "lengths scalar": lambda: forward(lengths=zeros(dtype=LONG)),
    "lengths groups": lambda: forward(lengths=zeros(2, 2, dtype=LONG)),
    "no directions": lambda: forward(reverse=[]),
    "no directions, lengths": lambda: forward(reverse=[], lengths=zeros(3, dtype=LONG)),
    "two directions": lambda: forward(reverse=[False, True]),
    "unknown cell": lambda: OPS.layer("qrnn", *list(base().values())[1:], False),
    "unknown activation": lambda: forward(activation="elu"),
    "no activation": lambda: forward(activation=""),
    "unknown activation of gates": lambda: forward(recurrent_activation="hardsigmoid"),
    "reset of numbers": lambda: forward(reset=zeros(3, 2)),
    "reset size": lambda: forward(reset=zeros(2, 3, dtype=torch.bool)),
    "reset groups": lambda: forward(reset=zeros(2, 3, 2, dtype=torch.bool)),
    "reset scalar": lambda: forward(reset=zeros(dtype=torch.bool)),
    "one reset state": lambda: forward(reset_states=[zeros(1, 2, 4)]),
    "reset state size": lambda: forward(reset_states=[zeros(1, 2, 4), zeros(1, 2, 5)]),
    "reset state dtype": lambda: backward(reset_states=[zeros(1, 2, 4, dtype=torch.float64)] * 2),
    "h_mask size": lambda: forward(h_mask=zeros(1, 2, 5)),
    "h_mask directions": lambda: forward(h_mask=zeros(2, 2, 4)),
    "h_mask dimensions": lambda: forward(h_mask=zeros(2, 4)),
    "one zone": lambda: forward(zone=[zeros(1)]),
    "three zones": lambda: forward(zone=[zeros(1)] * 3),
    "zone size": lambda: backward(zone=[zeros(1), zeros(3)]),
    "zone steps": lambda: backward(zone=[zeros(1), zeros(2, 1, 1, 1)]),
    "zone dimensions": lambda: forward(zone=[zeros(1), zeros(1, 1, 1, 1, 1)]),
    "zone scalar": lambda: forward(zone=[zeros(), zeros()]),
    "layer norm without its weights": lambda: forward(layer_norm=True),
    "weights of a layer norm that is not": lambda: forward(
        weights=[*base()["weights"], *[zeros(16)] * 2, *[zeros(4)] * 2]
    ),
    "gain of h": lambda: forward(layer_norm=True, weights=[*base()["weights"], zeros(16), zeros(4), *[zeros(4)] * 2]),
    "gain of c": lambda: forward(layer_norm=True, weights=[*base()["weights"], *[zeros(16)] * 2, zeros(16), zeros(4)]),
    "dy size": lambda: backward(dy=zeros(3, 2, 5)),
    "dy dtype": lambda: backward(dy=zeros(3, 2, 4, dtype=torch.float64)),
    "one dlast": lambda: backward(dlast=[zeros(1, 2, 4)]),
    "many dlast": lambda: backward(dlast=[zeros(1, 2, 4)] * 99),
    "dcells size": lambda: backward(dcells=zeros(1, 3, 2, 5)),
    "y size": lambda: backward(y=zeros(3, 2, 5)),
    "nothing saved": lambda: backward(saved=[]),
    "half saved": lambda: backward(saved=[zeros(1, 3, 2, 4, 4)]),
    "saved cells size": lambda: backward(saved=[zeros(1, 3, 2, 4, 4), zeros(1, 3, 2, 5)]),
    "saved cells dtype": lambda: backward(saved=[zeros(1, 3, 2, 4, 4), zeros(1, 3, 2, 4, dtype=torch.float64)]),
    "no needs": lambda: backward(needs=[]),
    "two needs": lambda: backward(needs=[True, True]),
    "schedule of unknown cell": lambda: OPS.schedule("qrnn", torch.float32, 1, 1, 1, 1, 1, 1, True),
    "schedule of integers": lambda: OPS.schedule("lstm", LONG, 1, 1, 1, 1, 1, 1, True),
    "schedule of nothing": lambda: OPS.schedule("lstm", torch.float32, 0, 0, 0, 0, 0, 0, True),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_raise(name):
    """In a child each: what is not refused may well end the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads: the child only calls the op
        child = os.fork()
    if child == 0:
        try:
            BAD[name]()
            os._exit(1)
        except RuntimeError:
            os._exit(0)
        finally:
            os._exit(2)
    status = os.waitpid(child, 0)[1]
    died = f"the process died: {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else None
    assert status == 0, died or {1: "no error", 2: "another exception than RuntimeError"}[os.WEXITSTATUS(status)]


def test_lengths_beyond_the_end_are_the_whole_sequence():
    """They must not be read past either, in a direction that starts at the end."""
    for reverse in ([False], [True]):
        call = base() | dict(reverse=reverse)
        got, whole = (call | dict(lengths=torch.tensor(n)) for n in ([9, 3], [3, 3]))
        y, last, saved = OPS.layer(*got.values(), True)
        assert_close("y", y, OPS.layer(*whole.values(), False)[0], 0)
        gradients = []
        for c in (got, whole):
            dx, dstates, dweights, *_ = OPS.layer_backward(y, [], None, *c.values(), y, saved, [True] * 4)
            gradients.append([dx, *dstates, *dweights])
        for name, actual, expected in zip(["dx", "dh", "dc", "w_ih", "w_hh", "b_ih", "b_hh"], *gradients, strict=True):
            assert_close(name, actual, expected, 0)
        none = call | dict(lengths=torch.tensor([-2, 0]))
        assert not OPS.layer(*none.values(), False)[0].any()


def test_coefficients_of_any_dtype():
    """A mask of bools or of another floating dtype is taken as the numbers that it stands for."""
    mask, zone = torch.rand(1, 2, 4) < 0.5, torch.tensor([0.5, 0.0, 1.0, 0.25])
    call = base()
    expected = OPS.layer(*(call | dict(h_mask=mask.float(), zone=[zone, zone[:1]])).values(), False)[0]
    for dtype in (torch.bool, torch.float64, torch.bfloat16, torch.int64):
        got = OPS.layer(*(call | dict(h_mask=mask.to(dtype), zone=[zone.double(), zone[:1].half()])).values(), False)[0]
        assert_close(str(dtype), got, expected, 0)
    assert error(OPS.layer(*call.values(), False)[0], expected) > 0.01
