"""The Triton kernels interpreted on the CPU, against the reference in float64: cells, dtypes, schedules and stages.

Needs a process of its own (triton_cases.py).
"""

import pytest
import torch
from common import assert_close, make_case
from triton_cases import BOTH, CELLS, DTYPES, arguments, check, interpreter, running  # noqa: F401 - used by every test

from rnnkernels import backends
from rnnkernels.backends.triton import launch, schedules

RAGGED = [7, 0, 3, 1, 5]
VARIANTS = {
    "plain": dict(T=4, B=2, H=20),
    "reverse, no bias": dict(T=4, B=3, H=40, reverse=(True,), bias=False),
    "both directions from zero": dict(T=3, B=1, H=20, reverse=BOTH, states=False),
    "one step": dict(T=1, B=5, H=20, lengths=[1, 0, 1, 1, 0]),
    "lengths": dict(T=7, B=5, H=20, reverse=BOTH, lengths=RAGGED),
    "two batch tiles": dict(T=2, B=17, H=16, lengths=[2, 1, 0] * 5 + [1, 2]),
}
ONCE = {
    "H=127": dict(T=2, B=2, H=127, dtype=torch.bfloat16, reverse=(True,)),
    "float64": dict(T=3, B=2, H=33, dtype=torch.float64, reverse=BOTH, lengths=[1, 3]),
    "empty batch": dict(T=3, B=0, H=20, dtype=torch.float32, reverse=BOTH),
}


OF_DTYPE = {"fp32": list(VARIANTS), "bf16": ["reverse, no bias", "lengths", "two batch tiles"]}
OF_DTYPE |= {"fp16": ["plain", "one step"]}


@pytest.mark.parametrize("dtype, variant", [(dtype, name) for dtype, names in OF_DTYPE.items() for name in names])
@pytest.mark.parametrize("schedule", schedules.NAMES)
@pytest.mark.parametrize("cell", CELLS)
def test_equals_reference(cell, dtype, schedule, variant):
    check(cell, schedule, dtype=DTYPES[dtype], **VARIANTS[variant])


@pytest.mark.parametrize("variant", ONCE)
@pytest.mark.parametrize("cell", CELLS)
def test_equals_reference_once(cell, variant):
    check(cell, **ONCE[variant])


@pytest.mark.parametrize("schedule", schedules.NAMES)
@pytest.mark.parametrize("cell", CELLS)
def test_groups_with_inputs_of_their_own(cell, schedule):
    """What vmap over the weights asks for: two groups of two directions, each group with its input and lengths."""
    args = dict(T=3, B=2, H=20, reverse=BOTH, groups=2, dtype=torch.float32)
    check(cell, schedule, **args)
    check(cell, schedule, lengths=[[3, 0], [1, 2]], **args)


ALONE, PAIRS = (
    ["reset", "restart", "h_mask", "zone"],
    ["expected_zone", "reset h_mask", "restart zone_mask", "h_mask zone"],
)
STAGES = [*ALONE, *PAIRS]
ON_SCHEDULE = [("resident", stages) for stages in STAGES]
ON_SCHEDULE += [(schedule, stages) for schedule in ("cooperative", "stepwise") for stages in PAIRS]


@pytest.mark.parametrize("schedule, stages", ON_SCHEDULE)
@pytest.mark.parametrize("cell", CELLS)
def test_stages(cell, schedule, stages):
    """Every stage alone, on chip, and in pairs, with lengths and both directions."""
    check(cell, schedule, T=4, B=3, H=20, dtype=torch.float32, reverse=BOTH, stages=stages.split(), lengths=[4, 0, 3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", schedules.NAMES)
def test_all_stages(schedule, dtype):
    options = dict(T=4, B=3, H=20, dtype=DTYPES[dtype], stages=["restart", "h_mask", "zone"])
    check("lstm", schedule, states=False, **options)
    check("gru", schedule, reverse=BOTH, groups=2, **options)


@pytest.mark.parametrize("schedule", schedules.NAMES)
def test_masks_of_another_dtype(schedule):
    """Masks whose values both dtypes have: the same bits."""
    args = arguments("gru", T=2, B=2, H=20, dtype=torch.bfloat16, stages=["h_mask", "zone"])
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        args[12], args[13] = args[12].to(dtype), [z.to(dtype) for z in args[13]]
        with running(schedule):
            y, last, saved = launch.layer(*args, True)
            dx, dstates, dweights, _ = launch.layer_backward(y, last, None, *args, y, saved, [True] * 3)
        results.append([y, *last, dx, *dstates, *dweights])
    assert all(map(torch.equal, *results)) and all(t.dtype == torch.bfloat16 for t in results[1])


@pytest.mark.parametrize("stages", STAGES)
def test_stages_of_a_projection(stages):
    check("lstm", T=4, B=3, H=20, P=7, dtype=torch.float32, reverse=BOTH, stages=stages.split(), lengths=[4, 0, 3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [dict(T=3, H=20, P=7), dict(T=1, H=20, P=17, bias=False), dict(T=5, B=5, H=24, P=9, lengths=[5, 0, 3, 1, 4])],
)
def test_projection(options, dtype):
    check("lstm", reverse=BOTH, dtype=DTYPES[dtype], **options)
    check("lstm", reverse=(False,), states=False, dtype=DTYPES[dtype], **options)


@pytest.mark.parametrize("schedule", ["resident", "stepwise"])
@pytest.mark.parametrize("cell", CELLS)
def test_layer_norm(cell, schedule):
    """Alone, over a part of a tile (resident) or several tiles; and with all other stages."""
    options = dict(layer_norm=True, T=3, H=20, dtype=torch.float32)
    check(cell, schedule, B=2, **options)
    check(cell, schedule, B=3, reverse=(True,), stages=["restart", "h_mask", "zone"], lengths=[3, 0, 2], **options)


NORMS = {
    "bf16": dict(cell="lstm", T=2, B=2, H=127, dtype=torch.bfloat16, reverse=(True,)),
    "bf16, two products": dict(cell="gru_reset_before", T=2, B=2, H=127, dtype=torch.bfloat16, reverse=(True,)),
    "fp16, one step": dict(cell="gru", T=1, B=1, H=127, dtype=torch.float16, states=False, bias=False),
    "float64": dict(cell="gru", T=3, B=2, H=33, dtype=torch.float64, reverse=BOTH, lengths=[1, 3]),
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


@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "relu", "hard_sigmoid", "linear"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "hard_sigmoid", "linear"])
@pytest.mark.parametrize("cell", CELLS)
def test_activations(cell, activation, gate):
    """Every pair of them, in float64: where rounding near a corner does not matter."""
    check(cell, "stepwise", T=3, B=2, H=5, activation=activation, recurrent_activation=gate, dtype=torch.float64)


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
    needs = [False, True, False]
    dx, dstates, dweights, _ = launch.layer_backward(torch.ones_like(y), [], None, *args, y, saved, needs)
    assert dx.numel() == 0 and len(dstates) == 1 and dweights == []
