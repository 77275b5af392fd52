"""Cells as programs on the CPU: every kind of program with every option against what the text means (programs.py), in
float64, by autograd; what the parser refuses; what it does with texts at random."""

import random

import pytest
import torch
from common import TOLERANCES, assert_close
from pairwise import ALL, cases
from program_texts import CELLS
from programs import meant, split, weight_shapes

import rnnkernels
from rnnkernels import backends
from rnnkernels.cells import program
from rnnkernels.cells.call import LayerCall
from rnnkernels.cells.parts import projected

if backends.EXTENSION_ERROR is not None:
    pytest.skip(f"the C++ extension is not there: {backends.EXTENSION_ERROR}", allow_module_level=True)

OPS = torch.ops.rnnkernels
INSTRUCTION_SETS = OPS.instruction_sets().split(",")
HALVES = (torch.bfloat16, torch.float16)


class Case:
    """The tensors of one call, as leaves in float64 with values that the dtype has; words say which options are on."""

    def __init__(self, name, dtype, T, B, I, H, words="", seed=0):  # noqa: E741
        self.text, self.dtype, self.H, self.words = CELLS.get(name, name), dtype, H, words.split()
        self.random = torch.Generator().manual_seed(seed)
        header, sections = split(self.text)
        S, on = len(header["states"]), self.words.__contains__
        self.reverse = [False, True] if on("both") else [on("reverse")]
        X = 2 if on("groups") else 1
        D, lead = X * len(self.reverse), (X,) if on("groups") else ()
        if "given" in header:
            I = len(header["inputs"]) * H  # noqa: E741
        self.bias = not on("unbiased")
        self.norm = on("norm")
        self.P = P = max(2 * H // 3, 1) if on("project") else 0
        if P:
            self.text = projected(program.parse(self.text))
        widths = [P or H, *[H] * (S - 1)]
        shapes = weight_shapes(self.text, I, H, self.bias, self.norm, P)
        leaf = lambda *shape, scale=0.5: self.leaf(shape, scale)  # noqa: E731
        self.x = leaf(*lead, T, B, I)
        scales = [H**-0.5 if len(s) == 2 and s[1] in (H, P) else 0.5 for s in shapes]
        self.weights = [leaf(*s, scale=scale) for _ in range(D) for s, scale in zip(shapes, scales, strict=True)]
        self.states = [leaf(D, B, n) for n in widths] if not on("stateless") else []
        steps = header.get("step", [])
        self.extras = [leaf(*lead, T, B, 1 if name.endswith(":1") else H) for name in steps]
        self.extras += [leaf(*lead, B, H) for _ in header.get("sequence", [])]
        self.reset_states = [leaf(D, B, n) for n in widths] if on("restart") else []
        self.lengths = torch.randint(0, T + 1, (B,), generator=self.random) if on("lengths") else None
        self.reset = torch.rand(T, B, generator=self.random) < 0.3 if on("reset") or on("restart") else None
        chance = lambda *shape: torch.rand(*shape, generator=self.random, dtype=torch.float64)  # noqa: E731
        self.h_mask = (chance(D, B, P or H) < 0.7) * 1.5 if on("h_mask") and "recurrent" in header else None
        self.zone = [chance(T, D, B, n) for n in widths] if on("zone") else []
        self.zone = [chance(1, D, 1, 1).round() for _ in range(S)] if on("zone_mask") else self.zone

    def leaf(self, shape, scale):
        t = scale * torch.randn(shape, generator=self.random, dtype=torch.float64)
        return t.to(self.dtype).double().requires_grad_()

    def leaves(self):
        return [self.x, *self.states, *self.weights, *self.extras]

    def arguments(self):
        to = lambda tensors: [t.detach().to(self.dtype) for t in tensors]  # noqa: E731
        x, *_ = to([self.x])
        if "strided" in self.words:
            x = torch.stack([x, x], -1)[..., 0]
        extras = to(self.extras)
        if "strided" in self.words:
            extras = [e.transpose(0, 1).contiguous().transpose(0, 1) for e in extras]
        return (
            self.text, x, to(self.states), to(self.weights), self.reverse, self.bias, self.P > 0, None, None,
            self.lengths, self.reset, to(self.reset_states), self.h_mask, self.zone, self.norm, 1e-5, self.H, extras,
            0, 0,
        )  # fmt: skip

    def run(self):
        y, last, saved = OPS.plain_layer(*self.arguments(), True)
        inferred = OPS.plain_layer(*self.arguments(), False)
        for a, b in zip((y, *last), (inferred[0], *inferred[1]), strict=True):
            assert torch.equal(a, b), "with and without saving"
        return y, last, saved

    def backward(self, y, saved, dy, dlast, needs=(True,) * 4):
        dlast = [d.to(self.dtype) for d in dlast]
        return OPS.plain_layer_backward(dy.to(self.dtype), dlast, None, *self.arguments(), y, saved, needs)

    def meant(self):
        return meant(
            self.text, self.x, self.states, self.weights, self.reverse, self.bias, self.extras, self.H, self.lengths,
            self.reset, self.reset_states, self.h_mask, self.zone, self.norm, self.P,
        )  # fmt: skip

    def expectation(self):
        y, last = self.meant()
        grads = [torch.randn(t.shape, generator=self.random, dtype=torch.float64).to(self.dtype).double()
                 for t in (y, *last)]  # fmt: skip
        leaves = [self.x, *self.states, *self.weights, *self.reset_states, *self.extras]
        loss = sum((t * g).sum() for t, g in zip((y, *last), grads, strict=True))
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return y, last, grads, [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]

    def compare(self, expectation=None):
        """``expectation``: where it is known already."""
        expected_y, expected_last, (dy, *dlast), expected = expectation or self.expectation()
        # rounding of what is kept, of states and of gradients adds up in 16 bits
        tolerance = TOLERANCES[self.dtype] * (4 if self.dtype in HALVES else 1)
        y, last, saved = self.run()
        assert_close("y", y, expected_y, tolerance)
        for k, (a, e) in enumerate(zip(last, expected_last, strict=True)):
            assert_close(f"last {k}", a, e, tolerance)
        dx, dstates, dweights, dreset, dextras = self.backward(y, saved, dy, dlast)
        found = [dx, *dstates, *dweights, *dreset, *dextras]
        names = [f"{n} {k}" for n, each in (("dx", [dx]), ("dstate", dstates), ("dweight", dweights),
                 ("dreset_state", dreset), ("dextra", dextras)) for k in range(len(each))]  # fmt: skip
        assert len(found) == len(expected)
        for name, a, e in zip(names, found, expected, strict=True):
            assert_close(name, a, e, tolerance)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    OPS.use_instruction_set(request.param)
    yield request.param
    OPS.use_instruction_set("")


# T, B, I, H
SHAPES = {
    "odd": (5, 3, 4, 19), "row": (4, 1, 3, 37), "step": (1, 5, 2, 9), "one": (1, 1, 1, 1), "rows": (3, 21, 6, 33),
    "wide": (3, 24, 40, 70), "long": (20, 2, 3, 8),
}  # fmt: skip
OPTIONS = ("", "both lengths", "reverse reset unbiased", "restart lengths both", "zone", "zone_mask lengths reset",
           "h_mask both", "h_mask zone restart", "groups both lengths", "strided stateless", "groups strided",
           "norm both lengths", "norm h_mask reset unbiased", "norm zone")  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_every_shape(name, instruction_set):
    turn = list(CELLS).index(name) + INSTRUCTION_SETS.index(instruction_set)
    for k, (shape, sizes) in enumerate(SHAPES.items()):
        if (k + turn) % 3 and not ALL:  # every set has every shape, with other cells
            continue
        try:
            Case(name, torch.float64, *sizes, OPTIONS[k % 2], seed=k).compare()
            if shape != "one":  # a single number may cancel out
                Case(name, torch.float32, *sizes, OPTIONS[1 - k % 2], seed=k).compare()
        except AssertionError as error:
            raise AssertionError(f"{shape}: {error}") from error


@pytest.mark.parametrize("words", OPTIONS)
@pytest.mark.parametrize("name", CELLS)
def test_every_option(name, words):
    turn = list(CELLS).index(name) + OPTIONS.index(words)
    for k, (dtype, shape) in enumerate(((torch.float64, "odd"), (torch.float64, "row"), (torch.float32, "wide"))):
        if ALL or (k + turn) % 3 == 0:  # every cell has every option, with another shape
            Case(name, dtype, *SHAPES[shape], words, seed=3 + k).compare()  # seed 2 draws a divisor near zero


@rnnkernels.cell(
    inputs="i o", recurrent="i o", states="h c", vectors="p", step_inputs="gamma rate:1", sequence_inputs="f"
)  # fmt: skip
def noted(x, r, s, v, u):
    c = torch.sigmoid(u.f) * s.c + torch.sigmoid(x.i + r.i + v.p * s.c) * u.gamma
    return torch.sigmoid(x.o + r.o) * torch.tanh(c * u.rate) - v.p * s.c, c


PROJECTED = {name: text for name, text in CELLS.items() if projected(program.parse(text))}
PROJECTED |= {"noted": str(noted), "elman": str(rnnkernels.cells.rnn)}  # whose backward pass reads the new h


WITH_PROJECTION = ("", "lengths both restart", "zone h_mask unbiased", "norm zone_mask lengths", "groups both lengths",
                   "strided stateless reverse")  # fmt: skip


@pytest.mark.parametrize("name, words, instruction_set", cases(PROJECTED, WITH_PROJECTION, INSTRUCTION_SETS),
                         indirect=["instruction_set"])  # fmt: skip
def test_projections(name, words, instruction_set):
    for k, shape in enumerate(("odd", "row", "step")):
        Case(PROJECTED[name], torch.float64, *SHAPES[shape], f"project {words}", seed=k).compare()
    for dtype in (torch.float32, *HALVES):
        Case(PROJECTED[name], dtype, *SHAPES["wide"], f"project {words}", seed=3).compare()


def test_programs_without_a_projection():
    assert {"my_lstm", "three_states", "no_inputs"} <= set(PROJECTED) and "decay_gru" not in PROJECTED
    for name, text in CELLS.items():
        if name not in PROJECTED:
            case = Case(name, torch.float64, *SHAPES["odd"])
            with pytest.raises(RuntimeError, match=f"{split(text)[0]['cell'][1]} has no projection"):
                OPS.plain_layer(*case.arguments()[:6], True, *case.arguments()[7:], False)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", [name for name in CELLS if name != "functions"])  # which jumps where rounding is large
def test_sixteen_bits(name, dtype, instruction_set):
    turn = list(CELLS).index(name) + INSTRUCTION_SETS.index(instruction_set)
    for k, (words, shape) in enumerate((("both lengths", "odd"), ("h_mask", "wide"), ("zone", "row"))):
        if (k + turn) % 3 and not ALL:
            continue
        Case(name, dtype, *SHAPES[shape], words).compare()


@pytest.mark.parametrize("name", CELLS)
def test_threads(name):
    """Rows, units and directions are divided between two threads. The sums of a product may then be cut in other
    places, as for the built-in cells, but not where all pieces have whole tiles."""
    threads = torch.get_num_threads()
    try:
        for dtype, sizes, words, same in (
            (torch.float32, (6, 40, 8, 96), "both lengths", True), (torch.float32, (8, 1, 8, 300), "reset zone", False),
            (torch.float64, (6, 31, 8, 65), "h_mask both", False), (torch.float32, (6, 40, 8, 96), "norm", False),
        ):  # fmt: skip
            case, results = Case(name, dtype, *sizes, words), []
            expectation = *_, (dy, *dlast), _ = case.expectation()
            for n in (1, 2):
                torch.set_num_threads(n)
                case.compare(expectation)
                y, last, saved = case.run()
                dx, *lists = case.backward(y, saved, dy, dlast)
                results.append([y, *last, *saved, dx, *(t for each in lists for t in each)])
            for one, two in zip(*results, strict=True):
                assert not same or torch.equal(one, two), (name, sizes)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["decay_gru", "inner", "three_states", "given_alone"])
def test_gradients_that_are_not_wanted(name):
    case = Case(name, torch.float64, *SHAPES["odd"], "both restart lengths")
    *_, (dy, *dlast), _ = case.expectation()
    y, _, saved = case.run()
    every = case.backward(y, saved, dy, dlast)
    for k in range(4):
        needs = [n == k for n in range(4)]
        dx, dstates, dweights, dreset, dextras = case.backward(y, saved, dy, dlast, needs)
        lists = ((dx,) if needs[0] else (), dstates, dweights, dextras)
        for n, (found, expected) in enumerate(zip(lists, (every[:1], every[1], every[2], every[4]), strict=True)):
            assert len(found) == (len(expected) if n == k else 0)
            for a, e in zip(found, expected, strict=False):
                assert torch.equal(a, e)
        assert len(dreset) == (len(every[3]) if k == 1 else 0)
        assert needs[0] or dx.numel() == 0


def test_empty_batch():
    for name in CELLS:
        case = Case(name, torch.float32, 3, 0, 2, 4, "both")
        y, last, saved = case.run()
        dx, dstates, dweights, _, dextras = case.backward(y, saved, torch.zeros_like(y), [])
        for found, given in zip((dx, *dstates, *dweights, *dextras), case.leaves(), strict=True):
            assert found.shape == given.shape and not found.any()


def units(actual, expected):
    """The largest error in units of the last place; both finite or equal."""
    expected = expected.to(torch.float64) if actual.dtype == torch.float32 else expected
    rounded = expected.to(actual.dtype)
    special = ~rounded.isfinite()
    assert torch.equal(actual[special].nan_to_num(nan=7.0), rounded[special].nan_to_num(nan=7.0))
    a, e = actual[~special], rounded[~special]
    step = torch.nextafter(e.abs(), torch.tensor(torch.inf, dtype=e.dtype)) - e.abs()
    return ((a.double() - expected[~special].double()).abs() / step.double()).max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions(dtype, instruction_set):
    """exp, log, log1p, expm1 and sqrt within two units in the last place of torch's in float64, itself one off."""
    extremes = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).max, -1.0, 1.0])
    near = torch.linspace(-3, 3, 20001, dtype=torch.float64)
    x = torch.cat([near, torch.linspace(-800, 800, 20001, dtype=torch.float64), near.exp(), -near.exp(),
                   (near * 240).exp(), -(near * 200).exp(), extremes.double()]).to(dtype)  # fmt: skip
    for name in ("exp", "log", "log1p", "expm1", "sqrt", "abs", "neg", "sign", "relu"):
        text = "cell 1 f\ninputs a\nstates h\ngiven\nforward\nx a\n" + f"{name} 0\nput new h 1\nbackward"
        call = LayerCall(text, x[None, None], [], [], bias=False, hidden_size=x.numel())
        y = OPS.plain_layer(*call, False)[0].flatten()
        expected = {"abs": torch.abs, "neg": torch.neg, "sign": torch.sign, "relu": torch.relu}.get(name)
        if expected is not None:
            assert torch.equal(y.nan_to_num(nan=7.0), expected(x).nan_to_num(nan=7.0)), name
        else:
            assert units(y, getattr(torch, name)(x.double())) <= (2 if dtype == torch.float32 else 3), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_operands(dtype, instruction_set):
    numbers = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.5, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    a, b = (t.flatten() for t in torch.meshgrid(numbers, numbers, indexing="ij"))
    for name, expected in (
        ("min", torch.minimum), ("max", torch.maximum), ("lt", torch.lt), ("le", torch.le), ("eq", torch.eq),
        ("where", lambda a, b: torch.where(a != 0, b, a * 0 + 3)), ("div", torch.div), ("sub", torch.sub),
        ("relu_back", lambda a, b: torch.where(b > 0, a, 0.0)),
    ):  # fmt: skip
        text = "cell 1 f\ninputs a b\nstates h\ngiven\nforward\nx a\nx b\nconst 0.0\nmul 0 2\nconst 3.0\nadd 3 4\n"
        text += f"{name} 0 1{' 5' if name == 'where' else ''}\nput new h 6\nbackward"
        call = LayerCall(text, torch.cat([a, b])[None, None], [], [], bias=False, hidden_size=a.numel())
        y = OPS.plain_layer(*call, False)[0].flatten()
        assert torch.equal(y.nan_to_num(nan=7.0), expected(a, b).to(dtype).nan_to_num(nan=7.0)), name


def parsed(text):
    """True if the C++ parser takes the text; nothing is run."""
    try:
        OPS.schedule(text, torch.float32, 3, 2, 4, 5, 5, 1, False)
    except RuntimeError as error:
        assert str(error).startswith("rnnkernels: "), error
        return False
    return True


def parsed_in_python(text):
    try:
        program.parse(text)
    except program.Refused:
        return False
    return True


REFUSED = {
    "version": ("cell 1 ", "cell 2 "), "name": ("my_lstm", "1lstm"), "no name": ("cell 1 my_lstm", "cell 1"),
    "two spaces": ("a i", "a  i"), "space at the end": ("a i", "a i "), "tab": ("a i", "a\ti"),
    "nothing": (None, "cell "),
    "no states": ("states h c\n", ""), "five states": ("states h c", "states h c d e f"), "nine gates": (
        "inputs i f g o", "inputs i f g o a b d e k"), "twice": ("inputs i f g o", "inputs i f g i"),
    "unknown gate": ("a i", "a q"), "unknown state": ("s c", "s q"), "unknown function": ("tanh 2", "tan 2"),
    "later value": ("sigmoid 0", "sigmoid 5"), "large": ("sigmoid 0", "sigmoid 12345"),
    "negative": ("tanh 2", "tanh -1"),
    "too few": ("mul 6 4", "mul 6"), "too many": ("mul 6 4", "mul 6 4 1"), "no number": ("mul 6 4", "mul 6 x"),
    "no new state": ("put new c 11\n", ""), "a put twice": ("put new c 11", "put new h 11"), "unknown put": (
        "put new c", "put old c"), "plane past keep": ("put keep 3 8", "put keep 4 8"), "plane twice": (
        "put keep 3 8", "put keep 2 8"), "plane not kept": ("put keep 3 8\n", ""), "33 planes": ("keep 4", "keep 33"),
    "load after put": ("put new h 13", "put new h 13\na i"), "no backward": ("\nbackward", "\nbackwards"),
    "gradient twice": ("put da f 15", "put dx i 15"), "gy without y": ("g h", "gy"), "i without first": ("s c", "i"),
    "k in forward": ("a i", "k 0"), "go in backward": ("g h", "go"), "order": ("keep 4\n", "keep 4\nvectors p\n"),
    "infinite": ("s c", "const inf"), "not a number": ("s c", "const nan"), "overflowing": ("s c", "const 1e999"),
    "eps of no constant": ("sigmoid 0", "layer_norm 0 4"), "negative eps": ("sigmoid 0", "const -1\nlayer_norm 0 5"),
    "norm of one": ("sigmoid 0", "layer_norm 0"), "derivative of two": ("sigmoid 0", "const 1\nlayer_norm_back 0 5"),
    "hexadecimal": ("s c", "const 0x10"), "given without inputs": (
        "inputs i f g o\nrecurrent i f g o\nstates h c\n", "recurrent i f g o\nstates h c\ngiven\n"),
    "operand alone": ("forward", "operand\ns h\nput operand 0\nforward"), "first alone": (
        "forward", "first\ns h\nput inner 0\nforward"), "zero": ("a i", "a i\0"), "many instructions": (
        "sigmoid 0", "\n".join(["sigmoid 0"] * 600)), "long": ("keep 4", "keep 4" + "\n" * 70000),
    "not ascii": ("a i", "a \u00ef"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    old, new = REFUSED[what]
    text = new if old is None else CELLS["my_lstm"].replace(old, new, 1)
    assert text != CELLS["my_lstm"]
    with pytest.raises(RuntimeError, match="^rnnkernels: not the program of a cell: "):
        OPS.schedule(text, torch.float32, 3, 2, 4, 5, 5, 1, False)


UNARY = ("neg", "abs", "sign", "sqrt", "exp", "log", "log1p", "expm1", "sigmoid", "tanh", "relu")
BINARY = ("add", "sub", "mul", "div", "min", "max", "lt", "le", "eq", "tanh_back", "sigmoid_back", "relu_back")


def mutated(text, chance):
    """The text with some words or lines changed, moved or lost."""
    lines = [line.split(" ") for line in text.split("\n")]
    words = sorted({word for line in lines for word in line}) + ["0", "1", "7", "511", "put", "const", "1e-3", "-1", ""]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(lines))
        kind = chance.randrange(12)
        if kind > 6:  # another program, often
            if lines[at][0] in UNARY and kind > 9:
                lines[at][0] = chance.choice(UNARY)
            elif lines[at][0] in BINARY and kind > 9:
                lines[at][0] = chance.choice(BINARY)
            elif lines[at][-1].isdigit():
                lines[at][-1] = str(chance.randrange(int(lines[at][-1]) + 1))
        elif kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, list(chance.choice(lines)))
        elif kind == 2:
            lines[at].insert(chance.randrange(len(lines[at]) + 1), chance.choice(words))
        elif kind == 3:
            other = chance.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 4:
            line = " ".join(lines[at])
            place = chance.randrange(len(line) + 1)
            lines[at] = (line[:place] + chance.choice("0123456789abc \n:.-\0") + line[place + 1 :]).split(" ")
        else:
            lines[at][chance.randrange(len(lines[at]))] = chance.choice(words)
        lines = lines or [["cell"]]
    return "\n".join(map(" ".join, lines))


@pytest.mark.parametrize("seed", range(4))
def test_texts_at_random(seed):
    """A changed text is refused, by both parsers, or it is a program: it runs forward and back, and the shapes are
    right."""
    chance, taken = random.Random(seed), 0
    for n in range(200):
        text = mutated(chance.choice(list(CELLS.values())), chance)
        if not text.startswith("cell "):
            continue
        assert parsed(text) == parsed_in_python(text), text
        if not parsed(text):
            continue
        taken += 1
        header, sections = split(text)
        case = Case(text, torch.float32, 3, 2, 4, 9, chance.choice(OPTIONS), seed=n)
        y, last, saved = OPS.plain_layer(*case.arguments(), False)
        assert y.shape == (3, 2, len(last[0]) * 9) and len(last) == len(header["states"])
        try:
            y, last, saved = OPS.plain_layer(*case.arguments(), True)
        except RuntimeError as error:
            assert "first" in sections and "cannot be trained" in str(error)
            continue
        dlast = [torch.ones_like(s) for s in last]
        dx, dstates, dweights, _, dextras = case.backward(y, saved, torch.ones_like(y), dlast)
        for a, b in zip((dx, *dstates, *dweights, *dextras), case.leaves(), strict=True):
            assert a.shape == b.shape
    assert taken > 40


def test_arguments():
    case = Case("decay_gru", torch.float32, 3, 2, 4, 5)
    call = dict(zip(LayerCall._fields, case.arguments(), strict=True))
    gamma, weights = call["extras"][0], call["weights"]
    for changed, message in (
        ({"extras": []}, "expected 1 step and sequence inputs, got 0"),
        ({"extras": [gamma, gamma]}, "expected 1 step and sequence inputs, got 2"),
        ({"extras": [gamma.double()]}, "gamma and x must have the same dtype"),
        ({"extras": [gamma[:2]]}, "gamma must have size 3 in dimension 0, got 2"),
        ({"extras": [gamma[0]]}, "gamma must have 3 dimensions, got 2"),
        ({"weights": weights[:3]}, "expected 4 weights, got 3"),
        ({"hidden_size": 6}, "must have"), ({"hidden_size": -1}, "needs hidden_size"),
        ({"layer_norm": True}, "expected 6 weights"), ({"project": True}, "no projection"),
        ({"activation": "relu"}, "has its activations in it"), ({"reset_states": [gamma[:, 0]] * 2}, "expected 1"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            OPS.plain_layer(*(call | changed).values(), False)
    y, _, saved = OPS.plain_layer(*call.values(), True)
    with pytest.raises(RuntimeError, match="its states have no gradients of their own"):
        OPS.plain_layer_backward(y, [], y, *call.values(), y, saved, [True] * 4)
    with pytest.raises(RuntimeError, match="needs must have 4 elements"):
        OPS.plain_layer_backward(y, [], None, *call.values(), y, saved, [True] * 3)
    with pytest.raises(RuntimeError, match="not run with save=True"):
        OPS.plain_layer_backward(y, [], None, *call.values(), y, [], [True] * 4)
    with pytest.raises(RuntimeError, match="expected 1 step and sequence inputs, got 0"):
        OPS.stack(call["x"], [], weights, call["cell"], 1, False, True, 5)
    alone = Case("given_alone", torch.float32, 3, 2, 4, 5).arguments()
    for at, value, message in (
        (16, 0, "needs hidden_size"), (16, 4, "x must have size 8"), (12, torch.ones(1, 2, 5), "no recurrent product"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            OPS.plain_layer(*alone[:at], value, *alone[at + 1 :], False)


def test_an_operand_that_is_lost():
    """The inner product's operand is not kept and does not follow from what is: no gradients, but results."""
    text = "cell 1 lost\ninputs n\nrecurrent n\nstates h\nfirst\nx n\ns h\nadd 0 1\nput inner 2\nforward\ni\ntanh 0\n"
    text += "put new h 1\nbackward\ng h\nput di 0\nbackward_first\ngi\nput dx n 0\nput ds h 0"
    case = Case(text, torch.float32, 3, 2, 4, 5)
    OPS.plain_layer(*case.arguments(), False)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        OPS.plain_layer(*case.arguments(), True)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_gradients_do_not_depend_on_what_memory_held(isa):
    """Between the products of a normed step, some gradients are not there yet. NaN that another call left in their
    place must not count as a number without bf16 parts, for which all is computed again in vectors: other bits."""
    arguments = Case("inner_alone", torch.bfloat16, 2, 32, 64, 64, "norm").arguments()

    def gradients(value):
        y, _, saved = OPS.plain_layer(*arguments, True)
        dx, *more = OPS.plain_layer_backward(torch.full_like(y, value), [], None, *arguments, y, saved, [True] * 4)
        return [dx, *(g for group in more for g in group)]

    try:
        OPS.use_instruction_set(isa)
        first = gradients(0.1)
        gradients(float("nan"))
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(0.1), strict=True))
    finally:
        OPS.use_instruction_set("")
