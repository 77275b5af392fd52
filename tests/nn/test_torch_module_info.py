"""PyTorch's own cases for RNN, LSTM, GRU and their cells (its ModuleInfo entries), run on our classes.

The checks are those of PyTorch's test/test_modules.py, written anew: forward against the case's reference function,
repr, pickle, factory arguments, devices and dtypes, non-contiguous tensors, gradients of first and second order,
errors.
"""

import copy
import io
import pickle
import warnings

import pytest
import torch
from common import assert_close
from pairwise import ALL
from torch import nn

import rnnkernels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    common_modules = pytest.importorskip(
        "torch.testing._internal.common_modules", reason="PyTorch's module tests need the package expecttest"
    )
NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
TORCHS = {name: getattr(nn, name) for name in NAMES}  # while a test runs, ours are there
INFOS = [info for info in common_modules.module_db if info.module_cls in [getattr(nn, name) for name in NAMES]]
cases = pytest.mark.parametrize(
    "info, training",
    [(info, training) for info in INFOS for training in (True, False)],
    ids=[f"{info.module_cls.__name__}-{mode}" for info in INFOS for mode in ("train", "eval")],
)
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def ours_in_torch(monkeypatch):
    """Our classes stand in torch.nn and in the entries while a test runs."""
    for info in INFOS:
        name = info.module_cls.__name__
        monkeypatch.setattr(info, "module_cls", getattr(rnnkernels, name))
        monkeypatch.setattr(nn, name, getattr(rnnkernels, name))
    torch.manual_seed(0)


def samples(info, training, dtype=torch.float64, requires_grad=False):
    """``module, args, kwargs, case`` for every case of an entry."""
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training)
    for case in inputs:
        made = case.constructor_input
        module = info.module_cls(*made.args, **made.kwargs, device="cpu", dtype=dtype).train(training)
        assert type(module).__module__.startswith("rnnkernels")
        yield module, case.forward_input.args, case.forward_input.kwargs, case


def tensors(value):
    """All tensors in nested tuples and lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, (tuple, list)) else []


def replaced(value, with_what):
    """Nested tuples and lists with the next tensor of an iterator in place of each one."""
    if isinstance(value, torch.Tensor):
        return next(with_what)
    return type(value)(replaced(v, with_what) for v in value) if isinstance(value, (tuple, list)) else value


def test_entries_are_there():
    assert sorted(info.module_cls.__name__ for info in INFOS) == sorted(NAMES)


@cases
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(info, training, dtype):
    for module, args, kwargs, case in samples(info, training, dtype):
        if case.reference_fn is not None:
            expected = case.reference_fn(module, *args, **kwargs)
            torch.testing.assert_close(module(*args, **kwargs), expected)


@cases
def test_repr_pickle_save_and_copy(info, training):
    for module, args, kwargs, _ in samples(info, training):
        assert repr(module) == str(module)
        expected = module(*args, **kwargs)
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        for twin in (pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False), copy.deepcopy(module)):
            assert twin.training == training
            torch.testing.assert_close(twin(*args, **kwargs), expected, rtol=0, atol=0)
        blank = copy.deepcopy(module)
        blank.reset_parameters()
        blank.load_state_dict(module.state_dict())
        torch.testing.assert_close(blank(*args, **kwargs), expected, rtol=0, atol=0)


@cases
@pytest.mark.parametrize("dtype", DTYPES)
def test_factory_arguments_devices_and_dtypes(info, training, dtype):
    for module, args, kwargs, case in samples(info, training, dtype):
        assert all(p.dtype == dtype and p.device.type == "cpu" for p in module.parameters())
        with torch.device("meta"):
            meta = info.module_cls(*case.constructor_input.args, **case.constructor_input.kwargs).train(training)
        assert all(p.device.type == "meta" for p in meta.parameters())
        meta = meta.to_empty(device="cpu").to(dtype)
        meta.load_state_dict(module.state_dict())
        torch.testing.assert_close(meta(*args, **kwargs), module(*args, **kwargs))
        before = [id(p) for p in module.parameters()]
        module.to(torch.float64).to(torch.float32)
        assert all(p.dtype == torch.float32 for p in module.parameters())
        assert [id(p) for p in module.parameters()] == before


@cases
def test_non_contiguous_tensors(info, training):
    """The same results and gradients when any of inputs and parameters is not contiguous."""
    spread = lambda t: torch.repeat_interleave(t.detach(), 2, dim=-1)[..., ::2].requires_grad_()  # noqa: E731
    for module, args, kwargs, _ in samples(info, training, requires_grad=True):
        found = []
        flat = tensors(args)
        for which in (None, *range(len(flat)), "parameters", "all"):
            leaves = [
                spread(t) if which in (n, "all") else t.detach().clone().requires_grad_() for n, t in enumerate(flat)
            ]
            twin = copy.deepcopy(module)
            if which in ("parameters", "all"):
                for p in twin.parameters():
                    p.data = spread(p.data).detach()
            out = tensors(twin(*replaced(args, iter(leaves)), **kwargs))
            grads = torch.autograd.grad(sum(o.square().sum() for o in out), [*leaves, *twin.parameters()])
            found.append([*out, *grads])
        for other in found[1:]:
            torch.testing.assert_close(other, found[0])


@cases
def test_gradients_of_first_and_second_order_are_torchs(info, training):
    """Of every case, by every input and parameter, all of their values: beside torch.nn's module."""
    for module, args, kwargs, case in samples(info, training, requires_grad=True):
        twin = TORCHS[type(module).__name__](*case.constructor_input.args, **case.constructor_input.kwargs)
        twin = twin.double().train(training)
        twin.load_state_dict(module.state_dict())
        found = []
        for each in (module, twin):
            leaves = [*tensors(args), *each.parameters()]
            out = tensors(each(*args, **kwargs))
            first = torch.autograd.grad(sum(o.sin().sum() for o in out), leaves, create_graph=True)
            found.append([*out, *first, *torch.autograd.grad(sum(g.cos().sum() for g in first), leaves)])
        for n, (actual, expected) in enumerate(zip(*found, strict=True)):
            assert_close(f"value {n}", actual, expected)


@cases
@pytest.mark.parametrize("check", (torch.autograd.gradcheck, torch.autograd.gradgradcheck))
def test_gradients_are_those_of_numbers(info, training, check):
    listed = list(samples(info, training, requires_grad=True))
    if not training:  # nothing differs without dropout
        listed = listed[::4]
    if not ALL:  # beside torch.nn's there are all
        listed = listed[-1:]
    for module, args, kwargs, _ in listed:
        names, parameters = zip(*module.named_parameters(), strict=True)
        flat = tensors(args)

        def run(*leaves, module=module, args=args, kwargs=kwargs, names=names):
            given = leaves[: -len(names)]
            state = dict(zip(names, leaves[len(given) :], strict=True))
            return tuple(tensors(torch.func.functional_call(module, state, replaced(args, iter(given)), kwargs)))

        assert check(run, (*flat, *parameters), fast_mode=True, nondet_tol=info.gradcheck_nondet_tol)


@cases
def test_train_and_eval_differ_only_where_said(info, training):
    for module, args, kwargs, _ in samples(info, training):
        same = module.train(training)(*args, **kwargs), module.train(not training)(*args, **kwargs)
        torch.testing.assert_close(*same, rtol=0, atol=0)  # no case has dropout


@cases
@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last")
def test_errors(info, training):
    stages = common_modules.ModuleErrorEnum
    for case in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
    ):
        made, given = case.module_error_input.constructor_input, case.module_error_input.forward_input
        if case.error_on == stages.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                info.module_cls(*made.args, **made.kwargs)
        else:
            module = info.module_cls(*made.args, **made.kwargs).train(training)
            with pytest.raises(case.error_type, match=case.error_regex):
                module(*given.args, **given.kwargs)
