"""``Recurrent``, ``RecurrentCell``, ``functional.recurrent``: every way of using a layer, of cells of one's own."""

import copy
import io
import pickle

import pytest
import torch
from common import assert_close
from recurrent_cases import CELLS, loop, lstm

import rnnkernels
from rnnkernels import Recurrent, RecurrentCell, functional

GIVEN = rnnkernels.cell(inputs="a", recurrent="a", project_input=False)(lambda x, r: torch.tanh(x.a + r.a))

T, B, I, H = 5, 3, 4, 6  # noqa: E741 - the letters that the whole library uses
pytestmark = [  # of Dynamo and of torch.jit
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),
]
ALL = pytest.mark.parametrize("name", CELLS)


def layer_of(name, num_layers=1, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    given = CELLS[name].program.given
    return Recurrent(CELLS[name], 2 * H if given else I, H, num_layers, dtype=dtype, **settings)


def inputs_of(layer, T=T, B=B, dtype=torch.float64):
    program = layer.cell.program
    torch.manual_seed(1)
    found = {name: torch.rand(T, B, 1 if name in program.narrow else H, dtype=dtype) for name in program.step}
    return found | {name: torch.rand(B, H, dtype=dtype) for name in program.sequence}


def states_of(layer, B=B, dtype=torch.float64):
    n = layer.num_layers * (1 + layer.bidirectional)
    return [torch.randn(n, B, H, dtype=dtype) for _ in layer.cell.program.states]


def as_hx(states):
    return states[0] if len(states) == 1 else tuple(states)


def as_list(hidden):
    return [hidden] if isinstance(hidden, torch.Tensor) else list(hidden)


@ALL
@pytest.mark.parametrize("layers,both,bias,lengths", [(1, False, True, None), (2, True, False, [5, 0, 2])])
def test_outputs_and_gradients_are_those_of_a_loop(name, layers, both, bias, lengths):
    if name == "elementwise":
        layers = 1
    layer = layer_of(name, layers, bidirectional=both, bias=bias)
    inputs, states = inputs_of(layer), states_of(layer)
    x = torch.randn(T, B, layer.input_size, dtype=torch.float64)
    leaves = {"x": x, **{f"state {k}": s for k, s in enumerate(states)}, **inputs}
    for t in leaves.values():
        t.requires_grad_()
    leaves |= dict(layer.named_parameters())
    lengths = None if lengths is None else torch.tensor(lengths)
    y, hidden = layer(x, as_hx(states), lengths, **inputs)
    expected, last = loop(layer, x, states, lengths, **inputs)
    assert_close("y", y, expected)
    for k, (s, e) in enumerate(zip(as_list(hidden), last, strict=True)):
        assert_close(f"state {k}", s, e)
    weights = [torch.randn_like(t) for t in (y, *last)]
    results = []
    for out in ((y, *as_list(hidden)), (expected, *last)):
        total = sum((w * t).sum() for w, t in zip(weights, out, strict=True))
        results.append(torch.autograd.grad(total, list(leaves.values())))
    for key, found, wanted in zip(leaves, *results, strict=True):
        assert_close(f"gradient of {key}", found, wanted)


def test_an_lstm_of_ones_own_is_an_lstm():
    own, nn = Recurrent(lstm, I, H, 2, bidirectional=True, dropout=0.5), torch.nn.LSTM(I, H, 2, bidirectional=True)
    own.load_state_dict(nn.state_dict())
    own.eval()
    x = torch.randn(T, B, I)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [3, 5, 2], enforce_sorted=False)
    for given in (x, packed, x[:, 0]):
        (y, hidden), (expected, last) = own(given), nn(given)
        if given is packed:
            y, expected = y.data, expected.data
        for a, b in zip((y, *hidden), (expected, *last), strict=True):
            assert_close("lstm", a, b, 1e-6)
    torch.manual_seed(3)
    fresh = Recurrent(lstm, I, H, 2)
    torch.manual_seed(3)
    for (name, p), (other, q) in zip(fresh.named_parameters(), torch.nn.LSTM(I, H, 2).named_parameters(), strict=True):
        assert name == other and torch.equal(p, q)


@ALL
def test_batch_first_unbatched_and_one_step(name):
    layer = layer_of(name)
    inputs, states = inputs_of(layer), states_of(layer)
    program = layer.cell.program
    x = torch.randn(T, B, layer.input_size, dtype=torch.float64)
    y, hidden = layer(x, as_hx(states), **inputs)
    first = copy.deepcopy(layer)
    first.batch_first = True
    turned = {k: v.transpose(0, 1) if k in program.step else v for k, v in inputs.items()}
    assert_close("batch_first", first(x.transpose(0, 1), as_hx(states), **turned)[0].transpose(0, 1), y)
    one = {k: v[:, 1] if k in program.step else v[1] for k, v in inputs.items()}
    alone, last = layer(x[:, 1], as_hx([s[:, 1] for s in states]), **one)
    assert_close("unbatched", alone, y[:, 1])
    assert_close("unbatched state", as_list(last)[0], as_list(hidden)[0][:, 1])
    cell = RecurrentCell(CELLS[name], layer.input_size, H, dtype=torch.float64)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    now = [s[0] for s in states]
    for t in range(T):
        out, new = cell(x[t], as_hx(now), **{k: v[t] if k in program.step else v for k, v in inputs.items()})
        now = as_list(new)
        assert_close(f"step {t}", out, y[t])
    out, new = cell(
        x[0, 1],
        as_hx([s[0, 1] for s in states]),
        **{k: v[0] if v.dim() == 2 and k in program.step else v for k, v in one.items()},
    )
    assert_close("a step without a batch", out, y[0, 1])


@ALL
def test_options(name):
    """Zoneout in eval, reset and recompute against the plain layer and a loop of single steps."""
    layer = layer_of(name)
    inputs, states = inputs_of(layer), states_of(layer)
    x = torch.randn(T, B, layer.input_size, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(T, B) < 0.4
    y, _ = layer(x, as_hx(states), reset=reset, **inputs)
    now, program = states, layer.cell.program
    for t in range(T):
        now = [torch.where(reset[t, :, None], 0.0, s) for s in now]
        step = {k: v[t : t + 1] if k in program.step else v for k, v in inputs.items()}
        out, last = layer(x[t : t + 1], as_hx(now), **step)
        now = as_list(last)
        assert_close(f"reset {t}", y[t], out[0])
    again = copy.deepcopy(layer)
    again.recompute = True
    gradients = [torch.autograd.grad(m(x, as_hx(states), reset=reset, **inputs)[0].square().sum(),
                                     [x, *m.parameters()]) for m in (layer, again)]  # fmt: skip
    for a, b in zip(*gradients, strict=True):
        assert_close("recompute", a, b)
    zoned = copy.deepcopy(layer).eval()
    zoned.zoneout = 0.25
    step = {k: v[:1] if k in program.step else v for k, v in inputs.items()}
    _, plain = layer(x[:1], as_hx(states), **step)
    _, kept = zoned(x[:1], as_hx(states), **step)
    for old, new, mixed in zip(states, as_list(plain), as_list(kept), strict=True):
        assert_close("zoneout", mixed, 0.25 * old + 0.75 * new)


@ALL
def test_transforms(name):
    torch._dynamo.reset()  # graphs of other layers, whose code this is too
    layer = layer_of(name)
    inputs = inputs_of(layer)
    x = torch.randn(T, B, layer.input_size, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x, **inputs)
    compiled, _ = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, **inputs)
    assert_close("compiled", compiled, y)
    expected = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(compiled.square().sum(), list(layer.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert_close("compiled gradient", a, b)
    exported = torch.export.export(layer, (x.detach(),), inputs).module()
    assert_close("exported", exported(x.detach(), **inputs)[0], y)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert_close("copied", other(x, **inputs)[0], y)
    params = dict(layer.named_parameters())
    stacked = {k: torch.stack([p, 2 * p]) for k, p in params.items()}
    run = lambda p, x: torch.func.functional_call(layer, p, (x,), inputs)[0]  # noqa: E731
    both = torch.func.vmap(run, (0, None))(stacked, x)
    assert_close("vmap over weights", both[1], run({k: 2 * p for k, p in params.items()}, x))
    per_sample = torch.func.vmap(torch.func.grad(lambda p, x: run(p, x).square().sum()), (None, 0))
    xs = torch.stack([x.detach(), x.detach() + 1])
    for k, g in per_sample(params, xs).items():
        wanted = torch.autograd.grad(layer(xs[1], **inputs)[0].square().sum(), params[k], allow_unused=True)[0]
        assert_close(f"gradient of one sample, {k}", g[1], wanted)
    if not inputs:
        return
    both = torch.func.grad(lambda p, u: torch.func.functional_call(layer, p, (x,), u)[0].square().sum(), argnums=(0, 1))
    found = torch.func.vmap(both, (None, 0))(params, {k: torch.stack([u, 2 * u]) for k, u in inputs.items()})
    for k, g in found[1].items():
        wanted = both(params, {name: 2 * u for name, u in inputs.items()})[1][k]
        assert_close(f"gradient of one sample's {k}", g[1], wanted)


@ALL
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own jvp uses it
def test_forward_mode(name):
    layer = layer_of(name)
    inputs, x = inputs_of(layer, 3, 2), torch.randn(3, 2, layer.input_size, dtype=torch.float64)
    f = lambda x: layer(x, **inputs)[0].sin()  # noqa: E731
    assert_close("jacfwd", torch.func.jacfwd(f)(x), torch.func.jacrev(f)(x))
    g = lambda x: f(x).sum()  # noqa: E731
    assert_close("hessian", torch.func.hessian(g)(x), torch.func.jacrev(torch.func.jacrev(g))(x))


def test_function():
    layer = layer_of("peephole", 2, bidirectional=True)
    x, params = torch.randn(T, B, I, dtype=torch.float64), list(layer.parameters())
    y, (h, c) = functional.recurrent(layer.cell, x, None, params, num_layers=2, bidirectional=True)
    expected, last = layer(x)
    for a, b in zip((y, h, c), (expected, *last), strict=True):
        assert torch.equal(a, b)
    layer = layer_of("rates")
    y, _ = functional.recurrent(layer.cell, x, None, list(layer.parameters()), alpha=0.5)
    assert_close("constant", y, layer_of("rates", alpha=0.5)(x)[0])


def test_function_finds_the_hidden_size_without_weights():
    """From a state, or from an extra input: the input is of any size."""

    @rnnkernels.cell(states="h c", step_inputs="p")
    def still(s, u):
        return torch.tanh(s.h + u.p), 0.5 * s.c + s.h

    @rnnkernels.cell(states="h c")
    def alone(s):
        return 0.5 * s.h + s.c, s.c

    x, given, hx = torch.randn(T, B, I), {"p": torch.rand(T, B, H)}, (torch.randn(1, B, H), torch.randn(1, B, H))
    for cell, hidden, more in ((still, None, given), (still, hx, given), (alone, hx, {})):
        y, last = functional.recurrent(cell, x, hidden, [], **more)
        expected, states = Recurrent(cell, I, H)(x, hidden, **more)
        assert torch.equal(y, expected) and all(map(torch.equal, last, states))


def test_function_refuses_heads_beside_extra_inputs():
    layer = layer_of("decayed")
    x, params = torch.randn(T, B, I, dtype=torch.float64), list(layer.parameters())
    params[1] = torch.randn(2, H, H // 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="heads is for a cell with both products .* and without extra inputs"):
        functional.recurrent(layer.cell, x, None, params, heads=2, **inputs_of(layer))


def test_names_and_initial_values():
    layer = Recurrent(CELLS["peephole"], I, H, 2, bidirectional=True, layer_norm=True, init=lambda name, p: p.zero_())
    assert list(dict(layer.named_parameters()))[:9] == [
        "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "ln_x_gain_l0", "ln_h_gain_l0", "p_i_l0", "p_f_l0",
        "p_o_l0",
    ]  # fmt: skip
    assert all(not p.any() for p in layer.parameters()) and "p_o_l1_reverse" in layer.state_dict()
    assert str(layer) == "Recurrent(peephole, 4, 6, num_layers=2, bidirectional=True, layer_norm=True)"
    assert str(Recurrent(CELLS["rates"], I, H, alpha=0.5)) == "Recurrent(rates, 4, 6, alpha=0.5)"
    assert set(rnnkernels.trace(layer, torch.randn(T, B, I))) >= {"i_l0", "o_l1_reverse", "c_l0", "h_l1"}
    assert "training keeps i, f, plane_2, o" in str(rnnkernels.explain(layer, torch.randn(T, B, I)))


def test_an_input_called_module_is_traced():
    own = rnnkernels.cell(inputs="n", step_inputs="module")(lambda x, s, u: torch.tanh(x.n) * u.module)
    layer, x, given = rnnkernels.Recurrent(own, I, H), torch.randn(T, B, I), torch.randn(T, B, H)
    assert_close("h", rnnkernels.trace(layer, x, module=given)["h_l0"], layer(x, module=given)[0], 1e-6)


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda: Recurrent(torch.tanh, I, H), TypeError, "cell should be a cell of rnnkernels, got: builtin_function"),
        (lambda: Recurrent(lstm, I, 0), ValueError, "hidden_size must be greater than zero"),
        (lambda: Recurrent(lstm, I, 2.0), TypeError, "hidden_size should be of type int, got: float"),
        (lambda: Recurrent(lstm, I, H, alpha=1), TypeError, "unexpected keyword argument 'alpha'"),
        (lambda: Recurrent(lstm, I, H, zoneout=(0.1,) * 3), ValueError, "as lstm has two states"),
        (lambda: Recurrent(CELLS["elementwise"], I, H), ValueError, "= 2 \\* hidden_size = 12, got 4"),
        (lambda: Recurrent(CELLS["elementwise"], 2 * H, H, recurrent_dropout=0.1), ValueError, "elementwise has none"),
        (lambda: Recurrent(CELLS["decayed"], I, H, heads=2), ValueError, "heads is for a cell with both"),
        (lambda: Recurrent(GIVEN, H, H, heads=2), ValueError, r"both products \(no project_input=False\)"),
        (lambda: Recurrent(lstm, I, H)(torch.zeros(T, B, I), torch.zeros(1, B, H)), TypeError, "must be tuple of"),
        (lambda: Recurrent(lstm, I, H)(torch.zeros(T, B, I + 1)), RuntimeError, "input_size. Expected 4"),
        (lambda: Recurrent(lstm, I, H)(torch.zeros(T, B, I), u=1), TypeError, "unexpected input 'u'"),
        (lambda: Recurrent(CELLS["decayed"], I, H)(torch.zeros(T, B, I)), TypeError, "missing the input 'gamma'"),
        (lambda: rnnkernels.keras.export_weights(Recurrent(lstm, I, H)), TypeError, "not Recurrent of lstm"),
        (lambda: RecurrentCell(CELLS["elementwise"], I, H), ValueError, "= 2 \\* hidden_size = 12, got 4"),
        (lambda: RecurrentCell(lstm, I, H)(torch.zeros(2, I), torch.zeros(2, H)), TypeError, "must be tuple of"),
        (lambda: functional.recurrent(lstm, torch.zeros(T, B, I), None, [*Recurrent(lstm, I, H).parameters()], zone=1),
         TypeError, "recurrent\\(\\) got an unexpected input 'zone'"),
        (lambda: torch.jit.script(Recurrent(lstm, I, H)), RuntimeError, "torch.jit.script cannot compile Recurrent"),
    ],
)  # fmt: skip
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_wrong_extra_inputs():
    layer = layer_of("decayed")
    x, good = torch.zeros(T, B, I, dtype=torch.float64), inputs_of(layer)
    for name, bad, words in (
        ("gamma", torch.zeros(T, B, H + 1, dtype=torch.float64), r"Expected gamma size \(5, 3, 6\), got \[5, 3, 7\]"),
        ("gamma", torch.zeros(B, H, dtype=torch.float64), "gamma should be 3-D but got 2-D"),
        ("rate", torch.zeros(T, B, 1), "Expected rate of dtype torch.float64"),
    ):
        with pytest.raises(RuntimeError, match=words):
            layer(x, **{**good, name: bad})


def test_autocast_takes_extra_inputs_of_another_dtype():
    """As a linear layer before this one makes them, which autocast gives its dtype."""
    layer = layer_of("decayed", dtype=torch.float32)
    x, given = torch.randn(T, B, I), inputs_of(layer, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x, **given)[0]
        assert torch.equal(layer(x, **{name: u.bfloat16() for name, u in given.items()})[0], expected)
        assert torch.equal(layer(x.bfloat16(), **given)[0], expected)
        leaves = {name: u.bfloat16().requires_grad_() for name, u in given.items()}
        layer(x, **leaves)[0].sum().backward()
        with pytest.raises(RuntimeError, match="Expected gamma of dtype torch.float32 on cpu, as the input, but got"):
            layer(x, **{**given, "gamma": given["gamma"].double()})
    found = {name: u.grad for name, u in leaves.items()}
    wanted = {name: u.double().requires_grad_() for name, u in given.items()}
    layer.double()(x.double(), **wanted)[0].sum().backward()
    for name, u in wanted.items():
        assert_close(name, found[name], u.grad, 2e-2)


def test_a_cell_that_computes_what_a_built_in_one_does_runs_as_that():
    @rnnkernels.cell(inputs="one two three four", recurrent="one two three four", states="out memory")
    def mine(x, r, s):
        forget = torch.sigmoid(r.two + x.two)
        memory = torch.tanh(x.three + r.three) * torch.sigmoid(x.one + r.one) + s.memory * forget
        return torch.tanh(memory) * torch.sigmoid(x.four + r.four), memory

    @rnnkernels.cell(inputs="one two three four", recurrent="one two three four", states="out memory")
    def other(x, r, s):
        memory = torch.tanh(x.three + r.three) * torch.sigmoid(x.one + r.one) + s.memory * torch.sigmoid(x.two + r.two)
        return torch.tanh(memory) * torch.sigmoid(x.four - r.four), memory

    assert mine.kernel == "lstm" and other.kernel == str(other)
    assert rnnkernels.cells.gru_reset_before.kernel == "gru_reset_before" and rnnkernels.cells.li_gru.kernel != "gru"
    layer, nn = Recurrent(mine, I, H), torch.nn.LSTM(I, H)
    nn.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I)
    assert_close("y", layer(x)[0], nn(x)[0], 1e-6)
    traced = rnnkernels.trace(layer, x)
    assert_close("forget", traced["forget_l0"], rnnkernels.trace(rnnkernels.convert(nn), x)["f_l0"], 1e-6)
    normed = Recurrent(mine, I, H, layer_norm=True)
    assert len(list(normed.parameters())) == 6 and normed(x)[0].shape == (T, B, H)


@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if not cell.program.extras])
def test_inference_of_all_layers_in_one_call(name):
    layer = layer_of(name, 1 if name == "elementwise" else 3, torch.float32)
    x, states = torch.randn(T, B, layer.input_size), states_of(layer, dtype=torch.float32)
    y, hidden = layer(x, as_hx(states), [5, 0, 2])
    with torch.no_grad():
        again, last = layer(x, as_hx(states), [5, 0, 2])
    for a, b in zip((again, *as_list(last)), (y, *as_list(hidden)), strict=True):
        assert_close(name, a, b, 1e-6)


def init_to_ones(name, parameter):
    parameter.fill_(1.0)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("cell", [lstm, rnnkernels.cells.gru_d], ids=["weights", "extra input"])
def test_copies_of_copies(cell):
    inputs = {"gamma": torch.rand(3, 2, 4)} if cell.program.step else {}
    layer, x = rnnkernels.Recurrent(cell, 5, 4).eval(), torch.randn(3, 2, 5)
    expected = layer(x, **inputs)[0]
    for turn in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded, rnnkernels.freeze):
        once = turn(layer)
        for again in (copy.deepcopy(once), turn(once), saved_and_loaded(once)):
            assert_close("y", again(x, **inputs)[0], expected)
    average = torch.optim.swa_utils.AveragedModel(saved_and_loaded(layer))
    assert torch.equal(average(x, **inputs)[0], expected)


@pytest.mark.parametrize("kind", [rnnkernels.Recurrent, rnnkernels.RecurrentCell])
def test_init_is_of_the_layer_and_not_of_its_pickle(kind):
    layer = kind(lstm, 5, 4, init=lambda name, parameter: init_to_ones(name, parameter))  # no pickle has a lambda
    loaded, twin = pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)
    for module, ones in ((layer, True), (twin, True), (loaded, False)):
        assert all((p == 1).all() for p in module.parameters())
        module.reset_parameters()
        assert all((p == 1).all() for p in module.parameters()) == ones


def test_weights_from_a_generator():
    gru, x = torch.nn.GRU(5, 4), torch.randn(3, 2, 5)
    y, _ = rnnkernels.functional.gru(x, None, (p for p in gru.parameters()))
    assert_close("y", y, gru(x)[0])


def test_revert_says_nothing_of_layers_that_torch_lacks():
    model = torch.nn.Sequential(rnnkernels.Recurrent(lstm, 5, 4))
    assert type(rnnkernels.revert(model)[0]) is rnnkernels.Recurrent
