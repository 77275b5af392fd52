"""The Triton kernels interpreted on the CPU, against the reference in float64: cells, dtypes, schedules and stages.

Needs a process of its own (triton_cases.py).
"""

import pytest
import torch
from common import assert_close, make_case
from pairwise import cases, in_turn
from triton_cases import BOTH, CELLS, DTYPES, arguments, check, interpreter, running  # noqa: F401 - used by every test

from rnnkernels import backends
from rnnkernels.backends.triton import launch, schedules

VARIANTS = {
    "plain": dict(T=4, B=2, H=20),
    "reverse, no bias": dict(T=3, B=3, H=40, reverse=(True,), bias=False),
    "both directions from zero": dict(T=3, B=1, H=20, reverse=BOTH, states=False),
    "one step": dict(T=1, B=5, H=20, lengths=[1, 0, 1, 1, 0]),
    "lengths": dict(T=4, B=4, H=20, reverse=BOTH, lengths=[4, 0, 3, 1]),
    "two batch tiles": dict(T=2, B=17, H=16, lengths=[2, 1, 0] * 5 + [1, 2]),
}
ONCE = {
    "H=127": dict(T=2, B=2, H=127, dtype=torch.bfloat16, reverse=(True,)),
    "float64": dict(T=2, B=2, H=33, dtype=torch.float64, reverse=BOTH, lengths=[1, 2]),
    "empty batch": dict(T=3, B=0, H=20, dtype=torch.float32, reverse=BOTH),
}


OF_DTYPE = {"fp32": list(VARIANTS), "bf16": ["reverse, no bias", "lengths", "two batch tiles"]}
OF_DTYPE |= {"fp16": ["plain", "one step"]}


@pytest.mark.parametrize(
    "cell, schedule, dtype, variant",
    cases(CELLS, schedules.NAMES, OF_DTYPE, VARIANTS, exists=lambda cell, schedule, dtype, v: v in OF_DTYPE[dtype]),
)
def test_equals_reference(cell, schedule, dtype, variant):
    check(cell, schedule, inference=True, dtype=DTYPES[dtype], **VARIANTS[variant])


@pytest.mark.parametrize("cell, variant", in_turn(CELLS, ONCE))
def test_equals_reference_once(cell, variant):
    check(cell, **ONCE[variant])


@pytest.mark.parametrize("cell, schedule, lengths", in_turn(CELLS, schedules.NAMES, [None, [[3, 0], [1, 2]]]))
def test_groups_with_inputs_of_their_own(cell, schedule, lengths):
    """What vmap over the weights asks for: two groups of two directions, each group with its input and lengths."""
    check(cell, schedule, lengths=lengths, T=3, B=2, H=20, reverse=BOTH, groups=2, dtype=torch.float32)


# The stages of a step, one of each or none.
STAGES = ["no reset", "reset", "restart"], ["no mask", "h_mask"], ["no zone", "zone", "zone_mask", "expected_zone"]


@pytest.mark.parametrize("cell, schedule, reset, mask, zone", cases(CELLS, schedules.NAMES, *STAGES))
def test_stages(cell, schedule, reset, mask, zone):
    """Every two stages, with lengths and both directions."""
    options = dict(T=3, B=3, H=20, dtype=torch.float32, reverse=BOTH, lengths=[3, 0, 2])
    check(cell, schedule, stages=[reset, mask, zone], **options)


ONE_WAY, GROUPS = dict(cell="lstm", states=False), dict(cell="gru", reverse=BOTH, groups=2)


@pytest.mark.parametrize("schedule, dtype, call", in_turn(schedules.NAMES, DTYPES, ["one way", "groups"]))
def test_all_stages(schedule, dtype, call):
    call = {"one way": ONE_WAY, "groups": GROUPS}[call]
    sizes = dict(T=4, B=3, H=20, dtype=DTYPES[dtype])
    check(schedule=schedule, inference=True, stages=["restart", "h_mask", "zone"], **sizes, **call)


@pytest.mark.parametrize("schedule", schedules.NAMES)
def test_masks_of_another_dtype(schedule):
    """Masks whose values both dtypes have: the same bits."""
    args = arguments("gru", T=2, B=2, H=20, dtype=torch.bfloat16, stages=["h_mask", "zone"])
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        args[12], args[13] = args[12].to(dtype), [z.to(dtype) for z in args[13]]
        with running(schedule):
            y, last, saved = launch.layer(*args, True)
            dx, dstates, dweights, *_ = launch.layer_backward(y, last, None, *args, y, saved, [True] * 4)
        results.append([y, *last, dx, *dstates, *dweights])
    assert all(map(torch.equal, *results)) and all(t.dtype == torch.bfloat16 for t in results[1])


@pytest.mark.parametrize("reset, mask, zone", in_turn(*STAGES))
def test_stages_of_a_projection(reset, mask, zone):
    options = dict(T=4, B=3, H=20, P=7, dtype=torch.float32, reverse=BOTH, lengths=[4, 0, 3])
    check("lstm", stages=[reset, mask, zone], **options)


PROJECTIONS = {
    "P=7": dict(T=3, H=20, P=7), "one step": dict(T=1, H=20, P=17, bias=False),
    "lengths": dict(T=4, B=4, H=24, P=9, lengths=[4, 0, 3, 1]),
}  # fmt: skip


@pytest.mark.parametrize("dtype, sizes, reverse", cases(DTYPES, PROJECTIONS, [BOTH, (False,)]))
def test_projection(dtype, sizes, reverse):
    states = len(reverse) > 1
    check("lstm", inference=states, reverse=reverse, states=states, dtype=DTYPES[dtype], **PROJECTIONS[sizes])


NORM_AND = {
    "nothing": dict(B=2),
    "all stages": dict(B=3, reverse=(True,), stages=["restart", "h_mask", "zone"], lengths=[3, 0, 2]),
}


@pytest.mark.parametrize("cell, schedule, more", cases(CELLS, schedules.NAMES, NORM_AND))
def test_layer_norm(cell, schedule, more):
    """Alone, over a part of a tile (resident) or several programs; and with all other stages."""
    options = dict(layer_norm=True, T=3, H=20, dtype=torch.float32)
    check(cell, schedule, inference=more == "nothing", **options, **NORM_AND[more])


NORMS = {
    "bf16": dict(cell="lstm", T=2, B=2, H=127, dtype=torch.bfloat16, reverse=(True,)),
    "bf16, two products": dict(cell="gru_reset_before", T=2, B=2, H=127, dtype=torch.bfloat16, reverse=(True,)),
    "fp16, one step": dict(cell="gru", T=1, B=1, H=127, dtype=torch.float16, states=False, bias=False),
    "float64": dict(cell="gru", T=3, B=2, H=33, dtype=torch.float64, reverse=BOTH, lengths=[1, 3]),
    "bf16, cooperative": dict(
        cell="lstm", schedule="cooperative", T=2, B=2, H=36, dtype=torch.bfloat16, reverse=(True,)
    ),
    "fp16, two products, cooperative": dict(
        cell="gru_reset_before", schedule="cooperative", T=2, B=2, H=36, dtype=torch.float16
    ),
    "groups, cooperative": dict(
        cell="lstm", schedule="cooperative", T=2, B=17, H=20, dtype=torch.float32, reverse=BOTH, groups=2
    ),
    "two batch tiles": dict(
        cell="lstm", T=2, B=17, H=20, dtype=torch.bfloat16, stages=["reset"], lengths=[2] * 16 + [1]
    ),
    "groups": dict(cell="gru_reset_before", T=3, B=2, H=20, dtype=torch.float32, reverse=BOTH, groups=2),
    "projection": dict(cell="lstm", T=3, B=2, H=20, P=7, dtype=torch.float32, stages=["restart", "zone"]),
    "batch first": dict(cell="rnn", T=4, B=3, H=20, dtype=torch.float32, batch_first=True),
    "empty batch": dict(cell="lstm", T=3, B=0, H=20, dtype=torch.float32, reverse=BOTH),
}


@pytest.mark.parametrize("case", NORMS)
def test_layer_norm_once(case):
    check(layer_norm=True, **NORMS[case])


ACTIVATIONS, GATES = (
    ["sigmoid", "relu", "hard_sigmoid", "linear"],
    ["sigmoid", "tanh", "relu", "hard_sigmoid", "linear"],
)


@pytest.mark.parametrize("cell, activation, gate", cases(CELLS, ACTIVATIONS, ["tanh", *ACTIVATIONS]))
def test_activations(cell, activation, gate):
    """Every pair of them, in float64: where rounding near a corner does not matter."""
    check(cell, "stepwise", T=2, B=2, H=5, activation=activation, recurrent_activation=gate, dtype=torch.float64)


def test_activations_on_chip():
    options = dict(T=3, B=2, H=20, activation="relu", recurrent_activation="hard_sigmoid", dtype=torch.float32)
    check("lstm", "resident", **options)
    check("gru", "cooperative", **options)
    check("lstm", P=7, **options)


@pytest.mark.parametrize("cell", CELLS)
def test_batch_first_input_is_read_by_strides(cell):
    check(cell, "resident", T=4, B=3, H=20, batch_first=True, dtype=torch.float32)


@pytest.mark.parametrize("cell", CELLS)
def test_through_the_op_and_autograd(cell):
    case = make_case(cell, T=3, B=2, H=20, dtype=torch.float32, lengths=torch.tensor([1, 3]))
    grads = {}
    for backend in ("triton", "reference"):
        with backends.force(backend):
            out = case(*case.tensors)
            grads[backend] = torch.autograd.grad(sum((o * o).sum() for o in out), case.tensors)
    for n, (actual, wanted) in enumerate(zip(grads["triton"], grads["reference"], strict=True)):
        assert_close(f"gradient {n}", actual, wanted)


def test_only_the_needed_gradients():
    args = arguments("gru", H=20, dtype=torch.float32)
    y, _, saved = launch.layer(*args, True)
    needs = [False, True, False, False]
    dx, dstates, dweights, *_ = launch.layer_backward(torch.ones_like(y), [], None, *args, y, saved, needs)
    assert dx.numel() == 0 and len(dstates) == 1 and dweights == []
