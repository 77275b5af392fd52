"""Forward mode for cells of one's own: tangents beside reverse mode and numbers, second derivatives in every order."""

import pytest
import torch
from common import assert_close
from pairwise import cases
from recurrent_cases import CELLS as OWN
from test_library import BOTH, OF_LIBRARY, Layer
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, linearize, vjp, vmap

import rnnkernels
from rnnkernels import Recurrent, backends, cells
from rnnkernels.cells import CELLS
from rnnkernels.cells.call import LayerCall
from rnnkernels.cells.weights import weights_of
from rnnkernels.op import run

pytestmark = [  # of torch's own jvp and linearize
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node"),
]
T, B, I, H = 3, 2, 2, 4  # noqa: E741
WIDTH = 1e-6  # of a difference


@pytest.mark.parametrize("settings", [{}, {"layer_norm": True}, {"proj_size": 2}], ids=str)
def test_a_detached_vector(settings):
    """It has fewer values than a step, and the tangent of none."""

    @rnnkernels.cell(inputs="a", recurrent="a", vectors="p")
    def scaled(x, r, v):
        return torch.tanh(x.a + r.a + v.p) * v.p.detach()

    layer, x = Recurrent(scaled, I, H, dtype=torch.float64, **settings), torch.randn(T, B, I, dtype=torch.float64)
    check(lambda p: functional_call(layer, {"p_l0": p}, (x,))[0], [layer.p_l0], numbers=False)


def test_a_vector_in_the_operand_under_a_mask():
    """Its tangent enters the recurrent product as the operand does: multiplied by the mask of recurrent dropout."""
    scaled = rnnkernels.cell(inputs="a", recurrent="a", vectors="p", operand=lambda s, v: v.p * s.h)(
        lambda x, r: torch.tanh(x.a + r.a)
    )
    random = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    *weights, p = (draw(*w.shape) for w in weights_of(str(scaled), I, H))
    x, mask = draw(T, B, I), draw(1, B, H)
    check(lambda p: run.layer(LayerCall(str(scaled), x, [], [*weights, p], h_mask=mask, hidden_size=H))[0], [p])


def test_nan_past_lengths():
    """Neither an input's NaN there nor its tangent's reaches a tangent, nor the gradient of one."""
    layer = Recurrent(cells.gru_d, I, H, dtype=torch.float64)
    x, u = torch.randn(2, T, B, I, dtype=torch.float64), torch.rand(2, T, B, H, dtype=torch.float64)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def along(weights, fill):
        f = lambda weights, x, u: functional_call(layer, weights, (x,), dict(gamma=u, lengths=torch.tensor([T, 1])))[0]  # noqa: E731
        filled = [t.where(torch.arange(T)[:, None, None] < torch.tensor([[T], [1]]), fill) for t in (*x, *u)]
        return jvp(f, (weights, *filled[::2]), (weights, *filled[1::2]))[1]

    for of in (along, grad(lambda weights, fill: along(weights, fill).sin().sum())):
        found, expected = of(weights, torch.nan), of(weights, 0.5)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def check(f, primals, numbers=True):
    """Whether a function of tensors, which gives one, has right tangents, and right derivatives of them.

    ``numbers``: whether the derivative is the function's own.
    """
    random = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    primals = [p.detach() for p in primals]
    tangents = [draw(*p.shape) for p in primals]
    y, dy = jvp(f, (*primals,), (*tangents,))
    expected, back = vjp(f, *primals)
    assert_close("y", y, expected)
    w = draw(*y.shape)
    along = sum((g * t).sum() for g, t in zip(back(w), tangents, strict=True))
    assert_close("jvp beside vjp", (w * dy).sum(), along)
    if numbers:
        ends = [f(*(p + d * t for p, t in zip(primals, tangents, strict=True))) for d in (WIDTH, -WIDTH)]
        assert_close("jvp beside numbers", dy, (ends[0] - ends[1]) / (2 * WIDTH), 1e-7)
    with forward_ad.dual_level():
        dual = f(*map(forward_ad.make_dual, primals, tangents))
        assert_close("dual tensors", forward_ad.unpack_dual(dual).tangent, dy)
    two = lambda of: tuple(torch.stack([t, t]) for t in of)  # noqa: E731
    assert_close("jvp(vmap)", jvp(vmap(f, randomness="same"), two(primals), two(tangents))[1][1], dy)
    along = vmap(lambda *t: jvp(f, (*primals,), t)[1], randomness="same")
    several = along(*(torch.stack([t, -2 * t]) for t in tangents))
    assert_close("vmap(jvp)", several, torch.stack([dy, -2 * dy]))
    for g, e in zip(jvp(back, (w,), (dy,))[1], back(dy), strict=True):  # the pullback is linear
        assert_close("tangent of a gradient's gradient", g, e)

    loss = lambda *p: (f(*p) * w).sin().sum()  # noqa: E731
    each = tuple(range(len(primals)))
    forward = jvp(grad(loss, each), (*primals,), (*tangents,))[1]
    first = lambda *p: sum((g * t).sum() for g, t in zip(grad(loss, each)(*p), tangents, strict=True))  # noqa: E731
    for a, e in zip(forward, grad(first, each)(*primals), strict=True):
        assert_close("a product with the Hessian, forward and reverse over reverse", a, e)
    of_first = lambda p: loss(p, *primals[1:])  # noqa: E731
    expected = jacrev(jacrev(of_first))(primals[0])
    forward = lambda f: jacfwd(f, randomness="same")  # noqa: E731
    assert_close("forward over reverse", forward(jacrev(of_first))(primals[0]), expected)
    assert_close("reverse over forward", jacrev(forward(of_first))(primals[0]), expected)
    assert_close("forward over forward", forward(forward(of_first))(primals[0]), expected)


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_cells(name, monkeypatch):
    """Of every tensor at once: x, states, weights, vectors, extra inputs; on the kernels, twice too."""
    monkeypatch.setattr(run, "reference", None)
    layer = Layer(name, T=2, B=2, I=1, H=2, reverse=BOTH, lengths=torch.tensor([2, 1]))
    check(lambda *t: torch.cat([v.flatten() for v in layer(*t)]), layer.tensors, numbers=name != "lif")


LENGTHS = torch.tensor([[3, 0], [2, 3]])  # of two groups, as the next
RESET = torch.tensor([[[1, 0], [0, 0], [0, 1]], [[0, 0], [1, 1], [0, 0]]], dtype=torch.bool)
OPTIONS = "plain", "lengths", "reset", "restart", "h_mask", "zone", "groups", "no bias", "no states", "activations"
SOME = "lstm", "gru", "gru_reset_before", "gru_d", "lif", "cfc", "sru", "ea_lstm"


def case_of(name, options, reverse, dtype=torch.float64):
    """A call of a cell as a function of its tensors that have gradients, and these."""
    random = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)  # noqa: E731
    cell = getattr(cells, name)
    text = cell.kernel if "activations" in options else str(cell)
    bias, groups, program = "no bias" not in options, (2,) * ("groups" in options), cell.program
    D, table = (2 if groups else 1) * len(reverse), weights_of(text, I, H, bias=bias)
    of_states = lambda: [draw(D, B, H).exp() for _ in program.states]  # noqa: E731
    extras = [draw(*groups, T, B, 1 if u in program.narrow else H) for u in program.step]
    extras += [draw(*groups, B, H) for _ in program.sequence]
    shared = (lambda t: t) if groups else (lambda t: t[0])
    call = LayerCall(
        text, draw(*groups, T, B, I), [] if "no states" in options else of_states(),
        [0.7 * draw(*w.shape) for _ in range(D) for w in table], reverse, bias,
        activation="hard_sigmoid" if "activations" in options else None,
        recurrent_activation="relu" if "activations" in options and len(program.states) > 1 else None,
        lengths=shared(LENGTHS) if "lengths" in options else None,
        reset=shared(RESET) if {"reset", "restart"}.intersection(options) else None,
        reset_states=of_states() if "restart" in options else [],
        h_mask=draw(D, B, H) if "h_mask" in options else None,
        zone=[draw(T, D, B, H).sigmoid() for _ in program.states] if "zone" in options else [], hidden_size=H,
        extras=extras,
    )  # fmt: skip
    n, fixed = sum(call.sizes()), call.flat()

    def f(*tensors):
        y, last = run.layer(LayerCall.from_flat(call.settings(), call.sizes(), [*tensors, *fixed[n:]]))
        return torch.cat([v.flatten() for v in (y, *last)])

    return f, fixed[:n]


def exists(name, option, other, reverse, moving):
    options = {option, other}
    if OPTIONS.index(other) < OPTIONS.index(option):
        return False
    if "activations" in options and getattr(cells, name).kernel not in CELLS:
        return False
    return not ("h_mask" in options and not getattr(cells, name).program.recurrent)


@pytest.mark.parametrize(
    "name, option, other, reverse, moving",
    cases(SOME, OPTIONS, OPTIONS, ((False,), (True,), BOTH), ("x", "weights", "all"), exists=exists),
)
def test_options(name, option, other, reverse, moving):
    """Pairs of options, and tangents of some tensors: beside the reference, and derivatives in both orders."""
    f, tensors = case_of(name, (option, other), reverse)
    given = [k for k, t in enumerate(tensors) if moving == "all" or (moving == "x") != (t.dim() < 3)]
    tangents = [0.5 * tensors[k].cos() for k in given]

    def of(*t):
        return f(*(t[given.index(k)] if k in given else v for k, v in enumerate(tensors)))

    w = torch.linspace(-1, 1, f(*tensors).numel(), dtype=torch.float64)
    each, primals = tuple(range(len(given))), tuple(tensors[k] for k in given)

    def results():
        y, dy = jvp(of, primals, (*tangents,))
        along = grad(lambda *t: (jvp(of, t, (*tangents,))[1] * w).sum(), each)(*primals)
        back = jvp(grad(lambda *t: (of(*t) * w).sum(), each), primals, (*tangents,))[1]
        return y, dy, *along, *back

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "reference", None)
        found = results()
    assert_close("a tangent without reverse mode", jvp(of, primals, (*tangents,))[1], found[1])
    with backends.force("reference"):
        expected = results()
    for k, (a, e) in enumerate(zip(found, expected, strict=True)):
        assert_close(f"result {k}", a, e)


@pytest.mark.parametrize("given", ["lengths", "reset"])
def test_second_derivatives_of_heads(given):
    """In the tangent of heads each has an input of its own, and all have the same lengths and resets."""
    layer = rnnkernels.GRU(I, H, heads=2, dtype=torch.float64)
    x, w = torch.randn(T, B, I, dtype=torch.float64), layer.weight_hh_l0.detach()
    more = {given: LENGTHS[0] if given == "lengths" else RESET[0]}

    def loss(x, w):
        y, h = functional_call(layer, {"weight_hh_l0": w}, (x,), more)
        return y.sin().sum() + h.sum()

    expected = torch.autograd.functional.hessian(loss, (x, w))
    assert_close("of x", jacfwd(jacrev(loss))(x, w), expected[0][0])
    assert_close("of the weights", jacrev(jacfwd(loss, 1), 1)(x, w), expected[1][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    """Beside float64, from the same numbers."""
    for name in ("lstm", "gru", "sru"):
        f, tensors = case_of(name, ("reset",), BOTH, dtype)
        g, _ = case_of(name, ("reset",), BOTH)
        tangents = [t.cos() for t in tensors]
        found = jvp(f, (*tensors,), (*tangents,))
        expected = jvp(g, tuple(t.double() for t in tensors), tuple(t.double() for t in tangents))
        for what, a, e in zip(("y", "dy"), found, expected, strict=True):
            assert a.dtype == dtype
            assert_close(what, a, e)


def of_module(module, call):
    """A function of x and the parameters of a module, and where to take it; ``call(layer, x)`` calls ``layer(...)``."""
    names, parameters = zip(*module.named_parameters(), strict=True)

    def f(x, *p):
        torch.manual_seed(0)  # of masks
        y = call(lambda *a, **k: functional_call(module, dict(zip(names, p, strict=True)), a, k), x)
        return y[0] if isinstance(y, tuple) else y

    return f, parameters


F64 = {"dtype": torch.float64}
X = torch.linspace(-1, 1, T * B * I, dtype=torch.float64).sin().view(T, B, I)
MASK = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [0, 0]], [[0, 1], [1, 1]]], dtype=torch.bool)
MODULES = {
    "layers": (
        lambda: Recurrent(cells.cfc, I, H, 2, bidirectional=True, batch_first=True, **F64),
        lambda layer, x: layer(x.transpose(0, 1), lengths=torch.tensor([3, 1]), ts=x[..., :1].transpose(0, 1)),
    ),
    "options": (
        lambda: Recurrent(
            cells.peephole_lstm, I, H, layer_norm=True, zoneout=(0.2, 0.3), recurrent_dropout=0.3, recompute=True, **F64
        ),
        lambda layer, x: layer(x, reset=MASK[..., 0]),
    ),
    "heads, evaluation": (
        lambda: Recurrent(cells.slstm, I, H, heads=2, zoneout=0.2, **F64).eval(), lambda layer, x: layer(x)
    ),
    "without a projection": (
        lambda: Recurrent(OWN["elementwise"], 2 * H, H, **F64), lambda layer, x: layer(x.repeat(1, 1, H))
    ),
    "cell": (lambda: rnnkernels.RecurrentCell(cells.mgu, I, H, **F64), lambda layer, x: layer(x[0])),
    "no batch": (lambda: Recurrent(OWN["rates"], I, H, alpha=0.5, **F64), lambda layer, x: layer(x[:, 0])),
    "LSTM": (lambda: rnnkernels.LSTM(I, H, layer_norm=True, **F64), lambda layer, x: layer(x)),
    "GRUD": (lambda: rnnkernels.GRUD(I, H, **F64), lambda layer, x: layer(x, MASK)),
    "EALSTM": (lambda: rnnkernels.EALSTM(I, B, H, **F64), lambda layer, x: layer(x, x[0])),
    "LiGRU": (lambda: rnnkernels.LiGRU(I, H, bidirectional=True, norm=None, **F64), lambda layer, x: layer(x)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    make, call = MODULES[name]
    torch.manual_seed(2)
    f, parameters = of_module(make(), call)
    check(f, (X, *parameters))


@rnnkernels.cell(inputs="a b c d e f g i", states="h")
def wide(x, s):
    return torch.tanh(x.a * x.b * x.c * x.d * x.e * x.f * x.g * x.i * s.h + x.a)


def test_step_by_step():
    """Layers whose tangents are the reference's: ``explain`` says so, and why."""
    for layer, why in (
        (Recurrent(wide, I, H, **F64), "its tangent needs 9 values of each step, and 8 are possible"),
        (rnnkernels.LSTM(I, H, proj_size=2, **F64), "its first state is a projection"),
        (rnnkernels.GRU(I, H, layer_norm=True, **F64), "its products have a layer norm"),
        (rnnkernels.GRU(I, H, **F64), None),
    ):
        explained = rnnkernels.explain(layer, X)
        assert explained.layers[0].tangents == why
        assert (f"forward mode on the reference, step by step: {why}" in str(explained)) == (why is not None)
        f = lambda x: layer(x)[0]  # noqa: B023, E731
        y, back = vjp(f, X)
        w = y.detach().cos()
        assert_close(f"jvp beside vjp: {why}", (jvp(f, (X,), (X,))[1] * w).sum(), (back(w)[0] * X).sum())


def test_ops_called_by_hand():
    """What they cannot do is an error, where a transform hides the tangent too."""
    w = [torch.randn(n, m, dtype=torch.float64) for n, m in ((3 * H, I), (3 * H, H))]
    gain = torch.ones(3 * H, dtype=torch.float64)
    call = LayerCall("gru", X, [], [*w, gain, gain], bias=False, layer_norm=True)
    op = lambda x: torch.ops.rnnkernels.layer(*call._replace(x=x), False)[0]  # noqa: E731
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        jvp(vmap(op), (X[None],), (X[None],))
    mask = torch.ones(1, B, H, dtype=torch.float64)
    call = LayerCall("gru", X, [], w, bias=False, h_mask=mask)
    with pytest.raises(NotImplementedError, match="h_mask and zone have no forward-mode derivative"):
        jvp(lambda mask: run.layer(call._replace(h_mask=mask))[0], (mask,), (mask,))


def test_linearize():
    """Under make_fx, where values of lengths cannot be read."""
    layer = Recurrent(cells.min_gru, I, H, **F64).requires_grad_(False)
    f = lambda x: layer(x, lengths=torch.tensor([3, 1]))[0]  # noqa: E731
    assert_close("linearize", linearize(f, X)[1](X), jvp(f, (X,), (X,))[1])


def test_torchs_own_checks():
    """Tangents of the gradients that come in, through the nodes of ordinary autograd."""
    layer, x = Recurrent(cells.sru, I, H, **F64), X.clone().requires_grad_()
    f = lambda x: layer(x)[0]  # noqa: E731
    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True)


def test_compiled():
    """torch.compile leaves forward mode to eager mode: it would lose a spike's own derivative."""
    layer = Recurrent(cells.lif, I, H, **F64).requires_grad_(False)

    def tangent(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))[0]).tangent

    for f in (tangent, lambda x: jvp(lambda x: layer(x)[0], (x,), (x,))[1]):
        assert_close("a tangent", torch.compile(f, backend="aot_eager")(X), f(X))


def test_what_is_for_inference_refuses_tangents():
    layer, x, first = rnnkernels.GRU(I, H), X.float(), X[0].float()
    stepper, out = rnnkernels.Stepper(layer, B), torch.zeros(B, H)
    quantized = rnnkernels.quantize_dynamic(layer)
    own = rnnkernels.Stepper(rnnkernels.RecurrentCell(cells.li_gru, I, H), B)
    words = "for inference only, but {} has a forward-mode tangent"
    for call, name in (
        (lambda x: quantized(x)[0], "input"), (lambda x: stepper.step(x[0]), "x"),
        (lambda x: stepper.step_(x[0], out), "x"), (lambda x: own(x[0])[0], "x"),
        (lambda x: own(first, x[0].repeat(1, 2))[0], "hx"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=words.format(name)):
            jvp(call, (x,), (x,))
        with forward_ad.dual_level():
            with pytest.raises(RuntimeError, match=words.format(name)):
                call(forward_ad.make_dual(x, x))
            call(x)  # no tangent here
