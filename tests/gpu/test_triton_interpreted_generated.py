"""Triton kernels generated from programs, interpreted on the CPU: outputs and every gradient against float64.

Needs a process of its own (triton_cases.py).
"""

import itertools
import random
from pathlib import Path

import fake_graphs
import pytest
import torch
import triton
import triton_shim
from common import assert_close
from generated_cases import CELLS, LIBRARY, NORMED, arguments, noted
from pairwise import ALL, cases, in_turn, product
from program_cases import RandomCell
from triton_cases import BOTH, compare, interpreter, running  # noqa: F401 - used by every test

import rnnkernels
from rnnkernels import backends
from rnnkernels.backends.triton import cells as triton_cells
from rnnkernels.backends.triton import graphs, launch, schedules
from rnnkernels.backends.triton.cells import generated, rows
from rnnkernels.cells import library, spec_of
from rnnkernels.cells.call import LayerCall
from rnnkernels.cells.program import parse
from rnnkernels.op import run

# NumPy, which interprets, tells of divisions by zero in units and rows that do not exist.
pytestmark = [pytest.mark.filterwarnings(f"ignore:{what} .*encountered:RuntimeWarning") for what in
              ("divide by zero", "invalid value", "overflow")]  # fmt: skip
# Without a recurrent product there is only one schedule.
WAYS = product(CELLS, schedules.NAMES, exists=lambda cell, way: bool(CELLS[cell].recurrent) or way == "resident")
VARIANTS = {
    "plain": dict(T=3, B=2, H=20),
    "reverse, no bias": dict(T=3, B=3, H=40, reverse=(True,), bias=False),
    "both directions from zero": dict(T=3, B=1, H=16, reverse=BOTH, states=False),
    "lengths": dict(T=4, B=4, H=20, reverse=BOTH, lengths=[4, 0, 3, 1]),
}
BUILT_IN = ["rnn", "lstm", "gru", "gru_reset_before"]
MORE = {
    "bf16": dict(T=3, B=2, H=33, reverse=(True,), dtype=torch.bfloat16),
    "fp16": dict(T=3, B=2, H=33, dtype=torch.float16, stages=["zone"]),
    "float64": dict(T=3, B=2, H=33, dtype=torch.float64, reverse=BOTH, lengths=[1, 3]),
    "one step": dict(T=1, B=5, H=20, lengths=[1, 0, 1, 1, 0]),
    "two batch tiles": dict(T=2, B=17, H=16, lengths=[2, 1, 0] * 5 + [1, 2]),
    "empty batch": dict(B=0, reverse=BOTH),
    "groups": dict(T=3, B=2, H=20, reverse=BOTH, groups=2, lengths=[[3, 0], [1, 2]]),
    "one unit": dict(T=3, B=2, H=1),
    "layer norm": dict(layer_norm=True, reverse=(True,)),
}


def rotated(first, second):
    """Pairs: every value of the first with the next of the second, or with all of them where all cases are run."""
    second = list(second)
    return product(first, second) if ALL else [(v, second[n % len(second)]) for n, v in enumerate(first)]


def check(cell, schedule=None, seed=0, inference=ALL, **options):
    compare(arguments(CELLS[cell], **options), schedule, seed, inference)


# Those that are built in are compared with the built-in kernels too, on every schedule.
OWN_WAYS = [way for way in WAYS if ALL or way[0] not in BUILT_IN or way[1] == "resident"]


@pytest.mark.parametrize("way, variant", rotated(OWN_WAYS, VARIANTS))
def test_equals_definition(way, variant):
    check(*way, inference=ALL or way[0] not in BUILT_IN, **VARIANTS[variant])


@pytest.mark.parametrize("cell, case", rotated(CELLS, MORE))
def test_equals_definition_once(cell, case):
    check(cell, **MORE[case])


STAGES = (
    ["reset", "zone"], ["restart", "h_mask"], ["h_mask", "zone", "layer norm"], ["restart", "layer norm"], ["reset"],
    ["zone", "layer norm"], ["h_mask", "reset", "layer norm"],
)  # fmt: skip


def staged():
    """Every way with all stages; in the short suite every schedule with all stages, and every cell."""
    if ALL:
        return rotated(WAYS, STAGES)
    cells = itertools.cycle([cell for cell in CELLS if CELLS[cell].recurrent])
    pairs = [((next(cells), schedule), stages) for schedule in schedules.NAMES for stages in STAGES]
    return pairs + [((cell, "resident"), STAGES[0]) for cell in CELLS if not CELLS[cell].recurrent]


@pytest.mark.parametrize("way, stages", staged())
def test_stages(way, stages):
    """With lengths and both directions."""
    norm = "layer norm" in stages
    check(*way, T=3, B=3, H=20, reverse=BOTH, lengths=[3, 0, 2], layer_norm=norm, stages=stages)


@pytest.mark.parametrize("cell, schedule", in_turn(["crossing", "gru_d", "rate"], schedules.NAMES))
def test_all_stages(cell, schedule):
    """The cells with most that may go wrong, with all of the stages."""
    stages = ["restart", "h_mask", "zone"]
    check(cell, schedule, T=4, B=3, H=20, reverse=BOTH, groups=2, lengths=[[4, 0, 3], [1, 4, 2]], stages=stages)


PROJECTED = {c.program.name: c.program for c in (noted, library.rnn, library.lstm, library.cifg_lstm)}
WITH_PROJECTION = (
    dict(T=4, B=2, H=20, P=7), dict(T=3, B=3, H=16, P=8, reverse=BOTH, lengths=[3, 0, 2], stages=["restart", "zone"]),
    dict(T=3, B=2, H=20, P=7, bias=False, states=False, stages=["h_mask", "reset"], layer_norm=True),
    dict(T=3, B=2, H=33, P=20, groups=2, lengths=[[3, 0], [1, 2]], stages=["zone", "h_mask"]),
    dict(T=1, B=2, H=20, P=7), dict(T=3, B=2, H=20, P=7, dtype=torch.bfloat16, reverse=(True,)),
)  # fmt: skip


@pytest.mark.parametrize("options, cell", [*rotated(WITH_PROJECTION, PROJECTED), (WITH_PROJECTION[3], "noted")])
def test_projections(options, cell):
    compare(arguments(PROJECTED[cell], **options))


@triton.jit
def no_wait(counter, target):
    pass


WITH_NORMED = MORE | {"lengths": VARIANTS["lengths"]} | {
    " and ".join(stages): dict(T=3, B=3, H=20, reverse=BOTH, lengths=[3, 0, 2], layer_norm=norm, stages=stages)
    for stages, norm in ((["restart", "h_mask", "zone"], False), (["reset", "zone"], True))
}  # fmt: skip


# In float64 no chip's programs have whole rows of a recurrent product.
HAVE_ROWS = [pair for pair in rotated(WITH_NORMED, NORMED) if pair[0] != "float64" or not NORMED[pair[1]].recurrent]


@pytest.mark.parametrize("case, cell", HAVE_ROWS)
def test_norms_inside_the_cell(case, cell):
    compare(arguments(NORMED[cell], **WITH_NORMED[case]))


SHARED = [cell for cell in NORMED if NORMED[cell].recurrent]
WITH_SHARED = {name: WITH_NORMED[name] for name in ("bf16", "layer norm", "groups", "restart and h_mask and zone")}


@pytest.mark.parametrize("cell, case, seed", in_turn(SHARED, WITH_SHARED, range(2)))
def test_norms_inside_the_cell_of_programs_that_share_rows(cell, case, seed):
    """They meet at each norm, in any order."""
    compare(arguments(NORMED[cell], **WITH_SHARED[case]), "cooperative", seed)


@pytest.mark.parametrize("cell", SHARED)
def test_a_missing_wait_in_a_norm_is_found(cell, monkeypatch):
    """The test of the test: some order of the programs shows it."""
    monkeypatch.setattr(rows, "wait", no_wait)
    with pytest.raises(AssertionError):
        for seed in range(5):
            compare(arguments(NORMED[cell], T=3, B=2, H=40), "cooperative", seed, inference=False)


def test_norms_inside_the_cell_need_programs_that_run_at_once():
    """A launch per step is refused with the reason; so is the backend where no other fits."""
    facts = LayerCall(*arguments(NORMED["normed"])).facts(training=True)
    said = launch.schedule(facts)
    assert "forward resident" in said and "backward resident" in said and launch.unsupported(facts) is None
    facts = LayerCall(*arguments(NORMED["normed"], H=100, T=1)).facts(training=True)
    assert launch.schedule(facts).count("cooperative") == 2 and launch.unsupported(facts) is None
    units = "a norm inside the cell is over units of other programs, which a launch does not wait for"
    with (
        schedules.force("stepwise"),
        pytest.raises(RuntimeError, match=f"'stepwise' is forced but cannot run .*{units}"),
    ):
        launch.layer(*arguments(NORMED["normed"]), False)
    args = arguments(NORMED["normed"], H=1200, T=1, B=1)
    facts = LayerCall(*args).facts()
    reason = launch.unsupported(facts)
    assert reason.startswith("not resident: ") and "no registers for a product 1200 wide; not stepwise" in reason
    refused = f"backend 'triton' is forced but cannot run this call:\n.*\n  triton: not resident.*not stepwise: {units}"
    with backends.force("triton"), pytest.raises(RuntimeError, match=refused):
        run.layer(LayerCall(*args))
    with pytest.raises(NotImplementedError, match=f"the Triton backend cannot run this layer: .*not stepwise: {units}"):
        launch.layer(*args, False)
    facts = LayerCall(*arguments(NORMED["normed_alone"], H=1200, T=1, B=1)).facts()
    assert "a norm inside the cell is over more than the 1024 units of a program" in launch.unsupported(facts)
    compare(arguments(NORMED["normed_alone"], H=300, T=2, B=3))


BUILT_IN = ["rnn", "lstm", "gru", "gru_reset_before"]


@pytest.mark.parametrize("cell, schedule", cases(BUILT_IN, schedules.NAMES))
def test_equals_built_in(cell, schedule):
    """A program has the bits of the built-in cell forward, and the same gradients to rounding."""
    args = arguments(CELLS[cell], T=4, B=3, H=20, reverse=BOTH, lengths=[4, 0, 3], stages=["reset", "h_mask"])
    found = []
    for name in (args[0], cell):
        with running(schedule):
            y, last, saved = launch.layer(name, *args[1:], True)
            grads = launch.layer_backward(y, last, None, name, *args[1:], y, saved, [True] * 4)
        found.append([y, *last, *saved[-1:]] if cell == "lstm" else [y, *last])
        found.append([grads[0], *(g for group in grads[1:] for g in group)])
    assert all(map(torch.equal, found[0], found[2]))
    for n, (ours, theirs) in enumerate(zip(found[0] + found[1], found[2] + found[3], strict=True)):
        assert_close(f"result {n}", ours, theirs, 1e-6)


@pytest.mark.parametrize("cell, seed", in_turn(["crossing", "gru_d", "mixed", "rate"], range(4)))
def test_programs_that_wait_for_each_other(cell, seed):
    check(cell, "cooperative", seed, T=3, B=17, H=20, reverse=BOTH, stages=["reset", "h_mask"])


@pytest.mark.parametrize("cell", ["crossing", "gru_d", "mixed"])
def test_programs_do_not_depend_on_each_other(cell):
    """Those of a launch of a step, interleaved at every memory access."""
    with triton_shim.concurrent_grid(1):
        check(cell, "stepwise", T=2, B=18, H=40, layer_norm=True)


def test_passes_replayed_from_a_graph(monkeypatch):
    """Other numbers at the same places, inputs beside x among them."""
    recorded = fake_graphs.install(monkeypatch)
    for seed in range(2):
        args = arguments(CELLS["crossing"], T=2, B=2, H=20, seed=seed, stages=["restart", "zone"])
        compare(args, "stepwise", inference=True)
    assert len(recorded) == 3  # training and inference forward, backward
    graphs.clear()


def test_inputs_by_strides():
    """Inputs beside x of any strides: batch first, one for all rows, every second unit of a wider one."""
    args = arguments(CELLS["mixed"], T=4, B=3, H=20, reverse=BOTH)
    gamma, rate, context = args[-1]
    views = [gamma.transpose(0, 1).contiguous().transpose(0, 1), rate[:, :1].expand(-1, 3, -1),
             torch.stack([context, context + 1], -1)[..., 0]]  # fmt: skip
    results = []
    for extras in (views, [v.contiguous() for v in views]):
        y, last, saved = launch.layer(*args[:-1], extras, True)
        grads = launch.layer_backward(y, last, None, *args[:-1], extras, y, saved, [True] * 4)
        results.append([y, *last, *grads[4]])
    assert all(map(torch.equal, *results))


def test_through_the_op_and_autograd():
    args, grads = arguments(CELLS["mixed"], T=3, B=2, H=20, lengths=[1, 3]), {}
    for t in (args[1], *args[2], *args[3], *args[-1]):
        t.requires_grad_()
    leaves = [args[1], *args[2], *args[3], *args[-1]]
    for backend in ("triton", "reference"):
        with backends.force(backend):
            y, last = run.layer(LayerCall(*args))
            grads[backend] = torch.autograd.grad(sum((o * o).sum() for o in (y, *last)), leaves)
    for n, (actual, wanted) in enumerate(zip(grads["triton"], grads["reference"], strict=True)):
        assert_close(f"gradient {n}", actual, wanted)


def test_only_the_needed_gradients():
    args = arguments(CELLS["gru_d"], H=20)
    y, _, saved = launch.layer(*args, True)
    dx, dstates, dweights, _, dextras = launch.layer_backward(
        torch.ones_like(y), [], None, *args, y, saved, [False, True, False, False]
    )
    assert dx.numel() == 0 and len(dstates) == 1 and dweights == [] == dextras


@pytest.mark.parametrize("cell, schedule", in_turn(sorted(set(LIBRARY) - set(CELLS)), schedules.NAMES))
def test_library(cell, schedule):
    schedule = schedule if LIBRARY[cell].recurrent else "resident"
    compare(arguments(LIBRARY[cell], T=3, B=2, H=20, lengths=[3, 2]), schedule)


@pytest.mark.parametrize("schedule", schedules.NAMES)
def test_an_inner_product_and_nothing_kept(schedule):
    """Its operand is a state, and the slope of tanh follows from the output: there are no planes."""
    own = rnnkernels.cell(inputs="n", recurrent="n")(lambda x, s: torch.tanh(x.n + rnnkernels.product("n", s.h)))
    assert own.program.keep == 0
    compare(arguments(own.program, T=3, B=2, H=20, lengths=[3, 2]), schedule)
    normed = LayerCall(*arguments(own.program, layer_norm=True)).facts()
    assert "no recurrent product but the one inside its step" in launch.unsupported(normed)


@pytest.mark.parametrize("seed", range(24 if ALL else 6))
def test_cells_by_chance(seed, monkeypatch):
    """In float64: rounding may be anything in such cells."""
    program = RandomCell(random.Random(seed).randrange).cell.program
    if program.norms:  # which want whole rows: no chip has them in float64
        tiles = schedules.Tiles("resident", 32, 8, 32, 4, 1, "for the test")
        monkeypatch.setattr(schedules, "resident", lambda *_: tiles)
    compare(arguments(program, T=3, B=3, H=20, reverse=BOTH, lengths=[3, 1, 2], seed=seed, dtype=torch.float64))


REFUSED = """cell 1 forgets_its_operand
inputs a
recurrent a b
states h
first
x a
r a
mul 0 1
put inner 2
forward
i
put new h 0
backward
g h
put di 0
backward_first
gi
put dx a 0"""


def test_unsupported():
    """A program that keeps nothing that gives the operand of its second product: its weights would get no gradient."""
    reason = "forgets_its_operand keeps nothing that gives the operand of its second product"
    args = arguments(parse(REFUSED))
    assert launch.unsupported(LayerCall(*args).facts()) == reason
    with pytest.raises(NotImplementedError, match=reason):
        launch.layer(*args, False)
    args = arguments(CELLS["gru"])
    args[6] = True
    assert launch.unsupported(LayerCall(*args).facts()) == "gru has no projection"


def test_schedule_says_why():
    facts = LayerCall(*arguments(CELLS["ind_rnn"])).facts(training=True)
    assert "forward resident" in launch.schedule(facts) and "there is no recurrent product" in launch.schedule(facts)
    with schedules.force("stepwise"), pytest.raises(RuntimeError, match="no recurrent product to share out"):
        launch.schedule(facts)
    facts = LayerCall(*arguments(CELLS["peephole_lstm"], layer_norm=True)).facts(training=True)
    assert "not cooperative" not in launch.schedule(facts) and "backward resident" in launch.schedule(facts)


def test_source_is_as_written_by_hand():
    """Readable, by names, and only of what the program says; the file is made again if it was changed."""
    text = generated.source(spec_of(CELLS["gru"].text))
    for line in ("a_z = x[1] + r[1]", "s_h = s[0]", "= sigmoid(a_z)", "k_0 = kept[0]", "g_h = ds[0]"):
        assert line in text
    path = Path(generated.imported(text).__file__)
    assert path.read_text() == text
    path.write_text("raise RuntimeError")
    assert Path(generated.imported(text).__file__).read_text() == text
    assert triton_cells.cell_of(CELLS["gru"].text) is triton_cells.cell_of(CELLS["gru"].text)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own jvp uses it
@pytest.mark.parametrize("name", ["gru_d", "mgu", "peephole_lstm", "lif"])
def test_tangents(name):
    """Forward mode, and reverse over it, on the generated kernels of tangents, beside the reference."""
    torch.manual_seed(0)
    cell, (T, B, I, H) = getattr(library, name), (3, 2, 3, 5)  # noqa: E741
    layer = rnnkernels.Recurrent(cell, I, H, dtype=torch.float64)
    u = {u: torch.rand(T, B, 1 if u in cell.program.narrow else H, dtype=torch.float64) for u in cell.program.step}
    primals = {"x": torch.randn(T, B, I, dtype=torch.float64)} | {n: p.detach() for n, p in layer.named_parameters()}
    tangents = {n: torch.randn_like(t) for n, t in primals.items()}

    def f(of):
        x, given = of["x"], {n: p for n, p in of.items() if n != "x"}
        return torch.func.functional_call(layer, given, x, dict(u, lengths=torch.tensor([3, 1])))[0]

    def along(of):
        return torch.func.jvp(f, (of,), (tangents,))[1]

    found = []
    for backend in ("triton", "reference"):
        with backends.force(backend):
            found.append(dict(torch.func.grad(lambda of: along(of).sin().sum())(primals), dy=along(primals)))
    for what, expected in found[1].items():
        assert_close(what, found[0][what], expected)
